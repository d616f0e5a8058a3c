//! Where the bits of a column stand in memory.
//!
//! Columns of one width `k` form a *run*, in ascending order of width, then of in-feature. Rows are split into `lanes`
//! contiguous segments (a power of two up to 16, chosen by [`Geometry::new`] so that padding is least, then lanes most). A 64-byte
//! vector holds `lanes` lanes x `64 / lanes` columns: byte `lane * (64 / lanes) + column`. A run's columns are padded to a
//! multiple of `64 / lanes`. A run is `[row block of 8 rows a lane][column group][k vectors]`; the k vectors of a unit are,
//! for its 8 rows a lane: `path_bits` path bytes; then for every pair of raw bits two vectors (rows 0..4 and 4..8,
//! two bits a row, first row highest; pair 0 holds raw bits 1..0); then, if `raw_bits` is odd, one vector with the top raw bit (first row
//! highest). Width 8: eight vectors, one a row, byte = level + 128. Lane `l` starts from the last path byte of lane `l-1`, lane 0 from 0.
//! Width 16 (exact f16) and width 0 are not in the runs.

/// Geometry of the packed codes of one matrix.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Geometry {
    /// Rows, unpadded.
    pub out_features: usize,
    /// Contiguous row segments: 1, 2, 4, 8 or 16.
    pub lanes: usize,
    /// Rows a lane, a multiple of 8; `lanes * segment` is the padded row count.
    pub segment: usize,
    /// Runs in ascending order of width.
    pub runs: Vec<Run>,
    /// Bytes of all runs.
    pub bytes: usize,
}

/// The columns of one width.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Run {
    /// Bits a weight: 1 to 6, or 8.
    pub width: u8,
    /// In-feature of each column, ascending; without the padding columns.
    pub columns: Vec<u32>,
    /// Column groups of `64 / lanes` columns, the last one padded.
    pub groups: usize,
    /// Byte offset of the run in the codes.
    pub offset: usize,
}

impl Geometry {
    /// Geometry of a matrix with these column widths (each of 0..=6, 8 or 16). `None` where sizes overflow or a width is unknown.
    pub fn new(_out_features: usize, _widths: &[u8]) -> Option<Self> {
        todo!()
    }
    /// Columns of one 64-byte vector: runs are padded to a multiple of it.
    pub fn columns_per_vector(&self) -> usize {
        64 / self.lanes
    }
    /// `lanes * segment`: the length that an encoder must encode.
    pub fn padded_rows(&self) -> usize {
        self.lanes * self.segment
    }
    /// Lanes and segment for a row count alone.
    pub fn lanes_for(_out_features: usize) -> (usize, usize) {
        todo!()
    }
}

/// One encoded column, in row order over the padded rows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Column {
    /// Path bytes: `padded_rows * path_bits / 8`; empty at width 8.
    pub path: Vec<u8>,
    /// One raw value a row (empty if the code has no raw bits); at width 8 the byte `level + 128`.
    pub raw: Vec<u8>,
}

/// Writes encoded columns into the codes of one matrix.
/// `columns[r][i]` belongs to `geometry.runs[r].columns[i]`; `path_bits(width)` says how a width splits. Padding is zero bytes.
pub fn pack(_geometry: &Geometry, _codes: &crate::code::CodeSet, _columns: &[Vec<Column>]) -> Vec<u8> {
    todo!()
}
