//! Successive interference cancellation (WaterSIC, algorithm 3) with a width and a code for every column.
//!
//! With the covariance `S = L L^T` and `Y = W L`, columns are quantized from the last to the first: column `j` of the residual is
//! encoded, and its reconstruction times row `j` of L is taken out of all columns before it. Rows do not interact.
use super::column::{Coder, Distortions, Measure};
use super::linalg;
use faer::Accum;
use ws_kernels::layout::Column;
use ws_kernels::viterbi::Scratch;

/// Columns between two matrix products.
const BLOCK: usize = 64;

/// What is to be quantized.
pub(crate) struct Problem<'a> {
    /// In-features.
    pub(crate) n: usize,
    /// Row-major lower Cholesky factor L, `n x n`.
    pub(crate) factor: &'a [f32],
    /// Row scales.
    pub(crate) row_scale: &'a [f32],
    /// Rows of the matrix that each row stands for: 1, or more where only some are looked at.
    pub(crate) count: &'a [f32],
    /// Distortion that one stored bit is worth.
    pub(crate) lambda: f64,
}

/// How widths come about.
pub(crate) enum Plan<'a> {
    /// Chosen column by column, to learn what each width costs, near what an earlier round has found if there was one.
    Search { known: &'a [Distortions] },
    /// Given; columns are encoded for storage over this many rows and at most so many exceptions are made.
    Fixed { widths: &'a [u8], known: &'a [Distortions], padded: usize, exceptions: usize },
}

/// An entry that is stored exactly.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Outlier {
    pub(crate) row: usize,
    pub(crate) column: usize,
    /// Difference to the coded value.
    pub(crate) difference: f32,
}

/// A quantized matrix, transposed (`n x rows`, a column contiguous):
/// `V[r][j] = row_scale[r] * scale[j] * values[j][r]` plus the outliers' differences.
pub(crate) struct Outcome {
    pub(crate) widths: Vec<u8>,
    pub(crate) columns: Vec<Option<Column>>,
    pub(crate) values: Vec<f32>,
    pub(crate) scale: Vec<f32>,
    pub(crate) outliers: Vec<Outlier>,
    /// With [`Plan::Search`]: what it found of each column.
    pub(crate) found: Vec<Distortions>,
    /// Summed squared error of each column, an entry counted with what an exception costs at most.
    pub(crate) spent: Vec<f64>,
    /// Exceptions that were wanted but had no room, and the squared error that they would have saved.
    pub(crate) refused: (usize, f64),
}

/// `Y^T = L^T W^T` for row-major `W` (`rows x n`).
pub(crate) fn whiten(weight: &[f32], factor: &[f32], n: usize) -> Vec<f32> {
    let rows = weight.len() / n;
    let mut target = vec![0f32; weight.len()];
    let (factor, weight) = (linalg::view(factor, n, n), linalg::view(weight, rows, n));
    linalg::product(&mut target, Accum::Replace, factor.transpose(), weight.transpose(), 1.0);
    target
}

/// The skeleton of successive cancellation over the columns of `target` (`Y^T`, `n x rows`): `quantize(j, y, v)` writes into `v` the reconstruction
/// of column `j` of W for the residual `y` (about `L_jj W_j`). Returns the reconstruction, transposed.
pub(crate) fn successive(mut target: Vec<f32>, factor: &[f32], n: usize, mut quantize: impl FnMut(usize, &[f32], &mut [f32])) -> Vec<f32> {
    let a = target.len() / n.max(1);
    let mut reconstruction = vec![0f32; n * a];
    for first in (0..n).step_by(BLOCK).rev() {
        let last = (first + BLOCK).min(n);
        for j in (first..last).rev() {
            let y = &mut target[j * a..][..a];
            for i in j + 1..last {
                let factor = factor[i * n + j];
                y.iter_mut().zip(&reconstruction[i * a..]).for_each(|(y, v)| *y -= v * factor);
            }
            quantize(j, y, &mut reconstruction[j * a..][..a]);
        }
        let done = linalg::view(&factor[first * n..last * n], last - first, n).subcols(0, first);
        let block = linalg::view(&reconstruction[first * a..last * a], last - first, a);
        linalg::product(&mut target[..first * a], Accum::Add, done.transpose(), block, -1.0);
    }
    reconstruction
}

/// Quantizes the columns of `target` (`Y^T`, `n x rows`).
pub(crate) fn cancel(target: Vec<f32>, problem: &Problem, coder: &Coder, plan: &Plan) -> Outcome {
    let (n, factor, rows, count) = (problem.n, problem.factor, problem.row_scale, problem.count);
    let a = rows.len();
    let mut outcome = Outcome {
        widths: vec![0; n],
        columns: (0..n).map(|_| None).collect(),
        values: vec![0.0; n * a],
        scale: vec![0.0; n],
        outliers: Vec::new(),
        found: if matches!(plan, Plan::Search { .. }) { vec![Distortions::default(); n] } else { Vec::new() },
        spent: vec![0.0; n],
        refused: (0, 0.0),
    };
    let mut far: Vec<(f64, usize)> = Vec::new();
    let mut scratch = Scratch::default();
    let mut x = vec![0f32; a];
    let mut weight = vec![0f32; a];
    successive(target, factor, n, |j, y, v| {
        let energy = mean(y.iter().map(|y| y.powi(2)), count);
        let spread = mean(y.iter().zip(rows).map(|(y, r)| (y / r).powi(2)), count).sqrt() as f32;
        if spread == 0.0 || !spread.is_finite() {
            return;
        }
        for r in 0..a {
            weight[r] = rows[r] * spread;
            x[r] = y[r] / weight[r];
        }
        let measure = Measure { weight: &weight, count, lambda: problem.lambda };
        let (width, room, encoded) = match plan {
            Plan::Search { known } => {
                let (width, encoded, found) = coder.choose(j, &x, energy, measure, known.get(j), &mut scratch);
                outcome.found[j] = found;
                (width, usize::MAX, encoded)
            }
            Plan::Fixed { widths, known, padded, exceptions } => {
                let encoded = coder.encode(widths[j], &x, *padded, measure, &known[j], &mut scratch);
                (widths[j], exceptions.saturating_sub(outcome.outliers.len()), encoded)
            }
        };
        let made_before = outcome.outliers.len();
        let (mut dot, mut norm) = (0f64, 0f64);
        far.clear();
        for r in 0..a {
            let coded = encoded.values[r] * encoded.stretch * weight[r];
            let error = ((y[r] - coded) as f64).powi(2);
            outcome.spent[j] += count[r] as f64 * error.min(measure.cap());
            if width <= 8 && error > measure.cap() {
                far.push((error, r));
            }
            dot += (count[r] * coded) as f64 * y[r] as f64;
            norm += count[r] as f64 * (coded as f64).powi(2);
        }
        // The farthest first: one of them may cost more than all others.
        far.sort_unstable_by(|a, b| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1)));
        let (made, refused) = far.split_at(far.len().min(room));
        for &(_, r) in made {
            let coded = encoded.values[r] * encoded.stretch * weight[r];
            dot -= (count[r] * coded) as f64 * y[r] as f64;
            norm -= count[r] as f64 * (coded as f64).powi(2);
            outcome.outliers.push(Outlier { row: r, column: j, difference: 0.0 });
        }
        outcome.refused.0 += refused.len();
        outcome.refused.1 += refused.iter().map(|(error, _)| error - measure.cap()).sum::<f64>();
        let gain = match width {
            16 => 1.0,
            _ if norm > 0.0 => (dot / norm) as f32,
            _ => 0.0,
        };
        let pivot = factor[j * n + j];
        let scale = gain * encoded.stretch * spread / pivot;
        for r in 0..a {
            v[r] = encoded.values[r] * rows[r] * scale;
        }
        for outlier in &mut outcome.outliers[made_before..] {
            let exact = y[outlier.row] / pivot;
            outlier.difference = exact - v[outlier.row];
            v[outlier.row] = exact;
        }
        outcome.widths[j] = width;
        outcome.scale[j] = scale;
        outcome.values[j * a..][..a].copy_from_slice(&encoded.values);
        outcome.columns[j] = encoded.column;
    });
    outcome
}

/// Mean over the rows that `count` stands for.
pub(super) fn mean(values: impl Iterator<Item = f32>, count: &[f32]) -> f64 {
    let (sum, total) = values.zip(count).fold((0f64, 0f64), |(sum, total), (v, c)| (sum + v as f64 * *c as f64, total + *c as f64));
    sum / total.max(1.0)
}
