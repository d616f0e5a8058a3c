//! Embedding, blocks, norm, head; prefill and decode with a KV cache.
use crate::attention::attend;
use crate::cache::Rows;
pub use crate::cache::{KvCache, KvType};
use crate::config::Config;
use crate::linear::{Linear, Table};
use crate::ops::{add, guard, split_heads, swiglu};
use crate::rope::Rope;
use crate::weights::{WeightError, Weights};
use candle_core::{bail, DType, Device, Result, Tensor};
use candle_nn::ops::rms_norm;
use ws_kernels::parallel::attentive;

/// Which linear layers read an input.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Site {
    /// q, k and v.
    Qkv,
    /// o.
    O,
    /// gate and up.
    GateUp,
    /// down.
    Down,
}

/// Sees what a block's linear layers read (calibration).
pub trait Tap {
    /// `x`: f32 `[batch, tokens, features]`.
    fn input(&mut self, site: Site, x: &Tensor) -> Result<()>;
    /// Attention that each token receives, f32 `[batch, tokens]`: `p_j = sum over heads and queries i >= j of alpha[h, i, j] / (heads * (T - j))`
    /// (WaterSIC eq. 19). Called after `input(Site::Qkv)`, only for whole sequences (no cache).
    fn attention(&mut self, received: &Tensor) -> Result<()>;
}

/// One transformer block.
pub struct Block {
    attention_norm: Tensor,
    q: Linear,
    k: Linear,
    v: Linear,
    o: Linear,
    /// Norms of each head of q and k.
    head_norms: Option<(Tensor, Tensor)>,
    mlp_norm: Tensor,
    gate: Linear,
    up: Linear,
    down: Linear,
}

impl Block {
    /// Loads block `index`.
    ///
    /// # Errors
    /// Those of `weights`: a tensor that is missing or has another shape.
    pub fn load(config: &Config, weights: &dyn Weights, index: usize) -> std::result::Result<Self, WeightError> {
        let linears = config
            .block_linears(index)
            .into_iter()
            .map(|(name, out_features, in_features, bias)| weights.linear(&name, out_features, in_features, bias))
            .collect::<std::result::Result<Vec<_>, _>>()?;
        let Ok([q, k, v, o, gate, up, down]) = <[Linear; 7]>::try_from(linears) else { unreachable!("block_linears names seven") };
        let tensor = |name: &str, size| weights.tensor(&format!("model.layers.{index}.{name}.weight"), &[size]);
        Ok(Self {
            attention_norm: tensor("input_layernorm", config.hidden)?,
            head_norms: match config.qk_norm {
                true => Some((tensor("self_attn.q_norm", config.head_dim)?, tensor("self_attn.k_norm", config.head_dim)?)),
                false => None,
            },
            mlp_norm: tensor("post_attention_layernorm", config.hidden)?,
            q,
            k,
            v,
            o,
            gate,
            up,
            down,
        })
    }

    /// Whole sequences without a cache: `x` f32 `[batch, tokens, hidden]` -> the same shape. `tap` sees the inputs.
    ///
    /// # Errors
    /// If `x` has another shape, and those of `tap`.
    pub fn forward(&self, config: &Config, x: &Tensor, tap: Option<&mut dyn Tap>) -> Result<Tensor> {
        let angles = Rope::new(config).tables(0, x.dim(1)?, x.device())?;
        self.run(config, x, &angles, None, tap)
    }

    fn linears(&self) -> [&Linear; 7] {
        [&self.q, &self.k, &self.v, &self.o, &self.gate, &self.up, &self.down]
    }

    /// The products that read one input side by side, so that small ones keep all threads busy.
    fn qkv(&self, input: &Tensor) -> (Result<Tensor>, (Result<Tensor>, Result<Tensor>)) {
        rayon::join(|| self.q.forward(input), || rayon::join(|| self.k.forward(input), || self.v.forward(input)))
    }

    /// As [`Self::qkv`].
    fn gate_up(&self, input: &Tensor) -> (Result<Tensor>, Result<Tensor>) {
        rayon::join(|| self.gate.forward(input), || self.up.forward(input))
    }

    /// `angles`: cosines and sines of the positions of `x`; `cache`: with the number of this block.
    fn run(
        &self,
        config: &Config,
        x: &Tensor,
        angles: &(Tensor, Tensor),
        cache: Option<(usize, &mut KvCache)>,
        mut tap: Option<&mut dyn Tap>,
    ) -> Result<Tensor> {
        let mut see = |site: Site, x: &Tensor| tap.as_mut().map_or(Ok(()), |tap| tap.input(site, x));
        let (batch, tokens, _) = x.dims3()?;
        let eps = config.norm_eps as f32;

        let input = rms_norm(x, &self.attention_norm, eps)?;
        see(Site::Qkv, &input)?;
        let (q, (k, v)) = self.qkv(&input);
        let (mut q, mut k) = (q?, k?);
        if let Some((q_norm, k_norm)) = &self.head_norms {
            let norm = |x: &Tensor, heads: usize, weight: &Tensor| {
                rms_norm(&x.reshape((batch, tokens, heads, config.head_dim))?, weight, eps)?.reshape(x.shape())
            };
            q = norm(&q, config.heads, q_norm)?;
            k = norm(&k, config.kv_heads, k_norm)?;
        }
        let q = split_heads(&q, config.heads, Some(angles))?;
        let k = split_heads(&k, config.kv_heads, Some(angles))?;
        let v = split_heads(&v?, config.kv_heads, None)?;
        let (mixed, received) = match cache {
            Some((block, cache)) => {
                let keys = cache.len() + tokens;
                attend(&q, cache.append(block, &k, &v)?, config.kv_heads, keys, false)?
            }
            None => {
                let guards = [guard(&k), guard(&v)];
                let rows = |values| Rows::new(values, tokens, config.head_dim);
                attend(&q, [rows(guards[0].contiguous()?), rows(guards[1].contiguous()?)], config.kv_heads, tokens, tap.is_some())?
            }
        };
        if let (Some(tap), Some(sums)) = (tap.as_mut(), received) {
            let queries: Vec<_> = (0..tokens).map(|j| 1.0 / (config.heads * (tokens - j)) as f32).collect();
            tap.attention(&sums.broadcast_mul(&Tensor::new(queries, x.device())?)?)?;
        }
        let mut see = |site: Site, x: &Tensor| tap.as_mut().map_or(Ok(()), |tap| tap.input(site, x));
        see(Site::O, &mixed)?;
        let middle = self.o.forward(&mixed)?;
        add(&middle, x)?;

        let input = rms_norm(&middle, &self.mlp_norm, eps)?;
        see(Site::GateUp, &input)?;
        let (gate, up) = self.gate_up(&input);
        let inner = gate?;
        swiglu(&inner, &up?)?;
        see(Site::Down, &inner)?;
        let output = self.down.forward(&inner)?;
        add(&output, &middle)?;
        Ok(output)
    }
}

/// A whole model.
pub struct Model {
    /// Its architecture.
    pub config: Config,
    embedding: Table,
    blocks: Vec<Block>,
    norm: Tensor,
    head: Table,
    rope: Rope,
}

impl Model {
    /// Loads everything.
    ///
    /// # Errors
    /// Those of `weights`: a tensor that is missing or has another shape.
    pub fn load(config: Config, weights: &dyn Weights) -> std::result::Result<Self, WeightError> {
        let embedding = Self::load_embedding(&config, weights)?;
        let head = match config.tied {
            true => embedding.clone(),
            false => weights.table("lm_head", config.vocab, config.hidden)?,
        };
        let blocks = (0..config.layers).map(|index| Block::load(&config, weights, index)).collect::<std::result::Result<_, _>>()?;
        let norm = weights.tensor("model.norm.weight", &[config.hidden])?;
        Ok(Self { rope: Rope::new(&config), config, embedding, blocks, norm, head })
    }

    /// The embedding table alone, for layer-by-layer work.
    ///
    /// # Errors
    /// Those of `weights`: a tensor that is missing or has another shape.
    pub fn load_embedding(config: &Config, weights: &dyn Weights) -> std::result::Result<Table, WeightError> {
        weights.table("model.embed_tokens", config.vocab, config.hidden)
    }

    /// Appends `ids` (u32 `[batch, tokens]`) to the cache and returns the logits of the last position, f32 `[batch, vocab]`.
    ///
    /// # Errors
    /// If the cache has no room or was made for another model or batch, an id is outside the vocabulary, or there is no token.
    /// The cache then holds what it held before.
    pub fn forward(&self, ids: &Tensor, cache: &mut KvCache) -> Result<Tensor> {
        attentive(|| {
            let x = self.run(ids, Some(cache))?;
            let last = x.narrow(1, x.dim(1)? - 1, 1)?.squeeze(1)?;
            self.logits(&rms_norm(&last.contiguous()?, &self.norm, self.config.norm_eps as f32)?)
        })
    }

    /// Logits of every position of whole sequences, f32 `[batch, tokens, vocab]`, without a cache.
    ///
    /// # Errors
    /// If an id is outside the vocabulary, or there is no token.
    pub fn forward_all(&self, ids: &Tensor) -> Result<Tensor> {
        self.logits(&self.hidden(ids)?)
    }

    /// What the head reads: the last block's output after the final norm, f32 `[batch, tokens, hidden]`, for u32 `[batch, tokens]` without a cache.
    /// With [`Self::logits`] on a few positions at a time this avoids holding `tokens x vocab` values.
    ///
    /// # Errors
    /// If an id is outside the vocabulary, or there is no token.
    pub fn hidden(&self, ids: &Tensor) -> Result<Tensor> {
        attentive(|| rms_norm(&self.run(ids, None)?, &self.norm, self.config.norm_eps as f32))
    }

    /// The head alone: f32 `[.., hidden]` of [`Self::hidden`] -> logits f32 `[.., vocab]`.
    ///
    /// # Errors
    /// If the last dimension is not `hidden`.
    pub fn logits(&self, hidden: &Tensor) -> Result<Tensor> {
        self.head.logits(hidden)
    }

    /// The products of one token alone, in the order and the pairs of [`Self::forward`]: what remains of a token's time is spent around them.
    ///
    /// # Errors
    /// Those of the layers.
    pub fn products(&self) -> Result<()> {
        let (config, device) = (&self.config, &Device::Cpu);
        let input = |features: usize| Tensor::ones((1, 1, features), DType::F32, device);
        let (hidden, mixed, inner) = (input(config.hidden)?, input(config.heads * config.head_dim)?, input(config.intermediate)?);
        attentive(|| {
            for block in &self.blocks {
                let (q, (k, v)) = block.qkv(&hidden);
                let (gate, up) = block.gate_up(&hidden);
                [q, k, v, block.o.forward(&mixed), gate, up, block.down.forward(&inner)].into_iter().collect::<Result<Vec<_>>>()?;
            }
            self.logits(&hidden).map(drop)
        })
    }

    /// Bytes of weights that are read to compute one token: all linear layers and the head as they are stored (dense: elements x element size),
    /// one row of the embedding.
    pub fn bytes_per_token(&self) -> u64 {
        let blocks: u64 = self.blocks.iter().flat_map(Block::linears).map(Linear::bytes).sum();
        blocks + self.head.bytes().0 + self.embedding.bytes().1
    }

    /// All blocks, without the final norm.
    fn run(&self, ids: &Tensor, mut cache: Option<&mut KvCache>) -> Result<Tensor> {
        let (batch, tokens) = ids.dims2()?;
        if batch == 0 || tokens == 0 {
            bail!("the model was given no token")
        }
        let past = match &cache {
            Some(cache) => {
                cache.check(self.blocks.len(), batch, tokens)?;
                cache.len()
            }
            None => 0,
        };
        let mut x = self.embedding.lookup(ids)?;
        let angles = self.rope.tables(past, tokens, x.device())?;
        for (index, block) in self.blocks.iter().enumerate() {
            x = block.run(&self.config, &x, &angles, cache.as_deref_mut().map(|cache| (index, cache)), None)?;
        }
        if let Some(cache) = cache {
            cache.advance(tokens);
        }
        Ok(x)
    }
}
