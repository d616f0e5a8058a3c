//! The linear trellis code: how path bits and raw bits become a level.
use std::sync::Arc;

/// A code whose level index is a GF(2)-linear function of the last two path bytes, or three.
///
/// A path byte holds `8 / path_bits` rows, first row in the highest bits. Row position `i` of byte `B_t` has
/// `index = A_i B_t xor C_i B_{t-1} xor D_i B_{t-2}` and the value `unit * levels[i or 0][raw << index_bits | index]`.
/// Scalar codes are the special case where `A_i` picks the row's own path bits, and there is no other matrix.
#[derive(Debug, Clone, PartialEq)]
pub struct LinearCode {
    /// Path bits a row, 1 or 2.
    pub path_bits: u8,
    /// Raw bits a row: they pick among `2^raw_bits` levels of the subset that the index selects.
    pub raw_bits: u8,
    /// Bits of the level index, at most 8 together with `raw_bits`.
    pub index_bits: u8,
    /// `a[i][j]`: mask over `B_t` whose parity is bit `index_bits - 1 - j` of the index at row position `i`.
    pub a: Vec<Vec<u8>>,
    /// The same over `B_{t-1}`.
    pub c: Vec<Vec<u8>>,
    /// The same over `B_{t-2}`; empty if no row reads it. Only codes of one path bit may.
    pub d: Vec<Vec<u8>>,
    /// One table of `2^(raw_bits + index_bits)` levels, or one for each row position; -127 to 127, the level at the complement of an entry being its
    /// negative.
    pub levels: Vec<Vec<i8>>,
    /// Value of one level step for a unit-variance column.
    pub unit: f32,
}

/// What is wrong with a code's tables.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum CodeError {
    /// Only 1 or 2 path bits a row exist.
    #[error("path_bits is {0}, must be 1 or 2")]
    PathBits(u8),
    /// Path and raw bits together make a width from 1 to 6.
    #[error("path_bits {path} and raw_bits {raw} make no width from 1 to 6")]
    Width {
        /// Path bits.
        path: u8,
        /// Raw bits.
        raw: u8,
    },
    /// A level table has 2 to 256 entries.
    #[error("index_bits {index} and raw_bits {raw} make no level table of 2 to 256 entries")]
    TableBits {
        /// Index bits.
        index: u8,
        /// Raw bits.
        raw: u8,
    },
    /// One matrix a row position is needed.
    #[error("matrix list {matrix} has {found} entries, must have {expected}")]
    Positions {
        /// `a`, `c` or `d`.
        matrix: char,
        /// Entries found.
        found: usize,
        /// `8 / path_bits`.
        expected: usize,
    },
    /// One mask an index bit is needed.
    #[error("matrix {matrix}[{position}] has {found} masks, must have {expected}")]
    Masks {
        /// `a`, `c` or `d`.
        matrix: char,
        /// Row position.
        position: usize,
        /// Masks found.
        found: usize,
        /// `index_bits`.
        expected: usize,
    },
    /// With more than one path bit a third path byte is less than two row blocks back, and no kernel looks there.
    #[error("path_bits is {0} and there is a matrix d: only codes of 1 path bit read a third path byte")]
    ThirdByte(u8),
    /// One level table, or one for each row position.
    #[error("{found} level tables, must be 1 or {positions}")]
    Tables {
        /// Tables found.
        found: usize,
        /// `8 / path_bits`.
        positions: usize,
    },
    /// A level table of another size than `2^(raw_bits + index_bits)`.
    #[error("level table {table} has {found} entries, must have {expected}")]
    Levels {
        /// Which table.
        table: usize,
        /// Entries found.
        found: usize,
        /// `2^(raw_bits + index_bits)`.
        expected: usize,
    },
    /// Levels are -127 to 127.
    #[error("level table {table} holds -128 at {index}, levels are -127 to 127")]
    LevelRange {
        /// Which table.
        table: usize,
        /// Which entry.
        index: usize,
    },
    /// A level and that at the complement must be opposite: kernels look up half a table.
    #[error("level table {table} holds {level} at {index}, and not its negative at the complement")]
    NotAntisymmetric {
        /// Which table.
        table: usize,
        /// Which entry.
        index: usize,
        /// The entry.
        level: i8,
    },
    /// The unit must be a finite positive number.
    #[error("unit is {0}, must be finite and positive")]
    Unit(f32),
    /// Encoders search scalar and convolutional codes only; kernels read all.
    #[error("no encoder: rows do not read the path bits before them, one a row, in the same way as the fourth row after them")]
    NotConvolutional,
}

impl LinearCode {
    /// Bits a row: path and raw together.
    pub fn bits(&self) -> u8 {
        self.path_bits.saturating_add(self.raw_bits)
    }

    /// Row positions in a path byte: `8 / path_bits`.
    pub fn positions(&self) -> usize {
        8 / usize::from(self.path_bits)
    }

    /// Checks sizes and ranges; every kernel relies on them.
    ///
    /// # Errors
    /// The first violation found.
    pub fn validate(&self) -> Result<(), CodeError> {
        if !matches!(self.path_bits, 1 | 2) {
            return Err(CodeError::PathBits(self.path_bits));
        }
        if !(1..=6).contains(&self.bits()) {
            return Err(CodeError::Width { path: self.path_bits, raw: self.raw_bits });
        }
        let table_bits = self.index_bits.saturating_add(self.raw_bits);
        if self.index_bits == 0 || table_bits > 8 {
            return Err(CodeError::TableBits { index: self.index_bits, raw: self.raw_bits });
        }
        let positions = self.positions();
        if !self.d.is_empty() && self.path_bits != 1 {
            return Err(CodeError::ThirdByte(self.path_bits));
        }
        for (matrix, list) in [('a', &self.a), ('c', &self.c), ('d', &self.d)] {
            if list.len() != positions && !(matrix == 'd' && list.is_empty()) {
                return Err(CodeError::Positions { matrix, found: list.len(), expected: positions });
            }
            let expected = usize::from(self.index_bits);
            if let Some(position) = list.iter().position(|masks| masks.len() != expected) {
                return Err(CodeError::Masks { matrix, position, found: list[position].len(), expected });
            }
        }
        if self.levels.len() != 1 && self.levels.len() != positions {
            return Err(CodeError::Tables { found: self.levels.len(), positions });
        }
        for (table, levels) in self.levels.iter().enumerate() {
            let expected = 1 << table_bits;
            if levels.len() != expected {
                return Err(CodeError::Levels { table, found: levels.len(), expected });
            }
            if let Some(index) = levels.iter().position(|&l| l == i8::MIN) {
                return Err(CodeError::LevelRange { table, index });
            }
            if let Some(index) = levels.iter().zip(levels.iter().rev()).position(|(l, opposite)| *l != -opposite) {
                return Err(CodeError::NotAntisymmetric { table, index, level: levels[index] });
            }
        }
        if !(self.unit.is_finite() && self.unit > 0.0) {
            return Err(CodeError::Unit(self.unit));
        }
        Ok(())
    }

    /// Fixed-width scalar code, 1 to 6 bits: Lloyd-Max levels of the unit Gaussian (Max 1960, "Quantizing for minimum distortion"), rounded to
    /// int8 with one unit. `raw << index_bits | path` counts the levels in ascending order.
    ///
    /// # Panics
    /// If `bits` is not 1 to 6.
    pub fn scalar(bits: u8) -> Self {
        assert!((1..=6).contains(&bits), "scalar codes have 1 to 6 bits, not {bits}");
        let path_bits = bits.min(2);
        let levels = lloyd_max(1 << bits);
        let unit = levels[levels.len() - 1] / 127.0;
        let a = (0..8 / path_bits).map(|i| own_path_bits(path_bits, i)).collect::<Vec<_>>();
        LinearCode {
            path_bits,
            raw_bits: bits - path_bits,
            index_bits: path_bits,
            c: vec![vec![0; usize::from(path_bits)]; a.len()],
            a,
            d: Vec::new(),
            levels: vec![levels.iter().map(|l| (l / unit).round() as i8).collect()],
            unit: unit as f32,
        }
    }

    /// A convolutional code: bit `j` of the index, highest first, is the parity of `word & taps[j]`, where a row's word is the newest `window`
    /// path bits up to its own, its last bit lowest. Of `bytes` path bytes (2 or 3) a row at position `i` sees `8 (bytes - 1) + path_bits (i + 1)`
    /// bits at most.
    pub fn convolutional(path_bits: u8, raw_bits: u8, bytes: u32, window: u32, taps: &[u16], levels: Vec<i8>, unit: f32) -> Self {
        let positions = 8 / u32::from(path_bits);
        let masks = |byte: u32| {
            let mask = |i: u32, tap: u16| {
                let newer = u32::from(path_bits) * (i + 1);
                let seen = (1u32 << window.min(8 * (bytes - 1) + newer)) - 1;
                ((u32::from(tap) & seen) << (8 - newer) >> (8 * byte)) as u8
            };
            (0..positions).map(|i| taps.iter().map(|&tap| mask(i, tap)).collect()).collect()
        };
        let d = if bytes == 3 { masks(2) } else { Vec::new() };
        LinearCode { path_bits, raw_bits, index_bits: taps.len() as u8, a: masks(0), c: masks(1), d, levels: vec![levels], unit }
    }

    /// A code of one path bit whose rows read the path nibble up to their own bit and the two nibbles before it. Bit `j` of the index of row `i`, highest first, is the parity of
    /// `word & taps[i % 4][j]`, the word being the newest `9 + i % 4` path bits, its last bit lowest.
    pub fn by_nibbles(raw_bits: u8, taps: &[Vec<u16>; 4], levels: Vec<i8>, unit: f32) -> Self {
        let mask = |row: usize, tap: u16| (u32::from(tap) & ((1 << (9 + row % 4)) - 1)) << (7 - row);
        let masks = |byte: u32| (0..8).map(|row| taps[row % 4].iter().map(|tap| (mask(row, *tap) >> (8 * byte)) as u8).collect()).collect();
        let index_bits = taps[0].len() as u8;
        LinearCode { path_bits: 1, raw_bits, index_bits, a: masks(0), c: masks(1), d: Vec::new(), levels: vec![levels], unit }
    }

    /// True if every row's level depends on its own bits alone and the same way: such a code needs no trellis search.
    pub fn is_scalar(&self) -> bool {
        self.levels.len() == 1
            && self.index_bits == self.path_bits
            && self.c.iter().chain(&self.d).flatten().all(|&mask| mask == 0)
            && self.a.iter().zip(0..).all(|(masks, i)| *masks == own_path_bits(self.path_bits, i))
    }

    /// Values of a column's rows from its path bytes (`rows * path_bits / 8`, rounded up) and raw values (one a row; not read if the
    /// code has no raw bits). `out` has one value a row. The code must be valid.
    pub fn decode(&self, path: &[u8], raw: &[u8], out: &mut [f32]) {
        let index = IndexTables::new(self);
        let positions = self.positions();
        let mut before = [0; 2];
        for (t, rows) in out.chunks_mut(positions).enumerate() {
            for (i, value) in rows.iter_mut().enumerate() {
                let raw = if self.raw_bits == 0 { 0 } else { raw[t * positions + i] };
                *value = self.unit * f32::from(self.level(i, index.get(i, path[t], before), raw));
            }
            before = [path[t], before[0]];
        }
    }

    /// Entry of the level table that each of `rows` rows uses: `raw << index_bits | index`. Arguments as for [`LinearCode::decode`].
    pub fn indices(&self, path: &[u8], raw: &[u8], rows: usize) -> Vec<u8> {
        let index = IndexTables::new(self);
        let positions = self.positions();
        let one = |row: usize| {
            let (t, i) = (row / positions, row % positions);
            let before = [1, 2].map(|age| if t < age { 0 } else { path[t - age] });
            let raw = if self.raw_bits == 0 { 0 } else { raw[row] };
            ((u32::from(raw) << self.index_bits) | u32::from(index.get(i, path[t], before))) as u8
        };
        (0..rows).map(one).collect()
    }

    pub(crate) fn level(&self, position: usize, index: u8, raw: u8) -> i8 {
        let table = &self.levels[if self.levels.len() == 1 { 0 } else { position }];
        table[usize::from(raw) << self.index_bits | usize::from(index)]
    }
}

/// A level table from its upper half.
pub fn antisymmetric(upper: &[i8]) -> Vec<i8> {
    upper.iter().rev().map(|l| -l).chain(upper.iter().copied()).collect()
}

/// The matrix that picks row position `i`'s own path bits.
fn own_path_bits(path_bits: u8, i: u8) -> Vec<u8> {
    (0..path_bits).map(|j| 0x80 >> (path_bits * i + j)).collect()
}

/// Level index contributions of every value of the current path byte and those before it, for each row position.
pub(crate) struct IndexTables {
    current: Vec<[u8; 256]>,
    previous: Vec<[u8; 256]>,
    /// Empty if no row reads a third byte.
    older: Vec<[u8; 256]>,
}

impl IndexTables {
    pub(crate) fn new(code: &LinearCode) -> Self {
        let tables = |matrices: &[Vec<u8>]| matrices.iter().map(|masks| linear_table(&bit_images(masks))).collect();
        IndexTables { current: tables(&code.a), previous: tables(&code.c), older: tables(&code.d) }
    }

    /// `before`: the previous byte and the one before it.
    pub(crate) fn get(&self, position: usize, current: u8, before: [u8; 2]) -> u8 {
        let index = self.current[position][usize::from(current)] ^ self.previous[position][usize::from(before[0])];
        index ^ self.older.get(position).map_or(0, |table| table[usize::from(before[1])])
    }
}

/// Index contribution of each single bit of a byte, lowest bit first.
pub(crate) fn bit_images(masks: &[u8]) -> [u8; 8] {
    std::array::from_fn(|bit| masks.iter().fold(0, |index, mask| index << 1 | (mask >> bit & 1)))
}

/// The linear map of all bytes from its images of single bits.
fn linear_table(images: &[u8; 8]) -> [u8; 256] {
    let mut table = [0; 256];
    for v in 1..256usize {
        table[v] = table[v & (v - 1)] ^ images[v.trailing_zeros() as usize];
    }
    table
}

/// The codes of a file by width in bits (1 to 6).
#[derive(Debug, Clone, Default, PartialEq)]
pub struct CodeSet {
    /// `codes[k]`: the code of width `k`, if the file has one.
    pub codes: [Option<Arc<LinearCode>>; 7],
}

impl CodeSet {
    /// Scalar codes for all widths from 1 to 6.
    pub fn scalar() -> Self {
        let mut set = CodeSet::default();
        for bits in 1..=6 {
            set.codes[usize::from(bits)] = Some(Arc::new(LinearCode::scalar(bits)));
        }
        set
    }

    /// The code of this width, if there is one.
    pub fn get(&self, width: u8) -> Option<&Arc<LinearCode>> {
        self.codes.get(usize::from(width))?.as_ref()
    }
}

/// Lloyd-Max levels of the unit Gaussian, ascending and exactly antisymmetric.
fn lloyd_max(count: usize) -> Vec<f64> {
    // The positive half axis in cells of 1/2048: prefix sums of mass and first moment make a centroid two differences.
    const STEP: f64 = 1.0 / 2048.0;
    const CELLS: usize = 9 * 2048;
    let mut sums = Vec::with_capacity(CELLS + 1);
    sums.push((0.0, 0.0));
    let (mut mass, mut moment) = (0.0, 0.0);
    for cell in 0..CELLS {
        let x = (cell as f64 + 0.5) * STEP;
        let p = (-0.5 * x * x).exp();
        mass += p;
        moment += p * x;
        sums.push((mass, moment));
    }
    let at = |x: f64| {
        let position = (x / STEP).min(CELLS as f64);
        let cell = (position as usize).min(CELLS - 1);
        let part = position - cell as f64;
        let (low, high) = (sums[cell], sums[cell + 1]);
        (low.0 + part * (high.0 - low.0), low.1 + part * (high.1 - low.1))
    };
    let half = count / 2;
    let mut levels: Vec<f64> = (0..half).map(|i| 3.5 * (i as f64 + 0.5) / half as f64).collect();
    for _ in 0..20_000 {
        let mut change: f64 = 0.0;
        let mut low = at(0.0);
        for i in 0..half {
            let high = if i + 1 < half { at((levels[i] + levels[i + 1]) / 2.0) } else { at(f64::INFINITY) };
            let centroid = (high.1 - low.1) / (high.0 - low.0);
            change = change.max((centroid - levels[i]).abs());
            levels[i] = centroid;
            low = high;
        }
        if change < 1e-9 {
            break;
        }
    }
    levels.iter().rev().map(|l| -l).chain(levels.iter().copied()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Mean squared error over the unit Gaussian of a nearest-level quantizer, by numerical integration.
    fn gaussian_error(levels: &[f64]) -> f64 {
        let (mut error, mut mass) = (0.0, 0.0);
        for i in -80_000..80_000 {
            let x = (f64::from(i) + 0.5) / 10_000.0;
            let p = (-0.5 * x * x).exp();
            let nearest = levels.iter().map(|l| (l - x) * (l - x)).fold(f64::INFINITY, f64::min);
            error += p * nearest;
            mass += p;
        }
        error / mass
    }

    #[test]
    fn scalar_levels_have_the_published_distortion() {
        // Max 1960, table I; rounding to int8 costs at most 1.5 %.
        for (bits, published) in [(1, 0.3634), (2, 0.1175), (3, 0.03454), (4, 0.009497), (5, 0.002499)] {
            let code = LinearCode::scalar(bits);
            code.validate().unwrap();
            assert!(code.is_scalar());
            let levels: Vec<f64> = code.levels[0].iter().map(|&l| f64::from(l) * f64::from(code.unit)).collect();
            assert!(levels.windows(2).all(|w| w[0] < w[1]));
            let error = gaussian_error(&levels);
            assert!((error / published - 1.0).abs() < 0.015, "{bits} bits: {error} against {published}");
        }
        let six = LinearCode::scalar(6);
        six.validate().unwrap();
        assert!(six.levels[0].windows(2).all(|w| w[0] < w[1]));
    }

    #[test]
    fn validate_names_the_violation() {
        let good = LinearCode::scalar(3);
        let broken = |change: fn(&mut LinearCode)| {
            let mut code = good.clone();
            change(&mut code);
            code.validate().unwrap_err()
        };
        assert_eq!(broken(|c| c.path_bits = 0), CodeError::PathBits(0));
        assert!(matches!(broken(|c| c.path_bits = 255), CodeError::PathBits(255)));
        assert!(matches!(broken(|c| c.raw_bits = 255), CodeError::Width { .. }));
        assert!(matches!(broken(|c| c.index_bits = 8), CodeError::TableBits { .. }));
        assert!(matches!(broken(|c| c.index_bits = 0), CodeError::TableBits { .. }));
        assert!(matches!(broken(|c| c.a.truncate(3)), CodeError::Positions { matrix: 'a', found: 3, expected: 4 }));
        assert!(matches!(broken(|c| c.c[2].push(1)), CodeError::Masks { matrix: 'c', position: 2, .. }));
        assert!(matches!(broken(|c| c.d = c.c.clone()), CodeError::ThirdByte(2)));
        assert!(matches!(broken(|c| c.levels.push(vec![0; 8])), CodeError::Tables { found: 2, .. }));
        assert!(matches!(broken(|c| c.levels[0].truncate(7)), CodeError::Levels { found: 7, .. }));
        assert!(matches!(broken(|c| c.levels[0][5] = -128), CodeError::LevelRange { index: 5, .. }));
        assert!(matches!(broken(|c| c.levels[0][5] = 7), CodeError::NotAntisymmetric { table: 0, index: 2, .. }));
        assert!(matches!(broken(|c| c.unit = f32::NAN), CodeError::Unit(_)));
        assert!(matches!(broken(|c| c.unit = 0.0), CodeError::Unit(_)));
    }
}
