//! Codes that are looked up two rows at once and whose rows all read path nibbles in the same way, for vectors whose maps are looked up by nibbles anyway.
//!
//! Rows 0 to 3 of a unit read the nibbles before those that rows 4 to 7 read, so the maps of four rows do for eight. Indices of a chunk of column groups go to memory; then levels are looked up and
//! multiplied, in a loop that has all eight sums in registers, as the first one has most maps. One loop for both spills either, and its chains of dependent instructions are twice as long
//! (docs/speed.md). Products of a chunk add up to 16 bits before they are widened ([`Inputs::chunks`](super::Inputs)).
use super::blocks::Block;
use super::index::{narrow, two_rows, SUMMED};
use super::inputs::{Aligned, Partial, Section};
use super::kernel::add_to;
use super::prefetch::prefetch;
use super::tables::{Map, Reads, Tables};
use super::vector::Vector;
use crate::activations::LONGEST_CHUNK;
use crate::layout::VECTOR;
use std::mem::MaybeUninit;
use std::ops::Range;

const NIBBLES: usize = Reads::Nibbles as usize;
const WINDOW: usize = Reads::Window as usize;

/// True if the kernel of these vectors and codes is made of the functions of this module.
pub(super) const fn by_nibbles<T: Vector>(reads: usize, bits: usize) -> bool {
    T::SPLIT && T::BYTES == VECTOR / 2 && two_rows(bits) && (reads == NIBBLES || reads == WINDOW)
}

/// Tables of 16, those of rows 0 and 1 of four and those of rows 2 and 3.
#[derive(Clone, Copy)]
pub(super) struct Maps<V> {
    /// The path nibble that the rows stand in, and the three before it, to index.
    path: [[V; 4]; 2],
    /// The first of these to the index of the second level table.
    own: [V; 2],
    /// Raw bits `2p + 1, 2p` of two rows to index bits.
    raw: [V; 2],
    /// The top raw bits of four rows.
    top: [V; 2],
    levels: [V; 2],
}

impl<V: Copy> Maps<V> {
    #[inline(always)]
    pub unsafe fn load<T: Vector<V = V>>(tables: &Tables) -> Self {
        let low = |map: &Map| T::table(map.low.as_ptr());
        let high = |map: &Map| T::table(map.high.as_ptr());
        let path = |row: usize| {
            let (current, previous) = (&tables.current[row], &tables.previous[row]);
            [low(current), high(current), low(previous), high(previous)]
        };
        Maps {
            path: [path(4), path(6)],
            own: [low(&tables.own[4]), low(&tables.own[6])],
            raw: [low(&tables.pairs[0][2]), low(&tables.pairs[1][2])],
            top: [low(&tables.top[4]), low(&tables.top[6])],
            levels: [T::table(tables.levels[0].as_ptr()), T::table(tables.levels[0].as_ptr().add(64))],
        }
    }
}

/// Indices of two rows of the four in each byte, and in the second table if there are two. `path`: path nibbles as in [`Maps`]; `raw`: raw bits of the two rows; `top`: the top raw bits of the four.
#[inline(always)]
unsafe fn indices_of_two<T: Vector, const RAW: usize, const READS: usize, const BITS: usize>(
    maps: &Maps<T::V>,
    pair: usize,
    path: [T::V; 4],
    raw: [T::V; 2],
    top: T::V,
) -> [T::V; 2] {
    let of = |age: usize| T::look_up(maps.path[pair][age], path[age]);
    let mut first = T::xor(T::xor(of(0), of(1)), of(2));
    if READS == WINDOW {
        first = T::xor(first, of(3));
    }
    let mut with_raw = if BITS == SUMMED { T::look_up(maps.own[pair], path[0]) } else { first };
    for (map, raw) in maps.raw.into_iter().zip(raw).take(RAW / 2) {
        with_raw = T::xor(with_raw, T::look_up(map, raw));
    }
    if RAW % 2 == 1 {
        with_raw = T::xor(with_raw, T::look_up(maps.top[pair], top));
    }
    if BITS == SUMMED {
        [first, with_raw]
    } else {
        [with_raw; 2]
    }
}

/// Vectors of indices of a unit.
const fn index_vectors(bits: usize) -> usize {
    if bits == SUMMED {
        8
    } else {
        4
    }
}

/// Writes the indices of the 8 rows of a unit: `[rows 0 and 1, 4 and 5, 2 and 3, 6 and 7][table]`, so that those that share maps follow each other.
#[inline(always)]
unsafe fn indices<T: Vector, const RAW: usize, const READS: usize, const BITS: usize>(
    unit: *const u8,
    [previous, older]: [*const u8; 2],
    maps: &Maps<T::V>,
    mut to: *mut u8,
) {
    let nibbles = |p: *const u8| T::nibbles(T::load(p));
    let [current, previous] = [nibbles(unit), nibbles(previous)];
    let older = if READS == WINDOW { nibbles(older) } else { previous };
    let path = [[current[1], previous[0], previous[1], older[0]], [current[0], current[1], previous[0], previous[1]]];
    let top = if RAW % 2 == 1 { nibbles(unit.add(RAW * VECTOR)) } else { current };
    let raw = |p: usize, half: usize| if RAW / 2 > p { nibbles(unit.add((1 + 2 * p + half) * VECTOR)) } else { current };
    let raw = [[raw(0, 0), raw(1, 0)], [raw(0, 1), raw(1, 1)]];
    for pair in 0..2 {
        for half in 0..2 {
            let raw = raw[half].map(|nibbles| nibbles[1 - pair]);
            let indices = indices_of_two::<T, RAW, READS, BITS>(maps, pair, path[half], raw, top[1 - half]);
            for index in indices.into_iter().take(index_vectors(BITS) / 4) {
                T::store(to, index);
                to = to.add(T::BYTES);
            }
        }
    }
}

/// The levels of the 8 rows of a unit from their [`indices`] go to `sink`.
#[inline(always)]
unsafe fn levels<T: Vector, const RAW: usize, const BITS: usize>(
    maps: &Maps<T::V>,
    mut from: *const u8,
    mut sink: impl FnMut(usize, T::Level),
) {
    for row in [0, 4, 2, 6] {
        let mut two = T::look_up_two::<false>(maps.levels[0], T::load(from));
        if BITS == SUMMED {
            let index = T::load(from.add(T::BYTES));
            let second = match narrow(RAW) {
                true => T::look_up_two::<true>(maps.levels[1], index),
                false => T::look_up_two::<false>(maps.levels[1], index),
            };
            two = [T::add_levels(two[0], second[0]), T::add_levels(two[1], second[1])];
        }
        from = from.add(index_vectors(BITS) / 4 * T::BYTES);
        let [first, second] = two;
        sink(row, first);
        sink(row + 1, second);
    }
}

/// The levels of the 8 rows of a unit go to `sink`.
#[inline(always)]
pub(super) unsafe fn rows8<T: Vector, const RAW: usize, const READS: usize, const BITS: usize>(
    unit: *const u8,
    before: [*const u8; 2],
    maps: &Maps<T::V>,
    sink: impl FnMut(usize, T::Level),
) {
    let mut memory = MaybeUninit::<Aligned<[[u8; VECTOR]; 8]>>::uninit();
    let of_unit = memory.as_mut_ptr().cast();
    indices::<T, RAW, READS, BITS>(unit, before, maps, of_unit);
    levels::<T, RAW, BITS>(maps, of_unit, sink);
}

/// Adds the products of a section's groups by all 8 rows.
#[inline(always)]
pub(super) unsafe fn strip<T: Vector, const RAW: usize, const READS: usize, const BITS: usize>(
    block: &Block,
    maps: &Maps<T::V>,
    x: &Section,
    groups: Range<usize>,
    out: &mut Partial,
) {
    // The compiler does not take the question out of the loop by itself.
    match x.step {
        4 => strip_of::<T, RAW, READS, BITS>(block, maps, &Section { step: 4, ..*x }, groups, out),
        _ => strip_of::<T, RAW, READS, BITS>(block, maps, x, groups, out),
    }
}

#[inline(always)]
unsafe fn strip_of<T: Vector, const RAW: usize, const READS: usize, const BITS: usize>(
    block: &Block,
    maps: &Maps<T::V>,
    x: &Section,
    groups: Range<usize>,
    out: &mut Partial,
) {
    half_strip::<T, RAW, READS, BITS, 0>(block, maps, x, groups.clone(), out);
    half_strip::<T, RAW, READS, BITS, 1>(block, maps, x, groups, out);
}

/// For the first or the second half of all vectors.
#[inline(always)]
unsafe fn half_strip<T: Vector, const RAW: usize, const READS: usize, const BITS: usize, const HALF: usize>(
    block: &Block,
    maps: &Maps<T::V>,
    x: &Section,
    groups: Range<usize>,
    out: &mut Partial,
) {
    let (unit_bytes, group_bytes) = ((1 + RAW) * VECTOR, index_vectors(BITS) * T::BYTES);
    let at = HALF * T::BYTES;
    let mut memory = MaybeUninit::<Aligned<[[[u8; VECTOR]; 4]; LONGEST_CHUNK]>>::uninit();
    let memory = memory.as_mut_ptr().cast::<u8>();
    let mut unit = block.codes.wrapping_add(groups.start * unit_bytes + at);
    let mut before = block.before(groups.start, at);
    let distances = block.ahead.distances(unit, groups.len() * unit_bytes);
    let mut sums = [T::zero(); 8];
    let (mut first, mut chunk) = (0, 0);
    while first < groups.len() {
        let count = x.chunk.min(groups.len() - first);
        let mut to = memory;
        for _ in 0..count {
            if HALF == 0 {
                prefetch::<T>(unit, 1 + RAW, distances);
            }
            indices::<T, RAW, READS, BITS>(unit, before, maps, to);
            unit = unit.wrapping_add(unit_bytes);
            before = [before[0].wrapping_add(block.previous_step), before[1].wrapping_add(block.older_step)];
            to = to.add(group_bytes);
        }
        let mut halves = [T::start_halves(x.halves::<T>(chunk, at)); 8];
        let mut from = memory.cast_const();
        for group in first..first + count {
            let x = T::activations_paired(x.activations::<T>(group, at));
            levels::<T, RAW, BITS>(maps, from, |row, level| halves[row] = T::dot_halves(halves[row], level, x));
            from = from.add(group_bytes);
        }
        for (sums, halves) in sums.iter_mut().zip(halves) {
            *sums = T::add_halves(*sums, halves);
        }
        first += count;
        chunk += 1;
    }
    for (out, sums) in out.iter_mut().zip(sums) {
        add_to::<T>(out, HALF, sums, x.scale);
    }
}
