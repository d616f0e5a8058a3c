//! Activations and products as the kernels read and write them.
use super::vector::Vector;
use std::ops::Range;

/// Vectors that do not lie across the lines of a cache: with those that do, many tokens took twice as long.
#[repr(align(64))]
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Aligned<T>(pub T);

impl<T> std::ops::Deref for Aligned<T> {
    type Target = T;

    #[inline(always)]
    fn deref(&self) -> &T {
        &self.0
    }
}

impl<T> std::ops::DerefMut for Aligned<T> {
    #[inline(always)]
    fn deref_mut(&mut self) -> &mut T {
        &mut self.0
    }
}

/// The product of a row block as f32, by row of the block and 32-bit lane of the vector; the lanes of a lane are still to be added up.
pub(crate) type Partial = Aligned<[[f32; 16]; 8]>;

/// Quantized activations of some tokens by one run.
///
/// A section is 64 columns of the run, as many column groups as there are lanes. An input is a section of a token, or what it has of outliers: `scale` times signed bytes.
/// Inputs stand in the order `[section][token]`, then those of outliers by section and token.
#[derive(Clone, Copy)]
pub(crate) struct Inputs<'a> {
    pub tokens: usize,
    /// Token of each input of outliers.
    pub outlier_tokens: &'a [usize],
    /// `[section]`: its first input of outliers, and the end of all.
    pub first_outlier: &'a [usize],
    /// `[input][column group][step]`, and room for [`TOGETHER`](super::TOGETHER) inputs behind the last one.
    pub bytes: &'a [i8],
    /// `[input][step / 4]`: see [`Vector::start`].
    pub starts: &'a [i32],
    /// `[input]`: column groups of a chunk, whose products add up to sums of 16 bits, two columns each. Empty if nobody asked for them.
    pub chunks: &'a [u8],
    /// `[input][chunk][step / 2]`: minus the sums of the activations of a 16-bit lane.
    pub halves: &'a [i16],
    /// Numbers of an input there.
    pub halves_stride: usize,
    /// `[input]`, the value of a level included; 0 where all activations are.
    pub scales: &'a [f32],
    /// `[input]`: the first of the column groups that have activations, and the end of them.
    pub spans: &'a [[u8; 2]],
    /// Lanes of the matrix.
    pub lanes: usize,
    /// Bytes a column group: 4 or 8 (the columns once for all 16 or 8 lanes) or 64 (once for each lane).
    pub step: usize,
}

/// An input.
#[derive(Clone, Copy)]
pub(super) struct Section {
    pub bytes: *const u8,
    pub start: *const u8,
    pub halves: *const u8,
    /// Column groups, at least 1.
    pub chunk: usize,
    pub scale: f32,
    /// As in [`Inputs`].
    pub step: usize,
    /// Column groups that have activations.
    pub span: [u8; 2],
}

impl Inputs<'_> {
    pub fn sections(&self) -> usize {
        self.first_outlier.len() - 1
    }

    /// The inputs of a section: one of each token, then those of outliers.
    #[inline(always)]
    pub fn of_section(&self, section: usize) -> impl Iterator<Item = usize> {
        (section * self.tokens..(section + 1) * self.tokens).chain(self.outliers(section))
    }

    /// The inputs of outliers of a section.
    #[inline(always)]
    pub fn outliers(&self, section: usize) -> Range<usize> {
        let first = self.sections() * self.tokens;
        first + self.first_outlier[section]..first + self.first_outlier[section + 1]
    }

    /// Token of an input of outliers.
    #[inline(always)]
    pub fn outlier_token(&self, input: usize) -> usize {
        self.outlier_tokens[input - self.sections() * self.tokens]
    }

    #[inline(always)]
    pub(super) fn section(&self, input: usize) -> Section {
        Section {
            bytes: self.bytes[input * self.lanes * self.step..].as_ptr().cast(),
            start: self.starts[input * self.step / 4..].as_ptr().cast(),
            halves: self.halves[input * self.halves_stride..].as_ptr().cast(),
            chunk: self.chunks.get(input).map_or(1, |chunk| usize::from(*chunk)),
            scale: self.scales[input],
            step: self.step,
            span: self.spans[input],
        }
    }
}

impl Section {
    /// The section and its column groups, `groups`, without the first and the last ones that have no activations. Chunks stay whole.
    #[inline(always)]
    pub fn trim(self, groups: Range<usize>) -> (Self, Range<usize>) {
        let [first, end] = self.span.map(usize::from);
        let chunks = first / self.chunk;
        let skipped = chunks * self.chunk * self.step;
        let (bytes, halves) = (self.bytes.wrapping_add(skipped), self.halves.wrapping_add(chunks * self.step));
        let groups = groups.start + chunks * self.chunk..groups.end.min(groups.start + end);
        (Section { bytes, halves, ..self }, groups)
    }

    /// Bytes `at` of a column group.
    #[inline(always)]
    pub unsafe fn activations<T: Vector>(&self, group: usize, at: usize) -> T::V {
        self.spread::<T>(self.bytes.add(group * self.step), at)
    }

    /// The sums of bytes `at` before the first column group.
    #[inline(always)]
    pub unsafe fn start<T: Vector>(&self, at: usize) -> T::Sums {
        T::start(self.spread::<T>(self.start, at))
    }

    /// The same for two rows at once.
    #[inline(always)]
    pub unsafe fn start_paired<T: Vector>(&self, at: usize) -> T::Sums {
        T::start_paired(self.spread::<T>(self.start, at))
    }

    /// Minus the sums of the activations of each 16-bit lane of bytes `at`, over a chunk of column groups.
    #[inline(always)]
    pub unsafe fn halves<T: Vector>(&self, chunk: usize, at: usize) -> T::V {
        self.spread::<T>(self.halves.add(chunk * self.step), at)
    }

    #[inline(always)]
    unsafe fn spread<T: Vector>(&self, p: *const u8, at: usize) -> T::V {
        match self.step {
            4 => T::repeat4(p),
            8 => T::repeat8(p),
            _ => T::load(p.add(at)),
        }
    }
}
