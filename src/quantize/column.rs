//! Encoding one column at a width, and what that costs.
use super::cancel::mean;
use std::sync::Arc;
use ws_kernels::code::CodeSet;
use ws_kernels::layout::Column;
use ws_kernels::viterbi::{Encoder, Scratch};

/// Widths that a column can have: trellis or scalar codes, plain int8, exact f16.
pub(crate) const WIDTHS: [u8; 9] = [0, 1, 2, 3, 4, 5, 6, 8, 16];

/// Stored bits of one exception: row, column, value.
pub(crate) const EXCEPTION_BITS: f64 = 48.0;

/// Fourth moment of a unit-variance column above which its error is measured rather than taken from the Gaussian one.
const GAUSSIAN_KURTOSIS: f64 = 4.5;

/// Level spacings tried on a column that is not Gaussian, relative to that for a Gaussian.
const STRETCHES: [f32; 5] = [1.0, 1.3, 1.7, 2.3, 3.2];

/// Those that are tried first, as indices; the neighbours of the best one follow.
const COARSE: [usize; 3] = [0, 2, 4];

/// A column at some width.
pub(crate) struct Encoded {
    /// Stored form; `None` at widths 0 and 16.
    pub(crate) column: Option<Column>,
    /// `unit * level` for every row (before `stretch`); for width 16 the input itself.
    pub(crate) values: Vec<f32>,
    /// Factor on `values` that approximates the input.
    pub(crate) stretch: f32,
}

/// What a column's error is at each of [`WIDTHS`].
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Distortions {
    /// Mean squared error over the rows.
    pub(crate) mean: [f64; WIDTHS.len()],
    /// The level spacing that gave it, as an index into [`STRETCHES`]; `None` for a Gaussian column, whose errors are the codes' nominal ones.
    stretch: Option<[usize; WIDTHS.len()]>,
}

impl Distortions {
    /// The slot of [`WIDTHS`] of least cost.
    fn cheapest(&self, lambda: f64) -> usize {
        let cost = |slot: usize| self.mean[slot] + lambda * WIDTHS[slot] as f64;
        (0..WIDTHS.len()).min_by(|&a, &b| cost(a).total_cmp(&cost(b))).expect("there are widths")
    }
}

/// Where a width stands in [`WIDTHS`].
pub(super) fn slot_of(width: u8) -> usize {
    WIDTHS.iter().position(|&w| w == width).expect("a known width")
}

/// An index and its neighbours.
fn around(index: usize, len: usize) -> std::ops::Range<usize> {
    index.saturating_sub(1)..(index + 2).min(len)
}

/// True for a width of a trellis or scalar code, whose level spacing can be chosen.
fn is_coded(width: u8) -> bool {
    (1..=6).contains(&width)
}

/// What an error of a column costs.
#[derive(Clone, Copy)]
pub(crate) struct Measure<'a> {
    /// Factor on each row's error.
    pub(crate) weight: &'a [f32],
    /// Rows that each row stands for.
    pub(crate) count: &'a [f32],
    /// Distortion that one stored bit is worth.
    pub(crate) lambda: f64,
}

impl Measure<'_> {
    /// Most that an entry's squared error costs: an exception makes it exact.
    pub(crate) fn cap(&self) -> f64 {
        EXCEPTION_BITS * self.lambda
    }
}

/// Encodes columns of about unit variance.
pub(crate) struct Coder {
    pub(crate) codes: Arc<CodeSet>,
    /// Encoder of each width from 1 to 6, at index `width - 1`.
    encoders: Vec<Encoder>,
    /// Mean squared error of a unit Gaussian at each of [`WIDTHS`].
    nominal: [f64; WIDTHS.len()],
    /// Quantile midpoints of the Gaussian, shuffled: they stand for a long random sample.
    sample: Vec<f32>,
}

impl Coder {
    /// # Panics
    /// If a width from 1 to 6 has no valid code.
    pub(crate) fn new(codes: Arc<CodeSet>) -> Self {
        let encoder = |width| Encoder::new(codes.get(width).expect("a code for every width from 1 to 6").clone()).expect("a valid code");
        let encoders = (1..=6).map(encoder).collect();
        let mut sample: Vec<f32> = (0..4096).map(|i| gaussian_quantile((i as f64 + 0.5) / 4096.0) as f32).collect();
        use rand::{seq::SliceRandom, SeedableRng};
        sample.shuffle(&mut rand_chacha::ChaCha8Rng::seed_from_u64(0));
        let mut coder = Self { codes, encoders, nominal: [0.0; WIDTHS.len()], sample };
        let mut scratch = Scratch::default();
        coder.nominal = WIDTHS.map(|width| {
            let encoded = coder.encode_at(width, &coder.sample, coder.sample.len(), 1.0, &mut scratch);
            let errors = coder.sample.iter().zip(&encoded.values).map(|(x, q)| ((x - q * encoded.stretch) as f64).powi(2));
            errors.sum::<f64>() / coder.sample.len() as f64
        });
        coder
    }

    /// Mean squared error of a unit Gaussian column at each of [`WIDTHS`].
    pub(crate) fn nominal(&self) -> &[f64; WIDTHS.len()] {
        &self.nominal
    }

    /// Column `j` at the width of least cost, to learn its error and what it does to the columns after it.
    /// `energy`: mean square of `y = x * weight`. What an earlier round found of the column narrows the search, to the neighbours of the width that it makes
    /// the cheapest, and of the spacings that were best. Gaussian columns are not encoded, most of the work otherwise.
    pub(crate) fn choose(
        &self,
        j: usize,
        x: &[f32],
        energy: f64,
        measure: Measure,
        known: Option<&Distortions>,
        scratch: &mut Scratch,
    ) -> (u8, Encoded, Distortions) {
        if is_gaussian(x, measure.count) {
            let found = Distortions { mean: self.nominal.map(|d| d * energy), stretch: None };
            let slot = found.cheapest(measure.lambda);
            let encoded = match is_coded(WIDTHS[slot]) {
                true => self.simulate(slot, j, x),
                false => self.encode_at(WIDTHS[slot], x, x.len(), 1.0, scratch),
            };
            return (WIDTHS[slot], encoded, found);
        }
        let known = known.and_then(|known| Some((around(known.cheapest(measure.lambda), WIDTHS.len()), known.mean, known.stretch?)));
        let (near, mut mean, mut stretch) = known.clone().unwrap_or((0..WIDTHS.len(), [0.0; WIDTHS.len()], [0; WIDTHS.len()]));
        let mut best: Option<(f64, u8, Encoded)> = None;
        for (slot, &width) in WIDTHS.iter().enumerate().filter(|(slot, width)| near.contains(slot) || !is_coded(**width)) {
            let tried = match known {
                Some(_) => around(stretch[slot], STRETCHES.len()).collect(),
                None => COARSE.to_vec(),
            };
            let (encoded, error, at) = self.best(width, x, x.len(), &tried, measure, scratch);
            (mean[slot], stretch[slot]) = (error, at);
            let cost = error + measure.lambda * width as f64;
            if best.as_ref().is_none_or(|(least, ..)| cost < *least) {
                best = Some((cost, width, encoded));
            }
        }
        let (_, width, encoded) = best.expect("exact columns are always tried");
        (width, encoded, Distortions { mean, stretch: Some(stretch) })
    }

    /// What a code of the nominal error would make of column `j`, were it Gaussian: the test channel of the rate-distortion function, within the code's
    /// largest level.
    fn simulate(&self, slot: usize, j: usize, x: &[f32]) -> Encoded {
        let code = self.codes.get(WIDTHS[slot]).expect("a code for every coded width");
        let top = code.levels.iter().flatten().map(|level| f32::from(*level)).fold(0.0, f32::max) * code.unit;
        let error = self.nominal[slot] as f32;
        // A start of its own for each column: the noise of a row must not repeat from column to column.
        let (end, start) = self.sample.split_at(j * 977 % self.sample.len());
        let noise = start.iter().chain(end).cycle();
        let values = x.iter().zip(noise).map(|(x, noise)| ((1.0 - error) * x + (error * (1.0 - error)).sqrt() * noise).clamp(-top, top));
        Encoded { column: None, values: values.collect(), stretch: 1.0 }
    }

    /// Encodes `x` padded to `padded` rows. Where the column is not Gaussian the spacing is searched, near the one `known` for this width if there is one.
    pub(crate) fn encode(
        &self,
        width: u8,
        x: &[f32],
        padded: usize,
        measure: Measure,
        known: &Distortions,
        scratch: &mut Scratch,
    ) -> Encoded {
        if !is_coded(width) || is_gaussian(x, measure.count) {
            return self.encode_at(width, x, padded, 1.0, scratch);
        }
        let slot = slot_of(width);
        let tried = known.stretch.map_or(0..STRETCHES.len(), |stretch| around(stretch[slot], STRETCHES.len()));
        self.best(width, x, padded, &tried.collect::<Vec<_>>(), measure, scratch).0
    }

    /// The column at the best of some spacings, its mean error, and the index of that spacing.
    fn best(&self, width: u8, x: &[f32], padded: usize, tried: &[usize], measure: Measure, scratch: &mut Scratch) -> (Encoded, f64, usize) {
        let mut best: Option<(Encoded, f64, usize)> = None;
        for &at in if is_coded(width) { tried } else { &[0] } {
            let encoded = self.encode_at(width, x, padded, STRETCHES[at], scratch);
            let errors = x
                .iter()
                .zip(&encoded.values)
                .zip(measure.weight)
                .map(|((x, q), w)| ((x - q * encoded.stretch) * w).powi(2).min(measure.cap() as f32));
            let error = mean(errors, measure.count);
            if best.as_ref().is_none_or(|(_, least, _)| error < *least) {
                best = Some((encoded, error, at));
            }
        }
        best.expect("there is at least one spacing")
    }

    fn encode_at(&self, width: u8, x: &[f32], padded: usize, stretch: f32, scratch: &mut Scratch) -> Encoded {
        match width {
            0 => Encoded { column: None, values: vec![0.0; x.len()], stretch: 1.0 },
            16 => Encoded { column: None, values: x.to_vec(), stretch: 1.0 },
            8 => {
                let step = x.iter().fold(0f32, |m, v| m.max(v.abs())).max(1e-30) / 127.0;
                let values: Vec<f32> = x.iter().map(|v| (v / step).round()).collect();
                let mut raw: Vec<u8> = values.iter().map(|v| (v + 128.0) as u8).collect();
                raw.resize(padded, 128);
                Encoded { column: Some(Column { path: Vec::new(), raw }), values, stretch: step }
            }
            _ => {
                // Rows beyond the column are free, and encoders take whole groups of 8.
                let length = padded.next_multiple_of(8);
                let mut scaled: Vec<f32> = x.iter().map(|v| v / stretch).collect();
                scaled.resize(length, f32::NAN);
                let mut values = vec![0.0; length];
                let column = self.encoders[width as usize - 1].encode(&scaled, &mut values, scratch);
                values.truncate(x.len());
                Encoded { column: Some(column), values, stretch }
            }
        }
    }
}

/// By the fourth moment of a column of unit variance.
fn is_gaussian(x: &[f32], count: &[f32]) -> bool {
    mean(x.iter().map(|v| v.powi(4)), count) < GAUSSIAN_KURTOSIS
}

/// Inverse of the standard normal distribution function (Acklam's rational approximation, relative error 1e-9).
pub(crate) fn gaussian_quantile(p: f64) -> f64 {
    const A: [f64; 6] =
        [-3.969683028665376e1, 2.209460984245205e2, -2.759285104469687e2, 1.38357751867269e2, -3.066479806614716e1, 2.506628277459239];
    const B: [f64; 5] = [-5.447609879822406e1, 1.615858368580409e2, -1.556989798598866e2, 6.680131188771972e1, -1.328068155288572e1];
    const C: [f64; 6] =
        [-7.784894002430293e-3, -3.223964580411365e-1, -2.400758277161838, -2.549732539343734, 4.374664141464968, 2.938163982698783];
    const D: [f64; 4] = [7.784695709041462e-3, 3.224671290700398e-1, 2.445134137142996, 3.754408661907416];
    let horner = |c: &[f64], x: f64| c.iter().fold(0.0, |sum, k| sum * x + k);
    let tail = |q: f64| horner(&C, q) / (horner(&D, q) * q + 1.0);
    if p < 0.02425 {
        tail((-2.0 * p.ln()).sqrt())
    } else if p > 1.0 - 0.02425 {
        -tail((-2.0 * (1.0 - p).ln()).sqrt())
    } else {
        let (q, r) = (p - 0.5, (p - 0.5) * (p - 0.5));
        q * horner(&A, r) / (horner(&B, r) * r + 1.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::{Rng, SeedableRng};
    use ws_kernels::tables::Effort;

    fn normal(len: usize, seed: u64) -> Vec<f32> {
        let mut rng = rand_chacha::ChaCha8Rng::seed_from_u64(seed);
        (0..len).map(|_| gaussian_quantile(rng.random_range(1e-9..1.0)) as f32).collect()
    }

    fn coder() -> Coder {
        Coder::new(Arc::new(CodeSet::trellis(Effort::Fast)))
    }

    #[test]
    fn simulated_columns_have_the_nominal_error_and_no_larger_values_than_the_code() {
        let (coder, x) = (coder(), normal(1 << 15, 1));
        for (slot, &width) in WIDTHS.iter().enumerate().filter(|(_, width)| is_coded(**width)) {
            let simulated = coder.simulate(slot, 5, &x);
            let error = x.iter().zip(&simulated.values).map(|(x, q)| ((x - q) as f64).powi(2)).sum::<f64>() / x.len() as f64;
            // At 6 bits what lies beyond the largest level is a tenth of the error.
            assert!((0.95..1.15).contains(&(error / coder.nominal[slot])), "{width} bits: {error} and {}", coder.nominal[slot]);
            let mut scratch = Scratch::default();
            let largest = |values: &[f32]| values.iter().fold(0f32, |max, v| max.max(v.abs()));
            let coded = coder.encode_at(width, &x, x.len(), 1.0, &mut scratch);
            assert!(largest(&simulated.values) <= largest(&coded.values), "{width} bits");
        }
    }

    #[test]
    fn a_later_round_chooses_nothing_worse() {
        let coder = coder();
        // Far from Gaussian: some rows have four times the amplitude.
        let mut x: Vec<f32> = normal(512, 2).iter().enumerate().map(|(i, v)| if i % 8 == 0 { 4.0 * v } else { *v }).collect();
        let scale = (x.iter().map(|v| v * v).sum::<f32>() / 512.0).sqrt();
        x.iter_mut().for_each(|v| *v /= scale);
        let ones = vec![1.0; 512];
        let mut scratch = Scratch::default();
        for lambda in [0.1, 0.01, 0.001] {
            let measure = Measure { weight: &ones, count: &ones, lambda };
            let mut choose = |known: Option<&Distortions>| coder.choose(0, &x, 1.0, measure, known, &mut scratch);
            let cost = |(width, _, found): &(u8, Encoded, Distortions)| found.mean[slot_of(*width)] + lambda * f64::from(*width);
            let first = choose(None);
            let second = choose(Some(&first.2));
            assert!((1..=6).contains(&first.0), "{lambda}");
            assert!(cost(&second) <= cost(&first) && second.0.abs_diff(first.0) <= 1, "{lambda}: {} and {} bits", first.0, second.0);
        }
    }
}
