//! Folders that open: shards and types make no difference to what the model says.
use crate::common::Fixture;
use crate::support::{assert_logits, difference, edit_json, folder, golden, logits, read_tensors, small, write_tensors, Tensors, SINGLE};
use safetensors::tensor::Dtype;
use serde_json::{json, Map, Value};
use std::path::Path;

const INDEX: &str = "model.safetensors.index.json";

/// Replaces the weights of a folder by `count` shards and their index.
pub fn split(dir: &Path, count: usize) -> Vec<String> {
    let tensors = read_tensors(&dir.join(SINGLE));
    let names: Vec<String> = (1..=count).map(|i| format!("model-{i:05}-of-{count:05}.safetensors")).collect();
    let mut parts = vec![Tensors::new(); count];
    let mut map = Map::new();
    for (i, (name, tensor)) in tensors.into_iter().enumerate() {
        map.insert(name.clone(), names[i % count].as_str().into());
        parts[i % count].insert(name, tensor);
    }
    for (name, part) in names.iter().zip(&parts) {
        write_tensors(&dir.join(name), part, Dtype::F32);
    }
    std::fs::write(dir.join(INDEX), json!({"metadata": {}, "weight_map": map}).to_string()).unwrap();
    std::fs::remove_file(dir.join(SINGLE)).unwrap();
    names
}

#[test]
fn one_file_and_many_shards_are_the_same_model() {
    let f = golden("qwen3");
    let one = logits(&folder(f.path("model")));
    split(&f.path("model"), 3);
    assert_logits(&folder(f.path("model")), &one, "shards");
}

#[test]
fn one_file_and_many_shards_say_the_same_text() {
    let f = Fixture::new();
    let generate = || f.run(&["generate", "--model", "model", "-n", "12", "the rain"]).ok().stdout;
    let one = generate();
    assert!(one.len() >= 12, "{one:?}");
    split(&f.path("model"), 4);
    assert_eq!(generate(), one);
}

#[test]
fn f32_f16_and_bf16_hold_the_same_values() {
    for (name, stored) in [("llama2", Dtype::F16), ("qwen2", Dtype::F16), ("mistral", Dtype::BF16)] {
        let f = golden(name);
        let wide = logits(&folder(f.path("model")));
        let path = f.path("model").join(SINGLE);
        let tensors = read_tensors(&path);
        write_tensors(&path, &tensors, stored);
        assert_logits(&folder(f.path("model")), &wide, name);
        let coarse = if stored == Dtype::F16 { Dtype::BF16 } else { Dtype::F16 };
        write_tensors(&path, &tensors, coarse);
        let error = difference(&logits(&folder(f.path("model"))), &wide);
        assert!(error < 0.05, "{name} as {coarse:?}: {error}");
    }
}

#[test]
fn ends_of_text_come_from_both_configurations() {
    let f = Fixture::with(&small());
    edit_json(&f.path("model/config.json"), |c| c["eos_token_id"] = json!([257, 3]));
    std::fs::write(f.path("model/generation_config.json"), json!({"eos_token_id": [3, 5]}).to_string()).unwrap();
    let opened = folder(f.path("model")).open().unwrap();
    assert_eq!(opened.config.eos, [257, 3, 5]);
}

#[test]
fn the_rule_for_bos_is_the_tokenizers() {
    let f = Fixture::with(&small());
    edit_json(&f.path("model/config.json"), |c| c["bos_token_id"] = json!(256));
    let add_bos = || folder(f.path("model")).open().unwrap().add_bos;
    assert!(!add_bos(), "nothing asks for BOS");
    edit_json(&f.path("model/tokenizer.json"), |t| {
        t["post_processor"] = json!({
            "type": "TemplateProcessing",
            "single": [{"SpecialToken": {"id": "<|im_start|>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
            "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
            "special_tokens": {"<|im_start|>": {"id": "<|im_start|>", "ids": [256], "tokens": ["<|im_start|>"]}},
        });
    });
    assert!(add_bos(), "the post-processor asks for it");
    edit_json(&f.path("model/tokenizer_config.json"), |c| c["add_bos_token"] = json!(false));
    assert!(!add_bos(), "tokenizer_config.json says no");
}

#[test]
fn chat_templates_come_from_either_file() {
    let f = Fixture::with(&small());
    let template = || folder(f.path("model")).open().unwrap().chat_template;
    let set = |value: Value| edit_json(&f.path("model/tokenizer_config.json"), |c| c["chat_template"] = value);
    set(json!([{"name": "tool_use", "template": "tools"}, {"name": "default", "template": "plain"}]));
    assert_eq!(template().as_deref(), Some("plain"));
    set(Value::Null);
    assert_eq!(template(), None);
    std::fs::write(f.path("model/chat_template.jinja"), "own file").unwrap();
    assert_eq!(template().as_deref(), Some("own file"));
}
