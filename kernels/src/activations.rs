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

/// Quantized activations of some tokens by one run. Buffers are kept from call to call.
#[derive(Default)]
pub(crate) struct Activations {
    /// Token of each input, in the order of tokens; a token has one input, or two.
    tokens: Vec<usize>,
    /// `[input][section][bytes]`, and room for [`TOGETHER`] inputs behind the last one. It never becomes shorter: zeros for the room would be written in every product.
    bytes: Vec<i8>,
    /// Bytes written.
    used: usize,
    /// `[input][section][-128 times the sum of the columns of a 32-bit lane]`.
    starts: Vec<i32>,
    /// `[input][section][chunk of column groups][minus the sum of the columns of a 16-bit lane]`, room for the shortest chunks.
    halves: Vec<i16>,
    /// `[input][section]`: column groups of a chunk.
    chunks: Vec<u8>,
    /// Largest magnitude of the levels that chunks are for; 0 for no chunks.
    most: usize,
    /// `[input][section]`.
    scales: Vec<f32>,
    /// `[input][section]`: the first of the column groups that have activations, and the end of them.
    spans: Vec<[u8; 2]>,
    columns: usize,
    lanes: usize,
    /// Bytes of an input, an odd number of vectors: neighbours then lie in different sets of the first-level cache.
    stride: usize,
    /// Sections of a token that have outliers, and these.
    outliers: Vec<(usize, [f32; SECTION])>,
}

impl Activations {
    /// Forgets all tokens; those to come have `columns` activations in `lanes` lanes. `most`: the largest magnitude of the levels whose products with two columns of each of a chunk
    /// of column groups are to fit into 16 bits; 0 for no chunks.
    pub fn start(&mut self, columns: usize, lanes: usize, most: usize) {
        self.tokens.clear();
        self.used = 0;
        self.starts.clear();
        self.halves.clear();
        self.chunks.clear();
        self.most = most;
        self.scales.clear();
        self.spans.clear();
        let vectors = columns.div_ceil(SECTION) * if lanes >= 8 { 1 } else { lanes };
        (self.columns, self.lanes, self.stride) = (columns, lanes, (vectors | 1) * VECTOR);
    }

    /// Adds the activations of a token, column scales applied: `section` gives 64 of them, zeros beyond the last column. `factor` is the value of a level.
    #[inline(always)]
    pub fn push(&mut self, token: usize, factor: f32, section: impl Fn(usize) -> [f32; SECTION]) {
        let sections = self.columns.div_ceil(SECTION);
        let all = [0, self.lanes as u8];
        let mut outliers = std::mem::take(&mut self.outliers);
        outliers.clear();
        for n in 0..sections {
            let mut values = section(n);
            let columns = (self.columns - n * SECTION).min(SECTION) as i32;
            let mut quantized = quantize(&values);
            if has_outliers(&quantized, columns) {
                outliers.push((n, take_outliers(&mut values, columns)));
                quantized = quantize(&values);
            }
            self.add_section(&quantized, factor, all);
        }
        self.end_input(token);
        if !outliers.is_empty() {
            let mut next = outliers.iter().peekable();
            for n in 0..sections {
                match next.next_if(|(section, _)| *section == n) {
                    Some((_, values)) => self.add_section(&quantize(values), factor, self.span(values)),
                    None => self.add_section(&(0.0, [0; SECTION]), factor, all),
                }
            }
            self.end_input(token);
        }
        self.outliers = outliers;
    }

    /// The first of the column groups that have activations, and the end of them.
    fn span(&self, values: &[f32; SECTION]) -> [u8; 2] {
        let group = SECTION / self.lanes;
        let first = values.iter().position(|v| *v != 0.0).unwrap_or(0);
        let last = values.iter().rposition(|v| *v != 0.0).unwrap_or(0);
        [(first / group) as u8, (last / group + 1) as u8]
    }

    /// No more tokens.
    pub fn finish(&mut self) {
        self.reach(self.used + (TOGETHER - 1) * self.stride);
    }

    /// All of them.
    pub fn inputs(&self) -> Inputs<'_> {
        Inputs {
            tokens: &self.tokens,
            bytes: &self.bytes,
            stride: self.stride,
            starts: &self.starts,
            halves: &self.halves,
            chunks: &self.chunks,
            halves_stride: self.halves_stride(),
            scales: &self.scales,
            spans: &self.spans,
            sections: self.columns.div_ceil(SECTION),
            lanes: self.lanes,
            step: if self.lanes >= 8 { VECTOR / self.lanes } else { VECTOR },
        }
    }

    fn end_input(&mut self, token: usize) {
        self.tokens.push(token);
        self.used = self.tokens.len() * self.stride;
        self.reach(self.used);
    }

    /// Makes room for so many bytes.
    #[inline(always)]
    fn reach(&mut self, bytes: usize) {
        if self.bytes.len() < bytes {
            self.bytes.resize(bytes, 0);
        }
    }

    #[inline(always)]
    fn add_bytes(&mut self, bytes: &[i8]) {
        let end = self.used + bytes.len();
        self.reach(end);
        self.bytes[self.used..end].copy_from_slice(bytes);
        self.used = end;
    }

    /// Adds a section of the next input.
    #[inline(always)]
    fn add_section(&mut self, (step, q): &(f32, [i8; SECTION]), factor: f32, span: [u8; 2]) {
        self.scales.push(step * factor);
        self.spans.push(span);
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
            self.add_bytes(q);
            self.starts.extend_from_slice(&starts[..parts]);
        } else {
            for group in q.chunks_exact(VECTOR / self.lanes) {
                (0..self.lanes).for_each(|_| self.add_bytes(group));
            }
            (0..self.lanes).for_each(|_| self.starts.extend_from_slice(&starts[..parts]));
        }
        if self.most > 0 {
            self.add_chunks(q);
        }
    }

    /// Column groups of a chunk whatever the activations are.
    fn shortest_chunk(&self) -> usize {
        (i16::MAX as usize / (2 * TOP as usize * self.most)).clamp(1, self.lanes.min(LONGEST_CHUNK))
    }

    fn halves_stride(&self) -> usize {
        match self.most {
            0 => 0,
            _ => self.lanes.div_ceil(self.shortest_chunk()) * if self.lanes >= 8 { VECTOR / self.lanes } else { VECTOR } / 2,
        }
    }

    #[inline(always)]
    fn add_chunks(&mut self, q: &[i8; SECTION]) {
        let group = VECTOR / self.lanes;
        let end = self.halves.len() + self.halves_stride();
        let magnitudes = q.map(|q| u16::from(q.unsigned_abs()));
        let bound = i16::MAX as usize / self.most;
        let fits = |chunk: &usize| {
            *chunk <= self.lanes.min(LONGEST_CHUNK)
                && magnitudes.chunks(chunk * group).all(|q| usize::from(largest_lane(q, group)) <= bound)
        };
        let chunk = std::iter::successors(Some(self.shortest_chunk()), |chunk| Some(2 * chunk).filter(&fits)).last().unwrap_or(1);
        self.chunks.push(chunk as u8);
        for groups in q.chunks(chunk * group) {
            let mut halves = [0; VECTOR / 2];
            for group in groups.chunks_exact(group) {
                for (half, [a, b]) in halves.iter_mut().zip(group.as_chunks::<2>().0) {
                    *half -= i16::from(*a) + i16::from(*b);
                }
            }
            let copies = if self.lanes >= 8 { 1 } else { self.lanes };
            (0..copies).for_each(|_| self.halves.extend_from_slice(&halves[..group / 2]));
        }
        self.halves.resize(end, 0);
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
