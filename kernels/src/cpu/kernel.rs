//! The products of row blocks of one run: a single definition over byte vectors of any width.
use super::blocks::{Block, Blocks};
use super::inputs::{Aligned, Inputs, Partial, Section};
use super::tables::{Reads, Tables};
use super::vector::{prefetch, Vector};
use crate::layout::VECTOR;
use std::mem::MaybeUninit;
use std::ops::Range;

const NIBBLE: usize = Reads::Nibble as usize;
const TWO_BYTES: usize = Reads::TwoBytes as usize;
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

/// `$body` eight times with `$r` a constant from 0 to 7: a loop would stay one where the body is large, and keep sums in memory.
macro_rules! each_of_eight {
    ($r:ident, $body:expr) => {
        each_of_eight!(@ $r, $body, 0 1 2 3 4 5 6 7)
    };
    (@ $r:ident, $body:expr, $($row:literal)*) => {
        $({
            const $r: usize = $row;
            $body;
        })*
    };
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
        WINDOW if merged => T::map(&tables.merged[j], sources.merged[j / 2]),
        NIBBLE => T::map_nibble(&tables.current[position], sources.current, if PATH == 2 { j < 2 } else { half == 0 }),
        WINDOW if half == 0 => T::map_nibble(&tables.current[position], sources.current, true),
        _ => T::map(&tables.current[position], sources.current),
    };
    if READS == WINDOW && position == 7 {
        index = T::xor(index, T::map_nibble(&tables.previous[position], sources.previous, false));
    } else if READS != NIBBLE {
        index = T::xor(index, T::map_previous(kept, tables, position, sources.previous));
    }
    if READS == WINDOW && position < 3 {
        index = T::xor(index, T::map_nibble(&tables.older[position], sources.older, false));
    } else if READS == THREE_BYTES {
        index = T::xor(index, T::map(&tables.older[position], sources.older));
    }
    if RAW >= 2 && (RAW % 2 == 1 || !merged) {
        index = T::xor(index, T::map_nibble(&tables.pairs[0][j], sources.pairs[0], j < 2));
    }
    if RAW >= 4 {
        index = T::xor(index, T::map_nibble(&tables.pairs[1][j], sources.pairs[1], j < 2));
    }
    if RAW % 2 == 1 && !merged {
        index = T::xor(index, T::map_nibble(&tables.top[row], sources.top, half == 0));
    }
    index
}

/// Rows whose levels are looked up at once.
const fn rows_at_once(bits: usize) -> usize {
    if bits <= PAIRED {
        2
    } else {
        1
    }
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
    let index = index_of::<T, PATH, RAW, READS>(sources, kept, tables, half, j);
    if BITS <= PAIRED {
        let [first, second] = T::levels_of_pair(kept, tables, index);
        sink(j, first);
        sink(j + 1, second);
    } else {
        sink(j, T::level_at::<BITS>(kept, tables, if PATH == 2 { j } else { half * 4 + j }, index));
    }
}

/// True if the first four rows of a unit, which read half of the current path byte only, have raw bits brought into the other half (see [`Tables::merged`]).
const fn merges<T: Vector, const RAW: usize, const READS: usize>() -> bool {
    T::MERGES && READS == WINDOW && RAW > 0
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
        older: if READS == NIBBLE || READS == TWO_BYTES { current } else { T::split(T::load(older)) },
        pairs,
        top,
    };
    let tables = (kept, tables);
    levels_of::<T, PATH, RAW, READS, BITS>(&sources, tables, half, 0, &mut sink);
    if rows_at_once(BITS) == 1 {
        levels_of::<T, PATH, RAW, READS, BITS>(&sources, tables, half, 1, &mut sink);
    }
    levels_of::<T, PATH, RAW, READS, BITS>(&sources, tables, half, 2, &mut sink);
    if rows_at_once(BITS) == 1 {
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
    inputs: Range<usize>,
    out: &mut [Partial],
) {
    let (mut apart, mut held) = (MaybeUninit::uninit(), MaybeUninit::uninit());
    let tables = blocks.tables;
    let kept = T::keep(tables);
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
            for part in 0..VECTOR / T::BYTES {
                let by_row = PATH > 0 && BITS <= T::HELD_BITS;
                if by_row {
                    take_apart::<T, PATH, RAW, READS>(&block, groups.clone(), part, &mut apart);
                }
                for x in inputs.clone().map(|input| x.section(input, section)) {
                    if x.scale == 0.0 {
                        continue;
                    }
                    if by_row {
                        let apart = apart.as_ptr();
                        hold::<T, BITS>(&x, groups.len(), part, &mut held);
                        each_of_eight!(
                            R,
                            row_dot::<T, PATH, RAW, READS, BITS, R>(
                                apart,
                                held.as_ptr().cast(),
                                &x,
                                groups.len(),
                                (&kept, tables),
                                part,
                                out
                            )
                        );
                        continue;
                    }
                    strip::<T, PATH, RAW, READS, BITS, 0>(&block, (&kept, tables), &x, groups.clone(), part, out);
                    if T::ROWS == 4 {
                        strip::<T, PATH, RAW, READS, BITS, 4>(&block, (&kept, tables), &x, groups.clone(), part, out);
                    }
                }
            }
        }
    }
}

/// Column groups of a section at most. One row of them at a time needs half the instructions that all rows
/// need, whose tables are loaded again for each group. Measured on Zen 3 (plain AVX2, 4096 x 4096): 11.3 to 17.5 at 1 bit, 11.0 both at 2 bits (32 half levels),
/// 8.7 to 8.0 x 10^9 weights a second at 3 bits (64), where tables do not fit into registers.
const TILE: usize = 16;

/// The vectors of [`TILE`] column groups, taken apart. Only those are written that the code reads.
struct Apart<S> {
    path: [[S; TILE]; 2],
    previous: [S; TILE],
    older: [S; TILE],
    raw: [[S; TILE]; 5],
}

/// What rows of half `half` of a group are made of.
///
/// # Safety
/// `apart` must hold the group.
#[inline(always)]
unsafe fn sources<S: Copy, const PATH: usize, const RAW: usize, const READS: usize>(
    apart: *const Apart<S>,
    group: usize,
    half: usize,
) -> Sources<S> {
    // Without a bound on the group that the compiler sees: it would unroll the loop over them, beyond what fits into caches of instructions.
    let read = |vectors: *const [S; TILE]| vectors.cast::<S>().add(group).read();
    let current = read(&raw const (*apart).path[if PATH == 2 { half } else { 0 }]);
    let raw = |vector: usize| read(&raw const (*apart).raw[vector]);
    Sources {
        current,
        merged: [current; 2],
        previous: match READS {
            NIBBLE => current,
            _ if PATH == 2 && half == 1 => read(&raw const (*apart).path[0]),
            _ => read(&raw const (*apart).previous),
        },
        older: if READS == NIBBLE || READS == TWO_BYTES { current } else { read(&raw const (*apart).older) },
        pairs: [if RAW >= 2 { raw(half) } else { current }, if RAW >= 4 { raw(2 + half) } else { current }],
        top: if RAW % 2 == 1 { raw(RAW - 1) } else { current },
    }
}

/// Fills `apart` with bytes `part` of the groups, and one more group that repeats the last.
#[inline(always)]
unsafe fn take_apart<T: Vector, const PATH: usize, const RAW: usize, const READS: usize>(
    block: &Block,
    groups: Range<usize>,
    part: usize,
    apart: &mut MaybeUninit<Apart<T::Split>>,
) {
    let apart = apart.as_mut_ptr();
    let at = part * T::BYTES;
    let unit_bytes = (PATH + RAW) * VECTOR;
    let distances = block.ahead.distances(block.codes.wrapping_add(groups.start * unit_bytes), groups.len() * unit_bytes);
    for n in 0..groups.len().next_multiple_of(2) {
        let group = groups.start + n.min(groups.len() - 1);
        let unit = block.codes.wrapping_add(group * unit_bytes);
        let before = block.before(group, at);
        if part == 0 {
            prefetch::<T>(unit, PATH + RAW, distances);
        }
        for v in 0..PATH + RAW {
            let split = T::split(T::load(unit.add(v * VECTOR + at)));
            if v < PATH {
                (*apart).path[v][n] = split;
            } else {
                (*apart).raw[v - PATH][n] = split;
            }
        }
        if READS != NIBBLE {
            (*apart).previous[n] = T::split(T::load(before[0]));
        }
        if READS == WINDOW || READS == THREE_BYTES {
            (*apart).older[n] = T::split(T::load(before[1]));
        }
    }
}

/// Bytes `part` of the activations of a section, and one more group of no consequence.
#[inline(always)]
unsafe fn hold<T: Vector, const BITS: usize>(x: &Section, groups: usize, part: usize, held: &mut MaybeUninit<[T::Activations; TILE + 1]>) {
    let held = held.as_mut_ptr().cast::<T::Activations>();
    for group in 0..=groups {
        let x = if group < groups { x.activations::<T>(group, part * T::BYTES) } else { T::load([0; VECTOR].as_ptr()) };
        held.add(group).write(if BITS <= PAIRED { T::activations_small(x) } else { T::activations(x) });
    }
}

/// Levels of rows `half * 4 + j` and the next one of a group.
#[inline(always)]
unsafe fn levels_of_two<T: Vector, const PATH: usize, const RAW: usize, const READS: usize>(
    apart: *const Apart<T::Split>,
    group: usize,
    (kept, tables): (&T::Kept, &Tables),
    (half, j): (usize, usize),
) -> [T::Level; 2] {
    let sources = sources::<T::Split, PATH, RAW, READS>(apart, group, half);
    T::levels_of_pair(kept, tables, index_of::<T, PATH, RAW, READS>(&sources, kept, tables, half, j))
}

/// Adds the products of row `R`, and of the next one where two are looked up at once, with `groups` column groups; two groups at a time, so there may be one more in
/// `apart` and in `held`.
#[inline(always)]
unsafe fn row_dot<T: Vector, const PATH: usize, const RAW: usize, const READS: usize, const BITS: usize, const R: usize>(
    apart: *const Apart<T::Split>,
    mut held: *const T::Activations,
    x: &Section,
    groups: usize,
    tables: (&T::Kept, &Tables),
    part: usize,
    out: &mut Partial,
) {
    if !R.is_multiple_of(rows_at_once(BITS)) {
        return;
    }
    if BITS <= PAIRED {
        let mut sums = [x.start_small::<T>(part * T::BYTES); 2];
        for pair in 0..groups.div_ceil(2) {
            let first = levels_of_two::<T, PATH, RAW, READS>(apart, 2 * pair, tables, (R / 4, R % 4));
            let second = levels_of_two::<T, PATH, RAW, READS>(apart, 2 * pair + 1, tables, (R / 4, R % 4));
            let x = [held.read(), held.add(1).read()];
            sums[0] = T::dot_small(sums[0], [first[0], second[0]], x);
            sums[1] = T::dot_small(sums[1], [first[1], second[1]], x);
            held = held.add(2);
        }
        add_to::<T>(&mut out[R], part, sums[0], x.scale);
        add_to::<T>(&mut out[R + 1], part, sums[1], x.scale);
        return;
    }
    let mut sums = x.start::<T>(part * T::BYTES);
    for pair in 0..groups.div_ceil(2) {
        for group in [2 * pair, 2 * pair + 1] {
            let sources = sources::<T::Split, PATH, RAW, READS>(apart, group, R / 4);
            levels_of::<T, PATH, RAW, READS, BITS>(&sources, tables, R / 4, R % 4, &mut |_, levels| {
                sums = T::dot(sums, levels, *held);
            });
            held = held.add(1);
        }
    }
    add_to::<T>(&mut out[R], part, sums, x.scale);
}

/// Adds scaled sums to bytes `part` of a row.
#[inline(always)]
unsafe fn add_to<T: Vector>(out: &mut [f32; 16], part: usize, sums: T::Sums, scale: f32) {
    let out = out.as_mut_ptr().add(part * T::BYTES / 4);
    T::store_floats(out, T::add_scaled(T::load_floats(out), sums, scale));
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
    let block = &blocks.block::<PATH, RAW>(block);
    if PATH > 0 && BITS <= T::HELD_BITS {
        let mut apart = MaybeUninit::uninit();
        for (first, levels) in groups.clone().step_by(TILE).zip(levels.chunks_mut(TILE)) {
            let groups = first..groups.end.min(first + TILE);
            for part in 0..VECTOR / T::BYTES {
                take_apart::<T, PATH, RAW, READS>(block, groups.clone(), part, &mut apart);
                let apart = apart.as_ptr();
                let levels = &mut levels[..groups.len()];
                each_of_eight!(R, row_look_up::<T, PATH, RAW, READS, BITS, R>(apart, (&kept, tables), part, levels));
            }
        }
        return;
    }
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
            rows4::<T, PATH, RAW, READS, BITS, 0>(unit, before, &kept, tables, |j, w| T::store_levels(rows[j].as_mut_ptr().add(at), w));
            rows4::<T, PATH, RAW, READS, BITS, 4>(unit, before, &kept, tables, |j, w| T::store_levels(rows[4 + j].as_mut_ptr().add(at), w));
        }
    }
}

/// Looks up row `R`, and the next one where two are looked up at once, of some column groups.
#[inline(always)]
unsafe fn row_look_up<T: Vector, const PATH: usize, const RAW: usize, const READS: usize, const BITS: usize, const R: usize>(
    apart: *const Apart<T::Split>,
    tables: (&T::Kept, &Tables),
    part: usize,
    levels: &mut [Levels],
) {
    if !R.is_multiple_of(rows_at_once(BITS)) {
        return;
    }
    for (group, rows) in levels.iter_mut().enumerate() {
        let sources = sources::<T::Split, PATH, RAW, READS>(apart, group, R / 4);
        levels_of::<T, PATH, RAW, READS, BITS>(&sources, tables, R / 4, R % 4, &mut |j, w| {
            let p = rows[R / 4 * 4 + j].as_mut_ptr().add(part * T::BYTES);
            if BITS <= PAIRED {
                T::store_small(p, w)
            } else {
                T::store_levels(p, w)
            }
        });
    }
}

/// Adds the products of the looked-up levels of a section by all inputs, each to its token's.
///
/// # Safety
/// The CPU must have the instruction set; inputs must be as long as the section.
#[inline(always)]
pub(super) unsafe fn multiply<T: Vector>(levels: &[Levels], section: usize, x: &Inputs, out: &mut [Partial]) {
    // The compiler does not take the question out of the inner loop by itself.
    match x.lanes {
        16 => multiply_all::<T, 4>(levels, section, x, out),
        8 => multiply_all::<T, 8>(levels, section, x, out),
        _ => multiply_all::<T, VECTOR>(levels, section, x, out),
    }
}

/// The same where a column group has `STEP` bytes.
#[inline(always)]
unsafe fn multiply_all<T: Vector, const STEP: usize>(levels: &[Levels], section: usize, x: &Inputs, out: &mut [Partial]) {
    let at = |input: usize| Section { step: STEP, ..x.section(input, section) };
    let mut inputs = (0..x.tokens.len()).filter(|input| x.scales[input * x.sections + section] != 0.0);
    while let Some(first) = inputs.next() {
        let token = x.tokens[first];
        match inputs.next() {
            Some(second) => multiply_by::<T, true>(levels, [at(first), at(second)], [token, x.tokens[second]], out),
            None => multiply_by::<T, false>(levels, [at(first); 2], [token; 2], out),
        }
    }
}

/// The same for a section of one input or of two, whose levels are loaded once.
#[inline(always)]
unsafe fn multiply_by<T: Vector, const TWO: bool>(levels: &[Levels], x: [Section; 2], tokens: [usize; 2], out: &mut [Partial]) {
    for part in 0..VECTOR / T::BYTES {
        let at = part * T::BYTES;
        for rows in (0..8).step_by(T::ROWS) {
            let mut first = [x[0].start::<T>(at); 8];
            let mut second = [x[1].start::<T>(at); 8];
            for (group, levels) in levels.iter().enumerate() {
                let row = levels.as_ptr().cast::<u8>().add(rows * VECTOR + at);
                let (x0, x1) = (x[0].activations::<T>(group, at), x[1].activations::<T>(group, at));
                for j in 0..T::ROWS {
                    let levels = T::bytes(T::load(row.add(j * VECTOR)));
                    first[j] = T::dot_bytes(first[j], levels, x0);
                    if TWO {
                        second[j] = T::dot_bytes(second[j], levels, x1);
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
    let mut sums = [x.start::<T>(at); 8];
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
        let x = T::activations(x);
        rows4::<T, PATH, RAW, READS, BITS, R0>(unit, before, kept, tables, |j, levels| sums[j] = T::dot(sums[j], levels, x));
        if T::ROWS == 8 {
            rows4::<T, PATH, RAW, READS, BITS, 4>(unit, before, kept, tables, |j, levels| sums[4 + j] = T::dot(sums[4 + j], levels, x));
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
