//! A loaded model: prefill, decode, sampling, chat template, stopping.
//!
//! * [`TextModel`]: weights, tokenizer and chat template of one model; shared by any number of sessions.
//! * [`Session`]: one sequence with its KV cache, token by token: the level for own decoding loops.
//! * [`TextModel::generate`]: prompt in, text out, streamed through a callback.
//! * [`Detokenizer`], [`StopMatcher`], [`ChatTemplate`]: the parts, usable alone.
//!
//! ```no_run
//! use std::ops::ControlFlow;
//! use wsrun::runtime::{GenerateOptions, Message, TextModel};
//! use wsrun::sampling::Sampling;
//!
//! let source = wsrun::hub::resolve("smollm2-135m-ws4")?;
//! let model = TextModel::load(source.open()?)?;
//! let prompt = model.encode_chat(&[Message::new("user", "Why is the sky blue?")])?;
//! let options = GenerateOptions {
//!     sampling: Sampling { temperature: 0.7, top_p: 0.9, seed: 1, ..Sampling::default() },
//!     max_tokens: 200,
//!     stop: vec!["\n\n".into()],
//! };
//! let generation = model.generate(&prompt, &options, |text| {
//!     print!("{text}");
//!     ControlFlow::Continue(())
//! })?;
//! println!("\n{} tokens, {:.1} tokens/s", generation.tokens.len(), generation.decode_tokens_per_s());
//!
//! // Or token by token.
//! let mut session = model.session(64)?;
//! let logits = session.prefill(&model.encode("Once upon a time")?)?;
//! let (token, _) = wsrun::sampling::greedy(&logits).unwrap();
//! let _next_logits = session.decode(token)?;
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
mod detokenize;
mod generate;
mod model;
mod session;
mod stop;
mod template;

pub use detokenize::Detokenizer;
pub use generate::{Finish, GenerateOptions, Generation};
pub use model::TextModel;
pub use session::Session;
pub use stop::StopMatcher;
pub use template::{ChatTemplate, Message, TemplateError};
pub use ws_models::model::KvType;

use crate::sampling::SamplingError;

/// Why a model cannot be loaded or does not continue a text.
#[derive(Debug, thiserror::Error)]
pub enum RuntimeError {
    /// A weight is missing or wrong; the source names file, tensor and fix.
    #[error(transparent)]
    Weights(ws_models::weights::WeightError),
    /// A tensor operation failed.
    #[error("a tensor operation failed")]
    Tensor(#[from] candle_core::Error),
    /// The tokenizer failed.
    #[error("tokenizer: {0}")]
    Tokenizer(tokenizers::Error),
    /// There is nothing to continue.
    #[error("the prompt is empty: give some text to continue (a beginning-of-text token alone does not count)")]
    EmptyPrompt,
    /// More tokens than the context holds.
    #[error("the prompt has {tokens} tokens, the context {context}: shorten the prompt or raise the context (--context, if the model allows it)")]
    PromptTooLong {
        /// Tokens of the prompt.
        tokens: usize,
        /// Tokens that the context holds.
        context: usize,
    },
    /// A longer context than the model was made for.
    #[error("a context of {context} tokens is not possible: this model allows 1 to {longest}")]
    Context {
        /// Tokens asked for.
        context: usize,
        /// The model's longest context.
        longest: usize,
    },
    /// The tokenizer gives an id that the embedding does not have.
    #[error("the tokenizer gives token {token}, but the model has a vocabulary of {vocab}: tokenizer.json belongs to another model")]
    Vocabulary {
        /// The id.
        token: u32,
        /// The model's vocabulary size.
        vocab: usize,
    },
    /// The model is not a chat model.
    #[error("the model has no chat template: use it without chat, or use its instruction-tuned variant")]
    NoChatTemplate,
    /// The chat template failed.
    #[error(transparent)]
    Template(#[from] TemplateError),
    /// No token could be chosen.
    #[error(transparent)]
    Sampling(#[from] SamplingError),
}
