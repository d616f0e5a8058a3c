//! Byte vectors as plain arrays of 16, 32 or 64 bytes: the oracle of all other paths.
use super::tables::{Map, Tables};
use super::vector::Vector;

/// `N` bytes.
pub(super) struct Portable<const N: usize>;

macro_rules! portable {
    ($bytes:literal, $sums:literal, $rows:literal, $merges:literal, $split:literal) => {
        impl Vector for Portable<$bytes> {
            type V = [u8; $bytes];
            type Sums = [i32; $sums];
            type Floats = [f32; $sums];
            type Level = [u8; $bytes];
            type Activations = [u8; $bytes];
            type Bytes = [u8; $bytes];
            type Split = [u8; $bytes];
            type Kept = ();
            const BYTES: usize = $bytes;
            const ROWS: usize = $rows;
            const TABLE_BITS: usize = 8;
            const SIGNED: bool = false;
            const MERGES: bool = $merges;
            const SPLIT: bool = $split;

            #[inline(always)]
            unsafe fn load(p: *const u8) -> Self::V {
                p.cast::<Self::V>().read_unaligned()
            }
            #[inline(always)]
            unsafe fn store(p: *mut u8, v: Self::V) {
                p.cast::<Self::V>().write_unaligned(v)
            }
            #[inline(always)]
            unsafe fn repeat4(p: *const u8) -> Self::V {
                let four = p.cast::<[u8; 4]>().read_unaligned();
                std::array::from_fn(|i| four[i % 4])
            }
            #[inline(always)]
            unsafe fn repeat8(p: *const u8) -> Self::V {
                let eight = p.cast::<[u8; 8]>().read_unaligned();
                std::array::from_fn(|i| eight[i % 8])
            }
            #[inline(always)]
            unsafe fn load_floats(p: *const f32) -> Self::Floats {
                p.cast::<Self::Floats>().read_unaligned()
            }
            #[inline(always)]
            unsafe fn store_floats(p: *mut f32, floats: Self::Floats) {
                p.cast::<Self::Floats>().write_unaligned(floats)
            }
            #[inline(always)]
            unsafe fn activations(v: Self::V) -> Self::V {
                v
            }
            #[inline(always)]
            unsafe fn start(v: Self::V) -> Self::Sums {
                (&raw const v).cast::<Self::Sums>().read_unaligned()
            }
            #[inline(always)]
            unsafe fn dot(mut sums: Self::Sums, levels: Self::V, x: Self::V) -> Self::Sums {
                for (i, sum) in sums.iter_mut().enumerate() {
                    for k in 4 * i..4 * i + 4 {
                        *sum += i32::from(levels[k]) * i32::from(x[k] as i8);
                    }
                }
                sums
            }
            #[inline(always)]
            unsafe fn add_scaled(mut floats: Self::Floats, sums: Self::Sums, scale: f32) -> Self::Floats {
                for (float, sum) in floats.iter_mut().zip(sums) {
                    *float = (sum as f32).mul_add(scale, *float);
                }
                floats
            }
            #[inline(always)]
            unsafe fn store_levels(p: *mut u8, levels: Self::V) {
                Self::store(p, levels)
            }
            #[inline(always)]
            unsafe fn from_biased(v: Self::V) -> Self::V {
                v
            }
            #[inline(always)]
            unsafe fn from_signed(v: Self::V) -> Self::V {
                v.map(|b| b ^ 0x80)
            }
            #[inline(always)]
            unsafe fn bytes(v: Self::V) -> Self::V {
                v
            }
            #[inline(always)]
            unsafe fn dot_bytes(sums: Self::Sums, levels: Self::V, x: Self::V) -> Self::Sums {
                Self::dot(sums, levels, x)
            }
            #[inline(always)]
            unsafe fn merge<const LOW: u8>(high: Self::V, low: Self::V) -> Self::V {
                std::array::from_fn(|i| high[i] & !LOW | low[i] & LOW)
            }
            #[inline(always)]
            unsafe fn down(v: Self::V) -> Self::V {
                v.map(|b| b.rotate_right(4))
            }
            #[inline(always)]
            unsafe fn up(v: Self::V) -> Self::V {
                v.map(|b| b.rotate_left(4))
            }
            #[inline(always)]
            unsafe fn table(p: *const u8) -> Self::V {
                std::array::from_fn(|i| *p.add(i % 16))
            }
            #[inline(always)]
            unsafe fn nibbles(v: Self::V) -> [Self::V; 2] {
                [v.map(|b| b & 15), v.map(|b| b >> 4)]
            }
            #[inline(always)]
            unsafe fn look_up(table: Self::V, nibbles: Self::V) -> Self::V {
                nibbles.map(|i| table[usize::from(i)])
            }
            #[inline(always)]
            unsafe fn look_up_two<const NARROW: bool>(table: Self::V, indices: Self::V) -> [Self::V; 2] {
                Self::nibbles(indices).map(|i| Self::look_up(table, i))
            }
            #[inline(always)]
            unsafe fn start_halves(v: Self::V) -> Self::V {
                let mut halves = v;
                for pair in halves.as_chunks_mut::<2>().0 {
                    *pair = (i16::from_ne_bytes(*pair) << 7).to_ne_bytes();
                }
                halves
            }
            #[inline(always)]
            unsafe fn dot_halves(mut halves: Self::V, levels: Self::V, x: Self::V) -> Self::V {
                for (i, half) in halves.as_chunks_mut::<2>().0.iter_mut().enumerate() {
                    let product = |k: usize| i16::from(levels[k]).wrapping_mul(i16::from(x[k] as i8));
                    *half = i16::from_ne_bytes(*half).wrapping_add(product(2 * i)).wrapping_add(product(2 * i + 1)).to_ne_bytes();
                }
                halves
            }
            #[inline(always)]
            unsafe fn add_halves(mut sums: Self::Sums, halves: Self::V) -> Self::Sums {
                for (sum, halves) in sums.iter_mut().zip(halves.as_chunks::<4>().0) {
                    *sum += halves.as_chunks::<2>().0.iter().map(|half| i32::from(i16::from_ne_bytes(*half))).sum::<i32>();
                }
                sums
            }
            #[inline(always)]
            unsafe fn zero() -> Self::Sums {
                [0; $sums]
            }
            #[inline(always)]
            unsafe fn split(v: Self::V) -> Self::Split {
                v
            }
            #[inline(always)]
            unsafe fn map(map: &Map, v: Self::Split) -> Self::V {
                v.map(|b| map.low[usize::from(b & 15)] ^ map.high[usize::from(b >> 4)])
            }
            #[inline(always)]
            unsafe fn map_nibble(map: &Map, v: Self::Split, high: bool) -> Self::V {
                v.map(|b| if high { map.high[usize::from(b >> 4)] } else { map.low[usize::from(b & 15)] })
            }
            #[inline(always)]
            unsafe fn xor(a: Self::V, b: Self::V) -> Self::V {
                std::array::from_fn(|i| a[i] ^ b[i])
            }
            #[inline(always)]
            unsafe fn level<const BITS: usize>(table: &[u8; 256], index: Self::V) -> Self::V {
                index.map(|i| table[usize::from(i)])
            }
            #[inline(always)]
            unsafe fn keep(_: &Tables) {}
            #[inline(always)]
            unsafe fn levels_of_pair<const PART: usize, const NARROW: bool>(_: &(), tables: &Tables, indices: Self::V) -> [Self::V; 2] {
                let table = &tables.levels[0][64 * PART..];
                [indices.map(|i| table[usize::from(i & 15)]), indices.map(|i| table[usize::from(i >> 4)])]
            }
            #[inline(always)]
            unsafe fn add_levels(a: Self::V, b: Self::V) -> Self::V {
                std::array::from_fn(|i| a[i].wrapping_add(b[i]))
            }
            #[inline(always)]
            unsafe fn prefetch(_: *const u8) {}
            #[inline(always)]
            unsafe fn prefetch_second_level(_: *const u8) {}
        }
    };
}

portable!(16, 4, 4, false, false);
portable!(32, 8, 4, false, true);
portable!(64, 16, 8, true, false);
