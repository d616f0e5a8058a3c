//! A small model with every kind of tensor, and ways to damage it.
use half::f16;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde_json::{json, Map, Value};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use tempfile::TempDir;
use ws_kernels::code::{antisymmetric, CodeSet, LinearCode};
use ws_kernels::layout::{pack, Column, Geometry};
use ws_kernels::packed::{Exception, Parts};
use wsrun::format::{finish_folder, Packed, Shard, Table8};
use xxhash_rust::xxh3::xxh3_64;

pub const INDEX: &str = "model.safetensors.index.json";
pub const FIRST: &str = "model-00001-of-00002.safetensors";
pub const LAST: &str = "model-00002-of-00002.safetensors";
/// Every width, and exceptions.
pub const MIXED: &str = "model.layers.2.self_attn.q_proj";
/// One lane, padded rows, no exceptions.
pub const PLAIN: &str = "model.layers.10.mlp.down_proj";
/// No codes at all: widths 0 and 16.
pub const BARE: &str = "model.layers.2.mlp.up_proj";
/// 16 lanes; panels of 128 columns of width 3, and of 64 of width 6.
pub const WIDE: &str = "model.layers.11.mlp.down_proj";

/// Scalar codes, but 1, 2 and 4 bits with random trellises: one path bit, three path bytes and a level table for each row position; a single table; a
/// level table for each row position.
pub fn codes() -> CodeSet {
    let mut rng = ChaCha8Rng::seed_from_u64(1);
    let mut codes = CodeSet::scalar();
    for (path_bits, raw_bits, index_bits, tables) in [(1, 0, 5, 8), (2, 0, 6, 1), (2, 2, 5, 4)] {
        let mut masks = || (0..8 / path_bits).map(|_| (0..index_bits).map(|_| rng.random()).collect()).collect::<Vec<Vec<u8>>>();
        let (a, c, d) = (masks(), masks(), if path_bits == 1 { masks() } else { Vec::new() });
        let mut half = || (0..1 << (raw_bits + index_bits - 1)).map(|_| rng.random_range(-127..=127)).collect::<Vec<i8>>();
        let levels = (0..tables).map(|_| antisymmetric(&half())).collect();
        let code = LinearCode { path_bits, raw_bits, index_bits, a, c, d, levels, unit: 0.015 };
        let width = usize::from(code.bits());
        codes.codes[width] = Some(Arc::new(code));
    }
    codes
}

/// A matrix of random codes, scales and exceptions.
pub fn matrix(seed: u64, out_features: usize, widths: &[u8], exceptions: &[(u32, u16)]) -> Parts {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let codes = codes();
    let geometry = Geometry::new(out_features, widths).unwrap();
    let rows = geometry.padded_rows();
    let mut columns = Vec::new();
    for run in &geometry.runs {
        let (path_bits, raw_bits) = codes.get(run.width).map_or((0, 8), |c| (usize::from(c.path_bits), c.raw_bits));
        let mut column = || Column {
            path: (0..rows * path_bits / 8).map(|_| rng.random()).collect(),
            raw: if raw_bits == 0 { Vec::new() } else { (0..rows).map(|_| rng.random::<u8>() >> (8 - raw_bits)).collect() },
        };
        columns.push(run.columns.iter().map(|_| column()).collect::<Vec<_>>());
    }
    let bytes = pack(&geometry, &codes, &columns);
    let mut halves = |n: usize| (0..n).map(|_| f16::from_f32(rng.random_range(0.5..2.0))).collect::<Vec<_>>();
    let coded = columns.iter().map(Vec::len).sum();
    Parts {
        out_features,
        widths: widths.to_vec(),
        scale: 0.03,
        range: 0..bytes.len(),
        codes: Arc::new(bytes),
        col_scale: halves(coded),
        row_scale: halves(out_features),
        exact: halves(out_features * widths.iter().filter(|w| **w == 16).count()),
        exceptions: exceptions.iter().map(|&(row, column)| Exception { row, column, value: f16::from_f32(-7.5) }).collect(),
    }
}

/// What the fixture's shards hold, in no particular order.
pub fn matrices() -> Vec<Packed> {
    let mixed: Vec<u8> = (0..71).map(|j| [2, 0, 4, 16, 1, 3, 8, 5, 6, 2][j % 10]).collect();
    let packed = |name: &str, parts| Packed { name: name.to_owned(), parts };
    vec![
        packed(PLAIN, Parts { row_scale: vec![f16::ONE; 13], ..matrix(3, 13, &[3, 3, 4, 1, 2], &[]) }),
        packed(MIXED, matrix(2, 48, &mixed, &[(0, 70), (5, 0), (5, 1), (47, 33)])),
        packed(BARE, matrix(4, 9, &[0, 16, 0], &[(8, 2)])),
        packed(WIDE, matrix(6, 256, &std::array::from_fn::<u8, 450, _>(|j| [3, 3, 6][j % 3]), &[])),
    ]
}

/// The shard without and the shard with the code tables.
pub fn shards() -> [Shard; 2] {
    let mut rng = ChaCha8Rng::seed_from_u64(5);
    let mut matrices = matrices();
    let last = matrices.split_off(2);
    let table = |name: &str, rows: usize, columns: usize, rng: &mut ChaCha8Rng| Table8 {
        name: name.to_owned(),
        rows,
        columns,
        values: (0..rows * columns).map(|_| rng.random_range(-127..=127)).collect(),
        scales: (0..rows).map(|_| f16::from_f32(rng.random_range(0.5..2.0))).collect(),
        unit: 0.01,
    };
    let tables = vec![table("lm_head", 5, 3, &mut rng), table("model.embed_tokens", 4, 32, &mut rng)];
    let first = Shard { packed: matrices, dense: vec![(format!("{MIXED}.bias"), vec![48], vec![0.25; 48])], ..Shard::default() };
    let dense = vec![("model.norm.weight".to_owned(), vec![3, 2], vec![1.0, -2.0, 3.5, 4.0, 5.0, 6.0])];
    [first, Shard { packed: last, tables, dense, codes: Some(Arc::new(codes())) }]
}

pub fn side_files() -> Vec<(String, Vec<u8>)> {
    vec![("tokenizer.json".to_owned(), br#"{"model": {}}"#.to_vec()), ("tokenizer_config.json".to_owned(), b"{}".to_vec())]
}

/// A .ws folder in a temporary folder.
pub struct Folder {
    root: TempDir,
}

impl Folder {
    /// A complete model.
    pub fn new() -> Self {
        let folder = Self::partial();
        folder.finish().unwrap();
        folder
    }

    /// Shards that wait for [`Folder::finish`].
    pub fn partial() -> Self {
        let folder = Self { root: tempfile::tempdir().unwrap() };
        let partial = folder.root.path().join("model.partial");
        std::fs::create_dir(&partial).unwrap();
        for (name, shard) in [FIRST, LAST].iter().zip(shards()) {
            shard.write(&partial.join(name)).unwrap();
        }
        folder
    }

    pub fn finish(&self) -> Result<PathBuf, wsrun::format::FormatError> {
        let config = json!({"architectures": ["LlamaForCausalLM"], "hidden_size": 3});
        let quantization = json!({"rate": 3.0, "seed": 7, "calibration": "self"});
        finish_folder(&self.root.path().join("model.partial"), &self.dir(), &config, &quantization, &side_files())
    }

    pub fn root(&self) -> &Path {
        self.root.path()
    }

    pub fn dir(&self) -> PathBuf {
        self.root.path().join("model")
    }

    pub fn read(&self, name: &str) -> Vec<u8> {
        std::fs::read(self.dir().join(name)).unwrap()
    }

    pub fn write(&self, name: &str, bytes: &[u8]) {
        std::fs::write(self.dir().join(name), bytes).unwrap();
    }

    /// Changes a JSON file of the folder.
    pub fn edit_json(&self, name: &str, edit: impl FnOnce(&mut Value)) {
        let mut value = serde_json::from_slice(&self.read(name)).unwrap();
        edit(&mut value);
        self.write(name, format!("{value:#}\n").as_bytes());
    }

    /// Changes a shard as somebody would who knows the format: header checksum and index fit it afterwards.
    pub fn forge(&self, name: &str, edit: impl FnOnce(&mut Forged)) {
        let mut forged = Forged::parse(&self.read(name));
        edit(&mut forged);
        let (bytes, sum) = forged.bytes();
        self.write(name, &bytes);
        self.edit_json(INDEX, |index| {
            index["metadata"]["ws.shards"][name] = sum.into();
            let others: u64 =
                [FIRST, LAST].iter().filter(|other| **other != name).map(|other| Forged::parse(&self.read(other)).data.len() as u64).sum();
            index["metadata"]["total_size"] = (others + forged.data.len() as u64).into();
            let map = index["weight_map"].as_object_mut().unwrap();
            map.retain(|_, shard| shard != name);
            map.extend(forged.header.keys().filter(|key| *key != "__metadata__").map(|key| (key.clone(), name.into())));
        });
    }
}

/// Header and data of a shard.
pub struct Forged {
    pub header: Map<String, Value>,
    pub data: Vec<u8>,
}

impl Forged {
    pub fn parse(file: &[u8]) -> Self {
        let end = 8 + u64::from_le_bytes(file[..8].try_into().unwrap()) as usize;
        Self { header: serde_json::from_slice(&file[8..end]).unwrap(), data: file[end..].to_vec() }
    }

    /// Bytes of a tensor in the data.
    pub fn place(&self, tensor: &str) -> std::ops::Range<usize> {
        let offset = |i: usize| self.header[tensor]["data_offsets"][i].as_u64().unwrap() as usize;
        offset(0)..offset(1)
    }

    /// Changes the bytes of a tensor, if its place is in the file, and its checksum.
    pub fn change(&mut self, tensor: &str, edit: impl FnOnce(&mut [u8])) {
        let place = self.place(tensor);
        let Some(bytes) = self.data.get_mut(place) else { return };
        edit(bytes);
        let sum = format!("{:016x}", xxh3_64(bytes));
        self.metadata("ws.checksums", |sums| sums[tensor] = sum.into());
    }

    /// Changes a JSON object inside of the metadata.
    pub fn metadata(&mut self, field: &str, edit: impl FnOnce(&mut Value)) {
        let text = &mut self.header["__metadata__"][field];
        let mut value: Value = serde_json::from_str(text.as_str().unwrap()).unwrap();
        edit(&mut value);
        *text = value.to_string().into();
    }

    /// The file and its header's checksum.
    pub fn bytes(&self) -> (Vec<u8>, String) {
        let mut header = self.header.clone();
        header["__metadata__"]["ws.header"] = "0".repeat(16).into();
        let mut text = Value::from(header).to_string().into_bytes();
        text.resize((8 + text.len()).next_multiple_of(64) - 8, b' ');
        let mut bytes = [(text.len() as u64).to_le_bytes().to_vec(), text].concat();
        let sum = format!("{:016x}", xxh3_64(&bytes));
        let at = String::from_utf8_lossy(&bytes[8..]).find("\"ws.header\":\"").unwrap() + 8 + 13;
        bytes[at..at + 16].copy_from_slice(sum.as_bytes());
        bytes.extend(&self.data);
        (bytes, sum)
    }
}

/// Runs one test of this binary again, in a shell that first executes `limits`. True in the process that is to do the work.
pub fn is_limited(test: &str, limits: &str) -> bool {
    const MARK: &str = "WSRUN_TEST_LIMITED";
    if std::env::var_os(MARK).is_some() {
        return true;
    }
    let output = Command::new("sh")
        .args(["-c", &format!("{limits} && exec \"$0\" \"$@\"")])
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", test, "--nocapture", "--test-threads=1"])
        .env(MARK, "1")
        .env("RAYON_NUM_THREADS", "2")
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && text.contains("1 passed"), "{text}");
    false
}
