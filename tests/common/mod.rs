//! A tiny random model on disk, and the program run on it.
#![allow(dead_code)] // Each test program uses its own part.
use rand::Rng;
use rand_chacha::rand_core::SeedableRng;
use rand_chacha::ChaCha12Rng;
use safetensors::tensor::{Dtype, TensorView};
use serde_json::{json, Value};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

pub const CHAT_TEMPLATE: &str = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}";

/// Changes a tensor's values before they are written.
pub type Edit = fn(name: &str, values: &mut Vec<f32>);

/// A Llama model with random weights: untied, grouped-query attention, byte-level tokens.
#[derive(Clone)]
pub struct Tiny {
    pub hidden: usize,
    pub intermediate: usize,
    pub layers: usize,
    pub context: usize,
    pub seed: u64,
    pub edit: Edit,
    /// Changes `config.json`.
    pub config: fn(&mut Value),
}

impl Default for Tiny {
    fn default() -> Self {
        Self { hidden: 128, intermediate: 256, layers: 2, context: 256, seed: 1, edit: |_, _| {}, config: |_| {} }
    }
}

impl Tiny {
    /// Writes the model into `dir`.
    pub fn write(&self, dir: &Path) {
        std::fs::create_dir_all(dir).unwrap();
        let tokenizer = tokenizer();
        std::fs::write(dir.join("tokenizer.json"), tokenizer.to_string()).unwrap();
        let tokenizer_config = json!({"bos_token": null, "eos_token": "<|im_end|>", "chat_template": CHAT_TEMPLATE});
        std::fs::write(dir.join("tokenizer_config.json"), tokenizer_config.to_string()).unwrap();
        let vocab = VOCAB;
        let mut config = json!({
            "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_act": "silu", "hidden_size": self.hidden,
            "intermediate_size": self.intermediate, "num_hidden_layers": self.layers, "num_attention_heads": 4, "num_key_value_heads": 2,
            "vocab_size": vocab, "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "max_position_embeddings": self.context,
            "tie_word_embeddings": false, "bos_token_id": null, "eos_token_id": 257, "torch_dtype": "float32",
        });
        (self.config)(&mut config);
        std::fs::write(dir.join("config.json"), config.to_string()).unwrap();

        let (h, m) = (self.hidden, self.intermediate);
        let kv = h / 2;
        let mut shapes =
            vec![("model.embed_tokens".to_string(), vec![vocab, h]), ("model.norm".into(), vec![h]), ("lm_head".into(), vec![vocab, h])];
        for i in 0..self.layers {
            for (name, shape) in [
                ("input_layernorm", vec![h]),
                ("post_attention_layernorm", vec![h]),
                ("self_attn.q_proj", vec![h, h]),
                ("self_attn.k_proj", vec![kv, h]),
                ("self_attn.v_proj", vec![kv, h]),
                ("self_attn.o_proj", vec![h, h]),
                ("mlp.gate_proj", vec![m, h]),
                ("mlp.up_proj", vec![m, h]),
                ("mlp.down_proj", vec![h, m]),
            ] {
                shapes.push((format!("model.layers.{i}.{name}"), shape));
            }
        }
        let mut rng = ChaCha12Rng::seed_from_u64(self.seed);
        let data: Vec<(String, Vec<usize>, Vec<u8>)> = shapes
            .into_iter()
            .map(|(name, shape)| {
                let columns = *shape.last().unwrap() as f32;
                let mut values: Vec<f32> = (0..shape.iter().product())
                    .map(|_| if shape.len() == 1 { 1.0 } else { normal(&mut rng) * 2.0 / columns.sqrt() })
                    .collect();
                if name == "lm_head" {
                    // Only printable characters are ever likely, so that texts are easy to cut and compare.
                    for (id, row) in values.chunks_mut(h).enumerate() {
                        let weight = if (32..127).contains(&id) { 3.0 } else { 0.0 };
                        row.iter_mut().for_each(|v| *v *= weight);
                    }
                }
                (self.edit)(&name, &mut values);
                (format!("{name}.weight"), shape, values.iter().flat_map(|v| v.to_le_bytes()).collect())
            })
            .collect();
        let views = data.iter().map(|(name, shape, bytes)| (name, TensorView::new(Dtype::F32, shape.clone(), bytes).unwrap()));
        safetensors::serialize_to_file(views, None, &dir.join("model.safetensors")).unwrap();
    }
}

fn normal(rng: &mut ChaCha12Rng) -> f32 {
    let (u, v): (f32, f32) = (rng.random::<f32>().max(1e-9), rng.random());
    (-2.0 * u.ln()).sqrt() * (std::f32::consts::TAU * v).cos()
}

const VOCAB: usize = 262;

/// Byte `b` is token `b`; then `<|im_start|>` 256, `<|im_end|>` 257, and four merges.
fn tokenizer() -> Value {
    // The byte-level alphabet: printable bytes stand for themselves, the others follow from U+0100 on.
    let mut next = 256;
    let letters: Vec<String> = (0..256u32)
        .map(|b| {
            let own = (33..=126).contains(&b) || (161..=172).contains(&b) || (174..=255).contains(&b);
            let code = if own { b } else { next };
            next += u32::from(!own);
            char::from_u32(code).unwrap().to_string()
        })
        .collect();
    let mut vocab: serde_json::Map<String, Value> = letters.iter().enumerate().map(|(i, l)| (l.clone(), json!(i))).collect();
    let merges = [("t", "h"), ("th", "e"), ("i", "n"), ("a", "n")];
    for (i, (a, b)) in merges.iter().enumerate() {
        vocab.insert(format!("{a}{b}"), json!(258 + i));
    }
    let special = |id: u32, content: &str| json!({"id": id, "content": content, "single_word": false, "lstrip": false, "rstrip": false, "normalized": false, "special": true});
    let byte_level = json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": false, "use_regex": true});
    vocab.insert("<|im_start|>".into(), json!(256));
    vocab.insert("<|im_end|>".into(), json!(257));
    json!({
        "version": "1.0", "truncation": null, "padding": null, "normalizer": null, "pre_tokenizer": byte_level, "post_processor": null,
        "decoder": byte_level, "added_tokens": [special(256, "<|im_start|>"), special(257, "<|im_end|>")],
        "model": {"type": "BPE", "vocab": vocab, "merges": merges.map(|(a, b)| format!("{a} {b}"))},
    })
}

/// A temporary folder with a tiny model in `model`.
pub struct Fixture {
    pub dir: tempfile::TempDir,
}

impl Fixture {
    pub fn new() -> Self {
        Self::with(&Tiny::default())
    }

    pub fn with(tiny: &Tiny) -> Self {
        let dir = tempfile::tempdir().unwrap();
        tiny.write(&dir.path().join("model"));
        Self { dir }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// The program in the temporary folder, without a network and with its own caches.
    pub fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_wsrun"));
        command.args(args).current_dir(self.dir.path()).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command.env("WSRUN_HOME", self.path("home")).env("HF_HOME", self.path("hf")).env("HF_HUB_OFFLINE", "1");
        command.env_remove("RAYON_NUM_THREADS").env_remove("HF_ENDPOINT").env_remove("HF_TOKEN");
        command
    }

    pub fn run(&self, args: &[&str]) -> Run {
        Run::new(self.command(args).output().unwrap(), args)
    }

    pub fn run_with_stdin(&self, args: &[&str], stdin: &[u8]) -> Run {
        let mut child = self.command(args).stdin(Stdio::piped()).spawn().unwrap();
        child.stdin.take().unwrap().write_all(stdin).unwrap();
        Run::new(child.wait_with_output().unwrap(), args)
    }

    /// Quantizes `model` to `out` quickly.
    pub fn quantize(&self, rate: &str, out: &str) -> Value {
        self.run(&["quantize", "model", "--rate", rate, "--out", out, "--samples", "8", "--context", "64", "--json"]).json()
    }
}

/// What a run of the program left.
pub struct Run {
    pub code: Option<i32>,
    pub stdout: String,
    pub stderr: String,
    args: String,
}

impl Run {
    pub fn new(output: Output, args: &[&str]) -> Self {
        let run = Self {
            code: output.status.code(),
            stdout: String::from_utf8(output.stdout).expect("stdout is UTF-8"),
            stderr: String::from_utf8(output.stderr).expect("stderr is UTF-8"),
            args: args.join(" "),
        };
        assert!(!run.stderr.contains("panicked"), "wsrun {}:\n{}", run.args, run.stderr);
        run
    }

    /// Succeeded.
    pub fn ok(self) -> Self {
        assert_eq!(self.code, Some(0), "wsrun {}:\n{}", self.args, self.stderr);
        self
    }

    /// The one JSON object on stdout.
    pub fn json(self) -> Value {
        let run = self.ok();
        serde_json::from_str(&run.stdout).unwrap_or_else(|e| panic!("wsrun {}: {e}:\n{}", run.args, run.stdout))
    }

    /// Failed with this code, and stderr says all of this.
    pub fn fails(self, code: i32, says: &[&str]) {
        assert_eq!(self.code, Some(code), "wsrun {}:\n{}\n{}", self.args, self.stdout, self.stderr);
        for part in says {
            assert!(self.stderr.contains(part), "wsrun {} does not say {part:?}:\n{}", self.args, self.stderr);
        }
        if code == 1 {
            let errors = self.stderr.lines().filter(|l| l.starts_with("error:")).count();
            assert_eq!(errors, 1, "one line, one error:\n{}", self.stderr);
        }
    }
}
