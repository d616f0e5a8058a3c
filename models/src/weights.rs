//! Where a model gets its tensors from. Names are Hugging Face's (`model.layers.0.self_attn.q_proj`, ...).
use crate::config::Config;
use crate::linear::{Linear, Table};
use candle_core::{DType, Tensor};
use sysinfo::System;

/// An error that names file, tensor and fix.
pub type WeightError = Box<dyn std::error::Error + Send + Sync>;

/// A source of weights: a Hugging Face folder, a GGUF file or a .ws folder. Every call checks shapes against what is asked.
///
/// A model asks for each tensor once: a source needs no cache, and a layer-by-layer pass over a file holds one block at a time. Tied embeddings are
/// asked for as `model.embed_tokens` only. A dense source gives its matrices and tables in the type that [`dense_dtype`] says. All tensors of a
/// source are on one device, and the model computes there.
pub trait Weights: Send + Sync {
    /// A small dense tensor (`model.norm.weight`, ...), f32, of exactly this shape.
    fn tensor(&self, name: &str, shape: &[usize]) -> Result<Tensor, WeightError>;
    /// `prefix.weight` `[out, in]` and `prefix.bias` if asked for.
    fn linear(&self, prefix: &str, out_features: usize, in_features: usize, bias: bool) -> Result<Linear, WeightError>;
    /// `prefix.weight` as a table `[vocab, hidden]` (`model.embed_tokens`, `lm_head`).
    fn table(&self, prefix: &str, vocab: usize, hidden: usize) -> Result<Table, WeightError>;
}

/// The type in which the matrices of a dense model are held: f32, which multiplies fastest, if the whole model in f32 takes at most half of `available`
/// bytes of memory; else as `stored`, converted piece by piece in every product.
pub fn dense_dtype(config: &Config, stored: DType, available: u64) -> DType {
    if config.parameters().saturating_mul(8) <= available {
        DType::F32
    } else {
        stored
    }
}

/// Bytes of memory that can be had without swapping, and within the limit of a container; `None` where the system does not tell.
pub fn available_memory() -> Option<u64> {
    let mut system = System::new();
    system.refresh_memory();
    if system.total_memory() == 0 {
        return None;
    }
    // Pages of files count towards the limit, but make room.
    let limit = system.cgroup_limits().map_or(u64::MAX, |limits| limits.total_memory.saturating_sub(limits.rss));
    Some(system.available_memory().min(limit))
}
