//! 8-bit rows: embedding tables and heads. Row `r` is `scale * scales[r] * q[r][..]`, q int8 in -127..=127.
use crate::packed::{check_finite, check_length, check_range, Bytes, PackError};
use half::f16;
use rayon::prelude::*;
use std::ops::Range;

/// An int8 matrix `rows x columns` with one f16 scale a row, times one f32 scale.
pub struct Rows8 {
    rows: usize,
    columns: usize,
    q: Bytes,
    range: Range<usize>,
    /// One a row, the common scale included.
    scales: Vec<f32>,
}

impl Rows8 {
    /// `q[range]` holds `rows * columns` int8 values, row-major; `scales` one a row.
    ///
    /// # Errors
    /// An empty matrix, a wrong length, a range outside of the bytes, or a scale that is not finite.
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
        Ok(Rows8 { rows, columns, q, range, scales: scales.iter().map(|s| s.to_f32() * scale).collect() })
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
        for (out, q) in out.iter_mut().zip(self.quantized(r)) {
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
        for (x, y) in x.chunks_exact(self.columns).zip(y.chunks_exact_mut(self.rows)) {
            y.par_iter_mut().enumerate().for_each(|(r, y)| {
                let sum: f32 = self.quantized(r).iter().zip(x).map(|(q, x)| f32::from(*q as i8) * x).sum();
                *y = self.scales[r] * sum;
            });
        }
    }

    fn quantized(&self, r: usize) -> &[u8] {
        &(*self.q).as_ref()[self.range.clone()][r * self.columns..][..self.columns]
    }
}
