//! The products of row blocks of one run: a single definition over byte vectors of any width.
use super::blocks::{Block, Blocks};
use super::inputs::{Aligned, Inputs, Partial, Section};
use super::nibbles::{self, by_nibbles, rows8, Maps};
use super::tables::{Reads, Tables};
use super::vector::{prefetch, Vector};
use crate::layout::VECTOR;
use std::ops::Range;

const NIBBLE: usize = Reads::Nibble as usize;
const TWO_BYTES: usize = Reads::TwoBytes as usize;
const NIBBLES: usize = Reads::Nibbles as usize;
const WINDOW: usize = Reads::Window as usize;
const THREE_BYTES: usize = Reads::ThreeBytes as usize;

/// Hides where a reference comes from. Constants are then read from the tables where they are used, as memory operands; otherwise they are
/// copied to the stack before the loop and compete for registers until sums are spilled: up to 3 times slower from DRAM on Zen 5.
#[inline(always)]
fn opaque(tables: &Tables) -> &Tables {
    let mut address: *const Tables = tables;
    #[cfg(target_arch = "x86_64")]
    // SAFETY: no instruction at all.
    unsafe {
        std::arch::asm!("/* {0} */", inout(reg) address, options(readonly, nostack, preserves_flags));
    }
    // SAFETY: the same address as before.
    unsafe { &*address }
}

/// What the rows of one half of a unit are made of, as linear maps read it; what a code does not read is anything.
#[derive(Clone, Copy)]
struct Sources<S> {
    current: S,
    /// Where nibbles are merged: the current path nibble of the first half of a unit with the raw bits of rows 0, 1 and of rows 2, 3 that stand in one nibble.
    merged: [S; 2],
    previous: S,
    older: S,
    /// Raw bits `2p + 1, 2p` of four rows.
    pairs: [S; 2],
    /// The top raw bit of eight rows, if raw bits are odd.
    top: S,
}

/// Bits of the largest index of which two rows' stand in one byte: that of an even row in the low nibble.
pub(super) const PAIRED: usize = 4;

/// In place of index bits: two rows' indices of the first table stand in one byte, and two of the second one in another.
pub(super) const SUMMED: usize = 9;

/// True if indices of the second table have 3 bits, not 4.
pub(super) const fn narrow(raw: usize) -> bool {
    raw < 3
}

/// True if the levels of two rows are looked up at once.
pub(super) const fn two_rows(bits: usize) -> bool {
    bits <= PAIRED || bits == SUMMED
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
    let merged = merges::<T, RAW, READS>() && half == 0;
    let mut index = match READS {
        NIBBLES | WINDOW if merged => T::map(&tables.merged[j], sources.merged[j / 2]),
        NIBBLE => T::map_nibble(&tables.current[position], sources.current, if PATH == 2 { j < 2 } else { half == 0 }),
        NIBBLES | WINDOW if half == 0 => T::map_nibble(&tables.current[position], sources.current, true),
        _ => T::map(&tables.current[position], sources.current),
    };
    if READS == NIBBLES && half == 1 || READS == WINDOW && position == 7 {
        index = T::xor(index, T::map_nibble(&tables.previous[position], sources.previous, false));
    } else if READS != NIBBLE {
        index = T::xor(index, T::map_previous(kept, tables, position, sources.previous));
    }
    if READS == WINDOW && position < 3 {
        index = T::xor(index, T::map_nibble(&tables.older[position], sources.older, false));
    } else if READS == THREE_BYTES {
        index = T::xor(index, T::map(&tables.older[position], sources.older));
    }
    with_raw::<T, RAW>(index, merged, sources, tables, half, j)
}

/// Index of row `half * 4 + j` and the next one in the second table of a code whose levels are sums.
#[inline(always)]
unsafe fn second_index_of<T: Vector, const RAW: usize, const READS: usize>(
    sources: &Sources<T::Split>,
    tables: &Tables,
    half: usize,
    j: usize,
) -> T::V {
    let merged = merges::<T, RAW, READS>() && half == 0;
    let index = match merged {
        true => T::map(&tables.merged[j], sources.merged[j / 2]),
        false => T::map_nibble(&tables.own[half * 4 + j], sources.current, half == 0),
    };
    with_raw::<T, RAW>(index, merged, sources, tables, half, j)
}

/// Adds to an index what raw bits contribute; `merged`: what is in [`Sources::merged`] has been.
#[inline(always)]
unsafe fn with_raw<T: Vector, const RAW: usize>(
    mut index: T::V,
    merged: bool,
    sources: &Sources<T::Split>,
    tables: &Tables,
    half: usize,
    j: usize,
) -> T::V {
    if RAW >= 2 && (RAW % 2 == 1 || !merged) {
        index = T::xor(index, T::map_nibble(&tables.pairs[0][j], sources.pairs[0], j < 2));
    }
    if RAW >= 4 {
        index = T::xor(index, T::map_nibble(&tables.pairs[1][j], sources.pairs[1], j < 2));
    }
    if RAW % 2 == 1 && !merged {
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
unsafe fn levels_of<T: Vector, const PATH: usize, const RAW: usize, const READS: usize, const BITS: usize>(
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

/// True if the first four rows of a unit, which read half of the current path byte only, have raw bits brought into the other half (see [`Tables::merged`]).
const fn merges<T: Vector, const RAW: usize, const READS: usize>() -> bool {
    T::MERGES && (READS == NIBBLES || READS == WINDOW) && RAW > 0
}

/// See [`Sources::merged`].
#[inline(always)]
unsafe fn merged<T: Vector, const RAW: usize, const READS: usize>(current: T::Split, pairs: T::Split, top: T::Split) -> [T::Split; 2] {
    match (merges::<T, RAW, READS>(), RAW % 2) {
        (false, _) => [current; 2],
        (true, 1) => [T::merge(current, top, true); 2],
        (true, _) => [T::merge(current, pairs, true), T::merge(current, pairs, false)],
    }
}

/// The levels of 4 rows from `R0` of a unit of 1 to 6 bits go to `sink`.
#[inline(always)]
unsafe fn rows4<T: Vector, const PATH: usize, const RAW: usize, const READS: usize, const BITS: usize, const R0: usize>(
    unit: *const u8,
    [previous, older]: [*const u8; 2],
    kept: &T::Kept,
    tables: &Tables,
    mut sink: impl FnMut(usize, T::Level),
) {
    let tables = opaque(tables);
    let half = R0 / 4;
    let current = T::split(T::load(unit.add(if PATH == 2 { half * VECTOR } else { 0 })));
    let raw = |vector: usize| T::split(T::load(unit.add((PATH + vector) * VECTOR)));
    let pairs = [if RAW >= 2 { raw(half) } else { current }, if RAW >= 4 { raw(2 + half) } else { current }];
    let top = if RAW % 2 == 1 { raw(RAW - 1) } else { current };
    let sources = Sources {
        current,
        merged: if half == 0 { merged::<T, RAW, READS>(current, pairs[0], top) } else { [current; 2] },
        previous: if READS == NIBBLE { current } else { T::split(T::load(if PATH == 2 && half == 1 { unit } else { previous })) },
        older: if READS == NIBBLE || READS == NIBBLES || READS == TWO_BYTES { current } else { T::split(T::load(older)) },
        pairs,
        top,
    };
    let tables = (kept, tables);
    levels_of::<T, PATH, RAW, READS, BITS>(&sources, tables, half, 0, &mut sink);
    if !two_rows(BITS) {
        levels_of::<T, PATH, RAW, READS, BITS>(&sources, tables, half, 1, &mut sink);
    }
    levels_of::<T, PATH, RAW, READS, BITS>(&sources, tables, half, 2, &mut sink);
    if !two_rows(BITS) {
        levels_of::<T, PATH, RAW, READS, BITS>(&sources, tables, half, 3, &mut sink);
    }
}

/// Adds the products of row blocks by the inputs of one token, each to its own; the same for every `T`.
///
/// # Safety
/// The CPU must have the instruction set; the row blocks' units and previous vectors must be readable, and inputs as long as the run's groups.
#[inline(always)]
pub(super) unsafe fn dot<T: Vector, const PATH: usize, const RAW: usize, const READS: usize, const BITS: usize>(
    blocks: &Blocks,
    x: &Inputs,
    out: &mut [Partial],
) {
    let tables = blocks.tables;
    let kept = T::keep(tables);
    let maps = if by_nibbles::<T>(READS, BITS) { Some(Maps::load::<T>(tables)) } else { None };
    let mut before_next = blocks.before_next.first.wrapping_add(PATH.saturating_sub(1) * VECTOR);
    let sections = blocks.blocks.len() * blocks.groups.len().div_ceil(x.lanes);
    let some = if READS == NIBBLE { 0 } else { blocks.before_next.count.div_ceil(sections) };
    for (block, out) in blocks.blocks.clone().zip(out) {
        let block = blocks.block::<PATH, RAW>(block);
        for (section, groups) in blocks.sections(x.lanes) {
            for _ in 0..some {
                T::prefetch_second_level(before_next);
                before_next = before_next.wrapping_add(blocks.before_next.step);
            }
            if let Some(maps) = &maps {
                for input in x.of_section(section) {
                    let x = x.section(input);
                    if x.scale != 0.0 {
                        let (x, groups) = x.trim(groups.clone());
                        nibbles::strip::<T, RAW, READS, BITS>(&block, maps, &x, groups, out);
                    }
                }
                continue;
            }
            for part in 0..VECTOR / T::BYTES {
                for input in x.of_section(section) {
                    let x = x.section(input);
                    if x.scale == 0.0 {
                        continue;
                    }
                    let (x, groups) = x.trim(groups.clone());
                    strip::<T, PATH, RAW, READS, BITS, 0>(&block, (&kept, tables), &x, groups.clone(), part, out);
                    if T::ROWS == 4 {
                        strip::<T, PATH, RAW, READS, BITS, 4>(&block, (&kept, tables), &x, groups, part, out);
                    }
                }
            }
        }
    }
}

/// Adds scaled sums to bytes `part` of a row.
#[inline(always)]
pub(super) unsafe fn add_to<T: Vector>(out: &mut [f32; 16], part: usize, sums: T::Sums, scale: f32) {
    let out = out.as_mut_ptr().add(part * T::BYTES / 4);
    T::store_floats(out, T::add_scaled(T::load_floats(out), sums, scale));
}

#[inline(always)]
unsafe fn multiply_add<T: Vector, const BITS: usize>(sums: T::Sums, levels: T::Level, x: T::Activations) -> T::Sums {
    if two_rows(BITS) {
        T::dot_paired(sums, levels, x)
    } else {
        T::dot(sums, levels, x)
    }
}

/// Writes levels to bytes `at` of a row.
#[inline(always)]
unsafe fn store<T: Vector, const BITS: usize>(row: &mut [u8; VECTOR], at: usize, levels: T::Level) {
    let p = row.as_mut_ptr().add(at);
    if two_rows(BITS) {
        T::store_paired(p, levels)
    } else {
        T::store_levels(p, levels)
    }
}

/// Levels of a column group as [`Vector::store_levels`] writes them, `[row][byte of the vector]`.
pub(crate) type Levels = Aligned<[[u8; VECTOR]; 8]>;

/// Looks up the levels of some column groups of a row block, counted from the first one of the panel.
///
/// # Safety
/// As for [`dot`]; `groups` must be the panel's, and no more than the levels.
#[inline(always)]
pub(super) unsafe fn look_up<T: Vector, const PATH: usize, const RAW: usize, const READS: usize, const BITS: usize>(
    blocks: &Blocks,
    block: usize,
    groups: Range<usize>,
    levels: &mut [Levels],
) {
    let tables = blocks.tables;
    let kept = T::keep(tables);
    let maps = if by_nibbles::<T>(READS, BITS) { Some(Maps::load::<T>(tables)) } else { None };
    let block = &blocks.block::<PATH, RAW>(block);
    let unit_bytes = (PATH + RAW) * VECTOR;
    let distances = block.ahead.distances(block.codes.wrapping_add(groups.start * unit_bytes), groups.len() * unit_bytes);
    for (group, rows) in groups.zip(levels) {
        for at in (0..VECTOR).step_by(T::BYTES) {
            let unit = block.codes.wrapping_add(group * unit_bytes + at);
            if at == 0 {
                prefetch::<T>(unit, PATH + RAW, distances);
            }
            if PATH == 0 {
                for (row, bytes) in rows.iter_mut().enumerate() {
                    T::store(bytes.as_mut_ptr().add(at), T::from_biased(T::load(unit.add(row * VECTOR))));
                }
                continue;
            }
            let before = block.before(group, at);
            if let Some(maps) = &maps {
                rows8::<T, RAW, READS, BITS>(unit, before, maps, |row, w| store::<T, BITS>(&mut rows[row], at, w));
                continue;
            }
            rows4::<T, PATH, RAW, READS, BITS, 0>(unit, before, &kept, tables, |j, w| store::<T, BITS>(&mut rows[j], at, w));
            rows4::<T, PATH, RAW, READS, BITS, 4>(unit, before, &kept, tables, |j, w| store::<T, BITS>(&mut rows[4 + j], at, w));
        }
    }
}

/// Adds the products of the looked-up levels of a section by all inputs, each to its token's. `PAIRED`: as [`Vector::store_paired`] has written them.
///
/// # Safety
/// The CPU must have the instruction set; inputs must be as long as the section.
#[inline(always)]
pub(super) unsafe fn multiply<T: Vector, const PAIRED: bool>(levels: &[Levels], section: usize, x: &Inputs, out: &mut [Partial]) {
    // The compiler does not take the question out of the inner loop by itself.
    match x.lanes {
        16 => multiply_all::<T, PAIRED, 4>(levels, section, x, out),
        8 => multiply_all::<T, PAIRED, 8>(levels, section, x, out),
        _ => multiply_all::<T, PAIRED, VECTOR>(levels, section, x, out),
    }
}

/// The same where a column group has `STEP` bytes.
#[inline(always)]
unsafe fn multiply_all<T: Vector, const PAIRED: bool, const STEP: usize>(
    levels: &[Levels],
    section: usize,
    x: &Inputs,
    out: &mut [Partial],
) {
    let at = |input: usize| Section { step: STEP, ..x.section(input) };
    let first = section * x.tokens;
    let mut tokens = (0..x.tokens).filter(|token| x.scales[first + token] != 0.0);
    while let Some(token) = tokens.next() {
        match tokens.next() {
            Some(other) => multiply_by::<T, PAIRED, true>(levels, [at(first + token), at(first + other)], [token, other], out),
            None => multiply_by::<T, PAIRED, false>(levels, [at(first + token); 2], [token; 2], out),
        }
    }
    for input in x.outliers(section) {
        multiply_outliers::<T, PAIRED>(levels, at(input), x.outlier_token(input), out);
    }
}

/// Adds the products of the looked-up levels of a section by an input of outliers.
#[inline(always)]
pub(super) unsafe fn multiply_outliers<T: Vector, const PAIRED: bool>(levels: &[Levels], x: Section, token: usize, out: &mut [Partial]) {
    let (x, groups) = x.trim(0..levels.len());
    multiply_by::<T, PAIRED, false>(&levels[groups], [x; 2], [token; 2], out);
}

/// The same for a section of one input or of two, whose levels are loaded once.
#[inline(always)]
unsafe fn multiply_by<T: Vector, const PAIRED: bool, const TWO: bool>(
    levels: &[Levels],
    x: [Section; 2],
    tokens: [usize; 2],
    out: &mut [Partial],
) {
    for part in 0..VECTOR / T::BYTES {
        let at = part * T::BYTES;
        for rows in (0..8).step_by(T::ROWS) {
            let [mut first, mut second] = match PAIRED {
                true => [[x[0].start_paired::<T>(at); 8], [x[1].start_paired::<T>(at); 8]],
                false => [[x[0].start::<T>(at); 8], [x[1].start::<T>(at); 8]],
            };
            for (group, levels) in levels.iter().enumerate() {
                let row = levels.as_ptr().cast::<u8>().add(rows * VECTOR + at);
                let (x0, x1) = (x[0].activations::<T>(group, at), x[1].activations::<T>(group, at));
                for j in 0..T::ROWS {
                    let levels = T::load(row.add(j * VECTOR));
                    if PAIRED {
                        first[j] = T::dot_bytes_paired(first[j], levels, x0);
                    } else {
                        first[j] = T::dot_bytes(first[j], T::bytes(levels), x0);
                    }
                    if TWO && PAIRED {
                        second[j] = T::dot_bytes_paired(second[j], levels, x1);
                    } else if TWO {
                        second[j] = T::dot_bytes(second[j], T::bytes(levels), x1);
                    }
                }
            }
            for j in 0..T::ROWS {
                add_to::<T>(&mut out[tokens[0]][rows + j], part, first[j], x[0].scale);
                if TWO {
                    add_to::<T>(&mut out[tokens[1]][rows + j], part, second[j], x[1].scale);
                }
            }
        }
    }
}

/// Adds the products of rows `R0..R0 + ROWS` and bytes `part` of a section's groups.
#[inline(always)]
unsafe fn strip<T: Vector, const PATH: usize, const RAW: usize, const READS: usize, const BITS: usize, const R0: usize>(
    block: &Block,
    (kept, tables): (&T::Kept, &Tables),
    x: &Section,
    groups: Range<usize>,
    part: usize,
    out: &mut Partial,
) {
    let unit_bytes = (PATH + RAW) * VECTOR;
    let at = part * T::BYTES;
    let mut sums = [if PATH > 0 && two_rows(BITS) { x.start_paired::<T>(at) } else { x.start::<T>(at) }; 8];
    let mut unit = block.codes.wrapping_add(groups.start * unit_bytes + at);
    let mut before = block.before(groups.start, at);
    let distances = block.ahead.distances(unit, groups.len() * unit_bytes);
    for group in 0..groups.len() {
        if part == 0 && R0 == 0 {
            prefetch::<T>(unit, PATH + RAW, distances);
        }
        let x = x.activations::<T>(group, at);
        if PATH == 0 {
            for (j, sums) in sums.iter_mut().enumerate().take(T::ROWS) {
                *sums = T::dot_bytes(*sums, T::bytes(T::from_biased(T::load(unit.wrapping_add((R0 + j) * VECTOR)))), x);
            }
            unit = unit.wrapping_add(unit_bytes);
            continue;
        }
        let x = if two_rows(BITS) { T::activations_paired(x) } else { T::activations(x) };
        rows4::<T, PATH, RAW, READS, BITS, R0>(unit, before, kept, tables, |j, levels| {
            sums[j] = multiply_add::<T, BITS>(sums[j], levels, x)
        });
        if T::ROWS == 8 {
            rows4::<T, PATH, RAW, READS, BITS, 4>(unit, before, kept, tables, |j, levels| {
                sums[4 + j] = multiply_add::<T, BITS>(sums[4 + j], levels, x)
            });
        }
        unit = unit.wrapping_add(unit_bytes);
        if READS != NIBBLE {
            before[0] = before[0].wrapping_add(block.previous_step);
        }
        if READS == WINDOW || READS == THREE_BYTES {
            before[1] = before[1].wrapping_add(block.older_step);
        }
    }
    for (sums, out) in sums.into_iter().zip(&mut out[R0..R0 + T::ROWS]) {
        add_to::<T>(out, part, sums, x.scale);
    }
}
