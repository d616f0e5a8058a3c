//! `wsrun quantize`, `inspect`, `pull` and `models` through the front door.
mod common;
use common::{Edit, Fixture, Run, Tiny};
use serde_json::Value;
use std::collections::BTreeMap;
use std::path::Path;
use std::process::Child;
use std::time::{Duration, Instant};

const QUICK: [&str; 4] = ["--samples", "8", "--context", "64"];

fn files(dir: &Path) -> BTreeMap<String, Vec<u8>> {
    let entries = std::fs::read_dir(dir).unwrap().map(|e| e.unwrap());
    entries.map(|e| (e.file_name().into_string().unwrap(), std::fs::read(e.path()).unwrap())).collect()
}

#[test]
fn a_quantized_folder_says_what_it_holds() {
    let f = Fixture::new();
    let report = f.quantize("4", "packed");
    let json = f.run(&["inspect", "packed", "--verify", "--json"]).json();
    for key in ["stored_bits", "weights", "file_bytes", "layers"] {
        assert_eq!(report[key], json[key], "{key}");
    }
    assert_eq!(json["verified"], true);
    assert_eq!(json["weights"], 2 * (3 * 128 * 128 + 3 * 256 * 128));
    let on_disk: u64 = files(&f.path("packed")).iter().filter(|(n, _)| n.ends_with(".safetensors")).map(|(_, b)| b.len() as u64).sum();
    assert_eq!(json["file_bytes"], on_disk);
    let bits = json["stored_bits"].as_f64().unwrap();
    assert!(bits <= 4.0 && bits > 3.9, "{bits}");
    let layers = json["layers"].as_array().unwrap();
    assert_eq!(layers.len(), 14);
    let bytes: u64 = layers.iter().map(|l| l["bytes"].as_u64().unwrap()).sum();
    assert!((8.0 * bytes as f64 / json["weights"].as_f64().unwrap() - bits).abs() < 1e-9);
    for layer in layers {
        let columns: u64 = layer["histogram"].as_object().unwrap().values().map(|v| v.as_u64().unwrap()).sum();
        assert_eq!(columns, layer["columns"].as_u64().unwrap());
    }
    let run = f.run(&["inspect", "packed"]).ok();
    assert!(run.stdout.contains("model.layers.1.mlp.down_proj") && run.stdout.contains("stored bits"), "{}", run.stdout);
}

#[test]
fn equal_options_give_equal_files_and_the_seed_matters() {
    let f = Fixture::new();
    let run = |out: &str, more: &[&str]| {
        let args = [&["quantize", "model", "--rate", "3.5", "--out", out][..], &QUICK, more].concat();
        f.run(&args).ok();
        files(&f.path(out))
    };
    let one = run("one", &["--threads", "1"]);
    assert!(one == run("two", &["--threads", "2"]), "1 and 2 threads make different files");
    assert!(one != run("other", &["--seed", "5"]), "the seed changes nothing");
}

#[test]
fn trellis_codes_cut_the_error_of_scalar_codes_at_the_same_size() {
    let f = Fixture::new();
    let report = |out: &str, more: &[&str]| {
        let args = [&["quantize", "model", "--rate", "3", "--out", out, "--json"][..], &QUICK, more].concat();
        f.run(&args).ok().json()
    };
    let [trellis, scalar] = [report("trellis", &[]), report("scalar", &["--codes", "scalar"])];
    let error = |report: &Value| report["mean_relative_error"].as_f64().unwrap();
    assert!(error(&trellis) < 0.75 * error(&scalar), "{} against {}", error(&trellis), error(&scalar));
    for report in [&trellis, &scalar] {
        let bits = report["stored_bits"].as_f64().unwrap();
        assert!(bits <= 3.0 && bits > 2.9, "{bits}");
    }
    let fast = report("fast", &["--effort", "fast"]);
    assert!(error(&fast) < 0.8 * error(&scalar), "{} against {}", error(&fast), error(&scalar));
    assert_eq!(fast["quantization"]["codes"]["trellis"], "fast");
}

#[test]
fn calibration_may_come_from_a_file() {
    let f = Fixture::new();
    std::fs::write(f.path("notes.txt"), "in the rain an inn and then the thing ".repeat(40)).unwrap();
    let args = [&["quantize", "model", "--rate", "4", "--out", "packed", "--calibration", "notes.txt"][..], &QUICK].concat();
    f.run(&args).ok();
    std::fs::write(f.path("notes.txt"), "too short").unwrap();
    let args = [&["quantize", "model", "--rate", "4", "--out", "other", "--calibration", "notes.txt"][..], &QUICK].concat();
    f.run(&args).fails(1, &["notes.txt", "tokens"]);
    let args = [&["quantize", "model", "--rate", "4", "--out", "other", "--calibration", "missing.txt"][..], &QUICK].concat();
    f.run(&args).fails(1, &["missing.txt"]);
    assert!(!f.path("other").exists());
}

#[test]
fn wrong_usage_is_code_2() {
    let f = Fixture::new();
    for rate in ["0", "9", "0.99", "8.01", "nan", "-3", "three"] {
        f.run(&["quantize", "model", "--rate", rate, "--out", "packed"]).fails(2, &["--rate", "1 to 8"]);
    }
    f.run(&["quantize", "model", "--out", "packed"]).fails(2, &["--rate"]);
    f.run(&["quantize", "model", "--rate", "3"]).fails(2, &["--out"]);
    f.run(&["quantize", "model", "--rate", "3", "--out", "packed", "--context", "0"]).fails(2, &["--context"]);
    f.run(&["quantize", "model", "--rate", "3", "--out", "packed", "--samples", "0"]).fails(2, &["--samples"]);
    f.run(&["quantize", "model", "--rate", "3", "--out", "/"]).fails(2, &["--out"]);
    f.run(&["quantize", "model-ws3", "--rate", "3", "--out", "packed"]).fails(2, &["model-ws3", "--rate"]);
    for name in ["model-ws9", "model-ws0", "smollm2-135m-ws8.5"] {
        f.run(&["generate", "--model", name, "the"]).fails(2, &[name]);
    }
    assert!(!f.path("packed").exists());
}

#[test]
fn what_cannot_be_quantized_is_refused() {
    let f = Fixture::new();
    std::fs::create_dir(f.path("used")).unwrap();
    f.run(&["quantize", "model", "--rate", "3", "--out", "used"]).fails(1, &["used", "exists"]);
    f.quantize("4", "packed");
    f.run(&["quantize", "packed", "--rate", "3", "--out", "again"]).fails(1, &["packed", "quantized already"]);
    f.run(&["inspect", "model"]).fails(1, &["model", "not a .ws folder"]);
    f.run(&["quantize", "smolm2-135m", "--rate", "3", "--out", "x"]).fails(1, &["smollm2-135m"]);
    f.run(&["quantize", "no/such-repository", "--rate", "3", "--out", "x"]).fails(1, &["no/such-repository"]);
}

#[test]
fn bad_weights_are_named() {
    let bad: [(Edit, &str); 2] = [
        (
            |name, v| {
                if name.ends_with("1.mlp.up_proj") {
                    v[7] = f32::NAN
                }
            },
            "model.layers.1.mlp.up_proj",
        ),
        (
            |name, v| {
                if name.ends_with("0.self_attn.k_proj") {
                    v[3] = f32::INFINITY
                }
            },
            "model.layers.0.self_attn.k_proj",
        ),
    ];
    for (edit, name) in bad {
        let f = Fixture::with(&Tiny { edit, ..Tiny::default() });
        f.run(&[&["quantize", "model", "--rate", "4", "--out", "packed"][..], &QUICK].concat()).fails(1, &[name]);
        assert!(!f.path("packed").exists());
    }
}

#[test]
fn layers_of_zeros_and_dead_features_are_quantized() {
    let f = Fixture::with(&Tiny {
        edit: |name, v| match name {
            "model.layers.0.self_attn.v_proj" | "model.layers.1.mlp.gate_proj" => v.fill(0.0),
            "model.layers.0.input_layernorm" => v[..9].fill(0.0),
            _ => {}
        },
        ..Tiny::default()
    });
    f.quantize("4", "packed");
    f.run(&["inspect", "packed", "--verify"]).ok();
    f.run(&["generate", "--model", "packed", "-n", "4", "the"]).ok();
}

#[test]
fn damaged_files_are_named() {
    let f = Fixture::new();
    let damage = |file: &str, change: &dyn Fn(&mut Vec<u8>), says: &[&str], args: &[&str]| {
        let path = f.path(file);
        let good = std::fs::read(&path).unwrap();
        let mut bytes = good.clone();
        change(&mut bytes);
        std::fs::write(&path, bytes).unwrap();
        f.run(args).fails(1, says);
        std::fs::write(&path, good).unwrap();
    };
    let generate = ["generate", "--model", "model", "x"];
    let weights = "model/model.safetensors";
    damage(weights, &|b| b.truncate(b.len() - 1), &["model.safetensors"], &generate);
    damage(weights, &|b| b.truncate(5), &["model.safetensors"], &generate);
    damage(weights, &|b| b.clear(), &["model.safetensors"], &generate);
    damage(weights, &|b| b[..8].fill(0xff), &["model.safetensors"], &generate);
    damage(weights, &|b| b[20] = 0xff, &["model.safetensors"], &generate);
    damage("model/config.json", &|b| b.truncate(20), &["config.json"], &generate);
    damage("model/tokenizer.json", &|b| b.truncate(99), &["tokenizer.json"], &generate);
    for (from, to, says) in [
        ("LlamaForCausalLM", "GemmaForCausalLM", "GemmaForCausalLM"),
        ("\"intermediate_size\":256", "\"intermediate_size\":255", "mlp"),
        ("\"num_key_value_heads\":2", "\"num_key_value_heads\":3", "num_key_value_heads"),
        ("\"num_hidden_layers\":2", "\"num_hidden_layers\":3", "model.layers.2"),
    ] {
        let edit = |b: &mut Vec<u8>| *b = String::from_utf8_lossy(b).replace(from, to).into_bytes();
        damage("model/config.json", &edit, &[says], &generate);
    }
    std::fs::remove_file(f.path("model/tokenizer.json")).unwrap();
    f.run(&generate).fails(1, &["tokenizer.json"]);
}

#[test]
fn damaged_packed_files_are_named() {
    let f = Fixture::new();
    f.quantize("4", "packed");
    let shards: Vec<String> = files(&f.path("packed")).into_keys().filter(|n| n.ends_with(".safetensors")).collect();
    let shard = &shards[0];
    let path = f.path("packed").join(shard);
    let good = std::fs::read(&path).unwrap();
    for at in [good.len() - 1, good.len() / 2] {
        let mut bytes = good.clone();
        bytes[at] ^= 1;
        std::fs::write(&path, bytes).unwrap();
        f.run(&["inspect", "packed", "--verify"]).fails(1, &[shard]);
    }
    for bytes in [&good[..good.len() - 1], &good[..7], &[]] {
        std::fs::write(&path, bytes).unwrap();
        f.run(&["inspect", "packed"]).fails(1, &[shard]);
        f.run(&["generate", "--model", "packed", "x"]).fails(1, &[shard]);
    }
    std::fs::remove_file(&path).unwrap();
    f.run(&["generate", "--model", "packed", "x"]).fails(1, &[shard]);
}

/// Starts a slow quantization and waits until its first block is on disk.
fn start_and_wait(f: &Fixture, out: &str) -> Child {
    let child = f.command(&slow(out)).spawn().unwrap();
    let partial = f.path(&format!("{out}.partial"));
    let start = Instant::now();
    let shard = |e: std::fs::DirEntry| {
        e.file_name().to_string_lossy().starts_with("model-00001") && e.path().extension().is_some_and(|x| x == "safetensors")
    };
    while !std::fs::read_dir(&partial).is_ok_and(|mut entries| entries.any(|e| e.is_ok_and(shard))) {
        assert!(start.elapsed() < Duration::from_secs(120), "no block after two minutes");
        std::thread::sleep(Duration::from_millis(1));
    }
    child
}

fn slow(out: &str) -> Vec<&str> {
    vec!["quantize", "model", "--rate", "3", "--out", out, "--samples", "8", "--context", "64"]
}

#[test]
fn a_killed_run_goes_on_where_it_stopped() {
    let f = Fixture::with(&Tiny { layers: 8, ..Tiny::default() });
    f.run(&slow("whole")).ok();
    let mut child = start_and_wait(&f, "killed");
    child.kill().unwrap();
    child.wait().unwrap();
    assert!(!f.path("killed").exists(), "the run was over before it was killed");
    f.run(&[&slow("killed")[..], &["--seed", "9"]].concat()).fails(1, &["killed.partial"]);
    f.run(&slow("killed")).ok();
    let (whole, killed) = (files(&f.path("whole")), files(&f.path("killed")));
    assert_eq!(whole.keys().collect::<Vec<_>>(), killed.keys().collect::<Vec<_>>());
    for (name, bytes) in whole {
        assert!(bytes == killed[&name], "a resumed run makes another {name}");
    }
    assert!(!f.path("killed.partial").exists());
}

#[cfg(unix)]
#[test]
fn ctrl_c_is_code_130_and_leaves_no_model() {
    let f = Fixture::with(&Tiny { layers: 8, ..Tiny::default() });
    let child = start_and_wait(&f, "packed");
    std::process::Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap();
    Run::new(child.wait_with_output().unwrap(), &["quantize"]).fails(130, &["interrupted", "packed.partial"]);
    assert!(!f.path("packed").exists());
}

#[test]
fn an_alias_with_a_rate_is_quantized_once_and_kept() {
    let f = Fixture::new();
    let repo = wsrun_repo("smollm2-135m");
    let snapshot = f.path(&format!("hf/hub/models--{}/snapshots/0123", repo.replace('/', "--")));
    Tiny::default().write(&snapshot);
    let refs = snapshot.join("../../refs");
    std::fs::create_dir_all(&refs).unwrap();
    std::fs::write(refs.join("main"), "0123").unwrap();
    let args = ["generate", "--model", "smollm2-135m-ws4", "--json", "-n", "8", "the"];
    let first = f.run(&args).ok();
    assert!(first.stderr.contains("quantizing"), "{}", first.stderr);
    let second = f.run(&args).ok();
    assert!(!second.stderr.contains("quantizing"), "{}", second.stderr);
    let text = |run: &Run| serde_json::from_str::<Value>(&run.stdout).unwrap()["text"].clone();
    assert_eq!(text(&first), text(&second));
    let bits = f.run(&["inspect", "smollm2-135m-ws4", "--json"]).json()["stored_bits"].as_f64().unwrap();
    assert!(bits <= 4.0 && bits > 3.9, "{bits}");
    let pulled = f.run(&["pull", "smollm2-135m"]).ok();
    assert!(Path::new(pulled.stdout.trim()).join("config.json").exists(), "{}", pulled.stdout);
}

fn wsrun_repo(alias: &str) -> String {
    ws_models::registry::aliases().iter().find(|a| a.name == alias).unwrap().repo.clone()
}

#[test]
fn models_lists_the_aliases() {
    let f = Fixture::new();
    let run = f.run(&["models"]).ok();
    for alias in
        ["llama2-7b", "llama3-8b", "llama3.1-8b", "llama3.2-1b", "llama3.2-3b", "qwen2.5-0.5b", "qwen3-8b", "smollm2-135m", "tinyllama"]
    {
        assert!(run.stdout.lines().any(|l| l.split_whitespace().next() == Some(alias)), "{alias}");
    }
    let json = f.run(&["models", "--json"]).json();
    assert_eq!(json["models"].as_array().unwrap().len(), run.stdout.lines().count());
    std::fs::create_dir_all(f.path("home/packed/tinyllama-ws2.5")).unwrap();
    std::fs::create_dir_all(f.path("home/packed/tinyllama-ws3.partial")).unwrap();
    assert_eq!(f.run(&["models", "--json"]).json()["packed"], serde_json::json!(["tinyllama-ws2.5"]));
}
