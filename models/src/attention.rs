//! Causal attention with grouped queries, in tiles of queries.
use crate::cache::Rows;
use crate::ops::{guard, softmax};
use candle_core::{Result, Tensor};
use rayon::prelude::*;
use std::cell::Cell;
use ws_kernels::dense::{matmul, View};

/// Multiplications below which a task is not worth another thread: two or three microseconds.
const PARALLEL_WORK: usize = 1 << 15;
/// Queries a tile, for each head of a group: keys after a tile's last query are not touched, and its scores stay in the cache.
const TILE: usize = 32;
/// Up to this many rows of scores are computed one by one: `gemm` would repack keys and values for them.
const FEW: usize = 8;
/// Keys or values that are converted at a time for few rows: they stay in the first-level cache.
const BLOCK: usize = 64;
/// Products that are summed side by side.
const LANES: usize = 16;

/// Working memory of a task.
#[derive(Default)]
struct Scratch {
    queries: Vec<f32>,
    scores: Vec<f32>,
    converted: Vec<f32>,
}

thread_local! {
    static SCRATCH: Cell<Scratch> = Cell::default();
}

/// Attention of `tokens` new queries over `keys >= tokens` keys, the last query at the last key.
///
/// `q`: f32 `[batch, heads, tokens, head_dim]`, contiguous; `k`, `v`: heads `batch x kv_heads` of `keys` rows.
/// Returns f32 `[batch, tokens, heads * head_dim]`, and if `received` is asked for the attention that each key receives, summed over heads and queries,
/// f32 `[batch, keys]`.
pub(crate) fn attend(q: &Tensor, [k, v]: [Rows; 2], kv_heads: usize, keys: usize, received: bool) -> Result<(Tensor, Option<Tensor>)> {
    let (batch, heads, tokens, dim) = q.dims4()?;
    let (group, past) = (heads / kv_heads, keys - tokens);
    let q_guard = guard(q);
    let q_values = q_guard.contiguous()?;

    let tiles = tokens.div_ceil(TILE);
    let arch = pulp::Arch::new();
    // A task is a tile of the queries that share a key head; its output is [group, rows, head_dim].
    let parts: Vec<(Vec<f32>, Vec<f32>)> = (0..batch * kv_heads * tiles)
        .into_par_iter()
        .with_min_len(PARALLEL_WORK.div_ceil(2 * group * dim * keys * TILE.min(tokens)))
        .map(|task| {
            // The last tiles see most keys: start with them.
            let (head, start) = (task % (batch * kv_heads), (tiles - 1 - task / (batch * kv_heads)) * TILE);
            let rows = TILE.min(tokens - start);
            let seen = past + start + rows;
            let Scratch { mut queries, mut scores, mut converted } = SCRATCH.take();
            queries.clear();
            for h in 0..group {
                queries.extend_from_slice(&q_values[((head * group + h) * tokens + start) * dim..][..rows * dim]);
            }
            scores.resize(group * rows * seen, 0.0);
            let mut out = vec![0f32; group * rows * dim];
            let visible = |row: usize| past + start + row % rows + 1;
            let task = Task { queries: &queries, k, v, head, dim, scores: &mut scores, converted: &mut converted, out: &mut out, visible };
            arch.dispatch(task);
            let mut sums = vec![0f32; if received { seen } else { 0 }];
            for row in scores.chunks_exact(seen) {
                for (sum, score) in sums.iter_mut().zip(row) {
                    *sum += score;
                }
            }
            SCRATCH.set(Scratch { queries, scores, converted });
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

/// Attention of some queries over the keys of one head. A type of its own: `pulp` compiles a large closure without the instructions that it dispatches to.
struct Task<'a, F> {
    /// Rows of `dim`.
    queries: &'a [f32],
    k: Rows<'a>,
    v: Rows<'a>,
    head: usize,
    dim: usize,
    /// A row of all keys for each query; left as probabilities.
    scores: &'a mut [f32],
    converted: &'a mut Vec<f32>,
    /// Rows of `dim`, zeros.
    out: &'a mut [f32],
    /// Keys that a query sees.
    visible: F,
}

impl<F: Fn(usize) -> usize> pulp::WithSimd for Task<'_, F> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: pulp::Simd>(self, _: S) {
        let Task { queries, k, v, head, dim, scores, converted, out, visible } = self;
        let count = queries.len() / dim;
        let seen = scores.len() / count;
        if count <= FEW {
            score(queries, k, head, dim, converted, scores);
        } else {
            let k = k.read(head, 0..seen, converted);
            matmul(View::new(queries, count, dim, dim), View::new(k, seen, dim, dim).t(), scores);
        }
        for (i, row) in scores.chunks_exact_mut(seen).enumerate() {
            let (visible, hidden) = row.split_at_mut(visible(i));
            softmax(visible, 1.0 / (dim as f32).sqrt());
            hidden.fill(0.0);
        }
        if count <= FEW {
            mix(scores, v, head, dim, converted, out);
        } else {
            let v = v.read(head, 0..seen, converted);
            matmul(View::new(scores, count, seen, seen), View::new(v, seen, dim, dim), out);
        }
    }
}

/// `scores[i][j] = queries[i] . key j` for all keys of a row of scores; `queries`: rows of `dim`. For use inside `pulp`'s dispatch, as those below.
#[inline(always)]
fn score(queries: &[f32], k: Rows, head: usize, dim: usize, converted: &mut Vec<f32>, scores: &mut [f32]) {
    let seen = scores.len() / (queries.len() / dim);
    for first in (0..seen).step_by(BLOCK) {
        let keys = k.read(head, first..seen.min(first + BLOCK), converted);
        for (query, scores) in queries.chunks_exact(dim).zip(scores.chunks_exact_mut(seen)) {
            for (key, score) in keys.chunks_exact(dim).zip(&mut scores[first..]) {
                *score = dot(query, key);
            }
        }
    }
}

/// `out[i] = sum_j scores[i][j] value j`; `out`: rows of `dim`.
#[inline(always)]
fn mix(scores: &[f32], v: Rows, head: usize, dim: usize, converted: &mut Vec<f32>, out: &mut [f32]) {
    let seen = scores.len() / (out.len() / dim);
    for first in (0..seen).step_by(BLOCK) {
        let values = v.read(head, first..seen.min(first + BLOCK), converted);
        for (scores, out) in scores.chunks_exact(seen).zip(out.chunks_exact_mut(dim)) {
            for (values, scores) in values.chunks(4 * dim).zip(scores[first..].chunks(4)) {
                if let [a, b, c, d] = *scores {
                    let (ab, cd) = values.split_at(2 * dim);
                    let ((va, vb), (vc, vd)) = (ab.split_at(dim), cd.split_at(dim));
                    for ((((out, va), vb), vc), vd) in out.iter_mut().zip(va).zip(vb).zip(vc).zip(vd) {
                        *out += (a * va + b * vb) + (c * vc + d * vd);
                    }
                } else {
                    for (value, score) in values.chunks_exact(dim).zip(scores) {
                        out.iter_mut().zip(value).for_each(|(out, v)| *out += score * v);
                    }
                }
            }
        }
    }
}

#[inline(always)]
fn dot(a: &[f32], b: &[f32]) -> f32 {
    let ((a, a_rest), (b, b_rest)) = (a.as_chunks::<LANES>(), b.as_chunks::<LANES>());
    let mut sums = [0f32; LANES];
    for (a, b) in a.iter().zip(b) {
        for lane in 0..LANES {
            sums[lane] += a[lane] * b[lane];
        }
    }
    // Stored as a whole: where the compiler sees how they are added up, it takes them in pairs, through the loop too.
    let sums = std::hint::black_box(sums);
    let rest: f32 = a_rest.iter().zip(b_rest).map(|(a, b)| a * b).sum();
    // In halves, as vectors are folded.
    let eight: [f32; 8] = std::array::from_fn(|i| sums[i] + sums[i + 8]);
    let four: [f32; 4] = std::array::from_fn(|i| eight[i] + eight[i + 4]);
    (four[0] + four[2]) + (four[1] + four[3]) + rest
}
