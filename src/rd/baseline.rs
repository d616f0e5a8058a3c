//! The quantizers that ours is compared with, on the same weights and covariance. What they make is counted as each says and stored nowhere.
use crate::quantize::cancel::{successive, whiten};
use crate::quantize::linalg::{product, view};
use crate::quantize::rescale::rescale;
use crate::quantize::site::{Site, DAMPING};
use crate::quantize::QuantizeError;
use faer::Accum;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use std::collections::HashMap;

/// A reconstruction (row-major `rows x live in-features`) and its rate in bits a weight of these.
pub(super) struct Reconstruction {
    pub(super) values: Vec<f32>,
    pub(super) rate: f64,
}

/// How the integers of an entropy-counted code are counted.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Entropy {
    /// One distribution for the whole matrix: what the WaterSIC paper reports.
    Pooled,
    /// One distribution a column: what its theorem uses.
    PerColumn,
}

/// Rounds on the way to the wanted rate.
const ROUNDS: usize = 16;
/// Distance to the wanted rate that is close enough, in bits.
const CLOSE: f64 = 0.002;
/// Weights with a step of their own in [`round_to_nearest`].
const GROUP: usize = 64;
/// Damping of GPTQ in the WaterSIC paper, as a share of the mean energy.
const GPTQ_DAMPING: f64 = 0.1;

/// Scalar WaterSIC: one step for all columns of Y, integers counted by their entropy, 16 bits for the scale of each row and column, rescaled.
pub(super) fn watersic_entropy(weight: &[f32], site: &Site, rate: f64, entropy: Entropy) -> Reconstruction {
    let mut found = by_entropy(weight, &site.factor, site.live.len(), rate, entropy, |_| 1.0);
    let n = site.live.len();
    let (t, g) = rescale(&found.values, weight, &site.covariance, (weight.len() / n, n), true);
    for (row, t) in found.values.chunks_exact_mut(n).zip(&t) {
        row.iter_mut().zip(&g).for_each(|(v, g)| *v *= (t * g) as f32);
    }
    found
}

/// Huffman-GPTQ: one step for all columns of W, integers counted by their pooled entropy.
pub(super) fn gptq_entropy(weight: &[f32], site: &Site, rate: f64) -> Reconstruction {
    by_entropy(weight, &site.factor, site.live.len(), rate, Entropy::Pooled, |pivot| pivot)
}

/// Uniform rounding of Y inside the cancellation with the step `step * spread(L_jj)`; the step is searched until the entropy meets the rate.
fn by_entropy(weight: &[f32], factor: &[f32], n: usize, rate: f64, entropy: Entropy, spread: impl Fn(f32) -> f32) -> Reconstruction {
    let rows = weight.len() / n;
    let side = 16.0 / rows as f64 + 16.0 / n as f64;
    let target = whiten(weight, factor, n);
    let mean_log = (0..n).map(|j| f64::from(factor[j * n + j] / spread(factor[j * n + j])).ln()).sum::<f64>() / n as f64;
    let power = weight.iter().map(|w| f64::from(*w).powi(2)).sum::<f64>() / weight.len() as f64;
    let start = 0.5 * (12.0 * power).log2() + mean_log / std::f64::consts::LN_2 + side - rate;
    at_rate(rate, start, |step| {
        let step = step.exp2();
        let mut integers = vec![0i32; n * rows];
        let values = successive(target.clone(), factor, n, |j, y, v| {
            let pivot = factor[j * n + j];
            let step = step as f32 * spread(pivot);
            let z = &mut integers[j * rows..][..rows];
            z.iter_mut().zip(y).for_each(|(z, y)| *z = (y / step).round() as i32);
            let (dot, norm) =
                z.iter().zip(y).fold((0f64, 0f64), |(d, s), (&z, &y)| (d + f64::from(z) * f64::from(y), s + f64::from(z).powi(2)));
            let gain = if norm > 0.0 { (dot / norm) as f32 } else { 0.0 };
            v.iter_mut().zip(z).for_each(|(v, z)| *v = gain * *z as f32 / pivot);
        });
        let counted = match entropy {
            Entropy::Pooled => entropy_of(&integers),
            Entropy::PerColumn => integers.chunks_exact(rows).map(entropy_of).sum::<f64>() / n as f64,
        };
        Reconstruction { values: transposed(&values, n), rate: counted + side }
    })
}

/// The reconstruction at the wanted rate, where `quantize` takes the logarithm (base 2) of a step: one less costs about a bit.
fn at_rate(rate: f64, start: f64, mut quantize: impl FnMut(f64) -> Reconstruction) -> Reconstruction {
    let (mut fine, mut coarse) = (f64::NEG_INFINITY, f64::INFINITY);
    let mut step = start;
    let mut found = quantize(step);
    for _ in 1..ROUNDS {
        if (found.rate - rate).abs() < CLOSE {
            break;
        }
        *(if found.rate > rate { &mut fine } else { &mut coarse }) = step;
        step += found.rate - rate;
        if step <= fine || step >= coarse || coarse - fine < 1.0 {
            step = 0.5 * (fine + coarse);
        }
        found = quantize(step);
    }
    found
}

/// GPTQ: uniform levels over each row's range shrunk to its best clipping point, the same rate for every column, natural order. The better of
/// our damping and the paper's.
pub(super) fn gptq(name: &str, weight: &[f32], site: &Site, rate: f64) -> Result<Reconstruction, QuantizeError> {
    let damped = Site::factored(name, site.features, site.live.clone(), site.covariance.clone(), GPTQ_DAMPING)?;
    let error = |found: &Reconstruction| site.energy(&weight.iter().zip(&found.values).map(|(w, v)| w - v).collect::<Vec<_>>());
    let [ours, papers] = [site, &damped].map(|site| equal_rate(weight, &site.factor, site.live.len(), rate));
    Ok(if error(&papers) < error(&ours) { papers } else { ours })
}

/// GPTQ after a random rotation of the in-features.
pub(super) fn rotated_gptq(name: &str, weight: &[f32], site: &Site, rate: f64, seed: u64) -> Result<Reconstruction, QuantizeError> {
    let n = site.live.len();
    // Not the eigenvectors of a Gaussian layer of this seed.
    let rotation = random_rotation(n, !seed);
    let rotation = view(&rotation, n, n);
    let mut half = vec![0f64; n * n];
    let mut covariance = vec![0f64; n * n];
    product(&mut half, Accum::Replace, rotation.transpose(), view(&site.covariance, n, n), 1.0);
    product(&mut covariance, Accum::Replace, view(&half, n, n), rotation, 1.0);
    let turned = Site::factored(name, n, (0..n).collect(), covariance, DAMPING)?;
    let turn = |values: &[f32], by| {
        let rows = values.len() / n;
        let wide: Vec<f64> = values.iter().map(|&v| v as f64).collect();
        let mut out = vec![0f64; values.len()];
        product(&mut out, Accum::Replace, view(&wide, rows, n), by, 1.0);
        out.iter().map(|&v| v as f32).collect::<Vec<f32>>()
    };
    let mut found = gptq(name, &turn(weight, rotation), &turned, rate)?;
    found.values = turn(&found.values, rotation.transpose());
    Ok(found)
}

fn equal_rate(weight: &[f32], factor: &[f32], n: usize, rate: f64) -> Reconstruction {
    let side = 16.0 / n as f64;
    let levels = 2f64.powf(rate - side).round().max(2.0);
    let steps: Vec<f32> = weight.chunks_exact(n).map(|row| best_step(row, levels)).collect();
    let values = successive(whiten(weight, factor, n), factor, n, |j, y, v| {
        let pivot = factor[j * n + j];
        v.iter_mut().zip(y).zip(&steps).for_each(|((v, y), step)| *v = round_to(y / pivot, *step, levels));
    });
    Reconstruction { values: transposed(&values, n), rate: levels.log2() + side }
}

/// Rounding to nearest with a step for each group of [`GROUP`] weights of a row, from its largest.
pub(super) fn round_to_nearest(weight: &[f32], n: usize, rate: f64) -> Reconstruction {
    let side = 16.0 * n.div_ceil(GROUP) as f64 / n as f64;
    let levels = 2f64.powf(rate - side).round().max(2.0);
    let mut values = weight.to_vec();
    for group in values.chunks_exact_mut(n).flat_map(|row| row.chunks_mut(GROUP)) {
        let step = 2.0 * group.iter().fold(0f32, |m, v| m.max(v.abs())) / levels as f32;
        group.iter_mut().for_each(|v| *v = round_to(*v, step, levels));
    }
    Reconstruction { values, rate: levels.log2() + side }
}

/// The nearest of `levels` values `step` apart, symmetric about 0.
fn round_to(value: f32, step: f32, levels: f64) -> f32 {
    if step <= 0.0 {
        return 0.0;
    }
    let top = 0.5 * (levels as f32 - 1.0);
    let offset = top.fract();
    ((value / step - offset).round() + offset).clamp(-top, top) * step
}

/// The step of least squared error on a row among shrunken ranges.
fn best_step(row: &[f32], levels: f64) -> f32 {
    let widest = 2.0 * row.iter().fold(0f32, |m, v| m.max(v.abs())) / levels as f32;
    let error = |step: f32| row.iter().map(|v| (v - round_to(*v, step, levels)).powi(2)).sum::<f32>();
    (0..16).map(|i| widest * (1.0 - 0.05 * i as f32)).min_by(|a, b| error(*a).total_cmp(&error(*b))).unwrap_or(widest)
}

/// An ideal code inside the same cancellation, simulated: column `j` gets `max(0, log2(v_j / theta) / 2)` bits and the error of a Gaussian
/// test channel. Its gap to water-filling is what successive cancellation itself costs.
pub(super) fn ideal(weight: &[f32], site: &Site, rate: f64, seed: u64) -> Reconstruction {
    let n = site.live.len();
    let target = whiten(weight, &site.factor, n);
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let pivots = (0..n).map(|j| f64::from(site.factor[j * n + j]).powi(2));
    let power = weight.iter().map(|w| f64::from(*w).powi(2)).sum::<f64>() / weight.len() as f64;
    let start = 0.5 * (power.log2() + pivots.map(f64::log2).sum::<f64>() / n as f64) - rate;
    at_rate(rate, start, |step| {
        let theta = (2.0 * step).exp2();
        let mut bits = 0.0;
        let values = successive(target.clone(), &site.factor, n, |j, y, v| {
            let energy = y.iter().map(|y| f64::from(*y).powi(2)).sum::<f64>() / y.len() as f64;
            if energy <= theta {
                return;
            }
            bits += 0.5 * (energy / theta).log2();
            let kept = 1.0 - theta / energy;
            let (gain, noise) = (kept as f32, (theta * kept).sqrt() as f32);
            let pivot = site.factor[j * n + j];
            v.iter_mut().zip(y).for_each(|(v, y)| *v = (gain * y + noise * normal(&mut rng)) / pivot);
        });
        Reconstruction { values: transposed(&values, n), rate: bits / n as f64 }
    })
}

/// [`ideal`] with the in-features in the order of a pivoted Cholesky factorization: that of most remaining energy first.
pub(super) fn ideal_pivoted(name: &str, weight: &[f32], site: &Site, rate: f64, seed: u64) -> Result<Reconstruction, QuantizeError> {
    let n = site.live.len();
    let order = pivoted_order(&site.covariance, n);
    let covariance = order.iter().flat_map(|&i| order.iter().map(move |&j| (i, j))).map(|(i, j)| site.covariance[i * n + j]).collect();
    let pivoted = Site::factored(name, n, (0..n).collect(), covariance, DAMPING)?;
    let moved: Vec<f32> = weight.chunks_exact(n).flat_map(|row| order.iter().map(|&j| row[j])).collect();
    let found = ideal(&moved, &pivoted, rate, seed);
    let mut values = vec![0f32; weight.len()];
    for (to, from) in values.chunks_exact_mut(n).zip(found.values.chunks_exact(n)) {
        order.iter().zip(from).for_each(|(&j, v)| to[j] = *v);
    }
    Ok(Reconstruction { values, rate: found.rate })
}

fn pivoted_order(covariance: &[f64], n: usize) -> Vec<usize> {
    let mut left = covariance.to_vec();
    let mut order: Vec<usize> = Vec::with_capacity(n);
    let mut open: Vec<usize> = (0..n).collect();
    while let Some(k) = (0..open.len()).max_by(|&a, &b| left[open[a] * (n + 1)].total_cmp(&left[open[b] * (n + 1)])) {
        let pivot = open.remove(k);
        order.push(pivot);
        let energy = left[pivot * (n + 1)];
        if energy <= 0.0 {
            continue;
        }
        for &i in &open {
            let factor = left[i * n + pivot] / energy;
            for &j in &open {
                left[i * n + j] -= factor * left[pivot * n + j];
            }
        }
    }
    order
}

/// A standard normal number (Box and Muller).
pub(super) fn normal(rng: &mut impl Rng) -> f32 {
    ((-2.0 * (1.0 - rng.random::<f64>()).ln()).sqrt() * (std::f64::consts::TAU * rng.random::<f64>()).cos()) as f32
}

/// A random orthogonal matrix, row-major: Q of a Gaussian one.
pub(super) fn random_rotation(n: usize, seed: u64) -> Vec<f64> {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let gaussian = faer::Mat::from_fn(n, n, |_, _| f64::from(normal(&mut rng)));
    let q = gaussian.qr().compute_Q();
    (0..n * n).map(|i| q[(i / n, i % n)]).collect()
}

/// Bits of an integer by the frequencies of the sequence itself.
fn entropy_of(integers: &[i32]) -> f64 {
    let mut count: HashMap<i32, u64> = HashMap::new();
    integers.iter().for_each(|z| *count.entry(*z).or_default() += 1);
    let total = integers.len() as f64;
    // Sums of floats depend on their order, and that of a map is random.
    let mut counts: Vec<u64> = count.into_values().collect();
    counts.sort_unstable();
    counts.into_iter().map(|c| c as f64 / total).map(|p| -p * p.log2()).sum()
}

fn transposed(columns: &[f32], n: usize) -> Vec<f32> {
    let rows = columns.len() / n;
    (0..rows).flat_map(|r| (0..n).map(move |j| columns[j * rows + r])).collect()
}
