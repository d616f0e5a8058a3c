//! Weights from a .ws folder: packed, or expanded to dense f32.
use super::HubError;
use crate::format::{FormatError, WsModel};
use candle_core::{Device, Tensor};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use ws_kernels::pages::LargePages;
use ws_models::linear::{Linear, Matrix, Table};
use ws_models::weights::{available_memory, WeightError, Weights};

/// A .ws folder as a source of weights.
pub(super) struct PackedWeights {
    model: WsModel,
    dir: PathBuf,
    /// Packed matrices are expanded to dense f32.
    dense: bool,
}

impl PackedWeights {
    /// Packed weights are read into memory if they take at most half of what is available, and otherwise stay mapped. `report` gets how many bytes are read, and
    /// how many there are.
    pub(super) fn open(dir: &Path, dense: bool, report: &mut dyn FnMut(u64, u64)) -> Result<Self, FormatError> {
        let mut model = WsModel::open(dir)?;
        let bytes = model.file_bytes();
        let fits = || available_memory().is_some_and(|available| bytes <= available / 2);
        if !dense && LargePages::SUPPORTED && fits() {
            // A system that promises no more memory than it has may refuse, and the map does as well.
            let _ = model.read_into_memory(&mut |done| report(done, bytes));
        }
        Ok(Self { model, dir: dir.to_owned(), dense })
    }

    pub(super) fn config(&self) -> &serde_json::Value {
        self.model.config()
    }

    fn shape_error(&self, tensor: &str, found: &[usize], wanted: &[usize]) -> WeightError {
        let why = format!("has shape {found:?}, config.json asks for {wanted:?}");
        HubError::Tensor { path: self.dir.clone(), tensor: tensor.to_owned(), why }.into()
    }
}

impl Weights for PackedWeights {
    fn tensor(&self, name: &str, shape: &[usize]) -> Result<Tensor, WeightError> {
        let (found, values) = self.model.dense(name)?;
        if found != shape {
            return Err(self.shape_error(name, &found, shape));
        }
        Ok(Tensor::from_vec(values, shape, &Device::Cpu)?)
    }

    fn linear(&self, prefix: &str, out_features: usize, in_features: usize, bias: bool) -> Result<Linear, WeightError> {
        let matrix = self.model.matrix(prefix)?;
        let (found, wanted) = ([matrix.out_features(), matrix.in_features()], [out_features, in_features]);
        if found != wanted {
            return Err(self.shape_error(prefix, &found, &wanted));
        }
        let matrix = match self.dense {
            false => Matrix::Packed(Arc::new(matrix)),
            true => {
                let mut values = vec![0f32; out_features * in_features];
                matrix.decode(0..out_features, &mut values);
                Matrix::Dense(Tensor::from_vec(values, (out_features, in_features), &Device::Cpu)?)
            }
        };
        let bias = if bias { Some(self.tensor(&format!("{prefix}.bias"), &[out_features])?) } else { None };
        Ok(Linear { matrix, bias })
    }

    fn table(&self, prefix: &str, vocab: usize, hidden: usize) -> Result<Table, WeightError> {
        if self.model.has_matrix(prefix) {
            return Ok(match self.linear(prefix, vocab, hidden, false)?.matrix {
                Matrix::Packed(matrix) => Table::Packed(matrix),
                Matrix::Dense(matrix) => Table::Dense(matrix),
            });
        }
        let rows = self.model.rows8(prefix)?;
        let (found, wanted) = ([rows.rows(), rows.columns()], [vocab, hidden]);
        if found != wanted {
            return Err(self.shape_error(prefix, &found, &wanted));
        }
        Ok(Table::Rows8(Arc::new(rows)))
    }
}
