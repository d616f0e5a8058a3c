//! Fused steps between the products, on f32 tensors in main memory: safe loops that `pulp` compiles for each instruction set. None contracts to fused
//! multiply-adds and sums run in fixed lanes, so the result depends neither on the machine nor on the number of threads.
use candle_core::{bail, CpuStorage, InplaceOp2, Layout, Result, Storage, Tensor};
use rayon::prelude::*;
use std::ops::Deref;

/// Values a task of an elementwise step: some ten microseconds of work.
const CHUNK: usize = 1 << 14;

/// The values of a tensor, for as long as the guard lives.
pub(crate) fn guard(x: &Tensor) -> Guard<'_, impl Deref<Target = Storage> + '_> {
    let (storage, layout) = x.storage_and_layout();
    Guard { storage, layout }
}

pub(crate) struct Guard<'a, S> {
    storage: S,
    layout: &'a Layout,
}

impl<S: Deref<Target = Storage>> Guard<'_, S> {
    /// From the tensor's first value on.
    pub(crate) fn values(&self) -> Result<&[f32]> {
        match &*self.storage {
            Storage::Cpu(CpuStorage::F32(values)) => Ok(&values[self.layout.start_offset()..]),
            _ => bail!("a fused step was given a tensor that is not f32 in main memory"),
        }
    }

    /// All values of a contiguous tensor.
    pub(crate) fn contiguous(&self) -> Result<&[f32]> {
        if !self.layout.is_contiguous() {
            bail!("a fused step was given a tensor with gaps")
        }
        Ok(&self.values()?[..self.layout.shape().elem_count()])
    }
}

/// `[batch, tokens, heads * dim]` as `[batch, heads, tokens, dim]`, contiguous, and rotated if `angles` (cosines and sines f32 `[tokens, dim / 2]`) are given:
/// feature `i` and `i + dim / 2` are a pair.
pub(crate) fn split_heads(x: &Tensor, heads: usize, angles: Option<&(Tensor, Tensor)>) -> Result<Tensor> {
    let (batch, tokens, features) = x.dims3()?;
    let dim = features / heads;
    let x_guard = guard(x);
    let x_values = x_guard.contiguous()?;
    let angles = angles.map(|(cos, sin)| (guard(cos), guard(sin)));
    let angles = match &angles {
        Some((cos, sin)) => Some((cos.contiguous()?, sin.contiguous()?)),
        None => None,
    };
    let mut y = vec![0f32; x_values.len()];
    y.par_chunks_mut(dim * tokens).enumerate().with_min_len(CHUNK.div_ceil(dim * tokens)).for_each(|(i, head)| {
        let (b, h) = (i / heads, i % heads);
        for (t, y) in head.chunks_exact_mut(dim).enumerate() {
            let x = &x_values[(b * tokens + t) * features + h * dim..][..dim];
            let Some((cos, sin)) = angles else {
                y.copy_from_slice(x);
                continue;
            };
            let half = dim / 2;
            let (cos, sin) = (&cos[t * half..][..half], &sin[t * half..][..half]);
            let ((x1, x2), (y1, y2)) = (x.split_at(half), y.split_at_mut(half));
            for i in 0..half {
                y1[i] = x1[i] * cos[i] - x2[i] * sin[i];
                y2[i] = x2[i] * cos[i] + x1[i] * sin[i];
            }
        }
    });
    Tensor::from_vec(y, (batch, heads, tokens, dim), x.device())
}

/// `gate <- silu(gate) * up`, both contiguous and of one shape.
pub(crate) fn swiglu(gate: &Tensor, up: &Tensor) -> Result<()> {
    gate.inplace_op2(
        up,
        &Pairwise("swiglu", |gate: &mut [f32], up: &[f32]| {
            for (g, u) in gate.iter_mut().zip(up) {
                *g = *g / (1.0 + exp(-*g)) * u;
            }
        }),
    )
}

/// `x <- x + y`, both contiguous and of one shape.
pub(crate) fn add(x: &Tensor, y: &Tensor) -> Result<()> {
    x.inplace_op2(
        y,
        &Pairwise("add", |x: &mut [f32], y: &[f32]| {
            for (x, y) in x.iter_mut().zip(y) {
                *x += y;
            }
        }),
    )
}

/// An elementwise step that changes its first operand.
struct Pairwise<F>(&'static str, F);

impl<F: Fn(&mut [f32], &[f32]) + Sync> InplaceOp2 for Pairwise<F> {
    fn name(&self) -> &'static str {
        self.0
    }

    fn cpu_fwd(&self, x: &mut CpuStorage, x_layout: &Layout, y: &CpuStorage, y_layout: &Layout) -> Result<()> {
        let (Some((x_start, x_end)), Some((y_start, y_end))) = (x_layout.contiguous_offsets(), y_layout.contiguous_offsets()) else {
            bail!("{} needs contiguous operands", self.0)
        };
        let (CpuStorage::F32(x), CpuStorage::F32(y)) = (x, y) else { bail!("{} needs f32 operands", self.0) };
        if x_layout.shape() != y_layout.shape() {
            bail!("{} was given shapes {:?} and {:?}", self.0, x_layout.dims(), y_layout.dims())
        }
        let arch = pulp::Arch::new();
        x[x_start..x_end].par_chunks_mut(CHUNK).zip(y[y_start..y_end].par_chunks(CHUNK)).for_each(|(x, y)| {
            arch.dispatch(
                #[inline(always)]
                || (self.1)(x, y),
            )
        });
        Ok(())
    }
}

/// `row <- softmax(scale * row)`; `scale` is positive. For use inside `pulp`'s dispatch.
#[inline(always)]
pub(crate) fn softmax(row: &mut [f32], scale: f32) {
    const LANES: usize = 16;
    let (lanes, rest) = row.as_chunks::<LANES>();
    let mut maxima = [f32::NEG_INFINITY; LANES];
    for x in lanes {
        for (max, x) in maxima.iter_mut().zip(x) {
            *max = if *x > *max { *x } else { *max };
        }
    }
    let max = maxima.iter().chain(rest).fold(f32::NEG_INFINITY, |max, &x| if x > max { x } else { max });

    let mut sums = [0f32; LANES];
    let (lanes, rest) = row.as_chunks_mut::<LANES>();
    for x in lanes {
        for (sum, x) in sums.iter_mut().zip(x) {
            *x = exp((*x - max) * scale);
            *sum += *x;
        }
    }
    for (sum, x) in sums.iter_mut().zip(rest) {
        *x = exp((*x - max) * scale);
        *sum += *x;
    }
    let inverse = 1.0 / sums.iter().sum::<f32>();
    for x in row {
        *x *= inverse;
    }
}

/// `e^x` within 2 units in the last place, without branches so that loops over it vectorize; beyond the range of normal f32 numbers it gives the nearest end of
/// that range.
#[inline(always)]
fn exp(x: f32) -> f32 {
    // x = n ln 2 + r with |r| <= ln 2 / 2; ln 2 in two parts, the first exact in products with n.
    let x = if x < -87.3 { -87.3 } else { x };
    let x = if x > 88.3 { 88.3 } else { x };
    const ROUND: f32 = 12582912.0; // 1.5 * 2^23: adding it rounds to an integer.
    let shifted = x * std::f32::consts::LOG2_E + ROUND;
    let n = shifted - ROUND;
    let r = x - n * 0.693_359_4 + n * 2.121_944_4e-4;
    // Taylor's series, its last coefficients adjusted for the interval (Cephes' expf).
    let p = 1.987_569_1e-4;
    let p = p * r + 1.398_199_9e-3;
    let p = p * r + 8.333_452e-3;
    let p = p * r + 4.166_579_6e-2;
    let p = p * r + 1.666_666_5e-1;
    let p = p * r + 0.5;
    let power = f32::from_bits((shifted.to_bits().wrapping_sub(ROUND.to_bits()).wrapping_add(127)) << 23);
    (p * r * r + r + 1.0) * power
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::Device;

    #[test]
    fn exponential() {
        for i in -87_000..=88_000 {
            let x = i as f32 / 1000.0;
            let exact = (x as f64).exp();
            assert!((exp(x) as f64 - exact).abs() <= 2.5e-7 * exact, "{x}: {} {exact}", exp(x));
        }
        assert_eq!(exp(0.0), 1.0);
        for (x, bound) in [(-1e30, 0.0), (f32::NEG_INFINITY, 0.0)] {
            assert!((exp(x) - bound).abs() < 1e-37);
        }
        assert!(exp(1e30) > 1e38 && exp(1e30).is_finite());
        assert!(exp(f32::NAN).is_nan());
    }

    #[test]
    fn softmax_of_all_lengths() {
        for n in 1..70 {
            let mut row: Vec<f32> = (0..n).map(|i| ((i * 37) % 23) as f32 - 7.0).collect();
            let sum: f64 = row.iter().map(|&x| (0.5 * x as f64).exp()).sum();
            let exact: Vec<f64> = row.iter().map(|&x| (0.5 * x as f64).exp() / sum).collect();
            softmax(&mut row, 0.5);
            assert!(row.iter().zip(&exact).all(|(a, b)| (*a as f64 - b).abs() < 1e-6 * b), "{n}");
        }
    }

    #[test]
    fn elementwise_steps() {
        let n = 3 * CHUNK + 5;
        let values =
            |k: usize| Tensor::from_vec((0..n).map(|i| ((i * k) % 41) as f32 * 0.5 - 10.0).collect::<Vec<_>>(), n, &Device::Cpu).unwrap();
        let (gate, up) = (values(7), values(11));
        let expected = (candle_nn::ops::silu(&gate).unwrap() * &up).unwrap();
        swiglu(&gate, &up).unwrap();
        let largest = ((gate - expected).unwrap().abs().unwrap().max(0).unwrap()).to_scalar::<f32>().unwrap();
        assert!(largest < 1e-5, "{largest}");
        assert!(add(&up, &values(1).narrow(0, 1, n - 1).unwrap()).is_err());
    }
}
