//! Why a name leads to no usable model; each error names the file and the fix.
use crate::format::FormatError;
use std::path::PathBuf;
use ws_models::config::ConfigError;

/// Errors of names, downloads, dense files and tokenizers.
#[derive(Debug, thiserror::Error)]
pub enum HubError {
    /// Neither a path nor an alias nor a repository id.
    #[error("unknown model `{name}`{nearest}; a model is a folder, a .gguf file, an alias (`wsrun models`), ALIAS-wsR with a rate R of 1 to 8, or a Hub repository OWNER/NAME")]
    Unknown {
        /// What was asked for.
        name: String,
        /// `; did you mean ...`, or nothing.
        nearest: String,
    },
    /// A rate that the format does not have.
    #[error("`{name}`: rate {rate} is outside of 1 to 8 bits a weight")]
    Rate {
        /// What was asked for.
        name: String,
        /// Its rate.
        rate: f64,
    },
    /// The file system refuses.
    #[error("cannot {action} {}", path.display())]
    Io {
        /// What was tried.
        action: &'static str,
        /// File or folder.
        path: PathBuf,
        /// Reason.
        #[source]
        error: std::io::Error,
    },
    /// A file that a model needs is not there.
    #[error("{} is missing: {fix}", path.display())]
    Missing {
        /// File.
        path: PathBuf,
        /// What to do.
        fix: String,
    },
    /// The architecture is not supported or config.json is damaged.
    #[error("{}", path.display())]
    Config {
        /// File.
        path: PathBuf,
        /// Reason.
        #[source]
        error: ConfigError,
    },
    /// A file does not hold what it should.
    #[error("{}: {why}", path.display())]
    Damaged {
        /// File.
        path: PathBuf,
        /// Reason and fix.
        why: String,
    },
    /// A tensor does not hold what it should.
    #[error("{}: tensor {tensor} {why}", path.display())]
    Tensor {
        /// File.
        path: PathBuf,
        /// Tensor.
        tensor: String,
        /// Reason.
        why: String,
    },
    /// The Hub gives no file.
    #[error("cannot fetch {file} of {repo} from the Hub: {why}; {fix}")]
    Fetch {
        /// Repository.
        repo: String,
        /// File.
        file: String,
        /// Reason.
        why: String,
        /// What to do.
        fix: String,
    },
    /// A packed copy is to be made first.
    #[error("{} is not quantized yet: run `wsrun quantize` or `wsrun generate` with this name first", path.display())]
    NotPacked {
        /// Where the packed copy goes.
        path: PathBuf,
    },
    /// A .ws folder is damaged.
    #[error(transparent)]
    Format(#[from] FormatError),
}
