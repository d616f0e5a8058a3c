//! Weights from one safetensors file, or a golden model.
use candle_core::{DType, Device, Tensor};
use std::collections::HashMap;
use std::path::PathBuf;
use ws_models::config::Config;
use ws_models::linear::{Linear, Matrix, Table};
use ws_models::weights::{WeightError, Weights};

/// A file of a golden model.
pub fn path(model: &str, file: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(model).join(file)
}

/// The checked configuration of a golden model.
pub fn config(model: &str) -> Config {
    Config::from_json(&std::fs::read_to_string(path(model, "config.json")).unwrap()).unwrap()
}

/// Tensors by their Hugging Face names.
pub struct Tensors {
    pub tensors: HashMap<String, Tensor>,
    /// Type of the matrices; `None`: as stored.
    pub dtype: Option<DType>,
}

impl Tensors {
    /// Those of a golden model.
    pub fn golden(model: &str, dtype: Option<DType>) -> Self {
        Self { tensors: candle_core::safetensors::load(path(model, "model.safetensors"), &Device::Cpu).unwrap(), dtype }
    }

    fn get(&self, name: &str, shape: &[usize]) -> Result<Tensor, WeightError> {
        let tensor = self.tensors.get(name).ok_or_else(|| format!("no tensor {name}"))?;
        if tensor.dims() != shape {
            return Err(format!("{name} has shape {:?}, expected {shape:?}", tensor.dims()).into());
        }
        Ok(tensor.clone())
    }

    fn matrix(&self, prefix: &str, rows: usize, columns: usize) -> Result<Tensor, WeightError> {
        let tensor = self.get(&format!("{prefix}.weight"), &[rows, columns])?;
        Ok(tensor.to_dtype(self.dtype.unwrap_or(tensor.dtype()))?)
    }
}

impl Weights for Tensors {
    fn tensor(&self, name: &str, shape: &[usize]) -> Result<Tensor, WeightError> {
        Ok(self.get(name, shape)?.to_dtype(DType::F32)?)
    }
    fn linear(&self, prefix: &str, out_features: usize, in_features: usize, bias: bool) -> Result<Linear, WeightError> {
        let matrix = Matrix::Dense(self.matrix(prefix, out_features, in_features)?);
        let bias = if bias { Some(self.tensor(&format!("{prefix}.bias"), &[out_features])?) } else { None };
        Ok(Linear { matrix, bias })
    }
    fn table(&self, prefix: &str, vocab: usize, hidden: usize) -> Result<Table, WeightError> {
        Ok(Table::Dense(self.matrix(prefix, vocab, hidden)?))
    }
}
