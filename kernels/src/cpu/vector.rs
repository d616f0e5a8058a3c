//! Byte vectors of any width and instruction set: what the kernels are made of.
use super::tables::{Map, Tables};

/// Byte vectors of one instruction set.
///
/// # Safety
/// All functions: the CPU must have the instruction set, and pointers must be valid for what they read or write (unaligned).
pub(super) trait Vector {
    /// `BYTES` bytes.
    type V: Copy;
    /// `BYTES / 4` sums of 32 bits.
    type Sums: Copy;
    /// As many floats.
    type Floats: Copy;
    /// `BYTES` levels from a table as [`dot`](Self::dot) takes them.
    type Level: Copy;
    /// `BYTES` activations in the form that it takes.
    type Activations: Copy;
    /// `BYTES` levels from memory as [`dot_bytes`](Self::dot_bytes) takes them.
    type Bytes: Copy;
    /// Bytes in the form that linear maps read.
    type Split: Copy;
    /// What of a code's tables stays in registers from one column group to the next.
    type Kept: Copy;
    /// 16, 32 or 64.
    const BYTES: usize;
    /// Rows of a block that are summed in registers at once: 8 where a vector is all 64 bytes, otherwise 4.
    const ROWS: usize;
    /// A map reads a whole byte as fast as a nibble: nibbles are brought together in one byte before they are mapped.
    const MERGES: bool;
    /// Maps are looked up by nibbles.
    const SPLIT: bool;
    /// Index bits of the smallest level table look-up.
    const TABLE_BITS: usize;
    /// Tables and looked-up vectors hold levels as they are (those for two rows at once: with 64 added); otherwise with 128
    /// added, because products are of unsigned bytes.
    const SIGNED: bool;

    unsafe fn load(p: *const u8) -> Self::V;
    unsafe fn store(p: *mut u8, v: Self::V);
    /// The same 4 bytes in every 32-bit lane.
    unsafe fn repeat4(p: *const u8) -> Self::V;
    /// The same 8 bytes in every 64-bit lane.
    unsafe fn repeat8(p: *const u8) -> Self::V;
    unsafe fn load_floats(p: *const f32) -> Self::Floats;
    unsafe fn store_floats(p: *mut f32, floats: Self::Floats);
    unsafe fn activations(v: Self::V) -> Self::Activations;
    /// Sums before the first product: 0 if [`SIGNED`](Self::SIGNED), otherwise these 32-bit numbers, which make good for the 128 in every level.
    unsafe fn start(v: Self::V) -> Self::Sums;
    /// Adds the products of four levels and four activations to each sum.
    unsafe fn dot(sums: Self::Sums, levels: Self::Level, x: Self::Activations) -> Self::Sums;
    /// `floats + scale sums`, rounded once.
    unsafe fn add_scaled(floats: Self::Floats, sums: Self::Sums, scale: f32) -> Self::Floats;
    /// Writes levels, with 128 added unless [`SIGNED`](Self::SIGNED).
    unsafe fn store_levels(p: *mut u8, levels: Self::Level);
    /// What [`store_levels`](Self::store_levels) would have written for levels with 128 added.
    unsafe fn from_biased(v: Self::V) -> Self::V;
    /// The same for levels as they are.
    unsafe fn from_signed(v: Self::V) -> Self::V;
    /// What it has written.
    unsafe fn bytes(v: Self::V) -> Self::Bytes;
    /// [`dot`](Self::dot) of such levels.
    unsafe fn dot_bytes(sums: Self::Sums, levels: Self::Bytes, x: Self::V) -> Self::Sums;
    unsafe fn split(v: Self::V) -> Self::Split;
    unsafe fn map(map: &Map, v: Self::Split) -> Self::V;
    /// A map that reads the high or the low nibble alone.
    unsafe fn map_nibble(map: &Map, v: Self::Split, high: bool) -> Self::V;
    /// A map that does not read the two highest bits.
    #[inline(always)]
    unsafe fn map_low(map: &Map, v: Self::Split) -> Self::V {
        Self::map(map, v)
    }
    unsafe fn xor(a: Self::V, b: Self::V) -> Self::V;
    /// Those bits of `low` that are set in `LOW`, and the other ones of `high`. Called only if [`MERGES`](Self::MERGES), as are the following two functions.
    unsafe fn merge<const LOW: u8>(high: Self::Split, low: Self::Split) -> Self::Split;
    /// The high nibbles as low ones; the others are anything.
    unsafe fn down(v: Self::Split) -> Self::Split;
    /// The low nibbles as high ones; the others are anything.
    unsafe fn up(v: Self::Split) -> Self::Split;
    /// Table look-up; all indices are below `2^BITS`. A table of more than 16 entries is antisymmetric in the highest bit of the index.
    unsafe fn level<const BITS: usize>(table: &[u8; 256], index: Self::V) -> Self::Level;
    /// What is loaded once for a row block.
    unsafe fn keep(tables: &Tables) -> Self::Kept;
    /// [`map`](Self::map) of the previous path byte to the index at a row position.
    #[inline(always)]
    unsafe fn map_previous(_: &Self::Kept, tables: &Tables, position: usize, v: Self::Split) -> Self::V {
        Self::map(&tables.previous[position], v)
    }
    /// [`level`](Self::level) at a row position. All positions have the same table unless `BITS` are [`OWN_TABLES`](super::index::OWN_TABLES).
    #[inline(always)]
    unsafe fn level_at<const BITS: usize>(_: &Self::Kept, tables: &Tables, position: usize, index: Self::V) -> Self::Level {
        Self::level::<BITS>(&tables.levels[position], index)
    }
    /// Levels of two rows with indices of 4 bits, the first in the low nibbles, from the table (of 16, repeated) at `64 * PART`. All positions have the same one.
    /// `NARROW`: the indices have 3 bits, those above are clear.
    /// Kernels that do so call the following functions.
    unsafe fn levels_of_pair<const PART: usize, const NARROW: bool>(
        kept: &Self::Kept,
        tables: &Tables,
        indices: Self::V,
    ) -> [Self::Level; 2];
    /// Sums of levels, of which only one may have something added.
    unsafe fn add_levels(a: Self::Level, b: Self::Level) -> Self::Level;
    /// [`activations`](Self::activations).
    #[inline(always)]
    unsafe fn activations_paired(v: Self::V) -> Self::Activations {
        Self::activations(v)
    }
    /// [`start`](Self::start).
    #[inline(always)]
    unsafe fn start_paired(v: Self::V) -> Self::Sums {
        Self::start(v)
    }
    /// [`dot`](Self::dot).
    #[inline(always)]
    unsafe fn dot_paired(sums: Self::Sums, levels: Self::Level, x: Self::Activations) -> Self::Sums {
        Self::dot(sums, levels, x)
    }
    /// [`dot_bytes`](Self::dot_bytes) of levels that [`store_paired`](Self::store_paired) has written.
    #[inline(always)]
    unsafe fn dot_bytes_paired(sums: Self::Sums, levels: Self::V, x: Self::V) -> Self::Sums {
        Self::dot_bytes(sums, Self::bytes(levels), x)
    }
    /// [`store_levels`](Self::store_levels).
    #[inline(always)]
    unsafe fn store_paired(p: *mut u8, levels: Self::Level) {
        Self::store_levels(p, levels)
    }
    /// 16 bytes as a table, whose look-ups are fast. Called only if [`SPLIT`](Self::SPLIT), as are the following functions.
    unsafe fn table(_p: *const u8) -> Self::V {
        unreachable!("maps are not looked up by nibbles")
    }
    /// Low and high nibbles of all bytes.
    unsafe fn nibbles(_v: Self::V) -> [Self::V; 2] {
        unreachable!("maps are not looked up by nibbles")
    }
    /// Table entries at bytes below 16.
    unsafe fn look_up(_table: Self::V, _nibbles: Self::V) -> Self::V {
        unreachable!("maps are not looked up by nibbles")
    }
    /// [`levels_of_pair`](Self::levels_of_pair) of a table.
    unsafe fn look_up_two<const NARROW: bool>(_table: Self::V, _indices: Self::V) -> [Self::Level; 2] {
        unreachable!("maps are not looked up by nibbles")
    }
    /// 16-bit sums of two products before the first one: these numbers are minus the sums of their activations.
    unsafe fn start_halves(_v: Self::V) -> Self::V {
        unreachable!("maps are not looked up by nibbles")
    }
    /// Adds the products of two levels, looked up two rows at once, and two activations to each 16-bit sum.
    unsafe fn dot_halves(_halves: Self::V, _levels: Self::Level, _x: Self::Activations) -> Self::V {
        unreachable!("maps are not looked up by nibbles")
    }
    /// Adds two 16-bit sums to each sum.
    unsafe fn add_halves(_sums: Self::Sums, _halves: Self::V) -> Self::Sums {
        unreachable!("maps are not looked up by nibbles")
    }
    /// Sums of nothing.
    unsafe fn zero() -> Self::Sums {
        unreachable!("maps are not looked up by nibbles")
    }
    /// Asks for the line of `p`.
    unsafe fn prefetch(p: *const u8);
    /// The same, no further than to the second-level cache.
    unsafe fn prefetch_second_level(p: *const u8);
}
