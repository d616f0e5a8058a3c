//! 8-bit rows: embedding tables and heads. Row `r` is `scale[r] * q[r][..]`, q int8 in -127..=127.
use crate::packed::{Bytes, PackError};
use half::f16;
use std::ops::Range;

/// An int8 matrix `rows x columns` with one f16 scale a row, times one f32 scale.
pub struct Rows8 {
    #[allow(dead_code)]
    rows: usize,
    #[allow(dead_code)]
    columns: usize,
}

impl Rows8 {
    /// `q[range]` holds `rows * columns` int8 values, row-major; `scales` one a row.
    pub fn new(_rows: usize, _columns: usize, _q: Bytes, _range: Range<usize>, _scales: Vec<f16>, _scale: f32) -> Result<Self, PackError> {
        todo!()
    }
    /// Quantizes a dense row-major table: absmax a row. Returns int8 bytes, row scales and the common scale.
    pub fn quantize(_dense: &[f32], _columns: usize) -> (Vec<i8>, Vec<f16>, f32) {
        todo!()
    }
    /// Rows.
    pub fn rows(&self) -> usize {
        self.rows
    }
    /// Columns.
    pub fn columns(&self) -> usize {
        self.columns
    }
    /// One dense row.
    pub fn row(&self, _r: usize, _out: &mut [f32]) {
        todo!()
    }
    /// `y[t][r] = row r . x[t]`.
    pub fn multiply(&self, _x: &[f32], _tokens: usize, _y: &mut [f32]) {
        todo!()
    }
}
