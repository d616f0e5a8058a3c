//! Models from a Hub: what is fetched, what is kept, and what is said when it fails.
use crate::common::{Fixture, Run};
use crate::folder::split;
use crate::mock_hub::{MockHub, Rules, REPO};
use crate::support::{small, SINGLE};
use std::net::TcpListener;
use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

const ALWAYS: [&str; 3] = ["config.json", "tokenizer.json", "tokenizer_config.json"];

/// A tiny model in `model`, and a Hub that serves it.
fn served() -> (Fixture, MockHub) {
    let f = Fixture::with(&small());
    let hub = MockHub::new(&f.path("model"));
    (f, hub)
}

pub fn online(f: &Fixture, endpoint: &str, args: &[&str]) -> Command {
    let mut command = f.command(args);
    command.env_remove("HF_HUB_OFFLINE").env("HF_ENDPOINT", endpoint);
    for proxy in ["http_proxy", "HTTP_PROXY", "https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"] {
        command.env_remove(proxy);
    }
    command
}

fn pull(f: &Fixture, endpoint: &str) -> Run {
    let args = ["pull", REPO];
    let start = Instant::now();
    let run = Run::new(online(f, endpoint, &args).output().unwrap(), &args);
    assert!(start.elapsed() < Duration::from_secs(15), "{:?}", start.elapsed());
    run
}

/// The pulled folder holds these files as the Hub has them.
fn assert_whole(run: Run, hub: &MockHub, files: &[&str]) {
    let dir = PathBuf::from(run.ok().stdout.trim());
    for file in files {
        assert!(std::fs::read(dir.join(file)).unwrap() == hub.file(file), "{file}");
    }
}

#[test]
fn one_file_is_fetched_once() {
    let (f, hub) = served();
    assert_whole(pull(&f, &hub.url()), &hub, &[&ALWAYS[..], &[SINGLE]].concat());
    assert_eq!(hub.fetched(), ["config.json", SINGLE, "tokenizer.json", "tokenizer_config.json"]);
    pull(&f, &hub.url()).ok();
    assert_eq!(hub.requests().len(), 0, "a whole model in the cache asks nothing");
    let generate = |model: &str| f.run(&["generate", "--model", model, "-n", "8", "the"]).ok().stdout;
    assert_eq!(generate(REPO), generate("model"), "offline, from the cache");
}

#[test]
fn only_the_shards_of_the_index_are_fetched() {
    let f = Fixture::with(&small());
    let mut expected = split(&f.path("model"), 3);
    for other in [SINGLE, "pytorch_model.bin", "README.md", "consolidated.safetensors"] {
        std::fs::write(f.path("model").join(other), "not needed").unwrap();
    }
    let hub = MockHub::new(&f.path("model"));
    pull(&f, &hub.url()).ok();
    expected.extend(ALWAYS.map(String::from));
    expected.push("model.safetensors.index.json".into());
    expected.sort();
    assert_eq!(hub.fetched(), expected);
    f.run(&["generate", "--model", REPO, "-n", "1", "the"]).ok();
}

#[test]
fn packed_models_come_from_a_hub_too() {
    let f = Fixture::with(&small());
    f.quantize("4", "packed");
    let hub = MockHub::new(&f.path("packed"));
    pull(&f, &hub.url()).ok();
    let inspect = |model: &str| f.run(&["inspect", model, "--verify", "--json"]).json()["stored_bits"].clone();
    assert_eq!(inspect(REPO), inspect("packed"));
}

#[test]
fn a_token_goes_as_bearer() {
    let (f, hub) = served();
    hub.set(Rules { token: Some("hf_secret"), ..Rules::default() });
    pull(&f, &hub.url()).fails(1, &[REPO, "config.json", "401", "HF_TOKEN"]);
    assert!(hub.requests().iter().all(|r| r.authorization.is_none()));
    let args = ["pull", REPO];
    let run = |token: &str| Run::new(online(&f, &hub.url(), &args).env("HF_TOKEN", token).output().unwrap(), &args);
    run("hf_wrong").fails(1, &["401", "HF_TOKEN"]);
    run("hf_secret").ok();
    assert!(hub.requests().iter().skip(1).all(|r| r.authorization.as_deref() == Some("Bearer hf_secret")));
}

#[test]
fn the_token_that_was_logged_in_with_is_used() {
    let (f, hub) = served();
    hub.set(Rules { token: Some("hf_stored"), ..Rules::default() });
    std::fs::create_dir_all(f.path("hf")).unwrap();
    std::fs::write(f.path("hf/token"), "hf_stored\n").unwrap();
    pull(&f, &hub.url()).ok();
}

#[test]
fn each_refusal_is_clear() {
    let (f, hub) = served();
    for (status, says) in [(401, "HF_TOKEN"), (403, "accept its licence"), (404, "does not have it"), (500, "network"), (503, "network")] {
        hub.set(Rules { status: Some(status), ..Rules::default() });
        pull(&f, &hub.url()).fails(1, &[REPO, "config.json", &status.to_string(), says]);
    }
    hub.set(Rules::default());
    pull(&f, &hub.url()).ok();
}

#[test]
fn what_a_repository_lacks_is_named() {
    for file in ["config.json", "tokenizer.json", SINGLE] {
        let f = Fixture::with(&small());
        std::fs::remove_file(f.path("model").join(file)).unwrap();
        let hub = MockHub::new(&f.path("model"));
        pull(&f, &hub.url()).fails(1, &[REPO, file, "does not have it"]);
    }
}

#[test]
fn endpoints_that_are_not_there_are_clear() {
    let f = Fixture::with(&small());
    let closed = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    for endpoint in [format!("http://{closed}"), "http://no-such-host.invalid".into(), "nonsense".into(), "ftp://127.0.0.1".into()] {
        pull(&f, &endpoint).fails(1, &[REPO, "config.json", "check the network"]);
    }
    f.run(&["pull", REPO]).fails(1, &[REPO, "config.json", "not in the cache", "HF_HUB_OFFLINE"]);
}

#[test]
fn an_endpoint_that_is_no_hub_is_an_error() {
    let f = Fixture::with(&small());
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let endpoint = format!("http://{}", listener.local_addr().unwrap());
    let server = std::thread::spawn(move || {
        use std::io::{Read, Write};
        for answer in ["HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nhi", "220 mail.example ready\r\n", ""] {
            let mut stream = listener.accept().unwrap().0;
            let _ = stream.read(&mut [0; 4096]);
            stream.write_all(answer.as_bytes()).unwrap();
        }
    });
    for _ in 0..3 {
        pull(&f, &endpoint).fails(1, &[REPO, "config.json"]);
    }
    server.join().unwrap();
}

/// After a download that broke off, nothing passes for the model, and the next run goes on.
fn broken_then_whole(f: &Fixture, hub: &MockHub, file: &str) {
    f.run(&["generate", "--model", REPO, "-n", "1", "the"]).fails(1, &[REPO, "not in the cache"]);
    hub.set(Rules::default());
    hub.requests();
    assert_whole(pull(f, &hub.url()), hub, &[&ALWAYS[..], &[file]].concat());
    f.run(&["generate", "--model", REPO, "-n", "1", "the"]).ok();
}

#[test]
fn a_cut_download_is_completed_by_the_next_run() {
    for lengthless in [false, true] {
        let (f, hub) = served();
        hub.set(Rules { cut: Some((SINGLE, 1000)), lengthless, ..Rules::default() });
        pull(&f, &hub.url()).fails(1, &[REPO, SINGLE]);
        let tries = hub.requests().into_iter().filter(|r| r.file == SINGLE && r.range != "bytes=0-0");
        assert_eq!(tries.count(), 2, "a connection that breaks is tried once more");
        broken_then_whole(&f, &hub, SINGLE);
    }
}

#[test]
fn a_repository_that_changes_in_between_is_fetched_whole() {
    let (f, hub) = served();
    hub.set(Rules { cut: Some((SINGLE, 1000)), ..Rules::default() });
    pull(&f, &hub.url()).fails(1, &[SINGLE]);
    hub.set(Rules { changed: true, ..Rules::default() });
    let run = pull(&f, &hub.url()).ok();
    assert!(run.stdout.contains("89abcdef"), "{}", run.stdout);
    assert_whole(run, &hub, &[&ALWAYS[..], &[SINGLE]].concat());
    f.run(&["generate", "--model", REPO, "-n", "1", "the"]).ok();
}

#[test]
fn the_cache_may_be_elsewhere() {
    let (f, hub) = served();
    let args = ["pull", REPO];
    let output = online(&f, &format!("{}/", hub.url()), &args).env("HF_HUB_CACHE", f.path("elsewhere")).output().unwrap();
    let run = Run::new(output, &args).ok();
    assert!(run.stdout.starts_with(f.path("elsewhere").to_str().unwrap()), "{}", run.stdout);
    assert_whole(run, &hub, &[SINGLE]);
}

#[test]
fn two_processes_do_not_fetch_the_same_file() {
    let (f, hub) = served();
    hub.set(Rules { cut: Some((SINGLE, 1000)), hold: true, ..Rules::default() });
    let mut child = online(&f, &hub.url(), &["pull", REPO]).spawn().unwrap();
    wait_for_part(&f);
    pull(&f, &hub.url()).fails(1, &[SINGLE, "another process", "try again"]);
    child.kill().unwrap();
    child.wait().unwrap();
}

#[test]
fn the_beginning_of_a_file_is_never_appended_to_it() {
    let (f, hub) = served();
    hub.set(Rules { cut: Some((SINGLE, 1000)), ..Rules::default() });
    pull(&f, &hub.url()).fails(1, &[SINGLE]);
    hub.set(Rules { refusals: 1, ..Rules::default() });
    pull(&f, &hub.url()).fails(1, &[SINGLE, "503"]);
    broken_then_whole(&f, &hub, SINGLE);
}

/// Waits for the first 1000 bytes of a file that is not whole yet.
fn wait_for_part(f: &Fixture) {
    let blobs = f.path("hf/hub/models--owner--tiny/blobs");
    let is_there = |entry: std::io::Result<std::fs::DirEntry>| {
        let path = entry.unwrap().path();
        path.extension().is_some_and(|e| e == "part") && path.metadata().is_ok_and(|m| m.len() == 1000)
    };
    let start = Instant::now();
    while !std::fs::read_dir(&blobs).is_ok_and(|mut entries| entries.any(is_there)) {
        assert!(start.elapsed() < Duration::from_secs(20), "no download after 20 seconds");
        std::thread::sleep(Duration::from_millis(1));
    }
}

#[test]
fn a_killed_download_goes_on_where_it_stopped() {
    let (f, hub) = served();
    hub.set(Rules { cut: Some((SINGLE, 1000)), hold: true, ..Rules::default() });
    let mut child = online(&f, &hub.url(), &["pull", REPO]).spawn().unwrap();
    wait_for_part(&f);
    child.kill().unwrap();
    child.wait().unwrap();
    broken_then_whole(&f, &hub, SINGLE);
    assert!(hub.requests().iter().any(|r| r.file == SINGLE && r.range == "bytes=1000-"), "it started again from nothing");
}
