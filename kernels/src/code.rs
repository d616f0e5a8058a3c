//! The linear trellis code: how path bits and raw bits become a level.
use std::sync::Arc;

/// A code whose level index is a GF(2)-linear function of the last two path bytes.
///
/// A path byte holds `8 / path_bits` rows, first row in the highest bits. Row position `i` of byte `B_t` has
/// `index = A_i B_t xor C_i B_{t-1}` and the value `unit * levels[i or 0][raw << index_bits | index]`.
/// Scalar codes are the special case where `A_i` picks the row's own path bits and `C_i = 0`.
#[derive(Debug, Clone, PartialEq)]
pub struct LinearCode {
    /// Path bits a row, 1 or 2.
    pub path_bits: u8,
    /// Raw bits a row: they pick among `2^raw_bits` levels of the subset that the index selects.
    pub raw_bits: u8,
    /// Bits of the level index, at most 8 together with `raw_bits`.
    pub index_bits: u8,
    /// `a[i][j]`: mask over `B_t` whose parity is bit `index_bits - 1 - j` of the index at row position `i`.
    pub a: Vec<Vec<u8>>,
    /// The same over `B_{t-1}`.
    pub c: Vec<Vec<u8>>,
    /// One table of `2^(raw_bits + index_bits)` levels, or one for each row position.
    pub levels: Vec<Vec<i8>>,
    /// Value of one level step for a unit-variance column.
    pub unit: f32,
}

/// What is wrong with a code's tables.
#[derive(Debug, thiserror::Error)]
pub enum CodeError {}

impl LinearCode {
    /// Bits a row: path and raw together.
    pub fn bits(&self) -> u8 {
        self.path_bits + self.raw_bits
    }
    /// Checks sizes and ranges; every kernel relies on them.
    pub fn validate(&self) -> Result<(), CodeError> {
        todo!()
    }
    /// Fixed-width scalar levels (Lloyd-Max for a unit Gaussian, rounded to int8), 1 to 6 bits.
    pub fn scalar(_bits: u8) -> Self {
        todo!()
    }
    /// Values of a column's rows from its path bytes (`rows * path_bits / 8`, rounded up) and raw values (one a row).
    pub fn decode(&self, _path: &[u8], _raw: &[u8], _out: &mut [f32]) {
        todo!()
    }
}

/// The codes of a file by width in bits (1 to 6).
#[derive(Debug, Clone, Default, PartialEq)]
pub struct CodeSet {
    /// `codes[k]`: the code of width `k`, if the file has one.
    pub codes: [Option<Arc<LinearCode>>; 7],
}

impl CodeSet {
    /// Scalar codes for all widths from 1 to 6.
    pub fn scalar() -> Self {
        todo!()
    }
}
