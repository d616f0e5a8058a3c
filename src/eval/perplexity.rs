//! Perplexity over windows of a text.
use super::{check, EvalError};
use crate::runtime::{RuntimeError, TextModel};
use candle_core::{Device, Tensor};
use rayon::prelude::*;
use serde::Serialize;
use std::ops::Range;

/// Positions whose logits are held at a time.
const POSITIONS: usize = 128;

/// Tokens that go through the blocks together: short windows share a batch.
const BATCH_TOKENS: usize = 1024;

/// How a text is cut into windows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PerplexityOptions {
    /// Tokens of a window, at least 2.
    pub context: usize,
    /// Tokens from one window to the next, 1 to `context`. Later windows score their last `stride` tokens only, so that
    /// no token is scored twice; with `stride = context` windows share nothing, and the first token of each is not scored.
    pub stride: usize,
    /// Windows at most; `None`: all. What is left of the text after the last whole window is not used.
    pub windows: Option<usize>,
}

/// What was measured; logarithms are natural.
#[derive(Debug, Clone, Serialize)]
pub struct Perplexity {
    /// `exp(mean_nll)`.
    pub perplexity: f64,
    /// Its standard error, from `mean_nll_standard_error` to first order.
    pub standard_error: Option<f64>,
    /// Mean negative log-likelihood of a scored token.
    pub mean_nll: f64,
    /// Standard error of `mean_nll` over windows (tokens of one window are not independent); `None` with one window.
    pub mean_nll_standard_error: Option<f64>,
    /// Negative log-likelihood in bits for a byte of the text that the scored tokens cover.
    pub bits_per_byte: f64,
    /// Scored tokens.
    pub tokens: usize,
    /// Bytes of the text that they cover.
    pub bytes: usize,
    /// Windows.
    pub windows: usize,
    /// Tokens of a window.
    pub context: usize,
    /// Tokens from one window to the next.
    pub stride: usize,
}

/// Perplexity of `text`, tokenized once, with BOS once at its start if the tokenizer's rule says so.
/// `progress` gets windows done, windows in all, and the perplexity so far.
///
/// # Errors
/// [`EvalError::TextTooShort`] for less than one window, [`EvalError::Setting`] for windows that the model does not allow,
/// [`EvalError::NotFinite`] for broken logits.
pub fn perplexity(
    model: &TextModel,
    text: &str,
    options: &PerplexityOptions,
    mut progress: impl FnMut(usize, usize, f64),
) -> Result<Perplexity, EvalError> {
    let &PerplexityOptions { context, stride, windows } = options;
    check("the context", context, model.context())?;
    if context < 2 {
        return Err(EvalError::Setting { name: "the context", range: "at least 2".into(), value: context });
    }
    check("the stride", stride, context)?;
    let (ids, ends) = tokenize(model, text)?;
    let possible = (ids.len() + stride).saturating_sub(context) / stride;
    let count = windows.map_or(possible, |w| w.min(possible));
    if possible == 0 {
        return Err(EvalError::TextTooShort { tokens: ids.len(), context });
    }
    check("the number of windows", count, possible)?;

    let mut sums = Sums::default();
    let batch = (BATCH_TOKENS / context).max(1);
    let starts: Vec<usize> = (0..count).map(|w| w * stride).collect();
    for starts in starts.chunks(batch) {
        let tokens: Vec<u32> = starts.iter().flat_map(|&s| &ids[s..s + context]).copied().collect();
        let hidden = model.model().hidden(&Tensor::from_vec(tokens, (starts.len(), context), &Device::Cpu)?)?;
        for (i, &start) in starts.iter().enumerate() {
            // The prediction at position p is that of token p + 1.
            let first = if start == 0 { 0 } else { context - 1 - stride.min(context - 1) };
            let nll = window_nll(model, &hidden.get(i)?, first..context - 1, &ids[start..]).map_err(|e| e.shift(start))?;
            sums.add(&nll, ends[start + context - 1] - ends[start + first]);
        }
        progress(sums.windows.len(), count, sums.mean().exp());
    }
    Ok(sums.finish(context, stride))
}

/// Ids, and for each the end of its text in bytes.
fn tokenize(model: &TextModel, text: &str) -> Result<(Vec<u32>, Vec<usize>), EvalError> {
    let encoding = model.tokenizer().encode(text, false).map_err(RuntimeError::Tokenizer)?;
    let ids = model.with_bos(encoding.get_ids())?;
    let mut ends = vec![0; ids.len() - encoding.len()];
    let mut end = 0;
    // Tokens that share a character all end behind it.
    ends.extend(encoding.get_offsets().iter().map(|offset| {
        end = end.max(offset.1);
        end
    }));
    Ok((ids, ends))
}

/// Negative log-likelihood of token `p + 1` for each position `p` of `positions`. `hidden`: f32 `[context, hidden]`.
fn window_nll(model: &TextModel, hidden: &Tensor, positions: Range<usize>, ids: &[u32]) -> Result<Vec<f64>, EvalError> {
    let mut out = Vec::with_capacity(positions.len());
    for start in positions.clone().step_by(POSITIONS) {
        let n = POSITIONS.min(positions.end - start);
        let logits = model.model().logits(&hidden.narrow(0, start, n)?)?.flatten_all()?.to_vec1::<f32>()?;
        let vocab = logits.len() / n;
        let part: Result<Vec<f64>, EvalError> = logits
            .par_chunks_exact(vocab)
            .zip(start..start + n)
            .map(|(row, p)| Some(nll(row, ids[p + 1])).filter(|x| x.is_finite()).ok_or(EvalError::NotFinite { position: p }))
            .collect();
        out.extend(part?);
    }
    Ok(out)
}

/// `-ln softmax(logits)[id]`.
fn nll(logits: &[f32], id: u32) -> f64 {
    let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let sum: f64 = logits.iter().map(|l| f64::from((l - max).exp())).sum();
    sum.ln() + f64::from(max) - f64::from(logits[id as usize])
}

impl EvalError {
    /// Counts the position from the start of the text instead of the window's.
    fn shift(self, start: usize) -> Self {
        match self {
            Self::NotFinite { position } => Self::NotFinite { position: start + position },
            other => other,
        }
    }
}

/// Running sums.
#[derive(Default)]
struct Sums {
    /// Negative log-likelihood and tokens of each window.
    windows: Vec<(f64, usize)>,
    bytes: usize,
}

impl Sums {
    fn add(&mut self, nll: &[f64], bytes: usize) {
        self.windows.push((nll.iter().sum(), nll.len()));
        self.bytes += bytes;
    }

    fn total(&self) -> (f64, usize) {
        self.windows.iter().fold((0.0, 0), |(s, n), w| (s + w.0, n + w.1))
    }

    fn mean(&self) -> f64 {
        let (sum, tokens) = self.total();
        sum / tokens as f64
    }

    fn finish(self, context: usize, stride: usize) -> Perplexity {
        let (sum, tokens) = self.total();
        let mean_nll = sum / tokens as f64;
        let windows = self.windows.len();
        // Ratio estimator over windows: windows may differ in tokens (the first one scores more with a small stride).
        let standard_error = (windows > 1).then(|| {
            let squares: f64 = self.windows.iter().map(|(s, n)| (s - *n as f64 * mean_nll).powi(2)).sum();
            (squares * windows as f64 / (windows - 1) as f64).sqrt() / tokens as f64
        });
        let perplexity = mean_nll.exp();
        Perplexity {
            perplexity,
            standard_error: standard_error.map(|e| e * perplexity),
            mean_nll,
            mean_nll_standard_error: standard_error,
            bits_per_byte: sum / std::f64::consts::LN_2 / self.bytes as f64,
            tokens,
            bytes: self.bytes,
            windows,
            context,
            stride,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nll_of_known_distributions() {
        assert!((nll(&[0.0; 8], 3) - 8f64.ln()).abs() < 1e-12);
        let logits = [2f32.ln() + 90.0, 90.0, 90.0];
        assert!((nll(&logits, 0) - 2f64.ln()).abs() < 1e-5);
        assert!((nll(&logits, 2) - 4f64.ln()).abs() < 1e-5);
        assert!(!nll(&[0.0, f32::NAN], 0).is_finite());
        assert!(!nll(&[0.0, f32::INFINITY], 0).is_finite());
        assert!(!nll(&[0.0, f32::NEG_INFINITY], 1).is_finite());
    }

    #[test]
    fn standard_error_is_that_of_a_mean_of_equal_windows() {
        let mut sums = Sums::default();
        for mean in [1.0, 2.0, 4.0, 5.0] {
            sums.add(&[mean - 0.5, mean + 0.5], 3);
        }
        let result = sums.finish(3, 3);
        assert_eq!((result.tokens, result.windows, result.bytes, result.mean_nll), (8, 4, 12, 3.0));
        // Sample standard deviation of 1, 2, 4, 5 is sqrt(10 / 3); over 4 windows half of it.
        assert!((result.mean_nll_standard_error.unwrap() - (10f64 / 3.0).sqrt() / 2.0).abs() < 1e-12);
        assert!((result.bits_per_byte - 24.0 / std::f64::consts::LN_2 / 12.0).abs() < 1e-12);
    }

    #[test]
    fn one_window_has_no_standard_error() {
        let mut sums = Sums::default();
        sums.add(&[1.0], 1);
        assert_eq!(sums.finish(2, 2).standard_error, None);
    }
}
