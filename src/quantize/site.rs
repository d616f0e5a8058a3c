//! One input that several linear layers read: its covariance, prepared for successive cancellation.
use super::linalg;
use super::QuantizeError;

/// In-features whose energy is below this share of the median are dead (WaterSIC, section 4).
const DEAD: f64 = 1e-3;
/// Damping as a share of the mean energy (WaterSIC, appendix C).
pub(crate) const DAMPING: f64 = 1e-4;

/// Covariance of the live in-features and its Cholesky factor.
pub(crate) struct Site {
    /// All in-features.
    pub(crate) features: usize,
    /// Live in-features, ascending.
    pub(crate) live: Vec<usize>,
    /// Undamped covariance over the live in-features, row-major.
    pub(crate) covariance: Vec<f64>,
    /// What is added to its diagonal before it is factored.
    pub(crate) damping: f64,
    /// Row-major lower factor of the damped covariance.
    pub(crate) factor: Vec<f32>,
}

impl Site {
    /// `plain`: the unweighted covariance, on which dead in-features are found; `covariance`: the one that is minimised.
    pub(crate) fn new(name: &str, plain: &[f64], covariance: &[f64]) -> Result<Self, QuantizeError> {
        let features = (covariance.len() as f64).sqrt() as usize;
        let energies: Vec<f64> = (0..features).map(|i| plain[i * features + i]).collect();
        if energies.iter().chain(covariance).any(|e| !e.is_finite()) {
            return Err(QuantizeError::NotFinite { name: name.to_owned() });
        }
        let mut sorted = energies.clone();
        sorted.sort_by(f64::total_cmp);
        let floor = DEAD * sorted[features / 2];
        let live: Vec<usize> =
            (0..features).filter(|&i| energies[i] > 0.0 && energies[i] >= floor && covariance[i * features + i] > 0.0).collect();
        let mut reduced = Vec::with_capacity(live.len() * live.len());
        for &i in &live {
            reduced.extend(live.iter().map(|&j| covariance[i * features + j]));
        }
        Self::factored(name, features, live, reduced, DAMPING)
    }

    /// `covariance`: over the live in-features; `damping`: share of its mean energy, raised until the factorization succeeds.
    pub(crate) fn factored(
        name: &str,
        features: usize,
        live: Vec<usize>,
        covariance: Vec<f64>,
        mut damping: f64,
    ) -> Result<Self, QuantizeError> {
        let n = live.len();
        let mean = (0..n).map(|i| covariance[i * n + i]).sum::<f64>() / n.max(1) as f64;
        let factor = loop {
            let mut damped = covariance.clone();
            (0..n).for_each(|i| damped[i * n + i] += damping * mean);
            if let Some(factor) = linalg::cholesky(&damped, n) {
                break factor;
            }
            // Rounding in the f32 sums can leave a covariance with an eigenvalue below minus the damping.
            damping *= 10.0;
            if damping > 1.0 {
                return Err(QuantizeError::Singular { name: name.to_owned() });
            }
        };
        let mut flat = vec![0f32; n * n];
        for i in 0..n {
            for j in 0..=i {
                flat[i * n + j] = factor[(i, j)] as f32;
            }
        }
        Ok(Self { features, live, covariance, damping: damping * mean, factor: flat })
    }

    /// `tr(E S E^T)` for a row-major `rows x live` error.
    pub(crate) fn energy(&self, error: &[f32]) -> f64 {
        let n = self.live.len();
        if n == 0 {
            return 0.0;
        }
        let covariance: Vec<f32> = self.covariance.iter().map(|&v| v as f32).collect();
        let mut image = vec![0f32; error.len()];
        linalg::product(&mut image, faer::Accum::Replace, linalg::view(error, error.len() / n, n), linalg::view(&covariance, n, n), 1.0);
        error.iter().zip(&image).map(|(&e, &i)| e as f64 * i as f64).sum()
    }
}
