//! Byte vectors of x86-64: AVX2, AVX2 with GFNI and VNNI, AVX-512 with VBMI, VNNI and GFNI.

use super::index::OWN_TABLES;
use super::inputs::Aligned;
use super::tables::{Map, Tables};
use super::vector::Vector;
use std::arch::x86_64::*;

/// 32 bytes; linear maps by nibble shuffles, products by `VPMADDUBSW`.
pub(super) struct Avx2;
/// 32 bytes; linear maps by `VGF2P8AFFINEQB`, products by `VPDPBUSD`.
pub(super) struct Avx2Gfni;
/// 64 bytes; linear maps by `VGF2P8AFFINEQB`, levels by `VPERMB`, products by `VPDPBUSD`.
pub(super) struct Avx512;

/// What stays in registers beside the sums of eight rows: more would not fit.
#[derive(Clone, Copy)]
pub(super) struct Kept {
    /// Matrices of the first row positions.
    previous: [__m512i; 6],
    /// 128 levels at most; of 256 half.
    levels: [__m512i; 2],
}

#[inline(always)]
unsafe fn broadcast16(table: &[u8; 16]) -> __m256i {
    _mm256_broadcastsi128_si256(_mm_loadu_si128(table.as_ptr().cast()))
}

/// Looks up levels, 128 added, in the first half of a table of 256, in the first quarter (up to 6 bits), or in both quarters (7 bits).
#[inline(always)]
unsafe fn level_of<const BITS: usize>(table: [__m512i; 2], index: __m512i) -> __m512i {
    match BITS {
        8 => {
            // Half a table, and where bit 7 is set the opposite level; one with 128 added is negated modulo 256.
            let level = _mm512_permutex2var_epi8(table[0], index, table[1]);
            _mm512_mask_sub_epi8(level, _mm512_movepi8_mask(index), _mm512_setzero_si512(), level)
        }
        7 => _mm512_permutex2var_epi8(table[0], index, table[1]),
        _ => _mm512_permutexvar_epi8(index, table[0]),
    }
}

/// Look-ups in 16, 32, 64 and 128 entries from sixteenth `at` of a table: shuffles of 16, blended by the index bits above, each moved to
/// bit 7 of its byte. `low` is the index with bit 7 clear: a shuffle gives 0 where it is set.
macro_rules! look_up {
    ($name:ident, $half:ident, $sixteenths:literal, $shift:literal) => {
        #[inline(always)]
        unsafe fn $name(table: &[u8; 256], at: usize, low: __m256i, index: __m256i) -> __m256i {
            let (lower, upper) = ($half(table, at, low, index), $half(table, at + $sixteenths / 2, low, index));
            _mm256_blendv_epi8(lower, upper, _mm256_slli_epi16(index, $shift))
        }
    };
}

#[inline(always)]
unsafe fn look_up_16(table: &[u8; 256], at: usize, low: __m256i, _index: __m256i) -> __m256i {
    _mm256_shuffle_epi8(broadcast16(&table.as_chunks::<16>().0[at]), low)
}
look_up!(look_up_32, look_up_16, 2, 3);
look_up!(look_up_64, look_up_32, 4, 2);
look_up!(look_up_128, look_up_64, 8, 1);

/// Looks up half a table of `BITS - 1` index bits, and where bit 7 of the second vector is set, the level is the opposite one. Its
/// lowest bit is clear.
#[inline(always)]
unsafe fn half_level<const BITS: usize>(table: &[u8; 256], index: __m256i) -> [__m256i; 2] {
    match BITS {
        5 => [look_up_16(table, 0, index, index), _mm256_slli_epi16::<3>(index)],
        6 => [look_up_32(table, 0, index, index), _mm256_slli_epi16::<2>(index)],
        7 => [look_up_64(table, 0, index, index), _mm256_slli_epi16::<1>(index)],
        _ => {
            let low = look_up_128(table, 0, _mm256_and_si256(index, _mm256_set1_epi8(15)), index);
            [low, _mm256_and_si256(index, _mm256_set1_epi8(-128))]
        }
    }
}

/// [`Vector::levels_of_pair`] as they stand in the table; `second` is the second row's index, `first` any byte with the first row's in the low nibble.
#[inline(always)]
unsafe fn pair<const PART: usize, const NARROW: bool>(tables: &Tables, first: __m256i, second: __m256i) -> [__m256i; 2] {
    let table = broadcast16(&tables.levels[0].as_chunks::<16>().0[4 * PART]);
    // A shuffle gives 0 where bit 7 is set, and does not look at bits 4 to 6.
    let first = if NARROW { first } else { _mm256_and_si256(first, _mm256_set1_epi8(15)) };
    [_mm256_shuffle_epi8(table, first), _mm256_shuffle_epi8(table, second)]
}

macro_rules! avx2_common {
    () => {
        type V = __m256i;
        type Sums = __m256i;
        type Floats = __m256;
        type Kept = ();
        const BYTES: usize = 32;
        const ROWS: usize = 4;
        const TABLE_BITS: usize = 5;

        #[inline(always)]
        unsafe fn load(p: *const u8) -> __m256i {
            _mm256_loadu_si256(p.cast())
        }
        #[inline(always)]
        unsafe fn store(p: *mut u8, v: __m256i) {
            _mm256_storeu_si256(p.cast(), v)
        }
        #[inline(always)]
        unsafe fn repeat4(p: *const u8) -> __m256i {
            _mm256_set1_epi32(p.cast::<i32>().read_unaligned())
        }
        #[inline(always)]
        unsafe fn repeat8(p: *const u8) -> __m256i {
            _mm256_set1_epi64x(p.cast::<i64>().read_unaligned())
        }
        #[inline(always)]
        unsafe fn load_floats(p: *const f32) -> __m256 {
            _mm256_loadu_ps(p)
        }
        #[inline(always)]
        unsafe fn store_floats(p: *mut f32, floats: __m256) {
            _mm256_storeu_ps(p, floats)
        }
        #[inline(always)]
        unsafe fn add_scaled(floats: __m256, sums: __m256i, scale: f32) -> __m256 {
            _mm256_fmadd_ps(_mm256_cvtepi32_ps(sums), _mm256_set1_ps(scale), floats)
        }
        #[inline(always)]
        unsafe fn xor(a: __m256i, b: __m256i) -> __m256i {
            _mm256_xor_si256(a, b)
        }
        #[inline(always)]
        unsafe fn keep(_: &Tables) {}
        #[inline(always)]
        unsafe fn prefetch(p: *const u8) {
            _mm_prefetch::<_MM_HINT_T0>(p.cast())
        }
        #[inline(always)]
        unsafe fn prefetch_second_level(p: *const u8) {
            _mm_prefetch::<_MM_HINT_T1>(p.cast())
        }
    };
}

/// 16-bit numbers shifted by 4 bits, by a multiplication: Zen 3 shifts with the two units that look up.
#[inline]
#[target_feature(enable = "avx2")]
unsafe fn sixteenth(v: __m256i) -> __m256i {
    static SIXTEENTH: Aligned<[u16; 16]> = Aligned([1 << 12; 16]);
    let shifted;
    // The compiler would make it a shift.
    std::arch::asm!("vpmulhuw {0}, {1}, [rip + {2}]", out(ymm_reg) shifted, in(ymm_reg) v, sym SIXTEENTH, options(pure, readonly, nostack, preserves_flags));
    shifted
}

impl Vector for Avx2 {
    avx2_common!();
    /// Low and high nibbles.
    type Split = [__m256i; 2];
    /// Levels, and the sign that they still get from bit 7; bit 0 is clear.
    type Level = [__m256i; 2];
    /// Magnitudes, and the activations with bit 0 set.
    type Activations = [__m256i; 2];
    /// Magnitudes, and the levels.
    type Bytes = [__m256i; 2];
    const SIGNED: bool = true;
    const MERGES: bool = false;
    const SPLIT: bool = true;

    #[inline(always)]
    unsafe fn activations(v: __m256i) -> Self::Activations {
        [_mm256_abs_epi8(v), _mm256_or_si256(v, _mm256_set1_epi8(1))]
    }
    #[inline(always)]
    unsafe fn start(_: __m256i) -> __m256i {
        _mm256_setzero_si256()
    }
    #[inline(always)]
    unsafe fn dot(sums: __m256i, [levels, by]: Self::Level, [x, sign]: Self::Activations) -> __m256i {
        // Both signs in one go; what gives it is never 0. Cannot saturate: 2 * 127 * 127 < 2^15.
        let pairs = _mm256_maddubs_epi16(x, _mm256_sign_epi8(levels, _mm256_xor_si256(by, sign)));
        _mm256_add_epi32(sums, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)))
    }
    #[inline(always)]
    unsafe fn store_levels(p: *mut u8, [levels, by]: Self::Level) {
        Self::store(p, _mm256_sign_epi8(levels, _mm256_or_si256(by, _mm256_set1_epi8(1))))
    }
    #[inline(always)]
    unsafe fn from_biased(v: __m256i) -> __m256i {
        _mm256_xor_si256(v, _mm256_set1_epi8(-128))
    }
    #[inline(always)]
    unsafe fn from_signed(v: __m256i) -> __m256i {
        v
    }
    #[inline(always)]
    unsafe fn bytes(v: __m256i) -> Self::Bytes {
        [_mm256_abs_epi8(v), v]
    }
    #[inline(always)]
    unsafe fn dot_bytes(sums: __m256i, [magnitudes, levels]: Self::Bytes, x: __m256i) -> __m256i {
        let pairs = _mm256_maddubs_epi16(magnitudes, _mm256_sign_epi8(x, levels));
        _mm256_add_epi32(sums, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)))
    }
    #[inline(always)]
    unsafe fn level<const BITS: usize>(table: &[u8; 256], index: __m256i) -> Self::Level {
        half_level::<BITS>(table, index)
    }
    #[inline(always)]
    unsafe fn levels_of_pair<const PART: usize, const NARROW: bool>(_: &(), tables: &Tables, indices: __m256i) -> [Self::Level; 2] {
        let second = _mm256_srli_epi16::<4>(indices);
        let second = if NARROW { second } else { _mm256_and_si256(second, _mm256_set1_epi8(15)) };
        let [first, second] = pair::<PART, NARROW>(tables, indices, second);
        [[first, _mm256_setzero_si256()], [second, _mm256_setzero_si256()]]
    }
    #[inline(always)]
    unsafe fn add_levels(a: Self::Level, b: Self::Level) -> Self::Level {
        [_mm256_add_epi8(a[0], b[0]), a[1]]
    }
    #[inline(always)]
    unsafe fn activations_paired(v: __m256i) -> Self::Activations {
        [v, v]
    }
    #[inline(always)]
    unsafe fn start_paired(v: __m256i) -> __m256i {
        // 128 times the activations, for levels with 64 added.
        _mm256_srai_epi32::<1>(v)
    }
    #[inline(always)]
    unsafe fn dot_paired(sums: __m256i, [levels, _]: Self::Level, [x, _]: Self::Activations) -> __m256i {
        _mm256_add_epi32(sums, _mm256_madd_epi16(_mm256_maddubs_epi16(levels, x), _mm256_set1_epi16(1)))
    }
    #[inline(always)]
    unsafe fn dot_bytes_paired(sums: __m256i, levels: __m256i, x: __m256i) -> __m256i {
        Self::dot_paired(sums, [levels; 2], [x; 2])
    }
    #[inline(always)]
    unsafe fn store_paired(p: *mut u8, [levels, _]: Self::Level) {
        Self::store(p, levels)
    }
    #[inline(always)]
    unsafe fn merge<const LOW: u8>(_: Self::Split, _: Self::Split) -> Self::Split {
        unreachable!("nibbles are apart already")
    }
    #[inline(always)]
    unsafe fn down(_: Self::Split) -> Self::Split {
        unreachable!("nibbles are apart already")
    }
    #[inline(always)]
    unsafe fn up(_: Self::Split) -> Self::Split {
        unreachable!("nibbles are apart already")
    }
    #[inline(always)]
    unsafe fn split(v: __m256i) -> Self::Split {
        let nibble = _mm256_set1_epi8(15);
        [_mm256_and_si256(v, nibble), _mm256_and_si256(_mm256_srli_epi16(v, 4), nibble)]
    }
    #[inline(always)]
    unsafe fn map(map: &Map, [low, high]: Self::Split) -> __m256i {
        _mm256_xor_si256(
            _mm256_shuffle_epi8(broadcast16(&map.low.as_chunks().0[0]), low),
            _mm256_shuffle_epi8(broadcast16(&map.high), high),
        )
    }
    #[inline(always)]
    unsafe fn table(p: *const u8) -> __m256i {
        _mm256_broadcastsi128_si256(_mm_loadu_si128(p.cast()))
    }
    #[inline(always)]
    unsafe fn nibbles(v: __m256i) -> [__m256i; 2] {
        let nibble = _mm256_set1_epi8(15);
        [_mm256_and_si256(v, nibble), _mm256_and_si256(sixteenth(v), nibble)]
    }
    #[inline(always)]
    unsafe fn look_up(table: __m256i, nibbles: __m256i) -> __m256i {
        _mm256_shuffle_epi8(table, nibbles)
    }
    #[inline(always)]
    unsafe fn look_up_two<const NARROW: bool>(table: __m256i, indices: __m256i) -> [Self::Level; 2] {
        let second = sixteenth(indices);
        // A shuffle gives 0 where bit 7 is set, and does not look at bits 4 to 6.
        let nibble = |v| if NARROW { v } else { _mm256_and_si256(v, _mm256_set1_epi8(15)) };
        [indices, second].map(|v| [_mm256_shuffle_epi8(table, nibble(v)), _mm256_setzero_si256()])
    }
    #[inline(always)]
    unsafe fn start_halves(v: __m256i) -> __m256i {
        // 64 times, for levels with 64 added.
        _mm256_slli_epi16::<6>(v)
    }
    #[inline(always)]
    unsafe fn dot_halves(halves: __m256i, [levels, _]: Self::Level, [x, _]: Self::Activations) -> __m256i {
        _mm256_add_epi16(halves, _mm256_maddubs_epi16(levels, x))
    }
    #[inline(always)]
    unsafe fn add_halves(sums: __m256i, halves: __m256i) -> __m256i {
        _mm256_add_epi32(sums, _mm256_madd_epi16(halves, _mm256_set1_epi16(1)))
    }
    #[inline(always)]
    unsafe fn zero() -> __m256i {
        _mm256_setzero_si256()
    }
    #[inline(always)]
    unsafe fn map_nibble(map: &Map, [l, h]: Self::Split, high: bool) -> __m256i {
        if high {
            _mm256_shuffle_epi8(broadcast16(&map.high), h)
        } else {
            _mm256_shuffle_epi8(broadcast16(&map.low.as_chunks().0[0]), l)
        }
    }
}

impl Vector for Avx2Gfni {
    avx2_common!();
    type Split = __m256i;
    type Level = __m256i;
    type Activations = __m256i;
    type Bytes = __m256i;
    const SIGNED: bool = false;
    const MERGES: bool = true;
    const SPLIT: bool = false;

    #[inline(always)]
    unsafe fn activations(v: __m256i) -> __m256i {
        v
    }
    #[inline(always)]
    unsafe fn start(v: __m256i) -> __m256i {
        v
    }
    #[inline(always)]
    unsafe fn dot(sums: __m256i, levels: __m256i, x: __m256i) -> __m256i {
        _mm256_dpbusd_avx_epi32(sums, levels, x)
    }
    #[inline(always)]
    unsafe fn store_levels(p: *mut u8, levels: __m256i) {
        Self::store(p, levels)
    }
    #[inline(always)]
    unsafe fn from_biased(v: __m256i) -> __m256i {
        v
    }
    #[inline(always)]
    unsafe fn from_signed(v: __m256i) -> __m256i {
        _mm256_xor_si256(v, _mm256_set1_epi8(-128))
    }
    #[inline(always)]
    unsafe fn bytes(v: __m256i) -> __m256i {
        v
    }
    #[inline(always)]
    unsafe fn dot_bytes(sums: __m256i, levels: __m256i, x: __m256i) -> __m256i {
        Self::dot(sums, levels, x)
    }
    #[inline(always)]
    unsafe fn level<const BITS: usize>(table: &[u8; 256], index: __m256i) -> __m256i {
        let [levels, by] = half_level::<BITS>(table, index);
        // Bytes with 128 added are negated modulo 256.
        _mm256_sign_epi8(levels, _mm256_or_si256(by, _mm256_set1_epi8(1)))
    }
    #[inline(always)]
    unsafe fn levels_of_pair<const PART: usize, const NARROW: bool>(_: &(), tables: &Tables, indices: __m256i) -> [__m256i; 2] {
        // High nibbles as low ones, and nothing else: one linear map.
        let second = match NARROW {
            true => _mm256_srli_epi16::<4>(indices),
            false => _mm256_gf2p8affine_epi64_epi8::<0>(indices, _mm256_set1_epi64x(0x1020_4080_0000_0000)),
        };
        pair::<PART, NARROW>(tables, indices, second)
    }
    #[inline(always)]
    unsafe fn add_levels(a: __m256i, b: __m256i) -> __m256i {
        _mm256_add_epi8(a, b)
    }
    #[inline(always)]
    unsafe fn merge<const LOW: u8>(high: __m256i, low: __m256i) -> __m256i {
        let mask = _mm256_set1_epi8(LOW as i8);
        _mm256_or_si256(_mm256_andnot_si256(mask, high), _mm256_and_si256(mask, low))
    }
    #[inline(always)]
    unsafe fn down(v: __m256i) -> __m256i {
        _mm256_srli_epi16::<4>(v)
    }
    #[inline(always)]
    unsafe fn up(v: __m256i) -> __m256i {
        _mm256_slli_epi16::<4>(v)
    }
    #[inline(always)]
    unsafe fn split(v: __m256i) -> __m256i {
        v
    }
    #[inline(always)]
    unsafe fn map(map: &Map, v: __m256i) -> __m256i {
        _mm256_gf2p8affine_epi64_epi8::<0>(v, _mm256_set1_epi64x(map.matrix as i64))
    }
    #[inline(always)]
    unsafe fn map_nibble(map: &Map, v: __m256i, _high: bool) -> __m256i {
        Self::map(map, v)
    }
}

impl Vector for Avx512 {
    type V = __m512i;
    type Sums = __m512i;
    type Floats = __m512;
    type Split = __m512i;
    type Level = __m512i;
    type Activations = __m512i;
    type Bytes = __m512i;
    type Kept = Kept;
    const SIGNED: bool = false;
    const MERGES: bool = true;
    const SPLIT: bool = false;
    const BYTES: usize = 64;
    const ROWS: usize = 8;
    const TABLE_BITS: usize = 6;

    #[inline(always)]
    unsafe fn load(p: *const u8) -> __m512i {
        _mm512_loadu_si512(p.cast())
    }
    #[inline(always)]
    unsafe fn store(p: *mut u8, v: __m512i) {
        _mm512_storeu_si512(p.cast(), v)
    }
    #[inline(always)]
    unsafe fn repeat4(p: *const u8) -> __m512i {
        _mm512_set1_epi32(p.cast::<i32>().read_unaligned())
    }
    #[inline(always)]
    unsafe fn repeat8(p: *const u8) -> __m512i {
        _mm512_set1_epi64(p.cast::<i64>().read_unaligned())
    }
    #[inline(always)]
    unsafe fn load_floats(p: *const f32) -> __m512 {
        _mm512_loadu_ps(p)
    }
    #[inline(always)]
    unsafe fn store_floats(p: *mut f32, floats: __m512) {
        _mm512_storeu_ps(p, floats)
    }
    #[inline(always)]
    unsafe fn activations(v: __m512i) -> __m512i {
        v
    }
    #[inline(always)]
    unsafe fn start(v: __m512i) -> __m512i {
        v
    }
    #[inline(always)]
    unsafe fn dot(sums: __m512i, levels: __m512i, x: __m512i) -> __m512i {
        _mm512_dpbusd_epi32(sums, levels, x)
    }
    #[inline(always)]
    unsafe fn add_scaled(floats: __m512, sums: __m512i, scale: f32) -> __m512 {
        _mm512_fmadd_ps(_mm512_cvtepi32_ps(sums), _mm512_set1_ps(scale), floats)
    }
    #[inline(always)]
    unsafe fn store_levels(p: *mut u8, levels: __m512i) {
        Self::store(p, levels)
    }
    #[inline(always)]
    unsafe fn from_biased(v: __m512i) -> __m512i {
        v
    }
    #[inline(always)]
    unsafe fn from_signed(v: __m512i) -> __m512i {
        _mm512_xor_si512(v, _mm512_set1_epi8(-128))
    }
    #[inline(always)]
    unsafe fn bytes(v: __m512i) -> __m512i {
        v
    }
    #[inline(always)]
    unsafe fn dot_bytes(sums: __m512i, levels: __m512i, x: __m512i) -> __m512i {
        Self::dot(sums, levels, x)
    }
    #[inline(always)]
    unsafe fn merge<const LOW: u8>(high: __m512i, low: __m512i) -> __m512i {
        _mm512_ternarylogic_epi64(high, low, _mm512_set1_epi8(!LOW as i8), 0xE4)
    }
    #[inline(always)]
    unsafe fn down(v: __m512i) -> __m512i {
        _mm512_srli_epi16::<4>(v)
    }
    #[inline(always)]
    unsafe fn up(v: __m512i) -> __m512i {
        _mm512_slli_epi16::<4>(v)
    }
    #[inline(always)]
    unsafe fn split(v: __m512i) -> __m512i {
        v
    }
    #[inline(always)]
    unsafe fn map(map: &Map, v: __m512i) -> __m512i {
        _mm512_gf2p8affine_epi64_epi8::<0>(v, _mm512_set1_epi64(map.matrix as i64))
    }
    #[inline(always)]
    unsafe fn map_nibble(map: &Map, v: __m512i, high: bool) -> __m512i {
        if high {
            Self::map(map, v)
        } else {
            Self::map_low(map, v)
        }
    }
    #[inline(always)]
    unsafe fn map_low(map: &Map, v: __m512i) -> __m512i {
        // Linear maps have one port on Intel CPUs, look-ups another; Zen 4 has two for either, one of them in common.
        _mm512_permutexvar_epi8(v, _mm512_load_si512(map.low.as_ptr().cast()))
    }
    #[inline(always)]
    unsafe fn xor(a: __m512i, b: __m512i) -> __m512i {
        _mm512_xor_si512(a, b)
    }
    #[inline(always)]
    unsafe fn level<const BITS: usize>(table: &[u8; 256], index: __m512i) -> __m512i {
        level_of::<BITS>([table, &table[64..]].map(|quarter| _mm512_loadu_si512(quarter.as_ptr().cast())), index)
    }
    #[inline(always)]
    unsafe fn keep(tables: &Tables) -> Kept {
        let mut previous = [_mm512_setzero_si512(); 6];
        for (kept, map) in previous.iter_mut().zip(&tables.previous) {
            *kept = _mm512_set1_epi64(map.matrix as i64);
        }
        let levels = tables.levels[0].as_ptr();
        Kept { previous, levels: [_mm512_loadu_si512(levels.cast()), _mm512_loadu_si512(levels.add(64).cast())] }
    }
    #[inline(always)]
    unsafe fn map_previous(kept: &Kept, tables: &Tables, position: usize, v: __m512i) -> __m512i {
        match kept.previous.get(position) {
            Some(matrix) => _mm512_gf2p8affine_epi64_epi8::<0>(v, *matrix),
            None => Self::map(&tables.previous[position], v),
        }
    }
    #[inline(always)]
    unsafe fn level_at<const BITS: usize>(kept: &Kept, tables: &Tables, position: usize, index: __m512i) -> __m512i {
        match BITS {
            OWN_TABLES => Self::level::<8>(&tables.levels[position], index),
            _ => level_of::<BITS>(kept.levels, index),
        }
    }
    #[inline(always)]
    unsafe fn levels_of_pair<const PART: usize, const NARROW: bool>(kept: &Kept, _: &Tables, indices: __m512i) -> [__m512i; 2] {
        // Bits above the index do not matter: the table is repeated.
        let second = _mm512_srli_epi16::<4>(indices);
        [_mm512_permutexvar_epi8(indices, kept.levels[PART]), _mm512_permutexvar_epi8(second, kept.levels[PART])]
    }
    #[inline(always)]
    unsafe fn add_levels(a: __m512i, b: __m512i) -> __m512i {
        _mm512_add_epi8(a, b)
    }
    #[inline(always)]
    unsafe fn prefetch(p: *const u8) {
        _mm_prefetch::<_MM_HINT_T0>(p.cast())
    }
    #[inline(always)]
    unsafe fn prefetch_second_level(p: *const u8) {
        _mm_prefetch::<_MM_HINT_T1>(p.cast())
    }
}
