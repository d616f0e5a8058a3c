//! `wsrun perplexity` and `wsrun bench` through the front door.
mod common;
use common::{Fixture, Tiny};
use serde_json::Value;
use wsrun::hub::Source;
use wsrun::runtime::{KvType, TextModel};

const TEXT: &str = "The rain in the north began in the autumn – ¿and then? – and in the end the thin inn stood in the rain.\n";

fn write_text(f: &Fixture, repeat: usize) -> String {
    let text: String = (0..repeat).map(|i| format!("{i} {TEXT}")).collect();
    std::fs::write(f.path("text.txt"), &text).unwrap();
    text
}

fn perplexity(f: &Fixture, more: &[&str]) -> Value {
    let args: Vec<&str> = ["perplexity", "--model", "model", "--text", "text.txt", "--json"].iter().chain(more).copied().collect();
    f.run(&args).json()
}

/// Mean negative log-likelihood, token by token through a KV cache that rounds nothing.
fn mean_nll(f: &Fixture, text: &str, context: usize, stride: usize) -> (f64, usize) {
    let mut model = TextModel::load(Source::Folder(f.path("model")).open().unwrap()).unwrap();
    model.set_kv_type(KvType::F32);
    let ids = model.encode(text).unwrap();
    let (mut sum, mut count) = (0.0, 0);
    let mut start = 0;
    while start + context <= ids.len() {
        let mut session = model.session(context).unwrap();
        for p in 0..context - 1 {
            let logits = session.decode(ids[start + p]).unwrap();
            // Later windows score their last `stride` tokens.
            if start == 0 || p + 1 >= context - stride {
                let total: f64 = logits.iter().map(|l| f64::from(*l).exp()).sum();
                sum += total.ln() - f64::from(logits[ids[start + p + 1] as usize]);
                count += 1;
            }
        }
        start += stride;
    }
    (sum / count as f64, count)
}

fn assert_near(value: &Value, expected: f64) {
    let got = value.as_f64().unwrap();
    assert!((got - expected).abs() < 1e-4 * expected, "{got} is not {expected}");
}

#[test]
fn perplexity_is_what_the_model_says_token_by_token() {
    let f = Fixture::new();
    let text = write_text(&f, 2);
    for stride in [16, 5, 1] {
        let json = perplexity(&f, &["--context", "16", "--stride", &stride.to_string()]);
        let (nll, tokens) = mean_nll(&f, &text, 16, stride);
        assert_near(&json["perplexity"], nll.exp());
        assert_eq!(json["tokens"], tokens);
        assert_eq!((&json["context"], &json["stride"]), (&16.into(), &stride.into()));
    }
}

#[test]
fn windows_tokens_and_bytes_are_counted() {
    let f = Fixture::new();
    let text = write_text(&f, 40);
    let json = perplexity(&f, &["--context", "64", "--windows", "3"]);
    assert_eq!((&json["windows"], &json["tokens"]), (&3.into(), &(3 * 63).into()));
    assert!(json["standard_error"].as_f64().unwrap() > 0.0);
    assert_near(&json["perplexity"], json["mean_nll"].as_f64().unwrap().exp());
    // Windows that overlap by all but one token score every token but the first one, and so cover every byte but the first.
    let all = perplexity(&f, &["--context", "250", "--stride", "249"]);
    let tokens = 1 + 249 * all["windows"].as_u64().unwrap();
    assert_eq!(all["tokens"], tokens - 1);
    let model = TextModel::load(Source::Folder(f.path("model")).open().unwrap()).unwrap();
    let ids = model.encode(&text).unwrap();
    let covered = model.tokenizer().decode(&ids[1..tokens as usize], false).unwrap().len();
    assert_eq!(all["bytes"], covered);
    let bits = all["mean_nll"].as_f64().unwrap() * (tokens - 1) as f64 / std::f64::consts::LN_2;
    assert_near(&all["bits_per_byte"], bits / covered as f64);
    let one = perplexity(&f, &["--context", "64", "--windows", "1"]);
    assert_eq!(one["standard_error"], Value::Null);
}

#[test]
fn packed_and_expanded_weights_agree() {
    let f = Fixture::new();
    write_text(&f, 10);
    f.quantize("4", "packed");
    let run = |dense: &[&str]| {
        let args: Vec<&str> =
            ["perplexity", "--model", "packed", "--text", "text.txt", "--context", "128", "--json"].iter().chain(dense).copied().collect();
        f.run(&args).json()["mean_nll"].as_f64().unwrap()
    };
    // Of a model with random weights, whose logits are far apart: 14 nats.
    let (packed, dense) = (run(&[]), run(&["--dense"]));
    assert!((packed / dense - 1.0).abs() < 1e-3, "{packed} {dense}");
}

#[test]
fn texts_that_cannot_be_measured_are_refused() {
    let f = Fixture::new();
    std::fs::write(f.path("text.txt"), "short").unwrap();
    let args = ["perplexity", "--model", "model", "--text", "text.txt"];
    f.run(&[&args[..], &["--context", "64"]].concat()).fails(1, &["5 tokens", "64"]);
    f.run(&[&args[..], &["--context", "1000"]].concat()).fails(1, &["1000", "256"]);
    f.run(&[&args[..], &["--context", "0"]].concat()).fails(2, &["--context"]);
    f.run(&[&args[..], &["--context", "64", "--stride", "65"]].concat()).fails(2, &["--stride"]);
    f.run(&[&args[..], &["--windows", "0"]].concat()).fails(2, &["--windows"]);
    f.run(&["perplexity", "--model", "model", "--text", "missing.txt"]).fails(1, &["missing.txt"]);
    f.run(&["perplexity", "--model", "model"]).fails(2, &["--dataset"]);
    std::fs::write(f.path("text.txt"), b"\xff\xff").unwrap();
    f.run(&args).fails(1, &["text.txt", "UTF-8"]);
    std::fs::write(f.path("text.txt"), "").unwrap();
    f.run(&args).fails(1, &["0 tokens"]);
}

#[test]
fn broken_logits_are_an_error() {
    let f = Fixture::with(&Tiny {
        edit: |name, values| {
            if name == "lm_head" {
                values.iter_mut().for_each(|v| *v *= 1e38);
            }
        },
        ..Tiny::default()
    });
    write_text(&f, 10);
    f.run(&["perplexity", "--model", "model", "--text", "text.txt", "--context", "64"]).fails(1, &["not finite"]);
}

#[test]
fn bench_reports_medians() {
    let f = Fixture::new();
    f.quantize("3", "packed");
    for model in ["model", "packed"] {
        let args = ["bench", "--model", model, "--prompt-tokens", "20", "--tokens", "5", "--repeat", "3", "--threads", "1"];
        let json = f.run(&[&args[..], &["--json"]].concat()).json();
        assert_eq!(json["threads"], 1);
        for what in ["prefill", "decode"] {
            let spread = &json[format!("{what}_spread")];
            let median = json[format!("{what}_tokens_per_s")].as_f64().unwrap();
            assert!(
                0.0 < spread["min"].as_f64().unwrap()
                    && spread["min"].as_f64().unwrap() <= median
                    && median <= spread["max"].as_f64().unwrap()
            );
        }
        // 2 blocks and the head, in f32 or at 3 bits and 8 bits.
        let (weights, head) = (2 * (3 * 128 * 128 + 3 * 256 * 128), 262 * 128);
        let bytes = json["weight_bytes_per_token"].as_f64().unwrap();
        let expected = if model == "model" { 4 * (weights + head) } else { weights * 3 / 8 + head } as f64;
        assert!((bytes / expected - 1.0).abs() < 0.05, "{bytes} for {expected}");
        assert!((0.0..1.0).contains(&json["outside_products"].as_f64().unwrap()));
        let run = f.run(&args).ok();
        assert!(
            run.stdout.contains("outside products") && run.stdout.contains("prefill") && run.stdout.contains("1 threads"),
            "{}",
            run.stdout
        );
    }
    f.run(&["bench", "--model", "model", "--prompt-tokens", "250", "--tokens", "20"]).fails(1, &["tokens"]);
    f.run(&["bench", "--model", "model", "--repeat", "0"]).fails(2, &["--repeat"]);
}

#[test]
fn random_weights_of_a_shape_are_timed_without_a_download() {
    let f = Fixture::new();
    let args =
        ["bench", "--random-weights", "llama3.2-1b", "--layers", "1", "--prompt-tokens", "8", "--tokens", "2", "--repeat", "1", "--json"];
    let bytes = |rate: &str| {
        let json = f.run(&[&args[..], &["--rate", rate]].concat()).json();
        assert!(json["decode_tokens_per_s"].as_f64().unwrap() > 0.0 && json["prefill_tokens_per_s"].as_f64().unwrap() > 0.0);
        json["weight_bytes_per_token"].as_f64().unwrap()
    };
    // One block of 60.8 million weights; the head does not change.
    let bits = (bytes("4") - bytes("2")) * 8.0 / 60_817_408.0;
    assert!((bits - 2.0).abs() < 0.1, "{bits}");
    f.run(&["bench", "--random-weights", "gpt2"]).fails(2, &["llama3.2-1b", "qwen3-4b"]);
    f.run(&["bench", "--random-weights", "llama3-8b", "--rate", "7"]).fails(2, &["1 to 6"]);
    f.run(&["bench", "--model", "model", "--layers", "1"]).fails(2, &["--layers"]);
}

#[test]
fn the_doctor_names_the_machine_and_foretells_speed() {
    let f = Fixture::new();
    let json = f.run(&["doctor", "--model", "model", "--rates", "2,4", "--json"]).json();
    let paths = ["portable", "avx2", "avx2-gfni", "avx512", "avx512-amx"];
    assert!(paths.contains(&json["path"].as_str().unwrap()), "{json}");
    assert!(json["bandwidth_gb_per_s"]["median"].as_f64().unwrap() > 0.1);
    let foretold: Vec<f64> = json["models"].as_array().unwrap().iter().map(|m| m["bytes_per_token"].as_f64().unwrap()).collect();
    // Two blocks of 147456 weights, and a head of 262 x 128 bytes.
    assert_eq!(foretold, [2.0, 4.0].map(|bits| 2.0 * 147_456.0 * bits / 8.0 + 262.0 * 128.0));
    let mut command = f.command(&["doctor"]);
    let output = command.env("WSRUN_ISA", "sse9").output().unwrap();
    common::Run::new(output, &["doctor"]).fails(1, &["sse9", "avx512"]);
    f.run(&["doctor", "--model", "zzzz"]).fails(1, &["unknown model"]);
}
