//! Everything that can be wrong with a .ws folder; each error names the file, the tensor and, where there is one, the fix.
use std::path::PathBuf;
use ws_kernels::code::CodeError;
use ws_kernels::packed::PackError;

/// Why a .ws file or folder is refused, or cannot be written.
#[derive(Debug, thiserror::Error)]
pub enum FormatError {
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
    /// The folder is not a .ws model.
    #[error("{} is not a .ws model: {why}; make one with `wsrun quantize`", path.display())]
    NotWs {
        /// Folder.
        path: PathBuf,
        /// What is missing or different.
        why: String,
    },
    /// Written by a newer wsrun.
    #[error("{}: format version {found} is not supported (this wsrun reads version 1); update wsrun or quantize again", path.display())]
    Version {
        /// File.
        path: PathBuf,
        /// Version found.
        found: String,
    },
    /// A field that version 1 does not have.
    #[error("{}: unknown field `{field}`; update wsrun or quantize again", path.display())]
    UnknownField {
        /// File.
        path: PathBuf,
        /// Its name.
        field: String,
    },
    /// The file's header is damaged.
    #[error("{}: damaged header: {why}; fetch the file or quantize again", path.display())]
    Header {
        /// File.
        path: PathBuf,
        /// What is wrong.
        why: String,
    },
    /// A tensor that should be there is not.
    #[error("{}: tensor {tensor} is missing; fetch the model or quantize again", path.display())]
    Missing {
        /// Folder or file.
        path: PathBuf,
        /// Tensor.
        tensor: String,
    },
    /// A tensor does not have the type, shape or values it must have.
    #[error("{}: tensor {tensor}: {why}; fetch the file or quantize again", path.display())]
    Tensor {
        /// File.
        path: PathBuf,
        /// Tensor.
        tensor: String,
        /// What is wrong.
        why: String,
    },
    /// The tensors of a packed matrix do not fit together.
    #[error("{}: packed matrix {tensor} is damaged; fetch the file or quantize again", path.display())]
    Matrix {
        /// File.
        path: PathBuf,
        /// Matrix.
        tensor: String,
        /// What is wrong.
        #[source]
        error: PackError,
    },
    /// A code table is unusable.
    #[error("{}: code of width {width} is damaged; fetch the file or quantize again", path.display())]
    Code {
        /// File.
        path: PathBuf,
        /// Width in bits.
        width: u8,
        /// What is wrong.
        #[source]
        error: CodeError,
    },
    /// The bytes are not those that were written.
    #[error("{}: checksum of tensor {tensor} differs; fetch the file or quantize again", path.display())]
    Checksum {
        /// File.
        path: PathBuf,
        /// Tensor.
        tensor: String,
    },
    /// The output folder holds something else.
    #[error("{} exists and is not a .ws model; choose another folder", path.display())]
    Exists {
        /// Folder.
        path: PathBuf,
    },
}
