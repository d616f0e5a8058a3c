//! A packed matrix: validated once, multiplied many times.
use crate::code::{CodeError, CodeSet, IndexTables};
use crate::cpu::{isa, Isa, IsaError};
use crate::layout::{Geometry, Split, VECTOR};
use crate::product::{Prepared, Product};
use half::f16;
use std::ops::Range;
use std::sync::Arc;

/// Bytes that outlive the matrix: a memory map, or memory with all weights of a model.
pub type Bytes = Arc<dyn AsRef<[u8]> + Send + Sync>;

/// Most in-features of a packed matrix: column indices are 16 bits wide, and integer sums over so many columns fit 32 bits.
pub const MAX_IN_FEATURES: usize = 1 << 16;

/// An entry stored exactly: added to the packed product.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Exception {
    /// Out-feature.
    pub row: u32,
    /// In-feature.
    pub column: u16,
    /// Difference to the coded value, in units of the matrix scale.
    pub value: f16,
}

/// Everything the file holds of one matrix `V [out_features x in_features]`:
/// `V[r][j] = scale * row_scale[r] * col_scale[j] * unit * level(r, j) + scale * exception(r, j)`, width 16: `scale * exact[j][r]` plus
/// exceptions. `unit` is the code's ([`crate::code::LinearCode::unit`]), 1 at width 8. Columns of width 0 are zero plus exceptions.
#[derive(Clone)]
pub struct Parts {
    /// Rows.
    pub out_features: usize,
    /// Width of each in-feature's column: 0 to 6, 8 or 16.
    pub widths: Vec<u8>,
    /// One factor for everything.
    pub scale: f32,
    /// The runs, see [`crate::layout`].
    pub codes: Bytes,
    /// Where in `codes` this matrix stands.
    pub range: Range<usize>,
    /// Column scales in run order (widths 1 to 6 and 8), without padding.
    pub col_scale: Vec<f16>,
    /// Row scales.
    pub row_scale: Vec<f16>,
    /// Columns of width 16 in ascending in-feature order, each `out_features` values.
    pub exact: Vec<f16>,
    /// Sorted by row, then column; no duplicates.
    pub exceptions: Vec<Exception>,
}

/// Why parts do not make a matrix.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum PackError {
    /// A side of the matrix is 0.
    #[error("the matrix is {rows} x {columns}: empty")]
    Empty {
        /// Rows.
        rows: usize,
        /// Columns.
        columns: usize,
    },
    /// A width that the format does not have.
    #[error("column {column} has width {width}, must be 0 to 6, 8 or 16")]
    Width {
        /// In-feature.
        column: usize,
        /// Its width.
        width: u8,
    },
    /// More rows, columns or bytes than the format can address.
    #[error("a matrix of {rows} x {columns} is too large")]
    TooLarge {
        /// Rows.
        rows: usize,
        /// Columns.
        columns: usize,
    },
    /// Columns of a width for which the file has no code.
    #[error("there are columns of width {0} but no code of that width")]
    MissingCode(u8),
    /// A code with broken tables.
    #[error("the code of width {width}: {error}")]
    Code {
        /// Its width.
        width: u8,
        /// What is wrong with it.
        error: CodeError,
    },
    /// A code in another width's place.
    #[error("the code of width {width} has {bits} bits a row")]
    CodeWidth {
        /// The width it stands for.
        width: u8,
        /// Its bits.
        bits: u8,
    },
    /// The range does not lie within the bytes.
    #[error("bytes {start}..{end} lie outside of the {available} bytes there are")]
    Range {
        /// First byte.
        start: usize,
        /// End.
        end: usize,
        /// Bytes there are.
        available: usize,
    },
    /// A tensor of the wrong length.
    #[error("{tensor} has {found} entries, must have {expected}")]
    Length {
        /// Field of [`Parts`] or argument.
        tensor: &'static str,
        /// Entries found.
        found: usize,
        /// Entries that the widths ask for.
        expected: usize,
    },
    /// A NaN or an infinity.
    #[error("{tensor} holds {value} at {index}")]
    NotFinite {
        /// Field of [`Parts`] or argument.
        tensor: &'static str,
        /// Which entry.
        index: usize,
        /// The entry.
        value: f32,
    },
    /// An exception outside of the matrix.
    #[error("exception {index} is at row {row}, column {column} of a matrix of {rows} x {columns}")]
    ExceptionPlace {
        /// Which exception.
        index: usize,
        /// Its row.
        row: u32,
        /// Its column.
        column: u16,
        /// Rows.
        rows: usize,
        /// Columns.
        columns: usize,
    },
    /// Exceptions out of order or twice the same place.
    #[error("exception {0} does not come after the one before it (order: row, then column)")]
    ExceptionOrder(usize),
    /// `WSRUN_ISA` cannot be satisfied.
    #[error(transparent)]
    Isa(#[from] IsaError),
}

/// A matrix that is multiplied in packed form.
pub struct PackedMatrix {
    parts: Parts,
    geometry: Geometry,
    codes: Arc<CodeSet>,
    prepared: Prepared,
}

impl PackedMatrix {
    /// Checks every length, width and index, so that products need no checks; products take the path of [`crate::cpu::isa`].
    ///
    /// # Errors
    /// The first violation found.
    pub fn new(parts: Parts, codes: Arc<CodeSet>) -> Result<Self, PackError> {
        Self::with_isa(parts, codes, isa()?)
    }

    /// The same with a path of the caller's choice.
    ///
    /// # Errors
    /// The first violation found, or a path that this CPU cannot run.
    pub fn with_isa(parts: Parts, codes: Arc<CodeSet>, isa: Isa) -> Result<Self, PackError> {
        if !isa.is_available() {
            return Err(IsaError::Unavailable(isa).into());
        }
        let geometry = check(&parts, &codes)?;
        let bytes = &(*parts.codes).as_ref()[parts.range.clone()];
        let prepared = Prepared::new(&parts, &geometry, &codes, bytes, isa);
        Ok(PackedMatrix { prepared, parts, geometry, codes })
    }

    /// Rows.
    pub fn out_features(&self) -> usize {
        self.parts.out_features
    }

    /// Columns.
    pub fn in_features(&self) -> usize {
        self.parts.widths.len()
    }

    /// The parts it was made of.
    pub fn parts(&self) -> &Parts {
        &self.parts
    }

    /// Where its bits stand.
    pub fn geometry(&self) -> &Geometry {
        &self.geometry
    }

    /// `y[t][r] = sum_j V[r][j] x[t][j]`: `x` is `tokens x in_features`, `y` `tokens x out_features`, both row-major. Runs on the current rayon pool;
    /// the result does not depend on its size.
    ///
    /// # Panics
    /// If `x` or `y` has another length.
    pub fn multiply(&self, x: &[f32], tokens: usize, y: &mut [f32]) {
        assert_eq!(x.len(), tokens * self.in_features(), "x");
        assert_eq!(y.len(), tokens * self.out_features(), "y");
        Product { parts: &self.parts, geometry: &self.geometry, prepared: &self.prepared, bytes: self.code_bytes() }.multiply(x, tokens, y);
    }

    /// Dense f32 rows `rows` of V, row-major: the oracle, and the way to a dense copy.
    ///
    /// # Panics
    /// If `rows` reaches beyond the matrix or `out` is not `rows.len() * in_features` long.
    pub fn decode(&self, rows: Range<usize>, out: &mut [f32]) {
        let columns = self.in_features();
        assert!(rows.start <= rows.end && rows.end <= self.out_features(), "rows {rows:?}");
        assert_eq!(out.len(), rows.len() * columns, "out");
        let parts = &self.parts;
        out.fill(0.0);
        let mut scales = parts.col_scale.iter();
        for run in &self.geometry.runs {
            let col_scale: Vec<f32> = scales.by_ref().take(run.columns.len()).map(|s| s.to_f32()).collect();
            let levels = RunLevels::new(self, run);
            for (r, out) in rows.clone().zip(out.chunks_exact_mut(columns)) {
                let scale = parts.scale * parts.row_scale[r].to_f32() * levels.unit;
                for (n, (&j, col_scale)) in run.columns.iter().zip(&col_scale).enumerate() {
                    out[j as usize] = scale * col_scale * f32::from(levels.get(r, n));
                }
            }
        }
        let exact = parts.widths.iter().enumerate().filter(|(_, w)| **w == 16);
        for ((j, _), values) in exact.zip(parts.exact.chunks_exact(self.out_features())) {
            for (out, value) in out.chunks_exact_mut(columns).zip(&values[rows.clone()]) {
                out[j] = parts.scale * value.to_f32();
            }
        }
        let first = parts.exceptions.partition_point(|e| (e.row as usize) < rows.start);
        for e in parts.exceptions[first..].iter().take_while(|e| (e.row as usize) < rows.end) {
            out[(e.row as usize - rows.start) * columns + usize::from(e.column)] += parts.scale * e.value.to_f32();
        }
    }

    pub(crate) fn code_bytes(&self) -> &[u8] {
        &(*self.parts.codes).as_ref()[self.parts.range.clone()]
    }
}

/// Random access to the levels of one run.
struct RunLevels<'a> {
    matrix: &'a PackedMatrix,
    run: &'a crate::layout::Run,
    bytes: &'a [u8],
    split: Split,
    /// Absent at width 8.
    code: Option<(&'a crate::code::LinearCode, IndexTables)>,
    unit: f32,
}

impl<'a> RunLevels<'a> {
    fn new(matrix: &'a PackedMatrix, run: &'a crate::layout::Run) -> Self {
        let bytes = matrix.code_bytes();
        let code = matrix.codes.get(run.width).map(|code| (&**code, IndexTables::new(code)));
        let (path_bits, raw_bits) = code.as_ref().map_or((0, 8), |(c, _)| (c.path_bits.into(), c.raw_bits.into()));
        let unit = code.as_ref().map_or(1.0, |(c, _)| c.unit);
        RunLevels { matrix, run, bytes, split: Split { path_bits, raw_bits }, code, unit }
    }

    fn get(&self, row: usize, column: usize) -> i8 {
        let geometry = &self.matrix.geometry;
        let per_vector = geometry.columns_per_vector();
        let width = usize::from(self.run.width);
        let byte = |row: usize, vector: usize| {
            let (lane, block) = (row / geometry.segment, row % geometry.segment / 8);
            let unit = self.run.units.at(block, column / per_vector);
            self.bytes[unit + vector * VECTOR + lane * per_vector + column % per_vector]
        };
        let Some((code, index)) = &self.code else {
            return byte(row, row % 8).wrapping_sub(128) as i8;
        };
        let positions = code.positions();
        let path_byte = |row: usize| byte(row, row % 8 / positions);
        let before = [1, 2].map(|age| if row < age * positions { 0 } else { path_byte(row - age * positions) });
        let mut raw = 0;
        for vector in self.split.path_bits..width {
            raw |= self.split.raw_of_row(vector, byte(row, vector), row % 8);
        }
        let position = row % positions;
        code.level(position, index.get(position, path_byte(row), before), raw)
    }
}

/// Checks parts against each other and against the codes.
fn check(parts: &Parts, codes: &CodeSet) -> Result<Geometry, PackError> {
    let (rows, columns) = (parts.out_features, parts.widths.len());
    if rows == 0 || columns == 0 {
        return Err(PackError::Empty { rows, columns });
    }
    if let Some(column) = parts.widths.iter().position(|w| !matches!(w, 0..=6 | 8 | 16)) {
        return Err(PackError::Width { column, width: parts.widths[column] });
    }
    let too_large = PackError::TooLarge { rows, columns };
    if columns > MAX_IN_FEATURES {
        return Err(too_large);
    }
    let geometry = Geometry::new(rows, &parts.widths).ok_or(too_large.clone())?;
    for width in geometry.runs.iter().map(|r| r.width).filter(|w| *w != 8) {
        let code = codes.get(width).ok_or(PackError::MissingCode(width))?;
        code.validate().map_err(|error| PackError::Code { width, error })?;
        if code.bits() != width {
            return Err(PackError::CodeWidth { width, bits: code.bits() });
        }
    }
    let exact = parts.widths.iter().filter(|w| **w == 16).count().checked_mul(rows).ok_or(too_large)?;
    check_range(&parts.codes, &parts.range)?;
    check_length("codes", parts.range.len(), geometry.bytes)?;
    check_length("col_scale", parts.col_scale.len(), geometry.runs.iter().map(|r| r.columns.len()).sum())?;
    check_length("row_scale", parts.row_scale.len(), rows)?;
    check_length("exact", parts.exact.len(), exact)?;
    check_finite("scale", std::iter::once(parts.scale))?;
    check_finite("col_scale", parts.col_scale.iter().map(|v| v.to_f32()))?;
    check_finite("row_scale", parts.row_scale.iter().map(|v| v.to_f32()))?;
    check_finite("exact", parts.exact.iter().map(|v| v.to_f32()))?;
    check_finite("exceptions", parts.exceptions.iter().map(|e| e.value.to_f32()))?;
    for (index, e) in parts.exceptions.iter().enumerate() {
        if e.row as usize >= rows || usize::from(e.column) >= columns {
            return Err(PackError::ExceptionPlace { index, row: e.row, column: e.column, rows, columns });
        }
    }
    if let Some(before) = parts.exceptions.windows(2).position(|e| (e[0].row, e[0].column) >= (e[1].row, e[1].column)) {
        return Err(PackError::ExceptionOrder(before + 1));
    }
    Ok(geometry)
}

pub(crate) fn check_range(bytes: &Bytes, range: &Range<usize>) -> Result<(), PackError> {
    let available = (**bytes).as_ref().len();
    if range.start > range.end || range.end > available {
        return Err(PackError::Range { start: range.start, end: range.end, available });
    }
    Ok(())
}

pub(crate) fn check_length(tensor: &'static str, found: usize, expected: usize) -> Result<(), PackError> {
    if found == expected {
        Ok(())
    } else {
        Err(PackError::Length { tensor, found, expected })
    }
}

pub(crate) fn check_finite(tensor: &'static str, values: impl Iterator<Item = f32>) -> Result<(), PackError> {
    match values.enumerate().find(|(_, v)| !v.is_finite()) {
        Some((index, value)) => Err(PackError::NotFinite { tensor, index, value }),
        None => Ok(()),
    }
}
