//! A checked description of an architecture.
use serde_json::{Map, Value};

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
    /// Features a head, even.
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
pub enum ConfigError {
    /// Not a JSON object.
    #[error("config.json is not valid JSON: {0}")]
    Json(#[from] serde_json::Error),
    /// A field without which nothing can be built.
    #[error("config.json has no field \"{field}\"; expected {expected}")]
    Missing {
        /// Its name.
        field: String,
        /// What it should hold.
        expected: String,
    },
    /// A value out of range, or a feature that this runtime does not have.
    #[error("config.json: \"{field}\" is {value}, which is not supported; expected {expected}")]
    Unsupported {
        /// The field's name.
        field: String,
        /// Its value as JSON, shortened.
        value: String,
        /// What is supported.
        expected: String,
    },
}

// Upper ends of the ranges. They are several times above any published model, and low enough that no product of a few of them overflows.
const MAX_LAYERS: usize = 1 << 12;
const MAX_HEADS: usize = 1 << 12;
const MAX_HEAD_DIM: usize = 1 << 12;
const MAX_WIDTH: usize = 1 << 20;
const MAX_VOCAB: usize = 1 << 24;
const MAX_CONTEXT: usize = 1 << 27;

/// What differs between the architectures: Hugging Face's defaults for absent fields, and which biases and norms exist.
struct Family {
    architecture: &'static str,
    model_type: &'static str,
    /// `num_key_value_heads` where the field is absent; `None`: as many as query heads.
    kv_heads: Option<usize>,
    /// `head_dim` where the field is absent; `None`: hidden / heads.
    head_dim: Option<usize>,
    max_context: usize,
    bos: Option<u32>,
    eos: Option<u32>,
}

const FAMILIES: [Family; 4] = [
    Family {
        architecture: "LlamaForCausalLM",
        model_type: "llama",
        kv_heads: None,
        head_dim: None,
        max_context: 2048,
        bos: Some(1),
        eos: Some(2),
    },
    Family {
        architecture: "MistralForCausalLM",
        model_type: "mistral",
        kv_heads: Some(8),
        head_dim: None,
        max_context: 131072,
        bos: Some(1),
        eos: Some(2),
    },
    Family {
        architecture: "Qwen2ForCausalLM",
        model_type: "qwen2",
        kv_heads: Some(32),
        head_dim: None,
        max_context: 32768,
        bos: None,
        eos: None,
    },
    Family {
        architecture: "Qwen3ForCausalLM",
        model_type: "qwen3",
        kv_heads: Some(32),
        head_dim: Some(128),
        max_context: 32768,
        bos: None,
        eos: None,
    },
];

impl Config {
    /// From the text of a Hugging Face `config.json`.
    ///
    /// # Errors
    /// An unsupported architecture or feature, a missing field and a value out of range, each by its name.
    pub fn from_json(text: &str) -> Result<Self, ConfigError> {
        let object: Map<String, Value> = serde_json::from_str(text)?;
        let fields = Fields { object: &object, path: "" };
        let family = family(&fields)?;

        fields.require("hidden_act", Value::is_string, "\"silu\"", |v| v == "silu")?;
        fields.require("partial_rotary_factor", Value::is_number, "1", |v| v.as_f64() == Some(1.0))?;
        if let Some(quantization) = fields.get("quantization_config") {
            let inner = fields.object_at("quantization_config", quantization)?;
            inner.require(
                "quant_method",
                |_| true,
                "unquantized weights, or the method \"watersic\" of a .ws folder",
                |v| v == "watersic",
            )?;
        }

        let hidden = fields.size("hidden_size", None, MAX_WIDTH)?;
        let heads = fields.size("num_attention_heads", None, MAX_HEADS)?;
        let kv_default = if fields.object.contains_key("num_key_value_heads") { None } else { family.kv_heads };
        let kv_heads = fields.size("num_key_value_heads", Some(kv_default.unwrap_or(heads)), MAX_HEADS)?;
        if !heads.is_multiple_of(kv_heads) {
            return Err(unsupported("num_key_value_heads", kv_heads, format!("a divisor of num_attention_heads ({heads})")));
        }
        let head_dim_default = if fields.object.contains_key("head_dim") { None } else { family.head_dim };
        if fields.get("head_dim").is_none() && head_dim_default.is_none() && !hidden.is_multiple_of(heads) {
            return Err(unsupported("num_attention_heads", heads, format!("a divisor of hidden_size ({hidden}), or a head_dim")));
        }
        let head_dim = fields.size("head_dim", Some(head_dim_default.unwrap_or(hidden / heads)), MAX_HEAD_DIM)?;
        if !head_dim.is_multiple_of(2) {
            return Err(unsupported("head_dim", head_dim, "an even number".into()));
        }
        let max_context = fields.size("max_position_embeddings", Some(family.max_context), MAX_CONTEXT)?;
        refuse_sliding_window(&fields, family, max_context)?;
        let (rope_theta, rope_scaling) = rope(&fields)?;
        let vocab = fields.size("vocab_size", None, MAX_VOCAB)?;

        let (llama, qwen2, qwen3) = match family.model_type {
            "llama" => (true, false, false),
            "qwen2" => (false, true, false),
            "qwen3" => (false, false, true),
            _ => (false, false, false),
        };
        let attention_bias = (llama || qwen3) && fields.flag("attention_bias", false)?;
        Ok(Self {
            architecture: family.architecture.to_string(),
            hidden,
            intermediate: fields.size("intermediate_size", None, MAX_WIDTH)?,
            layers: fields.size("num_hidden_layers", None, MAX_LAYERS)?,
            heads,
            kv_heads,
            head_dim,
            vocab,
            norm_eps: fields.number("rms_norm_eps", Some(1e-6), 0.0, 1.0)?,
            rope_theta,
            rope_scaling,
            max_context,
            tied: fields.flag("tie_word_embeddings", false)?,
            qkv_bias: qwen2 || attention_bias,
            o_bias: attention_bias,
            mlp_bias: llama && fields.flag("mlp_bias", false)?,
            qk_norm: qwen3,
            bos: fields.tokens("bos_token_id", family.bos, vocab)?.first().copied(),
            eos: fields.tokens("eos_token_id", family.eos, vocab)?,
        })
    }

    /// Names, out-features, in-features and bias of a block's linear layers: q_proj, k_proj, v_proj, o_proj, gate_proj, up_proj, down_proj.
    pub fn block_linears(&self, block: usize) -> Vec<(String, usize, usize, bool)> {
        let (q, kv) = (self.heads * self.head_dim, self.kv_heads * self.head_dim);
        [
            ("self_attn.q_proj", q, self.hidden, self.qkv_bias),
            ("self_attn.k_proj", kv, self.hidden, self.qkv_bias),
            ("self_attn.v_proj", kv, self.hidden, self.qkv_bias),
            ("self_attn.o_proj", self.hidden, q, self.o_bias),
            ("mlp.gate_proj", self.intermediate, self.hidden, self.mlp_bias),
            ("mlp.up_proj", self.intermediate, self.hidden, self.mlp_bias),
            ("mlp.down_proj", self.hidden, self.intermediate, self.mlp_bias),
        ]
        .into_iter()
        .map(|(name, out, inn, bias)| (format!("model.layers.{block}.{name}"), out, inn, bias))
        .collect()
    }

    /// Weights of the linear layers, the embedding and an untied head.
    pub fn parameters(&self) -> u64 {
        let block: u64 = self.block_linears(0).iter().map(|(_, out, inn, _)| *out as u64 * *inn as u64).sum();
        let tables = if self.tied { 1 } else { 2 };
        self.layers as u64 * block + tables * self.vocab as u64 * self.hidden as u64
    }
}

/// The family named by `architectures`, or by `model_type` where that is absent.
fn family(fields: &Fields) -> Result<&'static Family, ConfigError> {
    let expected = || FAMILIES.iter().map(|f| f.architecture).collect::<Vec<_>>().join(", ");
    let (field, value) = match (fields.get("architectures"), fields.get("model_type")) {
        (Some(list), _) => ("architectures", list.get(0).unwrap_or(list)),
        (None, Some(name)) => ("model_type", name),
        (None, None) => return Err(ConfigError::Missing { field: "architectures".into(), expected: expected() }),
    };
    FAMILIES
        .iter()
        .find(|f| value == if field == "model_type" { f.model_type } else { f.architecture })
        .ok_or_else(|| unsupported(field, value, expected()))
}

/// Every token must see every earlier one: a window that never closes is accepted, anything else refused.
fn refuse_sliding_window(fields: &Fields, family: &Family, max_context: usize) -> Result<(), ConfigError> {
    match family.model_type {
        "mistral" => {
            fields.require(
                "sliding_window",
                Value::is_number,
                &format!("null, or at least max_position_embeddings ({max_context})"),
                |v| v.as_u64().is_some_and(|w| w >= max_context as u64),
            )?;
        }
        "qwen2" | "qwen3" => fields.require("use_sliding_window", Value::is_boolean, "false", |v| v == false)?,
        _ => {}
    }
    fields.require("layer_types", Value::is_array, "\"full_attention\" in every layer", |v| {
        v.as_array().is_some_and(|layers| layers.iter().all(|layer| layer == "full_attention"))
    })
}

/// Rope base and scaling, from `rope_theta` and `rope_scaling` or from the newer `rope_parameters`.
fn rope(fields: &Fields) -> Result<(f64, RopeScaling), ConfigError> {
    let place = if fields.get("rope_parameters").is_some() { "rope_parameters" } else { "rope_scaling" };
    let theta = fields.number("rope_theta", Some(10000.0), 1.0, 1e12)?;
    let Some(value) = fields.get(place) else {
        return Ok((theta, RopeScaling::None));
    };
    let scaling = fields.object_at(place, value)?;
    let theta = scaling.number("rope_theta", Some(theta), 1.0, 1e12)?;
    scaling.require("partial_rotary_factor", Value::is_number, "1", |v| v.as_f64() == Some(1.0))?;
    let kind = if scaling.get("rope_type").is_some() { "rope_type" } else { "type" };
    let factor = || scaling.number("factor", None, 1.0, 1e6);
    let scaling = match scaling.get(kind) {
        None => RopeScaling::None,
        Some(v) if v == "default" => RopeScaling::None,
        Some(v) if v == "linear" => RopeScaling::Linear { factor: factor()? },
        Some(v) if v == "llama3" => {
            let low_freq_factor = scaling.number("low_freq_factor", None, 1e-6, 1e6)?;
            let high_freq_factor = scaling.number("high_freq_factor", None, 1e-6, 1e6)?;
            if high_freq_factor <= low_freq_factor {
                let expected = format!("more than low_freq_factor ({low_freq_factor})");
                return Err(unsupported(&format!("{place}.high_freq_factor"), high_freq_factor, expected));
            }
            let outer = fields.get("original_max_position_embeddings").and_then(Value::as_u64).map(|n| n as usize);
            RopeScaling::Llama3 {
                factor: factor()?,
                low_freq_factor,
                high_freq_factor,
                original_context: scaling.size("original_max_position_embeddings", outer, MAX_CONTEXT)?,
            }
        }
        Some(v) => return Err(unsupported(&format!("{place}.{kind}"), v, "\"default\", \"linear\" or \"llama3\"".into())),
    };
    Ok((theta, scaling))
}

fn unsupported(field: &str, value: impl ToString, expected: String) -> ConfigError {
    let mut value = value.to_string();
    if let Some((end, _)) = value.char_indices().nth(80) {
        value.truncate(end);
        value.push_str("...");
    }
    ConfigError::Unsupported { field: field.to_string(), value, expected }
}

/// A JSON object and where it stands in the file; `null` counts as absent.
struct Fields<'a> {
    object: &'a Map<String, Value>,
    path: &'a str,
}

impl<'a> Fields<'a> {
    fn get(&self, field: &str) -> Option<&'a Value> {
        self.object.get(field).filter(|v| !v.is_null())
    }

    fn name(&self, field: &str) -> String {
        format!("{}{}{field}", self.path, if self.path.is_empty() { "" } else { "." })
    }

    fn object_at(&self, path: &'a str, value: &'a Value) -> Result<Fields<'a>, ConfigError> {
        let object = value.as_object().ok_or_else(|| unsupported(path, value, "an object".into()))?;
        Ok(Fields { object, path })
    }

    /// Refuses a present field unless it has the right type and `holds`.
    fn require(
        &self,
        field: &str,
        typed: impl Fn(&Value) -> bool,
        expected: &str,
        holds: impl Fn(&Value) -> bool,
    ) -> Result<(), ConfigError> {
        match self.get(field) {
            Some(v) if !(typed(v) && holds(v)) => Err(unsupported(&self.name(field), v, expected.into())),
            _ => Ok(()),
        }
    }

    /// An integer from 1 to `max`.
    fn size(&self, field: &str, default: Option<usize>, max: usize) -> Result<usize, ConfigError> {
        let expected = format!("an integer from 1 to {max}");
        let Some(value) = self.get(field) else {
            return match default {
                Some(n) if (1..=max).contains(&n) => Ok(n),
                Some(n) => Err(unsupported(&self.name(field), n, expected)),
                None => Err(ConfigError::Missing { field: self.name(field), expected }),
            };
        };
        match value.as_u64() {
            Some(n) if (1..=max as u64).contains(&n) => Ok(n as usize),
            _ => Err(unsupported(&self.name(field), value, expected)),
        }
    }

    /// A number from `min` to `max`.
    fn number(&self, field: &str, default: Option<f64>, min: f64, max: f64) -> Result<f64, ConfigError> {
        let expected = format!("a number from {min} to {max}");
        match (self.get(field), default) {
            (Some(value), _) => {
                value.as_f64().filter(|x| (min..=max).contains(x)).ok_or_else(|| unsupported(&self.name(field), value, expected))
            }
            (None, Some(x)) => Ok(x),
            (None, None) => Err(ConfigError::Missing { field: self.name(field), expected }),
        }
    }

    fn flag(&self, field: &str, default: bool) -> Result<bool, ConfigError> {
        match self.get(field) {
            None => Ok(default),
            Some(v) => v.as_bool().ok_or_else(|| unsupported(&self.name(field), v, "true or false".into())),
        }
    }

    /// No, one or many token ids inside the vocabulary; the default counts only where the field is absent, not where it is null.
    fn tokens(&self, field: &str, default: Option<u32>, vocab: usize) -> Result<Vec<u32>, ConfigError> {
        let id = |v: &Value| {
            v.as_u64()
                .filter(|&n| n < vocab as u64)
                .map(|n| n as u32)
                .ok_or_else(|| unsupported(&self.name(field), v, format!("token ids below vocab_size ({vocab})")))
        };
        match self.object.get(field) {
            None => Ok(default.into_iter().filter(|&n| (n as usize) < vocab).collect()),
            Some(Value::Null) => Ok(Vec::new()),
            Some(Value::Array(list)) => list.iter().map(id).collect(),
            Some(v) => Ok(vec![id(v)?]),
        }
    }
}
