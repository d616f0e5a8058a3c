//! The .ws container, version 2: a Hugging Face style folder whose safetensors shards hold packed matrices. `docs/format.md` specifies every
//! tensor and bit. Knows no model.
//!
//! * [`Shard`] is written in one piece, [`finish_folder`] makes shards a model. Nothing is renamed to its final name that the reader would refuse.
//! * [`WsModel`] opens a folder; nothing that it returns needs checking again.
//! * [`stored_size`] is the size of a packed matrix before there is one.
//!
//! Invariants of an opened folder: index, shards, checksums and headers name the same tensors; the tensors of a shard cover its data without gap
//! or overlap; no tensor is unknown; every packed matrix and table has exactly the tensors, types and shapes that its plan asks for; its codes
//! start at a multiple of 64 bytes; every width has a valid code; headers are the ones that the index was written for. Memory needed is at most
//! proportional to the files' real sizes. Values (finite, exceptions in order) are checked when a tensor is asked for; payload bytes are compared with their
//! checksums by [`WsModel::verify`] only.
mod error;
mod files;
mod header;
mod index;
mod inspect;
mod layer;
mod model;
mod shard;
mod write;

pub(crate) use files::{parent, write as write_file};

pub use error::{FormatError, TensorViolation, Violation};
pub use inspect::{CodeSummary, Inspection, TableSize};
pub use layer::{stored_bytes, stored_size, LayerSize};
pub use model::{finish_folder, WsModel};
pub use shard::shard_is_complete;
pub use write::{Packed, Shard, Table8};

/// Version of the container that is written and read.
pub const VERSION: u32 = 2;
/// `quant_method` in config.json.
pub const METHOD: &str = "watersic";

const CONFIG: &str = "config.json";
const INDEX: &str = "model.safetensors.index.json";
/// Codes and the data of a shard start at multiples of this: a cache line, and the vectors of the layout.
const ALIGNMENT: usize = ws_kernels::layout::VECTOR;
