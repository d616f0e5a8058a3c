//! Prompt in, text out.
use super::{Detokenizer, RuntimeError, StopMatcher, TextModel};
use crate::sampling::{Sampler, Sampling};
use serde::Serialize;
use std::ops::ControlFlow;
use std::time::{Duration, Instant};

/// How to continue a prompt.
#[derive(Debug, Clone, PartialEq)]
pub struct GenerateOptions {
    /// How tokens are chosen; the repetition penalty sees prompt and text.
    pub sampling: Sampling,
    /// Tokens to generate at most.
    pub max_tokens: usize,
    /// Text at which generation ends; it is not part of the result. The name of a special token (`<|im_end|>`) stops at that token.
    pub stop: Vec<String>,
}

/// Why generation ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Finish {
    /// The model ended the text.
    Eos,
    /// A stop string came.
    Stop,
    /// `max_tokens` are generated.
    MaxTokens,
    /// The context is full.
    Context,
    /// The callback asked for it.
    Cancelled,
}

/// A finished continuation.
#[derive(Debug, Clone)]
pub struct Generation {
    /// The text without the prompt: all that the callback got.
    pub text: String,
    /// Generated tokens, with the end-of-text token if there is one.
    pub tokens: Vec<u32>,
    /// Tokens of the prompt.
    pub prompt_tokens: usize,
    /// Why it ended.
    pub finish: Finish,
    /// Time for the prompt.
    pub prefill: Duration,
    /// Time for all tokens after the first.
    pub decode: Duration,
}

impl Generation {
    /// Prompt tokens a second.
    pub fn prefill_tokens_per_s(&self) -> f64 {
        self.prompt_tokens as f64 / self.prefill.as_secs_f64()
    }

    /// Generated tokens a second; 0 if there was only the first, whose logits come with the prompt.
    pub fn decode_tokens_per_s(&self) -> f64 {
        match self.tokens.len() {
            0 | 1 => 0.0,
            n => (n - 1) as f64 / self.decode.as_secs_f64(),
        }
    }
}

impl TextModel {
    /// Continues `prompt` (see [`TextModel::encode`] and [`TextModel::encode_chat`]); `on_text` gets the text piece by piece as
    /// soon as it is certain, never half a character, and may end the generation.
    ///
    /// # Errors
    /// [`RuntimeError::EmptyPrompt`], [`RuntimeError::PromptTooLong`], or [`RuntimeError::Sampling`] for bad settings or logits that are not finite.
    pub fn generate(
        &self,
        prompt: &[u32],
        options: &GenerateOptions,
        mut on_text: impl FnMut(&str) -> ControlFlow<()>,
    ) -> Result<Generation, RuntimeError> {
        let context = self.context();
        if prompt.is_empty() {
            return Err(RuntimeError::EmptyPrompt);
        }
        if prompt.len() > context {
            return Err(RuntimeError::PromptTooLong { tokens: prompt.len(), context });
        }
        let mut sampler = Sampler::new(options.sampling.clone())?;
        let (stop_tokens, stop_strings) = self.stops(&options.stop);
        let mut stops = StopMatcher::new(&stop_strings);
        let mut detokenizer = Detokenizer::after(self.tokenizer(), prompt).map_err(RuntimeError::Tokenizer)?;
        let mut session = self.session(context.min(prompt.len().saturating_add(options.max_tokens)))?;

        let start = Instant::now();
        let mut logits = session.prefill(prompt)?;
        let prefill = start.elapsed();
        let start = Instant::now();
        let mut all = prompt.to_vec();
        let mut text = String::new();
        let mut emit = |piece: &str| {
            text += piece;
            if piece.is_empty() {
                ControlFlow::Continue(())
            } else {
                on_text(piece)
            }
        };
        // Nothing comes after a stop string, not even what is held back.
        let (mut finish, flush) = loop {
            let generated = all.len() - prompt.len();
            if generated == options.max_tokens {
                break (Finish::MaxTokens, true);
            }
            if generated > 0 {
                if session.len() == context {
                    break (Finish::Context, true);
                }
                logits = session.decode(all[all.len() - 1])?;
            }
            let token = sampler.sample(&logits, &all)?;
            all.push(token);
            if self.eos().contains(&token) {
                break (Finish::Eos, true);
            }
            if stop_tokens.contains(&token) {
                break (Finish::Stop, true);
            }
            let (piece, stopped) = stops.push(&detokenizer.push(token).map_err(RuntimeError::Tokenizer)?);
            if emit(&piece).is_break() {
                break (Finish::Cancelled, false);
            }
            if stopped {
                break (Finish::Stop, false);
            }
        };
        let decode = start.elapsed();
        if flush {
            let (mut rest, stopped) = stops.push(&detokenizer.finish().map_err(RuntimeError::Tokenizer)?);
            if stopped {
                finish = Finish::Stop;
            } else {
                rest += &stops.finish();
            }
            if emit(&rest).is_break() {
                finish = Finish::Cancelled;
            }
        }
        Ok(Generation { text, tokens: all.split_off(prompt.len()), prompt_tokens: prompt.len(), finish, prefill, decode })
    }

    /// Special tokens have no text, so a stop string that names one is an id to stop at.
    fn stops(&self, stops: &[String]) -> (Vec<u32>, Vec<String>) {
        let special =
            |s: &String| self.tokenizer().get_added_vocabulary().is_special_token(s).then(|| self.tokenizer().token_to_id(s)).flatten();
        (stops.iter().filter_map(special).collect(), stops.iter().filter(|s| special(s).is_none()).cloned().collect())
    }
}
