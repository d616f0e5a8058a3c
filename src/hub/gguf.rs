//! Dense weights and configuration from a GGUF file, through candle's reader.
use super::{gguf_header, gguf_tokenizer, tokenizer, HubError, Opened};
use candle_core::quantized::gguf_file::{Content, Value};
use candle_core::quantized::GgmlDType;
use candle_core::{DType, Device, Tensor};
use memmap2::Mmap;
use serde_json::json;
use std::io::Cursor;
use std::path::{Path, PathBuf};
use ws_models::config::Config;
use ws_models::linear::{Linear, Matrix, Table};
use ws_models::weights::{available_memory, dense_dtype, WeightError, Weights};

/// Ends of Hugging Face names and what GGUF calls them, inside a block.
const BLOCK_NAMES: [(&str, &str); 11] = [
    ("self_attn.q_proj", "attn_q"),
    ("self_attn.k_proj", "attn_k"),
    ("self_attn.v_proj", "attn_v"),
    ("self_attn.o_proj", "attn_output"),
    ("self_attn.q_norm", "attn_q_norm"),
    ("self_attn.k_norm", "attn_k_norm"),
    ("mlp.gate_proj", "ffn_gate"),
    ("mlp.up_proj", "ffn_up"),
    ("mlp.down_proj", "ffn_down"),
    ("input_layernorm", "attn_norm"),
    ("post_attention_layernorm", "ffn_norm"),
];

/// GGUF metadata with typed look-ups that name what is missing.
pub(super) struct Meta<'a> {
    pub(super) content: &'a Content,
    pub(super) path: &'a Path,
}

impl Meta<'_> {
    pub(super) fn bad(&self, why: String) -> HubError {
        HubError::Damaged { path: self.path.to_owned(), why }
    }

    pub(super) fn get(&self, key: &str) -> Option<&Value> {
        self.content.metadata.get(key)
    }

    pub(super) fn text(&self, key: &str) -> Option<&str> {
        self.get(key).and_then(|v| v.to_string().ok()).map(String::as_str)
    }

    pub(super) fn bool(&self, key: &str) -> Option<bool> {
        self.get(key).and_then(|v| v.to_bool().ok())
    }

    pub(super) fn whole(&self, key: &str) -> Option<u64> {
        let value = self.get(key)?;
        value.to_u64().ok().or_else(|| value.to_u32().ok().map(u64::from)).or_else(|| value.to_i32().ok().and_then(|v| v.try_into().ok()))
    }

    fn real(&self, key: &str) -> Option<f64> {
        let value = self.get(key)?;
        value.to_f32().map(f64::from).or_else(|_| value.to_f64()).ok().filter(|v| v.is_finite())
    }

    /// `value`, or `default` where the key is absent.
    fn or<T>(&self, key: &str, value: Option<T>, default: T) -> Result<T, HubError> {
        match self.get(key) {
            Some(_) => self.need(key, value),
            None => Ok(default),
        }
    }

    fn need<T>(&self, key: &str, value: Option<T>) -> Result<T, HubError> {
        value.ok_or_else(|| self.bad(format!("has no usable metadata `{key}`; convert the model again")))
    }
}

/// Opens a GGUF file.
pub(super) fn open(path: &Path) -> Result<Opened, HubError> {
    let io = |error| HubError::Io { action: "open", path: path.to_owned(), error };
    let file = std::fs::File::open(path).map_err(io)?;
    // SAFETY: read-only map of a model file that nobody changes while it is in use; the header and all offsets are checked below.
    let map = unsafe { Mmap::map(&file) }.map_err(io)?;
    let bad = |why: String| HubError::Damaged { path: path.to_owned(), why };
    gguf_header::check(&map).map_err(bad)?;
    let content = Content::read(&mut Cursor::new(&map)).map_err(|e| bad(format!("cannot be read: {e}")))?;
    gguf_header::check_tensors(&content, map.len() as u64).map_err(bad)?;

    let meta = Meta { content: &content, path };
    let config_json = config_json(&meta, &map)?;
    let mut config = Config::from_json(&config_json.to_string()).map_err(|error| HubError::Config { path: path.to_owned(), error })?;
    let side_files = gguf_tokenizer::side_files(&meta)?;
    let text = tokenizer::from_files(path, side_files, config.bos)?;
    super::add_ends(&mut config, &text.ends);
    let dtype = dense_dtype(&config, DType::BF16, available_memory().unwrap_or(u64::MAX));
    let interleaved = config.architecture == "LlamaForCausalLM";
    let heads = (config.heads, config.kv_heads);
    let weights = Box::new(GgufWeights { path: path.to_owned(), map, content, dtype, interleaved, heads });
    let tokenizer::TextFiles { tokenizer, add_bos, chat_template, side_files, .. } = text;
    Ok(Opened { config, config_json, weights, tokenizer, add_bos, chat_template, side_files })
}

/// The Hugging Face configuration that a header describes.
fn config_json(meta: &Meta, map: &[u8]) -> Result<serde_json::Value, HubError> {
    let name = meta.need("general.architecture", meta.text("general.architecture"))?;
    let architecture = match name {
        "llama" => "LlamaForCausalLM",
        "qwen2" => "Qwen2ForCausalLM",
        "qwen3" => "Qwen3ForCausalLM",
        other => return Err(meta.bad(format!("has architecture `{other}`; supported are llama, qwen2 and qwen3"))),
    };
    let whole = |end: &str| -> Result<u64, HubError> {
        let key = format!("{name}.{end}");
        meta.need(&key, meta.whole(&key))
    };
    let parts = meta.whole("split.count").unwrap_or(1);
    if parts > 1 {
        return Err(meta.bad(format!("is one of {parts} parts; merge them first (llama-gguf-split --merge)")));
    }
    let heads = whole("attention.head_count")?;
    let whole_or = |end: &str, default: u64| {
        let key = format!("{name}.{end}");
        meta.or(&key, meta.whole(&key), default)
    };
    let kv_heads = whole_or("attention.head_count_kv", heads)?;
    let hidden = whole("embedding_length")?;
    let eps_key = format!("{name}.attention.layer_norm_rms_epsilon");
    let embedding = meta.content.tensor_infos.get("token_embd.weight");
    let vocab = embedding.and_then(|t| t.shape.dims().first().copied());
    let head_dim = whole_or("attention.key_length", hidden.checked_div(heads).unwrap_or(0))?;
    let has = |tensor: &str| meta.content.tensor_infos.contains_key(tensor);
    if has("blk.0.ffn_gate_inp.weight") {
        return Err(meta.bad("is a mixture of experts; only dense models are supported".to_owned()));
    }
    let theta_key = format!("{name}.rope.freq_base");
    let theta = meta.or(&theta_key, meta.real(&theta_key), 10000.0)?;
    let context = whole("context_length")?;
    let refuse = |end: &str, value: u64, supported: u64| {
        Err(meta.bad(format!("has {name}.{end} {value}; only {supported} is supported for this model")))
    };
    let rotated = whole_or("rope.dimension_count", head_dim)?;
    if rotated != head_dim {
        return refuse("rope.dimension_count", rotated, head_dim);
    }
    let window = whole_or("attention.sliding_window", 0)?;
    if (1..context).contains(&window) {
        return refuse("attention.sliding_window", window, 0);
    }
    let mut config = json!({
        "architectures": [architecture],
        "model_type": name,
        "hidden_size": hidden,
        "intermediate_size": whole("feed_forward_length")?,
        "num_hidden_layers": whole("block_count")?,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "head_dim": head_dim,
        "vocab_size": meta.need("token_embd.weight", vocab)?,
        "rms_norm_eps": meta.need(&eps_key, meta.real(&eps_key))?,
        "rope_theta": theta,
        "max_position_embeddings": context,
        "tie_word_embeddings": !has("output.weight"),
        "hidden_act": "silu",
        "bos_token_id": meta.whole("tokenizer.ggml.bos_token_id"),
        "eos_token_id": meta.whole("tokenizer.ggml.eos_token_id"),
        "torch_dtype": "bfloat16",
    });
    match architecture {
        "LlamaForCausalLM" => {
            config["attention_bias"] = has("blk.0.attn_q.bias").into();
            config["mlp_bias"] = has("blk.0.ffn_up.bias").into();
        }
        "Qwen3ForCausalLM" => config["attention_bias"] = has("blk.0.attn_q.bias").into(),
        _ => {}
    }
    let scaling = meta.text(&format!("{name}.rope.scaling.type")).unwrap_or("none");
    if has("rope_freqs.weight") {
        config["rope_scaling"] = llama3_scaling(meta, map, theta, head_dim)?;
    } else if scaling == "linear" {
        let key = format!("{name}.rope.scaling.factor");
        config["rope_scaling"] = json!({"rope_type": "linear", "factor": meta.need(&key, meta.real(&key))?});
    } else if scaling != "none" {
        return Err(meta.bad(format!("has rope scaling `{scaling}`; supported are none, linear and Llama 3's")));
    }
    Ok(config)
}

/// Llama 3.1's scaling from the frequency divisors that a GGUF stores in its place.
fn llama3_scaling(meta: &Meta, map: &[u8], theta: f64, head_dim: u64) -> Result<serde_json::Value, HubError> {
    let stored = read_tensor(meta.content, map, meta.path, "rope_freqs.weight")?.flatten_all().and_then(|t| t.to_vec1::<f32>());
    let stored = stored.map_err(|e| meta.bad(format!("tensor rope_freqs.weight: {e}")))?;
    let factor = stored.iter().fold(0f32, |m, &v| m.max(v)) as f64;
    let (low, high, original) = (1.0, 4.0, 8192.0);
    let divisor = |i: usize| {
        let wavelength = 2.0 * std::f64::consts::PI * theta.powf(2.0 * i as f64 / head_dim as f64);
        if wavelength < original / high {
            1.0
        } else if wavelength > original / low {
            factor
        } else {
            let smooth = (original / wavelength - low) / (high - low);
            1.0 / ((1.0 - smooth) / factor + smooth)
        }
    };
    let fits = stored.len() as u64 == head_dim / 2 && stored.iter().enumerate().all(|(i, &v)| (v as f64 / divisor(i) - 1.0).abs() < 1e-3);
    if !fits {
        return Err(meta.bad("has rope_freqs.weight that is not Llama 3's scaling (low 1, high 4, original context 8192)".to_owned()));
    }
    Ok(
        json!({"rope_type": "llama3", "factor": factor, "low_freq_factor": low, "high_freq_factor": high, "original_max_position_embeddings": 8192}),
    )
}

fn read_tensor(content: &Content, map: &[u8], path: &Path, name: &str) -> Result<Tensor, HubError> {
    let bad = |why: String| HubError::Tensor { path: path.to_owned(), tensor: name.to_owned(), why };
    let info = content.tensor_infos.get(name).ok_or_else(|| bad("is missing; convert the model again".to_owned()))?;
    let device = Device::Cpu;
    let quantized = info.read(&mut Cursor::new(map), content.tensor_data_offset, &device).map_err(|e| bad(e.to_string()))?;
    let mut tensor = quantized.dequantize(&device).map_err(|e| bad(e.to_string()))?;
    // Block types stand for weights that were bf16 before; rounding defines the dense model whoever dequantizes it.
    if !matches!(info.ggml_dtype, GgmlDType::F32 | GgmlDType::F16 | GgmlDType::BF16) {
        tensor = tensor.to_dtype(DType::BF16).and_then(|t| t.to_dtype(DType::F32)).map_err(|e| bad(e.to_string()))?;
    }
    match super::is_finite(&tensor) {
        Ok(true) => Ok(tensor),
        Ok(false) => Err(bad("holds NaN or infinite values; fetch the file again".to_owned())),
        Err(e) => Err(bad(e.to_string())),
    }
}

/// A GGUF file as a source of dense weights.
struct GgufWeights {
    path: PathBuf,
    map: Mmap,
    content: Content,
    dtype: DType,
    /// Rows of q and k stand in the order of interleaved rope.
    interleaved: bool,
    heads: (usize, usize),
}

impl GgufWeights {
    /// GGUF's name for a Hugging Face name that ends in `.weight` or `.bias`.
    fn name(hf: &str) -> Option<String> {
        let (stem, end) = hf.rsplit_once('.')?;
        match stem {
            "model.embed_tokens" => return Some(format!("token_embd.{end}")),
            "model.norm" => return Some(format!("output_norm.{end}")),
            "lm_head" => return Some(format!("output.{end}")),
            _ => {}
        }
        let (block, rest) = stem.strip_prefix("model.layers.")?.split_once('.')?;
        let name = BLOCK_NAMES.iter().find(|(hf, _)| *hf == rest)?.1;
        Some(format!("blk.{block}.{name}.{end}"))
    }

    fn load(&self, hf: &str, shape: &[usize], dtype: DType) -> Result<Tensor, WeightError> {
        let name = Self::name(hf).unwrap_or_else(|| hf.to_owned());
        let tensor = read_tensor(&self.content, &self.map, &self.path, &name)?;
        if tensor.dims() != shape {
            let why = format!("has shape {:?}, the header asks for {shape:?}", tensor.dims());
            return Err(HubError::Tensor { path: self.path.clone(), tensor: name, why }.into());
        }
        let heads = match () {
            _ if !self.interleaved => None,
            _ if hf.contains(".q_proj.") => Some(self.heads.0),
            _ if hf.contains(".k_proj.") => Some(self.heads.1),
            _ => None,
        };
        let tensor = match heads {
            Some(heads) => half_rotated(&tensor, heads)?,
            None => tensor,
        };
        Ok(tensor.to_dtype(dtype)?)
    }
}

/// Undoes the row order of interleaved rope: GGUF's row `(head, pair, side)` is Hugging Face's `(head, side, pair)`.
fn half_rotated(tensor: &Tensor, heads: usize) -> candle_core::Result<Tensor> {
    let rows = tensor.dim(0)?;
    let columns = tensor.elem_count() / rows.max(1);
    tensor.reshape((heads, rows / heads / 2, 2, columns))?.transpose(1, 2)?.contiguous()?.reshape(tensor.shape())
}

impl Weights for GgufWeights {
    fn tensor(&self, name: &str, shape: &[usize]) -> Result<Tensor, WeightError> {
        self.load(name, shape, DType::F32)
    }

    fn linear(&self, prefix: &str, out_features: usize, in_features: usize, bias: bool) -> Result<Linear, WeightError> {
        let matrix = Matrix::Dense(self.load(&format!("{prefix}.weight"), &[out_features, in_features], self.dtype)?);
        let bias = if bias { Some(self.tensor(&format!("{prefix}.bias"), &[out_features])?) } else { None };
        Ok(Linear { matrix, bias })
    }

    fn table(&self, prefix: &str, vocab: usize, hidden: usize) -> Result<Table, WeightError> {
        Ok(Table::Dense(self.load(&format!("{prefix}.weight"), &[vocab, hidden], self.dtype)?))
    }
}
