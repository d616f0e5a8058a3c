//! The products of one row block of one run: a single definition over byte vectors of any width.
use super::tables::{Map, Reads, Tables};
use crate::layout::VECTOR;
use std::mem::MaybeUninit;

/// Byte vectors of one instruction set.
///
/// # Safety
/// All functions: the CPU must have the instruction set, and pointers must be valid for what they read or write (unaligned).
pub(super) trait Vector {
    /// `BYTES` bytes.
    type V: Copy;
    /// `BYTES / 4` sums of 32 bits.
    type Sums: Copy;
    /// Bytes in the form that linear maps read.
    type Split: Copy;
    /// 16, 32 or 64.
    const BYTES: usize;
    /// Rows of a block that are summed in registers at once: 8 where a vector is all 64 bytes, otherwise 4.
    const ROWS: usize;
    /// Index bits of the smallest level table look-up.
    const TABLE_BITS: usize;
    /// Index bits of the largest level table that fits into registers with a row's maps: up to it a kernel takes one row of some column groups at a time.
    const HELD_BITS: usize;

    unsafe fn load(p: *const u8) -> Self::V;
    unsafe fn store(p: *mut u8, v: Self::V);
    /// The same 4 bytes in every 32-bit lane.
    unsafe fn repeat4(p: *const u8) -> Self::V;
    /// The same 8 bytes in every 64-bit lane.
    unsafe fn repeat8(p: *const u8) -> Self::V;
    unsafe fn load_sums(p: *const i32) -> Self::Sums;
    unsafe fn store_sums(p: *mut i32, sums: Self::Sums);
    /// Adds the products of four unsigned bytes of `w` and four signed bytes of `x` (-64 to 63) to each sum.
    unsafe fn dot(sums: Self::Sums, w: Self::V, x: Self::V) -> Self::Sums;
    unsafe fn split(v: Self::V) -> Self::Split;
    unsafe fn map(map: &Map, v: Self::Split) -> Self::V;
    /// A map that reads the high or the low nibble alone.
    unsafe fn map_nibble(map: &Map, v: Self::Split, high: bool) -> Self::V;
    unsafe fn xor(a: Self::V, b: Self::V) -> Self::V;
    /// Table look-up; all indices are below `2^BITS`. A table of more than 16 entries is antisymmetric in the highest bit of the index.
    unsafe fn level<const BITS: usize>(table: &[u8; 256], index: Self::V) -> Self::V;
    unsafe fn prefetch(p: *const u8);
}

/// Bytes that are asked for ahead. Measured on Sapphire Rapids: 20 to 45 % from DRAM; nothing on Zen 4 and 5.
const PREFETCH: usize = 4096;

const NIBBLE: usize = Reads::Nibble as usize;
const TWO_BYTES: usize = Reads::TwoBytes as usize;
const WINDOW: usize = Reads::Window as usize;
const THREE_BYTES: usize = Reads::ThreeBytes as usize;

/// One row block of a run.
#[derive(Clone, Copy)]
pub(crate) struct Block<'a> {
    /// First unit.
    pub codes: *const u8,
    /// Column groups.
    pub groups: usize,
    /// Path vectors before the block: of the unit at the same group in the row block before, or from [`before_first`]. Read only if the code reads a second path byte.
    pub previous: *const u8,
    /// Bytes from one group's to the next.
    pub previous_step: usize,
    /// The same two row blocks before. Read only if the code reads a third path byte.
    pub older: *const u8,
    /// Bytes from one group's to the next.
    pub older_step: usize,
    /// The code.
    pub tables: &'a Tables,
}

impl Block<'_> {
    /// Previous and older vectors of a column group.
    #[inline(always)]
    fn before(&self, group: usize, at: usize) -> [*const u8; 2] {
        [self.previous.wrapping_add(group * self.previous_step + at), self.older.wrapping_add(group * self.older_step + at)]
    }
}

/// Integer sums of the levels with 128 added, by row of the block, activation plane and 32-bit lane of the vector.
pub(crate) type Sums = [[[i32; 16]; 2]; 8];

/// The product of a row block as f32, by row of the block and lane.
pub(crate) type Partial = [[f32; 16]; 8];

/// Quantized activations of a token by one run: `x = factor (128 high + low)`.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Input {
    /// Which token.
    pub token: usize,
    /// What is missing from the integer sums of either plane: -128 times the sum of its activations, because levels are stored with 128 added.
    pub start: [i32; 2],
    /// Value of an integer sum.
    pub factor: f32,
}

/// Inputs and their planes.
#[derive(Clone, Copy)]
pub(crate) struct Inputs<'a> {
    pub inputs: &'a [Input],
    /// `[input][high and low plane][bytes]`, and room for [`TOGETHER`](super::TOGETHER) inputs and a vector behind the last one.
    pub planes: &'a [u8],
    /// Bytes of a plane.
    pub plane: usize,
    /// Bytes a column group in a plane: 4 or 8 (the columns once for all 16 or 8 lanes) or 64 (once for each lane).
    pub step: usize,
    /// Lanes of the matrix.
    pub lanes: usize,
}

impl Inputs<'_> {
    /// High and low plane of an input.
    #[inline(always)]
    pub fn planes(&self, input: usize) -> [*const u8; 2] {
        let high = self.planes[2 * input * self.plane..].as_ptr();
        [high, high.wrapping_add(self.plane)]
    }
}

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

/// `$body` four times with `$j` a constant from 0 to 3: a loop would stay one where the body is large, and keep sums in memory.
macro_rules! each_of_four {
    ($j:ident, $body:expr) => {
        let $j = 0;
        $body;
        let $j = 1;
        $body;
        let $j = 2;
        $body;
        let $j = 3;
        $body
    };
}

/// `$body` eight times with `$r` a constant from 0 to 7.
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
    previous: S,
    older: S,
    /// Raw bits `2p + 1, 2p` of four rows.
    pairs: [S; 2],
    /// The top raw bit of eight rows, if raw bits are odd.
    top: S,
}

/// Bytes `level + 128` of row `half * 4 + j` of a unit. `PATH` and `RAW`: path and raw bits; `READS`: a [`Reads`].
#[inline(always)]
unsafe fn level_of<T: Vector, const PATH: usize, const RAW: usize, const READS: usize, const BITS: usize>(
    sources: &Sources<T::Split>,
    tables: &Tables,
    half: usize,
    j: usize,
) -> T::V {
    let row = half * 4 + j;
    let position = if PATH == 2 { j } else { row };
    let mut index = match READS {
        NIBBLE => T::map_nibble(&tables.current[position], sources.current, if PATH == 2 { j < 2 } else { half == 0 }),
        WINDOW if half == 0 => T::map_nibble(&tables.current[position], sources.current, true),
        _ => T::map(&tables.current[position], sources.current),
    };
    if READS == WINDOW && position == 7 {
        index = T::xor(index, T::map_nibble(&tables.previous[position], sources.previous, false));
    } else if READS != NIBBLE {
        index = T::xor(index, T::map(&tables.previous[position], sources.previous));
    }
    if READS == WINDOW && position < 3 {
        index = T::xor(index, T::map_nibble(&tables.older[position], sources.older, false));
    } else if READS == THREE_BYTES {
        index = T::xor(index, T::map(&tables.older[position], sources.older));
    }
    if RAW >= 2 {
        index = T::xor(index, T::map_nibble(&tables.pairs[0][j], sources.pairs[0], j < 2));
    }
    if RAW >= 4 {
        index = T::xor(index, T::map_nibble(&tables.pairs[1][j], sources.pairs[1], j < 2));
    }
    if RAW % 2 == 1 {
        index = T::xor(index, T::map_nibble(&tables.top[row], sources.top, half == 0));
    }
    T::level::<BITS>(&tables.levels[position], index)
}

/// The row vectors of 4 rows from `R0` of a unit go to `sink` as bytes `level + 128`.
/// `PATH` is 0 for width 8 and, with `RAW` 0, for levels that [`look_up`] has made.
#[inline(always)]
unsafe fn rows4<T: Vector, const PATH: usize, const RAW: usize, const READS: usize, const BITS: usize, const R0: usize>(
    unit: *const u8,
    [previous, older]: [*const u8; 2],
    tables: &Tables,
    mut sink: impl FnMut(usize, T::V),
) {
    if PATH == 0 {
        each_of_four!(j, sink(j, T::load(unit.add((R0 + j) * VECTOR))));
        return;
    }
    let tables = opaque(tables);
    let half = R0 / 4;
    let current = T::split(T::load(unit.add(if PATH == 2 { half * VECTOR } else { 0 })));
    let raw = |vector: usize| T::split(T::load(unit.add((PATH + vector) * VECTOR)));
    let sources = Sources {
        current,
        previous: if READS == NIBBLE { current } else { T::split(T::load(if PATH == 2 && half == 1 { unit } else { previous })) },
        older: if READS == NIBBLE || READS == TWO_BYTES { current } else { T::split(T::load(older)) },
        pairs: [if RAW >= 2 { raw(half) } else { current }, if RAW >= 4 { raw(2 + half) } else { current }],
        top: if RAW % 2 == 1 { raw(RAW - 1) } else { current },
    };
    each_of_four!(j, sink(j, level_of::<T, PATH, RAW, READS, BITS>(&sources, tables, half, j)));
}

/// Sums of levels times planes over the whole block; the same for every `T`.
///
/// # Safety
/// The CPU must have the instruction set; the block's units and previous vectors must be readable, and planes as long as its groups.
#[inline(always)]
pub(super) unsafe fn dot<T: Vector, const PATH: usize, const RAW: usize, const READS: usize, const BITS: usize>(
    block: &Block,
    planes: [*const u8; 2],
    step: usize,
) -> Sums {
    let mut sums: Sums = [[[0; 16]; 2]; 8];
    if T::BYTES == VECTOR {
        // Without a loop around it the sums stay in registers from start to end.
        strip::<T, PATH, RAW, READS, BITS, 0>(block, planes, step, &mut sums, 0..block.groups, 0);
        return sums;
    }
    let (mut apart, mut x) = (MaybeUninit::uninit(), MaybeUninit::uninit());
    for first in (0..block.groups).step_by(TILE) {
        let groups = first..block.groups.min(first + TILE);
        for part in 0..VECTOR / T::BYTES {
            if PATH == 0 || BITS > T::HELD_BITS {
                strip::<T, PATH, RAW, READS, BITS, 0>(block, planes, step, &mut sums, groups.clone(), part);
                strip::<T, PATH, RAW, READS, BITS, 4>(block, planes, step, &mut sums, groups.clone(), part);
                continue;
            }
            take_apart::<T, PATH, RAW, READS>(block, groups.clone(), part, &mut apart);
            let apart = apart.as_ptr();
            spread::<T>(planes, step, groups.clone(), part, &mut x);
            each_of_eight!(
                R,
                row_dot::<T, PATH, RAW, READS, BITS, R>(apart, x.as_ptr().cast(), groups.len(), block.tables, part, &mut sums)
            );
        }
    }
    sums
}

/// Column groups after which a kernel of narrow vectors goes back to the other rows and bytes. One row at a time needs half the instructions that all rows
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
    groups: std::ops::Range<usize>,
    part: usize,
    apart: &mut MaybeUninit<Apart<T::Split>>,
) {
    let apart = apart.as_mut_ptr();
    let at = part * T::BYTES;
    for n in 0..groups.len().next_multiple_of(2) {
        let group = groups.start + n.min(groups.len() - 1);
        let unit = block.codes.add(group * (PATH + RAW) * VECTOR);
        let before = block.before(group, at);
        for v in 0..PATH + RAW {
            if part == 0 {
                T::prefetch(unit.wrapping_add(PREFETCH + v * VECTOR));
            }
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

/// Bytes `part` of the high and low planes for each column group, and zeros behind the last.
#[inline(always)]
unsafe fn spread<T: Vector>(
    planes: [*const u8; 2],
    step: usize,
    groups: std::ops::Range<usize>,
    part: usize,
    x: &mut MaybeUninit<[[T::V; 2]; TILE + 1]>,
) {
    let mut x = x.as_mut_ptr().cast::<[T::V; 2]>();
    for group in groups {
        for (plane, address) in planes.into_iter().enumerate() {
            (*x)[plane] = activations::<T>(address.add(step * group), step, part * T::BYTES);
        }
        x = x.add(1);
    }
    x.write([T::load([0; VECTOR].as_ptr()); 2]);
}

/// Bytes `at` of a column group's activations, `step` bytes of a plane.
#[inline(always)]
unsafe fn activations<T: Vector>(group: *const u8, step: usize, at: usize) -> T::V {
    match step {
        4 => T::repeat4(group),
        8 => T::repeat8(group),
        _ => T::load(group.add(at)),
    }
}

/// Adds one row's products with `groups` column groups to its sums; two groups at a time, so there may be one more in `apart` and in `x`.
#[inline(always)]
unsafe fn row_dot<T: Vector, const PATH: usize, const RAW: usize, const READS: usize, const BITS: usize, const R: usize>(
    apart: *const Apart<T::Split>,
    mut x: *const [T::V; 2],
    groups: usize,
    tables: &Tables,
    part: usize,
    sums: &mut Sums,
) {
    let at = part * T::BYTES / 4;
    let [mut high, mut low] = [T::load_sums(sums[R][0].as_ptr().add(at)), T::load_sums(sums[R][1].as_ptr().add(at))];
    for pair in 0..groups.div_ceil(2) {
        for group in [2 * pair, 2 * pair + 1] {
            let w =
                level_of::<T, PATH, RAW, READS, BITS>(&sources::<T::Split, PATH, RAW, READS>(apart, group, R / 4), tables, R / 4, R % 4);
            high = T::dot(high, w, (*x)[0]);
            low = T::dot(low, w, (*x)[1]);
            x = x.add(1);
        }
    }
    T::store_sums(sums[R][0].as_mut_ptr().add(at), high);
    T::store_sums(sums[R][1].as_mut_ptr().add(at), low);
}

/// Levels of a column group with 128 added, `[row][byte of the vector]`.
pub(crate) type Levels = [[u8; VECTOR]; 8];

/// Looks up the levels of some column groups.
///
/// # Safety
/// As for [`dot`]; `groups` must be the block's.
#[inline(always)]
pub(super) unsafe fn look_up<T: Vector, const PATH: usize, const RAW: usize, const READS: usize, const BITS: usize>(
    block: &Block,
    groups: std::ops::Range<usize>,
    levels: &mut [Levels],
) {
    if PATH > 0 && BITS <= T::HELD_BITS {
        let mut apart = MaybeUninit::uninit();
        for (first, levels) in groups.clone().step_by(TILE).zip(levels.chunks_mut(TILE)) {
            let groups = first..groups.end.min(first + TILE);
            for part in 0..VECTOR / T::BYTES {
                take_apart::<T, PATH, RAW, READS>(block, groups.clone(), part, &mut apart);
                let apart = apart.as_ptr();
                let levels = &mut levels[..groups.len()];
                each_of_eight!(R, row_look_up::<T, PATH, RAW, READS, BITS, R>(apart, block.tables, part, levels));
            }
        }
        return;
    }
    for (group, rows) in groups.zip(levels) {
        for at in (0..VECTOR).step_by(T::BYTES) {
            let unit = block.codes.add(group * (PATH + RAW) * VECTOR + at);
            let before = block.before(group, at);
            rows4::<T, PATH, RAW, READS, BITS, 0>(unit, before, block.tables, |j, w| T::store(rows[j].as_mut_ptr().add(at), w));
            rows4::<T, PATH, RAW, READS, BITS, 4>(unit, before, block.tables, |j, w| T::store(rows[4 + j].as_mut_ptr().add(at), w));
        }
    }
}

/// Looks up one row of some column groups.
#[inline(always)]
unsafe fn row_look_up<T: Vector, const PATH: usize, const RAW: usize, const READS: usize, const BITS: usize, const R: usize>(
    apart: *const Apart<T::Split>,
    tables: &Tables,
    part: usize,
    levels: &mut [Levels],
) {
    for (group, rows) in levels.iter_mut().enumerate() {
        let w = level_of::<T, PATH, RAW, READS, BITS>(&sources::<T::Split, PATH, RAW, READS>(apart, group, R / 4), tables, R / 4, R % 4);
        T::store(rows[R].as_mut_ptr().add(part * T::BYTES), w);
    }
}

/// Adds the products of looked-up levels, those of the groups from `first` on, to the sums of each input, or sets them if `first` is 0.
///
/// # Safety
/// The CPU must have the instruction set; planes must be as long as the groups.
#[inline(always)]
pub(super) unsafe fn multiply<T: Vector>(block: &Block, levels: &[Levels], first: usize, x: &Inputs, sums: &mut [Sums]) {
    let block = Block { codes: levels.as_ptr().cast(), ..*block };
    for (input, sums) in (0..x.inputs.len()).zip(sums) {
        let planes = x.planes(input).map(|plane| plane.wrapping_add(first * x.step));
        if first == 0 {
            *sums = [[[0; 16]; 2]; 8];
        }
        for part in 0..VECTOR / T::BYTES {
            strip::<T, 0, 0, NIBBLE, 8, 0>(&block, planes, x.step, sums, 0..levels.len(), part);
            if T::ROWS == 4 {
                strip::<T, 0, 0, NIBBLE, 8, 4>(&block, planes, x.step, sums, 0..levels.len(), part);
            }
        }
    }
}

/// `out += factor (128 high + low)` of an input's sums, the 32-bit lanes of a lane taken together.
#[inline(always)]
pub(super) fn finish(sums: &Sums, input: &Input, lanes: usize, out: &mut Partial) {
    for (out, [high, low]) in out.iter_mut().zip(sums) {
        if lanes == 16 {
            for ((out, high), low) in out.iter_mut().zip(high).zip(low) {
                *out += input.value(*high, *low);
            }
        } else {
            let parts = 16 / lanes;
            for (out, (high, low)) in out.iter_mut().zip(high.chunks_exact(parts).zip(low.chunks_exact(parts))) {
                *out += input.value(high.iter().sum(), low.iter().sum());
            }
        }
    }
}

impl Input {
    /// The product whose integer sums these are.
    #[inline(always)]
    pub fn value(&self, high: i32, low: i32) -> f32 {
        let (high, low) = (high + self.start[0], low + self.start[1]);
        // The same for all sums of the same `128 high + low`: a kernel may have other ones.
        self.factor * (128.0 * (high + (low >> 7)) as f32 + (low & 127) as f32)
    }
}

/// Rows `R0..R0 + ROWS` and bytes `part` of the groups.
#[inline(always)]
unsafe fn strip<T: Vector, const PATH: usize, const RAW: usize, const READS: usize, const BITS: usize, const R0: usize>(
    block: &Block,
    [high, low]: [*const u8; 2],
    step: usize,
    sums: &mut Sums,
    groups: std::ops::Range<usize>,
    part: usize,
) {
    let unit_bytes = if PATH + RAW == 0 { 8 * VECTOR } else { (PATH + RAW) * VECTOR };
    let at = part * T::BYTES;
    let mut acc = [[T::load_sums(sums[0][0].as_ptr()); 2]; 8];
    for (i, acc) in acc.iter_mut().enumerate().take(T::ROWS) {
        for (plane, acc) in acc.iter_mut().enumerate() {
            *acc = T::load_sums(sums[R0 + i][plane].as_ptr().add(at / 4));
        }
    }
    let mut unit = block.codes.wrapping_add(groups.start * unit_bytes + at);
    let mut before = block.before(groups.start, at);
    for group in groups {
        if part == 0 && R0 == 0 {
            for v in 0..PATH + RAW {
                T::prefetch(unit.wrapping_add(PREFETCH + v * VECTOR));
            }
        }
        let (high, low) = (activations::<T>(high.add(step * group), step, at), activations::<T>(low.add(step * group), step, at));
        rows4::<T, PATH, RAW, READS, BITS, R0>(unit, before, block.tables, |j, w| {
            acc[j][0] = T::dot(acc[j][0], w, high);
            acc[j][1] = T::dot(acc[j][1], w, low);
        });
        if T::ROWS == 8 {
            rows4::<T, PATH, RAW, READS, BITS, 4>(unit, before, block.tables, |j, w| {
                acc[4 + j][0] = T::dot(acc[4 + j][0], w, high);
                acc[4 + j][1] = T::dot(acc[4 + j][1], w, low);
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
    for (i, acc) in acc.iter().enumerate().take(T::ROWS) {
        for (plane, acc) in acc.iter().enumerate() {
            T::store_sums(sums[R0 + i][plane].as_mut_ptr().add(at / 4), *acc);
        }
    }
}

/// The path vectors `age` path bytes before those of the first row block: each lane continues the lane before it, the first one follows zeros. `blocks`:
/// all row blocks of the run.
pub(crate) fn before_first(
    blocks: &[u8],
    block_bytes: usize,
    width: usize,
    path_bits: usize,
    columns_per_vector: usize,
    age: usize,
) -> Vec<u8> {
    let per_lane = blocks.len() / block_bytes * path_bits;
    let lanes = VECTOR / columns_per_vector;
    let mut vectors = Vec::with_capacity(block_bytes / width);
    for group in 0..block_bytes / (width * VECTOR) {
        for lane in 0..lanes {
            let Some(byte) = (lane * per_lane).checked_sub(age) else {
                vectors.resize(vectors.len() + columns_per_vector, 0);
                continue;
            };
            let (lane, byte) = (byte / per_lane, byte % per_lane);
            let vector = byte / path_bits * block_bytes + (group * width + byte % path_bits) * VECTOR;
            vectors.extend_from_slice(&blocks[vector + lane * columns_per_vector..][..columns_per_vector]);
        }
    }
    vectors
}
