//! Activations as two 7-bit planes: what the integer kernels multiply by.
use crate::cpu::{Input, Inputs, TOGETHER};
use crate::layout::VECTOR;

/// Largest quantized activation: the high plane stays within -63..=63.
const TOP: f32 = 8127.0;

/// Largest activation of a run that counts as zero: its quantization step would not be a normal number.
const SMALLEST: f32 = f32::MIN_POSITIVE * TOP;

/// A run whose largest activation is more than this many times the root of the mean square gets a second pass over what the first one left:
/// one pass would be off by more than `20 / (TOP sqrt(12))` = 7e-4 of the run's product.
const OUTLIER: f32 = 20.0;

/// Quantized activations of some tokens by one run. Buffers are kept from call to call.
#[derive(Default)]
pub(crate) struct Activations {
    /// In the order of tokens; a token may have none, or two.
    inputs: Vec<Input>,
    /// `[input][high and low plane][bytes]`, and room for [`TOGETHER`] inputs and a vector behind the last one.
    planes: Vec<u8>,
    /// Bytes of a plane, an odd number of vectors: the planes of neighbours then lie in different sets of the first-level cache.
    plane: usize,
    lanes: usize,
    values: Vec<f32>,
    quantized: Vec<i32>,
}

impl Activations {
    /// Forgets all tokens; those to come have `columns` activations, padding included, in `lanes` lanes.
    pub fn start(&mut self, columns: usize, lanes: usize) {
        self.inputs.clear();
        self.planes.clear();
        let bytes = columns * if lanes >= 8 { 1 } else { lanes };
        self.plane = (bytes.div_ceil(VECTOR) | 1) * VECTOR;
        self.lanes = lanes;
    }

    /// Adds the activations of a token, column scales applied and padded with zeros. `factor` is the value of a level.
    #[inline(always)]
    pub fn push(&mut self, token: usize, factor: f32, fill: impl FnOnce(&mut Vec<f32>)) {
        let mut values = std::mem::take(&mut self.values);
        values.clear();
        fill(&mut values);
        let (largest, outliers) = spread(&values);
        if !largest.is_finite() {
            // The product is not a number, whatever the levels.
            values.fill(0.0);
            self.pass(token, &mut values, 0.0, f32::NAN);
        } else if largest > SMALLEST {
            self.pass(token, &mut values, largest, factor);
            if outliers {
                let (rest, _) = spread(&values);
                if rest > SMALLEST {
                    self.pass(token, &mut values, rest, factor);
                }
            }
        }
        self.values = values;
    }

    /// No more tokens.
    pub fn finish(&mut self) {
        self.planes.resize(self.planes.len() + (TOGETHER - 1) * 2 * self.plane + VECTOR, 0);
    }

    /// All of them.
    pub fn inputs(&self) -> Inputs<'_> {
        let step = if self.lanes >= 8 { VECTOR / self.lanes } else { VECTOR };
        Inputs { inputs: &self.inputs, planes: &self.planes, plane: self.plane, step, lanes: self.lanes }
    }

    /// Quantizes `values` and leaves the rest in them.
    #[inline(always)]
    fn pass(&mut self, token: usize, values: &mut [f32], largest: f32, factor: f32) {
        /// Adding it rounds to a whole number in the low bits, ties to even, for magnitudes below 2^22.
        const ROUND: f32 = 12_582_912.0;
        let step = largest / TOP;
        let inverse = if step > 0.0 { 1.0 / step } else { 0.0 };
        self.quantized.clear();
        self.quantized.extend(values.iter_mut().map(|v| {
            let rounded = *v * inverse + ROUND;
            *v -= step * (rounded - ROUND);
            rounded.to_bits() as i32 - ROUND.to_bits() as i32
        }));
        let high = self.add_plane(|q| (q - low_part(q)) >> 7);
        let low = self.add_plane(low_part);
        self.inputs.push(Input { token, start: [-128 * high, -128 * low], factor: factor * step });
    }

    /// Appends one plane of the quantized values and returns their sum.
    #[inline(always)]
    fn add_plane(&mut self, part: impl Fn(i32) -> i32) -> i32 {
        if self.lanes >= 8 {
            self.planes.extend(self.quantized.iter().map(|q| part(*q) as u8));
        } else {
            let columns = VECTOR / self.lanes;
            for group in self.quantized.chunks_exact(columns) {
                let first = self.planes.len();
                self.planes.extend(group.iter().map(|q| part(*q) as u8));
                (1..self.lanes).for_each(|_| self.planes.extend_from_within(first..first + columns));
            }
        }
        self.planes.resize(self.planes.len().next_multiple_of(self.plane), 0);
        self.quantized.iter().map(|q| part(*q)).sum()
    }
}
/// The low 7 bits as a number from -64 to 63.
#[inline(always)]
fn low_part(q: i32) -> i32 {
    ((q + 64) & 127) - 64
}

/// Largest magnitude (NaN counts as the largest of all) and whether it is an outlier.
#[inline(always)]
fn spread(values: &[f32]) -> (f32, bool) {
    // Magnitudes compare like their bits.
    let largest = f32::from_bits(values.iter().map(|v| (v.to_bits() & i32::MAX as u32) as i32).max().unwrap_or(0) as u32);
    let mut squares = [0.0f32; 16];
    let (body, tail) = values.as_chunks::<16>();
    for chunk in body.iter().map(|c| &c[..]).chain([tail]) {
        for (square, v) in squares.iter_mut().zip(chunk) {
            *square += v * v;
        }
    }
    (largest, largest * largest * values.len() as f32 > OUTLIER * OUTLIER * squares.iter().sum::<f32>())
}
