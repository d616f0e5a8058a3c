//! Dot products of int8 rows with quantized activations.
use super::inputs::Inputs;
use super::vector::{prefetch, Vector};
use super::{Isa, IsaError};
use crate::layout::VECTOR;
use std::ops::Range;

/// The product of a row by the inputs of a token, in one lane.
///
/// # Safety
/// The CPU must have the instruction set; inputs must have as many columns.
pub(crate) type RowDot = unsafe fn(q: &[u8], x: &Inputs, inputs: Range<usize>) -> f32;

/// Sections whose products are summed apart, to hide latencies.
const APART: usize = 2;

#[inline(always)]
unsafe fn dot<T: Vector>(q: &[u8], x: &Inputs, inputs: Range<usize>) -> f32 {
    match inputs.len() {
        1 => dot_by::<T, 1>(q, x, [inputs.start]),
        _ => dot_by::<T, 2>(q, x, [inputs.start, inputs.start + 1]),
    }
}

#[inline(always)]
unsafe fn dot_by<T: Vector, const N: usize>(q: &[u8], x: &Inputs, inputs: [usize; N]) -> f32 {
    let mut sums = [[T::load_floats([0.0; 16].as_ptr()); 4]; APART];
    let whole = q.len() / VECTOR;
    let mut tail = [0; VECTOR];
    tail[..q.len() % VECTOR].copy_from_slice(&q[whole * VECTOR..]);
    let first = inputs.map(|input| x.section(input, 0));
    let scales = inputs.map(|input| x.scales[input * x.sections..][..x.sections].as_ptr());
    for section in (0..x.sections).step_by(APART) {
        for (n, sums) in sums.iter_mut().enumerate() {
            let section = section + n;
            if section == x.sections {
                break;
            }
            let q = if section < whole { q.as_ptr().add(section * VECTOR) } else { tail.as_ptr() };
            // From the rows to come.
            prefetch::<T>(q, 1);
            for (part, sums) in sums.iter_mut().enumerate().take(VECTOR / T::BYTES) {
                let at = part * T::BYTES;
                let levels = T::bytes(T::from_signed(T::load(q.add(at))));
                for (x, scales) in first.iter().zip(scales) {
                    let at = section * VECTOR + at;
                    let sum = T::dot_bytes(T::start(T::load(x.start.add(at))), levels, T::load(x.bytes.add(at)));
                    *sums = T::add_scaled(*sums, sum, *scales.add(section));
                }
            }
        }
    }
    let mut lanes = [[0.0; 16]; APART];
    for (lanes, sums) in lanes.iter_mut().zip(sums) {
        for (lanes, sums) in lanes.chunks_exact_mut(T::BYTES / 4).zip(sums) {
            T::store_floats(lanes.as_mut_ptr(), sums);
        }
    }
    lanes.iter().flatten().sum()
}

unsafe fn portable(q: &[u8], x: &Inputs, inputs: Range<usize>) -> f32 {
    dot::<super::portable::Portable<16>>(q, x, inputs)
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma")]
unsafe fn avx2(q: &[u8], x: &Inputs, inputs: Range<usize>) -> f32 {
    dot::<super::x86::Avx2>(q, x, inputs)
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma,gfni,avxvnni")]
unsafe fn avx2_gfni(q: &[u8], x: &Inputs, inputs: Range<usize>) -> f32 {
    dot::<super::x86::Avx2Gfni>(q, x, inputs)
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vbmi,avx512vnni,gfni")]
unsafe fn avx512(q: &[u8], x: &Inputs, inputs: Range<usize>) -> f32 {
    dot::<super::x86::Avx512>(q, x, inputs)
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
