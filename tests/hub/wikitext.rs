//! WikiText-2 from a Hub: the archive is fetched once, its lines are joined as in papers.
use crate::common::{Fixture, Run};
use crate::fetch::online;
use crate::mock_hub::MockHub;
use crate::support::small;
use std::io::{Cursor, Write};
use zip::write::SimpleFileOptions;

const REPO: &str = "datasets/ggml-org/ci";
const ARCHIVE: &str = "wikitext-2-raw-v1.zip";
const TEST: &str = "wikitext-2-raw/wiki.test.raw";
const TRAIN: &str = "wikitext-2-raw/wiki.train.raw";

fn archive(files: &[(&str, &str)]) -> Vec<u8> {
    let mut zip = zip::ZipWriter::new(Cursor::new(Vec::new()));
    for (name, text) in files {
        zip.start_file(*name, SimpleFileOptions::default()).unwrap();
        zip.write_all(text.as_bytes()).unwrap();
    }
    zip.finish().unwrap().into_inner()
}

/// A tiny model, and a Hub with these bytes as the archive.
fn served(bytes: &[u8]) -> (Fixture, MockHub) {
    let f = Fixture::with(&small());
    std::fs::create_dir(f.path("data")).unwrap();
    std::fs::write(f.path("data").join(ARCHIVE), bytes).unwrap();
    let hub = MockHub::with_repo(REPO, &f.path("data"));
    (f, hub)
}

fn run(f: &Fixture, hub: &MockHub, args: &[&str]) -> Run {
    Run::new(online(f, &hub.url(), args).output().unwrap(), args)
}

const MEASURE: [&str; 6] = ["perplexity", "--model", "model", "--context", "32", "--json"];

fn perplexity(run: Run) -> f64 {
    run.json()["perplexity"].as_f64().unwrap()
}

#[test]
fn the_test_split_is_measured_as_its_joined_text() {
    let raw = " \n = A title = \n \n The first line of a text that is long enough to be measured . \n The second line . \n";
    let joined = "\n\n = A title = \n\n\n\n\n The first line of a text that is long enough to be measured . \n\n\n The second line . \n";
    let (f, hub) = served(&archive(&[(TRAIN, "other text"), (TEST, raw)]));
    std::fs::write(f.path("joined.txt"), joined).unwrap();
    std::fs::write(f.path("raw.txt"), raw).unwrap();
    let text = |file: &str| perplexity(f.run(&[&MEASURE[..], &["--text", file]].concat()));
    let dataset = [&MEASURE[..], &["--dataset", "wikitext2"]].concat();
    assert_eq!(perplexity(run(&f, &hub, &dataset)), text("joined.txt"));
    assert_ne!(text("joined.txt"), text("raw.txt"));
    assert_eq!(hub.fetched(), [ARCHIVE]);
    assert_eq!(perplexity(f.run(&dataset)), text("joined.txt"), "offline, from the cache");
}

#[test]
fn the_train_split_calibrates() {
    let (f, hub) = served(&archive(&[(TRAIN, &" A line of text to calibrate with . \n".repeat(40)), (TEST, "x")]));
    let quick = ["--samples", "8", "--context", "64"];
    run(&f, &hub, &[&["quantize", "model", "--rate", "4", "--out", "packed", "--calibration", "wikitext2"][..], &quick].concat()).ok();
    f.run(&["inspect", "packed", "--verify"]).ok();
}

#[test]
fn an_archive_that_is_damaged_or_not_there_is_named() {
    let dataset = [&MEASURE[..], &["--dataset", "wikitext2"]].concat();
    let whole = archive(&[(TEST, &"some text\n".repeat(99))]);
    let (without_test, half) = (archive(&[(TRAIN, "x")]), &whole[..whole.len() / 2]);
    for (bytes, says) in [(&b"no archive"[..], ARCHIVE), (half, ARCHIVE), (&without_test, TEST)] {
        let (f, hub) = served(bytes);
        run(&f, &hub, &dataset).fails(1, &[ARCHIVE, says, "remove it and try again"]);
    }
    let (f, _hub) = served(&whole);
    f.run(&dataset).fails(1, &[REPO, ARCHIVE, "HF_HUB_OFFLINE"]);
}
