//! The products of row blocks of one run: a single definition over byte vectors of any width.
use super::blocks::{Block, Blocks};
use super::index::{levels_of, sources, two_rows, NIBBLE, THREE_BYTES, WINDOW};
use super::inputs::{Aligned, Inputs, Partial, Section};
use super::nibbles::{self, by_nibbles, rows8, Maps};
use super::prefetch::prefetch;
use super::tables::Tables;
use super::vector::Vector;
use crate::layout::VECTOR;
use std::ops::Range;

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

/// The levels of 4 rows from `R0` of a unit of 1 to 6 bits go to `sink`.
#[inline(always)]
unsafe fn rows4<T: Vector, const PATH: usize, const RAW: usize, const READS: usize, const BITS: usize, const R0: usize>(
    unit: *const u8,
    before: [*const u8; 2],
    kept: &T::Kept,
    tables: &Tables,
    mut sink: impl FnMut(usize, T::Level),
) {
    let tables = opaque(tables);
    let half = R0 / 4;
    let sources = sources::<T, PATH, RAW, READS, BITS>(unit, before, half);
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
    let strips = blocks.strips(x);
    let mut before_next = blocks.before_next.first.wrapping_add(PATH.saturating_sub(1) * VECTOR);
    let some = if READS == NIBBLE { 0 } else { blocks.before_next.count.div_ceil((blocks.blocks.len() * strips.len()).max(1)) };
    for (block, out) in blocks.blocks.clone().zip(out) {
        let block = blocks.block::<PATH, RAW>(block);
        for (x, groups) in &strips {
            for _ in 0..some {
                T::prefetch_second_level(before_next);
                before_next = before_next.wrapping_add(blocks.before_next.step);
            }
            if let Some(maps) = &maps {
                nibbles::strip::<T, RAW, READS, BITS>(&block, maps, x, groups.clone(), out);
                continue;
            }
            for part in 0..VECTOR / T::BYTES {
                strip::<T, PATH, RAW, READS, BITS, 0>(&block, (&kept, tables), x, groups.clone(), part, out);
                if T::ROWS == 4 {
                    strip::<T, PATH, RAW, READS, BITS, 4>(&block, (&kept, tables), x, groups.clone(), part, out);
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
