//! Inputs that a model refuses, and what does not change its results.
mod common;
use candle_core::{DType, Device, Tensor};
use common::{config, Tensors};
use std::collections::HashSet;
use ws_models::model::{KvCache, KvType, Model};
use ws_models::registry::aliases;

fn model(name: &str) -> Model {
    Model::load(config(name), &Tensors::golden(name, Some(DType::F32))).unwrap()
}

fn ids(list: &[u32]) -> Tensor {
    Tensor::new(list, &Device::Cpu).unwrap().unsqueeze(0).unwrap()
}

#[test]
fn a_full_cache_is_an_error_and_keeps_its_tokens() {
    let model = model("llama2");
    let mut cache = KvCache::new(&model.config, KvType::F16, 1, 6).unwrap();
    let expected = model.forward(&ids(&[1, 2, 3, 4, 5]), &mut cache).unwrap();
    let error = model.forward(&ids(&[6, 7]), &mut cache).unwrap_err().to_string();
    assert!(error.contains("context of 6 tokens"), "{error}");
    assert_eq!(cache.len(), 5);
    cache.truncate(4);
    let again = model.forward(&ids(&[5]), &mut cache).unwrap();
    let difference = (again - expected).unwrap().abs().unwrap().max_all().unwrap().to_scalar::<f32>().unwrap();
    assert!(difference < 1e-4);
    cache.truncate(100);
    assert_eq!(cache.len(), 5, "truncating never adds");
}

#[test]
fn caches_that_cannot_be() {
    let config = config("llama2");
    for (batch, context, word) in [(0, 8, "one sequence"), (1, 0, "one token"), (1, 513, "512 tokens"), (usize::MAX / 2, 512, "memory")] {
        let Err(error) = KvCache::new(&config, KvType::F16, batch, context) else { panic!("{batch} x {context}") };
        assert!(error.to_string().contains(word), "{error}");
    }
}

#[test]
fn wrong_ids_and_caches() {
    let model = model("llama2");
    let mut cache = KvCache::new(&model.config, KvType::F16, 1, 8).unwrap();
    let error = model.forward(&ids(&[3, 128]), &mut cache).unwrap_err().to_string();
    assert!(error.contains("128"), "{error}");
    assert!(cache.is_empty());
    let none = Tensor::zeros((1, 0), DType::U32, &Device::Cpu).unwrap();
    assert!(model.forward(&none, &mut cache).is_err() && model.forward_all(&none).is_err());
    let two = Tensor::zeros((2, 3), DType::U32, &Device::Cpu).unwrap();
    assert!(model.forward(&two, &mut cache).unwrap_err().to_string().contains("sequences"));
    let mut other = KvCache::new(&config("qwen3"), KvType::F16, 1, 8).unwrap();
    assert!(model.forward(&ids(&[1]), &mut other).is_err());
    assert!(model.forward(&ids(&[1]), &mut cache).is_ok());
}

#[test]
fn missing_and_misshapen_tensors() {
    for tensor in ["model.norm.weight", "model.layers.1.mlp.up_proj.weight", "lm_head.weight", "model.embed_tokens.weight"] {
        let mut weights = Tensors::golden("llama2", None);
        weights.tensors.remove(tensor);
        let Err(error) = Model::load(config("llama2"), &weights) else { panic!("{tensor}") };
        assert!(error.to_string().contains(tensor), "{error}");
    }
    let mut wide = config("llama2");
    wide.intermediate += 1;
    assert!(Model::load(wide, &Tensors::golden("llama2", None)).is_err());
}

#[test]
fn bytes_read_for_a_token() {
    for (name, linears) in [("llama2", 3 * (4 * 32 * 32 + 3 * 32 * 64)), ("qwen2-tied", 2 * (2 * 48 * 48 + 2 * 48 * 16 + 3 * 48 * 64))] {
        let model = model(name);
        let biases = if model.config.qkv_bias { 2 * (48 + 2 * 16) } else { 0 };
        let weights = linears + biases + (model.config.vocab + 1) * model.config.hidden;
        assert_eq!(model.bytes_per_token(), 4 * weights as u64, "{name}");
    }
}

#[test]
fn threads_change_nothing() {
    let model = model("qwen2");
    let tokens: Vec<u32> = (0..200).map(|i| i * 31 % 128).collect();
    let results = |threads| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        pool.install(|| {
            let mut cache = KvCache::new(&model.config, KvType::F16, 1, 201).unwrap();
            let prefill = model.forward(&ids(&tokens), &mut cache).unwrap();
            let step = model.forward(&ids(&[5]), &mut cache).unwrap();
            [prefill, step].map(|x| x.flatten_all().unwrap().to_vec1::<f32>().unwrap())
        })
    };
    assert_eq!(results(1), results(3));
}

#[test]
fn aliases_are_distinct_and_complete() {
    let names: HashSet<_> = aliases().iter().map(|alias| alias.name.as_str()).collect();
    assert_eq!(names.len(), aliases().len());
    for name in ["llama2-7b", "llama3-8b", "llama3.1-8b", "llama3.2-1b", "llama3.2-3b", "qwen2.5-0.5b", "qwen2.5-1.5b", "qwen2.5-7b"] {
        assert!(names.contains(name), "{name}");
    }
    for name in ["qwen3-0.6b", "qwen3-1.7b", "qwen3-4b", "qwen3-8b", "smollm2-135m", "tinyllama"] {
        assert!(names.contains(name), "{name}");
    }
    assert!(aliases().iter().all(|alias| alias.repo.split('/').filter(|part| !part.is_empty()).count() == 2));
}
