//! Dot products of int8 rows with f32 vectors. Plain Rust, vectorized by the compiler for each instruction set.
use super::{Isa, IsaError};

/// `q . x` over equal lengths; unsafe because the CPU must have the instruction set.
pub(crate) type RowDot = unsafe fn(q: &[u8], x: &[f32]) -> f32;

/// Independent sums, enough to hide the latency of multiply-adds.
const SUMS: usize = 64;

#[inline(always)]
fn dot<const FMA: bool>(q: &[u8], x: &[f32]) -> f32 {
    let mut sums = [0.0f32; SUMS];
    let ((q_body, q_tail), (x_body, x_tail)) = (q.as_chunks::<SUMS>(), x.as_chunks::<SUMS>());
    for (q, x) in q_body.iter().zip(x_body) {
        for ((sum, q), x) in sums.iter_mut().zip(q).zip(x) {
            let q = f32::from(*q as i8);
            *sum = if FMA { q.mul_add(*x, *sum) } else { q * x + *sum };
        }
    }
    for ((sum, q), x) in sums.iter_mut().zip(q_tail).zip(x_tail) {
        *sum += f32::from(*q as i8) * x;
    }
    let mut width = SUMS / 2;
    while width > 0 {
        for i in 0..width {
            sums[i] += sums[i + width];
        }
        width /= 2;
    }
    sums[0]
}

fn portable(q: &[u8], x: &[f32]) -> f32 {
    dot::<false>(q, x)
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma")]
fn avx2(q: &[u8], x: &[f32]) -> f32 {
    dot::<true>(q, x)
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,fma")]
fn avx512(q: &[u8], x: &[f32]) -> f32 {
    dot::<true>(q, x)
}

/// The function of a path.
///
/// # Panics
/// If the CPU cannot run the path.
pub(crate) fn row_dot(isa: Isa) -> RowDot {
    assert!(isa.is_available(), "{}", IsaError::Unavailable(isa));
    match isa {
        #[cfg(target_arch = "x86_64")]
        Isa::Avx2 | Isa::Avx2Gfni => avx2,
        #[cfg(target_arch = "x86_64")]
        Isa::Avx512 => avx512,
        _ => portable,
    }
}
