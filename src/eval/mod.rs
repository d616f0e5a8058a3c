//! Measuring a loaded model.
//!
//! * [`perplexity()`]: how well it predicts a text.
//! * [`bench()`]: how fast it reads and writes; [`random_weights`]: models to time without a download.
//! * [`machine`]: what the machine can do.
mod bench;
pub mod machine;
mod perplexity;
pub mod random_weights;

pub use bench::{bench, Bench, BenchOptions, Spread};
pub use perplexity::{perplexity, Perplexity, PerplexityOptions};

use crate::runtime::RuntimeError;

/// Why nothing can be measured.
#[derive(Debug, thiserror::Error)]
pub enum EvalError {
    /// Not even one window.
    #[error("the text has {tokens} tokens, one window takes {context}: use a longer text or a shorter context (--context)")]
    TextTooShort {
        /// Tokens of the text, with BOS if the tokenizer adds it.
        tokens: usize,
        /// Tokens of a window.
        context: usize,
    },
    /// A setting is out of its range.
    #[error("{name} must be {range}, not {value}")]
    Setting {
        /// Name of the setting.
        name: &'static str,
        /// The range that it must be in.
        range: String,
        /// Its value.
        value: usize,
    },
    /// A shape cannot be made.
    #[error("this shape is not supported: {0}")]
    Shape(String),
    /// The model fails.
    #[error(transparent)]
    Runtime(#[from] RuntimeError),
    /// The model's logits are not finite.
    #[error("the logits at token {position} of the text are not finite: the weights are damaged or an activation has overflowed")]
    NotFinite {
        /// Position in the tokenized text.
        position: usize,
    },
}

impl From<candle_core::Error> for EvalError {
    fn from(error: candle_core::Error) -> Self {
        Self::Runtime(error.into())
    }
}

/// `Ok` if `value` lies in `1..=longest`.
fn check(name: &'static str, value: usize, longest: usize) -> Result<(), EvalError> {
    if (1..=longest).contains(&value) {
        Ok(())
    } else {
        Err(EvalError::Setting { name, range: format!("from 1 to {longest}"), value })
    }
}
