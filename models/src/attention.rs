//! Causal attention with grouped queries, in tiles of queries.
use crate::ops::{guard, softmax};
use candle_core::{bail, Result, Tensor};
use rayon::prelude::*;
use std::cell::Cell;
use ws_kernels::dense::{matmul, View};

/// Queries a tile, for each head of a group: keys after a tile's last query are not touched, and its scores stay in the cache.
const TILE: usize = 32;
/// Up to this many rows of scores are computed one by one: `gemm` would repack the keys for them.
const FEW: usize = 8;

thread_local! {
    /// Queries and scores of a task.
    static SCRATCH: Cell<(Vec<f32>, Vec<f32>)> = const { Cell::new((Vec::new(), Vec::new())) };
}

/// Attention of `tokens` new queries over `keys >= tokens` keys, the last query at the last key.
///
/// `q`: f32 `[batch, heads, tokens, head_dim]`, contiguous; `k`, `v`: f32 `[batch, kv_heads, keys, head_dim]`, contiguous but for the distance between heads.
/// Returns f32 `[batch, tokens, heads * head_dim]`, and if `received` is asked for the attention that each key receives, summed over heads and queries,
/// f32 `[batch, keys]`.
pub(crate) fn attend(q: &Tensor, k: &Tensor, v: &Tensor, received: bool) -> Result<(Tensor, Option<Tensor>)> {
    let (batch, heads, tokens, dim) = q.dims4()?;
    let (_, kv_heads, keys, _) = k.dims4()?;
    let (group, past) = (heads / kv_heads, keys - tokens);
    if k.shape() != v.shape() || [k, v].iter().any(|x| x.stride()[2..] != [dim, 1] || x.stride()[0] != kv_heads * x.stride()[1]) {
        bail!("attention needs keys and values of one shape with rows side by side")
    }
    let ((k_step, v_step), guards) = ((k.stride()[1], v.stride()[1]), [guard(q), guard(k), guard(v)]);
    let (q_values, k_values, v_values) = (guards[0].contiguous()?, guards[1].values()?, guards[2].values()?);

    let tiles = tokens.div_ceil(TILE);
    let arch = pulp::Arch::new();
    // A task is a tile of the queries that share a key head; its output is [group, rows, head_dim].
    let parts: Vec<(Vec<f32>, Vec<f32>)> = (0..batch * kv_heads * tiles)
        .into_par_iter()
        .map(|task| {
            // The last tiles see most keys: start with them.
            let (head, start) = (task % (batch * kv_heads), (tiles - 1 - task / (batch * kv_heads)) * TILE);
            let rows = TILE.min(tokens - start);
            let seen = past + start + rows;
            let k = View::new(&k_values[head * k_step..], seen, dim, dim);
            let v = View::new(&v_values[head * v_step..], seen, dim, dim);
            let (mut queries, mut scores) = SCRATCH.take();
            queries.clear();
            for h in 0..group {
                queries.extend_from_slice(&q_values[((head * group + h) * tokens + start) * dim..][..rows * dim]);
            }
            scores.resize(group * rows * seen, 0.0);
            let step = if group * rows <= FEW { 1 } else { group * rows };
            for (q, scores) in queries.chunks(step * dim).zip(scores.chunks_mut(step * seen)) {
                matmul(View::new(q, step, dim, dim), k.t(), scores);
            }
            arch.dispatch(
                #[inline(always)]
                || {
                    for (i, row) in scores.chunks_exact_mut(seen).enumerate() {
                        let (visible, hidden) = row.split_at_mut(past + start + i % rows + 1);
                        softmax(visible, 1.0 / (dim as f32).sqrt());
                        hidden.fill(0.0);
                    }
                },
            );
            let mut out = vec![0f32; group * rows * dim];
            matmul(View::new(&scores, group * rows, seen, seen), v, &mut out);
            let mut sums = vec![0f32; if received { seen } else { 0 }];
            for row in scores.chunks_exact(seen) {
                for (sum, score) in sums.iter_mut().zip(row) {
                    *sum += score;
                }
            }
            SCRATCH.set((queries, scores));
            (out, sums)
        })
        .collect();

    let mut out = vec![0f32; batch * tokens * heads * dim];
    let mut sums = vec![0f32; if received { batch * keys } else { 0 }];
    for (task, (part, received)) in parts.iter().enumerate() {
        let (head, start) = (task % (batch * kv_heads), (tiles - 1 - task / (batch * kv_heads)) * TILE);
        let (b, first) = (head / kv_heads, head % kv_heads * group);
        let rows = TILE.min(tokens - start);
        for (i, row) in part.chunks_exact(dim).enumerate() {
            let (h, t) = (first + i / rows, start + i % rows);
            out[((b * tokens + t) * heads + h) * dim..][..dim].copy_from_slice(row);
        }
        for (sum, x) in sums.iter_mut().skip(b * keys).zip(received) {
            *sum += x;
        }
    }
    let received = if received { Some(Tensor::from_vec(sums, (batch, keys), q.device())?) } else { None };
    Ok((Tensor::from_vec(out, (batch, tokens, heads * dim), q.device())?, received))
}
