//! Products of a packed matrix: its prepared form, and the integer kernels over row blocks and tokens.
use crate::activations::{Activations, SECTION};
use crate::code::CodeSet;
use crate::cpu::{self, before_first, Ahead, Aligned, Blocks, ByLane, Isa, Kernels, Levels, Lines, Partial, Tables, Tiles, SECTIONS};
use crate::layout::{Geometry, Units, VECTOR};
use crate::packed::{Exception, Parts};
use crate::parallel::share;
use half::f16;
use rayon::prelude::*;
use std::cell::Cell;
use std::ops::Range;
use std::sync::Arc;

/// From this many tokens on, levels are looked up once for all of them. Measured on a Sapphire Rapids class Xeon with AVX-512, 4096 x 4096, 3 bits, one thread,
/// in 10^9 weights times tokens a second, looked up once and for each token: 28 and 21 for 2 tokens, 50 and 30 for 4. Plain AVX2 on Zen 5: 29 and 14 for 4.
const MANY: usize = 2;

/// Tokens that share looked-up levels: their sums stay in the second-level cache. With AMX look-ups would otherwise take as long as the products.
fn piece(isa: Isa) -> usize {
    match isa {
        Isa::Avx512Amx => 256,
        _ => 64,
    }
}

/// Row blocks times tokens whose sums are in use at once with many tokens: half of the first-level cache.
const SUMS: usize = 64;

/// So many tokens before its rows are written, the lines of the cache are asked for: they are far apart.
const STORED_AHEAD: usize = 4;

/// Weights times tokens below which a product stays on one thread.
pub(crate) const PARALLEL_WORK: usize = 1 << 18;

/// What products need besides the parts: tables, scales as f32, and the kernels of this machine.
pub(crate) struct Prepared {
    runs: Vec<Run>,
    /// `[row block][lane][row]`, 0 beyond the matrix.
    row_scale: Vec<[f16; 8]>,
    /// In-features of width 16.
    exact: Vec<u32>,
    /// In the order of row blocks.
    exceptions: Vec<Exception>,
    /// `[row block]`: its first exception, and the end of all.
    first_exception: Vec<usize>,
    isa: Isa,
}

struct Run {
    kernels: Kernels,
    tables: Arc<Tables>,
    units: Units,
    /// Path vectors one and two path bytes before the first row block; none at width 8.
    before_first: [Vec<u8>; 2],
    /// Columns.
    count: usize,
    /// In-features and scales of sections of columns, those beyond the last one copies of it without weight: sections of known length are unrolled. They come from main
    /// memory for each token, so they are small.
    sections: Vec<([u16; SECTION], [f16; SECTION])>,
    /// Value of a level before row and column scales.
    level: f32,
}

impl Run {
    /// The largest magnitude of a level, if the kernels add up to 16 bits; otherwise 0.
    fn most(&self) -> usize {
        if self.kernels.halves {
            self.tables.most
        } else {
            0
        }
    }

    /// The activations of the run's columns, by section; `x` has all in-features of a token.
    ///
    /// A function of its own, so that it is not compiled for wide vectors: a gather of 16 takes Zen 4 longer than 16 loads.
    #[inline(never)]
    fn gather(&self, x: &[f32], gathered: &mut Vec<[f32; SECTION]>) {
        gathered.clear();
        // SAFETY: the columns of a run are in-features.
        let section = |columns: &[u16; SECTION]| std::array::from_fn(|i| unsafe { *x.get_unchecked(usize::from(columns[i])) });
        gathered.extend(self.sections.iter().map(|(columns, _)| section(columns)));
    }
}

/// Sections of a run: columns as its geometry lists them, with a scale each.
fn sections(columns: &[u32], scales: &[f16]) -> Vec<([u16; SECTION], [f16; SECTION])> {
    let section = |(columns, scales): (&[u32], &[f16])| {
        let column = |i: usize| columns[i.min(columns.len() - 1)] as u16;
        (std::array::from_fn(column), std::array::from_fn(|i| scales.get(i).copied().unwrap_or(f16::ZERO)))
    };
    columns.chunks(SECTION).zip(scales.chunks(SECTION)).map(section).collect()
}

impl Prepared {
    /// For checked parts and a path that this CPU can run.
    pub fn new(parts: &Parts, geometry: &Geometry, codes: &CodeSet, bytes: &[u8], isa: Isa) -> Self {
        let mut scales = &parts.col_scale[..];
        let mut run = |run: &crate::layout::Run| {
            let code = codes.get(run.width).map(|c| &**c);
            let path_bits = code.map_or(1, |c| usize::from(c.path_bits));
            let before = |age| code.map_or(Vec::new(), |_| before_first(bytes, &run.units, geometry.lanes, path_bits, age));
            let kernels = cpu::select(isa, code, geometry.lanes);
            let own;
            (own, scales) = scales.split_at(run.columns.len());
            Run {
                kernels,
                tables: Tables::shared(code, kernels.signed),
                units: run.units,
                before_first: [1, 2].map(before),
                count: run.columns.len(),
                sections: sections(&run.columns, own),
                level: parts.scale * code.map_or(1.0, |c| c.unit),
            }
        };
        let runs = geometry.runs.iter().map(&mut run).collect();
        let scale = |row: usize| parts.row_scale.get(row).copied().unwrap_or(f16::ZERO);
        let rows = |block: usize, lane: usize| std::array::from_fn(|row| scale(lane * geometry.segment + 8 * block + row));
        let row_scale = (0..geometry.blocks()).flat_map(|block| (0..geometry.lanes).map(move |lane| rows(block, lane))).collect();
        let exact = (0u32..).zip(&parts.widths).filter(|(_, w)| **w == 16).map(|(j, _)| j).collect();
        let block = |e: &Exception| e.row as usize % geometry.segment / 8;
        let mut exceptions = parts.exceptions.clone();
        exceptions.sort_by_key(block);
        let first_exception = (0..=geometry.blocks()).map(|b| exceptions.partition_point(|e| block(e) < b)).collect();
        Prepared { runs, row_scale, exact, exceptions, first_exception, isa }
    }
}

/// A matrix and what a product reads of it.
pub(crate) struct Product<'a> {
    pub parts: &'a Parts,
    pub geometry: &'a Geometry,
    pub prepared: &'a Prepared,
    pub bytes: &'a [u8],
}

/// The output, written by row blocks from several threads.
pub(crate) struct Output {
    y: *mut f32,
    rows: usize,
}

// SAFETY: every task writes its own rows (`Output::rows`).
unsafe impl Sync for Output {}

impl Output {
    /// `y`: `tokens x rows`.
    pub fn new(y: &mut [f32], rows: usize) -> Self {
        Output { y: y.as_mut_ptr(), rows }
    }

    /// The first token's output of row `row`.
    pub fn pointer(&self, row: usize) -> *mut f32 {
        self.y.wrapping_add(row)
    }

    /// Rows `rows` of a token's output.
    ///
    /// # Safety
    /// `token` and `rows` must lie within the output, and nobody else may hold these rows.
    #[allow(clippy::mut_from_ref)]
    pub unsafe fn rows(&self, token: usize, rows: Range<usize>) -> &mut [f32] {
        std::slice::from_raw_parts_mut(self.y.add(token * self.rows + rows.start), rows.len())
    }
}

impl Product<'_> {
    /// `x`: `tokens x in_features`, `y`: `tokens x out_features`.
    pub fn multiply(&self, x: &[f32], tokens: usize, y: &mut [f32]) {
        // Of each piece and run.
        thread_local!(static SCRATCH: Cell<Vec<Vec<Activations>>> = Cell::default());
        self.prefetch();
        let output = Output::new(y, self.parts.out_features);
        let piece = piece(self.prepared.isa);
        let mut activations = SCRATCH.take();
        activations.resize_with(activations.len().max(tokens.div_ceil(piece)), Vec::new);
        let pieces = x.par_chunks(piece * self.parts.widths.len());
        pieces.zip(&mut activations).for_each(|(x, activations)| self.quantize(x, activations));
        self.for_blocks(tokens, |blocks| {
            for ((x, activations), n) in x.chunks(piece * self.parts.widths.len()).zip(&activations).zip(0..) {
                self.rows(blocks.clone(), n * piece, x, activations, &output);
            }
        });
        SCRATCH.set(activations);
    }

    /// Asks for what a product reads first, or here and there. Weights of a token before have driven it all out of the caches.
    fn prefetch(&self) {
        for run in &self.prepared.runs {
            cpu::prefetch_values(&run.sections);
        }
        for run in &self.prepared.runs {
            cpu::prefetch_values(&self.bytes[run.units.offset..][..run.units.len()]);
        }
        cpu::prefetch_values(&self.prepared.row_scale);
        cpu::prefetch_values(&self.prepared.exceptions);
    }

    /// Splits the row blocks into tasks. What a task computes does not depend on where it ends.
    fn for_blocks(&self, tokens: usize, task: impl Fn(Range<usize>) + Sync) {
        let blocks = self.geometry.blocks();
        let work = self.parts.out_features * self.parts.widths.len() * tokens;
        if work < PARALLEL_WORK {
            task(0..blocks);
        } else {
            share(blocks, task);
        }
    }

    /// Row blocks of each panel of each run, in the order of the codes, with the run. They are multiplied before those of the next panel are.
    fn panels(&self, blocks: Range<usize>) -> impl Iterator<Item = (usize, Blocks<'_>)> {
        let panels = || (0..).zip(&self.prepared.runs).flat_map(|(r, run)| run.units.panels().map(move |panel| (r, panel)));
        let before = blocks.start.saturating_sub(2)..blocks.start;
        let mut after = panels().skip(1);
        panels().map(move |(r, panel)| {
            let run = &self.prepared.runs[r];
            let own = panel.blocks(blocks.clone());
            let mut ahead = Ahead { end: self.bytes[own.clone()].as_ptr_range().end, len: own.len(), gap: 0 };
            let mut before_next = Lines { first: ahead.end, step: 0, count: 0 };
            if let Some((r, next)) = after.next() {
                ahead.gap = next.blocks(blocks.clone()).start as isize - own.end as isize;
                let (before, step) = (next.blocks(before.clone()), self.prepared.runs[r].units.bytes);
                before_next = Lines { first: self.bytes[before.clone()].as_ptr(), step, count: before.len() / step };
            }
            let blocks = Blocks {
                codes: self.bytes[panel.offset..].as_ptr(),
                blocks: blocks.clone(),
                block_bytes: panel.block_bytes,
                groups: panel.groups,
                ahead,
                before_next,
                before_first: run.before_first.each_ref().map(|vectors| vectors.as_ptr()),
                tables: &run.tables,
            };
            (r, blocks)
        })
    }

    /// Rows of lane `lane` that the row blocks hold.
    fn lane_rows(&self, blocks: &Range<usize>, lane: usize) -> Range<usize> {
        let first = lane * self.geometry.segment;
        let clip = |block: usize| (first + 8 * block).min(self.parts.out_features);
        clip(blocks.start)..clip(blocks.end)
    }

    /// Quantizes the tokens of `x` with the instructions of the path: plain Rust, several times as fast where the compiler may use wide vectors.
    fn quantize(&self, x: &[f32], activations: &mut Vec<Activations>) {
        #[cfg(target_arch = "x86_64")]
        {
            #[target_feature(enable = "avx2")]
            fn avx2(product: &Product, x: &[f32], activations: &mut Vec<Activations>) {
                product.quantize_here(x, activations);
            }
            #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
            fn avx512(product: &Product, x: &[f32], activations: &mut Vec<Activations>) {
                product.quantize_here(x, activations);
            }
            match self.prepared.isa {
                Isa::Portable => {}
                // SAFETY: the path was available when the matrix was made.
                Isa::Avx2 | Isa::Avx2Gfni => return unsafe { avx2(self, x, activations) },
                // SAFETY: as above.
                Isa::Avx512 | Isa::Avx512Amx => return unsafe { avx512(self, x, activations) },
            }
        }
        self.quantize_here(x, activations);
    }

    #[inline(always)]
    fn quantize_here(&self, x: &[f32], activations: &mut Vec<Activations>) {
        activations.resize_with(activations.len().max(self.prepared.runs.len()), Activations::default);
        let tokens = x.len() / self.parts.widths.len();
        let mut gathered = Vec::new();
        for (run, activations) in self.prepared.runs.iter().zip(activations) {
            activations.start(tokens, run.count, self.geometry.lanes, run.level, run.most());
            for (token, x) in x.chunks_exact(self.parts.widths.len()).enumerate() {
                run.gather(x, &mut gathered);
                activations.put(token, |n| {
                    let (values, (_, scales)) = (&gathered[n], &run.sections[n]);
                    // Zero beyond the last column, as the scales are.
                    std::array::from_fn(|i| values[i] * widen(scales[i]))
                });
            }
            activations.finish();
        }
    }

    /// Row blocks for the tokens from `first` on: by the integer kernels, then exact columns and exceptions.
    fn rows(&self, blocks: Range<usize>, first: usize, x: &[f32], activations: &[Activations], output: &Output) {
        thread_local!(static SCRATCH: Cell<(Vec<Partial>, Vec<[Levels; 16]>)> = Cell::default());
        let lanes = self.geometry.lanes;
        let tokens = x.len() / self.parts.widths.len();
        let x = || x.chunks_exact(self.parts.widths.len()).enumerate();
        let (mut partials, mut levels) = SCRATCH.take();
        levels.resize(SECTIONS, [Aligned([[0; VECTOR]; 8]); 16]);
        let tiles = Tiles::new(self.prepared.isa, tokens);
        let at_once = if tokens < MANY { blocks.len() } else { SUMS / tokens }.max(1);
        for first_block in blocks.clone().step_by(at_once) {
            let blocks = first_block..blocks.end.min(first_block + at_once);
            partials.clear();
            partials.resize(blocks.len() * tokens, Aligned([[0.0; 16]; 8]));
            for (r, panel) in self.panels(blocks.clone()) {
                let (run, x) = (&self.prepared.runs[r], activations[r].inputs());
                match levels.first_chunk_mut() {
                    // SAFETY: `panels` checked the bounds of the codes, and inputs cover the run's groups.
                    Some(levels) if tokens >= MANY => unsafe { run.kernels.dot_many(&panel, &x, levels, &tiles, &mut partials) },
                    // SAFETY: as above.
                    _ => unsafe { run.kernels.dot(&panel, &x, &mut partials) },
                }
            }
            for (b, partials) in blocks.zip(partials.chunks_exact_mut(tokens)) {
                self.store(b, first, partials, output);
            }
        }
        SCRATCH.set((partials, levels));
        for lane in (0..lanes).filter(|_| !self.prepared.exact.is_empty()) {
            let rows = self.lane_rows(&blocks, lane);
            for (t, x) in x() {
                // SAFETY: as above.
                let y = unsafe { output.rows(first + t, rows.clone()) };
                for (n, &j) in self.prepared.exact.iter().enumerate() {
                    let x = self.parts.scale * x[j as usize];
                    for (y, v) in y.iter_mut().zip(&self.parts.exact[n * self.parts.out_features..][rows.clone()]) {
                        *y += x * widen(*v);
                    }
                }
            }
        }
        let [from, to] = [blocks.start, blocks.end].map(|block| self.prepared.first_exception[block]);
        for e in &self.prepared.exceptions[from..to] {
            let row = e.row as usize;
            for (t, x) in x() {
                // SAFETY: as above: the row is one of a row block.
                let y = unsafe { output.rows(first + t, row..row + 1) };
                y[0] += self.parts.scale * widen(e.value) * x[usize::from(e.column)];
            }
        }
    }

    /// Writes the products of a row block by the tokens from `first` on, row scales applied.
    fn store(&self, block: usize, first: usize, partials: &mut [Partial], output: &Output) {
        let lanes = self.geometry.lanes;
        if lanes < 16 {
            partials.iter_mut().flat_map(|rows| rows.iter_mut()).for_each(|row| add_up(row, lanes));
        }
        #[cfg(target_arch = "x86_64")]
        {
            #[target_feature(enable = "avx2")]
            fn avx2(product: &Product, block: usize, first: usize, partials: &[Partial], output: &Output) {
                product.store_here(block, first, partials, output, |rows| cpu::by_lane_avx2(rows));
            }
            if self.prepared.isa != Isa::Portable {
                // SAFETY: all other paths have AVX2, and the path was available when the matrix was made.
                return unsafe { avx2(self, block, first, partials, output) };
            }
        }
        self.store_here(block, first, partials, output, cpu::by_lane);
    }

    #[inline(always)]
    fn store_here(&self, block: usize, first: usize, partials: &[Partial], output: &Output, by_lane: impl Fn(&Partial) -> ByLane) {
        let lanes = self.geometry.lanes;
        let scales = &self.prepared.row_scale[block * lanes..][..lanes];
        let scales: [_; 16] = std::array::from_fn(|lane| scales.get(lane).map_or([0.0; 8], |scales| scales.map(widen)));
        let rows: [_; 16] = std::array::from_fn(|lane| if lane < lanes { self.lane_rows(&(block..block + 1), lane) } else { 0..0 });
        for (t, partial) in (first..).zip(partials) {
            for rows in &rows[..lanes] {
                // Rows of a token are a line of the cache each.
                cpu::prefetch_line(output.pointer(rows.start).wrapping_add((t + STORED_AHEAD) * output.rows));
            }
            let values = by_lane(partial);
            for ((rows, values), scales) in rows.iter().zip(values).zip(&scales).take(lanes) {
                let values: [f32; 8] = std::array::from_fn(|row| values[row] * scales[row]);
                // SAFETY: rows within the matrix; row blocks belong to one task each.
                let y = unsafe { output.rows(t, rows.clone()) };
                // Nearly always all eight rows: one store.
                if let Ok(y) = <&mut [f32; 8]>::try_from(&mut *y) {
                    *y = values;
                } else {
                    y.iter_mut().zip(values).for_each(|(y, value)| *y = value);
                }
            }
        }
    }
}

/// The sums of the 32-bit lanes of each lane, at the first places.
fn add_up(row: &mut [f32; 16], lanes: usize) {
    /// Of known length, so that it is unrolled.
    fn by<const N: usize>(row: &mut [f32; 16]) {
        let sums = row.as_chunks::<N>().0.iter().map(|sum| sum.iter().sum());
        let mut added = [0.0; 16];
        added.iter_mut().zip(sums).for_each(|(to, sum): (_, f32)| *to = sum);
        *row = added;
    }
    match lanes {
        8 => by::<2>(row),
        4 => by::<4>(row),
        2 => by::<8>(row),
        _ => by::<16>(row),
    }
}

/// A finite f16 as f32, exactly. Without run-time detection of F16C, so that loops over it vectorize.
fn widen(v: f16) -> f32 {
    let bits = u32::from(v.to_bits());
    // Exponent and mantissa in place, the exponent too small by 127 - 15.
    let magnitude = f32::from_bits((bits & 0x7FFF) << 13) * f32::from_bits((127 + 112) << 23);
    f32::from_bits(magnitude.to_bits() | (bits & 0x8000) << 16)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn widen_is_exact_for_all_finite_halves() {
        for bits in (0..=u16::MAX).filter(|b| f16::from_bits(*b).is_finite()) {
            assert_eq!(widen(f16::from_bits(bits)).to_bits(), f16::from_bits(bits).to_f32().to_bits());
        }
    }
}
