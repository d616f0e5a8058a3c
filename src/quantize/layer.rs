//! One linear layer: from its weights and the covariance of its input to what the file stores.
use super::cancel::{cancel, whiten, Outcome, Plan, Problem};
use super::column::{slot_of, Coder, EXCEPTION_BITS, WIDTHS};
use super::rescale::rescale;
use super::site::Site;
use super::widths::{assign, Budget};
use super::QuantizeError;
use half::f16;
use rand::{seq::index::sample, SeedableRng};
use std::sync::Arc;
use ws_kernels::layout::{pack, Geometry};
use ws_kernels::packed::{Exception, PackedMatrix, Parts};

/// Rows that the search for widths looks at, at least; a share of [`SEARCH_SHARE`] if that is more.
const SEARCH_ROWS: usize = 256;
const SEARCH_SHARE: usize = 10;
/// One of so many of them is chosen for its far entries.
const FAR_SHARE: usize = 4;
/// Rounds of that search: each measures columns' errors at the last round's lambda. The first one measures all widths, those after it what lies near its
/// choice. With two rounds SmolLM2-135M's perplexity is 1 % higher at 2 to 4 bits, at the same mean error.
const SEARCH_ROUNDS: usize = 3;
/// Stored bits of a row scale.
const ROW_SCALE_BITS: f64 = 16.0;
/// Full passes at most: another one follows if too few exceptions were foreseen, and what they would have saved is more than this share of the error.
const PASSES: usize = 3;
const REFUSED_SHARE: f64 = 0.01;
/// Exceptions reserved beyond those that are foreseen.
const EXCEPTION_RESERVE: f64 = 1.1;

/// A quantized layer.
pub(crate) struct Quantized {
    pub(crate) parts: Parts,
    /// `tr((W - V) S (W - V)^T) / tr(W S W^T)` of the stored V.
    pub(crate) relative_error: f64,
}

/// Quantizes `weight` (row-major `rows x in-features`) into at most `bytes` bytes, if its side data alone does not take more.
pub(crate) fn quantize_matrix(
    name: &str,
    weight: &[f32],
    site: &Site,
    coder: &Coder,
    bytes: u64,
    seed: u64,
) -> Result<Quantized, QuantizeError> {
    let features = site.features;
    let rows = weight.len() / features;
    let n = site.live.len();
    if weight.iter().any(|w| !w.is_finite()) {
        return Err(QuantizeError::NotFinite { name: format!("{name}.weight") });
    }
    let live: Vec<f32> = weight.chunks_exact(features).flat_map(|row| site.live.iter().map(|&j| row[j])).collect();
    let row_scale = row_scales(&live, n, rows);
    let (lanes, segment) = Geometry::lanes_for(rows);
    let row_scaled = row_scale.iter().any(|&scale| scale != 1.0);
    let side_bits = 8 * (features.div_ceil(2) + 4) as u64 + if row_scaled { ROW_SCALE_BITS as u64 * rows as u64 } else { 0 };
    let budget_for = |exceptions: f64| Budget {
        padded_rows: lanes * segment,
        rows,
        group: 64 / lanes,
        bits: (8 * bytes).saturating_sub(side_bits + (exceptions * EXCEPTION_BITS).ceil() as u64),
    };
    let target = if n == 0 { Vec::new() } else { whiten(&live, &site.factor, n) };
    let squares = |values: &[f32]| values.iter().map(|v| (*v as f64).powi(2)).sum::<f64>();
    let energy_of_weight = squares(&target) - site.damping * squares(&live);

    // Widths: measured on some of the rows, inside the cancellation.
    let (picked, count) = picked_rows(&live, site, rows, seed);
    let subset: Vec<f32> = target.chunks_exact(rows.max(1)).flat_map(|column| picked.iter().map(|&r| column[r])).collect();
    let subset_scale: Vec<f32> = picked.iter().map(|&r| row_scale[r]).collect();
    let energy = column_energy(live.chunks_exact(n.max(1)).zip(std::iter::repeat(&1.0)), n);
    let seen = column_energy(picked.iter().map(|&r| &live[r * n..(r + 1) * n]).zip(&count), n);
    let mut distortion = nominal_distortion(&energy, site, coder, n);
    let mut found = Vec::new();
    let mut exceptions = 0.0;
    for _ in 0..SEARCH_ROUNDS {
        let (_, lambda) = assign(&distortion, &budget_for(exceptions * EXCEPTION_RESERVE));
        let problem = Problem { n, factor: &site.factor, row_scale: &subset_scale, count: &count, lambda };
        let trial = cancel(subset.clone(), &problem, coder, &Plan::Search { known: &found });
        exceptions = trial.outliers.iter().map(|o| count[o.row] as f64).sum::<f64>();
        found = trial.found;
        // A column's error is in proportion to its energy, which is known over all rows.
        for ((distortion, found), (energy, seen)) in distortion.iter_mut().zip(&found).zip(energy.iter().zip(&seen)) {
            let ratio = if *seen > 0.0 { energy / seen } else { 1.0 };
            *distortion = found.mean.map(|d| d * rows as f64 * ratio);
        }
    }

    let mut target = Some(target);
    let mut best: Option<(f64, Outcome)> = None;
    for _ in 0..PASSES {
        let budget = budget_for(exceptions * EXCEPTION_RESERVE);
        let (widths, lambda) = assign(&distortion, &budget);
        let room = (8 * bytes).saturating_sub(side_bits + budget.size(&widths)) / EXCEPTION_BITS as u64;
        let problem = Problem { n, factor: &site.factor, row_scale: &row_scale, count: &vec![1.0; rows], lambda };
        let plan = Plan::Fixed { widths: &widths, known: &found, padded: lanes * segment, exceptions: room as usize };
        let outcome = cancel(target.take().unwrap_or_else(|| whiten(&live, &site.factor, n)), &problem, coder, &plan);
        // Exceptions are exact: what they spent is bits.
        let made = outcome.outliers.len();
        let (wanted, saved) = outcome.refused;
        let error = outcome.spent.iter().sum::<f64>() + saved - made as f64 * EXCEPTION_BITS * lambda;
        for (j, &width) in widths.iter().enumerate() {
            let slot = slot_of(width);
            distortion[j][slot] = distortion[j][slot].max(outcome.spent[j]);
        }
        exceptions = exceptions.max((made + wanted) as f64);
        if best.as_ref().is_none_or(|(least, _)| error < *least) {
            best = Some((error, outcome));
        }
        if saved <= REFUSED_SHARE * error {
            break;
        }
    }
    let (_, outcome) = best.expect("there was a pass");
    let (row_factor, column_factor) = rescale_outcome(&outcome, &live, &row_scale, site);

    let parts = store(&outcome, &row_scale, &row_factor, &column_factor, site, rows, coder);
    let matrix =
        PackedMatrix::new(parts.clone(), coder.codes.clone()).map_err(|error| QuantizeError::Packing { name: name.to_owned(), error })?;
    let mut stored = vec![0f32; weight.len()];
    matrix.decode(0..rows, &mut stored);
    let stored = stored.chunks_exact(features).flat_map(|row| site.live.iter().map(|&j| row[j]));
    let error: Vec<f32> = live.iter().zip(stored).map(|(w, v)| w - v).collect();
    let relative_error = if energy_of_weight > 0.0 { site.energy(&error) / energy_of_weight } else { 0.0 };
    Ok(Quantized { parts, relative_error })
}

/// Root mean square of each row over columns of equal weight: a fixed width does not follow a row's energy by itself. All 1 where that brings fewer
/// bits than the scales take: half the logarithm of the arithmetic over the geometric mean of the energies, for each weight.
fn row_scales(live: &[f32], n: usize, rows: usize) -> Vec<f32> {
    let column = column_energy(live.chunks_exact(n.max(1)).zip(std::iter::repeat(&1.0)), n);
    let mut scale: Vec<f64> = live
        .chunks_exact(n.max(1))
        .map(|row| row.iter().zip(&column).filter(|(_, c)| **c > 0.0).map(|(w, c)| (*w as f64).powi(2) / c).sum::<f64>().sqrt())
        .collect();
    scale.resize(rows, 1.0);
    let mean = (scale.iter().map(|s| s * s).sum::<f64>() / rows as f64).sqrt();
    scale.iter_mut().for_each(|s| *s = if mean > 0.0 { (*s / mean).clamp(1e-3, 1e3) } else { 1.0 });
    let gain = -scale.iter().map(|s| s.log2()).sum::<f64>() / rows as f64;
    if gain * (n as f64) < ROW_SCALE_BITS {
        scale.fill(1.0);
    }
    scale.into_iter().map(|s| s as f32).collect()
}

/// Some rows, sorted, and how many each stands for: those with the farthest entries, and others drawn by `seed`. Single entries of the columns of
/// most energy decide on those columns' widths: SmolLM2-135M at 3 bits, rows drawn blindly: 32 times the error of a down_proj from one seed to another.
fn picked_rows(live: &[f32], site: &Site, rows: usize, seed: u64) -> (Vec<usize>, Vec<f32>) {
    let n = site.live.len();
    let total = (rows / SEARCH_SHARE).max(SEARCH_ROWS).min(rows);
    let far = total / FAR_SHARE;
    let energy = column_energy(live.chunks_exact(n.max(1)).zip(std::iter::repeat(&1.0)), n);
    // What the row adds to the columns' fourth moments, in units of the columns' energies.
    let farness = |row: &[f32]| -> f64 {
        let column =
            |(j, w): (usize, &f32)| (*w as f64).powi(4) / energy[j].max(f64::MIN_POSITIVE) * (site.factor[j * n + j] as f64).powi(2);
        row.iter().enumerate().map(column).sum()
    };
    let mut order: Vec<(f64, usize)> = (0..rows).map(|r| (live.get(r * n..(r + 1) * n).map_or(0.0, farness), r)).collect();
    order.sort_by(|a, b| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1)));
    let (first, others) = order.split_at(far);
    let drawn = sample(&mut rand_chacha::ChaCha8Rng::seed_from_u64(seed), others.len(), total - far).into_vec();
    let stands_for = others.len() as f32 / (total - far).max(1) as f32;
    let mut picked: Vec<(usize, f32)> = first.iter().map(|o| (o.1, 1.0)).chain(drawn.iter().map(|&i| (others[i].1, stands_for))).collect();
    picked.sort_unstable_by_key(|p| p.0);
    picked.into_iter().unzip()
}

/// Energy of each column over these rows, each counted so many times.
fn column_energy<'a>(rows: impl Iterator<Item = (&'a [f32], &'a f32)>, n: usize) -> Vec<f64> {
    let mut energy = vec![0f64; n];
    for (row, count) in rows {
        energy.iter_mut().zip(row).for_each(|(sum, w)| *sum += *count as f64 * (*w as f64).powi(2));
    }
    energy
}

/// First guess: Gaussian columns of energy `|W_j|^2 L_jj^2`.
fn nominal_distortion(energy: &[f64], site: &Site, coder: &Coder, n: usize) -> Vec<[f64; WIDTHS.len()]> {
    energy.iter().enumerate().map(|(j, e)| coder.nominal().map(|d| d * e * (site.factor[j * n + j] as f64).powi(2))).collect()
}

fn rescale_outcome(outcome: &Outcome, live: &[f32], row_scale: &[f32], site: &Site) -> (Vec<f64>, Vec<f64>) {
    let (n, rows) = (site.live.len(), row_scale.len());
    let mut q0 = vec![0f32; rows * n];
    let mut target = live.to_vec();
    for j in 0..n {
        for r in 0..rows {
            let value = outcome.values[j * rows + r] * outcome.scale[j] * row_scale[r];
            if outcome.widths[j] == 16 {
                target[r * n + j] -= value;
            } else {
                q0[r * n + j] = value;
            }
        }
    }
    for outlier in &outcome.outliers {
        target[outlier.row * n + outlier.column] -= outlier.difference;
    }
    rescale(&q0, &target, &site.covariance, (rows, n), row_scale.iter().any(|&scale| scale != 1.0))
}

fn store(
    outcome: &Outcome,
    row_scale: &[f32],
    row_factor: &[f64],
    column_factor: &[f64],
    site: &Site,
    rows: usize,
    coder: &Coder,
) -> Parts {
    let mut widths = vec![0u8; site.features];
    let mut live_of = vec![usize::MAX; site.features];
    for (j, &feature) in site.live.iter().enumerate() {
        widths[feature] = outcome.widths[j];
        live_of[feature] = j;
    }
    let geometry = Geometry::new(rows, &widths).expect("sizes come from a matrix in memory");
    let column_scale = |j: usize| outcome.scale[j] * column_factor[j] as f32;
    let exact_value = |j: usize, r: usize| outcome.values[j * rows + r] * outcome.scale[j] * row_scale[r];
    let exact_columns: Vec<usize> = site.live.iter().enumerate().filter(|(j, _)| outcome.widths[*j] == 16).map(|(j, _)| j).collect();

    // One factor brings scales, exceptions and exact values into the range of f16.
    let largest_scale =
        (0..site.live.len()).filter(|&j| (1..=8).contains(&outcome.widths[j])).map(|j| column_scale(j).abs()).fold(0f32, f32::max);
    let largest_exact = exact_columns.iter().flat_map(|&j| (0..rows).map(move |r| exact_value(j, r).abs())).fold(0f32, f32::max);
    let largest_outlier = outcome.outliers.iter().map(|o| o.difference.abs()).fold(0f32, f32::max);
    let scale = (largest_scale / 1024.0).max(largest_exact.max(largest_outlier) / 32768.0);
    let scale = if scale > 0.0 && scale.is_finite() { scale } else { 1.0 };

    let columns: Vec<_> = geometry
        .runs
        .iter()
        .map(|run| {
            let column = |&feature: &u32| outcome.columns[live_of[feature as usize]].clone().expect("a coded width has a code");
            run.columns.iter().map(column).collect()
        })
        .collect();
    let codes = pack(&geometry, &coder.codes, &columns);
    let mut exceptions: Vec<Exception> = outcome
        .outliers
        .iter()
        .map(|o| Exception { row: o.row as u32, column: site.live[o.column] as u16, value: f16::from_f32(o.difference / scale) })
        .collect();
    exceptions.sort_unstable_by_key(|e| (e.row, e.column));
    Parts {
        out_features: rows,
        widths,
        scale,
        range: 0..codes.len(),
        codes: Arc::new(codes),
        col_scale: geometry
            .runs
            .iter()
            .flat_map(|run| &run.columns)
            .map(|&feature| f16::from_f32(column_scale(live_of[feature as usize]) / scale))
            .collect(),
        row_scale: row_scale.iter().zip(row_factor).map(|(r, t)| f16::from_f64(*r as f64 * t)).collect(),
        exact: exact_columns.iter().flat_map(|&j| (0..rows).map(move |r| f16::from_f32(exact_value(j, r) / scale))).collect(),
        exceptions,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::stored_bytes;
    use crate::quantize::linalg;
    use rand::Rng;
    use ws_kernels::code::CodeSet;

    fn gaussian(len: usize, seed: u64) -> Vec<f32> {
        let mut rng = rand_chacha::ChaCha8Rng::seed_from_u64(seed);
        (0..len).map(|_| (0..12).map(|_| rng.random::<f32>()).sum::<f32>() - 6.0).collect()
    }

    /// Covariance of inputs that are mixed from sources of falling energy.
    fn covariance(n: usize) -> Vec<f64> {
        let tokens = 8 * n;
        let mix = gaussian(n * n, 1);
        let source: Vec<f32> = gaussian(tokens * n, 2).iter().enumerate().map(|(i, v)| v / (1.0 + (i % n) as f32)).collect();
        let mut x = vec![0f32; tokens * n];
        linalg::product(&mut x, faer::Accum::Replace, linalg::view(&source, tokens, n), linalg::view(&mix, n, n), 1.0);
        let mut gram = vec![0f32; n * n];
        linalg::add_gram(&mut gram, &x, n);
        linalg::mirror(&mut gram, n);
        gram.iter().map(|&v| v as f64 / tokens as f64).collect()
    }

    fn bytes(rate: f64, weights: usize) -> u64 {
        (rate * weights as f64 / 8.0) as u64
    }

    #[test]
    fn meets_the_budget_and_halves_the_error_with_every_bit() {
        let (rows, n) = (320, 192);
        let (weight, sigma) = (gaussian(rows * n, 3), covariance(n));
        let site = Site::new("test", &sigma, &sigma).unwrap();
        let coder = Coder::new(Arc::new(CodeSet::scalar()));
        let mut last = 1.0;
        for rate in [1.5, 2.5, 3.5, 4.5, 5.5] {
            let budget = bytes(rate, rows * n);
            let quantized = quantize_matrix("test", &weight, &site, &coder, budget, 0).unwrap();
            let stored = stored_bytes(&quantized.parts);
            assert!(stored <= budget && stored as f64 > 0.97 * budget as f64, "{stored} of {budget} at {rate}");
            assert!(quantized.relative_error < 0.45 * last, "{} after {last} at {rate}", quantized.relative_error);
            last = quantized.relative_error;
        }
    }

    #[test]
    fn rounding_to_nearest_without_cancellation_is_worse() {
        let (rows, n) = (256, 128);
        let (weight, sigma) = (gaussian(rows * n, 4), covariance(n));
        let site = Site::new("test", &sigma, &sigma).unwrap();
        let coder = Coder::new(Arc::new(CodeSet::scalar()));
        let quantized = quantize_matrix("test", &weight, &site, &coder, bytes(4.0, rows * n), 0).unwrap();
        let step = 2.0 * 3.0 / 15.0;
        let nearest: Vec<f32> = weight.iter().map(|w| w - ((w / step).round() * step).clamp(-3.0, 3.0)).collect();
        let error = site.energy(&nearest) / site.energy(&weight);
        assert!(quantized.relative_error < 0.5 * error, "{} against {error}", quantized.relative_error);
    }

    #[test]
    fn a_far_entry_is_stored_exactly() {
        let (rows, n) = (256, 128);
        let (mut weight, sigma) = (gaussian(rows * n, 5), covariance(n));
        weight[7 * n + 50] = 40.0;
        let site = Site::new("test", &sigma, &sigma).unwrap();
        let coder = Coder::new(Arc::new(CodeSet::scalar()));
        let quantized = quantize_matrix("test", &weight, &site, &coder, bytes(3.0, rows * n), 0).unwrap();
        assert!(quantized.parts.exceptions.iter().any(|e| e.row == 7 && e.column == 50) || quantized.parts.widths[50] >= 8);
        assert!(quantized.relative_error < 0.03, "{}", quantized.relative_error);
    }

    #[test]
    fn single_rows_that_matter_are_seen_whatever_the_seed() {
        const HOT: std::ops::Range<usize> = 30..62;
        let (rows, n) = (1536, 96);
        let (mut weight, mut sigma) = (gaussian(rows * n, 9), vec![0f64; n * n]);
        (0..n).for_each(|i| sigma[i * n + i] = if HOT.contains(&i) { 1e4 } else { 1.0 });
        for row in 0..rows {
            // Each of these columns has two rows that matter.
            HOT.for_each(|j| weight[row * n + j] *= if row % 768 == j * 7 { 3.0 } else { 0.02 });
        }
        let site = Site::new("test", &sigma, &sigma).unwrap();
        let coder = Coder::new(Arc::new(CodeSet::scalar()));
        let error = |seed| quantize_matrix("test", &weight, &site, &coder, bytes(3.0, rows * n), seed).unwrap().relative_error;
        let errors: Vec<f64> = (0..6).map(error).collect();
        let (least, most) = errors.iter().fold((f64::INFINITY, 0f64), |(l, m), e| (l.min(*e), m.max(*e)));
        assert!(most < 1.1 * least, "{errors:?}");
    }

    #[test]
    fn row_scales_are_stored_where_rows_differ() {
        let (rows, n) = (256, 192);
        let (mut weight, sigma) = (gaussian(rows * n, 10), covariance(n));
        let site = Site::new("test", &sigma, &sigma).unwrap();
        let coder = Coder::new(Arc::new(CodeSet::scalar()));
        let scales = |weight: &[f32]| quantize_matrix("test", weight, &site, &coder, bytes(3.0, rows * n), 0).unwrap().parts.row_scale;
        assert!(scales(&weight).iter().all(|&s| s == f16::ONE));
        weight[..rows * n / 2].iter_mut().for_each(|w| *w *= 2.0);
        let scales = scales(&weight);
        let mean = |s: &[f16]| s.iter().map(|s| s.to_f64()).sum::<f64>() / s.len() as f64;
        let (low, high) = (mean(&scales[rows / 2..]), mean(&scales[..rows / 2]));
        assert!((1.8..2.2).contains(&(high / low)), "{high} and {low}");
    }

    #[test]
    fn dead_features_and_empty_layers_store_next_to_nothing() {
        let (rows, n) = (64, 64);
        let mut sigma = covariance(n);
        for i in 0..n {
            for dead in [3, 40] {
                sigma[i * n + dead] = 0.0;
                sigma[dead * n + i] = 0.0;
            }
        }
        let site = Site::new("test", &sigma, &sigma).unwrap();
        let coder = Coder::new(Arc::new(CodeSet::scalar()));
        let live = quantize_matrix("test", &gaussian(rows * n, 6), &site, &coder, bytes(4.0, rows * n), 0).unwrap();
        assert_eq!((live.parts.widths[3], live.parts.widths[40]), (0, 0));
        let zero = quantize_matrix("test", &vec![0.0; rows * n], &site, &coder, bytes(4.0, rows * n), 0).unwrap();
        assert!(zero.parts.widths.iter().all(|&w| w == 0) && zero.relative_error == 0.0);
        let nothing = Site::new("test", &vec![0.0; n * n], &vec![0.0; n * n]).unwrap();
        assert!(quantize_matrix("test", &gaussian(rows * n, 7), &nothing, &coder, 4096, 0).unwrap().parts.exceptions.is_empty());
    }

    #[test]
    fn damaged_values_are_refused_by_name() {
        let (rows, n) = (16, 16);
        let mut sigma = covariance(n);
        let site = Site::new("good", &sigma, &sigma).unwrap();
        let coder = Coder::new(Arc::new(CodeSet::scalar()));
        let mut weight = gaussian(rows * n, 8);
        weight[5] = f32::NAN;
        let error = quantize_matrix("layer.7", &weight, &site, &coder, 512, 0).err().unwrap();
        assert!(error.to_string().contains("layer.7.weight"));
        sigma[0] = f64::INFINITY;
        assert!(Site::new("layer.8", &sigma, &sigma).err().unwrap().to_string().contains("layer.8"));
    }
}
