//! Activations as signed bytes with a scale for each section of 64 columns: what the integer kernels multiply by.
use crate::cpu::{Inputs, TOGETHER};
use crate::layout::VECTOR;

/// Columns that share a scale.
const SECTION: usize = VECTOR;

/// Largest magnitude of a quantized activation.
const TOP: f32 = 127.0;

/// Largest activation of a section that counts as zero: its quantization step would not be a normal number.
const SMALLEST: f32 = f32::MIN_POSITIVE * TOP;

/// How well activations are to be represented.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Precision {
    /// A byte, 0.5 % of the product of normal activations; sections whose largest one is more than [`OUTLIER`] times the root of the mean square, which
    /// would lose 1 % and more, get a second byte for what the first one leaves.
    Byte,
    /// Two bytes, 0.003 %.
    TwoBytes,
}

/// See [`Precision::Byte`]: an error of `OUTLIER / (TOP sqrt(12))`.
const OUTLIER: f32 = 5.0;

/// Quantized activations of some tokens by one run. Buffers are kept from call to call.
#[derive(Default)]
pub(crate) struct Activations {
    /// Token of each input, in the order of tokens; a token has one input, or two.
    tokens: Vec<usize>,
    /// `[input][section][bytes]`, and room for [`TOGETHER`] inputs behind the last one.
    bytes: Vec<i8>,
    /// `[input][section][-128 times the sum of the columns of a 32-bit lane]`.
    starts: Vec<i32>,
    /// `[input][section]`.
    scales: Vec<f32>,
    columns: usize,
    lanes: usize,
    /// Bytes of an input, an odd number of vectors: neighbours then lie in different sets of the first-level cache.
    stride: usize,
    values: Vec<f32>,
}

impl Activations {
    /// Forgets all tokens; those to come have `columns` activations in `lanes` lanes.
    pub fn start(&mut self, columns: usize, lanes: usize) {
        self.tokens.clear();
        self.bytes.clear();
        self.starts.clear();
        self.scales.clear();
        let vectors = columns.div_ceil(SECTION) * if lanes >= 8 { 1 } else { lanes };
        (self.columns, self.lanes, self.stride) = (columns, lanes, (vectors | 1) * VECTOR);
    }

    /// Adds the activations of a token, column scales applied. `factor` is the value of a level.
    #[inline(always)]
    pub fn push(&mut self, token: usize, factor: f32, precision: Precision, fill: impl FnOnce(&mut Vec<f32>)) {
        let mut values = std::mem::take(&mut self.values);
        values.clear();
        fill(&mut values);
        values.resize(self.columns.next_multiple_of(SECTION), 0.0);
        if self.pass(token, factor, Some(precision), &mut values) {
            self.pass(token, factor, None, &mut values);
        }
        self.values = values;
    }

    /// No more tokens.
    pub fn finish(&mut self) {
        self.bytes.resize(self.bytes.len() + (TOGETHER - 1) * self.stride, 0);
    }

    /// All of them.
    pub fn inputs(&self) -> Inputs<'_> {
        Inputs {
            tokens: &self.tokens,
            bytes: &self.bytes,
            stride: self.stride,
            starts: &self.starts,
            scales: &self.scales,
            sections: self.columns.div_ceil(SECTION),
            lanes: self.lanes,
            step: if self.lanes >= 8 { VECTOR / self.lanes } else { VECTOR },
        }
    }

    /// Adds an input: `values` in one byte each. What is left in them is for a second pass over the sections that need it; true if there are any. Without a
    /// precision this is that second pass.
    #[inline(always)]
    fn pass(&mut self, token: usize, factor: f32, precision: Option<Precision>, values: &mut [f32]) -> bool {
        self.tokens.push(token);
        self.bytes.reserve(self.stride);
        let mut again = false;
        for (section, values) in values.as_chunks_mut::<SECTION>().0.iter_mut().enumerate() {
            let (largest, squares) = spread(values);
            let usable = largest > SMALLEST && largest.is_finite();
            let step = largest / TOP;
            let columns = (self.columns - section * SECTION).min(SECTION);
            let left = usable
                && match precision {
                    None => false,
                    Some(Precision::Byte) => largest * largest * columns as f32 > OUTLIER * OUTLIER * squares,
                    Some(Precision::TwoBytes) => true,
                };
            // Where an activation is not finite, the product is not a number, whatever the levels.
            self.scales.push(if usable {
                step * factor
            } else if largest.is_finite() {
                0.0
            } else {
                f32::NAN
            });
            let q = if usable { rounded(values, 1.0 / step) } else { [0; SECTION] };
            if left {
                values.iter_mut().zip(&q).for_each(|(v, q)| *v -= step * f32::from(*q));
            } else {
                *values = [0.0; SECTION];
            }
            again |= left;
            self.add_section(&q);
        }
        self.bytes.resize(self.tokens.len() * self.stride, 0);
        again
    }

    #[inline(always)]
    fn add_section(&mut self, q: &[i8; SECTION]) {
        // 32-bit lanes of a lane have four columns in turn each.
        let parts = 16 / self.lanes;
        let mut starts = [0; 16];
        if parts == 1 {
            starts[0] = -128 * q.iter().map(|q| i32::from(*q)).sum::<i32>();
        } else {
            for (i, quad) in q.as_chunks::<4>().0.iter().enumerate() {
                starts[i & (parts - 1)] -= 128 * quad.iter().map(|q| i32::from(*q)).sum::<i32>();
            }
        }
        if self.lanes >= 8 {
            self.bytes.extend_from_slice(q);
            self.starts.extend_from_slice(&starts[..parts]);
        } else {
            for group in q.chunks_exact(VECTOR / self.lanes) {
                (0..self.lanes).for_each(|_| self.bytes.extend_from_slice(group));
            }
            (0..self.lanes).for_each(|_| self.starts.extend_from_slice(&starts[..parts]));
        }
    }
}

/// `values * inverse`, rounded to whole numbers.
#[inline(always)]
fn rounded(values: &[f32; SECTION], inverse: f32) -> [i8; SECTION] {
    /// Adding it rounds to a whole number in the low bits, ties to even, for magnitudes below 2^22.
    const ROUND: f32 = 12_582_912.0;
    let mut q = [0; SECTION];
    q.iter_mut().zip(values).for_each(|(q, v)| *q = (v * inverse + ROUND).to_bits() as i8);
    q
}

/// Largest magnitude (NaN counts as the largest of all) and sum of the squares.
#[inline(always)]
fn spread(values: &[f32; SECTION]) -> (f32, f32) {
    let (mut largest, mut squares) = ([0i32; 16], [0f32; 16]);
    for chunk in values.as_chunks::<16>().0 {
        for ((largest, square), v) in largest.iter_mut().zip(&mut squares).zip(chunk) {
            // Magnitudes compare like their bits.
            *largest = (*largest).max((v.to_bits() & i32::MAX as u32) as i32);
            *square += v * v;
        }
    }
    let largest = largest.into_iter().fold(0, i32::max);
    (f32::from_bits(largest as u32), {
        let four: [f32; 4] = fold::<8, 4>(&fold::<16, 8>(&squares));
        let [sum] = fold::<2, 1>(&fold::<4, 2>(&four));
        sum
    })
}

/// Both halves added up.
#[inline(always)]
fn fold<const FROM: usize, const TO: usize>(values: &[f32; FROM]) -> [f32; TO] {
    std::array::from_fn(|i| values[i] + values[i + TO])
}
