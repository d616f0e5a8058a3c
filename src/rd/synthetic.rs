//! Gaussian layers with a chosen spectrum and random eigenvectors.
use super::baseline::{normal, random_rotation};
use super::Layer;
use crate::quantize::linalg::{product, view};
use crate::quantize::QuantizeError;
use faer::Accum;
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use std::str::FromStr;

/// Eigenvalues of the input's covariance.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Spectrum {
    /// All equal.
    Flat,
    /// The i-th is `i^-exponent`.
    Power(f64),
}

impl FromStr for Spectrum {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let exponent = text.strip_prefix("power:").and_then(|e| e.parse().ok()).filter(|e: &f64| (0.0..=8.0).contains(e));
        match exponent {
            Some(exponent) => Ok(Self::Power(exponent)),
            None if text == "flat" => Ok(Self::Flat),
            None => Err("a spectrum is `flat` or `power:EXPONENT` with an exponent from 0 to 8".into()),
        }
    }
}

impl std::fmt::Display for Spectrum {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Flat => f.write_str("flat"),
            Self::Power(exponent) => write!(f, "power:{exponent}"),
        }
    }
}

/// A layer of independent Gaussian weights.
#[derive(Debug, Clone, PartialEq)]
pub struct Synthetic {
    /// Eigenvalues.
    pub spectrum: Spectrum,
    /// Out-features.
    pub out_features: usize,
    /// In-features.
    pub in_features: usize,
    /// Share of in-features that are always 0; the spectrum is that of the others.
    pub dead: f64,
    /// Share of eigenvalues that are 0.
    pub null: f64,
    /// Seed of weights and eigenvectors.
    pub seed: u64,
}

impl Synthetic {
    /// Makes the layer.
    ///
    /// # Errors
    /// As of [`Layer::new`].
    pub fn layer(&self) -> Result<Layer, QuantizeError> {
        let features = self.in_features;
        let dead = (self.dead * features as f64).round() as usize;
        let n = features - dead.min(features);
        let null = (self.null * n as f64).round() as usize;
        let rotation = random_rotation(n, self.seed);
        let eigenvalue = |i: usize| match self.spectrum {
            _ if i + null >= n => 0.0,
            Spectrum::Flat => 1.0,
            Spectrum::Power(exponent) => (i as f64 + 1.0).powf(-exponent),
        };
        let scaled: Vec<f64> = rotation.iter().enumerate().map(|(k, v)| v * eigenvalue(k % n)).collect();
        let mut reduced = vec![0f64; n * n];
        product(&mut reduced, Accum::Replace, view(&scaled, n, n), view(&rotation, n, n).transpose(), 1.0);
        // Dead in-features stand between the others.
        let live: Vec<usize> = (0..features).filter(|i| (i + 1) * dead / features == i * dead / features).collect();
        let mut covariance = vec![0f64; features * features];
        for (row, &i) in reduced.chunks_exact(n.max(1)).zip(&live) {
            row.iter().zip(&live).for_each(|(v, &j)| covariance[i * features + j] = *v);
        }
        let mut rng = ChaCha8Rng::seed_from_u64(self.seed.wrapping_add(1));
        let weight = (0..self.out_features * features).map(|_| normal(&mut rng)).collect();
        let mut name = format!("{} {}x{features}", self.spectrum, self.out_features);
        for (share, what) in [(self.dead, "dead features"), (self.null, "null directions")] {
            if share > 0.0 {
                name += &format!(", {} % {what}", 100.0 * share);
            }
        }
        Layer::new(name, weight, &covariance)
    }
}
