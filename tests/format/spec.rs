//! docs/format.md, executed: a second reader that knows nothing but that page and the safetensors library.
use crate::fixture::*;
use half::f16;
use safetensors::SafeTensors;
use serde_json::Value;
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use ws_kernels::code::CodeSet;
use ws_kernels::layout::{pack, Column, Geometry};
use ws_kernels::packed::{Exception, PackedMatrix, Parts};
use wsrun::format::{stored_bytes, WsModel};

#[derive(Default)]
struct Reader {
    tensors: BTreeMap<String, (Vec<usize>, Vec<u8>)>,
    shapes: BTreeMap<String, [usize; 2]>,
}

impl Reader {
    fn open(dir: &Path) -> Self {
        let index: Value = serde_json::from_slice(&std::fs::read(dir.join(INDEX)).unwrap()).unwrap();
        let mut reader = Self::default();
        for shard in index["metadata"]["ws.shards"].as_object().unwrap().keys() {
            let bytes = std::fs::read(dir.join(shard)).unwrap();
            let (_, header) = SafeTensors::read_metadata(&bytes).unwrap();
            let metadata = header.metadata().as_ref().unwrap();
            reader.shapes.extend(serde_json::from_str::<BTreeMap<String, [usize; 2]>>(&metadata["ws.shapes"]).unwrap());
            for (name, view) in SafeTensors::deserialize(&bytes).unwrap().tensors() {
                assert_eq!(index["weight_map"][&name], *shard);
                reader.tensors.insert(name, (view.shape().to_vec(), view.data().to_vec()));
            }
        }
        reader
    }

    fn bytes(&self, name: &str) -> &[u8] {
        self.tensors.get(name).map_or(&[], |t| &t.1)
    }

    fn halves(&self, name: &str) -> Vec<f32> {
        self.bytes(name).chunks(2).map(|b| f16::from_le_bytes([b[0], b[1]]).to_f32()).collect()
    }

    fn float(&self, name: &str) -> f32 {
        f32::from_le_bytes(self.bytes(name).try_into().unwrap())
    }

    fn matrix(&self, name: &str) -> Vec<f32> {
        let [out, columns] = self.shapes[name];
        let tensor = |end: &str| format!("{name}.{end}");
        let plan = self.bytes(&tensor("plan"));
        let widths: Vec<usize> = (0..columns).map(|j| [0, 1, 2, 3, 4, 5, 6, 8, 16][(plan[j / 2] >> (4 * (j % 2)) & 15) as usize]).collect();
        let scale = self.float(&tensor("scale"));
        let (mut row_scale, col_scale) = (self.halves(&tensor("row_scale")), self.halves(&tensor("col_scale")));
        if !self.tensors.contains_key(&tensor("row_scale")) {
            row_scale = vec![1.0; out];
        }
        let padded = |lanes: usize| out.div_ceil(8 * lanes) * 8 * lanes;
        let lanes = [16, 8, 4, 2, 1].into_iter().min_by_key(|&l| padded(l)).unwrap();
        let segment = padded(lanes) / lanes;

        let mut values = vec![0.0; out * columns];
        let (mut run_start, mut coded) = (0, 0);
        for k in [1, 2, 3, 4, 5, 6, 8] {
            let run: Vec<usize> = (0..columns).filter(|&j| widths[j] == k).collect();
            let per_vector = 64 / lanes;
            let groups = run.len().div_ceil(per_vector);
            for (n, &j) in run.iter().enumerate() {
                let byte = |row: usize, vector: usize| {
                    let (lane, block) = (row / segment, row % segment / 8);
                    let (group, of_panel) = (n / per_vector, (8192 / (64 * k * lanes)).max(1) * lanes);
                    let first = group / of_panel * of_panel;
                    let unit = (first * segment / 8 + block * of_panel.min(groups - first) + group - first) * k + vector;
                    self.bytes(&tensor("codes"))[run_start + unit * 64 + lane * per_vector + n % per_vector]
                };
                for r in 0..out {
                    values[r * columns + j] = scale * row_scale[r] * col_scale[coded] * self.level(k, r, &byte);
                }
                coded += 1;
            }
            run_start += groups * k * 64 * segment / 8;
        }
        let exact = self.halves(&tensor("exact"));
        for (n, j) in (0..columns).filter(|&j| widths[j] == 16).enumerate() {
            (0..out).for_each(|r| values[r * columns + j] = scale * exact[n * out + r]);
        }
        let u16s = |end: &str| self.bytes(&tensor(end)).chunks(2).map(|b| usize::from(b[0]) | usize::from(b[1]) << 8).collect::<Vec<_>>();
        for ((r, j), value) in u16s("exc_row").into_iter().zip(u16s("exc_col")).zip(self.halves(&tensor("exc_val"))) {
            values[r * columns + j] += scale * value;
        }
        values
    }

    /// `unit * level` of a row at width `k`.
    fn level(&self, k: usize, row: usize, byte: &dyn Fn(usize, usize) -> u8) -> f32 {
        if k == 8 {
            return f32::from(byte(row, row % 8)) - 128.0;
        }
        let tensor = |end: &str| format!("ws.code.{k}.{end}");
        let a = &self.tensors[&tensor("a")].0;
        let (positions, index_bits) = (a[0], a[1]);
        let path_bits = 8 / positions;
        let raw_bits = k - path_bits;
        let path_byte = |row: usize| byte(row, row % 8 / positions);
        let [current, previous, older] = [0, 1, 2].map(|age| if row < age * positions { 0 } else { path_byte(row - age * positions) });
        let position = row % positions;
        let mut index = 0;
        for bit in 0..index_bits {
            let mask = |end: &str| self.bytes(&tensor(end))[position * index_bits + bit];
            let mut ones = (mask("a") & current).count_ones() + (mask("c") & previous).count_ones();
            if self.tensors.contains_key(&tensor("d")) {
                ones += (mask("d") & older).count_ones();
            }
            index = index << 1 | (ones as usize & 1);
        }
        let mut raw = 0;
        for pair in 0..raw_bits / 2 {
            let vector = path_bits + 2 * pair + row % 8 / 4;
            raw |= usize::from(byte(row, vector) >> (6 - 2 * (row % 4)) & 3) << (2 * pair);
        }
        if raw_bits % 2 == 1 {
            raw |= usize::from(byte(row, k - 1) >> (7 - row % 8) & 1) << (raw_bits - 1);
        }
        let shape = &self.tensors[&tensor("levels")].0;
        let table = if shape[0] == 1 { 0 } else { position };
        let level = self.bytes(&tensor("levels"))[table * shape[1] + (raw << index_bits | index)] as i8;
        self.float(&tensor("unit")) * f32::from(level)
    }
}

fn assert_close(a: &[f32], b: &[f32]) {
    assert_eq!(a.len(), b.len());
    for (i, (a, b)) in a.iter().zip(b).enumerate() {
        assert!((a - b).abs() <= 1e-5 * b.abs(), "{i}: {a} against {b}");
    }
}

#[test]
fn a_reader_made_from_the_page_agrees() {
    let folder = Folder::new();
    let (model, reader) = (WsModel::open(&folder.dir()).unwrap(), Reader::open(&folder.dir()));
    for name in [MIXED, PLAIN, BARE, WIDE] {
        let matrix = model.matrix(name).unwrap();
        let mut values = vec![0.0; matrix.out_features() * matrix.in_features()];
        matrix.decode(0..matrix.out_features(), &mut values);
        assert_close(&reader.matrix(name), &values);
    }
    let (shape, q8) = &reader.tensors["lm_head.q8"];
    let scales = reader.halves("lm_head.q8_scale");
    let table = model.rows8("lm_head").unwrap();
    for (r, row) in q8.chunks(shape[1]).enumerate() {
        let expected: Vec<f32> = row.iter().map(|&q| reader.float("lm_head.q8_unit") * scales[r] * f32::from(q as i8)).collect();
        let mut values = vec![0.0; shape[1]];
        table.row(r, &mut values);
        assert_close(&expected, &values);
    }
}

#[test]
fn the_worked_example_of_the_page_is_right() {
    let codes = CodeSet::scalar();
    let geometry = Geometry::new(8, &[1, 2]).unwrap();
    let columns = [Column { path: vec![0xB2], raw: vec![] }, Column { path: vec![0xC6, 0xA7], raw: vec![] }];
    let bytes = pack(&geometry, &codes, &columns.map(|c| vec![c]));
    let nonzero: Vec<(usize, u8)> = bytes.iter().copied().enumerate().filter(|b| b.1 != 0).collect();
    assert_eq!((bytes.len(), &nonzero[..]), (192, &[(0, 0xB2), (64, 0xC6), (128, 0xA7)][..]));
    let mut row_scale = vec![f16::ONE; 8];
    row_scale[2] = f16::from_f32(2.0);
    let parts = Parts {
        out_features: 8,
        widths: vec![1, 2],
        scale: 0.5,
        range: 0..192,
        codes: Arc::new(bytes),
        col_scale: vec![f16::ONE, f16::from_f32(0.25)],
        row_scale,
        exact: vec![],
        exceptions: vec![Exception { row: 5, column: 0, value: f16::from_f32(3.0) }],
    };
    assert_eq!(stored_bytes(&parts), 223);
    let matrix = PackedMatrix::new(parts, Arc::new(codes)).unwrap();
    let mut values = [0.0; 16];
    matrix.decode(0..8, &mut values);
    let near = |value: f32, expected: f32| assert!((value - expected).abs() < 5e-5, "{value} is not {expected}");
    near(values[0], 0.3989);
    near(values[1], 0.1888);
    near(values[2 * 2], 0.7979);
    near(values[2 * 2 + 1], -0.1130);
    near(values[5 * 2], 1.1011);
}
