//! WaterSIC into the .ws format, layer by layer.
use crate::hub::Opened;
use std::path::{Path, PathBuf};

/// Where calibration text comes from.
#[derive(Debug, Clone, PartialEq)]
pub enum Calibration {
    /// The dense model writes it itself.
    SelfGenerated,
    /// A UTF-8 file.
    File(PathBuf),
    /// WikiText-2 train split through the Hub.
    Wikitext2,
}

/// What `wsrun quantize` is asked for.
#[derive(Debug, Clone)]
pub struct Options {
    /// Stored bits a weight of the linear layers, 1 to 8.
    pub rate: f64,
    /// Calibration text.
    pub calibration: Calibration,
    /// Calibration sequences.
    pub samples: usize,
    /// Tokens a sequence.
    pub context: usize,
    /// Seed of everything random.
    pub seed: u64,
}

/// Quantizes a dense model into `dir`; resumes from `dir.partial` if it was made with the same options.
pub fn quantize(_model: &Opened, _options: &Options, _dir: &Path) -> anyhow::Result<()> {
    todo!()
}
