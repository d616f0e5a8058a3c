//! 8-bit rows: embedding tables and heads. Row `r` is `scale * scales[r] * q[r][..]`, q int8 in -127..=127.
use crate::activations::{largest, rounded, section_of, SECTION, SMALLEST, TOP};
use crate::cpu::{isa, rows_dot, RowsDot, TwoBytes, MOST_COLUMNS};
use crate::packed::{check_finite, check_length, check_range, Bytes, PackError};
use crate::parallel::share;
use crate::product::{Output, PARALLEL_WORK};
use half::f16;
use rayon::prelude::*;
use std::cell::Cell;
use std::ops::Range;

/// From this many tokens on, rows are converted once and multiplied as f32.
const MANY: usize = 16;

/// Rows that a thread takes at a time.
const PIECE: usize = 64;

/// An int8 matrix `rows x columns` with one f16 scale a row, times one f32 scale.
pub struct Rows8 {
    rows: usize,
    columns: usize,
    q: Bytes,
    range: Range<usize>,
    /// One a row, the common scale included.
    scales: Vec<f32>,
    dot: RowsDot,
}

impl Rows8 {
    /// `q[range]` holds `rows * columns` int8 values, row-major; `scales` one a row.
    ///
    /// # Errors
    /// An empty matrix, a wrong length, a range outside of the bytes, a scale that is not finite, or `WSRUN_ISA` asks for what
    /// this CPU cannot run.
    pub fn new(rows: usize, columns: usize, q: Bytes, range: Range<usize>, scales: Vec<f16>, scale: f32) -> Result<Self, PackError> {
        if rows == 0 || columns == 0 {
            return Err(PackError::Empty { rows, columns });
        }
        let expected = rows.checked_mul(columns).ok_or(PackError::TooLarge { rows, columns })?;
        check_range(&q, &range)?;
        check_length("q", range.len(), expected)?;
        check_length("scales", scales.len(), rows)?;
        check_finite("scale", std::iter::once(scale))?;
        check_finite("scales", scales.iter().map(|s| s.to_f32()))?;
        Ok(Rows8 { rows, columns, q, range, scales: scales.iter().map(|s| s.to_f32() * scale).collect(), dot: rows_dot(isa()?) })
    }

    /// Quantizes a dense row-major table of finite values: absmax a row. Returns int8 values, row scales and the common scale.
    ///
    /// # Panics
    /// If `dense` is not a whole number of rows or `columns` is 0.
    pub fn quantize(dense: &[f32], columns: usize) -> (Vec<i8>, Vec<f16>, f32) {
        assert!(columns > 0 && dense.len().is_multiple_of(columns), "{} values in rows of {columns}", dense.len());
        let absmax = |row: &[f32]| row.iter().fold(0.0f32, |m, v| m.max(v.abs()));
        // The largest row scale becomes 2^15, so that rows down to 2^-29 of the largest keep full precision in f16.
        let scale = match absmax(dense) / 127.0 / 32768.0 {
            s if s >= f32::MIN_POSITIVE => s,
            _ => f32::MIN_POSITIVE,
        };
        let scales: Vec<f16> = dense.chunks_exact(columns).map(|row| f16::from_f32(absmax(row) / 127.0 / scale)).collect();
        let mut q = vec![0i8; dense.len()];
        q.par_chunks_mut(columns).zip(dense.par_chunks(columns)).zip(&scales).for_each(|((q, row), row_scale)| {
            let step = row_scale.to_f32() * scale;
            let inverse = if step > 0.0 { 1.0 / step } else { 0.0 };
            for (q, v) in q.iter_mut().zip(row) {
                *q = (v * inverse).round().clamp(-127.0, 127.0) as i8;
            }
        });
        (q, scales, scale)
    }

    /// Rows.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Columns.
    pub fn columns(&self) -> usize {
        self.columns
    }

    /// One dense row.
    ///
    /// # Panics
    /// If `r` is out of range or `out` is not `columns` long.
    pub fn row(&self, r: usize, out: &mut [f32]) {
        assert_eq!(out.len(), self.columns, "out");
        for (out, q) in out.iter_mut().zip(&self.quantized()[r * self.columns..]) {
            *out = self.scales[r] * f32::from(*q as i8);
        }
    }

    /// `y[t][r] = row r . x[t]`: `x` is `tokens x columns`, `y` `tokens x rows`, both row-major. Runs on the current rayon pool; the result does
    /// not depend on its size.
    ///
    /// # Panics
    /// If `x` or `y` has another length.
    pub fn multiply(&self, x: &[f32], tokens: usize, y: &mut [f32]) {
        assert_eq!(x.len(), tokens * self.columns, "x");
        assert_eq!(y.len(), tokens * self.rows, "y");
        if tokens < MANY && self.columns <= MOST_COLUMNS {
            self.multiply_few(x, y);
        } else {
            self.multiply_many(x, tokens, y);
        }
    }

    /// Integer products, of activations in two bytes.
    fn multiply_few(&self, x: &[f32], y: &mut [f32]) {
        thread_local!(static SCRATCH: Cell<Vec<TwoBytes>> = Cell::default());
        let mut activations = SCRATCH.take();
        let tokens = x.len() / self.columns;
        activations.resize_with(activations.len().max(tokens), TwoBytes::default);
        x.chunks_exact(self.columns).zip(&mut activations).for_each(|(x, activations)| activations.set(x));
        let piece = if self.rows * self.columns < PARALLEL_WORK { self.rows } else { PIECE };
        let output = Output::new(y, self.rows);
        share(self.rows.div_ceil(piece), |pieces| {
            for first in pieces.map(|p| p * piece) {
                let rows = first..self.rows.min(first + piece);
                let q = &self.quantized()[rows.start * self.columns..rows.end * self.columns];
                for (token, activations) in activations[..tokens].iter().enumerate() {
                    // SAFETY: every piece has its own rows of the output; the function was chosen for a path that this CPU can run.
                    unsafe { (self.dot)(q, &self.scales[rows.clone()], activations, output.rows(token, rows.clone())) };
                }
            }
        });
        SCRATCH.set(activations);
    }

    /// Pieces of rows are decoded once and multiplied as f32.
    fn multiply_many(&self, x: &[f32], tokens: usize, y: &mut [f32]) {
        let output = Output::new(y, self.rows);
        (0..self.rows.div_ceil(PIECE)).into_par_iter().for_each_init(Vec::new, |dense: &mut Vec<f32>, piece| {
            let rows = piece * PIECE..self.rows.min((piece + 1) * PIECE);
            dense.resize(rows.len() * self.columns, 0.0);
            for (r, dense) in rows.clone().zip(dense.chunks_exact_mut(self.columns)) {
                self.row(r, dense);
            }
            // SAFETY: every piece has its own rows of the output, which has `tokens` tokens.
            unsafe { multiply_dense(dense, rows.len(), x, tokens, output.pointer(rows.start), self.rows) };
        });
    }

    fn quantized(&self) -> &[u8] {
        &(*self.q).as_ref()[self.range.clone()]
    }
}

impl TwoBytes {
    /// Values of the second byte for one of the first: what rounding leaves is half of one at most.
    const FINER: f32 = 2.0 * TOP;

    /// Represents `x` up to 1 / 64516 of its largest value.
    fn set(&mut self, x: &[f32]) {
        let sections = x.len().div_ceil(SECTION);
        // Magnitudes compare like their bits; NaN is the largest of all.
        let largest = (0..sections).map(|n| largest(&section_of(x, n)).to_bits()).max().map_or(0.0, f32::from_bits);
        let step = if largest > SMALLEST && largest.is_finite() { largest / TOP } else { 0.0 };
        self.steps = [if largest.is_finite() { step } else { f32::NAN }, step / Self::FINER];
        self.starts = [0; 2];
        self.bytes.iter_mut().for_each(Vec::clear);
        for n in 0..sections {
            let values = section_of(x, n);
            let (mut first, mut second) = ([0; SECTION], [0; SECTION]);
            if step > 0.0 {
                let inverse = 1.0 / step;
                first = rounded(&values, inverse);
                second = rounded(&std::array::from_fn(|i| values[i] * inverse - f32::from(first[i])), Self::FINER);
            }
            for (byte, q) in [first, second].iter().enumerate() {
                self.starts[byte] -= 128 * q.iter().map(|q| i32::from(*q)).sum::<i32>();
                self.bytes[byte].extend_from_slice(q);
            }
        }
    }
}

/// `y[t * y_stride + r] = sum_j dense[r][j] x[t][j]` on this thread; `dense` is `rows` rows, `x` `tokens` rows of as many columns.
///
/// # Safety
/// `y` must be writable for `tokens` rows of `y_stride` elements, the first `rows` of each.
unsafe fn multiply_dense(dense: &[f32], rows: usize, x: &[f32], tokens: usize, y: *mut f32, y_stride: usize) {
    let columns = x.len() / tokens;
    gemm::gemm(
        rows,
        tokens,
        columns,
        y,
        y_stride as isize,
        1,
        false,
        dense.as_ptr(),
        1,
        columns as isize,
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
