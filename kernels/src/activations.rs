//! Activations as two 7-bit planes: what the integer kernels multiply by.
use crate::cpu::Planes;
use crate::layout::VECTOR;
use std::ops::Range;

/// Largest quantized activation: the high plane stays within -63..=63.
const TOP: f32 = 8127.0;

/// Largest activation of a run that counts as zero: its quantization step would not be a normal number.
const SMALLEST: f32 = f32::MIN_POSITIVE * TOP;

/// A run whose largest activation is more than this many times the root of the mean square gets a second pass over what the first one left:
/// one pass would be off by more than `20 / (TOP sqrt(12))` = 7e-4 of the run's product.
const OUTLIER: f32 = 20.0;

/// Quantized activations of some tokens, run by run. Buffers are kept from call to call.
#[derive(Default)]
pub(crate) struct Activations {
    inputs: Vec<Input>,
    /// End of each token's inputs.
    ends: Vec<usize>,
    planes: Vec<u8>,
    values: Vec<f32>,
    quantized: Vec<i32>,
}

/// One pass over one run.
struct Input {
    run: usize,
    high: Range<usize>,
    low: Range<usize>,
    step: usize,
    start: [[i32; 16]; 2],
    factor: f32,
}

impl Activations {
    pub fn clear(&mut self) {
        self.inputs.clear();
        self.ends.clear();
        self.planes.clear();
    }

    /// Adds `values` (which are used up) as the activations of run `run` of the current token, in run order, column scales applied and padded
    /// with zeros. `factor` is the value of a level.
    #[inline(always)]
    pub fn push(&mut self, run: usize, lanes: usize, factor: f32, fill: impl FnOnce(&mut Vec<f32>)) {
        let mut values = std::mem::take(&mut self.values);
        values.clear();
        fill(&mut values);
        let (largest, outliers) = spread(&values);
        if !largest.is_finite() {
            // The product is not a number, whatever the levels.
            values.fill(0.0);
            self.pass(run, lanes, &mut values, 0.0, f32::NAN);
        } else if largest > SMALLEST {
            self.pass(run, lanes, &mut values, largest, factor);
            if outliers {
                let (rest, _) = spread(&values);
                if rest > SMALLEST {
                    self.pass(run, lanes, &mut values, rest, factor);
                }
            }
        }
        self.values = values;
    }

    /// No more runs for this token.
    pub fn end_token(&mut self) {
        self.ends.push(self.inputs.len());
    }

    /// Planes of run `run` of each of the `tokens` tokens, with the token.
    pub fn run(&self, run: usize, tokens: usize) -> impl Iterator<Item = (usize, Planes<'_>)> {
        (0..tokens).flat_map(move |t| self.token(t).iter().filter(move |input| input.run == run).map(move |input| (t, self.planes(input))))
    }

    fn token(&self, t: usize) -> &[Input] {
        let start = if t == 0 { 0 } else { self.ends[t - 1] };
        &self.inputs[start..self.ends[t]]
    }

    fn planes(&self, input: &Input) -> Planes<'_> {
        Planes {
            high: &self.planes[input.high.clone()],
            low: &self.planes[input.low.clone()],
            step: input.step,
            start: input.start,
            factor: input.factor,
        }
    }

    /// Quantizes `values` and leaves the rest in them.
    #[inline(always)]
    fn pass(&mut self, run: usize, lanes: usize, values: &mut [f32], largest: f32, factor: f32) {
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
        let (high, high_start) = self.plane(lanes, |q| (q - low_part(q)) >> 7);
        let (low, low_start) = self.plane(lanes, low_part);
        let bytes = if lanes >= 8 { VECTOR / lanes } else { VECTOR };
        self.inputs.push(Input { run, high, low, step: bytes, start: [high_start, low_start], factor: factor * step });
    }

    /// Appends one plane of the quantized values. Returns its place and where its integer sums start.
    #[inline(always)]
    fn plane(&mut self, lanes: usize, part: impl Fn(i32) -> i32) -> (Range<usize>, [i32; 16]) {
        let columns = VECTOR / lanes;
        let from = self.planes.len();
        let mut sums = [0; VECTOR];
        let mut add = |chunk: &[i32]| sums.iter_mut().zip(chunk).for_each(|(sum, q)| *sum += part(*q));
        if lanes >= 8 {
            self.planes.extend(self.quantized.iter().map(|q| part(*q) as u8));
            let (body, tail) = self.quantized.as_chunks::<8>();
            body.iter().for_each(|chunk| add(chunk));
            add(tail);
        } else {
            for group in self.quantized.chunks_exact(columns) {
                add(group);
                let first = self.planes.len();
                self.planes.extend(group.iter().map(|q| part(*q) as u8));
                (1..lanes).for_each(|_| self.planes.extend_from_within(first..first + columns));
            }
        }
        // A 32-bit lane of a vector has four columns of a group.
        let fours: [i32; 16] = std::array::from_fn(|n| sums[4 * n..4 * n + 4].iter().sum());
        let fours_a_group = columns / 4;
        let start = std::array::from_fn(|lane| -128 * fours.iter().skip(lane % fours_a_group).step_by(fours_a_group).sum::<i32>());
        (from..self.planes.len(), start)
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
