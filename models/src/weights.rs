//! Where a model gets its tensors from. Names are Hugging Face's (`model.layers.0.self_attn.q_proj`, ...).
use crate::linear::{Linear, Table};
use candle_core::Tensor;

/// An error that names file, tensor and fix.
pub type WeightError = Box<dyn std::error::Error + Send + Sync>;

/// A source of weights: a Hugging Face folder, a GGUF file or a .ws folder. Every call checks shapes against what is asked.
pub trait Weights: Send + Sync {
    /// A small dense tensor (`model.norm.weight`, ...), f32, of exactly this shape.
    fn tensor(&self, name: &str, shape: &[usize]) -> Result<Tensor, WeightError>;
    /// `prefix.weight` `[out, in]` and `prefix.bias` if asked for.
    fn linear(&self, prefix: &str, out_features: usize, in_features: usize, bias: bool) -> Result<Linear, WeightError>;
    /// `prefix.weight` as a table `[vocab, hidden]` (`model.embed_tokens`, `lm_head`).
    fn table(&self, prefix: &str, vocab: usize, hidden: usize) -> Result<Table, WeightError>;
}
