//! A code's matrices and levels in the form that the kernels read.
use super::index::{first_has_pairs, narrow, two_rows, PAIRED, SUMMED};
use crate::code::{bit_images, LinearCode};
use std::sync::{Arc, Mutex, PoisonError, Weak};

/// A GF(2)-linear map of bytes.
#[derive(Clone, Copy, PartialEq)]
#[repr(C, align(64))]
pub(crate) struct Map {
    /// Images of the six lowest bits.
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
            for v in (0..map.low.len()).filter(|v| v >> bit & 1 == 1) {
                map.low[v] ^= image;
            }
            for v in (0..map.high.len()).filter(|v| v << 4 >> bit & 1 == 1) {
                map.high[v] ^= image;
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

/// Largest magnitude of the levels of codes that are looked up two rows at once: `VPMADDUBSW` gives sums of two products, and those of such levels
/// with [`PAIRED_OFFSET`] added fit into 16 bits, `2 * 127 * 127 < 2^15`.
pub(crate) const PAIRED_MOST: i8 = 63;
const PAIRED_OFFSET: i8 = 64;

/// A level table that is the sum of two of 16 entries: one picked by the low nibble of the level index, in which there are path bits of the whole window, the other by
/// the rest, raw bits and path bits that stand in one nibble with the row's own: 3 in all, or 4 where there are more than two raw bits.
struct Summed {
    /// The second one is 0 at 0.
    tables: [[i16; 16]; 2],
}

impl Summed {
    /// Of a valid code, if it is one.
    fn of(code: &LinearCode) -> Option<Self> {
        let [levels] = &code.levels[..] else { return None };
        let others = usize::from(code.index_bits.checked_sub(PAIRED as u8)?);
        let zero = |matrices: &[Vec<u8>]| matrices.iter().flat_map(|masks| &masks[..others]).all(|mask| *mask == 0);
        let own = |i: usize| if i < 4 { 0xF0 } else { 0x0F };
        let summed = matches!(code.raw_bits, 1..=4)
            && others + usize::from(code.raw_bits) <= PAIRED
            && (!narrow(usize::from(code.raw_bits)) || others + usize::from(code.raw_bits) <= 3)
            && matches!(Reads::of(code), Reads::Nibbles | Reads::Window)
            && (0..).zip(&code.a).all(|(i, masks)| masks[..others].iter().all(|mask| mask & !own(i) == 0))
            && zero(&code.c)
            && zero(&code.d)
            && levels.iter().all(|level| level.abs() <= PAIRED_MOST);
        let level = |index: usize| levels.get(index).map_or(0, |level| i16::from(*level));
        let tables = [std::array::from_fn(level), std::array::from_fn(|i| level(16 * i) - level(0))];
        (summed && (0..levels.len()).all(|i| level(i) == tables[0][i % 16] + tables[1][i / 16])).then_some(Summed { tables })
    }
}

/// Index bits of the look-up in a valid code's levels, or [`SUMMED`]; kernels for many raw bits, or for a table for each row position, exist for full tables only, those for
/// two rows at once for small levels.
pub(crate) fn look_up_bits(code: &LinearCode) -> usize {
    let bits = usize::from(code.index_bits + code.raw_bits);
    if Summed::of(code).is_some() {
        SUMMED
    } else if code.path_bits == 1 && code.raw_bits >= 4 || code.levels.len() > 1 {
        8
    } else if bits <= PAIRED && code.levels[0].iter().any(|level| level.abs() > PAIRED_MOST) {
        PAIRED + 1
    } else {
        bits
    }
}

/// Everything that a kernel needs of one code.
#[derive(PartialEq)]
#[repr(C, align(64))]
pub(crate) struct Tables {
    /// Levels of each row position, or those with 128 or [`PAIRED_OFFSET`] added, in the order of [`Folded`] indices; those of up to 4 bits repeated, and of a [`Summed`]
    /// code the second table repeated from 64 on.
    pub levels: [[u8; 256]; 8],
    /// Current path byte to index, by row position.
    pub current: [Map; 8],
    /// Previous path byte to index, by row position.
    pub previous: [Map; 8],
    /// The path byte before that to index, by row position.
    pub older: [Map; 8],
    /// To index from what [`Sources::first`](super::index::Sources) has of the first four rows, where nibbles are merged.
    pub merged: [Map; 4],
    /// To index from what [`Sources::second`](super::index::Sources) has of a row, where nibbles are merged and there are three raw bits or more.
    pub second: [Map; 8],
    /// Of a [`Summed`] code, whose maps above are to the index of its first table and whose maps of raw bits are to that of the second one: current path byte to that.
    pub own: [Map; 8],
    /// Raw bits `2p + 1, 2p` of the four rows of a vector to index bits.
    pub pairs: [[Map; 4]; 2],
    /// The top raw bit of the eight rows of a vector, if raw bits are odd.
    pub top: [Map; 8],
    /// Largest magnitude of a level, at least 1.
    pub most: usize,
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
            second: [Map::ZERO; 8],
            own: [Map::ZERO; 8],
            pairs: [[Map::ZERO; 4]; 2],
            top: [Map::ZERO; 8],
            most: 1,
        });
        let Some(code) = code else { return tables };
        let index_bits = usize::from(code.index_bits);
        let raw_bits = usize::from(code.raw_bits);
        let look_up_bits = look_up_bits(code);
        let summed = Summed::of(code);
        let folded = Folded { bits: index_bits + raw_bits, look_up_bits };
        let offset = match (signed, look_up_bits) {
            (false, _) => 128,
            (true, bits) if two_rows(bits) => i16::from(PAIRED_OFFSET),
            (true, _) => 0,
        };
        // What the maps are to: the index of all levels, or that of the first and of the second table.
        let first = |images: &[u8; 8]| match summed {
            Some(_) => Map::new(&images.map(|image| image % 16)),
            None => folded.map(images),
        };
        let second = |images: &[u8; 8]| match summed {
            Some(_) => Map::new(&images.map(|image| image / 16)),
            None => folded.map(images),
        };
        tables.most = code.levels.iter().flatten().map(|level| usize::from(level.unsigned_abs())).fold(1, usize::max);
        for position in 0..code.positions() {
            let levels = &code.levels[if code.levels.len() == 1 { 0 } else { position }];
            for (index, level) in (0..=u8::MAX).zip(levels) {
                tables.levels[position][usize::from(folded.index(index))] = (i16::from(*level) + offset) as u8;
            }
            tables.current[position] = first(&bit_images(&code.a[position]));
            tables.previous[position] = first(&bit_images(&code.c[position]));
            if let Some(masks) = code.d.get(position) {
                tables.older[position] = first(&bit_images(masks));
            }
            if summed.is_some() {
                tables.own[position] = second(&bit_images(&code.a[position]));
            }
        }
        let pair_images = |pair: usize| (1 << (index_bits + 2 * pair), 2 << (index_bits + 2 * pair));
        let top_image = if raw_bits > 0 { 1 << (index_bits + raw_bits - 1) } else { 0 };
        for (row, masks) in code.a.iter().enumerate().take(4) {
            let mut images = bit_images(masks);
            images[..4].fill(0);
            if first_has_pairs(raw_bits, look_up_bits) {
                (images[(6 - 2 * row) % 4], images[(7 - 2 * row) % 4]) = pair_images(0);
            } else if raw_bits > 0 {
                images[3 - row] = top_image;
            }
            tables.merged[row] = second(&images);
        }
        for row in (0..8).filter(|_| raw_bits >= 3) {
            let mut images = [0; 8];
            let mut put = |pair: usize, at: usize| (images[at], images[at + 1]) = pair_images(pair);
            let pair_bit = 6 - 2 * (row % 4);
            match (raw_bits, row) {
                (3, 0..4) => {}
                (3, _) => put(0, pair_bit),
                (_, 0..4) => put(1, pair_bit),
                (_, 4 | 5) => {
                    put(0, pair_bit);
                    put(1, pair_bit - 4);
                }
                _ => {
                    put(0, pair_bit + 4);
                    put(1, pair_bit);
                }
            }
            match (raw_bits, row) {
                (3, 0..6) | (5, 2 | 3) => images[7 - row] = top_image,
                (3, _) => images[11 - row] = top_image,
                _ => {}
            }
            if let (0..3, Some(masks)) = (row, code.d.get(row)) {
                // Those that a code of a window reads.
                let older = bit_images(masks);
                images[..3 - row].copy_from_slice(&older[..3 - row]);
            }
            tables.second[row] = second(&images);
        }
        for pair in 0..raw_bits / 2 {
            for row in 0..4 {
                let mut images = [0; 8];
                (images[6 - 2 * row], images[7 - 2 * row]) = pair_images(pair);
                tables.pairs[pair][row] = second(&images);
            }
        }
        if raw_bits % 2 == 1 {
            for row in 0..8 {
                let mut images = [0; 8];
                images[7 - row] = top_image;
                tables.top[row] = second(&images);
            }
        }
        if two_rows(look_up_bits) {
            let Tables { current, previous, older, merged, second, own, pairs, top, .. } = &mut *tables;
            let [low, high] = pairs;
            for maps in [&mut current[..], previous, older, merged, second, own, low, high, top] {
                pair_up(maps);
            }
            let period = 1 << PAIRED;
            for levels in &mut tables.levels {
                (period..levels.len()).for_each(|i| levels[i] = levels[i % period]);
            }
        }
        if let Some(Summed { tables: [first, second] }) = summed {
            for (i, level) in tables.levels[0].iter_mut().enumerate() {
                *level = if i < 64 { (first[i % 16] + offset) as u8 } else { second[i % 16] as u8 };
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
    /// The nibble that the row stands in, up to its own bit, and the two before it; rows 0 to 3 of a byte in the same way as rows 4 to 7.
    Nibbles,
    /// The newest 12 of one path bit a row: a third byte in the first rows of a byte only, and half a byte in many. Rows 0 to 3 in the same way as rows 4 to 7.
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
        // Of an index bit of a row: all three bytes, the oldest one highest.
        let word = |row: usize, bit: usize| {
            let bytes = [code.d.get(row), Some(&code.c[row]), Some(&code.a[row])];
            bytes.into_iter().fold(0u32, |word, masks| word << 8 | masks.map_or(0, |masks| u32::from(masks[bit])))
        };
        let halves_alike = code.path_bits == 1
            && (0..4)
                .all(|row| (0..code.index_bits.into()).all(|bit| word(row, bit) & 15 == 0 && word(row + 4, bit) == word(row, bit) >> 4));
        if !third && within(&code.c, &|_| 0) && within(&code.a, &own) {
            Reads::Nibble
        } else if !third && halves_alike {
            Reads::Nibbles
        } else if !third {
            Reads::TwoBytes
        } else if halves_alike
            && within(&code.a, &|i| if i < 4 { 0xF0 } else { 0xFF })
            && within(&code.c, &|i| if i < 7 { 0xFF } else { 0x0F })
            && within(&code.d, &|i| 0x07 >> i)
        {
            Reads::Window
        } else {
            Reads::ThreeBytes
        }
    }
}
