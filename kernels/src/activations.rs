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
        /// Adding it rounds to a whole number in the low bits, ties to even, for magnitudes below 2^22.
        const ROUND: f32 = 12_582_912.0;
        self.tokens.push(token);
        let mut again = false;
        for (section, values) in values.as_chunks_mut::<SECTION>().0.iter_mut().enumerate() {
            let (largest, squares) = spread(values);
            let mut q = [0i32; SECTION];
            let mut scale = 0.0;
            let mut left = false;
            if !largest.is_finite() {
                // The product is not a number, whatever the levels.
                scale = f32::NAN;
            } else if largest > SMALLEST {
                let step = largest / TOP;
                let inverse = 1.0 / step;
                scale = step * factor;
                for (q, v) in q.iter_mut().zip(&mut *values) {
                    let rounded = *v * inverse + ROUND;
                    *v -= step * (rounded - ROUND);
                    *q = rounded.to_bits() as i32 - ROUND.to_bits() as i32;
                }
                let columns = (self.columns - section * SECTION).min(SECTION);
                left = match precision {
                    None => false,
                    Some(Precision::Byte) => largest * largest * columns as f32 > OUTLIER * OUTLIER * squares,
                    Some(Precision::TwoBytes) => true,
                };
            }
            if !left {
                values.fill(0.0);
            }
            again |= left;
            self.scales.push(scale);
            self.add_section(&q);
        }
        self.bytes.resize(self.tokens.len() * self.stride, 0);
        again
    }

    #[inline(always)]
    fn add_section(&mut self, q: &[i32; SECTION]) {
        // 32-bit lanes of a lane have four columns in turn each.
        let parts = 16 / self.lanes;
        let mut starts = [0; 16];
        if parts == 1 {
            starts[0] = -128 * q.iter().sum::<i32>();
        } else {
            q.chunks_exact(4).enumerate().for_each(|(i, quad)| starts[i & (parts - 1)] -= 128 * quad.iter().sum::<i32>());
        }
        let mut bytes = [0; SECTION];
        bytes.iter_mut().zip(q).for_each(|(byte, q)| *byte = *q as i8);
        if self.lanes >= 8 {
            self.bytes.extend_from_slice(&bytes);
            self.starts.extend_from_slice(&starts[..parts]);
        } else {
            for group in bytes.chunks_exact(VECTOR / self.lanes) {
                (0..self.lanes).for_each(|_| self.bytes.extend_from_slice(group));
            }
            (0..self.lanes).for_each(|_| self.starts.extend_from_slice(&starts[..parts]));
        }
    }
}

/// Largest magnitude (NaN counts as the largest of all) and sum of the squares.
#[inline(always)]
fn spread(values: &[f32; SECTION]) -> (f32, f32) {
    // Magnitudes compare like their bits.
    let largest = f32::from_bits(values.iter().map(|v| (v.to_bits() & i32::MAX as u32) as i32).max().unwrap_or(0) as u32);
    let mut squares = [0.0f32; 16];
    for chunk in values.as_chunks::<16>().0 {
        squares.iter_mut().zip(chunk).for_each(|(square, v)| *square += v * v);
    }
    for half in [8, 4, 2, 1] {
        (0..half).for_each(|i| squares[i] += squares[i + half]);
    }
    (largest, squares[0])
}
