//! Where the bits of a column stand in memory.
//!
//! Columns of one width `k` form a *run*, in ascending order of width, then of in-feature. Rows are split into `lanes`
//! contiguous segments (a power of two up to 16, chosen by [`Geometry::lanes_for`] so that padding is least, then lanes most). A 64-byte
//! vector holds `lanes` lanes x `64 / lanes` columns: byte `lane * (64 / lanes) + column`. A run's columns are padded to a
//! multiple of `64 / lanes`. A run is `[panel of column groups][row block of 8 rows a lane][column group][k vectors]`: a row block of a panel has at most
//! [`PANEL`] bytes, so that the path bytes of the two row blocks before are still in the first-level cache when they are read again, and memory is read in order.
//! The k vectors of a unit are, for its 8 rows a lane: `path_bits` path bytes; then for every pair of raw bits two vectors (rows 0..4 and 4..8,
//! two bits a row, first row highest; pair 0 holds raw bits 1..0); then, if `raw_bits` is odd, one vector with the top raw bit (first row
//! highest). Width 8: eight vectors, one a row, byte = level + 128. Lane `l` starts from the last path byte of lane `l-1`, lane 0 from 0.
//! Width 16 (exact f16) and width 0 are not in the runs.
use crate::code::CodeSet;
use rayon::prelude::*;
use std::ops::Range;

/// Bytes of a vector of the layout.
pub const VECTOR: usize = 64;

/// Bytes of a row block of a panel at most, unless 64 columns have more.
pub const PANEL: usize = 8192;

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
    /// Where its units stand.
    pub units: Units,
}

/// Where the units of a run stand, each 8 rows a lane of one column group.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Units {
    /// Byte offset of the run in the codes.
    pub offset: usize,
    /// Row blocks.
    pub blocks: usize,
    /// Column groups of `64 / lanes` columns, the last one padded.
    pub groups: usize,
    /// Column groups of a panel; the last panel may have fewer.
    pub panel: usize,
    /// Bytes of a unit: a vector for each bit of a weight.
    pub bytes: usize,
}

impl Units {
    /// `None` where sizes overflow.
    fn new(offset: usize, lanes: usize, blocks: usize, columns: usize, width: u8) -> Option<Self> {
        let bytes = usize::from(width) * VECTOR;
        // Whole sections of 64 columns.
        let panel = (PANEL / (lanes * bytes)).max(1) * lanes;
        let units = Units { offset, blocks, groups: columns.div_ceil(VECTOR / lanes), panel, bytes };
        blocks.checked_mul(units.groups)?.checked_mul(bytes)?.checked_add(offset)?;
        Some(units)
    }

    /// Bytes of all of them.
    pub fn len(&self) -> usize {
        self.blocks * self.groups * self.bytes
    }

    /// True if there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The panels, in order.
    pub fn panels(self) -> impl Iterator<Item = Panel> {
        let panel = move |first: usize| {
            let groups = first..self.groups.min(first + self.panel);
            Panel { offset: self.offset + first * self.blocks * self.bytes, block_bytes: groups.len() * self.bytes, groups }
        };
        (0..self.groups).step_by(self.panel).map(panel)
    }

    /// Where the unit of a row block and a column group stands in the codes.
    pub fn at(&self, block: usize, group: usize) -> usize {
        let first = group - group % self.panel;
        let groups = self.panel.min(self.groups - first);
        self.offset + (first * self.blocks + block * groups + group - first) * self.bytes
    }
}

/// A panel of a run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Panel {
    /// Column groups.
    pub groups: Range<usize>,
    /// Byte offset in the codes.
    pub offset: usize,
    /// Bytes of a row block.
    pub block_bytes: usize,
}

impl Panel {
    /// Where some row blocks stand in the codes.
    #[inline]
    pub fn blocks(&self, blocks: Range<usize>) -> Range<usize> {
        self.offset + blocks.start * self.block_bytes..self.offset + blocks.end * self.block_bytes
    }
}

impl Geometry {
    /// Geometry of a matrix with these column widths (each of 0..=6, 8 or 16). `None` where sizes overflow or a width is unknown.
    pub fn new(out_features: usize, widths: &[u8]) -> Option<Self> {
        u32::try_from(out_features).ok()?;
        u32::try_from(widths.len()).ok()?;
        let (lanes, segment) = Self::lanes_for(out_features);
        if widths.iter().any(|w| !matches!(w, 0..=6 | 8 | 16)) {
            return None;
        }
        let (mut runs, mut offset) = (Vec::new(), 0usize);
        for width in [1, 2, 3, 4, 5, 6, 8] {
            let columns: Vec<u32> = (0u32..).zip(widths).filter(|(_, w)| **w == width).map(|(j, _)| j).collect();
            if columns.is_empty() {
                continue;
            }
            let units = Units::new(offset, lanes, segment / 8, columns.len(), width)?;
            offset += units.len();
            runs.push(Run { width, columns, units });
        }
        isize::try_from(offset).ok()?;
        Some(Geometry { out_features, lanes, segment, runs, bytes: offset })
    }

    /// Columns of one 64-byte vector: runs are padded to a multiple of it.
    pub fn columns_per_vector(&self) -> usize {
        VECTOR / self.lanes
    }

    /// `lanes * segment`: the length that an encoder must encode.
    pub fn padded_rows(&self) -> usize {
        self.lanes * self.segment
    }

    /// Row blocks of 8 rows a lane.
    pub fn blocks(&self) -> usize {
        self.segment / 8
    }

    /// Lanes and segment for a row count alone.
    pub fn lanes_for(out_features: usize) -> (usize, usize) {
        // Ties go to the first, the one with the most lanes.
        let choices = [16, 8, 4, 2, 1].map(|lanes| (lanes, out_features.div_ceil(8 * lanes) * 8));
        choices.into_iter().min_by_key(|(lanes, segment)| lanes * segment).unwrap_or((1, 0))
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

/// How the vectors of a unit divide between path and raw bits.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Split {
    /// Path vectors of a unit, and path bits a row; 0 at width 8.
    pub path_bits: usize,
    /// Raw bits a row.
    pub raw_bits: usize,
}

impl Split {
    pub(crate) fn of(width: u8, codes: &CodeSet) -> Option<Self> {
        if width == 8 {
            return Some(Split { path_bits: 0, raw_bits: 8 });
        }
        let code = codes.get(width)?;
        Some(Split { path_bits: code.path_bits.into(), raw_bits: code.raw_bits.into() })
    }

    /// Byte `vector` of one column's unit from its path bytes and its 8 raw values.
    fn byte(self, vector: usize, path: &[u8], raw: &[u8]) -> u8 {
        if self.raw_bits == 8 {
            return raw[vector];
        }
        match self.raw_part(vector) {
            None => path[vector],
            Some((rows, shift, bits)) => raw[rows].iter().fold(0, |byte, r| byte << bits | (r >> shift & ((1 << bits) - 1))),
        }
    }

    /// Puts what byte `vector` of a unit holds into its path bytes and raw values, which start as zeros.
    fn put(self, vector: usize, byte: u8, path: &mut [u8], raw: &mut [u8]) {
        if self.raw_bits == 8 {
            raw[vector] = byte;
            return;
        }
        if vector < self.path_bits {
            path[vector] = byte;
            return;
        }
        for (row, r) in raw.iter_mut().enumerate() {
            *r |= self.raw_of_row(vector, byte, row);
        }
    }

    /// What byte `vector` of a unit adds to the raw value of row `row` (0 to 7) of the unit.
    pub(crate) fn raw_of_row(self, vector: usize, byte: u8, row: usize) -> u8 {
        match self.raw_part(vector) {
            Some((rows, shift, bits)) if rows.contains(&row) => (byte >> (8 - bits * (row - rows.start + 1)) & ((1 << bits) - 1)) << shift,
            _ => 0,
        }
    }

    /// Which rows, from which raw bit and how many bits a row a vector of raw bits holds; `None` for a path vector.
    fn raw_part(self, vector: usize) -> Option<(Range<usize>, usize, usize)> {
        let v = vector.checked_sub(self.path_bits)?;
        let pairs = self.raw_bits / 2;
        Some(if v < 2 * pairs { (v % 2 * 4..v % 2 * 4 + 4, v / 2 * 2, 2) } else { (0..8, self.raw_bits - 1, 1) })
    }
}

/// Writes encoded columns into the codes of one matrix, on the current rayon pool.
/// `columns[r][i]` belongs to `geometry.runs[r].columns[i]`; `codes` says how a width splits into path and raw bits. Padding is zero bytes.
///
/// # Panics
/// If a column is missing or has another length than [`Column`] asks for, or `codes` lacks a width.
pub fn pack(geometry: &Geometry, codes: &CodeSet, columns: &[Vec<Column>]) -> Vec<u8> {
    let mut bytes = vec![0; geometry.bytes];
    let per_vector = geometry.columns_per_vector();
    let mut rest = bytes.as_mut_slice();
    assert_eq!(columns.len(), geometry.runs.len(), "runs");
    for (run, columns) in geometry.runs.iter().zip(columns) {
        let split = Split::of(run.width, codes).unwrap_or_else(|| panic!("no code of width {}", run.width));
        assert_eq!(columns.len(), run.columns.len(), "columns of width {}", run.width);
        let units = run.units;
        let (own, others) = rest.split_at_mut(units.len());
        rest = others;
        let panels = own.par_chunks_mut(units.panel * units.blocks * units.bytes).zip(units.panels().collect::<Vec<_>>());
        let blocks = panels.flat_map(|(out, panel)| {
            let blocks = out.par_chunks_mut(panel.block_bytes).enumerate();
            blocks.map(move |(block, out)| (panel.groups.clone(), block, out))
        });
        blocks.for_each(|(groups, block, out)| {
            let columns = &columns[groups.start * per_vector..columns.len().min(groups.end * per_vector)];
            for (j, column) in columns.iter().enumerate() {
                let unit = &mut out[j / per_vector * units.bytes..];
                for lane in 0..geometry.lanes {
                    let row = lane * geometry.segment + block * 8;
                    let path = &column.path[row * split.path_bits / 8..][..split.path_bits];
                    let raw = if split.raw_bits == 0 { &[] } else { &column.raw[row..row + 8] };
                    for vector in 0..run.width.into() {
                        unit[vector * VECTOR + lane * per_vector + j % per_vector] = split.byte(vector, path, raw);
                    }
                }
            }
        });
    }
    bytes
}

/// Reads column `column` of run `run` back: the inverse of [`pack`].
///
/// # Panics
/// If `bytes` is shorter than the geometry asks for, the indices are out of range or `codes` lacks the width.
pub fn unpack(geometry: &Geometry, codes: &CodeSet, bytes: &[u8], run: usize, column: usize) -> Column {
    let run = &geometry.runs[run];
    let split = Split::of(run.width, codes).unwrap_or_else(|| panic!("no code of width {}", run.width));
    let per_vector = geometry.columns_per_vector();
    let rows = geometry.padded_rows();
    let mut out = Column { path: vec![0; rows * split.path_bits / 8], raw: vec![0; if split.raw_bits == 0 { 0 } else { rows }] };
    for block in 0..geometry.blocks() {
        let unit = &bytes[run.units.at(block, column / per_vector)..];
        for lane in 0..geometry.lanes {
            let row = lane * geometry.segment + block * 8;
            let path = &mut out.path[row * split.path_bits / 8..][..split.path_bits];
            let raw = if split.raw_bits == 0 { &mut [][..] } else { &mut out.raw[row..row + 8] };
            for vector in 0..run.width.into() {
                split.put(vector, unit[vector * VECTOR + lane * per_vector + column % per_vector], path, raw);
            }
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lanes_give_least_padding_then_most_lanes() {
        assert_eq!(Geometry::lanes_for(4096), (16, 256));
        assert_eq!(Geometry::lanes_for(576), (8, 72));
        assert_eq!(Geometry::lanes_for(192), (8, 24));
        assert_eq!(Geometry::lanes_for(100), (1, 104));
        assert_eq!(Geometry::lanes_for(1), (1, 8));
        assert_eq!(Geometry::lanes_for(121), (16, 8));
    }

    #[test]
    fn runs_are_sorted_and_padded() {
        let g = Geometry::new(576, &[3, 0, 2, 16, 2, 8, 3, 2]).unwrap();
        let widths: Vec<u8> = g.runs.iter().map(|r| r.width).collect();
        assert_eq!(widths, [2, 3, 8]);
        assert_eq!(g.runs[0].columns, [2, 4, 7]);
        assert_eq!(g.runs[1].columns, [0, 6]);
        assert_eq!(g.runs[1].units.offset, 9 * 2 * 64);
        assert_eq!(g.bytes, 9 * (2 + 3 + 8) * 64);
    }

    #[test]
    fn impossible_geometries_are_refused() {
        assert_eq!(Geometry::new(64, &[7]), None);
        assert_eq!(Geometry::new(64, &[9]), None);
        assert_eq!(Geometry::new(usize::MAX, &[1]), None);
        assert_eq!(Geometry::new(1 << 40, &[8; 100]), None);
    }

    #[test]
    fn first_row_is_highest_and_lanes_are_segments() {
        // One column of width 5 (2 path bits, 3 raw bits), 128 rows: lane 3 holds rows 24..32.
        let codes = CodeSet::scalar();
        let g = Geometry::new(128, &[5]).unwrap();
        let mut column = Column { path: vec![0; 32], raw: vec![0; 128] };
        column.path[6] = 0xC1; // rows 24..28
        column.path[7] = 0x02; // rows 28..32
        column.raw[24] = 0b110;
        column.raw[31] = 0b101;
        let bytes = pack(&g, &codes, &[vec![column.clone()]]);
        let at = |vector: usize| bytes[vector * 64 + 3 * 4];
        assert_eq!([at(0), at(1), at(2), at(3), at(4)], [0xC1, 0x02, 0b1000_0000, 0b0000_0001, 0b1000_0001]);
        assert_eq!(bytes.iter().filter(|b| **b != 0).count(), 5);
        assert_eq!(unpack(&g, &codes, &bytes, 0, 0), column);
    }
}
