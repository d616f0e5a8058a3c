//! Folders that are refused: the error names the file and the tensor or field.
use crate::common::Fixture;
use crate::folder::split;
use crate::support::{edit_json, folder, golden, read_tensors, refused, small, write_tensors, Tensors, SINGLE};
use safetensors::tensor::Dtype;
use serde_json::{json, Value};
use std::path::Path;

const GATE: &str = "model.layers.0.mlp.gate_proj.weight";
const NORM: &str = "model.layers.0.input_layernorm.weight";

fn with_bytes(path: &Path, change: impl FnOnce(&mut Vec<u8>)) {
    let mut bytes = std::fs::read(path).unwrap();
    change(&mut bytes);
    std::fs::write(path, bytes).unwrap();
}

fn edited(edit: impl FnOnce(&mut Tensors)) -> Fixture {
    let f = Fixture::with(&small());
    let path = f.path("model").join(SINGLE);
    let mut tensors = read_tensors(&path);
    edit(&mut tensors);
    write_tensors(&path, &tensors, Dtype::F32);
    f
}

#[test]
fn a_shard_that_is_missing_or_truncated_is_named() {
    let f = Fixture::with(&small());
    let model = folder(f.path("model"));
    let shards = split(&f.path("model"), 3);
    let path = f.path("model").join(&shards[1]);
    let good = std::fs::read(&path).unwrap();
    for length in [0, 7, 8, 60, good.len() / 2, good.len() - 1] {
        std::fs::write(&path, &good[..length]).unwrap();
        refused(&model, &[&shards[1], "truncated or altered"]);
    }
    std::fs::remove_file(&path).unwrap();
    refused(&model, &[&shards[1], "is missing"]);
}

#[test]
fn an_altered_header_is_refused() {
    let f = Fixture::with(&small());
    let model = folder(f.path("model"));
    let path = f.path("model").join(SINGLE);
    let good = std::fs::read(&path).unwrap();
    let length = u64::from_le_bytes(good[..8].try_into().unwrap());
    for wrong in [0, length - 1, length + 1, good.len() as u64, good.len() as u64 - 7, 1 << 40, u64::MAX] {
        with_bytes(&path, |b| b[..8].copy_from_slice(&wrong.to_le_bytes()));
        refused(&model, &[SINGLE, "truncated or altered"]);
        std::fs::write(&path, &good).unwrap();
    }
    let header = String::from_utf8(good[8..8 + length as usize].to_vec()).unwrap();
    for (from, to) in [("\"F32\"", "\"F99\""), ("[0,", "[4,"), ("\"shape\":[32,16]", "\"shape\":[33,16]"), ("data_offsets", "data_offsetz")]
    {
        let text = header.replacen(from, to, 1);
        assert_ne!(text, header, "{from}");
        with_bytes(&path, |b| b[8..8 + length as usize].copy_from_slice(text.as_bytes()));
        refused(&model, &[SINGLE, "truncated or altered"]);
    }
}

#[test]
fn an_index_is_not_trusted() {
    let f = Fixture::with(&small());
    let model = folder(f.path("model"));
    let shards = split(&f.path("model"), 2);
    let index = f.path("model/model.safetensors.index.json");
    let first = std::fs::read(f.path("model").join(&shards[0])).unwrap();
    for name in [json!("../secret.safetensors"), json!("/etc/passwd"), json!("model.bin"), json!(3)] {
        let good = std::fs::read(&index).unwrap();
        edit_json(&index, |v| v["weight_map"][GATE] = name);
        refused(&model, &["index.json", "plain .safetensors file name"]);
        std::fs::write(&index, good).unwrap();
    }
    std::fs::write(f.path("model").join(&shards[1]), first).unwrap();
    refused(&model, &[&shards[1], "tensor", "is in two files"]);
    std::fs::write(&index, "{}").unwrap();
    refused(&model, &["index.json", "weight_map"]);
    std::fs::write(&index, "{").unwrap();
    refused(&model, &["index.json", "not JSON"]);
}

#[test]
fn tensors_are_named() {
    let f = edited(|t| drop(t.remove(GATE)));
    refused(&folder(f.path("model")), &["model", GATE, "is missing"]);
    let f = edited(|t| drop(t.remove("model.embed_tokens.weight")));
    refused(&folder(f.path("model")), &["model.embed_tokens.weight", "is missing"]);
    let f = edited(|t| t.get_mut(GATE).unwrap().0.reverse());
    refused(&folder(f.path("model")), &[SINGLE, GATE, "[16, 32]", "config.json asks for [32, 16]"]);
    let f = edited(|t| t.get_mut(NORM).unwrap().0.push(1));
    refused(&folder(f.path("model")), &[SINGLE, NORM, "[16, 1]"]);
    for bad in [f32::NAN, f32::INFINITY] {
        for name in [GATE, NORM, "lm_head.weight"] {
            let f = edited(|t| *t.get_mut(name).unwrap().1.last_mut().unwrap() = bad);
            refused(&folder(f.path("model")), &[SINGLE, name, "NaN or infinite"]);
        }
    }
}

#[test]
fn types_other_than_floats_are_refused() {
    let f = Fixture::with(&small());
    let path = f.path("model").join(SINGLE);
    write_tensors(&path, &read_tensors(&path), Dtype::F8_E4M3);
    refused(&folder(f.path("model")), &[SINGLE, "model.embed_tokens.weight", "F8_E4M3", "BF16"]);
}

#[test]
fn missing_files_are_named() {
    for (file, says) in [("tokenizer.json", "slow tokenizers"), (SINGLE, "fetch"), ("config.json", "cannot read")] {
        let f = Fixture::with(&small());
        std::fs::remove_file(f.path("model").join(file)).unwrap();
        refused(&folder(f.path("model")), &[file, says]);
        f.run(&["generate", "--model", "model", "x"]).fails(1, &[file]);
    }
}

#[test]
fn small_files_that_are_damaged_are_named() {
    for file in ["config.json", "tokenizer.json", "tokenizer_config.json", "generation_config.json"] {
        let f = Fixture::with(&small());
        for text in ["", "{\"model\":", "\u{0}", "{}}"] {
            std::fs::write(f.path("model").join(file), text).unwrap();
            refused(&folder(f.path("model")), &[file]);
        }
    }
}

#[test]
fn what_is_not_supported_is_refused_by_name() {
    let scaling = |value: Value| json!({ "rope_scaling": value });
    let cases: [(&str, Value, &[&str]); 12] = [
        ("llama2", json!({"architectures": ["Gemma2ForCausalLM"]}), &["architectures", "Gemma2ForCausalLM"]),
        ("llama2", json!({"architectures": ["LlamaForSequenceClassification"]}), &["LlamaForSequenceClassification"]),
        ("llama2", scaling(json!({"rope_type": "yarn", "factor": 4.0})), &["rope_scaling.rope_type", "yarn"]),
        ("llama2", scaling(json!({"type": "dynamic", "factor": 4.0})), &["rope_scaling.type", "dynamic"]),
        ("llama2", scaling(json!({"type": "linear"})), &["rope_scaling.factor"]),
        ("llama2", json!({"hidden_act": "gelu"}), &["hidden_act", "gelu"]),
        ("llama2", json!({"quantization_config": {"quant_method": "gptq"}}), &["quant_method", "gptq"]),
        ("mistral", json!({"sliding_window": 64}), &["sliding_window", "64"]),
        ("qwen2", json!({"use_sliding_window": true}), &["use_sliding_window"]),
        ("qwen3", json!({"layer_types": ["sliding_attention", "full_attention"]}), &["layer_types", "sliding_attention"]),
        ("qwen3", json!({"vocab_size": 1u64 << 60}), &["vocab_size"]),
        ("qwen3", json!({"num_hidden_layers": -1}), &["num_hidden_layers", "-1"]),
    ];
    for (model, fields, says) in cases {
        let f = golden(model);
        edit_json(&f.path("model/config.json"), |c| c.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone()));
        refused(&folder(f.path("model")), &[&["config.json"], says].concat());
    }
}
