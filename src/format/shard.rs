//! One shard: every tensor accounted for before one is handed out.
use super::header::{self, Dtype, Entry, Header};
use super::layer::{self, LayerSize};
use super::{files, FormatError, TensorViolation, Violation, ALIGNMENT};
use half::f16;
use memmap2::Mmap;
use rayon::prelude::*;
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use ws_kernels::code::{CodeSet, LinearCode};
use ws_kernels::packed::{Bytes, Exception, Parts};
use ws_kernels::rows8::Rows8;

/// A shard whose header, plans and code tables are right, and in which no tensor is unknown.
pub(super) struct ShardFile {
    pub(super) path: PathBuf,
    /// The memory map, or memory with other shards in it.
    bytes: Bytes,
    /// Where in it the file stands.
    place: Range<usize>,
    pub(super) header: Header,
    /// Packed matrices by name.
    pub(super) matrices: BTreeMap<String, LayerSize>,
    /// Rows and columns of 8-bit tables by name.
    pub(super) tables: BTreeMap<String, [usize; 2]>,
    /// Full names of dense tensors.
    pub(super) dense: BTreeSet<String>,
    /// Code tables, if this is the shard that holds them.
    pub(super) codes: Option<Arc<CodeSet>>,
}

impl ShardFile {
    pub(super) fn open(path: &Path) -> Result<Self, FormatError> {
        Self::new(path, files::map(path)?)
    }

    /// `path` is what errors name.
    pub(super) fn new(path: &Path, map: Mmap) -> Result<Self, FormatError> {
        let header = header::parse(path, &map)?;
        let (matrices, tables, dense, codes) = Default::default();
        let place = 0..map.len();
        let mut shard = Self { path: path.to_owned(), bytes: Arc::new(map), place, header, matrices, tables, dense, codes };
        shard.survey()?;
        Ok(shard)
    }

    /// Bytes of the file.
    pub(super) fn len(&self) -> usize {
        self.place.len()
    }

    /// The file.
    pub(super) fn content(&self) -> &[u8] {
        &(*self.bytes).as_ref()[self.place.clone()]
    }

    /// From now on the file's content is read at `start` of `bytes`, where a copy of it stands.
    pub(super) fn move_to(&mut self, bytes: Bytes, start: usize) {
        (self.bytes, self.place) = (bytes, start..start + self.place.len());
    }

    /// Where in `bytes` a range of the file stands.
    fn place_of(&self, range: &Range<usize>) -> Range<usize> {
        self.place.start + range.start..self.place.start + range.end
    }

    /// Reads everything and compares checksums.
    pub(super) fn verify(&self) -> Result<(), FormatError> {
        // Collected first, so that the error does not depend on which thread is faster.
        let tensors: Vec<_> = self.header.tensors.iter().collect();
        let right: Vec<bool> =
            tensors.par_iter().map(|(name, entry)| header::sum(&self.content()[entry.range.clone()]) == self.header.sums[*name]).collect();
        match right.iter().position(|right| !right) {
            Some(i) => Err(self.bad(tensors[i].0, TensorViolation::Checksum)),
            None => Ok(()),
        }
    }

    pub(super) fn bad(&self, tensor: &str, violation: TensorViolation) -> FormatError {
        FormatError::Tensor { path: self.path.clone(), tensor: tensor.to_owned(), violation }
    }

    fn survey(&mut self) -> Result<(), FormatError> {
        let mut known = BTreeSet::new();
        let (mut matrices, mut tables) = (BTreeMap::new(), BTreeMap::new());
        for (name, &[rows, columns]) in &self.header.shapes {
            matrices.insert(name.clone(), self.survey_matrix(name, rows, columns, &mut known)?);
        }
        for name in self.header.tensors.keys().filter_map(|name| name.strip_suffix(".q8")) {
            tables.insert(name.to_owned(), self.survey_table(name, &mut known)?);
        }
        let codes = self.read_codes(&mut known)?;
        let dense: BTreeSet<String> = self.header.tensors.keys().filter(|name| !known.contains(*name)).cloned().collect();
        for name in &dense {
            // Left out in silence, a field of a later version would make wrong numbers.
            let of_matrix = |(stem, end): (&str, &str)| end != "bias" && (matrices.contains_key(stem) || tables.contains_key(stem));
            if name.starts_with("ws.") || name.rsplit_once('.').is_some_and(of_matrix) {
                return Err(FormatError::UnknownField { path: self.path.clone(), field: name.clone() });
            }
            let shape = &self.entry(name, Dtype::F32)?.shape;
            if shape.contains(&0) {
                return Err(self.bad(name, TensorViolation::Impossible(shape.clone())));
            }
        }
        (self.matrices, self.tables, self.dense, self.codes) = (matrices, tables, dense, codes);
        Ok(())
    }

    fn survey_matrix(&self, name: &str, rows: usize, columns: usize, known: &mut BTreeSet<String>) -> Result<LayerSize, FormatError> {
        let codes = format!("{name}.codes");
        let place = self.entry(&codes, Dtype::U8)?.range.start;
        if !place.is_multiple_of(ALIGNMENT) {
            return Err(self.bad(&codes, TensorViolation::Unaligned(place)));
        }
        let plan = format!("{name}.plan");
        self.expect(&plan, Dtype::U8, vec![columns.div_ceil(2)])?;
        let widths = self.widths(name, columns)?;
        let exceptions = self.header.tensors.get(&format!("{name}.exc_row")).map_or(0, |entry| entry.shape.first().copied().unwrap_or(0));
        let row_scales = self.header.tensors.contains_key(&format!("{name}.row_scale"));
        let specs = layer::specs(rows, &widths, row_scales, exceptions)
            .ok_or_else(|| self.bad(&codes, TensorViolation::Impossible(vec![rows, columns])))?;
        let mut bytes = 0;
        for (end, dtype, shape) in specs {
            let tensor = format!("{name}.{end}");
            bytes += self.expect(&tensor, dtype, shape)?.range.len() as u64;
            known.insert(tensor);
        }
        Ok(LayerSize::new(name, rows, &widths, exceptions, bytes))
    }

    fn survey_table(&self, name: &str, known: &mut BTreeSet<String>) -> Result<[usize; 2], FormatError> {
        let [values, scales, unit] = ["q8", "q8_scale", "q8_unit"].map(|end| format!("{name}.{end}"));
        let shape = self.rectangle(&values, Dtype::I8)?;
        self.expect(&scales, Dtype::F16, vec![shape[0]])?;
        self.expect(&unit, Dtype::F32, vec![1])?;
        known.extend([values, scales, unit]);
        Ok(shape)
    }

    fn read_codes(&self, known: &mut BTreeSet<String>) -> Result<Option<Arc<CodeSet>>, FormatError> {
        let mut set = CodeSet::default();
        for width in 1..=6u8 {
            let [a, c, d, levels, unit] = ["a", "c", "d", "levels", "unit"].map(|end| format!("ws.code.{width}.{end}"));
            if !self.header.tensors.contains_key(&a) {
                continue;
            }
            let [positions, index_bits] = self.rectangle(&a, Dtype::U8)?;
            let [_, table] = self.rectangle(&levels, Dtype::I8)?;
            self.expect(&c, Dtype::U8, vec![positions, index_bits])?;
            let third_byte = self.header.tensors.contains_key(&d);
            if third_byte {
                self.expect(&d, Dtype::U8, vec![positions, index_bits])?;
            }
            self.expect(&unit, Dtype::F32, vec![1])?;
            let impossible = |tensor: &str| self.bad(tensor, TensorViolation::Impossible(self.header.tensors[tensor].shape.clone()));
            let path_bits = match positions {
                8 => 1,
                4 => 2,
                _ => return Err(impossible(&a)),
            };
            let table_bits = table.ilog2() as usize;
            if index_bits > 8 || !(index_bits..=8).contains(&table_bits) {
                return Err(impossible(&levels));
            }
            let rows = |tensor: &str, columns: usize| self.slice(tensor).chunks_exact(columns).map(<[u8]>::to_vec).collect::<Vec<_>>();
            let code = LinearCode {
                path_bits,
                raw_bits: (table_bits - index_bits) as u8,
                index_bits: index_bits as u8,
                a: rows(&a, index_bits),
                c: rows(&c, index_bits),
                d: if third_byte { rows(&d, index_bits) } else { Vec::new() },
                levels: rows(&levels, table).into_iter().map(|t| t.into_iter().map(|l| l as i8).collect()).collect(),
                unit: self.float(&unit),
            };
            code.validate().map_err(|error| FormatError::Code { path: self.path.clone(), width, error })?;
            if code.bits() != width {
                return Err(self.bad(&levels, TensorViolation::CodeBits(code.bits())));
            }
            set.codes[usize::from(width)] = Some(Arc::new(code));
            known.extend([a, c, d, levels, unit]);
        }
        Ok(set.codes.iter().any(Option::is_some).then(|| Arc::new(set)))
    }

    fn entry(&self, name: &str, dtype: Dtype) -> Result<&Entry, FormatError> {
        let missing = || FormatError::Missing { path: self.path.clone(), tensor: name.to_owned() };
        let entry = self.header.tensors.get(name).ok_or_else(missing)?;
        if entry.dtype != dtype {
            return Err(self.bad(name, TensorViolation::Dtype { found: entry.dtype.name(), expected: dtype.name() }));
        }
        Ok(entry)
    }

    fn expect(&self, name: &str, dtype: Dtype, shape: Vec<usize>) -> Result<&Entry, FormatError> {
        let entry = self.entry(name, dtype)?;
        if entry.shape != shape {
            return Err(self.bad(name, TensorViolation::Shape { found: entry.shape.clone(), expected: shape }));
        }
        Ok(entry)
    }

    /// A shape of two dimensions, neither of them 0.
    fn rectangle(&self, name: &str, dtype: Dtype) -> Result<[usize; 2], FormatError> {
        match self.entry(name, dtype)?.shape[..] {
            [rows, columns] if rows > 0 && columns > 0 => Ok([rows, columns]),
            ref shape => Err(self.bad(name, TensorViolation::Impossible(shape.to_vec()))),
        }
    }

    // Below, the survey has checked names, types and shapes.

    fn slice(&self, name: &str) -> &[u8] {
        self.header.tensors.get(name).map_or(&[], |entry| &self.content()[entry.range.clone()])
    }

    /// Elements of `N` bytes.
    fn elements<const N: usize, T>(&self, name: &str, from: impl Fn([u8; N]) -> T) -> Vec<T> {
        self.slice(name).as_chunks().0.iter().map(|&bytes| from(bytes)).collect()
    }

    fn halves(&self, name: &str) -> Vec<f16> {
        self.elements(name, f16::from_le_bytes)
    }

    fn float(&self, name: &str) -> f32 {
        self.elements(name, f32::from_le_bytes)[0]
    }

    fn widths(&self, name: &str, columns: usize) -> Result<Vec<u8>, FormatError> {
        let plan = format!("{name}.plan");
        layer::widths(self.slice(&plan), columns).map_err(|violation| self.bad(&plan, violation))
    }

    /// What the file holds of a packed matrix of this shard; values and exceptions are for the kernels to check.
    pub(super) fn parts(&self, name: &str) -> Result<Parts, FormatError> {
        let LayerSize { rows, columns, .. } = self.matrices[name];
        let tensor = |end: &str| format!("{name}.{end}");
        let exc_row = tensor("exc_row");
        let exception_rows: Vec<u32> = match self.header.tensors.get(&exc_row).map(|entry| entry.dtype) {
            Some(Dtype::U32) => self.elements(&exc_row, u32::from_le_bytes),
            _ => self.elements(&exc_row, |bytes| u16::from_le_bytes(bytes).into()),
        };
        let places = exception_rows.into_iter().zip(self.elements(&tensor("exc_col"), u16::from_le_bytes));
        let exceptions = places.zip(self.halves(&tensor("exc_val"))).map(|((row, column), value)| Exception { row, column, value });
        let mut row_scale = self.halves(&tensor("row_scale"));
        if row_scale.is_empty() {
            row_scale.resize(rows, f16::ONE);
        }
        Ok(Parts {
            out_features: rows,
            widths: self.widths(name, columns)?,
            scale: self.float(&tensor("scale")),
            codes: self.bytes.clone(),
            range: self.place_of(&self.header.tensors[&tensor("codes")].range),
            col_scale: self.halves(&tensor("col_scale")),
            row_scale,
            exact: self.halves(&tensor("exact")),
            exceptions: exceptions.collect(),
        })
    }

    /// An 8-bit table of this shard.
    pub(super) fn rows8(&self, name: &str) -> Result<Rows8, FormatError> {
        let [rows, columns] = self.tables[name];
        let range = self.place_of(&self.header.tensors[&format!("{name}.q8")].range);
        let (scales, unit) = (self.halves(&format!("{name}.q8_scale")), self.float(&format!("{name}.q8_unit")));
        Rows8::new(rows, columns, self.bytes.clone(), range, scales, unit).map_err(|error| self.bad_matrix(name, error))
    }

    pub(super) fn bad_matrix(&self, name: &str, error: ws_kernels::packed::PackError) -> FormatError {
        FormatError::Matrix { path: self.path.clone(), matrix: name.to_owned(), error }
    }

    /// A dense tensor of this shard.
    pub(super) fn dense(&self, name: &str) -> Result<(Vec<usize>, Vec<f32>), FormatError> {
        let values = self.elements(name, f32::from_le_bytes);
        match values.iter().position(|v| !v.is_finite()) {
            Some(index) => Err(self.bad(name, TensorViolation::NotFinite { index, value: values[index] })),
            None => Ok((self.header.tensors[name].shape.clone(), values)),
        }
    }

    /// Checks that the model has a code for every width of this shard's plans.
    pub(super) fn check_codes(&self, codes: &CodeSet) -> Result<(), FormatError> {
        for (name, layer) in &self.matrices {
            if let Some(&width) = layer.histogram.keys().find(|&&w| (1..=6).contains(&w) && codes.get(w).is_none()) {
                return Err(self.bad(&format!("{name}.plan"), TensorViolation::NoCode(width)));
            }
        }
        Ok(())
    }

    pub(super) fn damaged(&self, violation: Violation) -> FormatError {
        FormatError::Damaged { path: self.path.clone(), violation }
    }
}

/// True if this shard is complete and unaltered.
pub fn shard_is_complete(path: &Path) -> bool {
    ShardFile::open(path).is_ok_and(|shard| shard.verify().is_ok())
}
