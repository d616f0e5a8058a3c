//! A small writer of GGUF files, and Hugging Face folders as llama.cpp converts them.
use crate::support::{read_tensors, SINGLE};
use candle_core::quantized::{GgmlDType, QTensor};
use candle_core::{Device, Tensor};
use serde_json::Value;
use std::path::Path;

/// A metadata value: its type and bytes.
#[derive(Clone)]
pub struct Field(pub u32, pub Vec<u8>);

pub fn u32(value: u32) -> Field {
    Field(4, value.to_le_bytes().to_vec())
}

pub fn f32(value: f32) -> Field {
    Field(6, value.to_le_bytes().to_vec())
}

pub fn bool(value: bool) -> Field {
    Field(7, vec![value.into()])
}

pub fn text(value: &str) -> Field {
    Field(8, string(value))
}

/// An array of elements of one type.
pub fn array<T>(values: &[T], field: impl Fn(&T) -> Field) -> Field {
    let fields: Vec<Field> = values.iter().map(field).collect();
    let mut bytes = fields[0].0.to_le_bytes().to_vec();
    bytes.extend((fields.len() as u64).to_le_bytes());
    fields.iter().for_each(|f| bytes.extend(&f.1));
    Field(9, bytes)
}

pub fn texts<S: AsRef<str>>(values: &[S]) -> Field {
    array(values, |v| text(v.as_ref()))
}

fn string(value: &str) -> Vec<u8> {
    [&(value.len() as u64).to_le_bytes(), value.as_bytes()].concat()
}

#[derive(Clone)]
pub struct Stored {
    pub name: String,
    /// As in the file: the shortest stride first.
    pub dims: Vec<u64>,
    /// GGML's number.
    pub kind: u32,
    pub bytes: Vec<u8>,
}

#[derive(Clone)]
pub struct Gguf {
    pub metadata: Vec<(String, Field)>,
    pub tensors: Vec<Stored>,
    pub alignment: u64,
}

impl Gguf {
    /// The model in `dir`, its matrices stored as `kind`, its vectors in f32.
    pub fn convert(dir: &Path, kind: GgmlDType) -> Self {
        let json = |name: &str| -> Value { serde_json::from_slice(&std::fs::read(dir.join(name)).unwrap()).unwrap() };
        let config = json("config.json");
        let arch = config["model_type"].as_str().unwrap();
        let mut gguf = Self { metadata: Vec::new(), tensors: Vec::new(), alignment: 32 };
        gguf.set("general.architecture", text(arch));
        let whole = |field: &str| config[field].as_u64().map(|v| u32(v as u32));
        for (key, value) in [
            ("block_count", whole("num_hidden_layers")),
            ("context_length", whole("max_position_embeddings")),
            ("embedding_length", whole("hidden_size")),
            ("feed_forward_length", whole("intermediate_size")),
            ("attention.head_count", whole("num_attention_heads")),
            ("attention.head_count_kv", whole("num_key_value_heads")),
            ("attention.key_length", whole("head_dim")),
            ("attention.layer_norm_rms_epsilon", config["rms_norm_eps"].as_f64().map(|v| f32(v as f32))),
        ] {
            value.into_iter().for_each(|v| gguf.set(&format!("{arch}.{key}"), v));
        }
        let scaling = [&config["rope_parameters"], &config["rope_scaling"]].into_iter().find(|v| v.is_object()).unwrap_or(&Value::Null);
        let theta = scaling["rope_theta"].as_f64().or_else(|| config["rope_theta"].as_f64()).unwrap();
        gguf.set(&format!("{arch}.rope.freq_base"), f32(theta as f32));
        let heads = |field: &str| config[field].as_u64().unwrap() as usize;
        let head_dim = whole("head_dim").map_or(heads("hidden_size") / heads("num_attention_heads"), |_| heads("head_dim"));
        if scaling["type"] == "linear" {
            gguf.set(&format!("{arch}.rope.scaling.type"), text("linear"));
            gguf.set(&format!("{arch}.rope.scaling.factor"), f32(scaling["factor"].as_f64().unwrap() as f32));
        } else if scaling["rope_type"] == "llama3" {
            let number = |field: &str| scaling[field].as_f64().unwrap();
            let numbers = ["factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"].map(number);
            gguf.add("rope_freqs.weight", &[head_dim / 2], &divisors(theta, head_dim, numbers), GgmlDType::F32);
        }
        for (name, (shape, values)) in &read_tensors(&dir.join(SINGLE)) {
            let rows = match name {
                n if arch != "llama" => (n, None),
                n if n.contains("q_proj") => (n, Some(heads("num_attention_heads"))),
                n if n.contains("k_proj") => (n, Some(heads("num_key_value_heads"))),
                n => (n, None),
            };
            let values = match rows.1 {
                Some(heads) => interleaved(values, shape[0], heads),
                None => values.clone(),
            };
            gguf.add(&gguf_name(name), shape, &values, if shape.len() == 1 { GgmlDType::F32 } else { kind });
        }
        gguf.set_tokenizer(&json("tokenizer.json"));
        if let Some(end) = config["eos_token_id"].as_u64() {
            gguf.set("tokenizer.ggml.eos_token_id", u32(end as u32));
        }
        gguf
    }

    /// A byte-level tokenizer.
    fn set_tokenizer(&mut self, tokenizer: &Value) {
        let mut vocab: Vec<(&str, u64)> =
            tokenizer["model"]["vocab"].as_object().unwrap().iter().map(|(t, id)| (t.as_str(), id.as_u64().unwrap())).collect();
        vocab.sort_by_key(|(_, id)| *id);
        let tokens: Vec<&str> = vocab.into_iter().map(|(token, _)| token).collect();
        let control = |token: &&str| i32::from(token.starts_with("<|")) * 2 + 1;
        let merges: Vec<&str> = tokenizer["model"]["merges"].as_array().unwrap().iter().map(|m| m.as_str().unwrap()).collect();
        self.set("tokenizer.ggml.model", text("gpt2"));
        self.set("tokenizer.ggml.pre", text("gpt-2"));
        self.set("tokenizer.ggml.tokens", texts(&tokens));
        self.set("tokenizer.ggml.token_type", array(&tokens, |t| Field(5, control(t).to_le_bytes().to_vec())));
        self.set("tokenizer.ggml.merges", texts(&merges));
    }

    pub fn set(&mut self, key: &str, value: Field) {
        self.metadata.retain(|(k, _)| k != key);
        self.metadata.push((key.to_owned(), value));
    }

    pub fn unset(&mut self, key: &str) {
        self.metadata.retain(|(k, _)| k != key);
    }

    pub fn add(&mut self, name: &str, shape: &[usize], values: &[f32], kind: GgmlDType) {
        let tensor = Tensor::from_slice(values, shape, &Device::Cpu).unwrap();
        let bytes = QTensor::quantize(&tensor, kind).unwrap().data().unwrap().into_owned();
        let kind = match kind {
            GgmlDType::F32 => 0,
            GgmlDType::F16 => 1,
            GgmlDType::Q4_0 => 2,
            GgmlDType::Q4_1 => 3,
            GgmlDType::Q5_0 => 6,
            GgmlDType::Q5_1 => 7,
            GgmlDType::Q8_0 => 8,
            GgmlDType::Q2K => 10,
            GgmlDType::Q3K => 11,
            GgmlDType::Q4K => 12,
            GgmlDType::Q5K => 13,
            GgmlDType::Q6K => 14,
            GgmlDType::BF16 => 30,
            other => panic!("{other:?}"),
        };
        self.tensors.push(Stored { name: name.to_owned(), dims: shape.iter().rev().map(|&n| n as u64).collect(), kind, bytes });
    }

    pub fn tensor(&mut self, name: &str) -> &mut Stored {
        self.tensors.iter_mut().find(|t| t.name == name).unwrap()
    }

    /// Version 3, little-endian.
    pub fn bytes(&self) -> Vec<u8> {
        let mut out = [b"GGUF", &3u32.to_le_bytes()[..]].concat();
        out.extend((self.tensors.len() as u64).to_le_bytes());
        out.extend((self.metadata.len() as u64).to_le_bytes());
        for (key, Field(kind, value)) in &self.metadata {
            out.extend(string(key));
            out.extend(kind.to_le_bytes());
            out.extend(value);
        }
        let mut offset = 0u64;
        for tensor in &self.tensors {
            out.extend(string(&tensor.name));
            out.extend((tensor.dims.len() as u32).to_le_bytes());
            tensor.dims.iter().for_each(|n| out.extend(n.to_le_bytes()));
            out.extend(tensor.kind.to_le_bytes());
            out.extend(offset.to_le_bytes());
            offset += (tensor.bytes.len() as u64).next_multiple_of(self.alignment);
        }
        for tensor in &self.tensors {
            out.resize(out.len().next_multiple_of(self.alignment as usize), 0);
            out.extend(&tensor.bytes);
        }
        out
    }

    pub fn write(&self, path: &Path) {
        std::fs::write(path, self.bytes()).unwrap();
    }
}

fn gguf_name(name: &str) -> String {
    let mut name = name.replace("model.layers.", "blk.");
    for (hf, gguf) in [
        ("model.embed_tokens", "token_embd"),
        ("model.norm", "output_norm"),
        ("lm_head", "output"),
        ("self_attn.q_proj", "attn_q"),
        ("self_attn.k_proj", "attn_k"),
        ("self_attn.v_proj", "attn_v"),
        ("self_attn.o_proj", "attn_output"),
        ("self_attn.q_norm", "attn_q_norm"),
        ("self_attn.k_norm", "attn_k_norm"),
        ("mlp.gate_proj", "ffn_gate"),
        ("mlp.up_proj", "ffn_up"),
        ("mlp.down_proj", "ffn_down"),
        ("post_attention_layernorm", "ffn_norm"),
        ("input_layernorm", "attn_norm"),
    ] {
        name = name.replace(hf, gguf);
    }
    name
}

/// Rows in the order of llama.cpp's rope: the two halves of a head take turns.
fn interleaved(values: &[f32], rows: usize, heads: usize) -> Vec<f32> {
    let (columns, head) = (values.len() / rows, rows / heads);
    let source = |row: usize| row / head * head + row % head / 2 + row % 2 * (head / 2);
    (0..rows).flat_map(|row| &values[source(row) * columns..][..columns]).copied().collect()
}

/// Llama 3's divisors of the frequencies.
fn divisors(theta: f64, head_dim: usize, [factor, low, high, original]: [f64; 4]) -> Vec<f32> {
    let divisor = |i: usize| {
        let wavelength = std::f64::consts::TAU * theta.powf((2 * i) as f64 / head_dim as f64);
        let smooth = ((original / wavelength - low) / (high - low)).clamp(0.0, 1.0);
        (1.0 / ((1.0 - smooth) / factor + smooth)) as f32
    };
    (0..head_dim / 2).map(divisor).collect()
}
