//! One sequence and its KV cache.
use super::RuntimeError;
use candle_core::{Device, Tensor};
use ws_models::model::{KvCache, KvType, Model};

/// Tokens of one step of prefill: attention scores of a step are heads x 256 x context.
const CHUNK: usize = 256;

/// A sequence that grows: tokens in, logits of the next token out. Nothing is computed twice.
pub struct Session<'a> {
    model: &'a Model,
    cache: KvCache,
}

impl<'a> Session<'a> {
    pub(super) fn new(model: &'a Model, kv: KvType, capacity: usize) -> Result<Self, RuntimeError> {
        Ok(Self { model, cache: KvCache::new(&model.config, kv, 1, capacity)? })
    }

    /// Appends at least one token, many at a time, and returns the logits after the last one, `[vocab]`.
    ///
    /// # Errors
    /// [`RuntimeError::EmptyPrompt`] without tokens, [`RuntimeError::PromptTooLong`] if the sequence has no room for them (it then stays as it is).
    pub fn prefill(&mut self, ids: &[u32]) -> Result<Vec<f32>, RuntimeError> {
        let tokens = self.cache.len() + ids.len();
        if tokens > self.cache.capacity() {
            return Err(RuntimeError::PromptTooLong { tokens, context: self.cache.capacity() });
        }
        let mut logits = None;
        for chunk in ids.chunks(CHUNK) {
            let input = Tensor::from_slice(chunk, (1, chunk.len()), &Device::Cpu)?;
            logits = Some(self.model.forward(&input, &mut self.cache)?);
        }
        Ok(logits.ok_or(RuntimeError::EmptyPrompt)?.flatten_all()?.to_vec1()?)
    }

    /// Appends one token and returns the logits after it, `[vocab]`.
    ///
    /// # Errors
    /// [`RuntimeError::PromptTooLong`] if the sequence has no room for it.
    pub fn decode(&mut self, id: u32) -> Result<Vec<f32>, RuntimeError> {
        self.prefill(&[id])
    }

    /// Tokens so far.
    pub fn len(&self) -> usize {
        self.cache.len()
    }

    /// True before the first token.
    pub fn is_empty(&self) -> bool {
        self.cache.is_empty()
    }

    /// Forgets all but the first `len` tokens, to continue them differently.
    pub fn truncate(&mut self, len: usize) {
        self.cache.truncate(len);
    }
}
