//! A packed matrix: validated once, multiplied many times.
use crate::code::CodeSet;
use crate::layout::Geometry;
use half::f16;
use std::ops::Range;
use std::sync::Arc;

/// Bytes that outlive the matrix, usually a memory map.
pub type Bytes = Arc<dyn AsRef<[u8]> + Send + Sync>;

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
/// `V[r][j] = scale * row_scale[r] * col_scale[j] * unit * level(r, j) + scale * exception(r, j)`, width 16: `scale * exact[j][r]`.
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
#[derive(Debug, thiserror::Error)]
pub enum PackError {}

/// A matrix that is multiplied in packed form.
pub struct PackedMatrix {
    #[allow(dead_code)]
    parts: Parts,
    #[allow(dead_code)]
    geometry: Geometry,
    #[allow(dead_code)]
    codes: Arc<CodeSet>,
}

impl PackedMatrix {
    /// Checks every length, width and index, so that products need no checks.
    pub fn new(_parts: Parts, _codes: Arc<CodeSet>) -> Result<Self, PackError> {
        todo!()
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
    /// `y[t][r] = sum_j V[r][j] x[t][j]`: `x` is `tokens x in_features`, `y` `tokens x out_features`, both row-major. Runs on the current rayon pool;
    /// the result does not depend on its size.
    pub fn multiply(&self, _x: &[f32], _tokens: usize, _y: &mut [f32]) {
        todo!()
    }
    /// Dense f32 rows `rows` of V, row-major: the oracle, and the way to a dense copy.
    pub fn decode(&self, _rows: Range<usize>, _out: &mut [f32]) {
        todo!()
    }
}
