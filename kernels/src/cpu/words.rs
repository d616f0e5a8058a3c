//! Products of looked-up levels with many tokens in plain AVX2: 16-bit words, `VPMADDWD`. Both planes of an activation are one word, so a level takes part in one
//! multiplication instead of two, and none of them has to be widened. AVX2 with VNNI multiplies bytes in one instruction and does not need it.
use super::kernel::{Block, Inputs, Levels, Sums};
use std::arch::x86_64::*;
use std::mem::MaybeUninit;
use std::ops::Range;

/// Column groups at a time: their levels as words are half of the first-level cache, and sums of their products stay below 2^31 (64 columns of 255 x 8127).
pub(super) const GROUPS: usize = 16;

/// Words of the even and of the odd bytes of a vector of 32 bytes, apart: products of both end in the 32-bit lane that the bytes stood in.
type Words = [__m256i; 2];

/// As [`multiply`](super::kernel::multiply), for at most [`GROUPS`] groups. The sums of both planes are those of the words, split.
///
/// # Safety
/// AVX2; planes must be as long as the groups, and sums as many as the inputs.
#[target_feature(enable = "avx2")]
pub(super) unsafe fn multiply(_: &Block, levels: &mut [Levels], groups: Range<usize>, x: &Inputs, sums: &mut [Sums]) {
    let mut words = MaybeUninit::<[[[Words; 8]; 2]; GROUPS]>::uninit();
    let words = words.as_mut_ptr().cast::<[[Words; 8]; 2]>();
    let count = groups.len().min(GROUPS);
    for (group, rows) in levels[..count].iter().enumerate() {
        for (row, bytes) in rows.iter().enumerate() {
            for part in 0..2 {
                let w = _mm256_loadu_si256(bytes.as_ptr().add(32 * part).cast());
                (*words.add(group))[part][row] = [_mm256_and_si256(w, _mm256_set1_epi16(255)), _mm256_srli_epi16(w, 8)];
            }
        }
    }
    let mut activations = MaybeUninit::<[[__m256i; 2 * GROUPS]; 2]>::uninit();
    let [even, odd] = [0, 1].map(|odd| (&raw mut (*activations.as_mut_ptr())[odd]).cast::<__m256i>());
    for (input, sums) in (0..x.inputs.len()).zip(sums) {
        let planes = x.planes(input).map(|plane| plane.wrapping_add(groups.start * x.step));
        activation_words(planes, count * x.step, even, odd);
        for part in 0..2 {
            let mut acc = [_mm256_setzero_si256(); 8];
            for group in 0..count {
                let (even, odd) = match x.step {
                    4 => (repeat4(even, group), repeat4(odd, group)),
                    8 => (repeat8(even, group), repeat8(odd, group)),
                    _ => (even.add(2 * group + part).read(), odd.add(2 * group + part).read()),
                };
                let rows = &(*words.add(group))[part];
                for (acc, [e, o]) in acc.iter_mut().zip(rows) {
                    *acc = _mm256_add_epi32(*acc, _mm256_madd_epi16(*e, even));
                    *acc = _mm256_add_epi32(*acc, _mm256_madd_epi16(*o, odd));
                }
            }
            for (acc, [high, low]) in acc.into_iter().zip(sums.iter_mut()) {
                let [high, low] = [high, low].map(|plane| plane.as_mut_ptr().add(8 * part).cast::<__m256i>());
                let (mut h, mut l) = (_mm256_srai_epi32(acc, 7), _mm256_and_si256(acc, _mm256_set1_epi32(127)));
                if groups.start > 0 {
                    h = _mm256_add_epi32(h, _mm256_loadu_si256(high));
                    l = _mm256_add_epi32(l, _mm256_loadu_si256(low));
                }
                _mm256_storeu_si256(high, h);
                _mm256_storeu_si256(low, l);
            }
        }
    }
}

/// Writes `128 high + low` of the even and of the odd bytes of the planes, in words at the places of the bytes.
///
/// # Safety
/// AVX2; the planes must be readable, `even` and `odd` writable up to the next multiple of 32 bytes.
#[inline]
#[target_feature(enable = "avx2")]
unsafe fn activation_words([high, low]: [*const u8; 2], bytes: usize, even: *mut __m256i, odd: *mut __m256i) {
    for n in 0..bytes.div_ceil(32) {
        let (h, l) = (_mm256_loadu_si256(high.add(32 * n).cast()), _mm256_loadu_si256(low.add(32 * n).cast()));
        let (h_even, l_even) = (_mm256_srai_epi16(_mm256_slli_epi16(h, 8), 1), _mm256_srai_epi16(_mm256_slli_epi16(l, 8), 8));
        let (h_odd, l_odd) = (_mm256_srai_epi16(_mm256_and_si256(h, _mm256_set1_epi16(-256)), 1), _mm256_srai_epi16(l, 8));
        even.add(n).write(_mm256_add_epi16(h_even, l_even));
        odd.add(n).write(_mm256_add_epi16(h_odd, l_odd));
    }
}

#[inline]
#[target_feature(enable = "avx2")]
unsafe fn repeat4(words: *const __m256i, group: usize) -> __m256i {
    _mm256_set1_epi32(words.cast::<i32>().add(group).read())
}

#[inline]
#[target_feature(enable = "avx2")]
unsafe fn repeat8(words: *const __m256i, group: usize) -> __m256i {
    _mm256_set1_epi64x(words.cast::<i64>().add(group).read())
}
