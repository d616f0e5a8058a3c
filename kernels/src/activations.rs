//! Activations as signed bytes with a scale for each section of 64 columns: what the integer kernels multiply by.
use crate::cpu::{Inputs, TOGETHER};
use crate::layout::VECTOR;

/// Columns that share a scale.
pub(crate) const SECTION: usize = VECTOR;

/// Largest magnitude of a quantized activation.
pub(crate) const TOP: f32 = 127.0;

/// Largest activation that counts as zero: its quantization step would not be a normal number.
pub(crate) const SMALLEST: f32 = f32::MIN_POSITIVE * TOP;

/// A byte costs normal activations 0.5 % of a product. Sections whose largest one is more than so many times the root of the mean square would lose more than
/// `OUTLIER / (TOP sqrt(12))`, 1 %: their outliers are left to a second input.
const OUTLIER: i32 = 5;

/// Outliers are, where there are some, activations of more than so many times the root of the mean square.
const COMMON: i32 = 4;

/// Column groups of a chunk at most: kernels keep what they know of them.
pub(crate) const LONGEST_CHUNK: usize = 8;

/// Quantized activations of some tokens by one run. Buffers are kept from call to call; they never become shorter, so that nothing is cleared that is written anyway.
#[derive(Default)]
pub(crate) struct Activations {
    tokens: usize,
    columns: usize,
    lanes: usize,
    /// Value of a level.
    factor: f32,
    /// Largest magnitude of the levels that chunks are for; 0 for no chunks.
    most: usize,
    /// As [`Inputs`] has them.
    bytes: Vec<i8>,
    starts: Vec<i32>,
    halves: Vec<i16>,
    chunks: Vec<u8>,
    scales: Vec<f32>,
    spans: Vec<[u8; 2]>,
    /// Those of all tokens, in the order of tokens.
    outliers: Vec<Outliers>,
    /// Token of each input of outliers, by section.
    outlier_tokens: Vec<usize>,
    /// `[section]`: its first input of outliers, and the end of all.
    first_outlier: Vec<usize>,
}

/// What a section of a token has of outliers.
struct Outliers {
    token: usize,
    section: usize,
    values: [f32; SECTION],
}

impl Activations {
    /// Forgets everything; `tokens` tokens with `columns` activations in `lanes` lanes are to come, and `factor` is the value of a level. `most`: the largest magnitude of the levels whose
    /// products with two columns of each of a chunk of column groups are to fit into 16 bits; 0 for no chunks.
    pub fn start(&mut self, tokens: usize, columns: usize, lanes: usize, factor: f32, most: usize) {
        (self.tokens, self.columns, self.lanes, self.factor, self.most) = (tokens, columns, lanes, factor, most);
        self.outliers.clear();
        self.reach(self.sections() * tokens);
    }

    /// Takes the activations of a token, column scales applied: `section` gives 64 of them, zeros beyond the last column.
    #[inline(always)]
    pub fn put(&mut self, token: usize, section: impl Fn(usize) -> [f32; SECTION]) {
        for n in 0..self.sections() {
            let mut values = section(n);
            let columns = (self.columns - n * SECTION).min(SECTION) as i32;
            let mut quantized = quantize(&values);
            if has_outliers(&quantized, columns) {
                self.outliers.push(Outliers { token, section: n, values: take_outliers(&mut values, columns) });
                quantized = quantize(&values);
            }
            self.write(n * self.tokens + token, &quantized, [0, self.lanes as u8]);
        }
    }

    /// All tokens are there.
    #[inline(always)]
    pub fn finish(&mut self) {
        let (sections, outliers) = (self.sections(), std::mem::take(&mut self.outliers));
        let firsts = sections * self.tokens;
        self.reach(firsts + outliers.len());
        self.outlier_tokens.resize(outliers.len(), 0);
        self.first_outlier.clear();
        self.first_outlier.resize(sections + 1, 0);
        outliers.iter().for_each(|outliers| self.first_outlier[outliers.section + 1] += 1);
        for n in 0..sections {
            self.first_outlier[n + 1] += self.first_outlier[n];
        }
        for Outliers { token, section, values } in &outliers {
            // Where the next one of the section goes; in the end, where the next section begins.
            let n = self.first_outlier[*section];
            self.first_outlier[*section] += 1;
            self.outlier_tokens[n] = *token;
            self.write(firsts + n, &quantize(values), self.span(values));
        }
        self.first_outlier.rotate_right(1);
        self.first_outlier[0] = 0;
        self.outliers = outliers;
    }

    /// The first of the column groups that have activations, and the end of them.
    fn span(&self, values: &[f32; SECTION]) -> [u8; 2] {
        let group = SECTION / self.lanes;
        let first = values.iter().position(|v| *v != 0.0).unwrap_or(0);
        let last = values.iter().rposition(|v| *v != 0.0).unwrap_or(0);
        [(first / group) as u8, (last / group + 1) as u8]
    }

    /// All of them.
    pub fn inputs(&self) -> Inputs<'_> {
        Inputs {
            tokens: self.tokens,
            outlier_tokens: &self.outlier_tokens,
            first_outlier: &self.first_outlier,
            bytes: &self.bytes,
            starts: &self.starts,
            halves: &self.halves,
            chunks: if self.most > 0 { &self.chunks } else { &[] },
            halves_stride: self.halves_stride(),
            scales: &self.scales,
            spans: &self.spans,
            lanes: self.lanes,
            step: self.step(),
        }
    }

    fn sections(&self) -> usize {
        self.columns.div_ceil(SECTION)
    }

    /// Bytes a column group.
    fn step(&self) -> usize {
        if self.lanes >= 8 {
            VECTOR / self.lanes
        } else {
            VECTOR
        }
    }

    /// Makes room for so many inputs.
    fn reach(&mut self, inputs: usize) {
        fn grow<T: Copy + Default>(values: &mut Vec<T>, len: usize) {
            if values.len() < len {
                values.resize(len, T::default());
            }
        }
        let (step, halves) = (self.step(), self.halves_stride());
        grow(&mut self.bytes, (inputs + TOGETHER - 1) * self.lanes * step);
        grow(&mut self.starts, inputs * step / 4);
        grow(&mut self.scales, inputs);
        grow(&mut self.spans, inputs);
        if self.most > 0 {
            grow(&mut self.halves, inputs * halves);
            grow(&mut self.chunks, inputs);
        }
    }

    /// Input `n`.
    #[inline(always)]
    fn write(&mut self, n: usize, (value, q): &(f32, [i8; SECTION]), span: [u8; 2]) {
        self.scales[n] = value * self.factor;
        self.spans[n] = span;
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
        let step = self.step();
        let bytes = &mut self.bytes[n * self.lanes * step..];
        let own_starts = &mut self.starts[n * step / 4..];
        if self.lanes >= 8 {
            bytes[..SECTION].copy_from_slice(q);
            own_starts[..parts].copy_from_slice(&starts[..parts]);
        } else {
            let columns = VECTOR / self.lanes;
            for (bytes, group) in bytes.chunks_exact_mut(VECTOR).zip(q.chunks_exact(columns)) {
                bytes.chunks_exact_mut(columns).for_each(|bytes| bytes.copy_from_slice(group));
            }
            own_starts[..16].chunks_exact_mut(parts).for_each(|own| own.copy_from_slice(&starts[..parts]));
        }
        if self.most > 0 {
            self.write_chunks(n, q);
        }
    }

    /// Column groups of a chunk whatever the activations are.
    fn shortest_chunk(&self) -> usize {
        (i16::MAX as usize / (2 * TOP as usize * self.most)).clamp(1, self.lanes.min(LONGEST_CHUNK))
    }

    fn halves_stride(&self) -> usize {
        match self.most {
            0 => 0,
            _ => self.lanes.div_ceil(self.shortest_chunk()) * self.step() / 2,
        }
    }

    #[inline(always)]
    fn write_chunks(&mut self, n: usize, q: &[i8; SECTION]) {
        let group = VECTOR / self.lanes;
        let magnitudes = q.map(|q| u16::from(q.unsigned_abs()));
        let bound = i16::MAX as usize / self.most;
        let fits = |chunk: &usize| {
            *chunk <= self.lanes.min(LONGEST_CHUNK)
                && magnitudes.chunks(chunk * group).all(|q| usize::from(largest_lane(q, group)) <= bound)
        };
        let chunk = std::iter::successors(Some(self.shortest_chunk()), |chunk| Some(2 * chunk).filter(&fits)).last().unwrap_or(1);
        self.chunks[n] = chunk as u8;
        let (stride, step) = (self.halves_stride(), self.step() / 2);
        for (own, groups) in self.halves[n * stride..][..stride].chunks_exact_mut(step).zip(q.chunks(chunk * group)) {
            let mut halves = [0; VECTOR / 2];
            for group in groups.chunks_exact(group) {
                for (half, [a, b]) in halves.iter_mut().zip(group.as_chunks::<2>().0) {
                    *half -= i16::from(*a) + i16::from(*b);
                }
            }
            own.chunks_exact_mut(group / 2).for_each(|own| own.copy_from_slice(&halves[..group / 2]));
        }
    }
}

/// The largest sum of the numbers of a 16-bit lane, two columns of each group.
#[inline(always)]
fn largest_lane(magnitudes: &[u16], group: usize) -> u16 {
    let mut sums = [0; VECTOR / 2];
    for group in magnitudes.chunks_exact(group) {
        for (sum, [a, b]) in sums.iter_mut().zip(group.as_chunks::<2>().0) {
            *sum += a + b;
        }
    }
    sums.into_iter().fold(0, u16::max)
}

/// A section of values that stand in order.
pub(crate) fn section_of(x: &[f32], section: usize) -> [f32; SECTION] {
    let x = &x[section * SECTION..x.len().min((section + 1) * SECTION)];
    let mut values = [0.0; SECTION];
    values[..x.len()].copy_from_slice(x);
    values
}

/// `values * inverse`, rounded to whole numbers.
#[inline(always)]
pub(crate) fn rounded(values: &[f32; SECTION], inverse: f32) -> [i8; SECTION] {
    /// Adding it rounds to a whole number in the low bits, ties to even, for magnitudes below 2^22.
    const ROUND: f32 = 12_582_912.0;
    let mut q = [0; SECTION];
    q.iter_mut().zip(values).for_each(|(q, v)| *q = (v * inverse + ROUND).to_bits() as i8);
    q
}

/// Largest magnitude; NaN counts as the largest of all.
#[inline(always)]
pub(crate) fn largest(values: &[f32; SECTION]) -> f32 {
    let mut largest = [0i32; 16];
    for chunk in values.as_chunks::<16>().0 {
        for (largest, v) in largest.iter_mut().zip(chunk) {
            // Magnitudes compare like their bits.
            *largest = (*largest).max((v.to_bits() & i32::MAX as u32) as i32);
        }
    }
    f32::from_bits(largest.into_iter().fold(0, i32::max) as u32)
}

/// Activations as whole numbers of steps, and the step: 0 where all activations are, NaN where one is not finite, so that the product is not a number, whatever the levels.
#[inline(always)]
fn quantize(values: &[f32; SECTION]) -> (f32, [i8; SECTION]) {
    let largest = largest(values);
    if !largest.is_finite() {
        (f32::NAN, [0; SECTION])
    } else if largest > SMALLEST {
        let step = largest / TOP;
        (step, rounded(values, 1.0 / step))
    } else {
        (0.0, [0; SECTION])
    }
}

/// Of `columns` activations.
#[inline(always)]
fn has_outliers((step, q): &(f32, [i8; SECTION]), columns: i32) -> bool {
    *step > 0.0 && TOP as i32 * TOP as i32 * columns > OUTLIER * OUTLIER * squares(q)
}

/// Takes the outliers out of a section, until it has none.
fn take_outliers(values: &mut [f32; SECTION], columns: i32) -> [f32; SECTION] {
    let mut outliers = [0.0; SECTION];
    loop {
        let quantized = quantize(values);
        if !has_outliers(&quantized, columns) {
            return outliers;
        }
        let squares = squares(&quantized.1);
        for ((value, outlier), q) in values.iter_mut().zip(&mut outliers).zip(quantized.1) {
            if i32::from(q) * i32::from(q) * columns > COMMON * COMMON * squares {
                (*outlier, *value) = (*value, 0.0);
            }
        }
    }
}

/// Sum of the squares: of whole numbers, whose order does not matter.
#[inline(always)]
fn squares(q: &[i8; SECTION]) -> i32 {
    q.iter().map(|&q| i32::from(i16::from(q) * i16::from(q))).sum()
}
