//! Dot products of int8 rows with activations in two bytes.
use super::prefetch::{prefetch, Distances};
use super::vector::Vector;
use super::{Isa, IsaError};
use crate::layout::VECTOR;

/// Activations of a token in two bytes, one scale for each.
#[derive(Default)]
pub(crate) struct TwoBytes {
    /// Whole vectors; zeros beyond the last column.
    pub bytes: [Vec<i8>; 2],
    /// -128 times the sum of the bytes.
    pub starts: [i32; 2],
    /// Value of 1.
    pub steps: [f32; 2],
}

/// Most columns of a row: its sums fit into 32 bits.
pub(crate) const MOST_COLUMNS: usize = i32::MAX as usize / (128 * 127);

/// `y[r] = scales[r] * row r . x` of rows that stand one after another.
///
/// # Safety
/// The CPU must have the instruction set.
pub(crate) type RowsDot = unsafe fn(q: &[u8], scales: &[f32], x: &TwoBytes, y: &mut [f32]);

/// Vectors of a row whose lines of the cache are asked for at once.
const STEP: usize = 4;

#[inline(always)]
unsafe fn dot<T: Vector>(q: &[u8], scales: &[f32], x: &TwoBytes, y: &mut [f32]) {
    let columns = q.len() / y.len();
    let (whole, rest) = (columns / VECTOR, columns % VECTOR);
    let bytes = x.bytes.each_ref().map(|bytes| bytes[..columns.next_multiple_of(VECTOR)].as_ptr().cast::<u8>());
    let distances = Distances::in_order();
    let zero = T::start(T::load([0; VECTOR].as_ptr()));
    let starts = if T::SIGNED { [0; 2] } else { x.starts };
    for ((q, scale), y) in q.chunks_exact(columns).zip(scales).zip(y) {
        // Sums of vectors in turn, to hide latencies.
        let mut sums = [[zero; 2]; 2];
        // What is prefetched belongs to the rows to come.
        for first in 0..whole / STEP {
            let at = first * STEP * VECTOR;
            prefetch::<T>(q.as_ptr().add(at), STEP, distances);
            for n in 0..STEP {
                add_vector::<T>(&mut sums[n % 2], q.as_ptr().add(at + n * VECTOR), bytes, at + n * VECTOR);
            }
        }
        for n in whole / STEP * STEP..whole {
            prefetch::<T>(q.as_ptr().add(n * VECTOR), 1, distances);
            add_vector::<T>(&mut sums[0], q.as_ptr().add(n * VECTOR), bytes, n * VECTOR);
        }
        if rest > 0 {
            let mut tail = [0; VECTOR];
            tail[..rest].copy_from_slice(&q[whole * VECTOR..]);
            add_vector::<T>(&mut sums[0], tail.as_ptr(), bytes, whole * VECTOR);
        }
        let [first, second] = sums;
        let total = |n: usize| starts[n].wrapping_add(add_up::<T>(first[n])).wrapping_add(add_up::<T>(second[n])) as f32;
        *y = scale * (x.steps[0] * total(0) + x.steps[1] * total(1));
    }
}

/// Adds the products of 64 columns, which begin at `at`.
#[inline(always)]
unsafe fn add_vector<T: Vector>(sums: &mut [T::Sums; 2], q: *const u8, x: [*const u8; 2], at: usize) {
    for part in (0..VECTOR).step_by(T::BYTES) {
        let levels = T::bytes(T::from_signed(T::load(q.add(part))));
        for (sums, x) in sums.iter_mut().zip(x) {
            *sums = T::dot_bytes(*sums, levels, T::load(x.add(at + part)));
        }
    }
}

/// Sum of all lanes, which wraps around.
#[inline(always)]
unsafe fn add_up<T: Vector>(sums: T::Sums) -> i32 {
    let lanes = (&raw const sums).cast::<i32>();
    (0..T::BYTES / 4).fold(0, |sum: i32, lane| sum.wrapping_add(lanes.add(lane).read()))
}

unsafe fn portable(q: &[u8], scales: &[f32], x: &TwoBytes, y: &mut [f32]) {
    dot::<super::portable::Portable<16>>(q, scales, x, y)
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma")]
unsafe fn avx2(q: &[u8], scales: &[f32], x: &TwoBytes, y: &mut [f32]) {
    dot::<super::x86::Avx2>(q, scales, x, y)
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma,gfni,avxvnni")]
unsafe fn avx2_gfni(q: &[u8], scales: &[f32], x: &TwoBytes, y: &mut [f32]) {
    dot::<super::x86::Avx2Gfni>(q, scales, x, y)
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vbmi,avx512vnni,gfni")]
unsafe fn avx512(q: &[u8], scales: &[f32], x: &TwoBytes, y: &mut [f32]) {
    dot::<super::x86::Avx512>(q, scales, x, y)
}

/// The function of a path.
///
/// # Panics
/// If the CPU cannot run the path.
pub(crate) fn rows_dot(isa: Isa) -> RowsDot {
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

#[cfg(test)]
mod tests {
    use super::*;
    use rand::{Rng, SeedableRng};

    #[test]
    fn all_paths_agree() {
        let mut rng = rand_chacha::ChaCha8Rng::seed_from_u64(5);
        for _ in 0..60 {
            let (rows, columns) = (rng.random_range(1..20), rng.random_range(1..1500usize));
            let q: Vec<u8> = (0..rows * columns).map(|_| rng.random()).collect();
            let mut bytes = || {
                let x = (0..columns.next_multiple_of(VECTOR)).map(|j| if j < columns { rng.random_range(-127..=127) } else { 0 });
                x.collect::<Vec<i8>>()
            };
            let bytes = [bytes(), bytes()];
            let sum = |x: &[i8]| x.iter().map(|q| i32::from(*q)).sum::<i32>();
            let x = TwoBytes { starts: [-128 * sum(&bytes[0]), -128 * sum(&bytes[1])], bytes, steps: [0.5, 0.001] };
            let scales: Vec<f32> = (0..rows).map(|_| rng.random_range(0.0..1.0)).collect();
            let product = |isa: Isa| {
                let mut y = vec![f32::NAN; rows];
                // SAFETY: only for paths that this CPU can run.
                unsafe { rows_dot(isa)(&q, &scales, &x, &mut y) };
                y
            };
            let exact = |r: usize| {
                let total =
                    |x: &[i8]| q[r * columns..].iter().zip(&x[..columns]).map(|(q, x)| i64::from(*q as i8) * i64::from(*x)).sum::<i64>();
                scales[r] * (x.steps[0] * total(&x.bytes[0]) as f32 + x.steps[1] * total(&x.bytes[1]) as f32)
            };
            let expected: Vec<f32> = (0..rows).map(exact).collect();
            assert!(Isa::ALL.into_iter().filter(|isa| isa.is_available()).all(|isa| product(isa) == expected), "{rows} x {columns}");
        }
    }
}
