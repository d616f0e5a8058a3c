//! The committed trellis codes, found by the example `search_codes` (see `docs/codes.md`).
mod best;
mod default;
mod fast;

use crate::code::{CodeSet, LinearCode};
use std::sync::Arc;

/// How much work an encoder may spend: which codes a file is written with. Products cost the same but for the larger level tables of `Best`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Effort {
    /// A row reads up to 10 path bits: for quantizing while a model is loaded.
    Fast,
    /// A row reads up to 12 path bits, at 1 bit 16.
    #[default]
    Default,
    /// A row reads up to 16 path bits, and tables are larger: for files that are published.
    Best,
}

impl Effort {
    /// All, cheapest first.
    pub const ALL: [Effort; 3] = [Effort::Fast, Effort::Default, Effort::Best];

    fn codes(self) -> &'static [Row] {
        match self {
            Effort::Fast => &fast::CODES,
            Effort::Default => &default::CODES,
            Effort::Best => &best::CODES,
        }
    }

    /// Mean squared error of a unit Gaussian at each width from 1 to 6.
    pub fn gaussian_error(self) -> [f64; 6] {
        std::array::from_fn(|i| self.codes()[i].error)
    }
}

/// A committed code.
#[derive(Clone, Copy)]
struct Row {
    path_bits: u8,
    raw_bits: u8,
    /// For each row position and index bit the mask over the path bytes `B_{t-2} B_{t-1} B_t`.
    masks: &'static [&'static [u32]],
    /// For each row position the upper half of the levels: a level is minus that at the complement.
    levels: &'static [&'static [i8]],
    unit: f32,
    /// Mean squared error of a unit Gaussian, measured over 2^20 samples.
    error: f64,
}

impl Row {
    fn code(&self) -> LinearCode {
        let byte = |shift: u32| self.masks.iter().map(|masks| masks.iter().map(|mask| (mask >> shift) as u8).collect()).collect();
        let third = self.masks.iter().flat_map(|masks| *masks).any(|mask| mask >> 16 != 0);
        LinearCode {
            path_bits: self.path_bits,
            raw_bits: self.raw_bits,
            index_bits: self.masks[0].len() as u8,
            a: byte(0),
            c: byte(8),
            d: if third { byte(16) } else { Vec::new() },
            levels: self.levels.iter().map(|half| half.iter().rev().map(|l| -l).chain(half.iter().copied()).collect()).collect(),
            unit: self.unit,
        }
    }
}

impl CodeSet {
    /// Trellis codes of all widths from 1 to 6.
    pub fn trellis(effort: Effort) -> Self {
        let mut set = CodeSet::default();
        for code in effort.codes() {
            set.codes[usize::from(code.path_bits + code.raw_bits)] = Some(Arc::new(code.code()));
        }
        set
    }
}
