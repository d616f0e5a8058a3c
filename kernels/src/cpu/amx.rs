//! Products of looked-up levels by AMX tiles: 16 tokens times 16 rows times 64 columns an instruction.
//!
//! The layout of looked-up levels is that of a tile already: a vector of 16 lanes has four columns of 16 rows. With 8 lanes it has eight columns of 8
//! rows, and two rows of a lane are brought together first.
use super::kernel::{finish, Block, Input, Inputs, Levels, Partial, Sums};
use super::TOGETHER;
use crate::layout::VECTOR;
use std::arch::asm;
use std::arch::x86_64::*;
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

/// Adds the products of the levels of `groups`, which it may rearrange, to the sums of each input, or sets them if these are the first groups. Sums stand as `[row][plane][lane]` for 16 lanes and as
/// `[pair of rows][plane][row of the pair, lane]` for 8.
///
/// # Safety
/// [`is_available`], and AVX-512; planes must be as long as the groups, with room behind the last input. There must be levels up to a multiple of the
/// lanes, zeros behind the groups, and sums up to a multiple of [`TOGETHER`]. 8 or 16 lanes.
#[target_feature(enable = "avx512f")]
pub(super) unsafe fn multiply(_: &Block, levels: &mut [Levels], groups: Range<usize>, x: &Inputs, sums: &mut [Sums]) {
    // Quads of columns in a vector.
    let quads = 16 / x.lanes;
    // A tile has 16 quads.
    let tiles = groups.len().div_ceil(x.lanes);
    let levels = &mut levels[..tiles * x.lanes];
    if quads == 2 {
        levels.iter_mut().for_each(|group| pair_rows(group));
    }
    asm!("ldtilecfg [{}]", in(reg) &raw const TILES, options(nostack, readonly, preserves_flags));
    for first in (0..x.inputs.len()).step_by(TOGETHER) {
        let [high, low] = x.planes(first).map(|plane| plane.wrapping_add(groups.start * x.step));
        let sums = sums[first..first + TOGETHER].as_mut_ptr();
        for set in (0..8 / quads).step_by(2) {
            // Tiles 0 to 3: sums of two vectors of rows and two planes; 4 and 5: activations; 6 and 7: levels.
            asm!(
                "tilezero tmm0",
                "tilezero tmm1",
                "tilezero tmm2",
                "tilezero tmm3",
                "test {first}, {first}",
                "jz 2f",
                "tileloadd tmm0, [{sums} + {sums_step}*1]",
                "tileloadd tmm1, [{sums} + {sums_step}*1 + 64]",
                "tileloadd tmm2, [{sums} + {sums_step}*1 + 128]",
                "tileloadd tmm3, [{sums} + {sums_step}*1 + 192]",
                "2:",
                "tileloadd tmm4, [{high} + {planes_step}*1]",
                "tileloadd tmm6, [{levels} + {levels_step}*1]",
                "tileloadd tmm7, [{levels} + {levels_step}*1 + 64]",
                "tdpbsud tmm0, tmm4, tmm6",
                "tdpbsud tmm2, tmm4, tmm7",
                "tileloadd tmm5, [{low} + {planes_step}*1]",
                "tdpbsud tmm1, tmm5, tmm6",
                "tdpbsud tmm3, tmm5, tmm7",
                "add {high}, 64",
                "add {low}, 64",
                "add {levels}, {tile}",
                "dec {tiles}",
                "jnz 2b",
                "tilestored [{sums} + {sums_step}*1], tmm0",
                "tilestored [{sums} + {sums_step}*1 + 64], tmm1",
                "tilestored [{sums} + {sums_step}*1 + 128], tmm2",
                "tilestored [{sums} + {sums_step}*1 + 192], tmm3",
                first = in(reg) groups.start,
                sums = in(reg) sums.cast::<[[i32; 16]; 2]>().add(set),
                sums_step = in(reg) size_of::<Sums>(),
                high = inout(reg) high => _,
                low = inout(reg) low => _,
                planes_step = in(reg) 2 * x.plane,
                levels = inout(reg) levels.as_ptr().cast::<u8>().add(set * VECTOR) => _,
                levels_step = in(reg) size_of::<Levels>() / quads,
                tile = in(reg) x.lanes * size_of::<Levels>(),
                tiles = inout(reg) tiles => _,
                out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
                out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
                options(nostack),
            );
        }
    }
    asm!("tilerelease", options(nostack, nomem, preserves_flags));
}

/// `[row][lane, quad]` of 8 lanes and 2 quads becomes `[quad][pair of rows][row of the pair, lane]`.
#[target_feature(enable = "avx512f")]
unsafe fn pair_rows(group: &mut Levels) {
    let even = _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
    let odd = _mm512_add_epi32(even, _mm512_set1_epi32(1));
    let rows = group.as_mut_ptr();
    let copy = *group;
    for pair in 0..4 {
        let (a, b) = (_mm512_loadu_si512(copy[2 * pair].as_ptr().cast()), _mm512_loadu_si512(copy[2 * pair + 1].as_ptr().cast()));
        _mm512_storeu_si512(rows.add(pair).cast(), _mm512_permutex2var_epi32(a, even, b));
        _mm512_storeu_si512(rows.add(4 + pair).cast(), _mm512_permutex2var_epi32(a, odd, b));
    }
}

/// `out += factor (128 high + low)` of the sums that [`multiply`] leaves.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
pub(super) fn finish_sums(sums: &Sums, input: &Input, lanes: usize, out: &mut Partial) {
    if lanes == 16 {
        return finish(sums, input, lanes, out);
    }
    for (rows, [high, low]) in out.chunks_exact_mut(2).zip(sums) {
        for (out, (high, low)) in rows.iter_mut().zip(high.chunks_exact(8).zip(low.chunks_exact(8))) {
            for ((out, high), low) in out.iter_mut().zip(high).zip(low) {
                *out += input.value(*high, *low);
            }
        }
    }
}
