//! Products with dense matrices: `gemm` behind checked slices.
use half::{bf16, f16, slice::HalfFloatSliceExt};
use rayon::prelude::*;
use std::cell::Cell;
use std::ops::Range;

/// The values of a row-major matrix.
#[derive(Clone, Copy)]
pub enum Values<'a> {
    /// 32 bits.
    F32(&'a [f32]),
    /// IEEE half precision; converted in the product.
    F16(&'a [f16]),
    /// bfloat16; converted in the product.
    Bf16(&'a [bf16]),
}

impl Values<'_> {
    fn len(&self) -> usize {
        match self {
            Self::F32(w) => w.len(),
            Self::F16(w) => w.len(),
            Self::Bf16(w) => w.len(),
        }
    }
}

impl<'a> Values<'a> {
    /// The values in `range` as f32, in `scratch` if they have to be converted.
    fn rows<'b>(&self, range: Range<usize>, scratch: &'b mut Vec<f32>) -> &'b [f32]
    where
        'a: 'b,
    {
        fn convert<'b, T: Sync>(values: &[T], scratch: &'b mut Vec<f32>, convert: impl Fn(&[T], &mut [f32]) + Sync) -> &'b [f32] {
            scratch.resize(values.len(), 0.0);
            values.par_chunks(CONVERTED).zip(scratch.par_chunks_mut(CONVERTED)).for_each(|(from, to)| convert(from, to));
            scratch
        }
        match self {
            Self::F32(w) => &w[range],
            Self::F16(w) => convert(&w[range], scratch, |from, to| from.convert_to_f32_slice(to)),
            Self::Bf16(w) => convert(&w[range], scratch, |from, to| from.convert_to_f32_slice(to)),
        }
    }
}

/// Fewer tokens than this are multiplied one by one: packing them for `gemm` costs more than reading the weights again from the cache.
const FEW: usize = 8;
/// From this many tokens on `gemm` packs the weights. Below it the tokens are packed, here: 64 tokens run 1.1 to 4 times as fast that way, 256 tokens
/// 1 to 1.5 times (Zen 5, in-features from 576 to 2048).
const MANY: usize = 512;
/// Weights that a task converts at a time.
const CONVERTED: usize = 1 << 17;
/// Weights that are converted at a time for many tokens.
const SLAB: usize = 1 << 21;

thread_local! {
    /// Converted weights and products of a task.
    static SCRATCH: Cell<(Vec<f32>, Vec<f32>)> = const { Cell::new((Vec::new(), Vec::new())) };
}

/// `y[t][r] = sum_j w[r][j] x[t][j]`: `w` is `out_features x in_features`, `x` `tokens x in_features`, `y` `tokens x out_features`, all row-major. Runs
/// on the current rayon pool; the result does not depend on its size.
///
/// # Panics
/// If the lengths do not fit together.
pub fn multiply(w: Values, in_features: usize, x: &[f32], tokens: usize, y: &mut [f32]) {
    let out_features = w.len().checked_div(in_features).unwrap_or(0);
    assert_eq!(w.len(), out_features * in_features, "rows of equal length");
    assert_eq!(x.len(), tokens * in_features, "tokens of in_features");
    assert_eq!(y.len(), tokens * out_features, "tokens of out_features");
    if y.is_empty() {
        return;
    }
    let x = View::new(x, tokens, in_features, in_features);
    if tokens < MANY {
        multiply_pieces(w, x, y, out_features);
    } else {
        multiply_slabs(w, x, y, out_features);
    }
}

/// A task multiplies a piece of the weights by all tokens.
fn multiply_pieces(w: Values, x: View, y: &mut [f32], out_features: usize) {
    let (tokens, in_features) = (x.rows, x.columns);
    // An even number of tasks a matrix (2 cores), and of at most 192 rows: then a task of 64 tokens takes some 50 microseconds.
    let rows = match w {
        Values::F32(_) => out_features.div_ceil(2 * out_features.div_ceil(384)),
        _ => (CONVERTED / in_features).clamp(1, 192),
    };
    // Tokens side by side in whole vectors, as `gemm` would pack them for every piece again.
    let width = if tokens < FEW { 0 } else { tokens.next_multiple_of(16) };
    let mut turned = vec![0f32; in_features * width];
    if width > 0 {
        // SAFETY: `turned` has a row of `width >= tokens` values for each in-feature.
        unsafe { transpose(x.data, in_features, in_features, turned.as_mut_ptr(), width) };
    }
    let y = Shared(y.as_mut_ptr());
    (0..out_features.div_ceil(rows)).into_par_iter().for_each(|piece| {
        let (y, first) = (&y, piece * rows);
        let rows = rows.min(out_features - first);
        let (mut converted, mut products) = SCRATCH.take();
        let w = View::new(w.rows(first * in_features..(first + rows) * in_features, &mut converted), rows, in_features, in_features);
        products.resize(rows * tokens.max(width), 0.0);
        if width == 0 {
            for (t, products) in products.chunks_exact_mut(rows).enumerate() {
                matmul(w, View::new(&x.data[t * in_features..], 1, in_features, in_features).t(), products);
                // SAFETY: a piece writes its rows `first..first + rows` of each token only, inside `y` by its checked length.
                unsafe { std::ptr::copy_nonoverlapping(products.as_ptr(), y.0.add(t * out_features + first), rows) };
            }
        } else {
            // In this order `gemm` reads the weights as they stand.
            matmul(w, View::new(&turned, in_features, width, width), &mut products);
            // SAFETY: as above; `products` is `rows x width`.
            unsafe { transpose(&products, width, tokens, y.0.add(first), out_features) };
        }
        SCRATCH.set((converted, products));
    });
}

/// All threads share each product by a slab of the weights: all of them if they need no conversion.
fn multiply_slabs(w: Values, x: View, y: &mut [f32], out_features: usize) {
    let in_features = x.columns;
    let rows = match w {
        Values::F32(_) => out_features,
        _ => (SLAB / in_features).max(1),
    };
    let mut converted = Vec::new();
    for first in (0..out_features).step_by(rows) {
        let rows = rows.min(out_features - first);
        let slab = w.rows(first * in_features..(first + rows) * in_features, &mut converted);
        let slab = View::new(slab, rows, in_features, in_features);
        // SAFETY: columns `first..first + rows` of `y`, whose rows of `out_features` values are as many as those of `x`.
        unsafe { gemm_into(x, slab.t(), y[first..].as_mut_ptr(), out_features, gemm::Parallelism::Rayon(0)) };
    }
}

/// A pointer whose users write disjoint places.
struct Shared(*mut f32);

// SAFETY: see the writes in `multiply_pieces`.
unsafe impl Sync for Shared {}

/// `to[c * stride + r] = from[r * width + c]` for the first `columns` of `width` columns, in squares of 8.
///
/// # Safety
/// `to` must be writable for `columns` rows of `stride` elements, as many of each as `from` has rows; `columns` is at most `width`.
unsafe fn transpose(from: &[f32], width: usize, columns: usize, to: *mut f32, stride: usize) {
    let rows = from.len() / width;
    let (whole_rows, whole_columns) = (rows / 8 * 8, columns / 8 * 8);
    for r in (0..whole_rows).step_by(8) {
        for c in (0..whole_columns).step_by(8) {
            let square: [[f32; 8]; 8] = std::array::from_fn(|i| *from[(r + i) * width + c..].first_chunk().expect("inside the matrix"));
            let turned: [[f32; 8]; 8] = std::array::from_fn(|j| std::array::from_fn(|i| square[i][j]));
            for (j, column) in turned.into_iter().enumerate() {
                to.add((c + j) * stride + r).cast::<[f32; 8]>().write_unaligned(column);
            }
        }
    }
    for r in 0..rows {
        for c in if r < whole_rows { whole_columns } else { 0 }..columns {
            to.add(c * stride + r).write(from[r * width + c]);
        }
    }
}

/// A matrix in a slice, with any distance between rows and between columns.
#[derive(Clone, Copy)]
pub struct View<'a> {
    data: &'a [f32],
    rows: usize,
    columns: usize,
    row_stride: usize,
    column_stride: usize,
}

impl<'a> View<'a> {
    /// Rows of `columns` values, `row_stride` apart.
    ///
    /// # Panics
    /// If the last row does not end inside `data`.
    pub fn new(data: &'a [f32], rows: usize, columns: usize, row_stride: usize) -> Self {
        let end = rows.checked_sub(1).map_or(Some(0), |last| last.checked_mul(row_stride)?.checked_add(columns));
        assert!(end.is_some_and(|end| end <= data.len()), "a view inside its data");
        Self { data, rows, columns, row_stride, column_stride: 1 }
    }

    /// The transposed matrix.
    pub fn t(self) -> Self {
        Self { rows: self.columns, columns: self.rows, row_stride: self.column_stride, column_stride: self.row_stride, ..self }
    }
}

/// `c = a b` on this thread; `c` is `a.rows x b.columns`, row-major.
///
/// # Panics
/// If the shapes do not fit together.
pub fn matmul(a: View, b: View, c: &mut [f32]) {
    assert_eq!(a.columns, b.rows, "inner dimensions");
    assert_eq!(c.len(), a.rows * b.columns, "outer dimensions");
    // SAFETY: the length of `c` has been checked.
    unsafe { gemm_into(a, b, c.as_mut_ptr(), b.columns, gemm::Parallelism::None) }
}

/// `c = a b` into rows `stride` apart.
///
/// # Safety
/// `c` must be writable for `a.rows` rows of `b.columns` values; `a.columns` must be `b.rows`.
unsafe fn gemm_into(a: View, b: View, c: *mut f32, stride: usize, parallelism: gemm::Parallelism) {
    // `View::new` has checked that every element of `a` and `b` is inside its data.
    gemm::gemm(
        a.rows,
        b.columns,
        a.columns,
        c,
        1,
        stride as isize,
        false,
        a.data.as_ptr(),
        a.column_stride as isize,
        a.row_stride as isize,
        b.data.as_ptr(),
        b.column_stride as isize,
        b.row_stride as isize,
        0.0,
        1.0,
        false,
        false,
        false,
        parallelism,
    );
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::{Rng, SeedableRng};

    fn random(n: usize, seed: u64) -> Vec<f32> {
        let mut rng = rand_chacha::ChaCha8Rng::seed_from_u64(seed);
        (0..n).map(|_| rng.random_range(-1.0..1.0)).collect()
    }

    #[test]
    fn products_of_all_types_and_shapes() {
        for (out_features, in_features) in [(1, 1), (3, 64), (200, 96), (577, 33), (9, 2000), (300, 8000)] {
            for tokens in [0, 1, 2, 7, 8, 19, 64, 520] {
                let (w, x) = (random(out_features * in_features, 1), random(tokens * in_features, 2));
                let halves: Vec<f16> = w.iter().map(|&w| f16::from_f32(w)).collect();
                let brains: Vec<bf16> = w.iter().map(|&w| bf16::from_f32(w)).collect();
                let rounded = [
                    (Values::F32(&w), w.clone()),
                    (Values::F16(&halves), halves.iter().map(|w| w.to_f32()).collect()),
                    (Values::Bf16(&brains), brains.iter().map(|w| w.to_f32()).collect::<Vec<_>>()),
                ];
                for (values, w) in rounded {
                    let mut y = vec![f32::NAN; tokens * out_features];
                    multiply(values, in_features, &x, tokens, &mut y);
                    for (x, y) in x.chunks_exact(in_features).zip(y.chunks_exact(out_features)).step_by(1 + tokens / 10) {
                        for (w, y) in w.chunks_exact(in_features).zip(y) {
                            let exact: f64 = w.iter().zip(x).map(|(&w, &x)| w as f64 * x as f64).sum();
                            assert!((exact - *y as f64).abs() < 1e-7 * in_features as f64 + 1e-5, "{exact} {y}");
                        }
                    }
                }
            }
        }
    }

    #[test]
    fn threads_change_nothing() {
        let (w, x) = (random(577 * 96, 1), random(520 * 96, 2));
        for tokens in [1, 5, 70, 520] {
            let products = |threads| {
                let mut y = vec![0.0; tokens * 577];
                let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
                pool.install(|| multiply(Values::F32(&w), 96, &x[..tokens * 96], tokens, &mut y));
                y
            };
            assert_eq!(products(1), products(3));
        }
    }

    #[test]
    fn views_with_strides() {
        let (a, b) = (random(100, 1), random(100, 2));
        let mut c = vec![0.0; 3 * 4];
        matmul(View::new(&a, 3, 5, 9), View::new(&b, 4, 5, 7).t(), &mut c);
        for i in 0..3 {
            for j in 0..4 {
                let exact: f32 = (0..5).map(|k| a[i * 9 + k] * b[j * 7 + k]).sum();
                assert!((c[i * 4 + j] - exact).abs() < 1e-5);
            }
        }
    }

    #[test]
    #[should_panic(expected = "inside its data")]
    fn views_stay_inside() {
        View::new(&[0.0; 10], 3, 4, 4);
    }
}
