//! Names to files, and dense weights and tokenizers from them.
//!
//! * `names`: what a user types; `fetch`: the Hub; [`wikitext`]: its text.
//! * `folder`, `gguf`, `packed`: weights from safetensors, GGUF and .ws.
//! * `tokenizer`, `gguf_tokenizer`: tokenizers, BOS rules and chat templates.
use candle_core::{DType, Tensor};
use std::path::{Path, PathBuf};
use tokenizers::Tokenizer;
use ws_models::config::Config;
use ws_models::weights::Weights;

mod error;
mod fetch;
mod folder;
mod gguf;
mod gguf_header;
mod gguf_tokenizer;
mod names;
mod packed;
mod tokenizer;
pub mod wikitext;

pub use error::HubError;
pub use names::{home, resolve};

/// Where a model's files are.
#[derive(Debug, Clone, PartialEq)]
pub enum Source {
    /// Hugging Face folder with dense safetensors.
    Folder(PathBuf),
    /// GGUF file.
    Gguf(PathBuf),
    /// .ws folder.
    Ws(PathBuf),
    /// `NAME-wsR` without a packed copy yet: quantize `base` to `rate` bits into `dir`, then use it.
    WsOnLoad {
        /// Dense source.
        base: Box<Source>,
        /// Stored bits a weight.
        rate: f64,
        /// Where the packed copy goes.
        dir: PathBuf,
    },
}

/// Everything a dense or packed model is opened from.
pub struct Opened {
    /// Checked architecture.
    pub config: Config,
    /// `config.json` (made from the header for a GGUF), to be copied into a .ws folder.
    pub config_json: serde_json::Value,
    /// Weights.
    pub weights: Box<dyn Weights>,
    /// Tokenizer; encodes without adding special tokens unless asked.
    pub tokenizer: Tokenizer,
    /// True if text starts with BOS by the tokenizer's own rule.
    pub add_bos: bool,
    /// Jinja chat template, if the model has one.
    pub chat_template: Option<String>,
    /// Files that make a .ws folder complete (`tokenizer.json`, ...): name and bytes.
    pub side_files: Vec<(String, Vec<u8>)>,
}

impl Source {
    /// Opens everything but quantizes nothing.
    ///
    /// # Errors
    /// A missing or damaged file, an unsupported architecture, [`HubError::NotPacked`] for [`Source::WsOnLoad`].
    pub fn open(&self) -> Result<Opened, HubError> {
        self.open_reporting(&mut |_, _| ())
    }

    /// Like [`Source::open`]; `report` gets how many bytes of packed weights are read, and how many there are.
    ///
    /// # Errors
    /// As [`Source::open`].
    pub fn open_reporting(&self, report: &mut dyn FnMut(u64, u64)) -> Result<Opened, HubError> {
        self.open_as(false, report)
    }

    /// Like [`Source::open`], with packed matrices expanded to dense f32: to compare products by packed weights with dense ones.
    ///
    /// # Errors
    /// As [`Source::open`].
    pub fn open_dense(&self) -> Result<Opened, HubError> {
        self.open_as(true, &mut |_, _| ())
    }

    fn open_as(&self, dense: bool, report: &mut dyn FnMut(u64, u64)) -> Result<Opened, HubError> {
        match self {
            Self::Folder(dir) => {
                let (config_json, config) = read_config(dir)?;
                let weights = Box::new(folder::FolderWeights::open(dir, &config)?);
                opened(dir, config, config_json, weights)
            }
            Self::Ws(dir) => {
                let weights = packed::PackedWeights::open(dir, dense, report)?;
                let config_json = weights.config().clone();
                let config = parse_config(&dir.join("config.json"), &config_json)?;
                opened(dir, config, config_json, Box::new(weights))
            }
            Self::Gguf(path) => gguf::open(path),
            Self::WsOnLoad { dir, .. } => Err(HubError::NotPacked { path: dir.clone() }),
        }
    }
}

fn opened(dir: &Path, mut config: Config, config_json: serde_json::Value, weights: Box<dyn Weights>) -> Result<Opened, HubError> {
    let text = tokenizer::read(dir, config.bos)?;
    add_ends(&mut config, &text.ends);
    let tokenizer::TextFiles { tokenizer, add_bos, chat_template, side_files, .. } = text;
    Ok(Opened { config, config_json, weights, tokenizer, add_bos, chat_template, side_files })
}

fn add_ends(config: &mut Config, ends: &[u32]) {
    for &end in ends {
        if !config.eos.contains(&end) {
            config.eos.push(end);
        }
    }
}

fn read_config(dir: &Path) -> Result<(serde_json::Value, Config), HubError> {
    let path = dir.join("config.json");
    let text = std::fs::read_to_string(&path).map_err(|error| HubError::Io { action: "read", path: path.clone(), error })?;
    let value = serde_json::from_str(&text).map_err(|e| HubError::Damaged { path: path.clone(), why: format!("is not JSON: {e}") })?;
    let config = parse_config(&path, &value)?;
    Ok((value, config))
}

fn parse_config(path: &Path, value: &serde_json::Value) -> Result<Config, HubError> {
    Config::from_json(&value.to_string()).map_err(|error| HubError::Config { path: path.to_owned(), error })
}

/// True if no value is NaN or infinite.
fn is_finite(tensor: &Tensor) -> candle_core::Result<bool> {
    let flat = tensor.flatten_all()?;
    Ok(match tensor.dtype() {
        DType::BF16 => flat.to_vec1::<half::bf16>()?.iter().all(|v| v.is_finite()),
        DType::F16 => flat.to_vec1::<half::f16>()?.iter().all(|v| v.is_finite()),
        _ => flat.to_vec1::<f32>()?.iter().all(|v| v.is_finite()),
    })
}
