//! The .ws container, version 1: a Hugging Face style folder whose safetensors shards hold packed matrices. See docs/format.md for every
//! tensor and bit. Knows no model.
//!
//! * [`Shard`] is written in one piece, [`finish_folder`] makes shards a model.
//! * [`WsModel`] opens a folder; nothing that it returns needs checking again.
use std::path::{Path, PathBuf};

mod error;
mod header;
mod read;
mod write;

pub use error::FormatError;
pub use read::{shard_is_complete, LayerSize, WsModel};
pub use write::{finish_folder, stored_bytes, Packed, Shard, Table8};

/// Version of the container that is written and read.
pub const VERSION: u32 = 1;
/// `quant_method` in config.json.
pub const METHOD: &str = "watersic";

/// The shards of a folder by name.
fn shard_paths(dir: &Path) -> Result<Vec<PathBuf>, FormatError> {
    let io = |error| FormatError::Io { action: "read", path: dir.to_owned(), error };
    let mut paths = Vec::new();
    for entry in std::fs::read_dir(dir).map_err(io)? {
        let path = entry.map_err(io)?.path();
        if path.extension().is_some_and(|e| e == "safetensors") {
            paths.push(path);
        }
    }
    paths.sort();
    Ok(paths)
}
