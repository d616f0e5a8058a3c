//! Dense weights from the safetensors of a Hugging Face folder.
use super::{fetch, HubError};
use candle_core::{DType, Device, Tensor};
use memmap2::Mmap;
use safetensors::tensor::{Dtype, Metadata, SafeTensors};
use std::collections::HashMap;
use std::path::{Path, PathBuf};
use ws_models::config::Config;
use ws_models::linear::{Linear, Matrix, Table};
use ws_models::weights::{available_memory, dense_dtype, WeightError, Weights};

struct File {
    path: PathBuf,
    map: Mmap,
    data: usize,
    metadata: Metadata,
}

/// Memory-mapped safetensors of one model.
pub(super) struct FolderWeights {
    dir: PathBuf,
    files: Vec<File>,
    /// File of each tensor.
    place: HashMap<String, usize>,
    dtype: DType,
}

impl FolderWeights {
    pub(super) fn open(dir: &Path, config: &Config) -> Result<Self, HubError> {
        let index = dir.join("model.safetensors.index.json");
        let names = if index.exists() { fetch::shards(&index)? } else { vec!["model.safetensors".to_owned()] };
        let files = names.iter().map(|name| open_file(&dir.join(name))).collect::<Result<Vec<_>, _>>()?;
        let mut place = HashMap::new();
        for (i, file) in files.iter().enumerate() {
            for name in file.metadata.offset_keys() {
                if place.insert(name.clone(), i).is_some() {
                    return Err(HubError::Tensor { path: file.path.clone(), tensor: name, why: "is in two files".to_owned() });
                }
            }
        }
        let mut weights = Self { dir: dir.to_owned(), files, place, dtype: DType::F32 };
        let (_, _, stored) = weights.find("model.embed_tokens.weight")?;
        weights.dtype = dense_dtype(config, stored, available_memory().unwrap_or(u64::MAX));
        Ok(weights)
    }

    fn find(&self, name: &str) -> Result<(&File, &safetensors::tensor::TensorInfo, DType), HubError> {
        let missing =
            || HubError::Tensor { path: self.dir.clone(), tensor: name.to_owned(), why: "is missing; fetch the model again".to_owned() };
        let file = &self.files[*self.place.get(name).ok_or_else(missing)?];
        let info = file.metadata.info(name).ok_or_else(missing)?;
        let dtype = match info.dtype {
            Dtype::F32 => DType::F32,
            Dtype::F16 => DType::F16,
            Dtype::BF16 => DType::BF16,
            other => {
                let why = format!("has type {other:?}; supported are F32, F16 and BF16");
                return Err(HubError::Tensor { path: file.path.clone(), tensor: name.to_owned(), why });
            }
        };
        Ok((file, info, dtype))
    }

    fn load(&self, name: &str, shape: &[usize], wanted: Option<DType>) -> Result<Tensor, WeightError> {
        let (file, info, stored) = self.find(name)?;
        let bad = |why: String| HubError::Tensor { path: file.path.clone(), tensor: name.to_owned(), why };
        if info.shape != shape {
            return Err(bad(format!("has shape {:?}, config.json asks for {shape:?}", info.shape)).into());
        }
        let (start, end) = info.data_offsets;
        let bytes = &file.map[file.data + start..file.data + end];
        let tensor = Tensor::from_raw_buffer(bytes, stored, shape, &Device::Cpu)?;
        if !super::is_finite(&tensor)? {
            return Err(bad("holds NaN or infinite values; fetch the model again".to_owned()).into());
        }
        Ok(tensor.to_dtype(wanted.unwrap_or(self.dtype))?)
    }
}

fn open_file(path: &Path) -> Result<File, HubError> {
    let io = |error: std::io::Error| match error.kind() {
        std::io::ErrorKind::NotFound => HubError::Missing { path: path.to_owned(), fix: "fetch the model's safetensors again".to_owned() },
        _ => HubError::Io { action: "open", path: path.to_owned(), error },
    };
    let file = std::fs::File::open(path).map_err(io)?;
    // SAFETY: read-only map of a model file that nobody changes while it is in use; offsets are checked by the safetensors reader below.
    let map = unsafe { Mmap::map(&file) }.map_err(io)?;
    let (header, metadata) = SafeTensors::read_metadata(&map)
        .map_err(|e| HubError::Damaged { path: path.to_owned(), why: format!("is truncated or altered ({e}); fetch it again") })?;
    Ok(File { path: path.to_owned(), map, data: 8 + header, metadata })
}

impl Weights for FolderWeights {
    fn tensor(&self, name: &str, shape: &[usize]) -> Result<Tensor, WeightError> {
        self.load(name, shape, Some(DType::F32))
    }

    fn linear(&self, prefix: &str, out_features: usize, in_features: usize, bias: bool) -> Result<Linear, WeightError> {
        let matrix = Matrix::Dense(self.load(&format!("{prefix}.weight"), &[out_features, in_features], None)?);
        let bias = if bias { Some(self.tensor(&format!("{prefix}.bias"), &[out_features])?) } else { None };
        Ok(Linear { matrix, bias })
    }

    fn table(&self, prefix: &str, vocab: usize, hidden: usize) -> Result<Table, WeightError> {
        Ok(Table::Dense(self.load(&format!("{prefix}.weight"), &[vocab, hidden], None)?))
    }
}
