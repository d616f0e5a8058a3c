//! Keys and values of earlier tokens.
use crate::config::Config;
use candle_core::{bail, DType, Result, Tensor};

/// Keys and values of all blocks for `batch` sequences of equal length, preallocated; appending copies nothing old.
pub struct KvCache {
    /// Keys and values of a block, f32 `[batch, kv_heads, capacity, head_dim]`; made on the device of its first keys.
    blocks: Vec<Option<(Tensor, Tensor)>>,
    shape: [usize; 4],
    len: usize,
}

impl KvCache {
    /// Room for `context` tokens of `batch` sequences: `layers * 2 * batch * kv_heads * context * head_dim` f32 values, touched as they are filled.
    ///
    /// # Errors
    /// If `batch` or `context` is 0, `context` is above the model's longest, or the memory cannot be had.
    pub fn new(config: &Config, batch: usize, context: usize) -> Result<Self> {
        if batch == 0 || context == 0 {
            bail!("a KV cache needs room for at least one sequence and one token")
        }
        if context > config.max_context {
            bail!("a context of {context} tokens was asked for; the model's longest is {} tokens", config.max_context)
        }
        let shape = [batch, config.kv_heads, context, config.head_dim];
        let values = [2, config.layers].iter().chain(&shape).try_fold(1usize, |n, &factor| n.checked_mul(factor));
        if values.is_none_or(|n| Vec::<f32>::new().try_reserve_exact(n).is_err()) {
            bail!("no memory for a KV cache of {batch} x {context} tokens; ask for a shorter context")
        }
        Ok(Self { blocks: vec![None; config.layers], shape, len: 0 })
    }

    /// Tokens held.
    pub fn len(&self) -> usize {
        self.len
    }

    /// True before the first token.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Tokens it has room for.
    pub fn capacity(&self) -> usize {
        self.shape[2]
    }

    /// Sequences it holds.
    pub fn batch(&self) -> usize {
        self.shape[0]
    }

    /// Forgets everything after the first `len` tokens.
    pub fn truncate(&mut self, len: usize) {
        self.len = self.len.min(len);
    }

    /// That `tokens` more of `batch` sequences fit in a cache of `layers` blocks.
    pub(crate) fn check(&self, layers: usize, batch: usize, tokens: usize) -> Result<()> {
        if layers != self.blocks.len() || batch != self.batch() {
            bail!(
                "a KV cache for {} blocks and {} sequences was used with {layers} blocks and {batch} sequences",
                self.blocks.len(),
                self.batch()
            )
        }
        if tokens > self.capacity() - self.len {
            bail!("{} tokens do not fit in the context of {} tokens ({} are held already)", tokens, self.capacity(), self.len)
        }
        Ok(())
    }

    /// Writes keys and values `[batch, kv_heads, tokens, head_dim]` behind the tokens held, and returns views of all with them.
    /// The length changes in [`Self::advance`] only, so that an error in between leaves the cache as it was.
    pub(crate) fn append(&mut self, block: usize, k: &Tensor, v: &Tensor) -> Result<(Tensor, Tensor)> {
        let tokens = k.dim(2)?;
        if self.blocks[block].is_none() {
            let room = || Tensor::zeros(&self.shape, DType::F32, k.device());
            self.blocks[block] = Some((room()?, room()?));
        }
        let Some((keys, values)) = &self.blocks[block] else { unreachable!("made above") };
        keys.slice_set(k, 2, self.len)?;
        values.slice_set(v, 2, self.len)?;
        Ok((keys.narrow(2, 0, self.len + tokens)?, values.narrow(2, 0, self.len + tokens)?))
    }

    /// Counts `tokens` that every block has appended.
    pub(crate) fn advance(&mut self, tokens: usize) {
        self.len += tokens;
    }
}
