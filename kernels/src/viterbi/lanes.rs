//! Vectors of 16-bit path costs: 32 lanes on every instruction set.
use super::trellis::LANES;

/// Path costs of [`LANES`] neighbouring states.
///
/// # Safety
/// All functions: the CPU must have the instruction set, and pointers must be valid for what they read or write (unaligned).
pub(super) trait Lanes: Copy {
    unsafe fn load(p: *const u16) -> Self;
    unsafe fn store(self, p: *mut u16);
    unsafe fn splat(v: u16) -> Self;
    /// Lane `l` is lane `l ^ by` of `self`.
    unsafe fn exchange(self, by: usize) -> Self;
    /// Lane `l` is the lane of `self` whose number has bit `BIT` set if `SET` and clear if not, and is `l` otherwise.
    unsafe fn only<const BIT: u32, const SET: bool>(self) -> Self;
    unsafe fn add(self, other: Self) -> Self;
    unsafe fn sub(self, other: Self) -> Self;
    unsafe fn min(self, other: Self) -> Self;
    /// The minimum, and a bit for each lane: 1 where `other` is less.
    unsafe fn choose(self, other: Self) -> (Self, u32);
}

/// Plain Rust.
#[derive(Clone, Copy)]
pub(super) struct Portable([u16; LANES]);

impl Portable {
    #[inline(always)]
    fn map(self, other: Self, f: impl Fn(u16, u16) -> u16) -> Self {
        Portable(std::array::from_fn(|l| f(self.0[l], other.0[l])))
    }
}

impl Lanes for Portable {
    #[inline(always)]
    unsafe fn load(p: *const u16) -> Self {
        Portable(p.cast::<[u16; LANES]>().read_unaligned())
    }
    #[inline(always)]
    unsafe fn store(self, p: *mut u16) {
        p.cast::<[u16; LANES]>().write_unaligned(self.0)
    }
    #[inline(always)]
    unsafe fn splat(v: u16) -> Self {
        Portable([v; LANES])
    }
    #[inline(always)]
    unsafe fn exchange(self, by: usize) -> Self {
        Portable(std::array::from_fn(|l| self.0[(l ^ by) % LANES]))
    }
    #[inline(always)]
    unsafe fn only<const BIT: u32, const SET: bool>(self) -> Self {
        Portable(std::array::from_fn(|l| self.0[l & !(1 << BIT) | usize::from(SET) << BIT]))
    }
    #[inline(always)]
    unsafe fn add(self, other: Self) -> Self {
        self.map(other, u16::wrapping_add)
    }
    #[inline(always)]
    unsafe fn sub(self, other: Self) -> Self {
        self.map(other, u16::wrapping_sub)
    }
    #[inline(always)]
    unsafe fn min(self, other: Self) -> Self {
        self.map(other, u16::min)
    }
    #[inline(always)]
    unsafe fn choose(self, other: Self) -> (Self, u32) {
        let less = (0..LANES).fold(0, |bits, l| bits | u32::from(other.0[l] < self.0[l]) << l);
        (self.min(other), less)
    }
}

#[cfg(target_arch = "x86_64")]
pub(super) use x86::{Avx2, Avx512};

#[cfg(target_arch = "x86_64")]
mod x86 {
    use super::{Lanes, LANES};
    use std::arch::x86_64::*;

    /// Lanes 0 to 15 and 16 to 31.
    #[derive(Clone, Copy)]
    pub(in super::super) struct Avx2([__m256i; 2]);
    /// One register.
    #[derive(Clone, Copy)]
    pub(in super::super) struct Avx512(__m512i);

    /// Row `by`: lane `l` holds `l ^ by`.
    static EXCHANGE: [[u16; LANES]; LANES] = {
        let mut table = [[0; LANES]; LANES];
        let mut i = 0;
        while i < LANES * LANES {
            table[i / LANES][i % LANES] = ((i / LANES) ^ (i % LANES)) as u16;
            i += 1;
        }
        table
    };
    /// The same as a byte shuffle within 8 words.
    static EXCHANGE_EIGHT: [[u8; 16]; 8] = {
        let mut table = [[0; 16]; 8];
        let mut i = 0;
        while i < 8 * 16 {
            table[i / 16][i % 16] = ((i % 16) ^ (i / 16 * 2)) as u8;
            i += 1;
        }
        table
    };

    /// The byte shuffle within 8 words of [`Lanes::only`], for bits 0 to 2.
    const fn only_eight(bit: u32, set: bool) -> [u8; 16] {
        let mut table = [0; 16];
        let mut i = 0;
        while i < 16 {
            let lane = (i / 2) & !(1 << bit) | (set as usize) << bit;
            table[i] = (2 * lane + i % 2) as u8;
            i += 1;
        }
        table
    }

    /// An instruction for both halves. A macro, since closures do not have the instruction set of the function that they are in.
    macro_rules! both {
        ($instruction:ident, $a:expr, $b:expr) => {
            Avx2([$instruction($a.0[0], $b.0[0]), $instruction($a.0[1], $b.0[1])])
        };
    }

    impl Avx2 {
        /// [`Lanes::exchange`] within a half.
        #[inline(always)]
        unsafe fn exchange_half(v: __m256i, by: usize) -> __m256i {
            let words = _mm256_broadcastsi128_si256(_mm_loadu_si128(EXCHANGE_EIGHT[by & 7].as_ptr().cast()));
            _mm256_shuffle_epi8(if by & 8 == 0 { v } else { _mm256_permute4x64_epi64::<0x4E>(v) }, words)
        }

        /// [`Lanes::only`] within a half.
        #[inline(always)]
        unsafe fn only_half<const BIT: u32, const SET: bool>(v: __m256i) -> __m256i {
            match (BIT, SET) {
                (3, false) => _mm256_permute4x64_epi64::<0x44>(v),
                (3, true) => _mm256_permute4x64_epi64::<0xEE>(v),
                _ => {
                    let words = const { only_eight(BIT, SET) };
                    _mm256_shuffle_epi8(v, _mm256_broadcastsi128_si256(_mm_loadu_si128(words.as_ptr().cast())))
                }
            }
        }
    }

    impl Lanes for Avx2 {
        #[inline(always)]
        unsafe fn load(p: *const u16) -> Self {
            Avx2([_mm256_loadu_si256(p.cast()), _mm256_loadu_si256(p.add(16).cast())])
        }
        #[inline(always)]
        unsafe fn store(self, p: *mut u16) {
            _mm256_storeu_si256(p.cast(), self.0[0]);
            _mm256_storeu_si256(p.add(16).cast(), self.0[1]);
        }
        #[inline(always)]
        unsafe fn splat(v: u16) -> Self {
            Avx2([_mm256_set1_epi16(v as i16); 2])
        }
        #[inline(always)]
        unsafe fn exchange(self, by: usize) -> Self {
            let [low, high] = self.0;
            let (low, high) = if by & 16 == 0 { (low, high) } else { (high, low) };
            Avx2([Self::exchange_half(low, by), Self::exchange_half(high, by)])
        }
        #[inline(always)]
        unsafe fn only<const BIT: u32, const SET: bool>(self) -> Self {
            if BIT == 4 {
                return Avx2([self.0[usize::from(SET)]; 2]);
            }
            let [low, high] = self.0;
            Avx2([Self::only_half::<BIT, SET>(low), Self::only_half::<BIT, SET>(high)])
        }
        #[inline(always)]
        unsafe fn add(self, other: Self) -> Self {
            both!(_mm256_add_epi16, self, other)
        }
        #[inline(always)]
        unsafe fn sub(self, other: Self) -> Self {
            both!(_mm256_sub_epi16, self, other)
        }
        #[inline(always)]
        unsafe fn min(self, other: Self) -> Self {
            both!(_mm256_min_epu16, self, other)
        }
        #[inline(always)]
        unsafe fn choose(self, other: Self) -> (Self, u32) {
            let best = self.min(other);
            let Avx2(own) = both!(_mm256_cmpeq_epi16, best, self);
            let own = _mm256_permute4x64_epi64::<0xD8>(_mm256_packs_epi16(own[0], own[1]));
            (best, !_mm256_movemask_epi8(own) as u32)
        }
    }

    impl Lanes for Avx512 {
        #[inline(always)]
        unsafe fn load(p: *const u16) -> Self {
            Avx512(_mm512_loadu_si512(p.cast()))
        }
        #[inline(always)]
        unsafe fn store(self, p: *mut u16) {
            _mm512_storeu_si512(p.cast(), self.0)
        }
        #[inline(always)]
        unsafe fn splat(v: u16) -> Self {
            Avx512(_mm512_set1_epi16(v as i16))
        }
        #[inline(always)]
        unsafe fn exchange(self, by: usize) -> Self {
            Avx512(_mm512_permutexvar_epi16(_mm512_loadu_si512(EXCHANGE[by % LANES].as_ptr().cast()), self.0))
        }
        #[inline(always)]
        unsafe fn only<const BIT: u32, const SET: bool>(self) -> Self {
            Avx512(match (BIT, SET) {
                (3, false) => _mm512_shuffle_i64x2::<0b10_10_00_00>(self.0, self.0),
                (3, true) => _mm512_shuffle_i64x2::<0b11_11_01_01>(self.0, self.0),
                (4, false) => _mm512_shuffle_i64x2::<0b01_00_01_00>(self.0, self.0),
                (4, true) => _mm512_shuffle_i64x2::<0b11_10_11_10>(self.0, self.0),
                _ => {
                    let words = const { only_eight(BIT, SET) };
                    _mm512_shuffle_epi8(self.0, _mm512_broadcast_i32x4(_mm_loadu_si128(words.as_ptr().cast())))
                }
            })
        }
        #[inline(always)]
        unsafe fn add(self, other: Self) -> Self {
            Avx512(_mm512_add_epi16(self.0, other.0))
        }
        #[inline(always)]
        unsafe fn sub(self, other: Self) -> Self {
            Avx512(_mm512_sub_epi16(self.0, other.0))
        }
        #[inline(always)]
        unsafe fn min(self, other: Self) -> Self {
            Avx512(_mm512_min_epu16(self.0, other.0))
        }
        #[inline(always)]
        unsafe fn choose(self, other: Self) -> (Self, u32) {
            (self.min(other), _mm512_cmplt_epu16_mask(other.0, self.0))
        }
    }
}
