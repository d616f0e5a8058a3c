//! Random damage: never a panic, never more memory than the files are long, never unnoticed.
use crate::fixture::*;
use proptest::prelude::*;
use proptest::sample::Index;
use proptest::test_runner::{Config, TestCaseError, TestRunner};
use serde_json::{json, Value};
use wsrun::format::{FormatError, WsModel};

/// Address space of the process that opens damaged folders, in KiB. It needs about a tenth.
#[cfg(target_os = "linux")]
const LIMIT: &str = "ulimit -v 2000000";
#[cfg(not(target_os = "linux"))]
const LIMIT: &str = "true";

/// Opens a folder and uses all that can be used.
fn use_all(folder: &Folder) -> Result<(), FormatError> {
    let model = WsModel::open(&folder.dir())?;
    let mut result = model.verify();
    for layer in model.layers() {
        match model.matrix(&layer.name) {
            Ok(matrix) => {
                for tokens in [1, 3] {
                    let x: Vec<f32> = (0..tokens * matrix.in_features()).map(|i| (i % 7) as f32 - 3.0).collect();
                    matrix.multiply(&x, tokens, &mut vec![0.0; tokens * matrix.out_features()]);
                }
                matrix.decode(0..matrix.out_features(), &mut vec![0.0; matrix.out_features() * matrix.in_features()]);
            }
            Err(error) => result = Err(error),
        }
    }
    let inspection = model.inspect();
    serde_json::to_string(&inspection).unwrap();
    for table in inspection.tables {
        match model.rows8(&table.name) {
            Ok(rows) => rows.multiply(&vec![1.0; rows.columns()], 1, &mut vec![0.0; rows.rows()]),
            Err(error) => result = Err(error),
        }
    }
    for name in ["model.norm.weight", "model.layers.2.self_attn.q_proj.bias"] {
        result = model.dense(name).map(drop).and(result);
    }
    result
}

fn assert_named(folder: &Folder, error: &FormatError) -> Result<(), TestCaseError> {
    let text = error.to_string();
    let dir = folder.dir().display().to_string();
    prop_assert!(text.contains(&dir), "no file in: {}", text);
    Ok(())
}

/// Damage to the bytes of a file.
#[derive(Debug, Clone)]
enum Damage {
    Flip(Index, u8),
    Truncate(Index),
    Append(Vec<u8>),
    Overwrite(Index, Vec<u8>),
    Remove(Index, usize),
    Swap(Index, Index),
}

impl Damage {
    fn any() -> impl Strategy<Value = Self> {
        prop_oneof![
            4 => (any::<Index>(), 0..8u8).prop_map(|(at, bit)| Self::Flip(at, bit)),
            1 => any::<Index>().prop_map(Self::Truncate),
            1 => prop::collection::vec(any::<u8>(), 1..80).prop_map(Self::Append),
            2 => (any::<Index>(), prop::collection::vec(any::<u8>(), 1..20)).prop_map(|(at, bytes)| Self::Overwrite(at, bytes)),
            1 => (any::<Index>(), 1..100usize).prop_map(|(at, n)| Self::Remove(at, n)),
            1 => (any::<Index>(), any::<Index>()).prop_map(|(a, b)| Self::Swap(a, b)),
        ]
    }

    fn apply(&self, bytes: &mut Vec<u8>) {
        let len = bytes.len();
        match self {
            Self::Flip(at, bit) => bytes[at.index(len)] ^= 1 << bit,
            Self::Truncate(at) => bytes.truncate(at.index(len)),
            Self::Append(more) => bytes.extend(more),
            Self::Overwrite(at, new) => {
                let at = at.index(len);
                bytes[at..].iter_mut().zip(new).for_each(|(b, n)| *b = *n);
            }
            Self::Remove(at, n) => {
                let at = at.index(len);
                bytes.drain(at..len.min(at + n));
            }
            Self::Swap(a, b) => bytes.swap(a.index(len), b.index(len)),
        }
    }
}

/// Damage that a forger makes: checksums of header and index are right.
#[derive(Debug, Clone)]
enum Forgery {
    /// A number of the header: which tensor, which of its numbers.
    Number(Index, usize, u64),
    SwapPlaces(Index, Index),
    Dtype(Index, Index),
    Shape(Index, [u64; 2]),
    Payload(Index, Vec<(Index, u8)>),
    Remove(Index),
}

impl Forgery {
    fn any() -> impl Strategy<Value = Self> {
        let number = prop_oneof![0..200u64, Just(u64::MAX), Just(1 << 40), Just(1 << 62), any::<u64>()].boxed();
        let changes = prop::collection::vec((any::<Index>(), any::<u8>()), 1..12);
        prop_oneof![
            3 => (any::<Index>(), 0..4usize, number.clone()).prop_map(|(t, n, v)| Self::Number(t, n, v)),
            1 => (any::<Index>(), any::<Index>()).prop_map(|(a, b)| Self::SwapPlaces(a, b)),
            1 => (any::<Index>(), any::<Index>()).prop_map(|(t, d)| Self::Dtype(t, d)),
            2 => (any::<Index>(), [number.clone(), number]).prop_map(|(m, s)| Self::Shape(m, s)),
            6 => (any::<Index>(), changes).prop_map(|(t, c)| Self::Payload(t, c)),
            1 => any::<Index>().prop_map(Self::Remove),
        ]
    }

    fn apply(&self, forged: &mut Forged) {
        let names: Vec<String> = forged.header.keys().filter(|k| *k != "__metadata__").cloned().collect();
        let pick = |index: &Index| index.get(&names).as_str();
        match self {
            Self::Number(tensor, which, value) => {
                let entry = &mut forged.header[pick(tensor)];
                let key = if *which < 2 { "shape" } else { "data_offsets" };
                if let Some(number) = entry[key].get_mut(which % 2) {
                    *number = json!(value);
                }
            }
            Self::SwapPlaces(a, b) => {
                let (a, b) = (pick(a), pick(b));
                let first = forged.header[a]["data_offsets"].clone();
                forged.header[a]["data_offsets"] = forged.header[b]["data_offsets"].clone();
                forged.header[b]["data_offsets"] = first;
            }
            Self::Dtype(tensor, dtype) => {
                forged.header[pick(tensor)]["dtype"] = (*dtype.get(&["U8", "I8", "U16", "F16", "U32", "F32", "F64", "BOOL"])).into();
            }
            Self::Shape(matrix, shape) => forged.metadata("ws.shapes", |shapes| {
                let shapes: &mut Vec<&mut Value> = &mut shapes.as_object_mut().unwrap().values_mut().collect();
                let at = matrix.index(shapes.len());
                *shapes[at] = json!(shape);
            }),
            Self::Payload(tensor, changes) => forged.change(pick(tensor), |bytes| {
                if !bytes.is_empty() {
                    changes.iter().for_each(|(at, value)| bytes[at.index(bytes.len())] = *value);
                }
            }),
            Self::Remove(tensor) => {
                forged.header.remove(pick(tensor));
            }
        }
    }
}

fn run<S: Strategy>(cases: u32, strategy: S, test: impl Fn(S::Value) -> Result<(), TestCaseError>) {
    let mut runner = TestRunner::new_with_rng(
        Config { cases, failure_persistence: None, ..Config::default() },
        proptest::test_runner::TestRng::deterministic_rng(proptest::test_runner::RngAlgorithm::ChaCha),
    );
    runner.run(&strategy, test).unwrap();
}

#[test]
fn damage_is_found() {
    if !is_limited("corrupt::damage_is_found", LIMIT) {
        return;
    }
    let folder = Folder::new();
    let files: Vec<(&str, Vec<u8>)> = [FIRST, LAST, INDEX, "config.json", "tokenizer.json"].map(|name| (name, folder.read(name))).into();
    let strategy = (0..files.len(), prop::collection::vec(Damage::any(), 1..4));
    run(1500, strategy, |(file, damages)| {
        let (name, good) = &files[file];
        let mut bytes = good.clone();
        damages.iter().for_each(|damage| {
            if !bytes.is_empty() {
                damage.apply(&mut bytes)
            }
        });
        folder.write(name, &bytes);
        let result = use_all(&folder);
        folder.write(name, good);
        match result {
            Err(error) => assert_named(&folder, &error),
            Ok(()) => {
                prop_assert!(bytes == *good, "{} was changed and nobody noticed", name);
                Ok(())
            }
        }
    });
    use_all(&folder).unwrap();
}

/// Every single bit of the small files, and of every 64th byte of the shards.
#[test]
fn every_flipped_bit_is_found() {
    let folder = Folder::new();
    for name in [FIRST, LAST, INDEX, "config.json", "tokenizer.json"] {
        let good = folder.read(name);
        let step = if name.ends_with(".safetensors") { 61 } else { 7 };
        for at in (0..good.len()).step_by(step) {
            let mut bytes = good.clone();
            bytes[at] ^= 1 << (at % 8);
            folder.write(name, &bytes);
            assert!(WsModel::open(&folder.dir()).and_then(|m| m.verify()).is_err(), "bit {} of byte {at} of {name}", at % 8);
        }
        folder.write(name, &good);
    }
    WsModel::open(&folder.dir()).unwrap().verify().unwrap();
}

#[test]
fn forgeries_are_refused_or_harmless() {
    if !is_limited("corrupt::forgeries_are_refused_or_harmless", LIMIT) {
        return;
    }
    let folder = Folder::new();
    let good: Vec<(&str, Vec<u8>)> = [FIRST, LAST, INDEX].map(|name| (name, folder.read(name))).into();
    run(1500, (any::<bool>(), prop::collection::vec(Forgery::any(), 1..4)), |(first, forgeries)| {
        folder.forge(if first { FIRST } else { LAST }, |forged| forgeries.iter().for_each(|forgery| forgery.apply(forged)));
        let result = use_all(&folder);
        good.iter().for_each(|(name, bytes)| folder.write(name, bytes));
        result.or_else(|error| assert_named(&folder, &error))
    });
}
