//! Causal attention with grouped queries, in tiles of queries.
use candle_core::{bail, CpuStorage, InplaceOp1, Layout, Result, Tensor};
use rayon::prelude::*;

/// Queries a tile: keys after a tile's last query are not touched, and its scores stay in the cache.
const TILE: usize = 64;

/// Attention of `tokens` new queries over `keys >= tokens` keys, the last query at the last key.
///
/// `q`: f32 `[batch, heads, tokens, head_dim]`, contiguous; `k`, `v`: f32 `[batch, kv_heads, keys, head_dim]`, rows may be spaced.
/// Returns f32 `[batch, tokens, heads * head_dim]`, and if `received` is asked for the attention that each key receives, summed over heads and queries,
/// f32 `[batch, keys]`.
pub(crate) fn attend(q: &Tensor, k: &Tensor, v: &Tensor, received: bool) -> Result<(Tensor, Option<Tensor>)> {
    let (batch, heads, tokens, head_dim) = q.dims4()?;
    let (_, kv_heads, keys, _) = k.dims4()?;
    let group = heads / kv_heads;
    let past = keys - tokens;
    let q = q.reshape((batch, kv_heads, group, tokens, head_dim))?;
    let tiles: Vec<_> = (0..batch).flat_map(|b| (0..tokens).step_by(TILE).map(move |start| (b, start))).collect();
    let parts = tiles
        .into_par_iter()
        .map(|(b, start)| {
            let rows = TILE.min(tokens - start);
            let seen = past + start + rows;
            let q = q.get(b)?.narrow(2, start, rows)?.reshape((kv_heads, group * rows, head_dim))?;
            let k = k.get(b)?.narrow(1, 0, seen)?;
            let v = v.get(b)?.narrow(1, 0, seen)?;
            let scores = q.matmul(&k.t()?)?;
            scores.inplace_op1(&CausalSoftmax { scale: 1.0 / (head_dim as f32).sqrt(), rows })?;
            let out = scores.matmul(&v)?.reshape((heads, rows, head_dim))?.transpose(0, 1)?.contiguous()?;
            let received = match received {
                true => Some(scores.sum((0, 1))?.pad_with_zeros(0, 0, keys - seen)?),
                false => None,
            };
            Ok((out, received))
        })
        .collect::<Result<Vec<_>>>()?;
    let (outs, sums): (Vec<_>, Vec<_>) = parts.into_iter().unzip();
    let out = Tensor::cat(&outs, 0)?.reshape((batch, tokens, heads * head_dim))?;
    let sums: Vec<_> = sums.into_iter().flatten().collect();
    let received = match received {
        true => Some(Tensor::stack(&sums, 0)?.reshape((batch, (), keys))?.sum(1)?),
        false => None,
    };
    Ok((out, received))
}

/// In place over scores `[.., rows, seen]`, contiguous: row `r` of every `rows` sees the first `seen - rows + r + 1` keys; the others get 0.
struct CausalSoftmax {
    scale: f32,
    rows: usize,
}

impl InplaceOp1 for CausalSoftmax {
    fn name(&self) -> &'static str {
        "causal-softmax"
    }

    fn cpu_fwd(&self, storage: &mut CpuStorage, layout: &Layout) -> Result<()> {
        let (Some((start, end)), Some(&seen)) = (layout.contiguous_offsets(), layout.dims().last()) else {
            bail!("causal-softmax needs contiguous scores")
        };
        let CpuStorage::F32(scores) = storage else { bail!("causal-softmax needs f32 scores") };
        for (i, row) in scores[start..end].chunks_exact_mut(seen).enumerate() {
            let (visible, hidden) = row.split_at_mut(seen - self.rows + i % self.rows + 1);
            softmax(visible, self.scale);
            hidden.fill(0.0);
        }
        Ok(())
    }
}

/// `softmax(scale * row)`.
fn softmax(row: &mut [f32], scale: f32) {
    let max = row.iter().fold(f32::NEG_INFINITY, |max, &x| max.max(x));
    let mut sum = 0.0;
    for x in row.iter_mut() {
        *x = ((*x - max) * scale).exp();
        sum += *x;
    }
    let inverse = 1.0 / sum;
    for x in row.iter_mut() {
        *x *= inverse;
    }
}
