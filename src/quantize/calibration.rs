//! Calibration text as sequences of token ids.
use super::{Calibration, Options, Progress, QuantizeError};
use crate::hub::Opened;
use crate::sampling::{Sampler, Sampling};
use candle_core::{Device, Tensor};
use rayon::prelude::*;
use ws_models::config::Config;
use ws_models::model::{KvCache, KvType, Model};

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
        let settings = Sampling { seed: options.seed, ..Sampling::default() };
        let mut samplers =
            (first..first + count).map(|i| Sampler::with_stream(settings.clone(), i as u64)).collect::<Result<Vec<_>, _>>()?;
        let uniform = vec![0.0; config.vocab];
        let mut texts = Vec::with_capacity(count);
        for sampler in &mut samplers {
            let start = bos.into_iter().chain([sampler.sample(&uniform, &[])?]);
            texts.push(start.take(options.context).collect::<Vec<u32>>());
        }
        let mut cache = KvCache::new(config, KvType::F32, count, options.context)?;
        let mut fed = 0;
        while texts[0].len() < options.context {
            let next: Vec<u32> = texts.iter().flat_map(|text| text[fed..].iter().copied()).collect();
            let width = texts[0].len() - fed;
            let logits = dense.forward(&Tensor::from_vec(next, (count, width), &Device::Cpu)?, &mut cache)?;
            fed = texts[0].len();
            let logits = logits.flatten_all()?.to_vec1::<f32>()?;
            let rows = logits.par_chunks(config.vocab).zip(&mut samplers);
            let drawn = rows.map(|(row, sampler)| sampler.sample(row, &[])).collect::<Result<Vec<u32>, _>>()?;
            texts.iter_mut().zip(drawn).for_each(|(text, token)| text.push(token));
            progress(Progress::Calibration { tokens: (first * options.context + count * fed) as u64, total });
        }
        sequences.append(&mut texts);
    }
    Ok(sequences)
}

fn cache_bytes(config: &Config, context: usize) -> usize {
    (2 * config.layers * config.kv_heads * KvType::F32.bytes(config.head_dim)).saturating_mul(context).max(1)
}
