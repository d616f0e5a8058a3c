//! WaterSIC (arXiv 2603.04956) into the .ws format, layer by layer.
//!
//! * `calibration`: token sequences: a file, WikiText-2, or written by the model itself.
//! * `statistics`: second moments of what a block's linear layers read.
//! * `site`: one such covariance, reduced to live in-features, damped, factored.
//! * `column`: one column at a width; `widths`: which column gets which; `cancel`: successive cancellation.
//! * `rescale`: row and column factors by alternating least squares; `layer`: all of it for one matrix.
//! * `pipeline`: the model, block by block; `checkpoint`: what a stopped run leaves for the next one.
use crate::format::FormatError;
use crate::hub::{HubError, Opened};
use std::path::{Path, PathBuf};
use ws_kernels::code::CodeSet;
use ws_kernels::packed::PackError;
use ws_kernels::tables::Effort;
use ws_models::weights::WeightError;

pub(crate) mod calibration;
pub(crate) mod cancel;
mod checkpoint;
pub(crate) mod column;
pub(crate) mod layer;
pub(crate) mod linalg;
pub(crate) mod pipeline;
pub(crate) mod rescale;
pub(crate) mod site;
pub(crate) mod statistics;
mod widths;

/// Where calibration text comes from.
#[derive(Debug, Clone, PartialEq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Calibration {
    /// The dense model writes it itself.
    #[serde(rename = "self")]
    SelfGenerated,
    /// A UTF-8 file.
    File(PathBuf),
    /// WikiText-2 train split through the Hub.
    Wikitext2,
}

/// Which codes columns of 1 to 6 bits are stored with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Codes {
    /// Linear trellis codes, found by Viterbi search at this effort.
    Trellis(Effort),
    /// Fixed-width Lloyd-Max levels, rounded to nearest: for comparison.
    Scalar,
}

impl Codes {
    pub(crate) fn set(self) -> CodeSet {
        match self {
            Self::Trellis(effort) => CodeSet::trellis(effort),
            Self::Scalar => CodeSet::scalar(),
        }
    }
}

/// What `wsrun quantize` is asked for.
#[derive(Debug, Clone, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct Options {
    /// Stored bits a weight of the linear layers, 1 to 8, every side byte counted.
    pub rate: f64,
    /// Codes of columns of 1 to 6 bits.
    pub codes: Codes,
    /// Calibration text.
    pub calibration: Calibration,
    /// Calibration sequences.
    pub samples: usize,
    /// Tokens a sequence.
    pub context: usize,
    /// Seed of everything random.
    pub seed: u64,
}

impl Options {
    /// The defaults for a rate: trellis codes, 64 sequences of 256 tokens that the model writes itself, seed 0.
    pub fn new(rate: f64) -> Self {
        Self { rate, codes: Codes::Trellis(Effort::Default), calibration: Calibration::SelfGenerated, samples: 64, context: 256, seed: 0 }
    }
}

/// How far a run has come.
#[derive(Debug, Clone, PartialEq)]
pub enum Progress {
    /// Tokens of calibration text written by the model.
    Calibration {
        /// Tokens so far.
        tokens: u64,
        /// Tokens wanted.
        total: u64,
    },
    /// Blocks finished.
    Blocks {
        /// Blocks quantized so far, those of an earlier run included.
        done: usize,
        /// Blocks of the model.
        total: usize,
    },
}

/// What became of one linear layer.
#[derive(Debug, Clone, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct LayerReport {
    /// Hugging Face name without `.weight`.
    pub name: String,
    /// Weights.
    pub weights: u64,
    /// Bytes of its tensors in the file.
    pub bytes: u64,
    /// `tr((W - V) S (W - V)^T) / tr(W S W^T)` of the stored V over the calibration text.
    pub relative_error: f64,
}

/// What became of a model.
#[derive(Debug, Clone, PartialEq, serde::Serialize)]
pub struct Report {
    /// Its linear layers in model order.
    pub layers: Vec<LayerReport>,
}

impl Report {
    /// Stored bits a weight over all linear layers.
    pub fn stored_bits(&self) -> f64 {
        let (bytes, weights) = self.layers.iter().fold((0, 0), |(b, w), l| (b + l.bytes, w + l.weights));
        8.0 * bytes as f64 / weights.max(1) as f64
    }

    /// Geometric mean of the layers' relative errors (those of zero left out).
    pub fn mean_error(&self) -> f64 {
        let logs: Vec<f64> = self.layers.iter().filter(|l| l.relative_error > 0.0).map(|l| l.relative_error.ln()).collect();
        (logs.iter().sum::<f64>() / logs.len().max(1) as f64).exp()
    }
}

/// Why a model was not quantized.
#[derive(Debug, thiserror::Error)]
pub enum QuantizeError {
    /// A weight, an input or a logit is NaN or infinite.
    #[error("{name} holds NaN or infinite values; the model's files are damaged or overflow in f32")]
    NotFinite {
        /// Tensor.
        name: String,
    },
    /// A covariance stays singular under the largest damping.
    #[error("the covariance of the input of {name} cannot be factored; give more calibration text (--samples, --context)")]
    Singular {
        /// Layer.
        name: String,
    },
    /// The kernels refuse what was packed.
    #[error("{name} could not be packed")]
    Packing {
        /// Layer.
        name: String,
        /// Reason.
        #[source]
        error: PackError,
    },
    /// The matrix is packed already.
    #[error("{name} is quantized already; quantize the original model instead")]
    Packed {
        /// Layer.
        name: String,
    },
    /// An in-feature count that exceptions cannot address.
    #[error("{name} has {features} in-features; the .ws format holds at most 65536")]
    TooWide {
        /// Layer.
        name: String,
        /// In-features.
        features: usize,
    },
    /// The rate is outside of what the format stores.
    #[error("rate {rate} is outside of 1 to 8 bits a weight")]
    Rate {
        /// Requested rate.
        rate: f64,
    },
    /// Side data alone takes more than the rate.
    #[error("{stored:.3} stored bits a weight exceed the rate of {rate}: scales and plans of layers this small take more; ask for a higher rate")]
    RateTooLow {
        /// Reached.
        stored: f64,
        /// Requested.
        rate: f64,
    },
    /// Calibration needs at least one token in one sequence.
    #[error("calibration needs at least one sequence of 2 tokens (asked for: {samples} of {context})")]
    NoCalibration {
        /// Sequences.
        samples: usize,
        /// Tokens a sequence.
        context: usize,
    },
    /// More tokens a sequence than the model can read.
    #[error("calibration sequences of {context} tokens are longer than the model's context of {limit}")]
    Context {
        /// Requested.
        context: usize,
        /// The model's.
        limit: usize,
    },
    /// Not enough calibration text.
    #[error(
        "calibration text {name} has {tokens} tokens, fewer than one sequence of {context}; give a longer text or a smaller --context"
    )]
    ShortText {
        /// File or data set.
        name: String,
        /// Tokens found.
        tokens: usize,
        /// Tokens needed.
        context: usize,
    },
    /// The tokenizer refuses the text.
    #[error("calibration text {name} cannot be tokenized: {why}")]
    Tokenize {
        /// File or data set.
        name: String,
        /// Reason.
        why: String,
    },
    /// Tokenizer and model do not fit.
    #[error("the tokenizer makes token {id}, but the model's vocabulary has {vocab} entries")]
    TokenRange {
        /// Token id.
        id: u32,
        /// Vocabulary size.
        vocab: usize,
    },
    /// The calibration text cannot be read.
    #[error("cannot read {}", path.display())]
    Read {
        /// File.
        path: PathBuf,
        /// Reason.
        #[source]
        error: std::io::Error,
    },
    /// A checkpoint cannot be written.
    #[error("cannot write {}", path.display())]
    Write {
        /// File.
        path: PathBuf,
        /// Reason.
        #[source]
        error: std::io::Error,
    },
    /// The output folder is in use.
    #[error("{} exists already; remove it or choose another --out", path.display())]
    Exists {
        /// Folder.
        path: PathBuf,
    },
    /// A stopped run with other options.
    #[error("{} holds a stopped run of another model, with other options or of another version of wsrun; remove it or choose another --out", path.display())]
    OtherRun {
        /// Folder.
        path: PathBuf,
    },
    /// The dense model's weights cannot be read.
    #[error(transparent)]
    Weights(WeightError),
    /// The container refuses or cannot be written.
    #[error(transparent)]
    Format(#[from] FormatError),
    /// The dense model's logits are not usable.
    #[error("the dense model cannot write calibration text")]
    Sampling(#[from] crate::sampling::SamplingError),
    /// Calibration text cannot be fetched.
    #[error(transparent)]
    Hub(#[from] HubError),
    /// A tensor operation failed.
    #[error(transparent)]
    Tensor(#[from] candle_core::Error),
}

/// Quantizes a dense model into the folder `dir`, in one pass: statistics come from the dense model.
///
/// Works in `dir` + `.partial` and renames it at the end; a stopped run with the same model and options goes on at the block where it stopped.
pub fn quantize(model: &Opened, options: &Options, dir: &Path, progress: &mut dyn FnMut(Progress)) -> Result<Report, QuantizeError> {
    pipeline::run(model, options, dir, progress)
}
