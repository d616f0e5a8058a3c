//! Keys and values of earlier tokens.
use crate::config::Config;
use crate::ops::guard;
use candle_core::{bail, Result, Tensor};
use half::f16;
use half::slice::{HalfBitsSliceExt, HalfFloatSliceExt};
use std::fmt;
use std::ops::Range;
use std::str::FromStr;

/// How a KV cache stores its values.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum KvType {
    /// 32 bits: nothing is rounded.
    F32,
    /// 16 bits, IEEE half precision; magnitudes above 65504 are stored as that.
    #[default]
    F16,
    /// 8 bits, and an f32 scale for each head of a token.
    Int8,
}

impl KvType {
    /// All types and their names.
    pub const ALL: [(KvType, &'static str); 3] = [(KvType::F32, "f32"), (KvType::F16, "f16"), (KvType::Int8, "int8")];

    /// Bytes of the key or the value of one head of a token.
    pub fn bytes(self, head_dim: usize) -> usize {
        match self {
            KvType::F32 => 4 * head_dim,
            KvType::F16 => 2 * head_dim,
            KvType::Int8 => head_dim + 4,
        }
    }
}

impl fmt::Display for KvType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(KvType::ALL.iter().find(|(kv, _)| kv == self).map_or("", |(_, name)| name))
    }
}

impl FromStr for KvType {
    type Err = String;

    fn from_str(name: &str) -> std::result::Result<Self, String> {
        let known = KvType::ALL.iter().find(|(_, known)| *known == name);
        known.map(|(kv, _)| *kv).ok_or_else(|| format!("KV caches are stored as {}", KvType::ALL.map(|(_, name)| name).join(", ")))
    }
}

/// Keys and values of all blocks for `batch` sequences of equal length, preallocated; appending copies nothing old.
pub struct KvCache {
    /// Keys and values of each block; made with its first keys.
    blocks: Vec<Option<[Stored; 2]>>,
    kv: KvType,
    /// `[batch, kv_heads, capacity, head_dim]`.
    shape: [usize; 4],
    len: usize,
}

/// Keys or values of a block, `[batch, kv_heads, capacity, head_dim]`. Half precision is kept as its bits: zeros of a plain integer are memory that has not
/// been touched.
enum Stored {
    F32(Vec<f32>),
    F16(Vec<u16>),
    Int8(Vec<i8>, Vec<f32>),
}

impl Stored {
    fn new(kv: KvType, rows: usize, dim: usize) -> Self {
        match kv {
            KvType::F32 => Self::F32(vec![0.0; rows * dim]),
            KvType::F16 => Self::F16(vec![0; rows * dim]),
            KvType::Int8 => Self::Int8(vec![0; rows * dim], vec![0.0; rows]),
        }
    }

    /// Writes rows of `dim` values from row `first` on.
    fn write(&mut self, first: usize, dim: usize, values: &[f32]) {
        let at = first * dim..first * dim + values.len();
        match self {
            Self::F32(stored) => stored[at].copy_from_slice(values),
            Self::F16(stored) => {
                let stored = stored[at].reinterpret_cast_mut::<f16>();
                stored.convert_from_f32_slice(values);
                let beyond = stored.iter_mut().zip(values).filter(|(v, x)| v.is_infinite() && x.is_finite());
                beyond.for_each(|(v, _)| *v = f16::MAX.copysign(*v));
            }
            Self::Int8(stored, scales) => {
                let rows = values.chunks_exact(dim).zip(stored[at].chunks_exact_mut(dim)).zip(&mut scales[first..]);
                for ((values, stored), scale) in rows {
                    // A value that is not finite makes the whole row NaN, as it makes the scores.
                    let largest = values.iter().fold(0f32, |max, v| max.max(v.abs()));
                    *scale = if values.iter().all(|v| v.is_finite()) { largest / 127.0 } else { f32::NAN };
                    let inverse = if *scale > 0.0 { 1.0 / *scale } else { 0.0 };
                    stored.iter_mut().zip(values).for_each(|(q, v)| *q = (v * inverse).round() as i8);
                }
            }
        }
    }

    fn rows(&self, step: usize, dim: usize) -> Rows<'_> {
        let values = match self {
            Self::F32(values) => Values::F32(values),
            Self::F16(values) => Values::F16(values.reinterpret_cast()),
            Self::Int8(values, scales) => Values::Int8(values, scales),
        };
        Rows { values, step, dim }
    }
}

/// Keys or values as attention reads them: rows of one head side by side.
#[derive(Clone, Copy)]
pub(crate) struct Rows<'a> {
    values: Values<'a>,
    /// Rows from one head to the next.
    step: usize,
    /// Values of a row.
    dim: usize,
}

#[derive(Clone, Copy)]
enum Values<'a> {
    F32(&'a [f32]),
    F16(&'a [f16]),
    Int8(&'a [i8], &'a [f32]),
}

impl<'a> Rows<'a> {
    /// Rows of `dim` values that are f32 and not in a cache.
    pub fn new(values: &'a [f32], step: usize, dim: usize) -> Self {
        Self { values: Values::F32(values), step, dim }
    }

    /// Rows `rows` of head `head`, in `scratch` if they have to be converted. For use inside `pulp`'s dispatch.
    #[inline(always)]
    pub fn read<'b>(&self, head: usize, rows: Range<usize>, scratch: &'b mut Vec<f32>) -> &'b [f32]
    where
        'a: 'b,
    {
        let rows = head * self.step + rows.start..head * self.step + rows.end;
        let at = rows.start * self.dim..rows.end * self.dim;
        match self.values {
            Values::F32(values) => &values[at],
            Values::F16(values) => {
                scratch.clear();
                scratch.extend(values[at].iter().map(|v| widen(*v)));
                scratch
            }
            Values::Int8(values, scales) => {
                scratch.clear();
                for (row, scale) in values[at].chunks_exact(self.dim).zip(&scales[rows]) {
                    scratch.extend(row.iter().map(|&q| f32::from(q) * scale));
                }
                scratch
            }
        }
    }
}

/// A half as f32, exactly; without a call for every eight of them, so that loops over it vectorize.
#[inline(always)]
fn widen(v: f16) -> f32 {
    let bits = u32::from(v.to_bits());
    let (sign, rest) = (bits & 0x8000, bits & 0x7FFF);
    // Exponent and mantissa in place, the exponent too small by 127 - 15.
    let finite = f32::from_bits(rest << 13) * f32::from_bits((127 + 112) << 23);
    let magnitude = if rest >= 0x7C00 { 0x7F80_0000 | rest << 13 } else { finite.to_bits() };
    f32::from_bits(magnitude | sign << 16)
}

impl KvCache {
    /// Room for `context` tokens of `batch` sequences: `layers * 2 * batch * kv_heads * context` times [`KvType::bytes`], touched as they are filled.
    ///
    /// # Errors
    /// If `batch` or `context` is 0, `context` is above the model's longest, or the memory cannot be had.
    pub fn new(config: &Config, kv: KvType, batch: usize, context: usize) -> Result<Self> {
        if batch == 0 || context == 0 {
            bail!("a KV cache needs room for at least one sequence and one token")
        }
        if context > config.max_context {
            bail!("a context of {context} tokens was asked for; the model's longest is {} tokens", config.max_context)
        }
        let factors = [2, config.layers, batch, config.kv_heads, context, kv.bytes(config.head_dim)];
        let bytes = factors.iter().try_fold(1usize, |n, &factor| n.checked_mul(factor));
        if bytes.is_none_or(|n| Vec::<u8>::new().try_reserve_exact(n).is_err()) {
            bail!("no memory for a KV cache of {batch} x {context} tokens; ask for a shorter context")
        }
        let blocks = (0..config.layers).map(|_| None).collect();
        Ok(Self { blocks, kv, shape: [batch, config.kv_heads, context, config.head_dim], len: 0 })
    }

    /// Tokens held.
    pub fn len(&self) -> usize {
        self.len
    }

    /// True before the first token.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Tokens it has room for.
    pub fn capacity(&self) -> usize {
        self.shape[2]
    }

    /// Sequences it holds.
    pub fn batch(&self) -> usize {
        self.shape[0]
    }

    /// Forgets everything after the first `len` tokens.
    pub fn truncate(&mut self, len: usize) {
        self.len = self.len.min(len);
    }

    /// That `tokens` more of `batch` sequences fit in a cache of `layers` blocks.
    pub(crate) fn check(&self, layers: usize, batch: usize, tokens: usize) -> Result<()> {
        if layers != self.blocks.len() || batch != self.batch() {
            bail!(
                "a KV cache for {} blocks and {} sequences was used with {layers} blocks and {batch} sequences",
                self.blocks.len(),
                self.batch()
            )
        }
        if tokens > self.capacity() - self.len {
            bail!("{} tokens do not fit in the context of {} tokens ({} are held already)", tokens, self.capacity(), self.len)
        }
        Ok(())
    }

    /// Writes keys and values f32 `[batch, kv_heads, tokens, head_dim]`, contiguous, behind the tokens held, and returns all with them.
    /// The length changes in [`Self::advance`] only, so that an error in between leaves the cache as it was.
    pub(crate) fn append(&mut self, block: usize, k: &Tensor, v: &Tensor) -> Result<[Rows<'_>; 2]> {
        let [batch, kv_heads, capacity, dim] = self.shape;
        let tokens = k.dim(2)?;
        for tensor in [k, v] {
            if tensor.dims() != [batch, kv_heads, tokens, dim] {
                bail!("a KV cache of {:?} was given keys or values of {:?}", self.shape, tensor.dims())
            }
        }
        let new = || Stored::new(self.kv, batch * kv_heads * capacity, dim);
        let stored = self.blocks[block].get_or_insert_with(|| [new(), new()]);
        for (stored, tensor) in stored.iter_mut().zip([k, v]) {
            let guard = guard(tensor);
            for (head, values) in guard.contiguous()?.chunks_exact(tokens * dim).enumerate() {
                stored.write(head * capacity + self.len, dim, values);
            }
        }
        Ok([stored[0].rows(capacity, dim), stored[1].rows(capacity, dim)])
    }

    /// Counts `tokens` that every block has appended.
    pub(crate) fn advance(&mut self, tokens: usize) {
        self.len += tokens;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stored(kv: KvType, values: &[f32], dim: usize) -> Vec<f32> {
        let mut stored = Stored::new(kv, 2 + values.len() / dim, dim);
        stored.write(1, dim, values);
        let mut scratch = Vec::new();
        stored.rows(0, dim).read(0, 1..1 + values.len() / dim, &mut scratch).to_vec()
    }

    #[test]
    fn types_round_as_they_say() {
        let values: Vec<f32> = (0..160).map(|i| ((i * 37 % 101) as f32 - 50.0) * 0.013).collect();
        assert_eq!(stored(KvType::F32, &values, 16), values);
        for (kv, share) in [(KvType::F16, 5e-4), (KvType::Int8, 4.1e-3)] {
            for (row, rounded) in values.chunks(16).zip(stored(kv, &values, 16).chunks(16)) {
                let largest = row.iter().fold(0f32, |max, v| max.max(v.abs()));
                assert!(row.iter().zip(rounded).all(|(a, b)| (a - b).abs() <= share * largest), "{kv}: {row:?} {rounded:?}");
            }
        }
    }

    #[test]
    fn far_and_broken_values() {
        let values = [1e6, -1e6, 1.0, 0.0];
        assert_eq!(stored(KvType::F16, &values, 4), [65504.0, -65504.0, 1.0, 0.0]);
        assert_eq!(stored(KvType::Int8, &[0.0; 4], 4), [0.0; 4]);
        for kv in KvType::ALL.map(|(kv, _)| kv) {
            for broken in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
                assert!(stored(kv, &[0.5, broken], 2).iter().any(|v| !v.is_finite()), "{kv} {broken}");
            }
        }
    }

    #[test]
    fn all_halves_are_widened_exactly() {
        for half in (0..=u16::MAX).map(f16::from_bits) {
            let exact = half.to_f32();
            assert!(widen(half).to_bits() == exact.to_bits() || (exact.is_nan() && widen(half).is_nan()), "{half:?}");
        }
    }

    #[test]
    fn names() {
        for (kv, name) in KvType::ALL {
            assert_eq!((name.parse(), kv.to_string()), (Ok(kv), name.to_owned()));
        }
        assert!("q4".parse::<KvType>().unwrap_err().contains("int8"));
    }
}
