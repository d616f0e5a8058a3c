//! Instruction-set paths of the products; `portable` is the oracle.
//!
//! One definition (`kernel`) over byte vectors is compiled for each instruction set with that set enabled; `select` picks the functions for
//! a run once, when a matrix is made.
#[cfg(target_arch = "x86_64")]
mod amx;
mod blocks;
mod index;
mod inputs;
mod kernel;
mod nibbles;
mod portable;
mod prefetch;
mod read;
mod rows;
mod tables;
mod transpose;
mod vector;
#[cfg(target_arch = "x86_64")]
mod x86;

use crate::code::LinearCode;
pub(crate) use blocks::{before_first, Blocks};
pub(crate) use inputs::{Aligned, Inputs, Partial};
pub(crate) use kernel::Levels;
pub(crate) use prefetch::{prefetch_line, prefetch_values, Ahead, Lines};
pub use read::read;
pub(crate) use rows::{rows_dot, RowsDot, TwoBytes, MOST_COLUMNS};
use std::ops::Range;
use std::sync::OnceLock;
use tables::look_up_bits;
pub(crate) use tables::{Reads, Tables};
#[cfg(target_arch = "x86_64")]
pub(crate) use transpose::by_lane_avx2;
pub(crate) use transpose::{by_lane, ByLane};
use vector::Vector;

/// An instruction-set path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Isa {
    /// Plain Rust.
    Portable,
    /// AVX2 and FMA.
    Avx2,
    /// AVX2, FMA, GFNI and AVX-VNNI.
    Avx2Gfni,
    /// AVX-512 (F, BW, DQ, VL, VBMI, VNNI) and GFNI.
    Avx512,
    /// The same, and AMX for products with many tokens.
    Avx512Amx,
}

/// `WSRUN_ISA` asks for something that is not there.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum IsaError {
    /// Not the name of a path.
    #[error("WSRUN_ISA={0}: unknown instruction set, choose portable, avx2, avx2-gfni, avx512 or avx512-amx")]
    Unknown(String),
    /// The CPU lacks the instructions.
    #[error("WSRUN_ISA={}: this CPU has no such instructions; the best it has is {}", .0.name(), Isa::best().name())]
    Unavailable(Isa),
}

impl Isa {
    /// All paths, slowest first.
    pub const ALL: [Isa; 5] = [Isa::Portable, Isa::Avx2, Isa::Avx2Gfni, Isa::Avx512, Isa::Avx512Amx];

    /// The name that `WSRUN_ISA` takes.
    pub fn name(self) -> &'static str {
        match self {
            Isa::Portable => "portable",
            Isa::Avx2 => "avx2",
            Isa::Avx2Gfni => "avx2-gfni",
            Isa::Avx512 => "avx512",
            Isa::Avx512Amx => "avx512-amx",
        }
    }

    /// True if this CPU can run the path.
    pub fn is_available(self) -> bool {
        #[cfg(target_arch = "x86_64")]
        {
            let avx2 = is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma");
            let gfni = avx2 && is_x86_feature_detected!("gfni");
            match self {
                Isa::Portable => true,
                Isa::Avx2 => avx2,
                Isa::Avx2Gfni => gfni && is_x86_feature_detected!("avxvnni"),
                Isa::Avx512 => {
                    gfni && is_x86_feature_detected!("avx512f")
                        && is_x86_feature_detected!("avx512bw")
                        && is_x86_feature_detected!("avx512dq")
                        && is_x86_feature_detected!("avx512vl")
                        && is_x86_feature_detected!("avx512vbmi")
                        && is_x86_feature_detected!("avx512vnni")
                }
                Isa::Avx512Amx => Isa::Avx512.is_available() && amx::is_available(),
            }
        }
        #[cfg(not(target_arch = "x86_64"))]
        {
            self == Isa::Portable
        }
    }

    /// The fastest path of this CPU.
    pub fn best() -> Isa {
        Isa::ALL.into_iter().rev().find(|isa| isa.is_available()).unwrap_or(Isa::Portable)
    }

    /// The path that the value of `WSRUN_ISA` asks for; [`Isa::best`] if there is none.
    ///
    /// # Errors
    /// An unknown name, or a path that this CPU cannot run.
    pub fn choose(wanted: Option<&str>) -> Result<Isa, IsaError> {
        let Some(wanted) = wanted else { return Ok(Isa::best()) };
        let isa = Isa::ALL.into_iter().find(|isa| isa.name() == wanted).ok_or_else(|| IsaError::Unknown(wanted.to_owned()))?;
        if isa.is_available() {
            Ok(isa)
        } else {
            Err(IsaError::Unavailable(isa))
        }
    }
}

/// The path that products take: the one that the environment variable `WSRUN_ISA` names, read once, or the fastest that this CPU can run.
///
/// # Errors
/// `WSRUN_ISA` names no path, or one that this CPU cannot run.
pub fn isa() -> Result<Isa, IsaError> {
    static ISA: OnceLock<Result<Isa, IsaError>> = OnceLock::new();
    ISA.get_or_init(|| {
        let wanted = std::env::var_os("WSRUN_ISA");
        Isa::choose(wanted.as_ref().map(|w| w.to_string_lossy()).as_deref())
    })
    .clone()
}

/// Inputs that products of looked-up levels may read and write at once: there is room for so many behind the last.
pub(crate) const TOGETHER: usize = 16;

/// The functions that multiply by the blocks of one run.
#[derive(Clone, Copy)]
pub(crate) struct Kernels {
    dot: unsafe fn(&Blocks, &Inputs, &mut [Partial]),
    look_up: unsafe fn(&Blocks, usize, Range<usize>, &mut [Levels]),
    multiply: Multiply<Levels>,
    /// In its place with [`Tiles`].
    by_tiles: Option<Multiply<[Levels; 16]>>,
    /// Tables hold levels as they are, without 128 added.
    pub signed: bool,
    /// [`Kernels::dot`] reads [`Inputs::halves`].
    pub halves: bool,
}

/// Adds the products of the looked-up levels of a section, or of some from that one on, by all inputs.
type Multiply<L> = unsafe fn(levels: &[L], section: usize, x: &Inputs, out: &mut [Partial]);

impl Kernels {
    /// Adds the products of row blocks by the inputs of one token, each to its own of `out`.
    ///
    /// # Safety
    /// The panel must belong to the run that the kernels were selected for, all its row blocks up to the last of these must be readable, and vectors before the first, as far as
    /// the code reads them; inputs must be as long as the run's groups, and a panel begins with a section.
    pub unsafe fn dot(&self, blocks: &Blocks, x: &Inputs, out: &mut [Partial]) {
        (self.dot)(blocks, x, out)
    }

    /// Adds the products of row blocks by all inputs, that of a token to `out[row block][token]`, with the same results as [`Kernels::dot`]. Levels are looked up once,
    /// into working memory.
    ///
    /// # Safety
    /// As for [`Kernels::dot`].
    pub unsafe fn dot_many(&self, blocks: &Blocks, x: &Inputs, levels: &mut SomeLevels, tiles: &Tiles, out: &mut [Partial]) {
        for (block, out) in blocks.blocks.clone().zip(out.chunks_exact_mut(x.tokens)) {
            let mut sections = blocks.sections(x.lanes).peekable();
            if let Some(multiply) = self.by_tiles.filter(|_| tiles.are_ready()) {
                while let Some(&(first, _)) = sections.peek() {
                    let mut count = 0;
                    for (levels, (_, groups)) in levels.iter_mut().zip(&mut sections) {
                        (self.look_up)(blocks, block, groups.clone(), &mut levels[..groups.len()]);
                        count += 1;
                    }
                    multiply(&levels[..count], first, x, out);
                }
            }
            for (section, groups) in sections {
                let levels = &mut levels[0][..groups.len()];
                (self.look_up)(blocks, block, groups, levels);
                (self.multiply)(levels, section, x, out);
            }
        }
    }
}

/// Sections whose levels are looked up at once for tiles: those and the sums of 16 tokens are all in the first-level cache.
pub(crate) const SECTIONS: usize = 4;

/// Working memory for them.
pub(crate) type SomeLevels = [[Levels; 16]; SECTIONS];

/// Tokens from which on tiles are faster than vectors. 4096 x 4096, 3 bits, one thread, 10^9 weights times tokens a second by tiles and by vectors (Sapphire Rapids class Xeon, a quiet
/// hour and one with neighbours): 147 and 117, 75 and 116 for 8 tokens, 199 and 146, 97 and 97 for 12.
const FEWEST_IN_TILES: usize = 12;

/// The tile registers of this thread, if products are to use them.
pub(crate) struct Tiles {
    #[cfg(target_arch = "x86_64")]
    configured: Option<amx::Configured>,
}

impl Tiles {
    /// For products with so many tokens on a path that this CPU has.
    pub fn new(isa: Isa, tokens: usize) -> Self {
        let wanted = isa == Isa::Avx512Amx && tokens >= FEWEST_IN_TILES;
        #[cfg(not(target_arch = "x86_64"))]
        assert!(!wanted, "{}", IsaError::Unavailable(isa));
        Tiles {
            #[cfg(target_arch = "x86_64")]
            // SAFETY: the path is there.
            configured: wanted.then(|| unsafe { amx::Configured::new() }),
        }
    }

    fn are_ready(&self) -> bool {
        #[cfg(target_arch = "x86_64")]
        return self.configured.is_some();
        #[cfg(not(target_arch = "x86_64"))]
        false
    }
}

/// Index bits of the level table look-up of a kernel that needs `bits`.
const fn table<T: Vector>(bits: usize) -> usize {
    if bits < T::TABLE_BITS {
        T::TABLE_BITS
    } else {
        bits
    }
}

/// The kernels of one instruction set: wrappers that enable it, and the choice among them.
macro_rules! kernels {
    ($module:ident, $vector:ty $(, $features:literal)?) => {
        mod $module {
            use super::*;

            $(#[target_feature(enable = $features)])?
            unsafe fn dot<const PATH: usize, const RAW: usize, const READS: usize, const BITS: usize>(
                blocks: &Blocks,
                x: &Inputs,
                out: &mut [Partial],
            ) {
                // SAFETY: the caller's contract is the kernel's, and the instruction set is enabled.
                unsafe { kernel::dot::<$vector, PATH, RAW, READS, BITS>(blocks, x, out) }
            }

            $(#[target_feature(enable = $features)])?
            unsafe fn look_up<const PATH: usize, const RAW: usize, const READS: usize, const BITS: usize>(
                blocks: &Blocks,
                block: usize,
                groups: Range<usize>,
                levels: &mut [Levels],
            ) {
                // SAFETY: as above.
                unsafe { kernel::look_up::<$vector, PATH, RAW, READS, BITS>(blocks, block, groups, levels) }
            }

            $(#[target_feature(enable = $features)])?
            unsafe fn multiply<const PAIRED: bool>(levels: &[Levels], section: usize, x: &Inputs, out: &mut [Partial]) {
                // SAFETY: as above.
                unsafe { kernel::multiply::<$vector, PAIRED>(levels, section, x, out) }
            }

            /// Kernels of a run; `None` is width 8. A code is valid, so path bits are 1 or 2 and bits at most 6.
            pub(super) fn select(code: Option<&LinearCode>) -> Kernels {
                const T4: usize = index::PAIRED;
                const T5: usize = table::<$vector>(5);
                const T6: usize = table::<$vector>(6);
                const T7: usize = table::<$vector>(7);
                const T8: usize = 8;
                const OWN_TABLES: usize = index::OWN_TABLES;
                const SUMMED: usize = index::SUMMED;
                macro_rules! pick {
                    ($path:literal, $raw:literal, $reads:ident, $bits:ident) => {
                        Kernels {
                            dot: dot::<$path, $raw, { Reads::$reads as usize }, $bits>,
                            look_up: look_up::<$path, $raw, { Reads::$reads as usize }, $bits>,
                            multiply: match <$vector>::SIGNED && $path > 0 && index::two_rows($bits) {
                                true => multiply::<true>,
                                false => multiply::<false>,
                            },
                            by_tiles: None,
                            signed: <$vector>::SIGNED,
                            halves: nibbles::by_nibbles::<$vector>(Reads::$reads as usize, $bits),
                        }
                    };
                    ($path:literal, $raw:literal, $reads:ident of $bits:expr) => {
                        match $bits {
                            0..=4 => pick!($path, $raw, $reads, T4),
                            5 => pick!($path, $raw, $reads, T5),
                            6 => pick!($path, $raw, $reads, T6),
                            7 => pick!($path, $raw, $reads, T7),
                            8 => pick!($path, $raw, $reads, T8),
                            _ => pick!($path, $raw, $reads, OWN_TABLES),
                        }
                    };
                    ($path:literal, $raw:literal, summed $reads:ident) => {
                        match $reads {
                            Reads::Nibbles => pick!($path, $raw, Nibbles, SUMMED),
                            _ => pick!($path, $raw, Window, SUMMED),
                        }
                    };
                    ($path:literal, $raw:literal, any $reads:ident, $bits:ident) => {
                        match $reads {
                            Reads::Window => pick!($path, $raw, Window, $bits),
                            Reads::ThreeBytes => pick!($path, $raw, ThreeBytes, $bits),
                            _ => pick!($path, $raw, TwoBytes, $bits),
                        }
                    };
                    ($path:literal, $raw:literal, any $reads:ident of $bits:expr) => {
                        match $reads {
                            Reads::Nibbles if $bits <= T4 => pick!($path, $raw, Nibbles, T4),
                            Reads::Window => pick!($path, $raw, Window of $bits),
                            Reads::ThreeBytes => pick!($path, $raw, ThreeBytes of $bits),
                            _ => pick!($path, $raw, TwoBytes of $bits),
                        }
                    };
                }
                let Some(code) = code else { return pick!(0, 8, Nibble, T4) };
                let bits = if code.levels.len() > 1 { OWN_TABLES } else { look_up_bits(code) };
                let reads = Reads::of(code);
                match (code.path_bits, code.raw_bits) {
                    (1, 0) if reads == Reads::Nibble && bits <= 4 => pick!(1, 0, Nibble, T4),
                    (2, 0) if reads == Reads::Nibble && bits <= 4 => pick!(2, 0, Nibble, T4),
                    (2, 1) if reads == Reads::Nibble && bits <= 4 => pick!(2, 1, Nibble, T4),
                    (2, 2) if reads == Reads::Nibble && bits <= 4 => pick!(2, 2, Nibble, T4),
                    (2, 3) if reads == Reads::Nibble && bits == 5 => pick!(2, 3, Nibble, T5),
                    (2, 4) if reads == Reads::Nibble && bits == 6 => pick!(2, 4, Nibble, T6),
                    (1, 1) if bits == SUMMED => pick!(1, 1, summed reads),
                    (1, 2) if bits == SUMMED => pick!(1, 2, summed reads),
                    (1, 3) if bits == SUMMED => pick!(1, 3, summed reads),
                    (1, _) if bits == SUMMED => pick!(1, 4, summed reads),
                    (1, 0) => pick!(1, 0, any reads of bits),
                    (1, 1) => pick!(1, 1, any reads of bits),
                    (1, 2) => pick!(1, 2, any reads of bits),
                    (1, 3) => pick!(1, 3, any reads of bits),
                    (1, 4) if bits == T8 => pick!(1, 4, any reads, T8),
                    (1, 4) => pick!(1, 4, any reads, OWN_TABLES),
                    (1, _) if bits == T8 => pick!(1, 5, any reads, T8),
                    (1, _) => pick!(1, 5, any reads, OWN_TABLES),
                    (_, 0) => pick!(2, 0, TwoBytes of bits),
                    (_, 1) => pick!(2, 1, TwoBytes of bits),
                    (_, 2) => pick!(2, 2, TwoBytes of bits),
                    (_, 3) => pick!(2, 3, TwoBytes of bits),
                    _ => pick!(2, 4, TwoBytes of bits),
                }
            }
        }
    };
}

kernels!(portable_kernels, portable::Portable<16>);
#[cfg(target_arch = "x86_64")]
kernels!(avx2_kernels, x86::Avx2, "avx2,fma");
#[cfg(target_arch = "x86_64")]
kernels!(avx2_gfni_kernels, x86::Avx2Gfni, "avx2,fma,gfni,avxvnni");
#[cfg(target_arch = "x86_64")]
kernels!(avx512_kernels, x86::Avx512, "avx512f,avx512bw,avx512dq,avx512vl,avx512vbmi,avx512vnni,gfni");

/// The kernels of a run of a matrix of so many lanes with this valid code (`None` at width 8).
///
/// # Panics
/// If the CPU cannot run the path.
pub(crate) fn select(isa: Isa, code: Option<&LinearCode>, lanes: usize) -> Kernels {
    assert!(isa.is_available(), "{}", IsaError::Unavailable(isa));
    match isa {
        Isa::Portable => portable_kernels::select(code),
        #[cfg(target_arch = "x86_64")]
        Isa::Avx2 => avx2_kernels::select(code),
        #[cfg(target_arch = "x86_64")]
        Isa::Avx2Gfni => avx2_gfni_kernels::select(code),
        #[cfg(target_arch = "x86_64")]
        Isa::Avx512Amx if lanes == 16 => Kernels { by_tiles: Some(amx::multiply), ..avx512_kernels::select(code) },
        #[cfg(target_arch = "x86_64")]
        Isa::Avx512 | Isa::Avx512Amx => avx512_kernels::select(code),
        #[cfg(not(target_arch = "x86_64"))]
        _ => unreachable!("not available"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::activations::{section_of, Activations};
    use crate::code::{antisymmetric, CodeSet};
    use crate::layout::VECTOR;
    use crate::tables::Effort;
    use rand::{Rng, SeedableRng};
    use rand_chacha::ChaCha8Rng;

    kernels!(portable32_kernels, portable::Portable<32>);
    kernels!(portable64_kernels, portable::Portable<64>);

    #[test]
    fn committed_codes_of_16_levels_and_of_sums_are_looked_up_two_rows_at_once() {
        let codes: Vec<_> = Effort::ALL.iter().flat_map(|&effort| CodeSet::trellis(effort).codes.into_iter().flatten()).collect();
        let small: Vec<_> = codes.iter().filter(|code| code.levels[0].len() <= 16).collect();
        assert!(small.len() >= 3 && small.iter().all(|code| look_up_bits(code) <= index::PAIRED));
        let light = CodeSet::trellis(Effort::Light);
        for bits in [3, 4, 5] {
            let mut code = LinearCode::clone(light.get(bits).unwrap());
            assert_eq!(look_up_bits(&code), index::SUMMED);
            // Not with a level that is no sum, or is too large.
            let last = code.levels[0].len() - 1;
            code.levels[0][0] -= 1;
            code.levels[0][last] += 1;
            assert_ne!(look_up_bits(&code), index::SUMMED);
            let mut code = LinearCode::clone(light.get(bits).unwrap());
            code.levels[0].iter_mut().for_each(|level| *level *= 2);
            assert_ne!(look_up_bits(&code), index::SUMMED);
        }
    }

    fn random_code(rng: &mut ChaCha8Rng, path_bits: u8, raw_bits: u8, index_bits: u8, reads: Reads) -> LinearCode {
        let own_tables = rng.random_bool(0.3);
        let positions = 8 / usize::from(path_bits);
        let mut masks = || (0..positions).map(|_| (0..index_bits).map(|_| rng.random()).collect::<Vec<u8>>()).collect::<Vec<_>>();
        let (mut a, mut c, mut d) = (masks(), masks(), if reads == Reads::TwoBytes { Vec::new() } else { masks() });
        if matches!(reads, Reads::Nibbles | Reads::Window) {
            for i in 0..4 {
                a[i].iter_mut().for_each(|mask| *mask &= 0xF0);
                d[i].iter_mut().for_each(|mask| *mask &= if reads == Reads::Window { 0x07 >> i } else { 0 });
                for bit in 0..usize::from(index_bits) {
                    let word = u32::from(d[i][bit]) << 16 | u32::from(c[i][bit]) << 8 | u32::from(a[i][bit]);
                    (a[i + 4][bit], c[i + 4][bit], d[i + 4][bit]) = ((word >> 4) as u8, (word >> 12) as u8, 0);
                }
            }
        }
        if matches!(reads, Reads::Nibbles | Reads::Window) && matches!(raw_bits, 1..=4) && index_bits >= 4 && rng.random() {
            let others = usize::from(index_bits - 4);
            for i in 0..8 {
                a[i][..others].iter_mut().for_each(|mask| *mask &= if i < 4 { 0xF0 } else { 0x0F });
                [&mut c[i], &mut d[i]].into_iter().for_each(|masks| masks[..others].fill(0));
            }
            let mut table =
                |bits: u8, most: i8| antisymmetric(&(0..1 << (bits - 1)).map(|_| rng.random_range(-most..=most)).collect::<Vec<i8>>());
            let (first, second) = (table(4, 31), table(raw_bits + index_bits - 4, tables::PAIRED_MOST - 31));
            let levels = second.iter().flat_map(|s| first.iter().map(move |f| f + s)).collect();
            return LinearCode { path_bits, raw_bits, index_bits, a, c, d, levels: vec![levels], unit: 1.0 };
        }
        let most = if rng.random() { 127 } else { tables::PAIRED_MOST };
        let mut half = || (0..1 << (raw_bits + index_bits - 1)).map(|_| rng.random_range(-most..=most)).collect::<Vec<i8>>();
        let tables = if own_tables { positions } else { 1 };
        let levels = (0..tables).map(|_| antisymmetric(&half())).collect();
        LinearCode { path_bits, raw_bits, index_bits, a, c, d, levels, unit: 1.0 }
    }

    /// Every instruction set and vector width against the narrowest portable one, which the tests of whole matrices check against the definition.
    fn compare(rng: &mut ChaCha8Rng, code: Option<&LinearCode>) {
        let width = code.map_or(8, |c| usize::from(c.bits()));
        let (blocks, groups) = (rng.random_range(1..4), rng.random_range(1..80));
        let mut bytes = |len: usize| (0..len).map(|_| rng.random::<u8>()).collect::<Vec<u8>>();
        let (codes, before) = (bytes(blocks * groups * width * VECTOR), [bytes(groups * VECTOR), bytes(groups * VECTOR)]);
        let tables = [false, true].map(|signed| Tables::new(code, signed));
        // Two panels, up to group `middle` and from it.
        let panel = |kernels: &Kernels, blocks: Range<usize>, (all, middle): (usize, usize), second: bool| {
            let own = if second { middle..groups } else { 0..middle };
            let start = own.start * all * width * VECTOR;
            let codes = &codes[start..start + own.len() * all * width * VECTOR];
            Blocks {
                codes: codes.as_ptr(),
                blocks,
                block_bytes: own.len() * width * VECTOR,
                groups: own,
                ahead: Ahead { end: codes.as_ptr_range().end, len: codes.len(), gap: 0 },
                before_next: Lines { first: codes.as_ptr(), step: width * VECTOR, count: 1 },
                before_first: [0, 1].map(|age: usize| before[age].as_ptr()),
                tables: &tables[usize::from(kernels.signed)],
            }
        };
        for lanes in [16, 8, 4, 1] {
            let mut paths = vec![portable32_kernels::select(code), portable64_kernels::select(code)];
            paths.extend(Isa::ALL.into_iter().filter(|isa| isa.is_available()).map(|isa| select(isa, code, lanes)));
            let tiles = Tiles::new(Isa::best(), FEWEST_IN_TILES);
            let columns = groups * VECTOR / lanes;
            let count = rng.random_range(1..40);
            let start = |tokens: usize| {
                let mut x = Activations::default();
                x.start(tokens, columns, lanes, 0.25, tables[0].most);
                x
            };
            let mut all = start(count);
            let mut each = Vec::new();
            for token in 0..count {
                // Some tokens have outliers and so a second input, some are zero in many sections, some have the largest sums there are.
                let outlier = rng.random_range(0..2 * columns);
                let zero = if rng.random() { 0..columns } else { 0..rng.random_range(0..=columns) };
                let largest = [None, None, Some(1.0), Some(-1.0)][rng.random_range(0..4)];
                let value = |j| match j {
                    _ if j == outlier => 100.0,
                    _ if zero.contains(&j) => 0.0,
                    _ => largest.unwrap_or_else(|| rng.random_range(-1.0..1.0)),
                };
                let values: Vec<f32> = (0..columns).map(value).collect();
                all.put(token, |section| section_of(&values, section));
                let mut one = start(1);
                one.put(0, |section| section_of(&values, section));
                one.finish();
                each.push(one);
            }
            all.finish();
            let x = all.inputs();
            let middle = groups.min(lanes * rng.random_range(0..=x.sections()));
            let panels = |kernels: &Kernels, from: usize| {
                let own = [false, true].map(|second| panel(kernels, from..blocks, (blocks, middle), second));
                own.into_iter().filter(|panel| !panel.groups.is_empty())
            };
            let one_by_one = |kernels: &Kernels| {
                let mut out: Vec<Partial> = vec![Aligned([[1.0; 16]; 8]); blocks * count];
                for (token, x) in each.iter().enumerate() {
                    let mut of_token = vec![Aligned([[1.0; 16]; 8]); blocks];
                    for panel in panels(kernels, 0) {
                        // SAFETY: `codes` has `groups` units of the code for each row block, `before` and the inputs as many vectors.
                        unsafe { kernels.dot(&panel, &x.inputs(), &mut of_token) };
                    }
                    (0..).zip(of_token).for_each(|(block, partial): (usize, _)| out[block * count + token] = partial);
                }
                out
            };
            let together = |kernels: &Kernels| {
                let mut out: Vec<Partial> = vec![Aligned([[1.0; 16]; 8]); blocks * count];
                // Each row block by itself.
                for (block, out) in out.chunks_exact_mut(count).enumerate() {
                    for panel in panels(kernels, block) {
                        // SAFETY: as above.
                        unsafe { kernels.dot_many(&panel, &x, &mut [[Aligned([[0; VECTOR]; 8]); 16]; SECTIONS], &tiles, out) };
                    }
                }
                out
            };
            let expected = one_by_one(&portable_kernels::select(code));
            assert!(
                x.scales.iter().all(|s| *s == 0.0) || expected.iter().flat_map(|rows| rows.as_flattened()).any(|v| *v != 1.0),
                "{code:?}"
            );
            assert!(paths.iter().all(|kernels| one_by_one(kernels) == expected), "{lanes} lanes, {code:?}");
            paths.push(portable_kernels::select(code));
            assert!(paths.iter().all(|kernels| together(kernels) == expected), "{lanes} lanes, {code:?}");
        }
    }

    #[test]
    fn all_vector_widths_agree() {
        let mut rng = ChaCha8Rng::seed_from_u64(1);
        for (path_bits, raw_bits) in [(1, 0), (1, 1), (1, 2), (1, 3), (1, 4), (1, 5), (2, 0), (2, 1), (2, 2), (2, 3), (2, 4)] {
            for index_bits in 1..=8 - raw_bits {
                for reads in
                    [Reads::TwoBytes, Reads::Nibbles, Reads::Window, Reads::ThreeBytes].into_iter().take(if path_bits == 1 { 4 } else { 1 })
                {
                    let code = random_code(&mut rng, path_bits, raw_bits, index_bits, reads);
                    code.validate().unwrap();
                    compare(&mut rng, Some(&code));
                }
            }
        }
        for bits in 1..=6 {
            compare(&mut rng, Some(&LinearCode::scalar(bits)));
        }
        compare(&mut rng, None);
    }
}
