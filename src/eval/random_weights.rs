//! A packed model of a published shape with random codes: real sizes in seconds, without a download.
use super::EvalError;
use crate::format::stored_size;
use crate::hub::Opened;
use candle_core::{Device, Tensor};
use half::f16;
use rand::RngCore;
use rand_chacha::rand_core::SeedableRng;
use rand_chacha::ChaCha8Rng;
use std::io;
use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};
use tokenizers::models::bpe::BPE;
use tokenizers::Tokenizer;
use ws_kernels::code::CodeSet;
use ws_kernels::layout::{Geometry, VECTOR};
use ws_kernels::packed::{Bytes, PackedMatrix, Parts};
use ws_kernels::pages::LargePages;
use ws_kernels::rows8::Rows8;
use ws_kernels::tables::Effort;
use ws_models::config::Config;
use ws_models::linear::{Linear, Matrix, Table};
use ws_models::weights::{WeightError, Weights};

/// Bytes that are drawn; longer codes repeat them.
const POOL: usize = 1 << 22;
/// Bytes of weights that stand together, as all weights of a file do.
const CHUNK: usize = 1 << 26;
/// Columns of one width in a row.
const GROUP: usize = 64;
/// Widths beside a matrix' mean width, group by group: a quarter below, a quarter above.
const SPREAD: [i64; 4] = [-1, 0, 1, 0];

/// A source of random packed matrices.
pub struct RandomWeights {
    codes: Arc<CodeSet>,
    pool: Vec<u8>,
    /// The newest bytes of weights, and how many of them have a matrix.
    chunk: Mutex<(Arc<LargePages>, usize)>,
    rate: f64,
}

impl RandomWeights {
    /// Matrices of `rate` stored bits a weight, 1 to 6, with the trellis codes of this effort.
    ///
    /// # Errors
    /// No memory.
    pub fn new(rate: f64, effort: Effort) -> io::Result<Self> {
        let mut pool = vec![0; POOL];
        ChaCha8Rng::seed_from_u64(0).fill_bytes(&mut pool);
        let chunk = Mutex::new((Arc::new(LargePages::zeroed(0)?), 0));
        Ok(Self { codes: Arc::new(CodeSet::trellis(effort)), pool, chunk, rate })
    }

    /// A model of this shape (`config_json`) cut to `layers` blocks.
    ///
    /// # Errors
    /// A shape that is not supported.
    pub fn open(self, config_json: &str, layers: Option<usize>) -> Result<Opened, EvalError> {
        let mut config = Config::from_json(config_json).map_err(|e| EvalError::Shape(e.to_string()))?;
        config.layers = layers.map_or(config.layers, |layers| layers.min(config.layers));
        let config_json = serde_json::from_str(config_json).map_err(|e| EvalError::Shape(e.to_string()))?;
        let tokenizer = Tokenizer::new(BPE::default());
        Ok(Opened { config, config_json, weights: Box::new(self), tokenizer, add_bos: false, chat_template: None, side_files: Vec::new() })
    }

    /// A random matrix, values of about `1 / sqrt(columns)`.
    ///
    /// # Errors
    /// An empty matrix, or one that is too wide.
    pub fn matrix(&self, rows: usize, columns: usize) -> Result<PackedMatrix, WeightError> {
        let widths = self.widths(rows, columns);
        let geometry = Geometry::new(rows, &widths).ok_or("the shape is not supported")?;
        let coded = widths.iter().filter(|&&w| w > 0).count();
        let (bytes, range) = self.bytes(geometry.bytes)?;
        let parts = Parts {
            out_features: rows,
            scale: 1.0 / (columns as f32).sqrt(),
            codes: bytes,
            range,
            col_scale: vec![f16::ONE; coded],
            row_scale: vec![f16::ONE; rows],
            exact: Vec::new(),
            exceptions: Vec::new(),
            widths,
        };
        Ok(PackedMatrix::new(parts, self.codes.clone())?)
    }

    /// The widest columns whose matrix has the rate, in whole groups as the quantizer chooses them.
    fn widths(&self, rows: usize, columns: usize) -> Vec<u8> {
        let bytes = (self.rate * (rows * columns) as f64 / 8.0) as u64;
        let groups = columns.div_ceil(GROUP);
        let sum = |sum: usize| -> Vec<u8> {
            let mean = |g: usize| (sum / groups + usize::from(g < sum % groups)) as i64;
            (0..columns).map(|j| j / GROUP).map(|g| (mean(g) + SPREAD[g % SPREAD.len()]).clamp(0, 6) as u8).collect()
        };
        let (mut fits, mut exceeds) = (0, 8 * groups);
        while exceeds - fits > 1 {
            let middle = (fits + exceeds) / 2;
            match stored_size(rows, &sum(middle), false, 0).is_some_and(|size| size <= bytes) {
                true => fits = middle,
                false => exceeds = middle,
            }
        }
        sum(fits)
    }

    /// `count` random bytes, the first at the start of a vector.
    fn bytes(&self, count: usize) -> io::Result<(Bytes, Range<usize>)> {
        let mut chunk = self.chunk.lock().unwrap_or_else(PoisonError::into_inner);
        if chunk.0.len() - chunk.1 < count {
            let mut pages = LargePages::zeroed(count.max(CHUNK))?;
            pages.chunks_mut(POOL).for_each(|part| part.copy_from_slice(&self.pool[..part.len()]));
            *chunk = (Arc::new(pages), 0);
        }
        let start = chunk.1;
        chunk.1 = (start + count).next_multiple_of(VECTOR).min(chunk.0.len());
        Ok((chunk.0.clone(), start..start + count))
    }
}

impl Weights for RandomWeights {
    fn tensor(&self, _: &str, shape: &[usize]) -> Result<Tensor, WeightError> {
        Ok(Tensor::ones(shape, candle_core::DType::F32, &Device::Cpu)?)
    }

    fn linear(&self, _: &str, out_features: usize, in_features: usize, bias: bool) -> Result<Linear, WeightError> {
        let bias = bias.then(|| Tensor::zeros(out_features, candle_core::DType::F32, &Device::Cpu)).transpose()?;
        Ok(Linear { matrix: Matrix::Packed(Arc::new(self.matrix(out_features, in_features)?)), bias })
    }

    fn table(&self, _: &str, vocab: usize, hidden: usize) -> Result<Table, WeightError> {
        let (values, range) = self.bytes(vocab * hidden)?;
        let scale = 1.0 / (128.0 * (hidden as f32).sqrt());
        Ok(Table::Rows8(Arc::new(Rows8::new(vocab, hidden, values, range, vec![f16::ONE; vocab], scale)?)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn matrices_have_the_rate() {
        for rate in [1.0, 2.0, 2.5, 3.0, 4.0, 5.5] {
            let matrix = RandomWeights::new(rate, Effort::Default).unwrap().matrix(1024, 2048).unwrap();
            let stored = 8.0 * crate::format::stored_bytes(matrix.parts()) as f64 / (1024.0 * 2048.0);
            assert!(stored <= rate && stored > rate - 0.1, "{stored} at {rate}");
        }
    }
}
