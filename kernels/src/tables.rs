//! The committed trellis codes, found by the example `search_codes` (see `docs/codes.md`).
use crate::code::{CodeSet, LinearCode};
use std::sync::Arc;

/// How much work an encoder may spend: which codes a file is written with. Decoding and products cost the same.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Effort {
    /// Windows of 10 path bits: for quantizing while a model is loaded.
    Fast,
    /// Windows of 12 path bits.
    #[default]
    Default,
    /// Windows up to 16 path bits: for files that are published.
    Best,
}

impl Effort {
    /// All, cheapest first.
    pub const ALL: [Effort; 3] = [Effort::Fast, Effort::Default, Effort::Best];

    fn codes(self) -> &'static [Convolutional] {
        match self {
            Effort::Fast => &FAST,
            Effort::Default | Effort::Best => &DEFAULT,
        }
    }

    /// Mean squared error of a unit Gaussian at each width from 1 to 6.
    pub fn gaussian_error(self) -> [f64; 6] {
        std::array::from_fn(|i| self.codes()[i].error)
    }
}

/// A committed code.
struct Convolutional {
    path_bits: u8,
    raw_bits: u8,
    window: u32,
    taps: &'static [u16],
    /// The upper half of the levels: a level is minus that at the complement.
    levels: &'static [i8],
    unit: f32,
    /// Mean squared error of a unit Gaussian, measured over 2^20 samples.
    error: f64,
}

impl Convolutional {
    fn code(&self) -> LinearCode {
        let levels = self.levels.iter().rev().map(|l| -l).chain(self.levels.iter().copied()).collect();
        LinearCode::convolutional(self.path_bits, self.raw_bits, self.window, self.taps, levels, self.unit)
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

const FAST: [Convolutional; 6] = [
    Convolutional {
        path_bits: 1,
        raw_bits: 0,
        window: 10,
        taps: &[805, 150, 58, 440, 350],
        levels: &[6, 20, 19, 28, 25, 21, 27, 25, 50, 67, 57, 61, 58, 71, 92, 127],
        unit: 0.015655853,
        error: 0.272658,
    },
    Convolutional {
        path_bits: 2,
        raw_bits: 0,
        window: 10,
        taps: &[769, 550, 184, 59, 977, 552],
        levels: &[
            5, 7, 12, 10, 9, 3, 7, 6, 22, 25, 24, 31, 23, 24, 25, 27, 44, 40, 50, 52, 44, 47, 46, 48, 68, 64, 73, 66, 87, 92, 91, 127,
        ],
        unit: 0.020548278,
        error: 0.071087,
    },
    Convolutional {
        path_bits: 2,
        raw_bits: 1,
        window: 10,
        taps: &[503, 786, 52, 210, 607, 61],
        levels: &[
            2, 3, 1, 5, 6, 4, 6, 4, 9, 9, 10, 11, 11, 11, 12, 7, 16, 20, 18, 18, 17, 19, 19, 19, 25, 25, 24, 26, 28, 24, 28, 28, 36, 34,
            33, 34, 37, 34, 35, 36, 44, 44, 45, 45, 46, 45, 49, 49, 51, 57, 57, 57, 60, 64, 61, 67, 70, 76, 76, 78, 89, 92, 105, 127,
        ],
        unit: 0.024645738,
        error: 0.018206,
    },
    Convolutional {
        path_bits: 2,
        raw_bits: 2,
        window: 10,
        taps: &[845, 438, 212, 152, 216],
        levels: &[
            0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 9, 11, 12, 13, 13, 15, 14, 16, 18, 18, 19, 19, 21, 22, 22, 24, 25, 25, 28, 26, 29, 30, 31, 32,
            33, 34, 35, 37, 37, 39, 39, 41, 42, 44, 45, 48, 47, 50, 52, 52, 55, 56, 58, 61, 62, 64, 70, 69, 75, 79, 86, 95, 108, 127,
        ],
        unit: 0.026806626,
        error: 0.004718,
    },
    Convolutional {
        path_bits: 2,
        raw_bits: 3,
        window: 10,
        taps: &[635, 489, 100, 48, 141],
        levels: &[
            0, 1, 1, 2, 2, 2, 3, 3, 4, 4, 5, 5, 5, 6, 6, 7, 7, 8, 8, 8, 9, 9, 10, 10, 11, 11, 12, 12, 12, 13, 13, 14, 14, 15, 15, 16, 16,
            17, 17, 17, 18, 18, 19, 19, 20, 20, 21, 21, 22, 22, 23, 23, 24, 24, 24, 24, 26, 26, 26, 27, 28, 27, 28, 29, 30, 31, 31, 30, 32,
            32, 32, 33, 34, 34, 35, 35, 36, 36, 37, 36, 39, 38, 39, 39, 41, 42, 41, 42, 44, 45, 44, 43, 46, 47, 47, 46, 49, 49, 50, 51, 52,
            52, 53, 55, 55, 55, 59, 57, 59, 63, 60, 62, 63, 65, 66, 68, 69, 72, 72, 75, 77, 79, 83, 87, 93, 101, 111, 127,
        ],
        unit: 0.028880356,
        error: 0.001222,
    },
    Convolutional {
        path_bits: 2,
        raw_bits: 4,
        window: 10,
        taps: &[494, 1017, 272, 468],
        levels: &[
            0, 1, 1, 2, 2, 2, 3, 3, 4, 4, 5, 5, 5, 6, 6, 7, 7, 8, 8, 8, 9, 9, 10, 10, 11, 11, 12, 12, 12, 13, 13, 14, 14, 15, 15, 16, 16,
            17, 17, 17, 18, 18, 19, 19, 20, 20, 21, 21, 22, 22, 23, 23, 24, 24, 25, 24, 26, 26, 26, 27, 28, 28, 29, 29, 30, 30, 30, 31, 31,
            32, 32, 33, 33, 34, 35, 34, 36, 36, 37, 37, 38, 39, 40, 39, 40, 41, 41, 42, 42, 44, 44, 45, 45, 47, 47, 49, 48, 50, 51, 51, 52,
            53, 54, 54, 55, 57, 56, 58, 59, 60, 61, 62, 63, 65, 66, 67, 69, 71, 73, 75, 77, 80, 83, 87, 93, 100, 110, 127,
        ],
        unit: 0.029817702,
        error: 0.000367,
    },
];

const DEFAULT: [Convolutional; 6] = [
    Convolutional {
        path_bits: 1,
        raw_bits: 0,
        window: 12,
        taps: &[2991, 554, 1163, 3367, 1405],
        levels: &[27, 29, 23, 31, 17, 16, 15, 8, 58, 47, 51, 57, 74, 83, 87, 127],
        unit: 0.015508027,
        error: 0.271956,
    },
    Convolutional {
        path_bits: 2,
        raw_bits: 0,
        window: 12,
        taps: &[1786, 3557, 1828, 1957, 3392, 2098],
        levels: &[7, 9, 6, 6, 9, 11, 8, 9, 21, 25, 27, 25, 24, 22, 26, 31, 41, 40, 47, 50, 43, 49, 49, 54, 65, 64, 70, 92, 80, 78, 95, 127],
        unit: 0.02034885,
        error: 0.070865,
    },
    Convolutional {
        path_bits: 2,
        raw_bits: 1,
        window: 12,
        taps: &[1837, 1490, 3064, 1664, 452, 2930],
        levels: &[
            3, 3, 3, 3, 3, 5, 3, 8, 8, 8, 10, 7, 10, 12, 13, 13, 15, 19, 14, 18, 18, 20, 20, 18, 22, 24, 24, 26, 28, 25, 27, 26, 34, 34,
            33, 34, 36, 36, 35, 35, 42, 40, 43, 46, 47, 46, 49, 49, 55, 53, 57, 58, 55, 66, 65, 63, 74, 69, 79, 76, 87, 92, 105, 127,
        ],
        unit: 0.024577944,
        error: 0.018080,
    },
    Convolutional {
        path_bits: 2,
        raw_bits: 2,
        window: 12,
        taps: &[3154, 355, 1160, 928, 1549],
        levels: &[
            0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 14, 16, 17, 18, 18, 20, 20, 20, 22, 23, 23, 25, 26, 27, 28, 29, 29, 31, 33,
            33, 34, 37, 36, 37, 39, 40, 42, 42, 43, 47, 49, 46, 48, 52, 54, 54, 56, 58, 61, 61, 65, 67, 71, 74, 79, 86, 95, 108, 127,
        ],
        unit: 0.026735375,
        error: 0.004736,
    },
    Convolutional {
        path_bits: 2,
        raw_bits: 3,
        window: 12,
        taps: &[1523, 2676, 890, 3425, 2899],
        levels: &[
            0, 1, 1, 2, 2, 2, 3, 3, 4, 4, 5, 5, 5, 6, 6, 7, 7, 8, 8, 8, 9, 9, 10, 10, 11, 11, 12, 12, 12, 13, 13, 14, 14, 15, 15, 16, 16,
            17, 17, 17, 18, 18, 19, 19, 20, 20, 21, 21, 22, 22, 23, 23, 23, 24, 25, 24, 26, 26, 27, 27, 28, 27, 29, 29, 29, 30, 30, 31, 31,
            33, 33, 32, 33, 34, 35, 35, 36, 36, 36, 38, 38, 39, 40, 38, 41, 42, 41, 43, 44, 44, 44, 46, 46, 48, 47, 48, 49, 51, 50, 51, 52,
            54, 54, 54, 55, 57, 57, 58, 60, 63, 60, 62, 65, 66, 65, 68, 69, 72, 71, 75, 76, 79, 82, 87, 93, 101, 111, 127,
        ],
        unit: 0.02929832,
        error: 0.001238,
    },
    Convolutional {
        path_bits: 2,
        raw_bits: 4,
        window: 12,
        taps: &[2381, 1059, 2684, 22],
        levels: &[
            0, 1, 1, 2, 2, 2, 3, 3, 4, 4, 5, 5, 5, 6, 6, 7, 7, 8, 8, 8, 9, 9, 10, 10, 11, 11, 12, 12, 12, 13, 13, 14, 14, 15, 15, 16, 16,
            17, 17, 17, 18, 18, 19, 19, 20, 20, 21, 21, 22, 22, 23, 23, 24, 24, 25, 25, 26, 26, 27, 27, 28, 28, 29, 29, 30, 30, 30, 31, 31,
            32, 32, 34, 33, 34, 35, 35, 36, 36, 37, 38, 38, 39, 40, 40, 41, 42, 42, 43, 44, 44, 43, 45, 46, 47, 47, 48, 49, 48, 50, 51, 52,
            52, 54, 54, 56, 56, 57, 58, 60, 60, 61, 62, 64, 65, 66, 68, 70, 71, 73, 75, 78, 81, 84, 88, 94, 101, 110, 127,
        ],
        unit: 0.029209564,
        error: 0.000368,
    },
];
