//! The trellis of a linear code: states, their reductions and the rows that each step settles, derived from the matrices.
//!
//! Path bits are counted in time: bit `u` of the current byte, first row first, is at time `u`, those of the byte before at `u - 8`, those of the
//! one before that at `u - 16`. After row
//! position `i` the times below `path_bits (i + 1)` are known, and the state is the newest of them that any row to come still reads.
use crate::code::{bit_images, LinearCode};

/// A trellis has at least so many state bits, so that the candidates of any step fill vectors of 32 states.
const FEWEST_STATE_BITS: u32 = 7;

/// Most bits that one stage can take out of the words: its decision is stored in two bits.
const MOST_REDUCED_BITS: u32 = 2;

/// One step through the trellis: states get `extend` new low bits and become words, the words pay for the rows that they settle, and of all words
/// that differ in their `reduce` highest bits alone the cheapest survives.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Stage {
    /// Bits of the states before.
    pub state_bits: u32,
    /// New path bits.
    pub extend: u32,
    /// Bits taken off.
    pub reduce: u32,
    /// Row positions whose index the words determine.
    pub rows: Vec<SettledRow>,
}

/// A row position and how its index depends on the words of a stage.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct SettledRow {
    /// Row position in the path byte.
    pub position: usize,
    /// Index contribution of each word bit, lowest (newest) first.
    pub images: Vec<u8>,
}

impl Stage {
    pub(super) fn word_bits(&self) -> u32 {
        self.state_bits + self.extend
    }

    pub(super) fn next_bits(&self) -> u32 {
        self.word_bits() - self.reduce
    }
}

impl SettledRow {
    /// The index of a word.
    pub(super) fn index(&self, word: usize) -> u8 {
        self.images.iter().enumerate().filter(|(bit, _)| word >> bit & 1 == 1).fold(0, |index, (_, image)| index ^ image)
    }
}

/// The times of the first and the last path bit that each row position reads, -16 to 7; `None` where it reads none.
fn reads(code: &LinearCode) -> Vec<Option<(i32, i32)>> {
    let joined = |masks: &[u8]| u32::from(masks.iter().fold(0, |all, mask| all | mask));
    let one = |i: usize| {
        let older = code.d.get(i).map_or(0, |masks| joined(masks));
        let word = older << 16 | joined(&code.c[i]) << 8 | joined(&code.a[i]);
        (word != 0).then(|| (word.leading_zeros() as i32 - 24, 7 - word.trailing_zeros() as i32))
    };
    (0..code.positions()).map(one).collect()
}

/// The stages of one path byte of a valid code. Before the first and after the last the state is the newest 7 or 8 bits of a whole byte, or up to 16 of two.
pub(super) fn stages(code: &LinearCode) -> Vec<Stage> {
    let path_bits = i32::from(code.path_bits);
    let positions = code.positions() as i32;
    let reads = reads(code);
    let settled_at = |row: i32| row.max(reads[row as usize].map_or(0, |(_, last)| last.div_euclid(path_bits)));
    let state_bits_after = |position: i32| {
        let known = path_bits * (position + 1);
        let first = |row: i32| reads[row as usize].map_or(known, |(first, _)| first);
        let here = (0..positions).filter(|&row| settled_at(row) > position).map(first);
        let next = (0..positions).map(|row| first(row) + 8);
        let oldest = here.chain(next).fold(known, i32::min);
        ((known - oldest) as u32).max(FEWEST_STATE_BITS)
    };
    let mut stages = Vec::new();
    let mut state_bits = state_bits_after(positions - 1);
    for position in 0..positions {
        let known = path_bits * (position + 1);
        let (mut extend, next_bits) = (path_bits as u32, state_bits_after(position));
        let mut rows: Vec<SettledRow> = (0..positions)
            .filter(|&row| settled_at(row) == position)
            .map(|row| {
                let current = bit_images(&code.a[row as usize]);
                let previous = bit_images(&code.c[row as usize]);
                let older = code.d.get(row as usize).map_or([0; 8], |masks| bit_images(masks));
                let image = |time: i32| match time {
                    0.. => current[(7 - time) as usize],
                    -8..0 => previous[(-1 - time) as usize],
                    -16..-8 => older[(-9 - time) as usize],
                    _ => 0,
                };
                let images = (0..(state_bits + extend) as i32).map(|bit| image(known - 1 - bit)).collect();
                SettledRow { position: row as usize, images }
            })
            .collect();
        loop {
            let reduce = (state_bits + extend - next_bits).min(MOST_REDUCED_BITS);
            let stage = Stage { state_bits, extend, reduce, rows: std::mem::take(&mut rows) };
            state_bits = stage.next_bits();
            extend = 0;
            stages.push(stage);
            if state_bits == next_bits {
                break;
            }
        }
    }
    stages
}
