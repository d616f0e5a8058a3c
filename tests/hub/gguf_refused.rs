//! GGUF files that are whole but not supported, or contradict themselves: the error names key or tensor.
use crate::common::Fixture;
use crate::gguf_file::{array, f32, text, texts, u32, Field, Gguf};
use crate::support::{refused, small};
use candle_core::quantized::GgmlDType;
use wsrun::hub::Source;

fn fails(edit: impl FnOnce(&mut Gguf), says: &[&str]) {
    let f = Fixture::with(&small());
    let mut gguf = Gguf::convert(&f.path("model"), GgmlDType::F32);
    edit(&mut gguf);
    gguf.write(&f.path("model.gguf"));
    refused(&Source::Gguf(f.path("model.gguf")), &[&["model.gguf"], says].concat());
}

#[test]
fn architectures_and_features() {
    fails(|g| g.set("general.architecture", text("gemma2")), &["architecture `gemma2`", "llama, qwen2 and qwen3"]);
    fails(|g| g.set("general.architecture", u32(1)), &["general.architecture"]);
    fails(|g| g.unset("general.architecture"), &["general.architecture"]);
    fails(|g| g.set("llama.rope.scaling.type", text("yarn")), &["rope scaling `yarn`"]);
    fails(|g| g.set("llama.rope.scaling.type", text("linear")), &["llama.rope.scaling.factor"]);
    fails(|g| g.set("llama.attention.sliding_window", u32(64)), &["llama.attention.sliding_window 64"]);
    fails(|g| g.set("llama.rope.dimension_count", u32(2)), &["llama.rope.dimension_count 2"]);
    fails(|g| g.set("split.count", Field(2, vec![3, 0])), &["one of 3 parts", "--merge"]);
    fails(|g| g.add("blk.0.ffn_gate_inp.weight", &[4, 16], &[0.0; 64], GgmlDType::F32), &["mixture of experts"]);
}

#[test]
fn sizes() {
    for key in ["block_count", "context_length", "embedding_length", "feed_forward_length", "attention.head_count"] {
        let key = &format!("llama.{key}");
        fails(|g| g.unset(key), &[key]);
        fails(|g| g.set(key, text("many")), &[key]);
        fails(|g| g.set(key, f32(2.0)), &[key]);
        fails(|g| g.set(key, u32(0)), &[" is 0"]);
        fails(|g| g.set(key, u32(u32::MAX)), &["4294967295"]);
    }
    for bad in [text("x"), f32(f32::NAN), f32(f32::INFINITY)] {
        fails(|g| g.set("llama.attention.layer_norm_rms_epsilon", bad.clone()), &["llama.attention.layer_norm_rms_epsilon"]);
        fails(|g| g.set("llama.rope.freq_base", bad), &["llama.rope.freq_base"]);
    }
    fails(|g| g.set("llama.attention.head_count_kv", u32(3)), &["num_key_value_heads", "3"]);
    fails(|g| g.set("llama.block_count", u32(2)), &["blk.1.attn_q.weight", "is missing"]);
    fails(|g| g.set("tokenizer.ggml.eos_token_id", u32(9999)), &["eos_token_id", "9999"]);
}

#[test]
fn tensors() {
    const UP: &str = "blk.0.ffn_up.weight";
    // Q4_2, which is gone, Q8_1, Q8_K, IQ2_XXS, I8, F64, MXFP4, and what is no type.
    for kind in [4, 9, 15, 16, 24, 28, 39, u32::MAX] {
        fails(|g| g.tensor(UP).kind = kind, &[UP, &format!("type {kind}"), "Q2_K to Q6_K"]);
    }
    fails(|g| g.tensors.retain(|t| t.name != UP), &[UP, "is missing"]);
    fails(|g| g.tensors.retain(|t| t.name != "token_embd.weight"), &["token_embd.weight"]);
    fails(|g| g.tensor(UP).dims.reverse(), &[UP, "[16, 32]", "[32, 16]"]);
    fails(|g| g.tensor(UP).dims = vec![512], &[UP, "[512]"]);
    fails(|g| g.tensor(UP).dims = vec![16, 31], &[UP, "[31, 16]"]);
    fails(|g| g.tensor(UP).bytes[..4].copy_from_slice(&f32::NAN.to_le_bytes()), &[UP, "NaN or infinite"]);
    fails(|g| g.tensor("output_norm.weight").bytes[..4].copy_from_slice(&f32::INFINITY.to_le_bytes()), &["output_norm.weight", "infinite"]);
    fails(|g| g.tensor(UP).kind = 8, &[UP]);
}

#[test]
fn tokenizers() {
    fails(|g| g.set("tokenizer.ggml.pre", text("deepseek-llm")), &["pre-tokenizer `deepseek-llm`", "llama-bpe"]);
    fails(|g| g.set("tokenizer.ggml.model", text("t5")), &["kind `t5`", "SentencePiece"]);
    fails(|g| g.unset("tokenizer.ggml.model"), &["tokenizer.ggml.model"]);
    for key in ["tokenizer.ggml.tokens", "tokenizer.ggml.merges"] {
        fails(|g| g.unset(key), &[key]);
        fails(|g| g.set(key, text("a")), &[key]);
        fails(|g| g.set(key, array(&[1], |v| u32(*v))), &[key]);
    }
    fails(|g| g.set("tokenizer.ggml.merges", texts(&["a nothing"])), &["merge", "nothing"]);
    fails(|g| g.set("tokenizer.ggml.merges", texts(&["ab"])), &["merge", "ab"]);
    fails(|g| g.set("tokenizer.ggml.tokens", texts(&["a", "b", "a"])), &["tokenizer.ggml.tokens", "twice"]);
    fails(|g| g.set("tokenizer.ggml.model", text("llama")), &["tokenizer.ggml.scores"]);
    fails(
        |g| {
            g.set("tokenizer.ggml.model", text("llama"));
            g.set("tokenizer.ggml.scores", array(&[1.0], |v| f32(*v)));
        },
        &["tokenizer.ggml.scores"],
    );
}
