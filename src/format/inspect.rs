//! What a .ws folder holds, as figures.
use super::layer::{self, LayerSize};
use super::WsModel;
use serde::Serialize;
use serde_json::Value;

/// Sizes of a .ws folder.
#[derive(Debug, Clone, Serialize)]
pub struct Inspection {
    /// Stored bits a weight over all packed matrices, every byte of their tensors counted.
    pub stored_bits: f64,
    /// Weights of the packed matrices.
    pub weights: u64,
    /// Bytes of all shards, embeddings, norms and headers included.
    pub file_bytes: u64,
    /// `quantization_config` of config.json.
    pub quantization: Value,
    /// Packed matrices in model order.
    pub layers: Vec<LayerSize>,
    /// 8-bit tables by name.
    pub tables: Vec<TableSize>,
    /// The code of each width that has one.
    pub codes: Vec<CodeSummary>,
}

/// Size of an 8-bit table.
#[derive(Debug, Clone, Serialize)]
pub struct TableSize {
    /// Hugging Face name without `.weight`.
    pub name: String,
    /// Rows.
    pub rows: usize,
    /// Columns.
    pub columns: usize,
    /// Bytes of its tensors.
    pub bytes: u64,
}

/// A code in short.
#[derive(Debug, Clone, Serialize)]
pub struct CodeSummary {
    /// Bits a weight.
    pub width: u8,
    /// Path bits a row.
    pub path_bits: u8,
    /// Raw bits a row.
    pub raw_bits: u8,
    /// Bits of the level index.
    pub index_bits: u8,
    /// Level tables: one, or one for each row position.
    pub level_tables: usize,
    /// True for fixed-width scalar levels: every row's level depends on its own bits alone.
    pub scalar: bool,
}

impl WsModel {
    /// All figures of this folder.
    pub fn inspect(&self) -> Inspection {
        let layers = self.layers().to_vec();
        let weights = layers.iter().map(LayerSize::weights).sum();
        let table = |(name, [rows, columns]): (String, [usize; 2])| {
            let bytes = (rows * columns + 2 * rows + 4) as u64;
            TableSize { name, rows, columns, bytes }
        };
        let codes = self.codes().codes.iter().flatten().map(|code| CodeSummary {
            width: code.bits(),
            path_bits: code.path_bits,
            raw_bits: code.raw_bits,
            index_bits: code.index_bits,
            level_tables: code.levels.len(),
            scalar: code.is_scalar(),
        });
        Inspection {
            stored_bits: layer::stored_bits(layers.iter().map(|l| l.bytes).sum(), weights),
            weights,
            file_bytes: self.file_bytes(),
            quantization: self.config()["quantization_config"].clone(),
            layers,
            tables: self.tables().into_iter().map(table).collect(),
            codes: codes.collect(),
        }
    }
}
