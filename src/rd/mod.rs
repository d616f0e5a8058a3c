//! Rate and distortion: what each quantizer reaches on a layer beside what information theory allows.
//!
//! * `theory`: water-filling and the closed forms around it; `baseline`: the quantizers that ours is compared with.
//! * `synthetic`: Gaussian layers with a chosen spectrum; `model`: the layers of a model, and its perplexity.
//! * [`plot()`]: gaps over rates as a picture.
mod baseline;
mod model;
mod plot;
pub mod synthetic;
pub mod theory;

pub use model::{measure_model, ModelOptions, Scored, Text};
pub use plot::plot;

use crate::format::stored_bytes;
use crate::quantize::column::Coder;
use crate::quantize::layer::quantize_matrix;
use crate::quantize::site::Site;
use crate::quantize::{linalg, Codes, QuantizeError};
use baseline::Entropy;
use rayon::prelude::*;
use serde::Serialize;
use std::sync::Arc;
use ws_kernels::packed::PackedMatrix;
use ws_kernels::tables::Effort;

/// A way to quantize a layer. All but the last four are WaterSIC in one pass; the first four of these are rescaled (algorithm 4 of the paper).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum Method {
    /// Trellis codes, from stored bytes: what `wsrun quantize` makes
    Trellis,
    /// Fixed-width levels, from stored bytes: `wsrun quantize --codes scalar`
    Scalar,
    /// Uniform rounding counted by the entropy of the whole matrix: what the WaterSIC paper reports
    Entropy,
    /// Uniform rounding counted by the entropy of each column: what its theorem uses
    EntropyColumn,
    /// Ideal Gaussian code in the same cancellation (simulated)
    Ideal,
    /// The same, in-features in the order of a pivoted Cholesky factorization (simulated)
    IdealPivoted,
    /// GPTQ with one step for all, counted by entropy
    HuffmanGptq,
    /// GPTQ, equal rates, a scale a row
    Gptq,
    /// The same after a random rotation of the in-features
    RotatedGptq,
    /// Rounding to nearest, a scale for each 64 weights
    Rtn,
}

impl Method {
    /// All methods.
    pub const ALL: [Self; 10] = [
        Self::Trellis,
        Self::Scalar,
        Self::Entropy,
        Self::EntropyColumn,
        Self::Ideal,
        Self::IdealPivoted,
        Self::HuffmanGptq,
        Self::Gptq,
        Self::RotatedGptq,
        Self::Rtn,
    ];

    /// What a table says.
    pub fn name(self) -> &'static str {
        match self {
            Self::Trellis => "trellis WaterSIC",
            Self::Scalar => "fixed-width scalar WaterSIC",
            Self::Entropy => "scalar WaterSIC, pooled entropy",
            Self::EntropyColumn => "scalar WaterSIC, column entropies",
            Self::Ideal => "ideal code, same cancellation",
            Self::IdealPivoted => "ideal code, pivoted order",
            Self::HuffmanGptq => "Huffman-GPTQ",
            Self::Gptq => "GPTQ",
            Self::RotatedGptq => "rotated GPTQ",
            Self::Rtn => "round to nearest",
        }
    }

    /// Where its rate comes from: bytes of a file, levels, an entropy, or a formula.
    pub fn counted(self) -> &'static str {
        match self {
            Self::Trellis | Self::Scalar => "stored",
            Self::Gptq | Self::RotatedGptq | Self::Rtn => "levels",
            Self::Entropy | Self::EntropyColumn | Self::HuffmanGptq => "entropy",
            Self::Ideal | Self::IdealPivoted => "theory",
        }
    }
}

/// A layer to be measured: weights and the second moments of its input.
pub struct Layer {
    name: String,
    /// Row-major `out-features x in-features`.
    weight: Vec<f32>,
    /// The live columns of `weight`.
    live: Vec<f32>,
    site: Arc<Site>,
    /// Weights that rates are counted over: all, or those of live in-features.
    counted: usize,
}

impl Layer {
    /// `weight`: row-major `out-features x in-features`, `covariance`: row-major `in-features x in-features`. Rates are bits a live weight.
    ///
    /// # Errors
    /// A covariance that cannot be factored or holds NaN.
    pub fn new(name: String, weight: Vec<f32>, covariance: &[f64]) -> Result<Self, QuantizeError> {
        let site = Arc::new(Site::new(&name, covariance, covariance)?);
        let mut layer = Self::with_site(name, weight, site);
        layer.counted = layer.live.len();
        Ok(layer)
    }

    /// Rates are bits a weight, dead ones included, as those of a file.
    fn with_site(name: String, weight: Vec<f32>, site: Arc<Site>) -> Self {
        let live = weight.chunks_exact(site.features).flat_map(|row| site.live.iter().map(|&j| row[j])).collect();
        Self { name, counted: weight.len(), weight, live, site }
    }

    /// Eigenvalues of the covariance over the live in-features.
    fn spectrum(&self) -> Vec<f64> {
        let n = self.site.live.len();
        let values = linalg::view(&self.site.covariance, n, n).self_adjoint_eigenvalues(faer::Side::Lower);
        values.unwrap_or_default().into_iter().map(|s| s.max(0.0)).collect()
    }
}

/// One method at one rate on one layer.
#[derive(Debug, Clone, Serialize)]
pub struct Point {
    /// Method.
    pub method: Method,
    /// Rate that was asked for.
    pub target: f64,
    /// Bits a weight that it took, side data included; a live weight for Gaussian layers.
    pub rate: f64,
    /// Mean squared output error a live weight, for weights of unit variance.
    pub distortion: f64,
    /// The same relative to the output's energy.
    pub relative_error: f64,
    /// Bits a live weight above the water-filling limit at this distortion.
    pub gap: f64,
}

/// The least error that any code reaches at a rate.
#[derive(Debug, Clone, Serialize)]
pub struct Limit {
    /// Bits a weight, counted as those of [`Point`].
    pub rate: f64,
    /// Mean squared output error a live weight, for weights of unit variance.
    pub distortion: f64,
    /// The same relative to the output's energy.
    pub relative_error: f64,
}

/// All methods at all rates on one layer.
#[derive(Debug, Clone, Serialize)]
pub struct Curve {
    /// Layer.
    pub layer: String,
    /// Out-features, in-features, and how many of these are live.
    pub shape: [usize; 3],
    /// Bits that GPTQ's equal rates lose at high rate, from the Cholesky factor's diagonal.
    pub equal_rate_loss: f64,
    /// The water-filling limit at each target, for Gaussian weights.
    pub limit: Vec<Limit>,
    /// What was measured.
    pub points: Vec<Point>,
}

/// The codes that the stored methods use.
struct Coders {
    trellis: Coder,
    scalar: Coder,
}

impl Coders {
    fn new(effort: Effort) -> Self {
        let coder = |codes: Codes| Coder::new(Arc::new(codes.set()));
        Self { trellis: coder(Codes::Trellis(effort)), scalar: coder(Codes::Scalar) }
    }
}

/// Measures methods on layers, in parallel.
///
/// # Errors
/// As of [`crate::quantize::quantize`].
pub fn measure(layers: &[Layer], methods: &[Method], rates: &[f64], effort: Effort, seed: u64) -> Result<Vec<Curve>, QuantizeError> {
    let coders = Coders::new(effort);
    layers.iter().map(|layer| Ok(curve(layer, methods, rates, &coders, seed)?.0)).collect()
}

/// A curve, and the reconstructions it was measured on (row-major `out-features x in-features`), in the order of its points.
fn curve(layer: &Layer, methods: &[Method], rates: &[f64], coders: &Coders, seed: u64) -> Result<(Curve, Vec<Vec<f32>>), QuantizeError> {
    let n = layer.site.live.len();
    let spectrum = layer.spectrum();
    let variance = layer.live.iter().map(|w| f64::from(*w).powi(2)).sum::<f64>() / layer.live.len().max(1) as f64;
    let live_share = layer.live.len() as f64 / layer.counted.max(1) as f64;
    let energy = layer.site.energy(&layer.live);
    let tasks: Vec<(Method, f64)> = methods.iter().flat_map(|&m| rates.iter().map(move |&r| (m, r))).collect();
    let measured = tasks
        .par_iter()
        .with_max_len(1)
        .map(|&(method, target)| {
            let (values, rate) = reconstruct(layer, method, target, coders, seed)?;
            let kept = values.chunks_exact(layer.site.features).flat_map(|row| layer.site.live.iter().map(|&j| row[j]));
            let error: Vec<f32> = layer.live.iter().zip(kept).map(|(w, v)| w - v).collect();
            let error = layer.site.energy(&error);
            let distortion = error / (variance * layer.live.len().max(1) as f64);
            let gap = rate / live_share - theory::rate_at(&spectrum, distortion);
            Ok((Point { method, target, rate, distortion, relative_error: error / energy, gap }, values))
        })
        .collect::<Result<Vec<_>, QuantizeError>>()?;
    let (points, values) = measured.into_iter().unzip();
    let limit = |&rate: &f64| {
        let distortion = theory::water_filling(&spectrum, rate / live_share);
        Limit { rate, distortion, relative_error: distortion * variance * layer.live.len() as f64 / energy }
    };
    let pivots: Vec<f64> = (0..n).map(|j| f64::from(layer.site.factor[j * n + j])).collect();
    let curve = Curve {
        layer: layer.name.clone(),
        shape: [layer.weight.len() / layer.site.features, layer.site.features, n],
        equal_rate_loss: theory::equal_rate_loss(&pivots),
        limit: rates.iter().map(limit).collect(),
        points,
    };
    Ok((curve, values))
}

/// Row-major reconstruction of all in-features, and bits a weight.
fn reconstruct(layer: &Layer, method: Method, rate: f64, coders: &Coders, seed: u64) -> Result<(Vec<f32>, f64), QuantizeError> {
    let Layer { name, weight, live, site, counted } = layer;
    let stored = |coder: &Coder| {
        let bytes = (rate * *counted as f64 / 8.0) as u64;
        let parts = quantize_matrix(name, weight, site, coder, bytes, seed)?.parts;
        let rate = 8.0 * stored_bytes(&parts) as f64 / *counted as f64;
        let rows = 0..parts.out_features;
        let matrix = PackedMatrix::new(parts, coder.codes.clone()).map_err(|error| QuantizeError::Packing { name: name.clone(), error })?;
        let mut values = vec![0f32; weight.len()];
        matrix.decode(rows, &mut values);
        Ok((values, rate))
    };
    let n = site.live.len();
    let live_share = live.len() as f64 / (*counted).max(1) as f64;
    if n == 0 {
        return Ok((vec![0.0; weight.len()], 0.0));
    }
    let wanted = rate / live_share;
    let found = match method {
        Method::Trellis => return stored(&coders.trellis),
        Method::Scalar => return stored(&coders.scalar),
        Method::Entropy => baseline::watersic_entropy(live, site, wanted, Entropy::Pooled),
        Method::EntropyColumn => baseline::watersic_entropy(live, site, wanted, Entropy::PerColumn),
        Method::Ideal => baseline::ideal(live, site, wanted, seed),
        Method::IdealPivoted => baseline::ideal_pivoted(name, live, site, wanted, seed)?,
        Method::HuffmanGptq => baseline::gptq_entropy(live, site, wanted),
        Method::Gptq => baseline::gptq(name, live, site, wanted)?,
        Method::RotatedGptq => baseline::rotated_gptq(name, live, site, wanted, seed)?,
        Method::Rtn => baseline::round_to_nearest(live, n, wanted),
    };
    let mut values = vec![0f32; weight.len()];
    for (to, from) in values.chunks_exact_mut(site.features).zip(found.values.chunks_exact(n)) {
        site.live.iter().zip(from).for_each(|(&j, v)| to[j] = *v);
    }
    Ok((values, found.rate * live_share))
}

/// One method at one target over several layers.
#[derive(Debug, Clone, Serialize)]
pub struct Mean {
    /// Method.
    pub method: Method,
    /// Rate that was asked for.
    pub target: f64,
    /// Bits a weight over all layers.
    pub rate: f64,
    /// Geometric mean of the layers' relative errors.
    pub relative_error: f64,
    /// Mean gap to the water-filling limit, weighted by the number of weights.
    pub gap: f64,
}

/// Means over layers, by method, then rate.
pub fn means(curves: &[Curve]) -> Vec<Mean> {
    let Some(first) = curves.first() else { return Vec::new() };
    let weights: Vec<f64> = curves.iter().map(|c| (c.shape[0] * c.shape[1]) as f64).collect();
    let total: f64 = weights.iter().sum();
    (0..first.points.len())
        .map(|i| {
            let of = |value: fn(&Point) -> f64| curves.iter().zip(&weights).map(|(c, w)| w * value(&c.points[i])).sum::<f64>() / total;
            Mean {
                method: first.points[i].method,
                target: first.points[i].target,
                rate: of(|p| p.rate),
                relative_error: geometric_mean(curves.iter().map(|c| c.points[i].relative_error)),
                gap: of(|p| p.gap),
            }
        })
        .collect()
}

/// Geometric mean over layers of the limit's relative errors, by rate.
pub fn mean_limits(curves: &[Curve]) -> Vec<f64> {
    let rates = curves.first().map_or(0, |c| c.limit.len());
    (0..rates).map(|i| geometric_mean(curves.iter().map(|c| c.limit[i].relative_error))).collect()
}

/// Of those that are not 0.
fn geometric_mean(values: impl Iterator<Item = f64>) -> f64 {
    let logs: Vec<f64> = values.filter(|v| *v > 0.0).map(f64::ln).collect();
    (logs.iter().sum::<f64>() / logs.len().max(1) as f64).exp()
}
