//! What is written comes back.
use crate::fixture::*;
use std::sync::Arc;
use ws_kernels::packed::{PackedMatrix, Parts};
use ws_kernels::rows8::Rows8;
use wsrun::format::{shard_is_complete, stored_bytes, WsModel};

fn dense(matrix: &PackedMatrix) -> Vec<f32> {
    let mut values = vec![0.0; matrix.out_features() * matrix.in_features()];
    matrix.decode(0..matrix.out_features(), &mut values);
    values
}

/// The folder's model, mapped and read into memory.
fn both_ways(folder: &Folder) -> [WsModel; 2] {
    let [mapped, mut read] = [(); 2].map(|()| WsModel::open(&folder.dir()).unwrap());
    let mut reports = Vec::new();
    read.read_into_memory(&mut |done| reports.push(done)).unwrap();
    assert!(reports.is_sorted(), "{reports:?}");
    assert_eq!(reports.last(), Some(&mapped.file_bytes()));
    assert_eq!(read.file_bytes(), mapped.file_bytes());
    [mapped, read]
}

#[test]
fn matrices_come_back() {
    both_ways(&Folder::new()).iter().for_each(assert_matrices);
}

fn assert_matrices(model: &WsModel) {
    model.verify().unwrap();
    for packed in matrices() {
        let read = model.matrix(&packed.name).unwrap();
        let Parts { out_features, widths, scale, col_scale, row_scale, exact, exceptions, .. } = read.parts();
        let written = &packed.parts;
        assert_eq!((*out_features, widths, *scale), (written.out_features, &written.widths, written.scale));
        assert_eq!((col_scale, row_scale, exact), (&written.col_scale, &written.row_scale, &written.exact));
        assert_eq!(exceptions, &written.exceptions);
        assert_eq!(dense(&read), dense(&PackedMatrix::new(packed.parts, Arc::new(codes())).unwrap()));
    }
    assert_eq!(**model.codes(), codes());
}

#[test]
fn row_scales_of_1_are_left_out() {
    let folder = Folder::new();
    let stored =
        |name: &str| [FIRST, LAST].iter().any(|file| Forged::parse(&folder.read(file)).header.contains_key(&format!("{name}.row_scale")));
    assert!(stored(MIXED) && !stored(PLAIN));
}

#[test]
fn tables_and_dense_tensors_come_back() {
    both_ways(&Folder::new()).iter().for_each(assert_tables_and_dense_tensors);
}

fn assert_tables_and_dense_tensors(model: &WsModel) {
    for table in &shards()[1].tables {
        let bytes: Vec<u8> = table.values.iter().map(|&v| v as u8).collect();
        let written =
            Rows8::new(table.rows, table.columns, Arc::new(bytes), 0..table.values.len(), table.scales.clone(), table.unit).unwrap();
        let read = model.rows8(&table.name).unwrap();
        assert_eq!((read.rows(), read.columns()), (table.rows, table.columns));
        for r in 0..table.rows {
            let (mut a, mut b) = (vec![0.0; table.columns], vec![0.0; table.columns]);
            read.row(r, &mut a);
            written.row(r, &mut b);
            assert_eq!(a, b);
        }
    }
    assert_eq!(model.dense("model.norm.weight").unwrap(), (vec![3, 2], vec![1.0, -2.0, 3.5, 4.0, 5.0, 6.0]));
    assert_eq!(model.dense(&format!("{MIXED}.bias")).unwrap(), (vec![48], vec![0.25; 48]));
    assert!(model.has_matrix(MIXED) && !model.has_matrix("lm_head") && !model.has_matrix("model.norm.weight"));
    assert!(model.has_rows8("lm_head") && !model.has_rows8(MIXED));
    for error in [model.matrix("lm_head").err(), model.rows8(MIXED).err(), model.dense(MIXED).err(), model.dense("x").err()] {
        assert!(error.unwrap().to_string().contains("is missing"));
    }
}

#[test]
fn stored_bits_are_bytes_in_the_file() {
    let folder = Folder::new();
    let model = WsModel::open(&folder.dir()).unwrap();
    let files = [FIRST, LAST].map(|name| Forged::parse(&folder.read(name)));
    let inspection = model.inspect();
    let (mut bytes, mut weights) = (0, 0);
    for packed in matrices() {
        let prefix = format!("{}.", packed.name);
        let layer = inspection.layers.iter().find(|l| l.name == packed.name).unwrap();
        let tensors = files
            .iter()
            .flat_map(|f| f.header.keys().filter(|k| k.starts_with(&prefix) && !k.ends_with(".bias")).map(|k| f.place(k).len()));
        let in_file: usize = tensors.sum();
        assert_eq!((layer.bytes, layer.bytes), (in_file as u64, stored_bytes(&packed.parts)));
        assert_eq!(layer.exceptions, packed.parts.exceptions.len());
        assert_eq!(layer.histogram.values().sum::<usize>(), layer.columns);
        assert_eq!(layer.stored_bits, 8.0 * layer.bytes as f64 / (layer.rows * layer.columns) as f64);
        bytes += layer.bytes;
        weights += (layer.rows * layer.columns) as u64;
    }
    assert_eq!(inspection.weights, weights);
    assert_eq!(inspection.stored_bits, 8.0 * bytes as f64 / weights as f64);
    assert_eq!(inspection.file_bytes, [FIRST, LAST].iter().map(|name| folder.read(name).len() as u64).sum::<u64>());
    let names: Vec<&str> = inspection.layers.iter().map(|l| l.name.as_str()).collect();
    assert_eq!(names, [MIXED, BARE, PLAIN, WIDE], "not in model order");

    let json = serde_json::to_value(&inspection).unwrap();
    let expected = serde_json::json!({"quant_method": "watersic", "format_version": 2, "rate": 3.0, "weights": weights});
    for (key, value) in expected.as_object().unwrap() {
        assert_eq!(json["quantization"][key], *value);
    }
    assert_eq!(json["quantization"]["stored_bits"], json["stored_bits"]);
    assert_eq!(json["layers"][0]["histogram"]["16"], 7);
    assert_eq!(json["tables"][1]["bytes"], 4 * 32 + 2 * 4 + 4);
    assert_eq!(json["codes"][1]["scalar"], false);
    assert_eq!(json["codes"][2]["scalar"], true);
}

#[test]
fn the_same_contents_make_the_same_bytes() {
    let (a, b) = (Folder::new(), Folder::new());
    for name in [FIRST, LAST, INDEX, "config.json"] {
        assert!(a.read(name) == b.read(name), "{name}");
    }
}

#[test]
fn codes_are_aligned_and_not_copied() {
    let folder = Folder::new();
    let models = both_ways(&folder);
    for (model, name) in models.iter().flat_map(|model| [MIXED, PLAIN].map(|name| (model, name))) {
        let matrix = model.matrix(name).unwrap();
        let parts = matrix.parts();
        let bytes = (*parts.codes).as_ref();
        assert_eq!(bytes[parts.range.start..].as_ptr() as usize % 64, 0);
        assert!(bytes.len() > parts.range.len(), "the codes stand alone, not in the file");
    }
    let bits_of_q8 = Forged::parse(&folder.read(LAST)).place("model.embed_tokens.q8");
    assert_eq!(bits_of_q8.start % 64, 0, "a table of whole vectors");
}

#[test]
fn finished_shards_are_recognised() {
    let folder = Folder::new();
    let path = folder.dir().join(FIRST);
    assert!(shard_is_complete(&path));
    assert!(!shard_is_complete(&folder.dir().join("model-00003-of-00003.safetensors")));
    let good = folder.read(FIRST);
    let mut changed = good.clone();
    *changed.last_mut().unwrap() ^= 4;
    for bad in [&good[..good.len() - 1], &changed, b""] {
        folder.write(FIRST, bad);
        assert!(!shard_is_complete(&path));
    }
}
