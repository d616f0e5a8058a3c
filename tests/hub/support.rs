//! Folders made from the golden models, their tensors, and what a source gives: logits or one error.
use crate::common::{Fixture, Tiny};
use half::{bf16, f16};
use safetensors::tensor::{Dtype, SafeTensors, TensorView};
use serde_json::Value;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use wsrun::hub::Source;
use wsrun::runtime::TextModel;

pub const SINGLE: &str = "model.safetensors";

/// Shapes and values by name.
pub type Tensors = BTreeMap<String, (Vec<usize>, Vec<f32>)>;

/// A temporary folder whose `model` is a golden model with the tokenizer of [`Tiny`], its weights in f32.
pub fn golden(name: &str) -> Fixture {
    let f = Fixture::with(&small());
    let from = Path::new(env!("CARGO_MANIFEST_DIR")).join("models/tests/golden").join(name);
    std::fs::copy(from.join("config.json"), f.path("model/config.json")).unwrap();
    write_tensors(&f.path("model").join(SINGLE), &read_tensors(&from.join(SINGLE)), Dtype::F32);
    f
}

/// The smallest model of [`Tiny`]'s kind.
pub fn small() -> Tiny {
    Tiny { hidden: 16, intermediate: 32, layers: 1, ..Tiny::default() }
}

pub fn read_tensors(path: &Path) -> Tensors {
    let bytes = std::fs::read(path).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let values = |view: &TensorView| -> Vec<f32> {
        let halves = |f: fn([u8; 2]) -> f32| view.data().chunks(2).map(|c| f([c[0], c[1]])).collect();
        match view.dtype() {
            Dtype::F16 => halves(|b| f16::from_le_bytes(b).to_f32()),
            Dtype::BF16 => halves(|b| bf16::from_le_bytes(b).to_f32()),
            _ => view.data().chunks(4).map(|c| f32::from_le_bytes(c.try_into().unwrap())).collect(),
        }
    };
    file.iter().map(|(name, view)| (name.to_owned(), (view.shape().to_vec(), values(&view)))).collect()
}

pub fn write_tensors(path: &Path, tensors: &Tensors, dtype: Dtype) {
    let bytes = |values: &[f32]| -> Vec<u8> {
        match dtype {
            Dtype::F16 => values.iter().flat_map(|&v| f16::from_f32(v).to_le_bytes()).collect(),
            Dtype::BF16 => values.iter().flat_map(|&v| bf16::from_f32(v).to_le_bytes()).collect(),
            Dtype::F32 => values.iter().flat_map(|v| v.to_le_bytes()).collect(),
            _ => values.iter().map(|_| 0).collect(),
        }
    };
    let data: Vec<_> = tensors.iter().map(|(name, (shape, values))| (name, shape, bytes(values))).collect();
    let views = data.iter().map(|(name, shape, bytes)| (name, TensorView::new(dtype, (*shape).clone(), bytes).unwrap()));
    safetensors::serialize_to_file(views, None, path).unwrap();
}

/// Rewrites a JSON file.
pub fn edit_json(path: &Path, edit: impl FnOnce(&mut Value)) {
    let mut value = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
    edit(&mut value);
    std::fs::write(path, value.to_string()).unwrap();
}

pub fn load(source: &Source) -> Result<TextModel, String> {
    // As the command line prints an error: with all that it comes from.
    source.open().map_err(anyhow::Error::from).and_then(|opened| Ok(TextModel::load(opened)?)).map_err(|e| format!("{e:#}"))
}

/// Logits after 300 tokens, enough that a wrong rotation shows.
pub fn logits(source: &Source) -> Vec<f32> {
    let model = load(source).unwrap();
    let vocab = model.model().config.vocab as u32;
    let ids: Vec<u32> = (0..300u32).map(|i| (i * i + 7 * i + 3) % vocab).collect();
    let tokens = ids.len().min(model.context());
    model.session(tokens).unwrap().prefill(&ids[..tokens]).unwrap()
}

/// The largest difference, relative to the largest value.
pub fn difference(a: &[f32], b: &[f32]) -> f32 {
    assert_eq!(a.len(), b.len());
    let largest = |values: &mut dyn Iterator<Item = f32>| values.fold(0f32, |m, v| m.max(v.abs()));
    largest(&mut a.iter().zip(b).map(|(a, b)| a - b)) / largest(&mut b.iter().copied())
}

/// `source` has exactly these logits.
pub fn assert_logits(source: &Source, expected: &[f32], what: &str) {
    let logits = logits(source);
    assert!(logits == expected, "{what}: the logits differ by {}", difference(&logits, expected));
}

/// Fails to load, and says all of this.
pub fn refused(source: &Source, says: &[&str]) {
    let Err(error) = load(source) else { panic!("{source:?} loads, where an error with {says:?} is due") };
    for part in says {
        assert!(error.contains(part), "{error:?} does not say {part:?}");
    }
}

pub fn folder(path: PathBuf) -> Source {
    Source::Folder(path)
}
