//! Row blocks of a panel, as the kernels read them.
use super::inputs::{Inputs, Section};
use super::prefetch::{Ahead, Lines};
use super::tables::Tables;
use crate::layout::{Units, VECTOR};
use std::ops::Range;

/// Some row blocks of a panel of a run.
#[derive(Clone)]
pub(crate) struct Blocks<'a> {
    /// First unit of the panel.
    pub codes: *const u8,
    /// Row blocks.
    pub blocks: Range<usize>,
    /// Bytes of one.
    pub block_bytes: usize,
    /// Column groups of the run.
    pub groups: Range<usize>,
    /// What is read after the row blocks.
    pub ahead: Ahead,
    /// Path vectors of the two row blocks before those that are multiplied next. They lie elsewhere, and so far apart that the CPU does not foresee them. Asked for in time,
    /// 4096 x 4096, two threads: 1.10 times as fast at 3 and 4 bits (Sapphire Rapids class Xeon).
    pub before_next: Lines,
    /// Path vectors one and two path bytes before those of the first row block, by column group of the run ([`before_first`]). Read only if the code reads a second, or a third
    /// path byte.
    pub before_first: [*const u8; 2],
    /// The code.
    pub tables: &'a Tables,
}

impl Blocks<'_> {
    /// For `PATH` path bits and `RAW` raw bits.
    #[inline(always)]
    pub(super) fn block<const PATH: usize, const RAW: usize>(&self, block: usize) -> Block {
        let unit_bytes = (PATH + RAW) * VECTOR;
        let codes = |block: usize| self.codes.wrapping_add(block * self.block_bytes);
        // A code that reads a third byte has one path vector a unit, so that two bytes ago is two row blocks ago.
        let before = |age: usize| match block.checked_sub(age) {
            Some(before) => (codes(before).wrapping_add(PATH.saturating_sub(1) * VECTOR), unit_bytes),
            None => (self.before_first[age - 1 - block].wrapping_add(self.groups.start * VECTOR), VECTOR),
        };
        let ((previous, previous_step), (older, older_step)) = (before(1), before(2));
        Block { codes: codes(block), ahead: self.ahead, previous, previous_step, older, older_step }
    }

    /// Column groups of each section of the panel, counted from its first one, and the section of the run.
    #[inline(always)]
    pub fn sections(&self, lanes: usize) -> impl Iterator<Item = (usize, Range<usize>)> {
        let (first, groups) = (self.groups.start / lanes, self.groups.len());
        (0..groups.div_ceil(lanes)).map(move |n| (first + n, n * lanes..groups.min((n + 1) * lanes)))
    }

    /// The inputs of one token and the column groups of the panel that have activations there. They are the same for all row blocks: found again for each
    /// of them, 2 bits took 1.03 times as long (light codes, plain AVX2, Zen 4).
    pub(super) fn strips(&self, x: &Inputs) -> Vec<(Section, Range<usize>)> {
        let mut strips = Vec::new();
        for (section, groups) in self.sections(x.lanes) {
            for x in x.of_section(section).map(|input| x.section(input)).filter(|x| x.scale != 0.0) {
                strips.push(x.trim(groups.clone()));
            }
        }
        strips
    }
}

/// One of the row blocks.
#[derive(Clone, Copy)]
pub(super) struct Block {
    /// First unit.
    pub codes: *const u8,
    pub ahead: Ahead,
    /// Path vectors one path byte before, and bytes from one column group's to the next.
    previous: *const u8,
    pub previous_step: usize,
    /// The same two path bytes before.
    older: *const u8,
    pub older_step: usize,
}

impl Block {
    /// Previous and older vectors of a column group of the panel.
    #[inline(always)]
    pub fn before(&self, group: usize, at: usize) -> [*const u8; 2] {
        [self.previous.wrapping_add(group * self.previous_step + at), self.older.wrapping_add(group * self.older_step + at)]
    }
}

/// The path vectors `age` path bytes before those of the first row block: each lane continues the lane before it, the first one follows zeros. `codes`:
/// those of the matrix.
pub(crate) fn before_first(codes: &[u8], units: &Units, lanes: usize, path_bits: usize, age: usize) -> Vec<u8> {
    let per_lane = units.blocks * path_bits;
    let columns = VECTOR / lanes;
    let mut vectors = Vec::with_capacity(units.groups * VECTOR);
    for group in 0..units.groups {
        for lane in 0..lanes {
            let Some(byte) = (lane * per_lane).checked_sub(age) else {
                vectors.resize(vectors.len() + columns, 0);
                continue;
            };
            let (lane, byte) = (byte / per_lane, byte % per_lane);
            let vector = units.at(byte / path_bits, group) + byte % path_bits * VECTOR;
            vectors.extend_from_slice(&codes[vector + lane * columns..][..columns]);
        }
    }
    vectors
}
