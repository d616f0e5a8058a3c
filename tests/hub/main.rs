//! From names, folders, GGUF files and a Hub to models: what opens gives the right logits and ids, what is damaged is refused by name.
#[path = "../common/mod.rs"]
mod common;
mod fetch;
mod folder;
mod folder_damaged;
mod gguf_file;
mod gguf_hostile;
mod gguf_models;
mod gguf_refused;
mod gguf_tokenizer;
mod gguf_types;
mod mock_hub;
mod names;
mod support;
mod wikitext;
