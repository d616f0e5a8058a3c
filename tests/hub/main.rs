//! From names, folders, GGUF files and a Hub to models: what opens gives the right logits and ids, what is damaged is refused by name.
#[path = "../common/mod.rs"]
mod common;
mod folder;
mod folder_damaged;
mod names;
mod support;
