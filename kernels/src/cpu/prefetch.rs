//! Asking for lines of the cache before they are read, further ahead than CPUs do by themselves.
use super::vector::Vector;
use crate::layout::VECTOR;
use std::sync::LazyLock;

/// How many bytes ahead lines are asked for.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Distances {
    /// Every line, into the first-level cache; 0 if none.
    near: isize,
    /// Into the second-level cache: one of four lines, every line if none is asked for near.
    far: isize,
}

/// A first-level cache has room for few requests, and each takes as long as memory does. Intel (Sapphire Rapids class Xeon): a loop with 44 vector instructions for 128 bytes read 5.7 to
/// 6.6 GB/s without any, 10.4 with every line asked for 4096 bytes ahead, 10.7 with every line asked for twice, far and near, 11.8 if one of four lines is asked for far ahead: the CPU's own
/// prefetch brings those beside it.
const NEAR_AND_FAR: Distances = Distances { near: 3072, far: 12288 };

/// Zen 4: requests of the first-level cache are in the way of what is read now. 4096 x 4096 from DRAM, one thread, 2 / 3 / 4 bits: 53 / 43 / 33 as above, 49 / 49 / 42 without any,
/// 54 / 51 / 44 so.
const FAR_ONLY: Distances = Distances { near: 0, far: 6144 };

/// Distances of this CPU for what is read in order. (Zen 3 was measured with [`NEAR_AND_FAR`] and without any: 1.02 to 1.07 times as fast with it.)
static IN_ORDER: LazyLock<Distances> = LazyLock::new(|| {
    #[cfg(target_arch = "x86_64")]
    {
        let vendor = std::arch::x86_64::__cpuid(0);
        if [vendor.ebx, vendor.edx, vendor.ecx].map(u32::to_le_bytes).as_flattened() == b"AuthenticAMD"
            && is_x86_feature_detected!("avx512vbmi")
        {
            return FAR_ONLY;
        }
    }
    NEAR_AND_FAR
});

impl Distances {
    /// Where all is read in order.
    #[inline(always)]
    pub fn in_order() -> Self {
        *IN_ORDER
    }
}

const FOUR_LINES: usize = 256;

/// A stretch of memory that is read in order, and what is read after it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Ahead {
    /// Where the stretch ends.
    pub end: *const u8,
    /// Its bytes.
    pub len: usize,
    /// Bytes from there to the next stretch, which is as long, and from that one to the one after it.
    pub gap: isize,
}

impl Ahead {
    /// How far ahead of `bytes` bytes at `p` those lines are that are read so many bytes later.
    #[inline(always)]
    pub fn distances(&self, p: *const u8, bytes: usize) -> Distances {
        let left = (self.end as usize - p as usize - bytes / 2) as isize;
        let Distances { near, far } = Distances::in_order();
        let [near, far] = [near, far].map(|distance| {
            let mut to = distance;
            let mut end = left;
            while distance >= end {
                to += self.gap;
                end += self.len as isize;
            }
            to
        });
        Distances { near, far }
    }
}

/// Lines of the cache at equal distances.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Lines {
    /// First one.
    pub first: *const u8,
    /// Bytes from one to the next.
    pub step: usize,
    /// How many.
    pub count: usize,
}

/// Hides that a number is the same in each round of a loop, of which the compiler would otherwise make two.
#[inline(always)]
fn opaque(mut number: isize) -> isize {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: no instruction at all.
    unsafe {
        std::arch::asm!("/* {0} */", inout(reg) number, options(pure, nomem, nostack, preserves_flags));
    }
    number
}

/// Asks for the bytes that are read so many bytes after `vectors` vectors at `p`.
///
/// # Safety
/// The CPU must have the instruction set.
#[inline(always)]
pub(super) unsafe fn prefetch<T: Vector>(p: *const u8, vectors: usize, Distances { near, far }: Distances) {
    let line = |distance: isize, v: usize| p.wrapping_offset(distance).wrapping_add(v * VECTOR);
    if opaque(near) == 0 {
        for v in 0..vectors {
            T::prefetch_second_level(line(far, v));
        }
        return;
    }
    for v in 0..vectors {
        T::prefetch(line(near, v));
    }
    if p as usize % FOUR_LINES < vectors * VECTOR {
        T::prefetch_second_level(line(far, 0));
    }
}

/// Asks for values that are read soon, up to 2 KB of them: what follows is asked for where they are read.
pub(crate) fn prefetch_values<T>(values: &[T]) {
    for at in (0..size_of_val(values).min(2048)).step_by(64) {
        prefetch_line(values.as_ptr().cast::<u8>().wrapping_add(at));
    }
}

/// Asks for the line of the cache that `p` points into, if it is one of the process.
#[inline(always)]
pub(crate) fn prefetch_line<T>(p: *const T) {
    #[cfg(target_arch = "x86_64")]
    {
        use std::arch::x86_64::{_mm_prefetch, _MM_HINT_T0};
        // SAFETY: all of these CPUs have the instruction, and it reads nothing.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(p.cast()) };
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = p;
}
