//! A GGUF file is the model of the folder that it was converted from.
use crate::common::{Fixture, CHAT_TEMPLATE};
use crate::gguf_file::{text, u32, Gguf};
use crate::support::{assert_logits, difference, edit_json, folder, golden, logits, refused, small};
use candle_core::quantized::GgmlDType;
use wsrun::hub::Source;

/// The model of `f` as `model.gguf`.
fn convert(f: &Fixture, kind: GgmlDType, edit: impl FnOnce(&mut Gguf)) -> Source {
    let mut gguf = Gguf::convert(&f.path("model"), kind);
    edit(&mut gguf);
    gguf.write(&f.path("model.gguf"));
    Source::Gguf(f.path("model.gguf"))
}

#[test]
fn every_architecture_gives_the_logits_of_its_folder() {
    for name in ["llama2", "llama-bias", "llama-linear", "qwen2", "qwen2-tied", "qwen3", "qwen3-tied-bias"] {
        let f = golden(name);
        let expected = logits(&folder(f.path("model")));
        assert_logits(&convert(&f, GgmlDType::F32, |_| {}), &expected, name);
    }
}

#[test]
fn halves_are_read_as_they_are() {
    for (name, kind) in [("llama2", GgmlDType::F16), ("qwen3", GgmlDType::BF16)] {
        let f = golden(name);
        let expected = logits(&folder(f.path("model")));
        assert_logits(&convert(&f, kind, |_| {}), &expected, name);
    }
}

#[test]
fn version_2_and_other_alignments_are_read() {
    let f = golden("qwen3");
    let expected = logits(&folder(f.path("model")));
    for alignment in [8, 64, 4096] {
        let source = convert(&f, GgmlDType::F32, |gguf| {
            gguf.alignment = alignment;
            gguf.set("general.alignment", u32(alignment as u32));
        });
        assert_logits(&source, &expected, "another alignment");
    }
    let source = convert(&f, GgmlDType::F32, |_| {});
    let mut bytes = std::fs::read(f.path("model.gguf")).unwrap();
    bytes[4] = 2;
    std::fs::write(f.path("model.gguf"), bytes).unwrap();
    assert_logits(&source, &expected, "version 2");
}

#[test]
fn llama_3_scaling_is_read_from_its_divisors() {
    let f = golden("llama3.1-wide");
    refused(&convert(&f, GgmlDType::F32, |_| {}), &["model.gguf", "rope_freqs.weight", "Llama 3's scaling"]);
    edit_json(&f.path("model/config.json"), |c| c["rope_parameters"]["original_max_position_embeddings"] = 8192.into());
    let expected = logits(&folder(f.path("model")));
    assert_logits(&convert(&f, GgmlDType::F32, |_| {}), &expected, "scaled");
    let plain = logits(&convert(&f, GgmlDType::F32, |gguf| gguf.tensors.retain(|t| t.name != "rope_freqs.weight")));
    assert!(difference(&plain, &expected) > 1e-3, "the divisors change nothing");
}

#[test]
fn the_program_says_the_same_from_either() {
    let f = Fixture::with(&small());
    convert(&f, GgmlDType::F32, |gguf| gguf.set("tokenizer.chat_template", text(CHAT_TEMPLATE)));
    for prompt in [&["the rain"][..], &["--chat", "the rain"]] {
        let generate = |model: &str| f.run(&[&["generate", "--model", model, "-n", "12"][..], prompt].concat()).ok().stdout;
        assert_eq!(generate("model.gguf"), generate("model"));
    }
}

#[test]
fn a_gguf_can_be_quantized() {
    let f = Fixture::with(&small());
    convert(&f, GgmlDType::F32, |_| {});
    let args = |model, out| ["quantize", model, "--rate", "6", "--out", out, "--samples", "8", "--context", "64"];
    f.run(&args("model", "one")).ok();
    f.run(&args("model.gguf", "two")).ok();
    f.run(&["inspect", "two", "--verify"]).ok();
    let generate = |model| f.run(&["generate", "--model", model, "-n", "12", "the rain"]).ok().stdout;
    assert_eq!(generate("one"), generate("two"));
}
