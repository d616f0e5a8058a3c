//! wsrun: an inference runtime for Llama and Qwen models whose weights live in a native low-bit format.
//!
//! * [`hub`]: names to files: aliases, local folders, Hub repositories, GGUF; dense weights and tokenizers from them.
//! * [`mod@format`]: the .ws container: header, column plan, packing, verification; knows no model.
//! * [`quantize`]: covariances, water-filling, successive cancellation, rescaling, the layer-by-layer pipeline.
//! * [`runtime`]: a loaded model: prefill, decode, sampling, chat template, stopping.
//! * [`eval`]: perplexity and benchmarks.
//! * [`rd`]: rate and distortion of quantizers beside what information theory allows.
//! * [`sampling`]: from logits to the next token; knows no model.
//! * [`text`]: text files.
//! * [`progress`]: progress of long work on stderr.
//! * [`cli`]: one file a subcommand: arguments and printing only.
pub mod cli;
pub mod eval;
pub mod format;
pub mod hub;
pub mod progress;
pub mod quantize;
pub mod rd;
pub mod runtime;
pub mod sampling;
pub mod text;
