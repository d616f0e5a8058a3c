//! Vectors of 16-bit path costs.

/// Path costs of `LANES` neighbouring states.
///
/// # Safety
/// All functions: the CPU must have the instruction set, and pointers must be valid for what they read or write (unaligned).
pub(super) trait Lanes: Copy {
    /// 16 or 32.
    const LANES: usize;

    unsafe fn load(p: *const u16) -> Self;
    unsafe fn store(self, p: *mut u16);
    unsafe fn splat(v: u16) -> Self;
    /// Lane `l` is `p[l >> EXTEND]`, `EXTEND` 0, 1 or 2.
    unsafe fn expand<const EXTEND: u32>(p: *const u16) -> Self;
    /// Lane `l` is lane `l ^ by` of `self`.
    unsafe fn exchange(self, by: usize) -> Self;
    /// Saturating sum.
    unsafe fn add(self, other: Self) -> Self;
    /// Saturating difference.
    unsafe fn sub(self, other: Self) -> Self;
    unsafe fn min(self, other: Self) -> Self;
    /// `self` with its two low bits replaced by those of `tag`, which has no others.
    unsafe fn retag(self, tag: Self) -> Self;
    /// `self` shifted left by two, the two low bits of `tagged` moved in.
    unsafe fn push_tag(self, tagged: Self) -> Self;
}

/// 16 lanes of plain Rust.
#[derive(Clone, Copy)]
pub(super) struct Portable([u16; 16]);

impl Portable {
    #[inline(always)]
    fn map(self, other: Self, f: impl Fn(u16, u16) -> u16) -> Self {
        Portable(std::array::from_fn(|l| f(self.0[l], other.0[l])))
    }
}

impl Lanes for Portable {
    const LANES: usize = 16;

    #[inline(always)]
    unsafe fn load(p: *const u16) -> Self {
        Portable(p.cast::<[u16; 16]>().read())
    }
    #[inline(always)]
    unsafe fn store(self, p: *mut u16) {
        p.cast::<[u16; 16]>().write(self.0)
    }
    #[inline(always)]
    unsafe fn splat(v: u16) -> Self {
        Portable([v; 16])
    }
    #[inline(always)]
    unsafe fn expand<const EXTEND: u32>(p: *const u16) -> Self {
        Portable(std::array::from_fn(|l| p.add(l >> EXTEND).read()))
    }
    #[inline(always)]
    unsafe fn exchange(self, by: usize) -> Self {
        Portable(std::array::from_fn(|l| self.0[l ^ by & 15]))
    }
    #[inline(always)]
    unsafe fn add(self, other: Self) -> Self {
        self.map(other, u16::saturating_add)
    }
    #[inline(always)]
    unsafe fn sub(self, other: Self) -> Self {
        self.map(other, u16::saturating_sub)
    }
    #[inline(always)]
    unsafe fn min(self, other: Self) -> Self {
        self.map(other, u16::min)
    }
    #[inline(always)]
    unsafe fn retag(self, tag: Self) -> Self {
        self.map(tag, |v, tag| v & !3 | tag)
    }
    #[inline(always)]
    unsafe fn push_tag(self, tagged: Self) -> Self {
        self.map(tagged, |v, tagged| v << 2 | tagged & 3)
    }
}

#[cfg(target_arch = "x86_64")]
pub(super) use x86::{Avx2, Avx512};

#[cfg(target_arch = "x86_64")]
mod x86 {
    use super::Lanes;
    use std::arch::x86_64::*;

    /// 16 lanes.
    #[derive(Clone, Copy)]
    pub(in super::super) struct Avx2(__m256i);
    /// 32 lanes.
    #[derive(Clone, Copy)]
    pub(in super::super) struct Avx512(__m512i);

    /// Row `by`: lane `l` holds `l ^ by`.
    static EXCHANGE: [[u16; 32]; 32] = {
        let mut table = [[0; 32]; 32];
        let mut i = 0;
        while i < 32 * 32 {
            table[i / 32][i % 32] = ((i / 32) ^ (i % 32)) as u16;
            i += 1;
        }
        table
    };
    /// The same as a byte shuffle within 8 words.
    static EXCHANGE_HALVES: [[u8; 16]; 8] = {
        let mut table = [[0; 16]; 8];
        let mut i = 0;
        while i < 8 * 16 {
            table[i / 16][i % 16] = ((i % 16) ^ (i / 16 * 2)) as u8;
            i += 1;
        }
        table
    };

    impl Lanes for Avx2 {
        const LANES: usize = 16;

        #[inline(always)]
        unsafe fn load(p: *const u16) -> Self {
            Avx2(_mm256_loadu_si256(p.cast()))
        }
        #[inline(always)]
        unsafe fn store(self, p: *mut u16) {
            _mm256_storeu_si256(p.cast(), self.0)
        }
        #[inline(always)]
        unsafe fn splat(v: u16) -> Self {
            Avx2(_mm256_set1_epi16(v as i16))
        }
        #[inline(always)]
        unsafe fn expand<const EXTEND: u32>(p: *const u16) -> Self {
            Avx2(match EXTEND {
                0 => _mm256_loadu_si256(p.cast()),
                1 => {
                    let pairs = _mm256_setr_epi8(
                        0, 1, 0, 1, 2, 3, 2, 3, 4, 5, 4, 5, 6, 7, 6, 7, //
                        8, 9, 8, 9, 10, 11, 10, 11, 12, 13, 12, 13, 14, 15, 14, 15,
                    );
                    _mm256_shuffle_epi8(_mm256_broadcastsi128_si256(_mm_loadu_si128(p.cast())), pairs)
                }
                _ => {
                    let fours = _mm256_setr_epi8(
                        0, 1, 0, 1, 0, 1, 0, 1, 2, 3, 2, 3, 2, 3, 2, 3, //
                        4, 5, 4, 5, 4, 5, 4, 5, 6, 7, 6, 7, 6, 7, 6, 7,
                    );
                    _mm256_shuffle_epi8(_mm256_set1_epi64x(p.cast::<i64>().read_unaligned()), fours)
                }
            })
        }
        #[inline(always)]
        unsafe fn exchange(self, by: usize) -> Self {
            let v = if by & 8 == 0 { self.0 } else { _mm256_permute4x64_epi64::<0x4E>(self.0) };
            let words = _mm256_broadcastsi128_si256(_mm_loadu_si128(EXCHANGE_HALVES[by & 7].as_ptr().cast()));
            Avx2(_mm256_shuffle_epi8(v, words))
        }
        #[inline(always)]
        unsafe fn add(self, other: Self) -> Self {
            Avx2(_mm256_adds_epu16(self.0, other.0))
        }
        #[inline(always)]
        unsafe fn sub(self, other: Self) -> Self {
            Avx2(_mm256_subs_epu16(self.0, other.0))
        }
        #[inline(always)]
        unsafe fn min(self, other: Self) -> Self {
            Avx2(_mm256_min_epu16(self.0, other.0))
        }
        #[inline(always)]
        unsafe fn retag(self, tag: Self) -> Self {
            Avx2(_mm256_or_si256(_mm256_andnot_si256(_mm256_set1_epi16(3), self.0), tag.0))
        }
        #[inline(always)]
        unsafe fn push_tag(self, tagged: Self) -> Self {
            Avx2(_mm256_or_si256(_mm256_slli_epi16(self.0, 2), _mm256_and_si256(tagged.0, _mm256_set1_epi16(3))))
        }
    }

    impl Lanes for Avx512 {
        const LANES: usize = 32;

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
        unsafe fn expand<const EXTEND: u32>(p: *const u16) -> Self {
            Avx512(match EXTEND {
                0 => _mm512_loadu_si512(p.cast()),
                1 => {
                    let words = _mm512_cvtepu16_epi32(_mm256_loadu_si256(p.cast()));
                    _mm512_or_si512(words, _mm512_slli_epi32::<16>(words))
                }
                _ => {
                    let fours = _mm512_set_epi64(
                        0x0F0E_0F0E_0F0E_0F0E,
                        0x0D0C_0D0C_0D0C_0D0C,
                        0x0B0A_0B0A_0B0A_0B0A,
                        0x0908_0908_0908_0908,
                        0x0706_0706_0706_0706,
                        0x0504_0504_0504_0504,
                        0x0302_0302_0302_0302,
                        0x0100_0100_0100_0100,
                    );
                    _mm512_shuffle_epi8(_mm512_broadcast_i32x4(_mm_loadu_si128(p.cast())), fours)
                }
            })
        }
        #[inline(always)]
        unsafe fn exchange(self, by: usize) -> Self {
            Avx512(_mm512_permutexvar_epi16(_mm512_loadu_si512(EXCHANGE[by & 31].as_ptr().cast()), self.0))
        }
        #[inline(always)]
        unsafe fn add(self, other: Self) -> Self {
            Avx512(_mm512_adds_epu16(self.0, other.0))
        }
        #[inline(always)]
        unsafe fn sub(self, other: Self) -> Self {
            Avx512(_mm512_subs_epu16(self.0, other.0))
        }
        #[inline(always)]
        unsafe fn min(self, other: Self) -> Self {
            Avx512(_mm512_min_epu16(self.0, other.0))
        }
        #[inline(always)]
        unsafe fn retag(self, tag: Self) -> Self {
            Avx512(_mm512_or_si512(_mm512_andnot_si512(_mm512_set1_epi16(3), self.0), tag.0))
        }
        #[inline(always)]
        unsafe fn push_tag(self, tagged: Self) -> Self {
            Avx512(_mm512_or_si512(_mm512_slli_epi16::<2>(self.0), _mm512_and_si512(tagged.0, _mm512_set1_epi16(3))))
        }
    }
}
