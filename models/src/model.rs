//! Embedding, blocks, norm, head; prefill and decode with a KV cache.
use crate::config::Config;
use crate::linear::Table;
use crate::weights::{WeightError, Weights};
use candle_core::{Result, Tensor};

/// Which linear layers read an input.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Site {
    /// q, k and v.
    Qkv,
    /// o.
    O,
    /// gate and up.
    GateUp,
    /// down.
    Down,
}

/// Sees what a block's linear layers read (calibration).
pub trait Tap {
    /// `x`: f32 `[batch, tokens, features]`.
    fn input(&mut self, site: Site, x: &Tensor) -> Result<()>;
    /// Attention that each token receives, f32 `[batch, tokens]`: `p_j = sum over heads and queries i >= j of alpha[h, i, j] / (heads * (T - j))`
    /// (WaterSIC eq. 19). Called after `input(Site::Qkv)`, only for whole sequences (no cache).
    fn attention(&mut self, received: &Tensor) -> Result<()>;
}

/// Keys and values of all blocks for `batch` sequences of equal length, preallocated; appending copies nothing old.
pub struct KvCache {}

impl KvCache {
    /// Room for `context` tokens of `batch` sequences.
    pub fn new(_config: &Config, _batch: usize, _context: usize) -> Result<Self> {
        todo!()
    }
    /// Tokens held.
    pub fn len(&self) -> usize {
        todo!()
    }
    /// True before the first token.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
    /// Tokens it has room for.
    pub fn capacity(&self) -> usize {
        todo!()
    }
    /// Forgets everything after the first `len` tokens.
    pub fn truncate(&mut self, _len: usize) {
        todo!()
    }
}

/// One transformer block.
pub struct Block {}

impl Block {
    /// Loads block `index`.
    pub fn load(_config: &Config, _weights: &dyn Weights, _index: usize) -> std::result::Result<Self, WeightError> {
        todo!()
    }
    /// Whole sequences without a cache: `x` f32 `[batch, tokens, hidden]` -> the same shape. `tap` sees the inputs.
    pub fn forward(&self, _config: &Config, _x: &Tensor, _tap: Option<&mut dyn Tap>) -> Result<Tensor> {
        todo!()
    }
}

/// A whole model.
pub struct Model {
    /// Its architecture.
    pub config: Config,
}

impl Model {
    /// Loads everything.
    pub fn load(_config: Config, _weights: &dyn Weights) -> std::result::Result<Self, WeightError> {
        todo!()
    }
    /// The embedding table alone, for layer-by-layer work.
    pub fn load_embedding(_config: &Config, _weights: &dyn Weights) -> std::result::Result<Table, WeightError> {
        todo!()
    }
    /// Appends `ids` (u32 `[batch, tokens]`) to the cache and returns the logits of the last position, f32 `[batch, vocab]`.
    /// Errors if the cache has no room.
    pub fn forward(&self, _ids: &Tensor, _cache: &mut KvCache) -> Result<Tensor> {
        todo!()
    }
    /// What the head reads at every position of whole sequences (after the last norm), f32 `[batch, tokens, hidden]`, without a cache.
    pub fn hidden(&self, _ids: &Tensor) -> Result<Tensor> {
        todo!()
    }
    /// The head alone: f32 `[.., hidden]` -> logits f32 `[.., vocab]`.
    pub fn logits(&self, _hidden: &Tensor) -> Result<Tensor> {
        todo!()
    }
    /// Bytes of weights that are read to compute one token: all linear layers and the head as they are stored (dense: elements x element size),
    /// one row of the embedding.
    pub fn bytes_per_token(&self) -> u64 {
        todo!()
    }
    /// Logits of every position of whole sequences, f32 `[batch, tokens, vocab]`, without a cache.
    pub fn forward_all(&self, _ids: &Tensor) -> Result<Tensor> {
        todo!()
    }
}
