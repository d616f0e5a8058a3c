//! What a reader refuses, by name.
use crate::fixture::*;
use serde_json::{json, Value};
use wsrun::format::{FormatError, TensorViolation, Violation, WsModel};

/// The error of opening the folder and using everything in it.
fn refusal(folder: &Folder) -> String {
    let all = || -> Result<(), FormatError> {
        let model = WsModel::open(&folder.dir())?;
        for layer in model.layers() {
            model.matrix(&layer.name)?;
        }
        for table in model.inspect().tables {
            model.rows8(&table.name)?;
        }
        model.dense("model.norm.weight").map(drop)
    };
    all().expect_err("the folder is accepted").to_string()
}

fn assert_says(error: &str, parts: &[&str]) {
    for part in parts {
        assert!(error.contains(part), "`{part}` is not in: {error}");
    }
    assert!(error.contains("quantize again") || error.contains("wsrun quantize"), "no fix in: {error}");
}

/// Forges a shard and expects an error that says this.
fn forged(name: &str, edit: impl FnOnce(&mut Forged), says: &[&str]) {
    let folder = Folder::new();
    folder.forge(name, edit);
    assert_says(&refusal(&folder), &[says, &[name]].concat());
}

fn rename(forged: &mut Forged, from: &str, to: &str) {
    let entry = forged.header.remove(from).unwrap();
    forged.header.insert(to.to_owned(), entry);
    forged.metadata("ws.checksums", |sums| {
        let sum = sums.as_object_mut().unwrap().remove(from).unwrap();
        sums[to] = sum;
    });
}

#[test]
fn a_forged_shard_is_accepted_as_long_as_it_is_right() {
    let folder = Folder::new();
    folder.forge(FIRST, |f| f.change(&format!("{MIXED}.codes"), |codes| codes[100] ^= 1));
    WsModel::open(&folder.dir()).unwrap().matrix(MIXED).unwrap();
}

#[test]
fn versions_and_fields_of_the_future_are_named() {
    let version = |value: &'static str| move |f: &mut Forged| f.header["__metadata__"]["ws.version"] = value.into();
    forged(FIRST, version("1"), &["version 1", "reads version 2", "quantize again"]);
    forged(FIRST, version("3"), &["version 3", "update wsrun"]);
    forged(FIRST, version(""), &["version none"]);
    forged(FIRST, |f| f.header["__metadata__"]["ws.rotation"] = "x".into(), &["ws.rotation", "update wsrun"]);
    forged(FIRST, |f| rename(f, &format!("{MIXED}.bias"), &format!("{MIXED}.rotation")), &["rotation", "update wsrun"]);
    forged(FIRST, |f| rename(f, &format!("{MIXED}.bias"), "ws.rotation"), &["ws.rotation", "update wsrun"]);
    forged(LAST, |f| rename(f, "model.norm.weight", "lm_head.q8_zero"), &["lm_head.q8_zero", "update wsrun"]);

    let folder = Folder::new();
    folder.edit_json("config.json", |config| config["quantization_config"]["format_version"] = 3.into());
    assert_says(&refusal(&folder), &["config.json", "version 3", "update wsrun"]);
    folder.edit_json("config.json", |config| config["quantization_config"]["quant_method"] = "gptq".into());
    assert_says(&refusal(&folder), &["not a .ws model"]);
    assert!(!WsModel::is_ws(&folder.dir()));
}

#[test]
fn headers_that_do_not_fit_are_refused() {
    let folder = Folder::new();
    let good = folder.read(FIRST);
    let with_length = |length: u64| [&length.to_le_bytes(), &good[8..]].concat();
    let length = u64::from_le_bytes(good[..8].try_into().unwrap());
    for bytes in [
        with_length(u64::MAX),
        with_length(u64::MAX - 7),
        with_length(good.len() as u64),
        with_length(0),
        with_length(length + 64),
        with_length(length - 64),
        with_length(length + 1),
        good[..good.len() - 1].to_vec(),
        good[..7].to_vec(),
        good[..8].to_vec(),
        [&good[..], b"x"].concat(),
        Vec::new(),
    ] {
        folder.write(FIRST, &bytes);
        assert_says(&refusal(&folder), &[FIRST]);
    }
}

#[test]
fn places_must_cover_the_data() {
    let codes = || format!("{MIXED}.codes");
    let offsets = |tensor: &str, edit: fn(u64, u64) -> (u64, u64)| {
        let tensor = tensor.to_owned();
        move |f: &mut Forged| {
            let place = f.place(&tensor);
            let (start, end) = edit(place.start as u64, place.end as u64);
            f.header[&tensor]["data_offsets"] = json!([start, end]);
        }
    };
    forged(FIRST, offsets(&codes(), |a, b| (a, b + 64)), &["codes"]);
    forged(FIRST, offsets(&codes(), |a, b| (b, a)), &["codes", "stands at"]);
    forged(FIRST, offsets(&codes(), |a, _| (a, u64::MAX)), &["codes", "stands at"]);
    forged(FIRST, offsets(&codes(), |a, b| (a + 64, b)), &["codes", "starts at"]);
    forged(FIRST, offsets(&codes(), |_, _| (0, 64)), &["codes", "64 bytes"]);
    forged(FIRST, |f| f.data.extend([0; 64]), &["tensors end at"]);
    forged(FIRST, |f| drop(f.header.remove(&format!("{MIXED}.codes"))), &["tensor"]);
    let shape = |value: Value| move |f: &mut Forged| f.header[&format!("{MIXED}.codes")]["shape"] = value;
    forged(FIRST, shape(json!([1u64 << 40, 1u64 << 40])), &["codes", "too large"]);
    forged(FIRST, shape(json!([1u64 << 40])), &["codes", "shape asks for"]);
    forged(FIRST, shape(json!([-1])), &["codes", "JSON"]);
    forged(FIRST, shape(json!("all")), &["codes", "JSON"]);
    forged(FIRST, |f| f.header[&format!("{MIXED}.plan")]["dtype"] = "Q4".into(), &["plan", "Q4"]);
    forged(FIRST, |f| f.header[&format!("{MIXED}.plan")]["dtype"] = "I8".into(), &["plan", "is I8, must be U8"]);
    forged(FIRST, |f| f.header[&format!("{MIXED}.plan")]["layout"] = "x".into(), &["plan", "layout"]);
    // Two tensors of one size that stand behind each other's names.
    let swap = |f: &mut Forged| {
        let [a, b] = ["exc_row", "exc_val"].map(|end| f.header[&format!("{MIXED}.{end}")]["data_offsets"].clone());
        f.header[&format!("{MIXED}.exc_row")]["data_offsets"] = b;
        f.header[&format!("{MIXED}.exc_val")]["data_offsets"] = a;
    };
    let folder = Folder::new();
    folder.forge(FIRST, swap);
    let model = WsModel::open(&folder.dir()).unwrap();
    assert!(matches!(model.verify(), Err(FormatError::Tensor { violation: TensorViolation::Checksum, .. })));
}

#[test]
fn tensors_of_a_matrix_must_fit_together() {
    let tensor = |end: &str| format!("{MIXED}.{end}");
    forged(FIRST, |f| f.metadata("ws.shapes", |s| s[MIXED] = json!([48, 70])), &["plan"]);
    forged(FIRST, |f| f.metadata("ws.shapes", |s| s[MIXED] = json!([56, 71])), &["codes"]);
    forged(FIRST, |f| f.metadata("ws.shapes", |s| s[MIXED] = json!([0, 71])), &["codes"]);
    forged(FIRST, |f| f.metadata("ws.shapes", |s| s[MIXED] = json!([usize::MAX, 71])), &["codes"]);
    forged(FIRST, |f| f.metadata("ws.shapes", |s| s[MIXED] = json!([48, usize::MAX])), &["plan"]);
    forged(FIRST, |f| f.metadata("ws.shapes", |s| s[MIXED] = json!([48])), &["ws.shapes"]);
    forged(FIRST, |f| f.metadata("ws.shapes", |s| s["model.layers.3.x"] = json!([1, 1])), &["model.layers.3.x.codes", "missing"]);
    forged(FIRST, |f| f.metadata("ws.shapes", |s| drop(s.as_object_mut().unwrap().remove(MIXED))), &[MIXED, "must be F32"]);
    forged(FIRST, |f| f.metadata("ws.checksums", |s| s["x"] = "0".into()), &["ws.checksums", "x"]);
    forged(FIRST, |f| f.change(&tensor("plan"), |plan| plan[0] = 0x9f), &["plan", "width code 15", "in-feature 0"]);
    forged(FIRST, |f| f.change(&tensor("plan"), |plan| plan[35] |= 0x10), &["plan", "beyond the last in-feature"]);
    forged(FIRST, |f| f.change(&tensor("plan"), |plan| plan[0] &= 0xf0), &["col_scale", "[57]", "[56]"]);
    for end in ["scale", "col_scale", "row_scale", "exact", "exc_val"] {
        forged(FIRST, |f| f.change(&tensor(end), |bytes| bytes.fill(0xff)), &[MIXED, "NaN"]);
    }
    forged(FIRST, |f| f.change(&tensor("exc_row"), |rows| rows[7] = 1), &[MIXED, "exception 3"]);
    forged(FIRST, |f| f.change(&tensor("exc_row"), |rows| rows.fill(0)), &[MIXED, "order"]);
    forged(FIRST, |f| rename(f, &tensor("exc_col"), "exc_col"), &["exc_col", "missing"]);
    forged(FIRST, |f| rename(f, &tensor("exc_row"), "x.exc_row"), &["exc_col", "update wsrun"]);
    forged(LAST, |f| f.change("model.norm.weight", |bytes| bytes[..4].fill(0xff)), &["model.norm.weight", "NaN at 0"]);
    forged(LAST, |f| f.change("lm_head.q8_scale", |bytes| bytes.fill(0xff)), &["lm_head", "NaN"]);
}

#[test]
fn code_tables_are_checked() {
    forged(LAST, |f| f.change("ws.code.3.unit", |unit| unit.fill(0)), &["ws.code.3", "unit"]);
    forged(LAST, |f| f.change("ws.code.3.levels", |levels| levels[2] = 0x80), &["ws.code.3", "-128"]);
    forged(LAST, |f| rename(f, "ws.code.3.c", "model.c"), &["ws.code.3.c", "missing"]);
    forged(LAST, |f| rename(f, "ws.code.3.a", "ws.code.x"), &["ws.code.3.c", "update wsrun"]);
    let take_codes = |f: &mut Forged, from: u8, to: u8| {
        for end in ["a", "c", "levels", "unit"] {
            rename(f, &format!("ws.code.{from}.{end}"), &format!("ws.code.{to}.{end}"));
        }
    };
    forged(LAST, |f| take_codes(f, 5, 9), &["ws.code.9", "update wsrun"]);
    let folder = Folder::new();
    folder.forge(LAST, |f| {
        let removed: Vec<String> = f.header.keys().filter(|k| k.starts_with("ws.code.6.")).cloned().collect();
        let mut data = Vec::new();
        let mut kept: Vec<String> = f.header.keys().filter(|k| *k != "__metadata__" && !removed.contains(k)).cloned().collect();
        kept.sort_by_key(|k| f.place(k).start);
        for name in kept {
            let place = f.place(&name);
            f.header[&name]["data_offsets"] = json!([data.len(), data.len() + place.len()]);
            data.extend_from_slice(&f.data[place]);
        }
        f.data = data;
        removed.iter().for_each(|name| drop(f.header.remove(name)));
        f.metadata("ws.checksums", |sums| sums.as_object_mut().unwrap().retain(|k, _| !removed.contains(k)));
    });
    assert_says(&refusal(&folder), &[FIRST, MIXED, "width 6", "ws.code.6"]);
}

#[test]
fn duplicates_and_broken_checksums_are_refused() {
    let folder = Folder::new();
    let good = folder.read(FIRST);
    // A second key is put where the padding was, so that all lengths stay right.
    let end = 8 + u64::from_le_bytes(good[..8].try_into().unwrap()) as usize;
    let header = std::str::from_utf8(&good[8..end]).unwrap().trim_end();
    for (twice, says) in [("\"ws.version\":\"2\",", "ws.version is there twice"), ("\"format\":\"pt\",", "format is there twice")] {
        let doubled = header.replacen("\"__metadata__\":{", &format!("\"__metadata__\":{{{twice}"), 1);
        let mut json = doubled.into_bytes();
        json.resize((8 + json.len()).next_multiple_of(64) - 8, b' ');
        folder.write(FIRST, &[&(json.len() as u64).to_le_bytes()[..], &json, &good[end..]].concat());
        assert_says(&refusal(&folder), &[FIRST, says]);
    }
    let mut changed = good.clone();
    let digit = 8 + header.find("\"ws.header\":\"").unwrap() + 13;
    changed[digit] = if changed[digit] == b'0' { b'1' } else { b'0' };
    folder.write(FIRST, &changed);
    assert_says(&refusal(&folder), &[FIRST, "checksum"]);
}

#[test]
fn the_index_must_be_the_one_of_the_shards() {
    let index = |edit: &dyn Fn(&mut Value), says: &[&str]| {
        let folder = Folder::new();
        folder.edit_json(INDEX, edit);
        assert_says(&refusal(&folder), says);
    };
    let move_all = |to: &'static str| {
        move |index: &mut Value| {
            index["weight_map"].as_object_mut().unwrap().values_mut().filter(|v| **v == FIRST).for_each(|v| *v = to.into());
            let sum = index["metadata"]["ws.shards"].as_object_mut().unwrap().remove(FIRST).unwrap();
            index["metadata"]["ws.shards"][to] = sum;
        }
    };
    index(&move_all("../model/model-00001-of-00002.safetensors"), &[INDEX, "../model"]);
    index(&move_all("/etc/x.safetensors"), &[INDEX, "/etc/x"]);
    index(&move_all(".."), &[INDEX, ".."]);
    index(&move_all("config.json"), &[INDEX, "config.json"]);
    index(&|i| i["weight_map"]["model.norm.weight"] = FIRST.into(), &[INDEX, "model.norm.weight"]);
    index(&|i| i["weight_map"]["model.other"] = LAST.into(), &[INDEX, "model.other"]);
    index(&|i| i["weight_map"]["model.other"] = "x.safetensors".into(), &[INDEX, "x.safetensors"]);
    index(&|i| drop(i["weight_map"].as_object_mut().unwrap().remove("model.norm.weight")), &[INDEX, "model.norm.weight"]);
    index(&|i| i["metadata"]["total_size"] = 1.into(), &[INDEX, "total_size"]);
    index(&|i| i["metadata"]["ws.future"] = 1.into(), &[INDEX, "ws.future"]);
    index(&|i| drop(i["metadata"].as_object_mut().unwrap().remove("ws.shards")), &[INDEX, "ws.shards"]);
    index(&|i| *i = json!([]), &[INDEX]);

    let folder = Folder::new();
    std::fs::remove_file(folder.dir().join(FIRST)).unwrap();
    let error = WsModel::open(&folder.dir()).err().unwrap();
    assert!(matches!(&error, FormatError::Io { .. }) && error.to_string().contains(FIRST), "{error}");
    std::fs::create_dir(folder.dir().join(FIRST)).unwrap();
    let error = WsModel::open(&folder.dir()).err().unwrap();
    assert!(matches!(error, FormatError::Damaged { violation: Violation::NotAFile, .. }), "{error}");
}

#[test]
fn a_shard_of_another_run_is_refused() {
    let folder = Folder::new();
    let mut shards = shards();
    shards[0].packed[0].parts.scale = 0.5;
    shards[0].write(&folder.dir().join(FIRST)).unwrap();
    assert_says(&refusal(&folder), &[FIRST, "not the file that the index was made for"]);
}

#[test]
fn shards_may_be_links() {
    let folder = Folder::new();
    let blob = folder.root().join("blob");
    std::fs::rename(folder.dir().join(FIRST), &blob).unwrap();
    #[cfg(unix)]
    std::os::unix::fs::symlink(&blob, folder.dir().join(FIRST)).unwrap();
    #[cfg(not(unix))]
    std::fs::rename(&blob, folder.dir().join(FIRST)).unwrap();
    WsModel::open(&folder.dir()).unwrap().verify().unwrap();
}
