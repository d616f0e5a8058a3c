//! The committed trellis codes, found by the example `search_codes` (see `docs/codes.md`).
mod best;
mod default;
mod fast;
mod light;

use crate::code::{antisymmetric, CodeSet, LinearCode};
use std::sync::Arc;

/// How much work an encoder, and afterwards a product, may cost: which codes a file is written with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Effort {
    /// A row reads 10 path bits: for quantizing while a model is loaded.
    Fast,
    /// A row reads the path nibble that it stands in and the two before it; 16 levels up to 2 bits, and sums of two tables of 16 from 3 to 5, which AVX2 looks up with fewer
    /// instructions: for CPUs without AVX-512.
    Light,
    /// A row reads 12 path bits.
    #[default]
    Default,
    /// A row reads 16 path bits, and tables are larger: for files that are published.
    Best,
}

impl Effort {
    /// All, cheapest first.
    pub const ALL: [Effort; 4] = [Effort::Fast, Effort::Light, Effort::Default, Effort::Best];

    fn codes(self) -> &'static [Row; 6] {
        match self {
            Effort::Fast => &fast::CODES,
            Effort::Light => &light::CODES,
            Effort::Default => &default::CODES,
            Effort::Best => &best::CODES,
        }
    }

    /// Mean squared error of a unit Gaussian at each width from 1 to 6.
    pub fn gaussian_error(self) -> [f64; 6] {
        std::array::from_fn(|i| self.codes()[i].error)
    }
}

/// A committed code of one path bit: see [`LinearCode::convolutional`] and [`LinearCode::by_nibbles`].
#[derive(Clone, Copy)]
struct Row {
    raw_bits: u8,
    /// Path bits that a row reads.
    window: u32,
    /// Those of all rows, or one after the other those of the four rows of a path nibble.
    taps: &'static [u16],
    by_nibbles: bool,
    /// The upper half of the levels: a level is minus that at the complement.
    levels: &'static [i8],
    unit: f32,
    /// Mean squared error of a unit Gaussian, measured over 2^20 samples.
    error: f64,
}

impl Row {
    fn code(&self) -> LinearCode {
        if self.by_nibbles {
            let index_bits = self.taps.len() / 4;
            let taps = std::array::from_fn(|row| self.taps[row * index_bits..][..index_bits].to_vec());
            return LinearCode::by_nibbles(self.raw_bits, &taps, antisymmetric(self.levels), self.unit);
        }
        LinearCode::convolutional(1, self.raw_bits, 3, self.window, self.taps, antisymmetric(self.levels), self.unit)
    }
}

impl CodeSet {
    /// Trellis codes of all widths from 1 to 6.
    pub fn trellis(effort: Effort) -> Self {
        let mut set = CodeSet::default();
        for (width, code) in (1..).zip(effort.codes()) {
            set.codes[width] = Some(Arc::new(code.code()));
        }
        set
    }
}
