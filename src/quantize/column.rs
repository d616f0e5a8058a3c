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

/// A column at some width.
pub(crate) struct Encoded {
    /// Stored form; `None` at widths 0 and 16.
    pub(crate) column: Option<Column>,
    /// `unit * level` for every row (before `stretch`); for width 16 the input itself.
    pub(crate) values: Vec<f32>,
    /// Factor on `values` that approximates the input.
    pub(crate) stretch: f32,
}

/// What an error of a column costs.
#[derive(Clone, Copy)]
pub(crate) struct Measure<'a> {
    /// Factor on each row's error.
    pub(crate) weight: &'a [f32],
    /// Rows that each row stands for.
    pub(crate) count: &'a [f32],
    /// Most that an entry's squared error costs: an exception makes it exact.
    pub(crate) cap: f64,
}

/// Encodes columns of about unit variance.
pub(crate) struct Coder {
    pub(crate) codes: Arc<CodeSet>,
    /// Encoder of each width from 1 to 6, at index `width - 1`.
    encoders: Vec<Encoder>,
    /// Mean squared error of a unit Gaussian at each of [`WIDTHS`].
    nominal: [f64; WIDTHS.len()],
}

impl Coder {
    /// # Panics
    /// If a width from 1 to 6 has no valid code.
    pub(crate) fn new(codes: Arc<CodeSet>) -> Self {
        let encoder = |width| Encoder::new(codes.get(width).expect("a code for every width from 1 to 6").clone()).expect("a valid code");
        let encoders = (1..=6).map(encoder).collect();
        let mut coder = Self { codes, encoders, nominal: [0.0; WIDTHS.len()] };
        let mut scratch = Scratch::default();
        // Quantile midpoints of the Gaussian, shuffled, stand for a long random sample.
        let mut sample: Vec<f32> = (0..4096).map(|i| gaussian_quantile((i as f64 + 0.5) / 4096.0) as f32).collect();
        use rand::{seq::SliceRandom, SeedableRng};
        sample.shuffle(&mut rand_chacha::ChaCha8Rng::seed_from_u64(0));
        for (slot, &width) in WIDTHS.iter().enumerate() {
            let encoded = coder.encode_at(width, &sample, sample.len(), 1.0, &mut scratch);
            coder.nominal[slot] =
                sample.iter().zip(&encoded.values).map(|(x, q)| ((x - q * encoded.stretch) as f64).powi(2)).sum::<f64>() / 4096.0;
        }
        coder
    }

    /// Mean squared error of a unit Gaussian column at each of [`WIDTHS`].
    pub(crate) fn nominal(&self) -> &[f64; WIDTHS.len()] {
        &self.nominal
    }

    /// Mean distortion of the column (over the rows that `count` stands for) at each of [`WIDTHS`], in units of `y^2`, where `y = x * weight`.
    pub(crate) fn distortions(&self, x: &[f32], energy: f64, measure: Measure, scratch: &mut Scratch) -> [f64; WIDTHS.len()] {
        if fourth_moment(x, measure.count) < GAUSSIAN_KURTOSIS {
            return self.nominal.map(|d| d * energy);
        }
        let mut out = [0.0; WIDTHS.len()];
        for (slot, &width) in WIDTHS.iter().enumerate() {
            out[slot] = self.best(width, x, x.len(), measure, scratch).1;
        }
        out
    }

    /// Encodes `x` padded to `padded` rows; the stretch is searched where the column is not Gaussian.
    pub(crate) fn encode(&self, width: u8, x: &[f32], padded: usize, measure: Measure, scratch: &mut Scratch) -> Encoded {
        if width == 0 || width == 16 || fourth_moment(x, measure.count) < GAUSSIAN_KURTOSIS {
            return self.encode_at(width, x, padded, 1.0, scratch);
        }
        self.best(width, x, padded, measure, scratch).0
    }

    fn best(&self, width: u8, x: &[f32], padded: usize, measure: Measure, scratch: &mut Scratch) -> (Encoded, f64) {
        let stretches = if (1..=6).contains(&width) { &STRETCHES[..] } else { &STRETCHES[..1] };
        let mut best: Option<(Encoded, f64)> = None;
        for &stretch in stretches {
            let encoded = self.encode_at(width, x, padded, stretch, scratch);
            let errors = x
                .iter()
                .zip(&encoded.values)
                .zip(measure.weight)
                .map(|((x, q), w)| ((x - q * encoded.stretch) * w).powi(2).min(measure.cap as f32));
            let error = mean(errors, measure.count);
            if best.as_ref().is_none_or(|(_, least)| error < *least) {
                best = Some((encoded, error));
            }
        }
        best.expect("there is at least one stretch")
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

fn fourth_moment(x: &[f32], count: &[f32]) -> f64 {
    mean(x.iter().map(|v| v.powi(4)), count)
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
