//! Dense linear algebra on row-major slices through faer. Work is split into chunks of fixed size and every chunk is computed
//! sequentially, so that results do not depend on the number of threads.
use faer::dyn_stack::{MemBuffer, MemStack};
use faer::linalg::cholesky::llt;
use faer::linalg::matmul::matmul;
use faer::traits::RealField;
use faer::{Accum, Mat, MatMut, MatRef, Par};
use rayon::prelude::*;

/// Rows of the result that one task computes.
const CHUNK: usize = 96;

/// A row-major `rows x columns` view of a slice.
pub(crate) fn view<T>(slice: &[T], rows: usize, columns: usize) -> MatRef<'_, T> {
    MatRef::from_row_major_slice(slice, rows, columns)
}

/// `dst = (dst +) alpha * lhs * rhs`, `dst` row-major `lhs.nrows() x rhs.ncols()`.
pub(crate) fn product<T: RealField + Copy>(dst: &mut [T], accum: Accum, lhs: MatRef<'_, T>, rhs: MatRef<'_, T>, alpha: T) {
    let n = rhs.ncols();
    dst.par_chunks_mut(CHUNK * n.max(1)).enumerate().for_each(|(chunk, part)| {
        let rows = part.len() / n;
        let lhs = lhs.subrows(chunk * CHUNK, rows);
        matmul(MatMut::from_row_major_slice_mut(part, rows, n), accum, lhs, rhs, alpha, Par::Seq);
    });
}

/// Adds `x^T x` to the lower triangle of `dst` (`n x n`), `x` row-major `tokens x n`.
pub(crate) fn add_gram(dst: &mut [f32], x: &[f32], n: usize) {
    let x = view(x, x.len() / n, n);
    dst.par_chunks_mut(CHUNK * n).enumerate().for_each(|(chunk, part)| {
        let (first, rows) = (chunk * CHUNK, part.len() / n);
        let seen = first + rows;
        // faer 0.24.4 mixes up the strides of its row-major constructor with a stride, so this is a transposed column-major one.
        let lower = MatMut::from_column_major_slice_with_stride_mut(part, seen, rows, n).transpose_mut();
        matmul(lower, Accum::Add, x.subcols(first, rows).transpose(), x.subcols(0, seen), 1.0, Par::Seq);
    });
}

/// Copies the lower triangle of a row-major `n x n` matrix to the upper one.
pub(crate) fn mirror<T: Copy>(matrix: &mut [T], n: usize) {
    for i in 0..n {
        for j in 0..i {
            matrix[j * n + i] = matrix[i * n + j];
        }
    }
}

/// Row-major lower Cholesky factor of a symmetric positive definite matrix, or `None` if a pivot is not positive.
pub(crate) fn cholesky(matrix: &[f64], n: usize) -> Option<Mat<f64>> {
    let mut factor = Mat::from_fn(n, n, |i, j| if j <= i { matrix[i * n + j] } else { 0.0 });
    let params = Default::default();
    let mut memory = MemBuffer::new(llt::factor::cholesky_in_place_scratch::<f64>(n, Par::Seq, params));
    llt::factor::cholesky_in_place(factor.as_mut(), Default::default(), Par::Seq, MemStack::new(&mut memory), params).ok()?;
    for j in 0..n {
        for i in 0..j {
            factor[(i, j)] = 0.0;
        }
    }
    (0..n).all(|i| factor[(i, i)].is_finite() && factor[(i, i)] > 0.0).then_some(factor)
}

/// Solves `matrix * x = rhs` for a symmetric positive definite row-major matrix; `None` if it is singular.
pub(crate) fn solve_spd(matrix: &[f64], rhs: &[f64]) -> Option<Vec<f64>> {
    let n = rhs.len();
    let factor = cholesky(matrix, n)?;
    let mut x = Mat::from_fn(n, 1, |i, _| rhs[i]);
    let mut memory = MemBuffer::new(llt::solve::solve_in_place_scratch::<f64>(n, 1, Par::Seq));
    llt::solve::solve_in_place(factor.as_ref(), x.as_mut(), Par::Seq, MemStack::new(&mut memory));
    let x: Vec<f64> = (0..n).map(|i| x[(i, 0)]).collect();
    x.iter().all(|v| v.is_finite()).then_some(x)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn random(len: usize, seed: u64) -> Vec<f32> {
        use rand::{Rng, SeedableRng};
        let mut rng = rand_chacha::ChaCha8Rng::seed_from_u64(seed);
        (0..len).map(|_| rng.random_range(-1.0..1.0)).collect()
    }

    #[test]
    fn gram_product_and_solve_agree() {
        let (t, n) = (300, 131);
        let x = random(t * n, 1);
        let mut gram = vec![0f32; n * n];
        add_gram(&mut gram, &x, n);
        mirror(&mut gram, n);
        let mut full = vec![0f32; n * n];
        product(&mut full, Accum::Replace, view(&x, t, n).transpose(), view(&x, t, n), 1.0);
        for (a, b) in gram.iter().zip(&full) {
            assert!((a - b).abs() < 1e-3, "{a} {b}");
        }
        let gram: Vec<f64> = gram.iter().map(|&v| v as f64).collect();
        let want: Vec<f64> = (0..n).map(|i| i as f64).collect();
        let rhs: Vec<f64> = (0..n).map(|i| (0..n).map(|j| gram[i * n + j] * want[j]).sum()).collect();
        let got = solve_spd(&gram, &rhs).unwrap();
        for (a, b) in got.iter().zip(&want) {
            assert!((a - b).abs() < 1e-6, "{a} {b}");
        }
        assert!(cholesky(&[1.0, 2.0, 2.0, 1.0], 2).is_none());
    }
}
