//! Levels of the rows of a unit: path and raw bits through linear maps to indices, and those through tables.
use super::tables::{Reads, Tables};
use super::vector::Vector;
use crate::layout::VECTOR;

pub(super) const NIBBLE: usize = Reads::Nibble as usize;
pub(super) const TWO_BYTES: usize = Reads::TwoBytes as usize;
pub(super) const NIBBLES: usize = Reads::Nibbles as usize;
pub(super) const WINDOW: usize = Reads::Window as usize;
pub(super) const THREE_BYTES: usize = Reads::ThreeBytes as usize;

/// Bits of the largest index of which two rows' stand in one byte: that of an even row in the low nibble.
pub(super) const PAIRED: usize = 4;

/// In place of index bits: two rows' indices of the first table stand in one byte, and two of the second one in another.
pub(super) const SUMMED: usize = 9;

/// In place of index bits: 8, and a table for each row position.
pub(super) const OWN_TABLES: usize = 10;

/// True if indices of the second table have 3 bits, not 4.
pub(super) const fn narrow(raw: usize) -> bool {
    raw < 3
}

/// True if the levels of two rows are looked up at once.
pub(super) const fn two_rows(bits: usize) -> bool {
    bits <= PAIRED || bits == SUMMED
}

/// True if [`Sources::first`] has bits of pair 0, not the top raw bit.
pub(super) const fn first_has_pairs(raw: usize, bits: usize) -> bool {
    raw >= 2 && (raw.is_multiple_of(2) || bits != SUMMED)
}

/// True if bytes are put together of what rows read of several, so that two linear maps, or three, take it all in.
const fn merges<T: Vector, const RAW: usize, const READS: usize>() -> bool {
    T::MERGES && (READS == NIBBLES || READS == WINDOW) && RAW > 0
}

/// What the rows of one half of a unit are made of, as linear maps read it; what a code does not read is anything.
#[derive(Clone, Copy)]
pub(super) struct Sources<S> {
    current: S,
    /// Of the first half, where bytes are merged: the current path nibble, below it the raw bits of rows 0 and 1, and of rows 2 and 3, that stand in one nibble: those of pair 0, or
    /// the top one (see [`first_has_pairs`]).
    pub first: [S; 2],
    /// Of rows 0 and 1, of row 2 and of row 3 of the half, where bytes are merged and there are three raw bits or more: those that are not in `first`, and the older path bits. With
    /// 5 raw bits the top one of rows 2 and 3 only.
    pub second: [S; 3],
    previous: S,
    older: S,
    /// Raw bits `2p + 1, 2p` of four rows.
    pairs: [S; 2],
    /// The top raw bit of eight rows, if raw bits are odd.
    top: S,
}

/// Loads what half `half` of a unit is made of.
#[inline(always)]
pub(super) unsafe fn sources<T: Vector, const PATH: usize, const RAW: usize, const READS: usize, const BITS: usize>(
    unit: *const u8,
    [previous, older]: [*const u8; 2],
    half: usize,
) -> Sources<T::Split> {
    let current = T::split(T::load(unit.add(if PATH == 2 { half * VECTOR } else { 0 })));
    let raw = |vector: usize| T::split(T::load(unit.add((PATH + vector) * VECTOR)));
    let pairs = [if RAW >= 2 { raw(half) } else { current }, if RAW >= 4 { raw(2 + half) } else { current }];
    let mut sources = Sources {
        current,
        first: [current; 2],
        second: [current; 3],
        previous: if READS == NIBBLE { current } else { T::split(T::load(if PATH == 2 && half == 1 { unit } else { previous })) },
        older: if READS == NIBBLE || READS == NIBBLES || READS == TWO_BYTES { current } else { T::split(T::load(older)) },
        pairs,
        top: if RAW % 2 == 1 { raw(RAW - 1) } else { current },
    };
    if merges::<T, RAW, READS>() {
        let Sources { older, top, .. } = sources;
        if half == 0 {
            sources.first = match first_has_pairs(RAW, BITS) {
                true => [T::merge::<0x0F>(current, T::down(pairs[0])), T::merge::<0x0F>(current, pairs[0])],
                false => [T::merge::<0x0F>(current, T::down(top)); 2],
            };
        }
        sources.second = match (half, RAW) {
            (0, 3) => [T::merge::<0x0F>(top, older); 3],
            // Row 2 reads one older bit, and its raw ones are bits 2 and 3.
            (0, 4) => [T::merge::<0x0F>(pairs[1], older), T::merge::<0x03>(pairs[1], older), pairs[1]],
            (0, 5) => {
                let last = T::merge::<0x0F>(top, pairs[1]);
                [T::merge::<0x0F>(pairs[1], older), T::merge::<0x03>(last, older), last]
            }
            (1, 3) => {
                let last = T::merge::<0x0F>(T::up(top), pairs[0]);
                [T::merge::<0x0F>(pairs[0], top), last, last]
            }
            (1, 4 | 5) => {
                let last = T::merge::<0x0F>(T::up(pairs[0]), pairs[1]);
                [T::merge::<0x0F>(pairs[0], T::down(pairs[1])), last, last]
            }
            _ => sources.second,
        };
    }
    sources
}

/// Level index of row `half * 4 + j` of a unit, or of that and the next one. `PATH` and `RAW`: path and raw bits; `READS`: a [`Reads`].
#[inline(always)]
unsafe fn index_of<T: Vector, const PATH: usize, const RAW: usize, const READS: usize>(
    sources: &Sources<T::Split>,
    kept: &T::Kept,
    tables: &Tables,
    half: usize,
    j: usize,
) -> T::V {
    let row = half * 4 + j;
    let position = if PATH == 2 { j } else { row };
    let merges = merges::<T, RAW, READS>();
    let mut index = match READS {
        NIBBLES | WINDOW if merges && half == 0 => T::map(&tables.merged[j], sources.first[j / 2]),
        NIBBLE => T::map_nibble(&tables.current[position], sources.current, if PATH == 2 { j < 2 } else { half == 0 }),
        NIBBLES | WINDOW if half == 0 => T::map_nibble(&tables.current[position], sources.current, true),
        _ => T::map(&tables.current[position], sources.current),
    };
    if READS == NIBBLES && half == 1 || READS == WINDOW && position == 7 {
        index = T::xor(index, T::map_nibble(&tables.previous[position], sources.previous, false));
    } else if READS == WINDOW && merges && RAW >= 3 && position >= 5 {
        index = T::xor(index, T::map_low(&tables.previous[position], sources.previous));
    } else if READS != NIBBLE {
        index = T::xor(index, T::map_previous(kept, tables, position, sources.previous));
    }
    if merges && RAW >= 3 {
        let source = sources.second[j.saturating_sub(1)];
        let low = if half == 0 { j >= 2 } else { j == 3 || j == 2 && RAW == 3 };
        index = T::xor(index, if low { T::map_low(&tables.second[row], source) } else { T::map(&tables.second[row], source) });
        if RAW == 5 && (half == 1 || j < 2) {
            index = T::xor(index, T::map_nibble(&tables.top[row], sources.top, half == 0));
        }
        return index;
    }
    if READS == WINDOW && position < 3 {
        index = T::xor(index, T::map_nibble(&tables.older[position], sources.older, false));
    } else if READS == THREE_BYTES {
        index = T::xor(index, T::map(&tables.older[position], sources.older));
    }
    if merges && half == 0 {
        index
    } else {
        with_raw::<T, RAW>(index, [true; 2], sources, tables, half, j)
    }
}

/// Index of row `half * 4 + j` and the next one in the second table of a code whose levels are sums.
#[inline(always)]
unsafe fn second_index_of<T: Vector, const RAW: usize, const READS: usize>(
    sources: &Sources<T::Split>,
    tables: &Tables,
    half: usize,
    j: usize,
) -> T::V {
    if merges::<T, RAW, READS>() && half == 0 {
        let left = first_has_pairs(RAW, SUMMED);
        with_raw::<T, RAW>(T::map(&tables.merged[j], sources.first[j / 2]), [!left, left], sources, tables, half, j)
    } else {
        let index = T::map_nibble(&tables.own[half * 4 + j], sources.current, half == 0);
        with_raw::<T, RAW>(index, [true; 2], sources, tables, half, j)
    }
}

/// Adds to an index what raw bits contribute: of pair 0 and of the top bit only if asked to.
#[inline(always)]
unsafe fn with_raw<T: Vector, const RAW: usize>(
    mut index: T::V,
    [first_pair, top]: [bool; 2],
    sources: &Sources<T::Split>,
    tables: &Tables,
    half: usize,
    j: usize,
) -> T::V {
    if RAW >= 2 && first_pair {
        index = T::xor(index, T::map_nibble(&tables.pairs[0][j], sources.pairs[0], j < 2));
    }
    if RAW >= 4 {
        index = T::xor(index, T::map_nibble(&tables.pairs[1][j], sources.pairs[1], j < 2));
    }
    if RAW % 2 == 1 && top {
        index = T::xor(index, T::map_nibble(&tables.top[half * 4 + j], sources.top, half == 0));
    }
    index
}

/// Levels of row `half * 4 + j` and the next one.
#[inline(always)]
unsafe fn levels_of_two<T: Vector, const PATH: usize, const RAW: usize, const READS: usize, const BITS: usize>(
    sources: &Sources<T::Split>,
    (kept, tables): (&T::Kept, &Tables),
    half: usize,
    j: usize,
) -> [T::Level; 2] {
    if BITS != SUMMED {
        return T::levels_of_pair::<0, false>(kept, tables, index_of::<T, PATH, RAW, READS>(sources, kept, tables, half, j));
    }
    let first = T::levels_of_pair::<0, false>(kept, tables, index_of::<T, PATH, 0, READS>(sources, kept, tables, half, j));
    let second = second_index_of::<T, RAW, READS>(sources, tables, half, j);
    let second = match narrow(RAW) {
        true => T::levels_of_pair::<1, true>(kept, tables, second),
        false => T::levels_of_pair::<1, false>(kept, tables, second),
    };
    [T::add_levels(first[0], second[0]), T::add_levels(first[1], second[1])]
}

/// The levels of row `half * 4 + j` go to `sink`, and where two rows are looked up at once those of the next row.
#[inline(always)]
pub(super) unsafe fn levels_of<T: Vector, const PATH: usize, const RAW: usize, const READS: usize, const BITS: usize>(
    sources: &Sources<T::Split>,
    (kept, tables): (&T::Kept, &Tables),
    half: usize,
    j: usize,
    sink: &mut impl FnMut(usize, T::Level),
) {
    if two_rows(BITS) {
        let [first, second] = levels_of_two::<T, PATH, RAW, READS, BITS>(sources, (kept, tables), half, j);
        sink(j, first);
        sink(j + 1, second);
    } else {
        let index = index_of::<T, PATH, RAW, READS>(sources, kept, tables, half, j);
        sink(j, T::level_at::<BITS>(kept, tables, if PATH == 2 { j } else { half * 4 + j }, index));
    }
}
