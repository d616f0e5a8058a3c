//! Row and column rescaling by alternating least squares (WaterSIC, algorithm 4): products in f32, sums of them and the system in f64.
use super::linalg::{add_gram, product, solve_spd, view};
use faer::Accum;

/// Rounds of column and row steps at most.
const ROUNDS: usize = 4;
/// Relative change of the objective below which the rounds end.
const SETTLED: f64 = 3e-4;
/// Range of a column factor.
const COLUMN_RANGE: (f64, f64) = (-0.1, 1.5);

/// Factors on the rows and the columns of `q0` that minimise `tr((target - T q0 G) S (target - T q0 G)^T)`; all start at 1, and those of the rows stay
/// there unless `rows`.
///
/// `q0` and `target` are row-major `a x n`, `covariance` is `n x n`. `target` is W with everything that is stored beside the codes taken out.
pub(crate) fn rescale(q0: &[f32], target: &[f32], covariance: &[f64], (a, n): (usize, usize), rows: bool) -> (Vec<f64>, Vec<f64>) {
    let (mut t, mut g) = (vec![1.0; a], vec![1.0; n]);
    if n == 0 {
        return (t, g);
    }
    let sigma: Vec<f32> = covariance.iter().map(|&s| s as f32).collect();
    let image = |x: &[f32]| {
        let mut image = vec![0f32; a * n];
        product(&mut image, Accum::Replace, view(x, a, n), view(&sigma, n, n), 1.0);
        image
    };
    let cross = image(target);

    let reference = dot(&cross, target).abs().max(f64::MIN_POSITIVE);
    for _ in 0..ROUNDS {
        let step = ColumnStep::new(q0, &cross, covariance, &t, n);
        let start = step.objective(&g);
        if let Some(wanted) = step.wanted() {
            // Clipped factors can overshoot.
            let trial = |halving: i32| -> Vec<f64> { g.iter().zip(&wanted).map(|(g, w)| g + 0.5f64.powi(halving) * (w - g)).collect() };
            if let Some(better) = (0..5).map(trial).find(|trial| step.objective(trial) <= start) {
                g = better;
            }
        }
        if !rows {
            break;
        }
        // J = const - 2 sum t p + sum t^2 q.
        let scaled = scaled(q0, n, |_, j| g[j]);
        let image = image(&scaled);
        let mut value = 0.0;
        for (r, t) in t.iter_mut().enumerate() {
            let row = r * n..(r + 1) * n;
            let (p, q) = (dot(&scaled[row.clone()], &cross[row.clone()]), dot(&scaled[row.clone()], &image[row]));
            if q > 0.0 && (p / q).is_finite() {
                *t = p / q;
            }
            value += *t * (*t * q - 2.0 * p);
        }
        let mean = t.iter().map(|t| t.abs()).sum::<f64>() / a as f64;
        if mean > 0.0 {
            t.iter_mut().for_each(|t| *t /= mean);
            g.iter_mut().for_each(|g| *g *= mean);
        }
        // `reference + value` is the remaining distortion.
        if start - value <= SETTLED * (reference + value).max(0.0) {
            break;
        }
    }
    (t, g)
}

/// The quadratic form of the column factors: `J = const + g^T (S o (Q^T T^2 Q)) g - 2 g^T diag(Q^T T C)`.
struct ColumnStep {
    /// Lower triangle.
    system: Vec<f64>,
    rhs: Vec<f64>,
}

impl ColumnStep {
    fn new(q0: &[f32], cross: &[f32], covariance: &[f64], t: &[f64], n: usize) -> Self {
        let scaled = scaled(q0, n, |r, _| t[r]);
        let mut gram = vec![0f32; n * n];
        add_gram(&mut gram, &scaled, n);
        let system = gram.iter().zip(covariance).map(|(m, s)| *m as f64 * s).collect();
        let mut rhs = vec![0f64; n];
        for (row, cross) in scaled.chunks_exact(n).zip(cross.chunks_exact(n)) {
            rhs.iter_mut().zip(row.iter().zip(cross)).for_each(|(sum, (q, c))| *sum += *q as f64 * *c as f64);
        }
        Self { system, rhs }
    }

    /// J without its constant.
    fn objective(&self, g: &[f64]) -> f64 {
        let n = g.len();
        let row = |i: usize| {
            let below: f64 = self.system[i * n..i * n + i].iter().zip(g).map(|(m, g)| m * g).sum();
            g[i] * (2.0 * below + self.system[i * n + i] * g[i] - 2.0 * self.rhs[i])
        };
        (0..n).map(row).sum()
    }

    /// The factors that minimise it, with a little ridge, clipped.
    fn wanted(&self) -> Option<Vec<f64>> {
        let n = self.rhs.len();
        let mut system = self.system.clone();
        let ridge = (1e-8 * (0..n).map(|i| system[i * n + i]).sum::<f64>() / n as f64).max(1e-11);
        (0..n).for_each(|i| system[i * n + i] += ridge);
        // A column without codes has an empty row in the system; its factor is immaterial.
        Some(solve_spd(&system, &self.rhs)?.into_iter().map(|g| g.clamp(COLUMN_RANGE.0, COLUMN_RANGE.1)).collect())
    }
}

/// Entries times a factor of their row and column.
fn scaled(x: &[f32], n: usize, factor: impl Fn(usize, usize) -> f64) -> Vec<f32> {
    let mut scaled = x.to_vec();
    for (r, row) in scaled.chunks_exact_mut(n).enumerate() {
        row.iter_mut().enumerate().for_each(|(j, x)| *x *= factor(r, j) as f32);
    }
    scaled
}

fn dot(x: &[f32], y: &[f32]) -> f64 {
    x.iter().zip(y).map(|(x, y)| *x as f64 * *y as f64).sum()
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::{Rng, SeedableRng};

    #[test]
    fn finds_row_and_column_factors_that_were_taken_out() {
        let (a, n) = (40, 24);
        let mut rng = rand_chacha::ChaCha8Rng::seed_from_u64(3);
        let q0: Vec<f32> = (0..a * n).map(|_| rng.random_range(-1.0..1.0)).collect();
        let rows: Vec<f32> = (0..a).map(|_| rng.random_range(0.8..1.2)).collect();
        let columns: Vec<f32> = (0..n).map(|_| rng.random_range(0.8..1.2)).collect();
        let target: Vec<f32> = (0..a * n).map(|i| q0[i] * rows[i / n] * columns[i % n]).collect();
        let x: Vec<f64> = (0..4 * n * n).map(|_| rng.random_range(-1.0..1.0)).collect();
        let mut covariance = vec![0f64; n * n];
        product(&mut covariance, Accum::Replace, view(&x, 4 * n, n).transpose(), view(&x, 4 * n, n), 1.0);
        let error = |t: &[f64], g: &[f64]| -> f64 {
            let e: Vec<f64> = (0..a * n).map(|i| target[i] as f64 - q0[i] as f64 * t[i / n] * g[i % n]).collect();
            let mut image = vec![0f64; a * n];
            product(&mut image, Accum::Replace, view(&e, a, n), view(&covariance, n, n), 1.0);
            e.iter().zip(&image).map(|(e, i)| e * i).sum()
        };
        let (t, g) = rescale(&q0, &target, &covariance, (a, n), true);
        let before = error(&vec![1.0; a], &vec![1.0; n]);
        assert!(error(&t, &g) < 1e-2 * before);
        let (t, g) = rescale(&q0, &target, &covariance, (a, n), false);
        assert_eq!(t, vec![1.0; a]);
        assert!(error(&t, &g) < 0.8 * before);
    }
}
