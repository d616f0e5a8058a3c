//! Logits against those of Hugging Face transformers (`golden/make_golden.py`).
mod common;
use candle_core::{DType, Device, Result, Tensor, D};
use common::{config, path, Tensors};
use std::collections::HashMap;
use ws_models::model::{Block, KvCache, KvType, Model, Site, Tap};

/// The folders of `make_golden.py`.
const MODELS: [&str; 10] = [
    "llama2",
    "llama3.2-tied",
    "llama3.1-wide",
    "llama-linear",
    "llama-bias",
    "mistral",
    "qwen2-tied",
    "qwen2",
    "qwen3",
    "qwen3-tied-bias",
];

/// The prompts in them.
const PROMPTS: [&str; 5] = ["one", "two", "short", "other", "long"];
/// Largest difference over the largest logit of the position; 4e-6 is the largest seen.
const TOLERANCE: f32 = 2e-5;

struct Golden(HashMap<String, Tensor>);

impl Golden {
    fn load(model: &str) -> Self {
        Self(candle_core::safetensors::load(path(model, "golden.safetensors"), &Device::Cpu).unwrap())
    }
    /// `[1, tokens]`.
    fn ids(&self, prompt: &str) -> Tensor {
        self.0[&format!("{prompt}.ids")].unsqueeze(0).unwrap()
    }
    fn positions(&self, prompt: &str) -> Tensor {
        self.0[&format!("{prompt}.positions")].clone()
    }
    /// `[positions, vocab]`.
    fn logits(&self, prompt: &str) -> Tensor {
        self.0[&format!("{prompt}.logits")].clone()
    }
    /// `[1, vocab]`: the last position is always stored.
    fn last(&self, prompt: &str) -> Tensor {
        let logits = self.logits(prompt);
        logits.narrow(0, logits.dim(0).unwrap() - 1, 1).unwrap()
    }
}

fn model(name: &str, dtype: Option<DType>) -> Model {
    Model::load(config(name), &Tensors::golden(name, dtype)).unwrap()
}

/// Largest difference of any row, relative to the largest magnitude in that row of `b`.
fn difference(a: &Tensor, b: &Tensor) -> f32 {
    assert_eq!(a.dims(), b.dims());
    let differences = (a - b).unwrap().abs().unwrap().max(D::Minus1).unwrap();
    let sizes = b.abs().unwrap().max(D::Minus1).unwrap();
    let ratio = (differences / sizes).unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap();
    ratio.into_iter().fold(0.0, |max, x| if x.is_nan() { f32::INFINITY } else { max.max(x) })
}

fn check(what: &str, a: &Tensor, b: &Tensor) {
    let difference = difference(a, b);
    println!("{what}: {difference:.1e}");
    assert!(difference < TOLERANCE, "{what}: {difference:e}");
}

#[test]
fn whole_prompts() {
    for name in MODELS {
        let (model, golden) = (model(name, Some(DType::F32)), Golden::load(name));
        for prompt in PROMPTS {
            let logits = model.forward_all(&golden.ids(prompt)).unwrap().squeeze(0).unwrap();
            let logits = logits.index_select(&golden.positions(prompt), 0).unwrap();
            check(&format!("{name} {prompt}"), &logits, &golden.logits(prompt));
        }
    }
}

#[test]
fn weights_in_their_stored_type() {
    for name in MODELS {
        let (model, golden) = (model(name, None), Golden::load(name));
        for prompt in ["one", "short"] {
            let logits = model.forward_all(&golden.ids(prompt)).unwrap().squeeze(0).unwrap();
            check(&format!("{name} {prompt}"), &logits, &golden.logits(prompt));
        }
    }
}

#[test]
fn prefill_and_token_by_token() {
    for name in MODELS {
        let (model, golden) = (model(name, Some(DType::F32)), Golden::load(name));
        for prompt in PROMPTS {
            let ids = golden.ids(prompt);
            let tokens = ids.dim(1).unwrap();
            let mut cache = KvCache::new(&model.config, KvType::F32, 1, tokens).unwrap();
            check(&format!("{name} {prompt} prefill"), &model.forward(&ids, &mut cache).unwrap(), &golden.last(prompt));
            assert_eq!(cache.len(), tokens);

            cache.truncate(0);
            let steps: Vec<_> = (0..tokens).map(|i| model.forward(&ids.narrow(1, i, 1).unwrap(), &mut cache).unwrap()).collect();
            let steps = Tensor::cat(&steps, 0).unwrap().index_select(&golden.positions(prompt), 0).unwrap();
            check(&format!("{name} {prompt} steps"), &steps, &golden.logits(prompt));
        }
    }
}

#[test]
fn prefill_in_chunks() {
    for name in MODELS {
        let (model, golden) = (model(name, Some(DType::F32)), Golden::load(name));
        let ids = golden.ids("long");
        for chunk in [7, 64, 129, 299] {
            let mut cache = KvCache::new(&model.config, KvType::F32, 1, 512).unwrap();
            let mut last = None;
            for start in (0..300).step_by(chunk) {
                last = Some(model.forward(&ids.narrow(1, start, chunk.min(300 - start)).unwrap(), &mut cache).unwrap());
            }
            check(&format!("{name} chunks of {chunk}"), &last.unwrap(), &golden.last("long"));
        }
    }
}

#[test]
fn two_sequences_at_once() {
    for name in MODELS {
        let (model, golden) = (model(name, Some(DType::F32)), Golden::load(name));
        let ids = Tensor::cat(&[golden.ids("short"), golden.ids("other")], 0).unwrap();
        let expected = Tensor::stack(&[golden.logits("short"), golden.logits("other")], 0).unwrap();
        check(&format!("{name} whole"), &model.forward_all(&ids).unwrap(), &expected);

        let mut cache = KvCache::new(&model.config, KvType::F32, 2, 20).unwrap();
        model.forward(&ids.narrow(1, 0, 9).unwrap(), &mut cache).unwrap();
        for i in 9..17 {
            let logits = model.forward(&ids.narrow(1, i, 1).unwrap(), &mut cache).unwrap();
            check(&format!("{name} step {i}"), &logits, &expected.get_on_dim(1, i).unwrap());
        }
    }
}

/// Keys and values of 11 and 8 bits: prefill and steps (largest difference seen on these random models: 1.9e-3 and 3.1e-2).
#[test]
fn rounded_caches() {
    for name in MODELS {
        let (model, golden) = (model(name, Some(DType::F32)), Golden::load(name));
        let ids = golden.ids("long");
        for (kv, tolerance) in [(KvType::F16, 4e-3), (KvType::Int8, 6e-2)] {
            let mut cache = KvCache::new(&model.config, kv, 1, 300).unwrap();
            let logits = model.forward(&ids.narrow(1, 0, 290).unwrap(), &mut cache).unwrap();
            assert_eq!((cache.len(), logits.dims()), (290, &[1, model.config.vocab][..]));
            let steps: Vec<_> = (290..300).map(|i| model.forward(&ids.narrow(1, i, 1).unwrap(), &mut cache).unwrap()).collect();
            let difference = difference(&steps[9], &golden.last("long"));
            println!("{name} {kv}: {difference:.1e}");
            assert!(difference < tolerance, "{name} {kv}: {difference:e}");
        }
    }
}

/// Going back and on again gives what the other text gives.
#[test]
fn truncated_cache() {
    let (model, golden) = (model("qwen3", Some(DType::F32)), Golden::load("qwen3"));
    let (short, other) = (golden.ids("short"), golden.ids("other"));
    let mut cache = KvCache::new(&model.config, KvType::F32, 1, 40).unwrap();
    model.forward(&other.narrow(1, 0, 5).unwrap(), &mut cache).unwrap();
    model.forward(&short, &mut cache).unwrap();
    cache.truncate(5);
    let logits = model.forward(&other.narrow(1, 5, 12).unwrap(), &mut cache).unwrap();
    check("other", &logits, &golden.last("other"));
}

#[derive(Default)]
struct Record {
    sites: Vec<(Site, Vec<usize>)>,
    received: Vec<Tensor>,
}

impl Tap for Record {
    fn input(&mut self, site: Site, x: &Tensor) -> Result<()> {
        self.sites.push((site, x.dims().to_vec()));
        Ok(())
    }
    fn attention(&mut self, received: &Tensor) -> Result<()> {
        self.sites.push((Site::Qkv, received.dims().to_vec()));
        self.received.push(received.clone());
        Ok(())
    }
}

/// Block by block gives the whole model's hidden states, and the tap sees the attention that transformers reports.
#[test]
fn blocks_with_a_tap() {
    for name in MODELS {
        let (config, weights, golden) = (config(name), Tensors::golden(name, Some(DType::F32)), Golden::load(name));
        let ids = Tensor::cat(&[golden.ids("short"), golden.ids("other")], 0).unwrap();
        let mut record = Record::default();
        let mut x = Model::load_embedding(&config, &weights).unwrap().lookup(&ids).unwrap();
        for index in 0..config.layers {
            let block = Block::load(&config, &weights, index).unwrap();
            let without = block.forward(&config, &x, None).unwrap();
            x = block.forward(&config, &x, Some(&mut record)).unwrap();
            check("tap changes nothing", &x, &without);
        }
        let (heads, mlp) = (config.heads * config.head_dim, config.intermediate);
        let expected = [
            (Site::Qkv, vec![2, 17, config.hidden]),
            (Site::Qkv, vec![2, 17]),
            (Site::O, vec![2, 17, heads]),
            (Site::GateUp, vec![2, 17, config.hidden]),
            (Site::Down, vec![2, 17, mlp]),
        ];
        for sites in record.sites.chunks(5) {
            assert_eq!(sites, expected);
        }
        let received: Vec<_> = record.received.iter().map(|r| r.get(0).unwrap()).collect();
        check(&format!("{name} received"), &Tensor::stack(&received, 0).unwrap(), &golden.0["short.received"]);

        let weight = weights.tensors["model.norm.weight"].to_dtype(DType::F32).unwrap();
        let normed = candle_nn::ops::rms_norm(&x, &weight, config.norm_eps as f32).unwrap();
        let model = Model::load(config, &weights).unwrap();
        check(&format!("{name} hidden"), &normed, &model.hidden(&ids).unwrap());
    }
}
