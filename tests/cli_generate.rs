//! `wsrun generate` through the front door.
mod common;
use common::{Fixture, Run, Tiny};
use serde_json::Value;

fn generate(fixture: &Fixture, more: &[&str]) -> Value {
    let args: Vec<&str> = ["generate", "--model", "model", "--json", "--max-tokens", "40"].iter().chain(more).copied().collect();
    fixture.run(&args).json()
}

fn text(value: &Value) -> &str {
    value["text"].as_str().unwrap()
}

#[test]
fn text_streams_to_stdout_and_figures_to_stderr() {
    let f = Fixture::new();
    let json = generate(&f, &["the thing"]);
    assert_eq!(json["tokens"], 40);
    assert_eq!(json["token_ids"].as_array().unwrap().len(), 40);
    // the, space, th, in, g
    assert_eq!(json["prompt_tokens"], 5);
    assert_eq!(json["finish"], "max_tokens");
    assert!(json["decode_tokens_per_s"].as_f64().unwrap() > 0.0);
    assert!(text(&json).len() >= 40, "{json}");
    let run = f.run(&["generate", "--model", "model", "--max-tokens", "40", "the thing"]).ok();
    assert_eq!(run.stdout, format!("{}\n", text(&json)));
    assert!(run.stderr.contains("prefill 5 tokens") && run.stderr.contains("decode 40 tokens"), "{}", run.stderr);
}

#[test]
fn the_prompt_may_come_from_stdin() {
    let f = Fixture::new();
    let expected = generate(&f, &["a river"]);
    for args in [&["generate", "--model", "model", "--json", "-n", "40"][..], &["generate", "--model", "model", "--json", "-n", "40", "-"]]
    {
        let json = f.run_with_stdin(args, b"a river\n").json();
        assert_eq!(json["text"], expected["text"]);
        assert_eq!(json["prompt_tokens"], expected["prompt_tokens"]);
    }
    f.run_with_stdin(&["generate", "--model", "model"], b"\xff\xfe").fails(1, &["stdin", "UTF-8"]);
}

#[test]
fn greedy_text_does_not_depend_on_the_threads() {
    let f = Fixture::new();
    f.quantize("4", "packed");
    for model in ["model", "packed"] {
        let run = |threads| f.run(&["generate", "--model", model, "--json", "-n", "60", "--threads", threads, "In the an thin"]).json();
        let (one, two) = (run("1"), run("2"));
        assert_eq!((&one["threads"], &two["threads"]), (&1.into(), &2.into()));
        assert_eq!(one["token_ids"], two["token_ids"]);
    }
}

#[test]
fn sampling_repeats_with_the_seed() {
    let f = Fixture::new();
    let sample = |seed| generate(&f, &["--temperature", "1", "--seed", seed, "once"]);
    let one = sample("1");
    assert_eq!(text(&one), text(&sample("1")));
    assert_ne!(text(&one), text(&sample("2")));
    let greedy = generate(&f, &["once"]);
    for filter in [["--top-k", "1"], ["--top-p", "1e-6"], ["--min-p", "1"]] {
        let json = generate(&f, &["--temperature", "1", "--seed", "3", filter[0], filter[1], "once"]);
        assert_eq!(json["token_ids"], greedy["token_ids"], "{filter:?}");
    }
    let penalized = generate(&f, &["--repetition-penalty", "1e6", "once"]);
    let mut ids: Vec<u64> = penalized["token_ids"].as_array().unwrap().iter().map(|v| v.as_u64().unwrap()).collect();
    ids.sort_unstable();
    ids.dedup();
    assert_eq!(ids.len(), 40, "no token comes twice");
}

#[test]
fn nothing_of_a_stop_string_is_printed() {
    let f = Fixture::new();
    let whole = generate(&f, &["stop here"]);
    let whole = text(&whole);
    let stop = &whole[9..13];
    let expected = &whole[..whole.find(stop).unwrap()];
    let json = generate(&f, &["--stop", "never in the text", "--stop", stop, "stop here"]);
    assert_eq!((text(&json), &json["finish"]), (expected, &"stop".into()));
    let run = f.run(&["generate", "--model", "model", "--stop", stop, "-n", "40", "stop here"]).ok();
    assert_eq!(run.stdout, format!("{expected}\n"));
    // A beginning of a stop string at the end of the text is text.
    let held = format!("{}~~~", &whole[whole.len() - 2..]);
    assert_eq!(text(&generate(&f, &["--stop", &held, "stop here"])), whole);
}

#[test]
fn the_end_of_text_token_ends_the_text() {
    let f = Fixture::new();
    let whole = generate(&f, &["the end"]);
    let ids = whole["token_ids"].as_array().unwrap();
    let eos = &ids[5];
    let first = ids.iter().position(|id| id == eos).unwrap();
    let path = f.path("model/config.json");
    let mut config: Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    config["eos_token_id"] = serde_json::json!([257, eos]);
    std::fs::write(&path, config.to_string()).unwrap();
    let json = generate(&f, &["the end"]);
    assert_eq!((&json["finish"], &json["tokens"]), (&"eos".into(), &(first + 1).into()));
    assert!(text(&whole).starts_with(text(&json)));
}

#[test]
fn chat_is_the_template_around_the_prompt() {
    let f = Fixture::new();
    let chat = generate(&f, &["--chat", "--system", "Be brief.", "Hi"]);
    let by_hand = generate(&f, &["<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"]);
    assert_eq!((&chat["prompt_tokens"], &chat["token_ids"]), (&by_hand["prompt_tokens"], &by_hand["token_ids"]));
    std::fs::write(f.path("model/tokenizer_config.json"), "{}").unwrap();
    f.run(&["generate", "--model", "model", "--chat", "Hi"]).fails(1, &["no chat template"]);
    f.run(&["generate", "--model", "model", "--system", "x", "Hi"]).fails(2, &["--chat"]);
}

#[test]
fn prompts_that_do_not_fit_are_refused() {
    let f = Fixture::new();
    f.run(&["generate", "--model", "model", ""]).fails(1, &["prompt is empty"]);
    f.run(&["generate", "--model", "model", "--chat", ""]).fails(1, &["prompt is empty"]);
    f.run_with_stdin(&["generate", "--model", "model"], b"\n").fails(1, &["prompt is empty"]);
    f.run(&["generate", "--model", "model", &"x".repeat(257)]).fails(1, &["257 tokens", "256"]);
    f.run(&["generate", "--model", "model", "--context", "5", "123456"]).fails(1, &["6 tokens", "context 5"]);
    f.run(&["generate", "--model", "model", "--context", "257", "x"]).fails(1, &["257", "256"]);
    let json = f.run(&["generate", "--model", "model", "--context", "10", "--json", "12345678"]).json();
    // Two tokens fill the context; one more is predicted from the full context.
    assert_eq!((&json["finish"], &json["tokens"]), (&"context".into(), &3.into()));
}

#[test]
fn long_prompts_are_read_in_chunks_with_the_same_result() {
    let f = Fixture::with(&Tiny { context: 1024, ..Tiny::default() });
    let prompt = "the rain in an inn ".repeat(40);
    let json = generate(&f, &[&prompt]);
    assert!(json["prompt_tokens"].as_u64().unwrap() > 512);
    let model = wsrun::runtime::TextModel::load(wsrun::hub::Source::Folder(f.path("model")).open().unwrap()).unwrap();
    let mut session = model.session(1024).unwrap();
    let mut logits = Vec::new();
    for id in model.encode(&prompt).unwrap() {
        logits = session.decode(id).unwrap();
    }
    let (first, _) = wsrun::sampling::greedy(&logits).unwrap();
    assert_eq!(json["token_ids"][0], first);
}

#[test]
fn wrong_usage_is_code_2() {
    let f = Fixture::new();
    for (args, says) in [
        (&["--temperature", "-1"][..], "temperature"),
        (&["--temperature", "nan"], "temperature"),
        (&["--top-k", "0"], "top-k"),
        (&["--top-p", "0"], "top-p"),
        (&["--top-p", "1.5"], "top-p"),
        (&["--min-p", "-0.1"], "min-p"),
        (&["--repetition-penalty", "0"], "repetition penalty"),
        (&["--max-tokens", "0"], "max-tokens"),
        (&["--context", "0"], "context"),
        (&["--stop", ""], "stop"),
        (&["--threads", "0"], "threads"),
        (&["--no-such-option"], "no-such-option"),
    ] {
        let args: Vec<&str> = ["generate", "--model", "model", "x"].iter().chain(args).copied().collect();
        f.run(&args).fails(2, &[says]);
    }
    f.run(&["generate", "x"]).fails(2, &["--model"]);
    f.run(&["no-such-command"]).fails(2, &["no-such-command"]);
}

#[test]
fn a_closed_or_full_stdout_is_no_panic() {
    let f = Fixture::new();
    let args = ["generate", "--model", "model", "-n", "200", "x"];
    let mut child = f.command(&args).spawn().unwrap();
    drop(child.stdout.take());
    Run::new(child.wait_with_output().unwrap(), &args).ok();
    if let Ok(full) = std::fs::OpenOptions::new().write(true).open("/dev/full") {
        Run::new(f.command(&args).stdout(full).output().unwrap(), &args).fails(1, &["cannot write to stdout"]);
    }
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
    f.run(&["generate", "--model", "model", "x"]).fails(1, &["logit"]);
}
