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
    #[error("{} is not a .ws model: its config.json has no quantization_config of method watersic; make one with `wsrun quantize`", path.display())]
    NotWs {
        /// Folder.
        path: PathBuf,
    },
    /// Written by another version of the format.
    #[error("{}: format version {found} is not supported (this wsrun reads version {}); update wsrun, or remove the folder and quantize again", path.display(), super::VERSION)]
    Version {
        /// File.
        path: PathBuf,
        /// Version found.
        found: String,
    },
    /// A field or tensor that this version does not have.
    #[error("{}: unknown field `{field}`; update wsrun, or remove the folder and quantize again", path.display())]
    UnknownField {
        /// File.
        path: PathBuf,
        /// Its name.
        field: String,
    },
    /// A file is not what was written, or contradicts another one.
    #[error("{}: {violation}; fetch the file again, or remove the folder and quantize again", path.display())]
    Damaged {
        /// File.
        path: PathBuf,
        /// What is wrong.
        violation: Violation,
    },
    /// A tensor that should be there is not.
    #[error("{}: tensor {tensor} is missing; fetch the model again, or remove the folder and quantize again", path.display())]
    Missing {
        /// Folder or file.
        path: PathBuf,
        /// Tensor.
        tensor: String,
    },
    /// A tensor does not have the type, shape, place or values that it must have.
    #[error("{}: tensor {tensor} {violation}; fetch the file again, or remove the folder and quantize again", path.display())]
    Tensor {
        /// File.
        path: PathBuf,
        /// Tensor.
        tensor: String,
        /// What is wrong.
        violation: TensorViolation,
    },
    /// The values of a packed matrix or of an 8-bit table make none.
    #[error("{}: matrix {matrix} is damaged: {error}; fetch the file again, or remove the folder and quantize again", path.display())]
    Matrix {
        /// File.
        path: PathBuf,
        /// Name without `.weight`.
        matrix: String,
        /// What is wrong.
        error: PackError,
    },
    /// A code table is unusable.
    #[error("{}: tensors ws.code.{width}: {error}; fetch the file again, or remove the folder and quantize again", path.display())]
    Code {
        /// File.
        path: PathBuf,
        /// Width in bits.
        width: u8,
        /// What is wrong.
        error: CodeError,
    },
    /// The output folder is there already.
    #[error("{} exists; remove it or choose another folder", path.display())]
    Exists {
        /// Folder.
        path: PathBuf,
    },
}

/// What can be wrong with a file as a whole.
#[derive(Debug, thiserror::Error)]
pub enum Violation {
    /// Not a regular file.
    #[error("is not a file")]
    NotAFile,
    /// Shorter than the length of its header.
    #[error("has only {0} bytes")]
    TooShort(usize),
    /// The header does not fit into the file or is longer than any real one.
    #[error("has {file} bytes, and a header of {length}")]
    HeaderLength {
        /// Bytes of the header.
        length: u64,
        /// Bytes of the file.
        file: usize,
    },
    /// The header leaves tensors at odd addresses.
    #[error("its header of {0} bytes does not end at a multiple of 64")]
    HeaderAlignment(u64),
    /// A JSON text longer than any real one.
    #[error("has {0} bytes, too many for a JSON file")]
    TooLong(usize),
    /// A header or JSON file cannot be parsed.
    #[error("is not the JSON that it must be: {0}")]
    Json(serde_json::Error),
    /// A JSON file is not an object.
    #[error("is not a JSON object")]
    NotAnObject,
    /// A required metadata field of the header is missing or malformed.
    #[error("metadata field {0} is missing or malformed")]
    Field(&'static str),
    /// A metadata field speaks of other tensors than the file has.
    #[error("metadata field {field} and the tensors of the file differ in {tensor}")]
    FieldTensors {
        /// Metadata field.
        field: &'static str,
        /// First tensor or matrix that only one of them has.
        tensor: String,
    },
    /// The header or the file is not the one that was written.
    #[error("its checksum differs")]
    Checksum,
    /// Bytes after the last tensor, or a file that was cut.
    #[error("its tensors end at byte {tensors}, the file at {file}")]
    End {
        /// End of the last tensor.
        tensors: usize,
        /// Bytes of the file.
        file: usize,
    },
    /// The index names a file outside of the folder, or one that has another purpose.
    #[error("`{0}` cannot be the name of such a file")]
    FileName(String),
    /// The weight map and the checksums name different shards.
    #[error("weight_map and ws.shards differ in shard {0}")]
    IndexShards(String),
    /// The index is not the one of this shard.
    #[error("it names other tensors of {shard} than the file has; the first is {tensor}")]
    IndexTensors {
        /// Shard.
        shard: String,
        /// First tensor that only one of them has.
        tensor: String,
    },
    /// A shard of another model or another run.
    #[error("is not the file that the index was made for (the checksums of its header differ)")]
    OtherShard,
    /// The sum of tensor bytes is another one.
    #[error("total_size is {found}, the tensors have {expected} bytes")]
    TotalSize {
        /// In the index.
        found: u64,
        /// In the shards.
        expected: u64,
    },
    /// The text differs from the one that is written for this content.
    #[error("was changed after it was written")]
    Changed,
}

/// What can be wrong with one tensor.
#[derive(Debug, PartialEq, thiserror::Error)]
pub enum TensorViolation {
    /// Another element type.
    #[error("is {found}, must be {expected}")]
    Dtype {
        /// In the file.
        found: &'static str,
        /// In this version.
        expected: &'static str,
    },
    /// An element type that this version does not have.
    #[error("is of type {0}, which the format does not have")]
    UnknownDtype(String),
    /// Another shape.
    #[error("has shape {found:?}, must be {expected:?}")]
    Shape {
        /// In the file.
        found: Vec<usize>,
        /// What the matrix asks for.
        expected: Vec<usize>,
    },
    /// A number of dimensions that it cannot have, or an empty one.
    #[error("cannot have shape {0:?}")]
    Impossible(Vec<usize>),
    /// More elements than memory has addresses.
    #[error("is too large")]
    TooLarge,
    /// Its place in the file has another size than its shape.
    #[error("has {found} bytes in the file, its shape asks for {expected}")]
    Bytes {
        /// Bytes of its place.
        found: usize,
        /// Bytes of its shape.
        expected: usize,
    },
    /// Overlap or gap.
    #[error("starts at byte {found} of the data, the one before it ends at {expected}")]
    Offset {
        /// Where it starts.
        found: usize,
        /// Where it must start.
        expected: usize,
    },
    /// It ends before it starts, or beyond the file.
    #[error("stands at bytes {start} to {end} of {data}")]
    Place {
        /// First byte.
        start: usize,
        /// End.
        end: usize,
        /// Bytes of all tensors.
        data: usize,
    },
    /// Codes at an address that is no multiple of 64.
    #[error("starts at byte {0} of the file, not at a multiple of 64")]
    Unaligned(usize),
    /// A nibble of the plan that stands for no width.
    #[error("has the unknown width code {code} at in-feature {column}")]
    WidthCode {
        /// In-feature.
        column: usize,
        /// Nibble.
        code: u8,
    },
    /// The unused nibble of the plan is set.
    #[error("has bits beyond the last in-feature")]
    PlanPadding,
    /// Columns of a width without a code.
    #[error("has columns of width {0}, but the model has no tensors ws.code.{0}")]
    NoCode(u8),
    /// A code in another width's place.
    #[error("makes a code of {0} bits")]
    CodeBits(u8),
    /// A NaN or an infinity.
    #[error("holds {value} at {index}")]
    NotFinite {
        /// Which element.
        index: usize,
        /// The element.
        value: f32,
    },
    /// The bytes are not those that were written.
    #[error("has another checksum than when it was written")]
    Checksum,
    /// The same name twice.
    #[error("is in two shards")]
    TwoShards,
}
