//! What a writer leaves behind.
use crate::fixture::*;
use serde_json::json;
use std::path::Path;
use wsrun::format::{finish_folder, FormatError, WsModel};

fn names(dir: &Path) -> Vec<String> {
    let mut names: Vec<String> = std::fs::read_dir(dir).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

#[test]
fn a_folder_holds_its_files_and_nothing_else() {
    let folder = Folder::new();
    assert_eq!(names(&folder.dir()), ["config.json", FIRST, LAST, INDEX, "tokenizer.json", "tokenizer_config.json"]);
    assert_eq!(names(folder.root()), ["model"]);
    assert_eq!(folder.read("tokenizer.json"), side_files()[0].1);
    let config: serde_json::Value = serde_json::from_slice(&folder.read("config.json")).unwrap();
    assert_eq!((&config["hidden_size"], &config["quantization_config"]["seed"]), (&json!(3), &json!(7)));
}

#[cfg(unix)]
#[test]
fn files_have_the_usual_permissions() {
    use std::os::unix::fs::PermissionsExt;
    let folder = Folder::new();
    let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode();
    let usual = folder.root().join("usual");
    std::fs::write(&usual, b"").unwrap();
    for name in names(&folder.dir()) {
        assert_eq!(mode(&folder.dir().join(name)), mode(&usual));
    }
}

#[test]
fn what_a_killed_writer_left_is_replaced() {
    let folder = Folder::partial();
    let partial = folder.root().join("model.partial");
    let good = std::fs::read(partial.join(FIRST)).unwrap();
    let litter = partial.join(format!(".{FIRST}.tmp"));
    std::fs::write(&litter, b"half a shard").unwrap();
    shards()[0].write(&partial.join(FIRST)).unwrap();
    assert!(!litter.exists());
    assert_eq!(std::fs::read(partial.join(FIRST)).unwrap(), good);
}

#[test]
fn nothing_is_overwritten() {
    let folder = Folder::partial();
    std::fs::create_dir(folder.dir()).unwrap();
    std::fs::write(folder.dir().join("diary.txt"), b"mine").unwrap();
    assert!(matches!(folder.finish(), Err(FormatError::Exists { path }) if path == folder.dir()));
    assert_eq!(names(&folder.dir()), ["diary.txt"]);
}

#[test]
fn contents_that_no_reader_accepts_are_not_written() {
    let root = tempfile::tempdir().unwrap();
    let path = root.path().join(FIRST);
    let refused = |edit: &dyn Fn(&mut wsrun::format::Shard), says: &str| {
        let mut shard = shards().into_iter().next().unwrap();
        edit(&mut shard);
        let error = shard.write(&path).unwrap_err().to_string();
        assert!(error.contains(FIRST) && error.contains(says), "{error}");
        assert_eq!(names(root.path()), [""; 0]);
    };
    refused(&|s| s.packed[0].parts.col_scale.truncate(1), "col_scale");
    refused(&|s| s.packed[1].parts.exact.truncate(1), "exact");
    refused(&|s| s.packed[0].parts.widths[0] = 7, PLAIN);
    refused(&|s| s.packed[0].name = MIXED.to_owned(), MIXED);
    refused(&|s| s.dense[0].1 = vec![47], "bias");
    refused(&|s| s.dense[0].0 = "ws.mine".to_owned(), "ws.mine");
}

#[test]
fn a_folder_that_makes_no_model_is_not_finished() {
    let folder = Folder::partial();
    let partial = folder.root().join("model.partial");
    let [first, last] = [FIRST, LAST].map(|name| partial.join(name));
    let kept = std::fs::read(&last).unwrap();
    std::fs::remove_file(&last).unwrap();
    let error = folder.finish().unwrap_err().to_string();
    assert!(error.contains(FIRST) && error.contains("ws.code."), "{error}");
    std::fs::write(&last, &kept[..100]).unwrap();
    assert!(folder.finish().unwrap_err().to_string().contains(LAST));
    std::fs::copy(&first, &last).unwrap();
    assert!(folder.finish().unwrap_err().to_string().contains("two shards"));
    std::fs::write(&last, kept).unwrap();
    let bad = [("../tokenizer.json".to_owned(), vec![])];
    for (config, files) in [(json!({}), &bad[..]), (json!([]), &[])] {
        assert!(finish_folder(&partial, &folder.dir(), &config, &json!({}), files).is_err());
    }
    assert!(!folder.dir().exists());
    folder.finish().unwrap();
    WsModel::open(&folder.dir()).unwrap();
}

#[test]
fn missing_folders_are_named() {
    let path = Path::new("/nowhere/at/all").join(FIRST);
    assert!(shards()[0].write(&path).unwrap_err().to_string().contains("/nowhere/at/all"));
}

/// A file size limit is the nearest thing to a full disk that needs no privileges.
#[cfg(target_os = "linux")]
#[test]
fn a_full_disk_leaves_nothing_half_written() {
    if !is_limited("write::a_full_disk_leaves_nothing_half_written", "trap '' XFSZ && ulimit -f 1") {
        return;
    }
    let root = tempfile::tempdir().unwrap();
    let path = root.path().join(FIRST);
    let error = shards()[0].write(&path).unwrap_err();
    let cause = std::error::Error::source(&error).map(ToString::to_string).unwrap_or_default();
    assert!(error.to_string().contains(FIRST) && cause.contains("too large"), "{error}: {cause}");
    assert_eq!(names(root.path()), [""; 0]);
}
