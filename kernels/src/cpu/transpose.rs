//! Row blocks as the output has them: the rows of a lane one after another.
use super::Partial;

/// Eight rows of each of 16 lanes.
pub(crate) type ByLane = [[f32; 8]; 16];

/// The definition.
pub(crate) fn by_lane(rows: &Partial) -> ByLane {
    std::array::from_fn(|lane| std::array::from_fn(|row| rows[row][lane]))
}

/// The same: 48 shuffles, where the compiler makes 128 loads of single floats.
#[cfg(target_arch = "x86_64")]
#[inline]
#[target_feature(enable = "avx2")]
pub(crate) fn by_lane_avx2(rows: &Partial) -> ByLane {
    use std::arch::x86_64::*;
    let mut out = [[0.0; 8]; 16];
    for (half, out) in out.as_chunks_mut::<8>().0.iter_mut().enumerate() {
        // SAFETY: eight floats of each row.
        let load = |row: usize| unsafe { _mm256_loadu_ps(rows[row][8 * half..][..8].as_ptr()) };
        let r = [load(0), load(1), load(2), load(3), load(4), load(5), load(6), load(7)];
        // Within 128 bits: pairs of rows, then four rows.
        let (a, b) = (_mm256_unpacklo_ps(r[0], r[1]), _mm256_unpackhi_ps(r[0], r[1]));
        let (c, d) = (_mm256_unpacklo_ps(r[2], r[3]), _mm256_unpackhi_ps(r[2], r[3]));
        let (e, f) = (_mm256_unpacklo_ps(r[4], r[5]), _mm256_unpackhi_ps(r[4], r[5]));
        let (g, h) = (_mm256_unpacklo_ps(r[6], r[7]), _mm256_unpackhi_ps(r[6], r[7]));
        let first = [
            _mm256_shuffle_ps::<0x44>(a, c),
            _mm256_shuffle_ps::<0xEE>(a, c),
            _mm256_shuffle_ps::<0x44>(b, d),
            _mm256_shuffle_ps::<0xEE>(b, d),
        ];
        let second = [
            _mm256_shuffle_ps::<0x44>(e, g),
            _mm256_shuffle_ps::<0xEE>(e, g),
            _mm256_shuffle_ps::<0x44>(f, h),
            _mm256_shuffle_ps::<0xEE>(f, h),
        ];
        let (low, high) = out.split_at_mut(4);
        for (((low, high), first), second) in low.iter_mut().zip(high).zip(first).zip(second) {
            // SAFETY: eight floats each.
            unsafe {
                _mm256_storeu_ps(low.as_mut_ptr(), _mm256_permute2f128_ps::<0x20>(first, second));
                _mm256_storeu_ps(high.as_mut_ptr(), _mm256_permute2f128_ps::<0x31>(first, second));
            }
        }
    }
    out
}

#[cfg(all(test, target_arch = "x86_64"))]
mod tests {
    use super::*;
    use crate::cpu::{Aligned, Isa};

    #[test]
    fn shuffles_give_what_the_definition_gives() {
        let rows = Aligned(std::array::from_fn(|row| std::array::from_fn(|lane| (100 * row + lane) as f32)));
        if Isa::Avx2.is_available() {
            // SAFETY: AVX2 is there.
            assert_eq!(unsafe { by_lane_avx2(&rows) }, by_lane(&rows));
        }
    }
}
