//! Names to files, and dense weights and tokenizers from them.
use std::path::PathBuf;
use tokenizers::Tokenizer;
use ws_models::config::Config;
use ws_models::weights::Weights;

/// Why a name leads to no model; names the nearest names or the fix.
#[derive(Debug, thiserror::Error)]
pub enum HubError {}

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
    /// Files that make a .ws folder complete: `tokenizer.json`, `tokenizer_config.json`, `generation_config.json`: name and bytes.
    pub side_files: Vec<(String, Vec<u8>)>,
}

/// Resolves a path, an alias, `ALIAS-wsR`, or a Hub repository id, downloading what is needed (with a progress bar).
pub fn resolve(_name: &str) -> Result<Source, HubError> {
    todo!()
}

impl Source {
    /// Opens everything but quantizes nothing: an error for [`Source::WsOnLoad`].
    pub fn open(&self) -> Result<Opened, HubError> {
        todo!()
    }
    /// Like `open`, with packed matrices expanded to dense f32 (to compare a product by packed weights with a dense one).
    pub fn open_dense(&self) -> Result<Opened, HubError> {
        todo!()
    }
}

/// Folder of wsrun's own files: `$WSRUN_HOME`, or `~/.cache/wsrun`.
pub fn home() -> PathBuf {
    todo!()
}
/// stub
pub mod wikitext {
    /// stub
    pub enum Split {
        /// x
        Train,
        /// x
        Test,
    }
    /// stub
    pub fn text(_s: Split) -> Result<String, super::HubError> {
        todo!()
    }
}
