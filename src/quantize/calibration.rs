//! Calibration text as sequences of token ids.
use super::{Calibration, Options, Progress, QuantizeError};
use crate::hub::Opened;
use candle_core::{Device, Tensor};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use rayon::prelude::*;
use ws_models::config::Config;
use ws_models::model::{KvCache, Model};

/// Bytes of KV cache that self-generation may take at once.
const CACHE_BYTES: usize = 3 << 29;

/// `options.samples` sequences of `options.context` tokens, or fewer where the text is shorter.
pub(crate) fn sequences(model: &Opened, options: &Options, progress: &mut dyn FnMut(Progress)) -> Result<Vec<Vec<u32>>, QuantizeError> {
    match &options.calibration {
        Calibration::SelfGenerated => self_generated(model, options, progress),
        Calibration::File(path) => {
            let text = crate::text::read(path).map_err(|error| QuantizeError::Read { path: path.clone(), error })?;
            from_text(model, options, &text, &path.display().to_string())
        }
        Calibration::Wikitext2 => {
            let text = crate::hub::wikitext::text(crate::hub::wikitext::Split::Train)?;
            from_text(model, options, &text, "wikitext2")
        }
    }
}

/// Consecutive sequences from the start of a text; BOS once at the start if the tokenizer adds it.
fn from_text(model: &Opened, options: &Options, text: &str, name: &str) -> Result<Vec<Vec<u32>>, QuantizeError> {
    let encoding =
        model.tokenizer.encode_fast(text, false).map_err(|e| QuantizeError::Tokenize { name: name.to_owned(), why: e.to_string() })?;
    let bos = model.config.bos.filter(|_| model.add_bos);
    let tokens: Vec<u32> = bos.into_iter().chain(encoding.get_ids().iter().copied()).collect();
    if let Some(&id) = tokens.iter().find(|&&id| id as usize >= model.config.vocab) {
        return Err(QuantizeError::TokenRange { id, vocab: model.config.vocab });
    }
    let sequences: Vec<Vec<u32>> = tokens.chunks_exact(options.context).take(options.samples).map(<[u32]>::to_vec).collect();
    if sequences.is_empty() {
        return Err(QuantizeError::ShortText { name: name.to_owned(), tokens: tokens.len(), context: options.context });
    }
    Ok(sequences)
}

/// Text that the dense model writes at temperature 1, each sequence from a first token drawn uniformly from the vocabulary: it covers more
/// styles than any one corpus, and lower temperatures repeat themselves.
fn self_generated(model: &Opened, options: &Options, progress: &mut dyn FnMut(Progress)) -> Result<Vec<Vec<u32>>, QuantizeError> {
    let config = &model.config;
    let dense = Model::load(config.clone(), &*model.weights).map_err(QuantizeError::Weights)?;
    let batch = (CACHE_BYTES / cache_bytes(config, options.context)).clamp(1, options.samples);
    let bos = config.bos.filter(|_| model.add_bos);
    let mut sequences: Vec<Vec<u32>> = Vec::with_capacity(options.samples);
    let total = options.samples as u64 * options.context as u64;
    while sequences.len() < options.samples {
        let first = sequences.len();
        let count = batch.min(options.samples - first);
        let mut rngs: Vec<ChaCha8Rng> = (first..first + count)
            .map(|i| {
                let mut rng = ChaCha8Rng::seed_from_u64(options.seed);
                rng.set_stream(i as u64);
                rng
            })
            .collect();
        let mut texts: Vec<Vec<u32>> = rngs
            .iter_mut()
            .map(|rng| bos.into_iter().chain([rng.random_range(0..config.vocab as u32)]).take(options.context).collect())
            .collect();
        let mut cache = KvCache::new(config, count, options.context)?;
        let mut fed = 0;
        while texts[0].len() < options.context {
            let next: Vec<u32> = texts.iter().flat_map(|text| text[fed..].iter().copied()).collect();
            let width = texts[0].len() - fed;
            let logits = dense.forward(&Tensor::from_vec(next, (count, width), &Device::Cpu)?, &mut cache)?;
            fed = texts[0].len();
            let logits = logits.flatten_all()?.to_vec1::<f32>()?;
            let drawn: Vec<Option<u32>> =
                logits.par_chunks(config.vocab).zip(&mut rngs).map(|(row, rng)| draw(row, rng.random())).collect();
            for (text, token) in texts.iter_mut().zip(drawn) {
                text.push(token.ok_or_else(|| QuantizeError::NotFinite { name: "the dense model's logits".to_owned() })?);
            }
            progress(Progress::Calibration { tokens: (first * options.context + count * fed) as u64, total });
        }
        sequences.append(&mut texts);
    }
    Ok(sequences)
}

fn cache_bytes(config: &Config, context: usize) -> usize {
    (2 * 4 * config.layers * config.kv_heads * config.head_dim).saturating_mul(context).max(1)
}

/// A token from the softmax of `logits`, for `uniform` in [0, 1); `None` if a logit is NaN or all are infinite.
fn draw(logits: &[f32], uniform: f64) -> Option<u32> {
    let largest = logits.iter().fold(f32::NEG_INFINITY, |m, &v| m.max(v));
    if !largest.is_finite() || logits.iter().any(|v| v.is_nan()) {
        return None;
    }
    let weights: Vec<f32> = logits.iter().map(|v| (v - largest).exp()).collect();
    let mut left = uniform * weights.iter().map(|&w| w as f64).sum::<f64>();
    let found = weights.iter().position(|&w| {
        left -= w as f64;
        left < 0.0
    });
    Some(found.unwrap_or(logits.len() - 1) as u32)
}
