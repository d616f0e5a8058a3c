//! GGUF files that are truncated, altered or made to do harm: one error that names the file, no panic, no great memory.
use crate::common::{Fixture, Run};
use crate::gguf_file::{array, f32 as gguf_f32, text, texts, u32, Field, Gguf, Stored};
use crate::support::{load, refused, small};
use candle_core::quantized::GgmlDType;
use proptest::prelude::*;
use proptest::sample::Index;
use proptest::test_runner::{Config, RngAlgorithm, TestRng, TestRunner};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};
use wsrun::hub::Source;

const ALIGNMENT: &str = "general.alignment";

/// A whole model of eight tokens.
fn tiny() -> Gguf {
    let f = Fixture::with(&small());
    let mut gguf = Gguf::convert(&f.path("model"), GgmlDType::F32);
    for table in ["token_embd.weight", "output.weight"] {
        let table = gguf.tensor(table);
        table.dims[1] = 8;
        table.bytes.truncate(16 * 8 * 4);
    }
    gguf.set("tokenizer.ggml.tokens", texts(&["a", "b", "c", "d", "ab", "Ġ", "<|e|>", "<|f|>"]));
    gguf.set("tokenizer.ggml.token_type", array(&[1, 1, 1, 1, 1, 1, 3, 4i32], |k| Field(5, k.to_le_bytes().to_vec())));
    gguf.set("tokenizer.ggml.merges", texts(&["a b"]));
    gguf.set("tokenizer.ggml.eos_token_id", u32(6));
    gguf
}

struct File {
    dir: tempfile::TempDir,
}

impl File {
    fn new() -> Self {
        Self { dir: tempfile::tempdir().unwrap() }
    }

    fn with(&self, bytes: &[u8]) -> Source {
        let path = self.dir.path().join("model.gguf");
        std::fs::write(&path, bytes).unwrap();
        Source::Gguf(path)
    }
}

/// Refused within a second and 2 GB of address space.
fn fails(bytes: &[u8], says: &[&str]) {
    let file = File::new();
    let source = file.with(bytes);
    let start = Instant::now();
    refused(&source, &[&["model.gguf"], says].concat());
    assert!(start.elapsed() < Duration::from_secs(1), "{says:?} takes {:?}", start.elapsed());
    if cfg!(target_os = "linux") {
        let args = ["generate", "--threads", "1", "--model", "model.gguf", "x"];
        let mut command = Command::new("sh");
        command.args(["-c", "ulimit -v 2000000 && exec \"$0\" \"$@\"", env!("CARGO_BIN_EXE_wsrun")]).args(args);
        command.current_dir(file.dir.path()).stdin(Stdio::null());
        Run::new(command.output().unwrap(), &args).fails(1, &[&["model.gguf"], says].concat());
    }
}

fn edited(edit: impl FnOnce(&mut Gguf)) -> Vec<u8> {
    let mut gguf = tiny();
    edit(&mut gguf);
    gguf.bytes()
}

/// The header of an array: its elements' type, their number.
fn array_of(kind: u32, count: u64, bytes: &[u8]) -> Field {
    Field(9, [&kind.to_le_bytes()[..], &count.to_le_bytes(), bytes].concat())
}

#[test]
fn every_truncation_is_an_error() {
    let bytes = tiny().bytes();
    let file = File::new();
    let source = file.with(&bytes);
    load(&source).unwrap();
    let open = std::fs::OpenOptions::new().write(true).open(file.dir.path().join("model.gguf")).unwrap();
    for length in (0..bytes.len()).rev() {
        open.set_len(length as u64).unwrap();
        let Err(error) = source.open() else { panic!("{length} of {} bytes open", bytes.len()) };
        let error = error.to_string();
        assert!(
            error.contains("model.gguf") && error.contains(if length < 4 { "not a GGUF file" } else { "truncated" }),
            "{length}: {error}"
        );
    }
}

#[test]
fn versions_and_magic() {
    let mut bytes = tiny().bytes();
    for version in [0u32, 4, u32::MAX, 3 << 24] {
        bytes[4..8].copy_from_slice(&version.to_le_bytes());
        fails(&bytes, &[&format!("GGUF version {version}"), "1 to 3"]);
    }
    bytes[..4].copy_from_slice(b"FUGG");
    fails(&bytes, &["is not a GGUF file"]);
}

#[test]
fn counts_beyond_the_file() {
    for (at, what) in [(8, "tensor"), (16, "metadata")] {
        for count in [1000, 1 << 32, 1 << 60, u64::MAX] {
            let mut bytes = tiny().bytes();
            bytes[at..at + 8].copy_from_slice(&count.to_le_bytes());
            fails(&bytes, &["truncated or altered", what]);
        }
    }
}

#[test]
fn an_alignment_of_zero_is_named() {
    let zeros = [Field(0, vec![0]), Field(2, vec![0; 2]), u32(0), Field(5, vec![0; 4]), Field(10, vec![0; 8])];
    for key in [ALIGNMENT, "general.alignment\0", "general.alignment\0\0\0"] {
        for zero in &zeros {
            fails(&edited(|g| g.set(key, zero.clone())), &["`general.alignment` is 0"]);
        }
    }
    fails(&edited(|g| g.set(ALIGNMENT, u32(u32::MAX))), &["truncated or altered", "tensor blk.0"]);
}

#[test]
fn metadata_that_goes_too_far_is_named_by_its_key() {
    const KEY: &str = "evil.key";
    let long_text = |length: u64| Field(8, [&length.to_le_bytes()[..], b"abc"].concat());
    let nested = |depth: usize| {
        let level = [9u32.to_le_bytes().to_vec(), 1u64.to_le_bytes().to_vec()].concat();
        Field(9, [level.repeat(depth), array_of(0, 1, &[0]).1].concat())
    };
    let values = [
        (long_text(1 << 60), "beyond the end"),
        (long_text(u64::MAX), "beyond the end"),
        (array_of(0, 1 << 60, &[]), "beyond the end"),
        (array_of(12, u64::MAX, &[]), "beyond the end"),
        (array_of(8, 1 << 40, &[]), "beyond the end"),
        (array_of(99, 0, &[]), "unknown type"),
        (Field(13, Vec::new()), "unknown type"),
        (Field(u32::MAX, Vec::new()), "unknown type"),
        (Field(7, vec![7]), "neither true nor false"),
        (nested(10), "nested too deeply"),
        (nested(100_000), "nested too deeply"),
    ];
    for (value, says) in values {
        fails(&edited(|g| g.metadata.insert(3, (KEY.into(), value))), &["`evil.key`", says]);
    }
}

#[test]
fn many_long_arrays_are_refused_together() {
    let bytes = edited(|g| {
        for i in 0..4 {
            g.set(&format!("evil.{i}"), array_of(0, 1 << 21, &vec![0; 1 << 21]));
        }
    });
    fails(&bytes, &["`evil.1`", "more values"]);
}

#[test]
fn tensors_that_go_too_far_are_named() {
    let cases: [(&[u64], &str); 7] = [
        (&[0, 16], "dimension of 0"),
        (&[16, 0], "dimension of 0"),
        (&[1 << 40, 1 << 40], "too many elements"),
        (&[u64::MAX, 2], "too many elements"),
        (&[1, 1, 1, 1, 16], "too many dimensions"),
        (&[1 << 60], "does not fit"),
        (&[16, 1 << 30], "does not fit"),
    ];
    for (dims, says) in cases {
        fails(&edited(|g| g.tensor("blk.0.ffn_up.weight").dims = dims.to_vec()), &["tensor blk.0.ffn_up.weight", says]);
    }
    let name = "blk.0.attn_v.weight";
    let good = tiny().bytes();
    let at = good.windows(name.len()).position(|w| w == name.as_bytes()).unwrap() + name.len() + 4 + 2 * 8 + 4;
    for offset in [good.len() as u64, 1 << 60, u64::MAX, u64::MAX - 100] {
        let mut bytes = good.clone();
        bytes[at..at + 8].copy_from_slice(&offset.to_le_bytes());
        fails(&bytes, &["tensor blk.0.attn_v.weight", "does not fit"]);
    }
    let stray = Stored { name: "x".repeat(70_000), dims: vec![4], kind: 0, bytes: vec![0; 16] };
    load(&File::new().with(&edited(|g| g.tensors.push(stray)))).unwrap();
}

#[test]
fn odd_tokens_do_no_harm() {
    let file = File::new();
    for tokens in [["", "b", "c", "d", "ab", "Ġ", "", "<|f|>"], ["a", "b", "c", "d", "ab", "\0", "\u{fffd}", "🦀"]] {
        let source = file.with(&edited(|g| g.set("tokenizer.ggml.tokens", texts(&tokens))));
        if let Err(error) = load(&source) {
            assert!(error.contains("model.gguf"), "{error}");
        }
    }
    let source = file.with(&edited(|g| g.set("tokenizer.chat_template", text(&"{% for x in y %}".repeat(10_000)))));
    assert!(load(&source).is_err());
}

/// Loads, and gives logits; or says which file is wrong.
fn uses(source: &Source) -> Result<(), TestCaseError> {
    match load(source) {
        Err(error) => prop_assert!(error.contains("model.gguf"), "{error}"),
        Ok(model) => {
            let prompt = &[0, 1][..model.context().min(2)];
            let logits = model.session(prompt.len()).and_then(|mut session| session.prefill(prompt));
            prop_assert!(logits.is_ok_and(|l| l.len() == 8));
            let _ = model.encode("ab ba<|e|>");
        }
    }
    Ok(())
}

#[test]
fn any_value_under_any_key_is_an_error_or_harmless() {
    let wide = |value: u64| Field(10, value.to_le_bytes().to_vec());
    let numbers = [0, 1, 2, 3, 7, 255, 4096, u32::MAX].map(u32);
    let reals = [f32::NAN, f32::INFINITY, -1.0, 0.0, 1e-40, 1e30].map(gguf_f32);
    let others = [wide(1 << 40), wide(u64::MAX), Field(5, vec![0xff; 4]), Field(7, vec![1]), text(""), text("none"), texts(&["", "a"])];
    let arrays = [array_of(8, 0, &[]), array_of(4, 0, &[]), array_of(9, 1, &array_of(0, 1, &[0]).1)];
    let values = [&numbers[..], &reals, &others, &arrays].concat();
    let file = File::new();
    let gguf = tiny();
    for (key, _) in &gguf.metadata {
        for value in &values {
            let mut gguf = gguf.clone();
            gguf.set(key, value.clone());
            uses(&file.with(&gguf.bytes())).unwrap_or_else(|e| panic!("{key} = {} {:?}: {e}", value.0, value.1));
        }
    }
}

#[test]
fn altered_bytes_are_errors_or_harmless() {
    let good = tiny().bytes();
    let header = good.windows(12).rposition(|w| w == b"output_norm.").unwrap() + 64;
    let file = File::new();
    let config = Config { cases: 1500, failure_persistence: None, ..Config::default() };
    let mut runner = TestRunner::new_with_rng(config, TestRng::deterministic_rng(RngAlgorithm::ChaCha));
    let value = prop_oneof![Just(0u8), Just(1), Just(0x7f), Just(0x80), Just(0xff), any::<u8>()];
    let strategy = prop::collection::vec((any::<Index>(), any::<bool>(), value), 1..4);
    runner
        .run(&strategy, |changes| {
            let mut bytes = good.clone();
            for (at, anywhere, value) in changes {
                bytes[at.index(if anywhere { good.len() } else { header })] = value;
            }
            uses(&file.with(&bytes))
        })
        .unwrap();
}
