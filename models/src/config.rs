//! A checked description of an architecture.

/// Rotary position embedding variants of the Llama and Qwen families.
#[derive(Debug, Clone, PartialEq)]
pub enum RopeScaling {
    /// Plain rope.
    None,
    /// All frequencies divided by `factor`.
    Linear {
        /// Divisor.
        factor: f64,
    },
    /// Llama 3.1 and 3.2.
    Llama3 {
        /// Divisor of the low frequencies.
        factor: f64,
        /// Wavelengths above `original / low` are scaled.
        low_freq_factor: f64,
        /// Wavelengths below `original / high` are kept.
        high_freq_factor: f64,
        /// Context of the original training.
        original_context: usize,
    },
}

/// What a model is made of, in units of features and heads.
#[derive(Debug, Clone, PartialEq)]
pub struct Config {
    /// `LlamaForCausalLM`, `MistralForCausalLM`, `Qwen2ForCausalLM` or `Qwen3ForCausalLM`.
    pub architecture: String,
    /// Residual stream width.
    pub hidden: usize,
    /// MLP width.
    pub intermediate: usize,
    /// Blocks.
    pub layers: usize,
    /// Query heads.
    pub heads: usize,
    /// Key and value heads; divides `heads`.
    pub kv_heads: usize,
    /// Features a head.
    pub head_dim: usize,
    /// Vocabulary size of embedding and head.
    pub vocab: usize,
    /// Epsilon of RMS norms.
    pub norm_eps: f64,
    /// Rope base.
    pub rope_theta: f64,
    /// Rope scaling.
    pub rope_scaling: RopeScaling,
    /// Longest context in tokens.
    pub max_context: usize,
    /// Head shares the embedding's matrix.
    pub tied: bool,
    /// q, k, v have a bias.
    pub qkv_bias: bool,
    /// o has a bias.
    pub o_bias: bool,
    /// gate, up, down have a bias.
    pub mlp_bias: bool,
    /// RMS norm on each head of q and k (Qwen3).
    pub qk_norm: bool,
    /// Beginning of text, if any.
    pub bos: Option<u32>,
    /// Ends of text; generation stops at any.
    pub eos: Vec<u32>,
}

/// Why a configuration is refused; names the field.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {}

impl Config {
    /// From the text of a Hugging Face `config.json`. Unsupported architectures and fields are refused by name.
    pub fn from_json(_text: &str) -> Result<Self, ConfigError> {
        todo!()
    }
    /// Names, out-features, in-features and bias of a block's linear layers: q_proj, k_proj, v_proj, o_proj, gate_proj, up_proj, down_proj.
    pub fn block_linears(&self, _block: usize) -> Vec<(String, usize, usize, bool)> {
        todo!()
    }
}
