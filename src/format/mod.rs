//! The .ws container; see docs/format.md. Knows no model.
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use ws_kernels::code::CodeSet;
use ws_kernels::packed::{PackedMatrix, Parts};
use ws_kernels::rows8::Rows8;

/// Everything that can be wrong with a .ws file; each names file and tensor.
#[derive(Debug, thiserror::Error)]
pub enum FormatError {}

/// A quantized matrix before it is written: `parts.codes` are owned bytes.
pub struct Packed {
    /// Hugging Face name without `.weight`.
    pub name: String,
    /// What the file holds of it.
    pub parts: Parts,
}

/// One shard's contents.
#[derive(Default)]
pub struct Shard {
    /// Packed matrices.
    pub packed: Vec<Packed>,
    /// 8-bit tables: name, rows, columns, int8 values, row scales, common scale.
    pub rows8: Vec<(String, usize, usize, Vec<i8>, Vec<half::f16>, f32)>,
    /// Dense small tensors (norms, biases) f32: full name, shape, values.
    pub dense: Vec<(String, Vec<usize>, Vec<f32>)>,
    /// Code tables; one shard of a model holds them.
    pub codes: Option<Arc<CodeSet>>,
}

impl Shard {
    /// Writes to a temporary name beside `path`, syncs, renames.
    pub fn write(&self, _path: &Path) -> Result<(), FormatError> {
        todo!()
    }
}

/// Stored size of one packed matrix: every byte of its tensors in the file.
#[derive(Debug, Clone, serde::Serialize)]
pub struct LayerSize {
    /// Hugging Face name.
    pub name: String,
    /// Out-features.
    pub rows: usize,
    /// In-features.
    pub columns: usize,
    /// Bytes of its tensors.
    pub bytes: u64,
    /// Columns of each width.
    pub histogram: BTreeMap<u8, usize>,
    /// Exceptions stored.
    pub exceptions: usize,
}

/// An opened .ws folder; shards are memory-mapped, headers checked, nothing else read.
pub struct WsModel {}

impl WsModel {
    /// True if the folder's config.json says `quant_method: watersic`.
    pub fn is_ws(_dir: &Path) -> bool {
        todo!()
    }
    /// Opens and checks headers, versions, shapes and lengths.
    pub fn open(_dir: &Path) -> Result<Self, FormatError> {
        todo!()
    }
    /// The packed matrix of this name, validated.
    pub fn matrix(&self, _name: &str) -> Result<PackedMatrix, FormatError> {
        todo!()
    }
    /// True if this name is stored packed.
    pub fn has_matrix(&self, _name: &str) -> bool {
        todo!()
    }
    /// An 8-bit table.
    pub fn rows8(&self, _name: &str) -> Result<Rows8, FormatError> {
        todo!()
    }
    /// A dense tensor: shape and values.
    pub fn dense(&self, _name: &str) -> Result<(Vec<usize>, Vec<f32>), FormatError> {
        todo!()
    }
    /// Sizes of all packed matrices in model order.
    pub fn layers(&self) -> Vec<LayerSize> {
        todo!()
    }
    /// Bytes of all shards on disk.
    pub fn file_bytes(&self) -> u64 {
        todo!()
    }
    /// Reads everything and checks every checksum.
    pub fn verify(&self) -> Result<(), FormatError> {
        todo!()
    }
}

/// Completes a folder of shards: `model.safetensors.index.json`, `config.json` with `quantization_config`, and copies of the
/// tokenizer files; then renames `partial` to `dir`.
pub fn finish_folder(
    _partial: &Path,
    _dir: &Path,
    _config_json: &serde_json::Value,
    _quantization: &serde_json::Value,
    _files: &[(String, Vec<u8>)],
) -> Result<PathBuf, FormatError> {
    todo!()
}
/// stub
pub fn shard_is_complete(_p: &Path) -> bool {
    todo!()
}
/// stub
pub fn stored_bytes(_p: &Parts) -> u64 {
    todo!()
}
