//! Prefill and decode speed.
use super::{check, EvalError};
use crate::runtime::{RuntimeError, TextModel};
use crate::sampling;
use rand::Rng;
use rand_chacha::rand_core::SeedableRng;
use rand_chacha::ChaCha12Rng;
use serde::Serialize;
use std::time::Instant;

/// What is timed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BenchOptions {
    /// Tokens of the synthetic prompt.
    pub prompt_tokens: usize,
    /// Tokens decoded after it.
    pub tokens: usize,
    /// Timed runs, after one that is not counted.
    pub repeat: usize,
}

/// Median and range of repeated timings.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Spread {
    /// Median.
    pub median: f64,
    /// Least.
    pub min: f64,
    /// Most.
    pub max: f64,
}

impl Spread {
    /// Of at least one value.
    pub fn of(mut values: Vec<f64>) -> Self {
        values.sort_by(f64::total_cmp);
        let n = values.len();
        Self { median: (values[(n - 1) / 2] + values[n / 2]) / 2.0, min: values[0], max: values[n - 1] }
    }
}

/// Measured speed.
#[derive(Debug, Clone, Serialize)]
pub struct Bench {
    /// Prompt tokens a second.
    pub prefill: Spread,
    /// Decoded tokens a second.
    pub decode: Spread,
    /// Share of the time of a decoded token that is not spent in the products of the linear layers and the head: the median of runs, after each of which the
    /// products are done alone as often.
    pub outside_products: f64,
    /// Bytes of weights read for a decoded token.
    pub bytes_per_token: u64,
}

impl Bench {
    /// Weights read a second while decoding, in 10^9 bytes, at the median speed.
    pub fn gigabytes_per_s(&self) -> f64 {
        self.bytes_per_token as f64 * self.decode.median / 1e9
    }
}

/// Times prefill of a random prompt and greedy decoding after it. `progress` gets runs done and runs in all.
///
/// # Errors
/// [`EvalError::Setting`] if a count is 0 or the tokens exceed the context, [`EvalError::Runtime`] if the model fails.
pub fn bench(model: &TextModel, options: &BenchOptions, mut progress: impl FnMut(usize, usize)) -> Result<Bench, EvalError> {
    let &BenchOptions { prompt_tokens, tokens, repeat } = options;
    check("the number of prompt tokens", prompt_tokens, model.context())?;
    check("the number of tokens", tokens, model.context() - prompt_tokens)?;
    check("the number of repetitions", repeat, usize::MAX)?;
    let mut rng = ChaCha12Rng::seed_from_u64(0);
    let vocab = model.model().config.vocab as u32;
    let prompt: Vec<u32> = (0..prompt_tokens).map(|_| rng.random_range(0..vocab)).collect();
    let (mut prefill, mut decode, mut outside) = (Vec::new(), Vec::new(), Vec::new());
    for run in 0..=repeat {
        let mut session = model.session(prompt_tokens + tokens)?;
        let start = Instant::now();
        let mut logits = session.prefill(&prompt)?;
        let middle = Instant::now();
        for _ in 0..tokens {
            let token = sampling::greedy(&logits).map_or(0, |(token, _)| token);
            logits = session.decode(token)?;
        }
        let end = Instant::now();
        for _ in 0..tokens {
            model.model().products().map_err(RuntimeError::from)?;
        }
        if run > 0 {
            let decoding = (end - middle).as_secs_f64();
            prefill.push(prompt_tokens as f64 / (middle - start).as_secs_f64());
            decode.push(tokens as f64 / decoding);
            outside.push((1.0 - end.elapsed().as_secs_f64() / decoding).max(0.0));
            progress(run, repeat);
        }
    }
    Ok(Bench {
        prefill: Spread::of(prefill),
        decode: Spread::of(decode),
        outside_products: Spread::of(outside).median,
        bytes_per_token: model.model().bytes_per_token(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn medians_of_odd_and_even_counts() {
        assert_eq!(Spread::of(vec![3.0, 1.0, 2.0]), Spread { median: 2.0, min: 1.0, max: 3.0 });
        assert_eq!(Spread::of(vec![4.0, 1.0, 2.0, 3.0]).median, 2.5);
    }
}
