//! What a user may call a model.
use crate::common::Fixture;
use crate::support::small;
use ws_models::registry::aliases;
use wsrun::hub::{resolve, HubError, Source};

fn fixture() -> Fixture {
    Fixture::with(&small())
}

#[test]
fn unknown_names_bring_the_nearest() {
    let f = fixture();
    for (name, near) in [
        ("smollm-135m", "`smollm2-135m`"),
        ("SmolLM2-135M", "`smollm2-135m`"),
        ("lama3.1-8b", "`llama3.1-8b`"),
        ("qwen3-0.6", "`qwen3-0.6b`"),
        ("qwen25-0.5b-ws3", "`qwen2.5-0.5b`"),
        ("tinylama", "`tinyllama`"),
    ] {
        f.run(&["generate", "--model", name, "x"]).fails(1, &["unknown model", name.trim_end_matches("-ws3"), "did you mean", near]);
    }
}

#[test]
fn names_like_nothing_say_what_a_model_is() {
    for name in ["", "zzz", "a/b/c", "/", "../up", "owner/", "/name", "owner/.hidden", "owner/na me", "owner/näme"] {
        match resolve(name) {
            Err(HubError::Unknown { nearest, .. }) => assert_eq!(nearest, "", "{name:?}"),
            // Folders that are there.
            Err(HubError::Missing { .. }) => assert_eq!(name, "/"),
            other => panic!("{name:?}: {other:?}"),
        }
    }
    let text = resolve("zzz").unwrap_err().to_string();
    assert!(["folder", ".gguf", "wsrun models", "OWNER/NAME"].iter().all(|part| text.contains(part)), "{text}");
}

#[test]
fn a_rate_stands_at_the_end_of_a_name() {
    let f = fixture();
    let model = f.path("model");
    let name = |rate: &str| format!("{}-ws{rate}", model.display());
    for (rate, expected) in [("1", 1.0), ("2.25", 2.25), ("3.0", 3.0), ("8", 8.0)] {
        let Ok(Source::WsOnLoad { base, rate, dir }) = resolve(&name(rate)) else { panic!("{rate}") };
        assert_eq!((*base, rate), (Source::Folder(model.clone()), expected));
        assert_eq!(dir, f.path(&format!("model-ws{expected}")), "the packed copy stands beside the folder");
    }
    for rate in ["0", "0.99", "8.01", "9", "100"] {
        assert!(matches!(resolve(&name(rate)), Err(HubError::Rate { .. })), "{rate}");
        f.run(&["pull", &format!("model-ws{rate}")]).fails(2, &[rate, "1 to 8"]);
    }
    for rate in ["", "x", "-2", "3x", "1e1", "inf", "NaN", "2.2.5", "+3"] {
        assert!(matches!(resolve(&name(rate)), Err(HubError::Unknown { .. })), "{rate}");
    }
    assert!(matches!(resolve("nothing-like-it-ws3"), Err(HubError::Unknown { .. })));
}

#[test]
fn a_packed_copy_is_found_under_the_name_with_its_rate() {
    let f = fixture();
    f.run(&["generate", "--model", "model-ws4", "-n", "1", "x"]).ok();
    assert_eq!(resolve(&format!("{}-ws4.0", f.path("model").display())).unwrap(), Source::Ws(f.path("model-ws4")));
    let source = resolve(f.path("model-ws4").to_str().unwrap()).unwrap();
    assert_eq!(source, Source::Ws(f.path("model-ws4")));
    let packed = resolve(&format!("{}-ws3", f.path("model").display())).unwrap();
    let error = packed.open().err().unwrap().to_string();
    assert!(error.contains("model-ws3") && error.contains("wsrun quantize"), "{error}");
}

#[test]
fn paths_are_told_apart_by_what_they_hold() {
    let f = fixture();
    let at = |name: &str| resolve(f.path(name).to_str().unwrap());
    assert_eq!(at("model").unwrap(), Source::Folder(f.path("model")));
    std::fs::write(f.path("notes.txt"), "x").unwrap();
    assert!(at("notes.txt").unwrap_err().to_string().contains("notes.txt: is not a model"));
    std::fs::create_dir(f.path("gguf")).unwrap();
    assert!(at("gguf").unwrap_err().to_string().contains("config.json is missing"));
    std::fs::write(f.path("gguf/a.gguf"), "").unwrap();
    assert_eq!(at("gguf").unwrap(), Source::Gguf(f.path("gguf/a.gguf")));
    assert_eq!(at("gguf/a.gguf").unwrap(), Source::Gguf(f.path("gguf/a.gguf")));
    std::fs::write(f.path("gguf/b.GGUF"), "").unwrap();
    assert!(at("gguf").unwrap_err().to_string().contains("several .gguf files"));
}

#[test]
fn a_local_copy_wins_over_the_hub() {
    let f = fixture();
    let copy = f.path("home/models/tinyllama");
    std::fs::create_dir_all(copy.parent().unwrap()).unwrap();
    std::fs::rename(f.path("model"), &copy).unwrap();
    assert_eq!(f.run(&["pull", "tinyllama"]).ok().stdout.trim(), copy.to_str().unwrap());
    std::fs::remove_file(copy.join("config.json")).unwrap();
    f.run(&["pull", "tinyllama"]).fails(1, &["TinyLlama/TinyLlama-1.1B-Chat-v1.0", "HF_HUB_OFFLINE"]);
}

#[test]
fn every_alias_leads_to_its_repository() {
    let f = fixture();
    for alias in aliases() {
        f.run(&["pull", &alias.name]).fails(1, &[&alias.repo, "config.json"]);
        assert!(matches!(resolve(&format!("{}-ws9", alias.name)), Err(HubError::Rate { .. })));
    }
}
