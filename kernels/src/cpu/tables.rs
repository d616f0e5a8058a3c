//! A code's matrices and levels in the form that the kernels read.
use crate::code::{bit_images, LinearCode};

/// A GF(2)-linear map of bytes.
#[derive(Clone, Copy)]
pub(crate) struct Map {
    /// For `GF2P8AFFINEQB`: byte `7 - i` is the mask whose parity is output bit `i`.
    pub matrix: u64,
    /// Images of the low nibbles.
    pub low: [u8; 16],
    /// Images of the high nibbles.
    pub high: [u8; 16],
}

impl Map {
    const ZERO: Map = Map { matrix: 0, low: [0; 16], high: [0; 16] };

    /// From the images of the single bits, lowest bit first.
    fn new(images: &[u8; 8]) -> Self {
        let mut map = Map::ZERO;
        for (bit, image) in images.iter().enumerate() {
            for output in (0..8).filter(|output| image >> output & 1 == 1) {
                map.matrix |= 1 << (8 * (7 - output) + bit);
            }
            let nibble = if bit < 4 { &mut map.low } else { &mut map.high };
            for v in (0..16).filter(|v| v >> (bit % 4) & 1 == 1) {
                nibble[v] ^= image;
            }
        }
        map
    }
}

/// Everything that a kernel needs of one code.
#[repr(C, align(64))]
pub(crate) struct Tables {
    /// `level + 128` of each row position.
    pub levels: [[u8; 256]; 8],
    /// Current path byte to index, by row position.
    pub current: [Map; 8],
    /// Previous path byte to index, by row position.
    pub previous: [Map; 8],
    /// Raw bits `2p + 1, 2p` of the four rows of a vector to index bits.
    pub pairs: [[Map; 4]; 2],
    /// The top raw bit of the eight rows of a vector, if raw bits are odd.
    pub top: [Map; 8],
}

impl Tables {
    /// Tables of a valid code; `None` (width 8) gives zeros, which no kernel reads.
    pub fn new(code: Option<&LinearCode>) -> Box<Self> {
        let mut tables = Box::new(Tables {
            levels: [[0; 256]; 8],
            current: [Map::ZERO; 8],
            previous: [Map::ZERO; 8],
            pairs: [[Map::ZERO; 4]; 2],
            top: [Map::ZERO; 8],
        });
        let Some(code) = code else { return tables };
        let index_bits = usize::from(code.index_bits);
        let raw_bits = usize::from(code.raw_bits);
        for position in 0..code.positions() {
            let levels = &code.levels[if code.levels.len() == 1 { 0 } else { position }];
            for (entry, level) in tables.levels[position].iter_mut().zip(levels.iter().cycle()) {
                *entry = (i16::from(*level) + 128) as u8;
            }
            tables.current[position] = Map::new(&bit_images(&code.a[position]));
            tables.previous[position] = Map::new(&bit_images(&code.c[position]));
        }
        for pair in 0..raw_bits / 2 {
            for row in 0..4 {
                let mut images = [0; 8];
                images[6 - 2 * row] = 1 << (index_bits + 2 * pair);
                images[7 - 2 * row] = 2 << (index_bits + 2 * pair);
                tables.pairs[pair][row] = Map::new(&images);
            }
        }
        if raw_bits % 2 == 1 {
            for row in 0..8 {
                let mut images = [0; 8];
                images[7 - row] = 1 << (index_bits + raw_bits - 1);
                tables.top[row] = Map::new(&images);
            }
        }
        tables
    }
}

/// True if the index of every row depends on its own nibble of the current path byte alone, as in scalar codes.
pub(crate) fn is_local(code: &LinearCode) -> bool {
    let rows_a_nibble = code.positions() / 2;
    let own = |position: usize| if position < rows_a_nibble { 0xF0 } else { 0x0F };
    code.c.iter().flatten().all(|&mask| mask == 0) && code.a.iter().enumerate().all(|(i, masks)| masks.iter().all(|m| m & !own(i) == 0))
}
