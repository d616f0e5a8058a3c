//! Configurations as they are found on the Hub, and those that are refused.
use serde_json::{json, Value};
use ws_models::config::{Config, RopeScaling};

fn base(architecture: &str) -> Value {
    json!({
        "architectures": [architecture], "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4,
        "num_key_value_heads": 2, "vocab_size": 100, "rms_norm_eps": 1e-5, "max_position_embeddings": 2048
    })
}

fn read(mut config: Value, changes: Value) -> Result<Config, String> {
    for (field, value) in changes.as_object().unwrap() {
        config[field] = value.clone();
    }
    Config::from_json(&config.to_string()).map_err(|e| e.to_string())
}

fn llama(changes: Value) -> Result<Config, String> {
    read(base("LlamaForCausalLM"), changes)
}

/// That the error names every word.
fn refused(result: Result<Config, String>, words: &[&str]) {
    let error = result.unwrap_err();
    for word in words {
        assert!(error.contains(word), "{error:?} does not name {word:?}");
    }
}

#[test]
fn llama_1_and_2() {
    // Llama 1 has neither num_key_value_heads nor rope fields.
    let text = r#"{"architectures": ["LlamaForCausalLM"], "bos_token_id": 1, "eos_token_id": 2, "hidden_act": "silu", "hidden_size": 4096,
        "intermediate_size": 11008, "max_position_embeddings": 4096, "model_type": "llama", "num_attention_heads": 32, "num_hidden_layers": 32,
        "pretraining_tp": 1, "rms_norm_eps": 1e-05, "rope_scaling": null, "tie_word_embeddings": false, "vocab_size": 32000}"#;
    let config = Config::from_json(text).unwrap();
    assert_eq!((config.heads, config.kv_heads, config.head_dim, config.rope_theta), (32, 32, 128, 10000.0));
    assert_eq!((config.rope_scaling, config.tied, config.bos, config.eos), (RopeScaling::None, false, Some(1), vec![2]));
    assert!(!config.qkv_bias && !config.o_bias && !config.mlp_bias && !config.qk_norm);
}

#[test]
fn llama_3_2() {
    let text = r#"{"architectures": ["LlamaForCausalLM"], "attention_bias": false, "bos_token_id": 128000, "eos_token_id": [128001, 128008, 128009],
        "head_dim": 64, "hidden_act": "silu", "hidden_size": 2048, "intermediate_size": 8192, "max_position_embeddings": 131072, "mlp_bias": false,
        "model_type": "llama", "num_attention_heads": 32, "num_hidden_layers": 16, "num_key_value_heads": 8, "rms_norm_eps": 1e-05,
        "rope_scaling": {"factor": 32.0, "high_freq_factor": 4.0, "low_freq_factor": 1.0, "original_max_position_embeddings": 8192,
        "rope_type": "llama3"}, "rope_theta": 500000.0, "tie_word_embeddings": true, "vocab_size": 128256}"#;
    let config = Config::from_json(text).unwrap();
    let scaling = RopeScaling::Llama3 { factor: 32.0, low_freq_factor: 1.0, high_freq_factor: 4.0, original_context: 8192 };
    assert_eq!((config.rope_scaling.clone(), config.rope_theta, config.tied), (scaling, 500000.0, true));
    assert_eq!(config.eos, [128001, 128008, 128009]);
    assert_eq!(config.parameters(), 1_235_746_816, "1.24 billion, without norms");
    let names: Vec<_> = config.block_linears(3).into_iter().map(|(name, out, inn, _)| (name, out, inn)).collect();
    assert_eq!(names[1], ("model.layers.3.self_attn.k_proj".to_string(), 512, 2048));
    assert_eq!(names[6], ("model.layers.3.mlp.down_proj".to_string(), 2048, 8192));
}

#[test]
fn qwen_and_mistral() {
    // As Qwen2.5 writes them: a window that is not used.
    let config =
        read(base("Qwen2ForCausalLM"), json!({"sliding_window": 512, "use_sliding_window": false, "max_window_layers": 21})).unwrap();
    assert!(config.qkv_bias && !config.o_bias && !config.mlp_bias && !config.qk_norm);
    assert_eq!((config.bos, config.eos.len()), (None, 0));
    let config = read(base("Qwen3ForCausalLM"), json!({"attention_bias": true, "eos_token_id": 7})).unwrap();
    assert!(config.qkv_bias && config.o_bias && config.qk_norm);
    assert_eq!((config.head_dim, config.eos), (128, vec![7]), "Qwen3's default is not hidden / heads");
    let config = read(base("MistralForCausalLM"), json!({"sliding_window": null, "head_dim": 32})).unwrap();
    assert_eq!((config.head_dim, config.qkv_bias, config.bos), (32, false, Some(1)));
    assert!(read(base("MistralForCausalLM"), json!({"sliding_window": 2048})).is_ok(), "never closes");
    assert!(llama(json!({"architectures": null, "model_type": "llama"})).is_ok());
}

#[test]
fn rope_in_all_spellings() {
    let scaling = |changes| llama(changes).unwrap().rope_scaling;
    assert_eq!(scaling(json!({"rope_scaling": {"type": "linear", "factor": 2}})), RopeScaling::Linear { factor: 2.0 });
    assert_eq!(scaling(json!({"rope_scaling": {"rope_type": "default"}})), RopeScaling::None);
    let config = llama(json!({"rope_parameters": {"rope_type": "linear", "factor": 4.0, "rope_theta": 1e6}})).unwrap();
    assert_eq!((config.rope_theta, config.rope_scaling), (1e6, RopeScaling::Linear { factor: 4.0 }));
}

#[test]
fn what_is_not_supported_is_named() {
    refused(read(base("GemmaForCausalLM"), json!({})), &["architectures", "GemmaForCausalLM", "Qwen3ForCausalLM"]);
    refused(read(base("Qwen2MoeForCausalLM"), json!({})), &["Qwen2MoeForCausalLM"]);
    refused(llama(json!({"hidden_act": "gelu"})), &["hidden_act", "gelu", "silu"]);
    refused(llama(json!({"rope_scaling": {"rope_type": "yarn", "factor": 4.0}})), &["rope_scaling.rope_type", "yarn", "llama3"]);
    refused(llama(json!({"rope_scaling": {"type": "dynamic", "factor": 4.0}})), &["rope_scaling.type", "dynamic"]);
    refused(llama(json!({"rope_scaling": "linear"})), &["rope_scaling", "object"]);
    refused(llama(json!({"partial_rotary_factor": 0.5})), &["partial_rotary_factor", "0.5"]);
    refused(
        llama(json!({"rope_parameters": {"rope_type": "default", "partial_rotary_factor": 0.25}})),
        &["rope_parameters.partial_rotary_factor"],
    );
    refused(llama(json!({"quantization_config": {"quant_method": "gptq", "bits": 4}})), &["quantization_config.quant_method", "gptq"]);
    refused(read(base("MistralForCausalLM"), json!({"sliding_window": 1024})), &["sliding_window", "1024"]);
    refused(read(base("Qwen2ForCausalLM"), json!({"use_sliding_window": true})), &["use_sliding_window", "true"]);
    refused(read(base("Qwen3ForCausalLM"), json!({"layer_types": ["full_attention", "sliding_attention"]})), &["layer_types"]);
    assert!(llama(json!({"quantization_config": {"quant_method": "watersic"}})).is_ok());
}

#[test]
fn values_out_of_range_are_named() {
    for field in ["hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "vocab_size"] {
        refused(llama(json!({field: null})), &[field, "no field"]);
        for value in [json!(0), json!(-1), json!(1.5), json!("64"), json!(1u64 << 40), json!(u64::MAX), json!([64])] {
            refused(llama(json!({field: value.clone()})), &[field, &value.to_string()]);
        }
    }
    for value in [json!(0), json!(u64::MAX), json!(-5)] {
        refused(llama(json!({"max_position_embeddings": value})), &["max_position_embeddings"]);
        refused(llama(json!({"head_dim": value})), &["head_dim"]);
    }
    refused(llama(json!({"num_key_value_heads": 3})), &["num_key_value_heads", "divisor", "(4)"]);
    refused(llama(json!({"num_key_value_heads": 8})), &["num_key_value_heads"]);
    refused(llama(json!({"num_attention_heads": 6})), &["num_attention_heads", "head_dim"]);
    refused(llama(json!({"head_dim": 7})), &["head_dim", "even"]);
    refused(llama(json!({"rms_norm_eps": -1e-5})), &["rms_norm_eps"]);
    refused(llama(json!({"rms_norm_eps": "NaN"})), &["rms_norm_eps"]);
    refused(llama(json!({"rope_theta": 0})), &["rope_theta"]);
    refused(llama(json!({"rope_scaling": {"type": "linear"}})), &["rope_scaling.factor"]);
    refused(llama(json!({"rope_scaling": {"type": "linear", "factor": 0}})), &["rope_scaling.factor"]);
    let llama3 = |low: f64, high: f64| {
        json!({"rope_scaling": {"rope_type": "llama3", "factor": 8, "low_freq_factor": low, "high_freq_factor": high,
            "original_max_position_embeddings": 8192}})
    };
    assert!(llama(llama3(1.0, 4.0)).is_ok());
    refused(llama(llama3(4.0, 4.0)), &["rope_scaling.high_freq_factor", "low_freq_factor"]);
    refused(llama(json!({"tie_word_embeddings": "yes"})), &["tie_word_embeddings"]);
    refused(llama(json!({"bos_token_id": 100})), &["bos_token_id", "vocab_size (100)"]);
    refused(llama(json!({"eos_token_id": [2, -1]})), &["eos_token_id", "-1"]);
    for text in ["", "[]", "{", "{\"rms_norm_eps\": NaN}", "{\"hidden_size\": 1e999}"] {
        assert!(Config::from_json(text).is_err(), "{text:?}");
    }
}

#[test]
fn no_tokens_at_all() {
    let config = llama(json!({"bos_token_id": null, "eos_token_id": null})).unwrap();
    assert_eq!((config.bos, config.eos.len()), (None, 0));
}
