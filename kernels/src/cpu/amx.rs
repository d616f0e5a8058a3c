//! Products of looked-up levels by AMX tiles: 16 tokens times 16 rows times 64 columns an instruction.
//!
//! The layout of looked-up levels is that of a tile already: a vector of 16 lanes has four columns of 16 rows.
use super::inputs::{Inputs, Partial};
use super::kernel::Levels;
use super::TOGETHER;
use crate::layout::VECTOR;
use std::arch::asm;
use std::arch::x86_64::*;
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

/// Products of tiles: what AMX does, and what tests do in its place.
trait Tiles {
    /// Must come before products on a thread, and [`end`](Self::end) behind them.
    unsafe fn begin();
    unsafe fn end();
    /// `sums[row][input][lane]` of four rows of a section. `inputs`: the section of the first of 16, `stride` bytes from one to the next; `levels`: the first
    /// of the rows in the first of 16 column groups.
    unsafe fn multiply(inputs: *const i8, stride: usize, levels: *const u8, sums: &mut [Tile; 4]);
}

/// 32-bit sums of 16 inputs and 16 lanes.
#[repr(align(64))]
#[derive(Clone, Copy)]
struct Tile([[i32; 16]; 16]);

struct Amx;

impl Tiles for Amx {
    #[inline(always)]
    unsafe fn begin() {
        asm!("ldtilecfg [{}]", in(reg) &raw const TILES, options(nostack, readonly, preserves_flags));
    }
    #[inline(always)]
    unsafe fn end() {
        asm!("tilerelease", options(nostack, nomem, preserves_flags));
    }
    #[inline(always)]
    unsafe fn multiply(inputs: *const i8, stride: usize, levels: *const u8, sums: &mut [Tile; 4]) {
        asm!(
            "tileloadd tmm4, [{inputs} + {stride}*1]",
            "tileloadd tmm5, [{levels} + {group}*1]",
            "tilezero tmm0",
            "tdpbssd tmm0, tmm4, tmm5",
            "tileloadd tmm6, [{levels} + {group}*1 + 64]",
            "tilezero tmm1",
            "tdpbssd tmm1, tmm4, tmm6",
            "tileloadd tmm7, [{levels} + {group}*1 + 128]",
            "tilezero tmm2",
            "tdpbssd tmm2, tmm4, tmm7",
            "tileloadd tmm5, [{levels} + {group}*1 + 192]",
            "tilezero tmm3",
            "tdpbssd tmm3, tmm4, tmm5",
            "tilestored [{sums} + {row}*1], tmm0",
            "tilestored [{sums} + {row}*1 + 1024], tmm1",
            "tilestored [{sums} + {row}*1 + 2048], tmm2",
            "tilestored [{sums} + {row}*1 + 3072], tmm3",
            inputs = in(reg) inputs,
            stride = in(reg) stride,
            levels = in(reg) levels,
            group = in(reg) size_of::<Levels>(),
            sums = in(reg) sums.as_mut_ptr(),
            row = in(reg) VECTOR,
            out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
            out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
            options(nostack, preserves_flags),
        );
    }
}

/// As [`multiply`](super::kernel::multiply), for levels with 128 added and zeros behind them.
///
/// # Safety
/// [`is_available`], and AVX-512; inputs must be as long as the section, with room behind the last one. 16 lanes.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
pub(super) unsafe fn multiply(levels: &mut [Levels; 16], _: usize, section: usize, x: &Inputs, out: &mut [Partial]) {
    multiply_by::<Amx>(levels, section, x, out)
}

#[inline(always)]
unsafe fn multiply_by<T: Tiles>(levels: &mut [Levels; 16], section: usize, x: &Inputs, out: &mut [Partial]) {
    levels.iter_mut().flat_map(|group| group.as_flattened_mut()).for_each(|level| *level ^= 0x80);
    let mut sums = [Tile([[0; 16]; 16]); 4];
    T::begin();
    for first in (0..x.tokens.len()).step_by(TOGETHER) {
        let bytes = x.bytes[first * x.stride + section * VECTOR..].as_ptr();
        for rows in [0, 4] {
            T::multiply(bytes, x.stride, levels[0][rows].as_ptr(), &mut sums);
            for (input, &token) in (first..).zip(&x.tokens[first..]).take(TOGETHER) {
                let scale = x.scales[input * x.sections + section];
                for (Tile(sums), out) in sums.iter().zip(&mut out[token][rows..rows + 4]) {
                    for (sum, out) in sums[input - first].iter().zip(out) {
                        *out = (*sum as f32).mul_add(scale, *out);
                    }
                }
            }
        }
    }
    T::end();
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::activations::{section_of, Activations};
    use crate::cpu::{kernel, portable::Portable, Aligned};
    use rand::{Rng, SeedableRng};

    struct Plain;

    impl Tiles for Plain {
        unsafe fn begin() {}
        unsafe fn end() {}
        unsafe fn multiply(inputs: *const i8, stride: usize, levels: *const u8, sums: &mut [Tile; 4]) {
            for (row, Tile(sums)) in sums.iter_mut().enumerate() {
                for (input, sums) in sums.iter_mut().enumerate() {
                    for (lane, sum) in sums.iter_mut().enumerate() {
                        let product = |column: usize| {
                            let level = levels.add(column / 4 * size_of::<Levels>() + row * VECTOR + 4 * lane + column % 4);
                            i32::from(*inputs.add(input * stride + column)) * i32::from(*level as i8)
                        };
                        *sum = (0..VECTOR).map(product).sum();
                    }
                }
            }
        }
    }

    #[test]
    fn tiles_give_what_vectors_give() {
        let mut rng = rand_chacha::ChaCha8Rng::seed_from_u64(3);
        for _ in 0..20 {
            let (columns, tokens) = (4 * rng.random_range(1..50), rng.random_range(1..40));
            let mut x = Activations::default();
            x.start(columns, 16, 0);
            for token in 0..tokens {
                let outlier = rng.random_range(0..4 * columns);
                let values: Vec<f32> = (0..columns).map(|j| if j == outlier { 50.0 } else { rng.random_range(-1.0..1.0) }).collect();
                x.push(token, 0.5, |section| section_of(&values, section));
            }
            x.finish();
            let x = x.inputs();
            let mut expected: Vec<Partial> = vec![Aligned([[1.0; 16]; 8]); tokens];
            let mut found = expected.clone();
            for section in 0..x.sections {
                let groups = (columns / 4 - 16 * section).min(16);
                let mut levels = [Aligned([[0; VECTOR]; 8]); 16];
                levels[..groups].iter_mut().for_each(|group| rng.fill(group.as_flattened_mut()));
                // SAFETY: the inputs have the section, and there is room behind the last one.
                unsafe {
                    kernel::multiply::<Portable<64>, false>(&levels[..groups], section, &x, &mut expected);
                    multiply_by::<Plain>(&mut levels, section, &x, &mut found);
                }
            }
            assert_eq!(expected, found);
        }
    }
}
