//! A code's matrices and levels in the form that the kernels read.
use super::kernel::PAIRED;
use crate::code::{bit_images, LinearCode};
use std::sync::{Arc, Mutex, PoisonError, Weak};

/// A GF(2)-linear map of bytes.
#[derive(Clone, Copy, PartialEq)]
#[repr(C, align(64))]
pub(crate) struct Map {
    /// Images of the low nibbles, repeated: six bits of a byte may be looked up.
    pub low: [u8; 64],
    /// Images of the high nibbles.
    pub high: [u8; 16],
    /// For `GF2P8AFFINEQB`: byte `7 - i` is the mask whose parity is output bit `i`.
    pub matrix: u64,
}

impl Map {
    const ZERO: Map = Map { low: [0; 64], high: [0; 16], matrix: 0 };

    /// From the images of the single bits, lowest bit first.
    fn new(images: &[u8; 8]) -> Self {
        let mut map = Map::ZERO;
        for (bit, image) in images.iter().enumerate() {
            for output in (0..8).filter(|output| image >> output & 1 == 1) {
                map.matrix |= 1 << (8 * (7 - output) + bit);
            }
            let nibble = if bit < 4 { &mut map.low[..] } else { &mut map.high };
            for v in (0..nibble.len()).filter(|v| v >> (bit % 4) & 1 == 1) {
                nibble[v] ^= image;
            }
        }
        map
    }

    /// The outputs of this map in the low nibble, those of another in the high one.
    fn beside(&self, other: &Map) -> Map {
        let (low, high) = (|v: usize| self.low[v] | other.low[v] << 4, |v: usize| self.high[v] | other.high[v] << 4);
        Map { matrix: self.matrix | other.matrix >> 32, low: std::array::from_fn(low), high: std::array::from_fn(high) }
    }
}

/// Where two rows' indices stand in one byte, maps of even rows give both.
fn pair_up(maps: &mut [Map]) {
    for pair in maps.as_chunks_mut::<2>().0 {
        pair[0] = pair[0].beside(&pair[1]);
    }
}

/// Indices as kernels look them up. A level is the negative of that at the complement, so half a table is enough: where the highest bit is set, the others
/// are complemented and it says that the level is to be negated. That is linear too, and part of the maps.
struct Folded {
    /// Of an index.
    bits: usize,
    /// Of a look-up; the highest negates.
    look_up_bits: usize,
}

impl Folded {
    fn index(&self, index: u8) -> u8 {
        let ones = (1 << (self.bits - 1)) - 1;
        let (top, low) = (index >> (self.bits - 1), index & ones);
        if top == 0 {
            low
        } else {
            low ^ ones | 1 << (self.look_up_bits - 1)
        }
    }

    fn map(&self, images: &[u8; 8]) -> Map {
        Map::new(&images.map(|image| self.index(image)))
    }
}

/// Largest magnitude of the levels of codes that are looked up two rows at once: `VPMADDUBSW` gives sums of two products, and two of those of such levels
/// with [`SMALL_OFFSET`] added still fit into 16 bits, `4 * 63 * 127 < 2^15`.
pub(crate) const SMALL: i8 = 31;
pub(super) const SMALL_OFFSET: i8 = 32;

/// Index bits of the look-up in a valid code's levels; kernels for many raw bits, or for a table for each row position, exist for full tables only, those for
/// two rows at once for small levels.
pub(crate) fn look_up_bits(code: &LinearCode) -> usize {
    let bits = usize::from(code.index_bits + code.raw_bits);
    if code.path_bits == 1 && code.raw_bits >= 4 || code.levels.len() > 1 {
        8
    } else if bits <= PAIRED && code.levels[0].iter().any(|level| level.abs() > SMALL) {
        PAIRED + 1
    } else {
        bits
    }
}

/// Everything that a kernel needs of one code.
#[derive(PartialEq)]
#[repr(C, align(64))]
pub(crate) struct Tables {
    /// Levels of each row position, or those with 128 or [`SMALL_OFFSET`] added, in the order of [`Folded`] indices; those of up to 4 bits repeated.
    pub levels: [[u8; 256]; 8],
    /// Current path byte to index, by row position.
    pub current: [Map; 8],
    /// Previous path byte to index, by row position.
    pub previous: [Map; 8],
    /// The path byte before that to index, by row position.
    pub older: [Map; 8],
    /// For codes that read a window: current path byte, its low nibble replaced by that nibble of raw bits in which the row's stand, to index, of the first
    /// four rows. The raw bits are the top one if there is such a vector, otherwise those of pair 0.
    pub merged: [Map; 4],
    /// Raw bits `2p + 1, 2p` of the four rows of a vector to index bits.
    pub pairs: [[Map; 4]; 2],
    /// The top raw bit of the eight rows of a vector, if raw bits are odd.
    pub top: [Map; 8],
}

impl Tables {
    /// As [`Tables::new`], in one place for all matrices: 8 KB for each run of each would come from main memory for each token. Products of SmolLM2-135M, in turn: 1.00 to 1.06 times as fast (Xeon).
    pub fn shared(code: Option<&LinearCode>, signed: bool) -> Arc<Self> {
        static ALL: Mutex<Vec<Weak<Tables>>> = Mutex::new(Vec::new());
        let tables = Tables::new(code, signed);
        let mut all = ALL.lock().unwrap_or_else(PoisonError::into_inner);
        all.retain(|known| known.strong_count() > 0);
        all.iter().filter_map(Weak::upgrade).find(|known| **known == *tables).unwrap_or_else(|| {
            let tables: Arc<Tables> = tables.into();
            all.push(Arc::downgrade(&tables));
            tables
        })
    }

    /// Tables of a valid code; `None` (width 8) gives zeros, which no kernel reads. `signed`: without the 128 in each level.
    pub fn new(code: Option<&LinearCode>, signed: bool) -> Box<Self> {
        let mut tables = Box::new(Tables {
            levels: [[0; 256]; 8],
            current: [Map::ZERO; 8],
            previous: [Map::ZERO; 8],
            older: [Map::ZERO; 8],
            merged: [Map::ZERO; 4],
            pairs: [[Map::ZERO; 4]; 2],
            top: [Map::ZERO; 8],
        });
        let Some(code) = code else { return tables };
        let index_bits = usize::from(code.index_bits);
        let raw_bits = usize::from(code.raw_bits);
        let folded = Folded { bits: index_bits + raw_bits, look_up_bits: look_up_bits(code) };
        let offset = match (signed, folded.look_up_bits) {
            (false, _) => 128,
            (true, ..=PAIRED) => i16::from(SMALL_OFFSET),
            (true, _) => 0,
        };
        for position in 0..code.positions() {
            let levels = &code.levels[if code.levels.len() == 1 { 0 } else { position }];
            for (index, level) in (0..=u8::MAX).zip(levels) {
                tables.levels[position][usize::from(folded.index(index))] = (i16::from(*level) + offset) as u8;
            }
            tables.current[position] = folded.map(&bit_images(&code.a[position]));
            tables.previous[position] = folded.map(&bit_images(&code.c[position]));
            if let Some(masks) = code.d.get(position) {
                tables.older[position] = folded.map(&bit_images(masks));
            }
        }
        for (row, masks) in code.a.iter().enumerate().take(4) {
            let mut images = bit_images(masks);
            images[..4].fill(0);
            if raw_bits % 2 == 1 {
                images[3 - row] = 1 << (index_bits + raw_bits - 1);
            } else if raw_bits > 0 {
                let lower = (6 - 2 * row) % 4;
                (images[lower], images[lower + 1]) = (1 << index_bits, 2 << index_bits);
            }
            tables.merged[row] = folded.map(&images);
        }
        for pair in 0..raw_bits / 2 {
            for row in 0..4 {
                let mut images = [0; 8];
                images[6 - 2 * row] = 1 << (index_bits + 2 * pair);
                images[7 - 2 * row] = 2 << (index_bits + 2 * pair);
                tables.pairs[pair][row] = folded.map(&images);
            }
        }
        if raw_bits % 2 == 1 {
            for row in 0..8 {
                let mut images = [0; 8];
                images[7 - row] = 1 << (index_bits + raw_bits - 1);
                tables.top[row] = folded.map(&images);
            }
        }
        if folded.look_up_bits <= PAIRED {
            let Tables { current, previous, older, merged, pairs, top, .. } = &mut *tables;
            for maps in [&mut current[..], previous, older, merged, &mut pairs[0], top] {
                pair_up(maps);
            }
            let period = 1 << PAIRED;
            for levels in &mut tables.levels {
                (period..levels.len()).for_each(|i| levels[i] = levels[i % period]);
            }
        }
        tables
    }
}

/// Which path bits the rows of a code read; kernels are made for each.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Reads {
    /// The nibble of the current byte that the row stands in, as in scalar codes.
    Nibble,
    /// The current and the previous byte.
    TwoBytes,
    /// The newest 12 of one path bit a row: a third byte in the first rows of a byte only, and half a byte in many.
    Window,
    /// Three bytes.
    ThreeBytes,
}

impl Reads {
    /// Of a valid code.
    pub fn of(code: &LinearCode) -> Self {
        let within = |matrices: &[Vec<u8>], allowed: &dyn Fn(usize) -> u8| {
            (0..).zip(matrices).all(|(i, masks)| masks.iter().all(|mask| mask & !allowed(i) == 0))
        };
        let rows_a_nibble = code.positions() / 2;
        let own = |i: usize| if i < rows_a_nibble { 0xF0 } else { 0x0F };
        let third = !within(&code.d, &|_| 0);
        if !third && within(&code.c, &|_| 0) && within(&code.a, &own) {
            Reads::Nibble
        } else if !third {
            Reads::TwoBytes
        } else if within(&code.a, &|i| if i < 4 { 0xF0 } else { 0xFF })
            && within(&code.c, &|i| if i < 7 { 0xFF } else { 0x0F })
            && within(&code.d, &|i| if i < 3 { 0x0F } else { 0 })
        {
            Reads::Window
        } else {
            Reads::ThreeBytes
        }
    }
}
