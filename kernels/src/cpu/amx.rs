//! Products of looked-up levels by AMX tiles: 16 tokens times 16 rows times 64 columns an instruction.
//!
//! The layout of looked-up levels is that of a tile already: a vector of 16 lanes has four columns of 16 rows.
use super::inputs::{Aligned, Inputs, Partial};
use super::kernel::{multiply_outliers, Levels};
use super::vector::Vector;
use super::x86::Avx512;
use super::{SECTIONS, TOGETHER};
use crate::layout::VECTOR;
use std::arch::asm;
use std::arch::x86_64::*;
use std::marker::PhantomData;
use std::mem::MaybeUninit;
use std::ops::Range;
use std::sync::OnceLock;

/// True if the CPU has AMX for int8 and the system lets this process use it.
pub(super) fn is_available() -> bool {
    static AVAILABLE: OnceLock<bool> = OnceLock::new();
    *AVAILABLE.get_or_init(|| {
        if !cfg!(target_os = "linux") {
            return false;
        }
        let tile_and_int8 = 3 << 24;
        // SAFETY: every x86-64 CPU has the instruction. (Newer compilers know that.)
        #[allow(unused_unsafe)]
        let found = unsafe { __cpuid(0).eax >= 7 && __cpuid_count(7, 0).edx & tile_and_int8 == tile_and_int8 };
        found && request_tiles()
    })
}

/// Asks Linux for the tile registers of all threads (arch_prctl(2), ARCH_REQ_XCOMP_PERM).
fn request_tiles() -> bool {
    let status: i64;
    // SAFETY: the system call changes nothing but what the process may use.
    unsafe {
        asm!(
            "syscall",
            inlateout("rax") 158i64 => status,
            in("rdi") 0x1023,
            in("rsi") 18,
            out("rcx") _,
            out("r11") _,
            options(nostack),
        );
    }
    status == 0
}

/// `LDTILECFG`: 8 tiles of 16 rows of 64 bytes.
#[repr(C, align(64))]
struct TileConfig([u8; 64]);

static TILES: TileConfig = {
    let mut bytes = [0; 64];
    bytes[0] = 1;
    let mut tile = 0;
    while tile < 8 {
        bytes[16 + 2 * tile] = 64;
        bytes[48 + tile] = 16;
        tile += 1;
    }
    TileConfig(bytes)
};

/// The tile registers of this thread, ready for use until it is dropped. Making and dropping it takes 350 cycles, as long as the products of ten tiles.
pub(super) struct Configured(PhantomData<*const ()>);

impl Configured {
    /// # Safety
    /// [`is_available`].
    pub unsafe fn new() -> Self {
        asm!("ldtilecfg [{}]", in(reg) &raw const TILES, options(nostack, readonly, preserves_flags));
        Configured(PhantomData)
    }
}

impl Drop for Configured {
    fn drop(&mut self) {
        // SAFETY: there is one only where there are tiles.
        unsafe { asm!("tilerelease", options(nostack, nomem, preserves_flags)) }
    }
}

/// Products of tiles: what AMX does, and what tests do in its place.
trait Tiles {
    /// Writes all sums of 16 inputs of a section, from the first one on.
    unsafe fn multiply(inputs: *const i8, levels: &[Levels; 16], sums: &mut MaybeUninit<Sums>);
    /// Adds `scale (sums + start)`, rounded once.
    unsafe fn add_scaled(out: &mut [f32; 16], sums: &[i32; 16], start: i32, scale: f32);
}

/// `[row][input][lane]` of 16 inputs.
type Sums = Aligned<[[[i32; 16]; TOGETHER]; 8]>;

struct Amx;

impl Tiles for Amx {
    #[inline(always)]
    unsafe fn multiply(inputs: *const i8, levels: &[Levels; 16], sums: &mut MaybeUninit<Sums>) {
        asm!(
            "tileloadd tmm4, [{inputs} + {row}*1]",
            "tileloadd tmm5, [{levels} + {group}*1]",
            "tilezero tmm0",
            "tdpbsud tmm0, tmm4, tmm5",
            "tileloadd tmm6, [{levels} + {group}*1 + 64]",
            "tilezero tmm1",
            "tdpbsud tmm1, tmm4, tmm6",
            "tileloadd tmm7, [{levels} + {group}*1 + 128]",
            "tilezero tmm2",
            "tdpbsud tmm2, tmm4, tmm7",
            "tileloadd tmm5, [{levels} + {group}*1 + 192]",
            "tilezero tmm3",
            "tdpbsud tmm3, tmm4, tmm5",
            "tilestored [{sums} + {row}*1], tmm0",
            "tileloadd tmm6, [{levels} + {group}*1 + 256]",
            "tilezero tmm0",
            "tdpbsud tmm0, tmm4, tmm6",
            "tilestored [{sums} + {row}*1 + 1024], tmm1",
            "tileloadd tmm7, [{levels} + {group}*1 + 320]",
            "tilezero tmm1",
            "tdpbsud tmm1, tmm4, tmm7",
            "tilestored [{sums} + {row}*1 + 2048], tmm2",
            "tileloadd tmm5, [{levels} + {group}*1 + 384]",
            "tilezero tmm2",
            "tdpbsud tmm2, tmm4, tmm5",
            "tilestored [{sums} + {row}*1 + 3072], tmm3",
            "tileloadd tmm6, [{levels} + {group}*1 + 448]",
            "tilezero tmm3",
            "tdpbsud tmm3, tmm4, tmm6",
            "tilestored [{sums} + {row}*1 + 4096], tmm0",
            "tilestored [{sums} + {row}*1 + 5120], tmm1",
            "tilestored [{sums} + {row}*1 + 6144], tmm2",
            "tilestored [{sums} + {row}*1 + 7168], tmm3",
            inputs = in(reg) inputs,
            levels = in(reg) levels.as_ptr(),
            group = in(reg) size_of::<Levels>(),
            sums = in(reg) sums.as_mut_ptr(),
            row = in(reg) VECTOR,
            out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
            out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
            options(nostack, preserves_flags),
        );
    }

    #[inline(always)]
    unsafe fn add_scaled(out: &mut [f32; 16], sums: &[i32; 16], start: i32, scale: f32) {
        let sums = _mm512_add_epi32(_mm512_loadu_si512(sums.as_ptr().cast()), _mm512_set1_epi32(start));
        let floats = _mm512_fmadd_ps(_mm512_cvtepi32_ps(sums), _mm512_set1_ps(scale), _mm512_loadu_ps(out.as_ptr()));
        _mm512_storeu_ps(out.as_mut_ptr(), floats);
    }
}

/// Adds the products of the looked-up levels of some sections, the first of which is `section`, by all inputs, each to its token's. Levels have 128 added; those behind a section may be
/// anything.
///
/// # Safety
/// [`Configured`], and AVX-512; inputs must be as long as the sections, with room behind the last one. 16 lanes.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vbmi,avx512vnni,gfni")]
pub(super) unsafe fn multiply(levels: &[[Levels; 16]], section: usize, x: &Inputs, out: &mut [Partial]) {
    multiply_by::<Amx, Avx512>(levels, section, x, out)
}

#[inline(always)]
unsafe fn multiply_by<T: Tiles, V: Vector>(levels: &[[Levels; 16]], section: usize, x: &Inputs, out: &mut [Partial]) {
    let mut sums = MaybeUninit::uninit();
    let mut outliers: [Range<usize>; SECTIONS] = std::array::from_fn(|n| if n < levels.len() { x.outliers(section + n) } else { 0..0 });
    for first in (0..x.tokens).step_by(TOGETHER) {
        let tokens = first..x.tokens.min(first + TOGETHER);
        for ((levels, outliers), section) in levels.iter().zip(&mut outliers).zip(section..) {
            let input = section * x.tokens + first;
            T::multiply(x.bytes[input * VECTOR..].as_ptr(), levels, &mut sums);
            let sums: &Sums = sums.assume_init_ref();
            for (n, out) in out[tokens.clone()].iter_mut().enumerate() {
                let (start, scale) = (x.starts[input + n], x.scales[input + n]);
                for row in 0..8 {
                    T::add_scaled(&mut out[row], &sums[row][n], start, scale);
                }
            }
            while outliers.start < outliers.end && tokens.contains(&x.outlier_token(outliers.start)) {
                multiply_outliers::<V, false>(levels, x.section(outliers.start), x.outlier_token(outliers.start), out);
                outliers.start += 1;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::activations::{section_of, Activations};
    use crate::cpu::{kernel, portable::Portable, Aligned};
    use rand::{Rng, SeedableRng};

    struct Plain;

    impl Tiles for Plain {
        unsafe fn multiply(inputs: *const i8, levels: &[Levels; 16], sums: &mut MaybeUninit<Sums>) {
            for (row, sums) in sums.write(Aligned([[[0; 16]; TOGETHER]; 8])).iter_mut().enumerate() {
                for (input, sums) in sums.iter_mut().enumerate() {
                    for (lane, sum) in sums.iter_mut().enumerate() {
                        let product = |column: usize| {
                            let level = levels[column / 4][row][4 * lane + column % 4];
                            i32::from(*inputs.add(input * VECTOR + column)) * i32::from(level)
                        };
                        *sum = (0..VECTOR).map(product).sum();
                    }
                }
            }
        }

        unsafe fn add_scaled(out: &mut [f32; 16], sums: &[i32; 16], start: i32, scale: f32) {
            for (out, sum) in out.iter_mut().zip(sums) {
                *out = ((sum + start) as f32).mul_add(scale, *out);
            }
        }
    }

    #[test]
    fn tiles_give_what_vectors_give() {
        let mut rng = rand_chacha::ChaCha8Rng::seed_from_u64(3);
        for _ in 0..20 {
            let (columns, tokens) = (4 * rng.random_range(1..100), rng.random_range(1..60));
            let mut x = Activations::default();
            x.start(tokens, columns, 16, 0.5, 0);
            for token in 0..tokens {
                let outlier = rng.random_range(0..2 * columns);
                let values: Vec<f32> = (0..columns).map(|j| if j == outlier { 50.0 } else { rng.random_range(-1.0..1.0) }).collect();
                x.put(token, |section| section_of(&values, section));
            }
            x.finish();
            let x = x.inputs();
            let mut expected: Vec<Partial> = vec![Aligned([[1.0; 16]; 8]); tokens];
            let mut found = expected.clone();
            let levels: Vec<_> = (0..x.sections())
                .map(|_| std::array::from_fn(|_| Aligned(std::array::from_fn(|_| std::array::from_fn(|_| rng.random())))))
                .collect();
            for (section, levels) in levels.iter().enumerate() {
                let groups = (columns / 4 - 16 * section).min(16);
                // SAFETY: the inputs have the section.
                unsafe { kernel::multiply::<Portable<64>, false>(&levels[..groups], section, &x, &mut expected) };
            }
            for (levels, section) in levels.chunks(SECTIONS).zip((0..).step_by(SECTIONS)) {
                // SAFETY: the inputs have the sections, and there is room behind the last one.
                unsafe { multiply_by::<Plain, Portable<64>>(levels, section, &x, &mut found) };
            }
            assert_eq!(expected, found);
        }
    }
}
