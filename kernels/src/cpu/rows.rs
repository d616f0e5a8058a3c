//! Dot products of int8 rows with quantized activations.
use super::kernel::Vector;
use super::{Isa, IsaError};
use crate::layout::VECTOR;

/// Sums of `q + 128` times the high and the low plane, both `q.len()` bytes and zeros up to a multiple of 64.
///
/// # Safety
/// The CPU must have the instruction set; the planes must be that long.
pub(crate) type RowDot = unsafe fn(q: &[u8], planes: [*const u8; 2]) -> [i32; 2];

/// Bytes that are asked for ahead, from the rows to come.
const PREFETCH: usize = 4096;

/// Vectors whose products are summed apart, to hide latencies.
const APART: usize = 2;

#[inline(always)]
unsafe fn dot<T: Vector>(q: &[u8], [high, low]: [*const u8; 2]) -> [i32; 2] {
    let zero = T::load_sums([0i32; 16].as_ptr());
    let flip = T::load([0x80u8; VECTOR].as_ptr());
    let mut sums = [[zero; 2]; APART];
    let whole = q.len() / VECTOR * VECTOR;
    let mut tail = [0; VECTOR];
    tail[..q.len() - whole].copy_from_slice(&q[whole..]);
    for first in (0..q.len()).step_by(VECTOR) {
        let q = if first < whole { q.as_ptr().add(first) } else { tail.as_ptr() };
        T::prefetch(q.wrapping_add(PREFETCH));
        for part in (0..VECTOR).step_by(T::BYTES) {
            let n = if T::BYTES == VECTOR { first / VECTOR } else { part / T::BYTES } % APART;
            let w = T::xor(T::load(q.add(part)), flip);
            sums[n][0] = T::dot(sums[n][0], w, T::load(high.add(first + part)));
            sums[n][1] = T::dot(sums[n][1], w, T::load(low.add(first + part)));
        }
    }
    let mut totals = [[0; 16]; 2];
    for sums in sums {
        for (total, sums) in totals.iter_mut().zip(sums) {
            let mut lanes = [0; 16];
            T::store_sums(lanes.as_mut_ptr(), sums);
            total.iter_mut().zip(lanes).for_each(|(total, lane)| *total += lane);
        }
    }
    totals.map(|lanes| lanes.iter().sum())
}

unsafe fn portable(q: &[u8], planes: [*const u8; 2]) -> [i32; 2] {
    dot::<super::portable::Portable<16>>(q, planes)
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
unsafe fn avx2(q: &[u8], planes: [*const u8; 2]) -> [i32; 2] {
    dot::<super::x86::Avx2>(q, planes)
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,gfni,avxvnni")]
unsafe fn avx2_gfni(q: &[u8], planes: [*const u8; 2]) -> [i32; 2] {
    dot::<super::x86::Avx2Gfni>(q, planes)
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vbmi,avx512vnni,gfni")]
unsafe fn avx512(q: &[u8], planes: [*const u8; 2]) -> [i32; 2] {
    dot::<super::x86::Avx512>(q, planes)
}

/// The function of a path.
///
/// # Panics
/// If the CPU cannot run the path.
pub(crate) fn row_dot(isa: Isa) -> RowDot {
    assert!(isa.is_available(), "{}", IsaError::Unavailable(isa));
    match isa {
        #[cfg(target_arch = "x86_64")]
        Isa::Avx2 => avx2,
        #[cfg(target_arch = "x86_64")]
        Isa::Avx2Gfni => avx2_gfni,
        #[cfg(target_arch = "x86_64")]
        Isa::Avx512 | Isa::Avx512Amx => avx512,
        _ => portable,
    }
}
