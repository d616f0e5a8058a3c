//! Products of a packed matrix: its prepared form, the integer kernels for few tokens, decoded row blocks for many.
use crate::activations::Activations;
use crate::code::CodeSet;
use crate::cpu::{self, first_previous, Block, Dense, Isa, Kernels, Partial, Tables};
use crate::layout::{Geometry, VECTOR};
use crate::packed::Parts;
use half::f16;
use rayon::prelude::*;
use std::cell::Cell;
use std::ops::Range;

/// From this many tokens on, row blocks are decoded once and multiplied as f32. Measured on Zen 5, 3 bits, one thread, in 10^9 weights times tokens a
/// second, integer kernels against f32: AVX-512 100 and 50 for 4096 x 4096, 44 and 65 for 576 x 576; plain AVX2 30. The same on every path, so that results are.
pub(crate) const DENSE_TOKENS: usize = 16;

/// Weights times tokens below which a product stays on one thread.
pub(crate) const PARALLEL_WORK: usize = 1 << 18;

/// Rows of a decoded piece: enough to pay for packing the activations in each matrix product (128 were slower, 512 no faster), few enough for little memory.
const DENSE_ROWS: usize = 256;

/// What products need besides the parts: tables, scales as f32, and the kernels of this machine.
pub(crate) struct Prepared {
    runs: Vec<Run>,
    /// One a padded row, 0 beyond the matrix.
    row_scale: Vec<f32>,
    /// In-features of width 16.
    exact: Vec<u32>,
    /// In-features of width 0 that have exceptions.
    loose: Vec<u32>,
}

struct Run {
    kernels: Kernels,
    tables: Box<Tables>,
    /// Bytes of a unit.
    unit: usize,
    /// Where a unit's last path vector starts.
    last_path: usize,
    /// Previous path vectors of the first row block; empty if the code needs none.
    first_previous: Vec<u8>,
    /// One a column, padding (0) included.
    col_scale: Vec<f32>,
    /// Value of a level before row and column scales.
    level: f32,
}

impl Prepared {
    /// For checked parts and a path that this CPU can run.
    pub fn new(parts: &Parts, geometry: &Geometry, codes: &CodeSet, bytes: &[u8], isa: Isa) -> Self {
        let per_vector = geometry.columns_per_vector();
        let mut scales = parts.col_scale.iter();
        let run = |run: &crate::layout::Run| {
            let code = codes.get(run.width).map(|c| &**c);
            let history = code.filter(|c| !cpu::is_local(c)).map_or(0, |c| usize::from(c.path_bits));
            let width = usize::from(run.width);
            let first_previous = if history == 0 {
                Vec::new()
            } else {
                let last = run.offset + (geometry.blocks() - 1) * run.block_bytes();
                first_previous(&bytes[last..][..run.block_bytes()], width, history, per_vector)
            };
            let mut col_scale: Vec<f32> = scales.by_ref().take(run.columns.len()).map(|s| s.to_f32()).collect();
            col_scale.resize(run.groups * per_vector, 0.0);
            Run {
                kernels: cpu::select(isa, code),
                tables: Tables::new(code),
                unit: width * VECTOR,
                last_path: history.saturating_sub(1) * VECTOR,
                first_previous,
                col_scale,
                level: parts.scale * code.map_or(1.0, |c| c.unit),
            }
        };
        let runs = geometry.runs.iter().map(run).collect();
        let mut row_scale: Vec<f32> = parts.row_scale.iter().map(|s| s.to_f32()).collect();
        row_scale.resize(geometry.padded_rows(), 0.0);
        let of_width = |width: u8| (0u32..).zip(&parts.widths).filter(move |(_, w)| **w == width).map(|(j, _)| j);
        let mut excepted = vec![false; parts.widths.len()];
        parts.exceptions.iter().for_each(|e| excepted[usize::from(e.column)] = true);
        let loose = of_width(0).filter(|j| excepted[*j as usize]).collect();
        Prepared { runs, row_scale, exact: of_width(16).collect(), loose }
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
        debug_assert!(row < self.rows);
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
        let output = Output::new(y, self.parts.out_features);
        if tokens < DENSE_TOKENS {
            thread_local!(static SCRATCH: Cell<Activations> = Cell::default());
            let mut activations = SCRATCH.take();
            self.quantize(x, &mut activations);
            self.for_blocks(1, tokens, |blocks| self.packed_rows(blocks, x, &activations, &output));
            SCRATCH.set(activations);
        } else {
            thread_local!(static SCRATCH: Cell<Vec<f32>> = Cell::default());
            let mut gathered = SCRATCH.take();
            self.gather(x, &mut gathered);
            let step = DENSE_ROWS.div_ceil(8 * self.geometry.lanes);
            self.for_blocks(step, tokens, |blocks| self.dense_rows(blocks, &gathered, tokens, &output));
            SCRATCH.set(gathered);
        }
    }

    /// Splits the row blocks into tasks of whole multiples of `step` blocks. What a task computes must not depend on where it ends.
    fn for_blocks(&self, step: usize, tokens: usize, task: impl Fn(Range<usize>) + Sync) {
        let blocks = self.geometry.blocks();
        let steps = blocks.div_ceil(step);
        let range = |from: usize, to: usize| from * step..(to * step).min(blocks);
        let threads = rayon::current_num_threads();
        let work = self.parts.out_features * self.parts.widths.len() * tokens;
        if threads == 1 || steps == 1 || work < PARALLEL_WORK {
            task(range(0, steps));
        } else {
            let tasks = steps.min(4 * threads);
            (0..tasks).into_par_iter().with_max_len(1).for_each(|t| task(range(steps * t / tasks, steps * (t + 1) / tasks)));
        }
    }

    fn block<'b>(&'b self, run: usize, block: usize) -> Block<'b> {
        let (at, run) = (&self.geometry.runs[run], &self.prepared.runs[run]);
        let codes = &self.bytes[at.offset + block * at.block_bytes()..][..at.block_bytes()];
        let (previous, previous_step) = if run.first_previous.is_empty() {
            (codes, run.unit)
        } else if block == 0 {
            (&run.first_previous[..], VECTOR)
        } else {
            (&self.bytes[at.offset + (block - 1) * at.block_bytes() + run.last_path..], run.unit)
        };
        Block { codes: codes.as_ptr(), groups: at.groups, previous: previous.as_ptr(), previous_step, tables: &run.tables }
    }

    /// Rows of lane `lane` that the row blocks hold.
    fn lane_rows(&self, blocks: &Range<usize>, lane: usize) -> Range<usize> {
        let first = lane * self.geometry.segment;
        let clip = |block: usize| (first + 8 * block).min(self.parts.out_features);
        clip(blocks.start)..clip(blocks.end)
    }

    fn quantize(&self, x: &[f32], activations: &mut Activations) {
        activations.clear();
        for x in x.chunks_exact(self.parts.widths.len()) {
            for (r, (at, run)) in self.geometry.runs.iter().zip(&self.prepared.runs).enumerate() {
                activations.push(r, self.geometry.lanes, run.level, |values| {
                    values.extend(at.columns.iter().zip(&run.col_scale).map(|(&j, scale)| x[j as usize] * scale));
                    values.resize(run.col_scale.len(), 0.0);
                });
            }
            activations.end_token();
        }
    }

    /// Row blocks by the integer kernels, then exact columns and exceptions.
    fn packed_rows(&self, blocks: Range<usize>, x: &[f32], activations: &Activations, output: &Output) {
        let lanes = self.geometry.lanes;
        let x = || x.chunks_exact(self.parts.widths.len()).enumerate();
        for b in blocks.clone() {
            for (t, _) in x() {
                let mut partial: Partial = [[0.0; 16]; 8];
                for input in activations.token(t) {
                    let block = self.block(input.run, b);
                    // SAFETY: `block` checked the bounds of the run's codes, and planes cover the run's groups.
                    unsafe { self.prepared.runs[input.run].kernels.dot(&block, &activations.planes(input), &mut partial) };
                }
                for lane in 0..lanes {
                    let rows = self.lane_rows(&(b..b + 1), lane);
                    let scales = &self.prepared.row_scale[rows.clone()];
                    // SAFETY: rows within the matrix; row blocks belong to one task each.
                    let y = unsafe { output.rows(t, rows) };
                    for ((y, scale), partial) in y.iter_mut().zip(scales).zip(&partial) {
                        *y = scale * partial[lane * 16 / lanes..(lane + 1) * 16 / lanes].iter().sum::<f32>();
                    }
                }
            }
        }
        for lane in 0..lanes {
            let rows = self.lane_rows(&blocks, lane);
            for (t, x) in x() {
                // SAFETY: as above.
                let y = unsafe { output.rows(t, rows.clone()) };
                for (n, &j) in self.prepared.exact.iter().enumerate() {
                    let x = self.parts.scale * x[j as usize];
                    for (y, v) in y.iter_mut().zip(&self.parts.exact[n * self.parts.out_features..][rows.clone()]) {
                        *y += x * widen(*v);
                    }
                }
                for e in self.exceptions(&rows) {
                    y[e.row as usize - rows.start] += self.parts.scale * widen(e.value) * x[usize::from(e.column)];
                }
            }
        }
    }

    fn exceptions(&self, rows: &Range<usize>) -> impl Iterator<Item = &crate::packed::Exception> {
        let exceptions = &self.parts.exceptions;
        let first = exceptions.partition_point(|e| (e.row as usize) < rows.start);
        let end = rows.end;
        exceptions[first..].iter().take_while(move |e| (e.row as usize) < end)
    }

    /// Columns of a decoded row: the runs with their padding, exact columns, columns of width 0 with exceptions.
    fn dense_columns(&self) -> usize {
        self.prepared.runs.iter().map(|r| r.col_scale.len()).sum::<usize>() + self.prepared.exact.len() + self.prepared.loose.len()
    }

    /// Activations in the column order of decoded rows.
    fn gather(&self, x: &[f32], gathered: &mut Vec<f32>) {
        let n = self.parts.widths.len();
        let columns = self.dense_columns();
        gathered.clear();
        gathered.resize(x.len() / n * columns, 0.0);
        gathered.par_chunks_exact_mut(columns.max(1)).zip(x.par_chunks_exact(n)).for_each(|(mut out, x)| {
            for (at, run) in self.geometry.runs.iter().zip(&self.prepared.runs) {
                let (own, rest) = out.split_at_mut(run.col_scale.len());
                out = rest;
                own.iter_mut().zip(&at.columns).for_each(|(out, &j)| *out = x[j as usize]);
            }
            let others = self.prepared.exact.iter().chain(&self.prepared.loose);
            out.iter_mut().zip(others).for_each(|(out, &j)| *out = x[j as usize]);
        });
    }

    /// Place of in-feature `j` in decoded rows.
    fn dense_place(&self, j: u32) -> usize {
        let mut first = 0;
        for (at, run) in self.geometry.runs.iter().zip(&self.prepared.runs) {
            if let Ok(place) = at.columns.binary_search(&j) {
                return first + place;
            }
            first += run.col_scale.len();
        }
        for others in [&self.prepared.exact, &self.prepared.loose] {
            if let Ok(place) = others.binary_search(&j) {
                return first + place;
            }
            first += others.len();
        }
        unreachable!("column {j} has neither codes nor exceptions")
    }

    /// Row blocks decoded to f32, [`DENSE_ROWS`] at a time, by matrix product.
    fn dense_rows(&self, blocks: Range<usize>, gathered: &[f32], tokens: usize, output: &Output) {
        thread_local!(static SCRATCH: Cell<(Vec<f32>, Vec<f32>)> = Cell::default());
        let (mut dense, mut products) = SCRATCH.take();
        let (lanes, columns) = (self.geometry.lanes, self.dense_columns());
        let step = DENSE_ROWS.div_ceil(8 * lanes);
        for start in blocks.clone().step_by(step) {
            let piece = start..blocks.end.min(start + step);
            let rows = 8 * lanes * piece.len();
            dense.resize(rows * columns, 0.0);
            products.resize(rows * tokens, 0.0);
            self.decode_piece(piece.clone(), &mut dense, rows);
            // SAFETY: `products` is `tokens x rows`.
            unsafe { multiply_dense((&dense, 1, rows), rows, gathered, tokens, products.as_mut_ptr(), rows) };
            for (t, products) in products.chunks_exact(rows).enumerate() {
                for (b, products) in piece.clone().zip(products.chunks_exact(8 * lanes)) {
                    for lane in 0..lanes {
                        // SAFETY: rows within the matrix; row blocks belong to one task each.
                        let y = unsafe { output.rows(t, self.lane_rows(&(b..b + 1), lane)) };
                        y.iter_mut().zip(products[lane..].iter().step_by(lanes)).for_each(|(y, v)| *y = *v);
                    }
                }
            }
        }
        SCRATCH.set((dense, products));
    }

    /// Some row blocks as dense columns of `stride` elements: block by block, in a block row `i` of lane `l` at `i * lanes + l`.
    fn decode_piece(&self, piece: Range<usize>, dense: &mut [f32], stride: usize) {
        let lanes = self.geometry.lanes;
        for (n, b) in piece.enumerate() {
            let dense = &mut dense[n * 8 * lanes..];
            let row_scale = |i: usize, lane: usize| self.prepared.row_scale[lane * self.geometry.segment + 8 * b + i];
            let mut first = 0;
            for (r, run) in self.prepared.runs.iter().enumerate() {
                let mut factors = [0.0; 128];
                factors.iter_mut().take(8 * lanes).enumerate().for_each(|(n, f)| *f = run.level * row_scale(n / lanes, n % lanes));
                let out = dense[first * stride..].as_mut_ptr();
                let target = Dense { out, stride, column: &run.col_scale, row: &factors[..8 * lanes] };
                // SAFETY: `block` checked the bounds of the run's codes; from column `first` on `dense` has room for the run's columns.
                unsafe { run.kernels.decode(&self.block(r, b), &target) };
                first += run.col_scale.len();
            }
            for n in 0..self.prepared.loose.len() {
                dense[(first + self.prepared.exact.len() + n) * stride..][..8 * lanes].fill(0.0);
            }
            for lane in 0..lanes {
                let rows = self.lane_rows(&(b..b + 1), lane);
                for n in 0..self.prepared.exact.len() {
                    let values = &self.parts.exact[n * self.parts.out_features..][rows.clone()];
                    let column = &mut dense[(first + n) * stride..][..8 * lanes];
                    column[lane..].iter_mut().step_by(lanes).zip(values).for_each(|(out, v)| *out = self.parts.scale * widen(*v));
                }
                for e in self.exceptions(&rows) {
                    let i = e.row as usize - rows.start;
                    dense[self.dense_place(u32::from(e.column)) * stride + i * lanes + lane] += self.parts.scale * widen(e.value);
                }
            }
        }
    }
}

/// `y[t * y_stride + r] = sum_j dense(r, j) x[t][j]` on this thread. `dense` is values, the step from row to row and the step from column to column;
/// `x` is `tokens` rows.
///
/// # Safety
/// `dense` must have `rows` rows and as many columns as a row of `x`; `y` must be writable for `tokens` rows of `y_stride` elements, the first `rows` of each.
pub(crate) unsafe fn multiply_dense(dense: (&[f32], usize, usize), rows: usize, x: &[f32], tokens: usize, y: *mut f32, y_stride: usize) {
    let (values, row_step, column_step) = dense;
    let columns = x.len() / tokens;
    gemm::gemm(
        rows,
        tokens,
        columns,
        y,
        y_stride as isize,
        1,
        false,
        values.as_ptr(),
        column_step as isize,
        row_step as isize,
        x.as_ptr(),
        columns as isize,
        1,
        0.0,
        1.0,
        false,
        false,
        false,
        gemm::Parallelism::None,
    );
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
