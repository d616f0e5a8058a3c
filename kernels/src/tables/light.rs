//! Codes of [`Effort::Light`](super::Effort::Light).
use super::{default, Row};

pub(super) const CODES: [Row; 6] = [
    default::CODES[0],
    Row { raw_bits: 1, window: 12, taps: &[3579, 590, 1868], levels: &[1, 4, 5, 8, 10, 14, 18, 27], unit: 0.07942183, error: 7.1379e-2 },
    Row {
        raw_bits: 2,
        window: 12,
        taps: &[3439, 1606, 546, 1872],
        levels: &[
            1, 3, 4, 6, 9, 12, 12, 14, 18, 19, 20, 24, 26, 27, 29, 31, 37, 36, 38, 42, 45, 47, 51, 52, 60, 59, 66, 70, 79, 85, 101, 127,
        ],
        unit: 0.023014627,
        error: 1.7811e-2,
    },
    default::CODES[3],
    default::CODES[4],
    default::CODES[5],
];
