//! Writing a shard.
use super::header::{self, Dtype, Item};
use super::shard::ShardFile;
use super::{files, layer, FormatError, ALIGNMENT};
use half::f16;
use rayon::prelude::*;
use std::collections::BTreeMap;
use std::convert::Infallible;
use std::io::Write;
use std::path::Path;
use std::sync::Arc;
use ws_kernels::code::CodeSet;
use ws_kernels::packed::Parts;
use xxhash_rust::xxh3::Xxh3;

/// Elements that are converted at a time.
const PIECE: usize = 1 << 14;

/// A quantized matrix before it is written: `parts.codes` are owned bytes.
pub struct Packed {
    /// Hugging Face name without `.weight`.
    pub name: String,
    /// What the file holds of it.
    pub parts: Parts,
}

/// An 8-bit table before it is written.
pub struct Table8 {
    /// Hugging Face name without `.weight`.
    pub name: String,
    /// Rows.
    pub rows: usize,
    /// Columns.
    pub columns: usize,
    /// Row-major values, `rows * columns`.
    pub values: Vec<i8>,
    /// One a row.
    pub scales: Vec<f16>,
    /// One for all.
    pub unit: f32,
}

/// One shard's contents.
#[derive(Default)]
pub struct Shard {
    /// Packed matrices.
    pub packed: Vec<Packed>,
    /// 8-bit tables.
    pub tables: Vec<Table8>,
    /// Small dense tensors (norms, biases): full name, shape, values.
    pub dense: Vec<(String, Vec<usize>, Vec<f32>)>,
    /// Code tables; one shard of a model holds them.
    pub codes: Option<Arc<CodeSet>>,
}

/// Elements where they are; little-endian bytes are made piece by piece.
enum Values<'a> {
    Borrowed(&'a [u8]),
    Bytes(Vec<u8>),
    Levels(&'a [i8]),
    Halves(&'a [f16]),
    Floats(&'a [f32]),
}

impl Values<'_> {
    fn each<E>(&self, sink: &mut dyn FnMut(&[u8]) -> Result<(), E>) -> Result<(), E> {
        match self {
            Self::Borrowed(bytes) => sink(bytes),
            Self::Bytes(bytes) => sink(bytes),
            Self::Levels(values) => pieces(values, |v| v.to_le_bytes(), sink),
            Self::Halves(values) => pieces(values, |v| v.to_le_bytes(), sink),
            Self::Floats(values) => pieces(values, |v| v.to_le_bytes(), sink),
        }
    }

    fn len(&self) -> usize {
        match self {
            Self::Borrowed(bytes) => bytes.len(),
            Self::Bytes(bytes) => bytes.len(),
            Self::Levels(values) => size_of_val(*values),
            Self::Halves(values) => size_of_val(*values),
            Self::Floats(values) => size_of_val(*values),
        }
    }

    fn sum(&self) -> String {
        let mut hash = Xxh3::new();
        let Ok(()) = self.each(&mut |bytes| {
            hash.update(bytes);
            Ok::<(), Infallible>(())
        });
        header::stored(hash.digest())
    }
}

fn pieces<T: Copy, const N: usize, E>(
    values: &[T],
    bytes: impl Fn(T) -> [u8; N],
    sink: &mut dyn FnMut(&[u8]) -> Result<(), E>,
) -> Result<(), E> {
    values.chunks(PIECE).try_for_each(|piece| sink(piece.iter().map(|&v| bytes(v)).collect::<Vec<_>>().as_flattened()))
}

struct Tensor<'a> {
    name: String,
    dtype: Dtype,
    shape: Vec<usize>,
    values: Values<'a>,
}

/// The tensors of a packed matrix in the shapes of the parts, right or not.
fn packed_tensors(Packed { name, parts }: &Packed) -> Vec<Tensor<'_>> {
    let exceptions = &parts.exceptions;
    let column = |bytes: Vec<u8>| (vec![exceptions.len()], Values::Bytes(bytes));
    let tensors =
        layer::specs(parts.out_features, &parts.widths, layer::has_row_scales(parts), exceptions.len()).unwrap_or_default().into_iter();
    tensors
        .map(|(end, dtype, expected)| {
            let (shape, values) = match end {
                "codes" => {
                    let codes = &(*parts.codes).as_ref()[parts.range.clone()];
                    (vec![codes.len()], Values::Borrowed(codes))
                }
                "plan" => (expected, Values::Bytes(layer::plan(&parts.widths))),
                "scale" => (expected, Values::Bytes(parts.scale.to_le_bytes().to_vec())),
                "col_scale" => (vec![parts.col_scale.len()], Values::Halves(&parts.col_scale)),
                "row_scale" => (vec![parts.row_scale.len()], Values::Halves(&parts.row_scale)),
                "exact" => (expected, Values::Halves(&parts.exact)),
                "exc_row" if dtype == Dtype::U32 => column(exceptions.iter().flat_map(|e| e.row.to_le_bytes()).collect()),
                "exc_row" => column(exceptions.iter().flat_map(|e| (e.row as u16).to_le_bytes()).collect()),
                "exc_col" => column(exceptions.iter().flat_map(|e| e.column.to_le_bytes()).collect()),
                _ => column(exceptions.iter().flat_map(|e| e.value.to_le_bytes()).collect()),
            };
            Tensor { name: format!("{name}.{end}"), dtype, shape, values }
        })
        .collect()
}

fn code_tensors(codes: &CodeSet) -> Vec<Tensor<'_>> {
    let mut tensors = Vec::new();
    for (width, code) in codes.codes.iter().enumerate().filter_map(|(k, c)| c.as_ref().map(|c| (k, c))) {
        let mut push = |end: &str, dtype, shape, bytes| {
            tensors.push(Tensor { name: format!("ws.code.{width}.{end}"), dtype, shape, values: Values::Bytes(bytes) });
        };
        push("a", Dtype::U8, vec![code.a.len(), code.index_bits.into()], code.a.concat());
        push("c", Dtype::U8, vec![code.c.len(), code.index_bits.into()], code.c.concat());
        if !code.d.is_empty() {
            push("d", Dtype::U8, vec![code.d.len(), code.index_bits.into()], code.d.concat());
        }
        let levels: Vec<u8> = code.levels.iter().flatten().map(|&l| l as u8).collect();
        push("levels", Dtype::I8, vec![code.levels.len(), levels.len() / code.levels.len().max(1)], levels);
        push("unit", Dtype::F32, vec![1], code.unit.to_le_bytes().to_vec());
    }
    tensors
}

fn table_tensors(table: &Table8) -> [Tensor<'_>; 3] {
    let tensor = |end: &str, dtype, shape, values| Tensor { name: format!("{}.{end}", table.name), dtype, shape, values };
    [
        tensor("q8", Dtype::I8, vec![table.rows, table.columns], Values::Levels(&table.values)),
        tensor("q8_scale", Dtype::F16, vec![table.scales.len()], Values::Halves(&table.scales)),
        tensor("q8_unit", Dtype::F32, vec![1], Values::Bytes(table.unit.to_le_bytes().to_vec())),
    ]
}

impl Shard {
    /// Writes the shard to a temporary name beside `path`, syncs it, opens it as a reader would, and renames it.
    ///
    /// # Errors
    /// The file system refuses ([`FormatError::Io`]), or the contents make no shard that [`super::WsModel`] would open: nothing is left
    /// at `path` then.
    pub fn write(&self, path: &Path) -> Result<(), FormatError> {
        let mut tensors: Vec<Tensor> = self.packed.iter().flat_map(packed_tensors).collect();
        tensors.extend(self.tables.iter().flat_map(table_tensors));
        tensors.extend(self.dense.iter().map(|(name, shape, values)| Tensor {
            name: name.clone(),
            dtype: Dtype::F32,
            shape: shape.clone(),
            values: Values::Floats(values),
        }));
        tensors.extend(self.codes.iter().flat_map(|codes| code_tensors(codes)));
        // What is used in place and is made of whole 64-byte vectors comes first and stays aligned; then every tensor at a multiple of its element's size.
        let in_place = |t: &Tensor| (t.name.ends_with(".codes") || t.name.ends_with(".q8")) && t.values.len().is_multiple_of(ALIGNMENT);
        tensors.sort_by_key(|t| (!in_place(t), std::cmp::Reverse(t.dtype.size())));

        let items: Vec<Item> = tensors
            .par_iter()
            .map(|t| Item { name: t.name.clone(), dtype: t.dtype, shape: t.shape.clone(), bytes: t.values.len(), sum: t.values.sum() })
            .collect();
        let shapes: BTreeMap<String, [usize; 2]> =
            self.packed.iter().map(|p| (p.name.clone(), [p.parts.out_features, p.parts.widths.len()])).collect();
        let header = header::build(&items, &shapes);
        files::write(
            path,
            |file| {
                file.write_all(&header)?;
                tensors.iter().try_for_each(|t| t.values.each(&mut |bytes| file.write_all(bytes)))
            },
            |file| {
                let map = files::map_open(file).map_err(|error| FormatError::Io { action: "read back", path: path.to_owned(), error })?;
                ShardFile::new(path, map).map(drop)
            },
        )
    }
}
