//! Packed matrices and 8-bit tables against dense ones with the same values.
mod common;
use candle_core::{DType, Device, Tensor};
use common::{config, Tensors};
use half::f16;
use std::sync::Arc;
use ws_kernels::code::CodeSet;
use ws_kernels::encode::encode_scalar;
use ws_kernels::layout::{pack, Column, Geometry};
use ws_kernels::packed::{Exception, PackedMatrix, Parts};
use ws_kernels::rows8::Rows8;
use ws_models::linear::{Linear, Matrix, Table};
use ws_models::model::{KvCache, KvType, Model};
use ws_models::weights::{WeightError, Weights};

/// Packs a dense matrix with columns of all widths and an exception in every eighth row.
fn packed(w: &Tensor) -> PackedMatrix {
    let (out_features, in_features) = w.dims2().unwrap();
    let columns = w.t().unwrap().to_dtype(DType::F32).unwrap().to_vec2::<f32>().unwrap();
    let widths: Vec<u8> = (0..in_features).map(|j| [6, 5, 8, 6, 16, 4, 6, 0, 5, 3, 6, 2, 6, 1][j % 14]).collect();
    let (codes, geometry) = (CodeSet::scalar(), Geometry::new(out_features, &widths).unwrap());
    let mut col_scale = Vec::new();
    let mut encode = |width: u8, column: &[f32]| {
        let peak = column.iter().fold(0f32, |max, x| max.max(x.abs()));
        let rms = (column.iter().map(|x| x * x).sum::<f32>() / column.len() as f32).sqrt();
        let scale = f16::from_f32(if width == 8 { peak / 127.0 } else { rms });
        col_scale.push(scale);
        let mut rows: Vec<f32> = column.iter().map(|x| x / scale.to_f32()).collect();
        rows.resize(geometry.padded_rows(), 0.0);
        match codes.get(width) {
            Some(code) => encode_scalar(code, &rows, &mut vec![0.0; rows.len()]),
            None => Column { path: Vec::new(), raw: rows.iter().map(|x| (x.round().clamp(-127.0, 127.0) as i32 + 128) as u8).collect() },
        }
    };
    let encoded: Vec<Vec<Column>> =
        geometry.runs.iter().map(|run| run.columns.iter().map(|&j| encode(run.width, &columns[j as usize])).collect()).collect();
    let bytes = pack(&geometry, &codes, &encoded);
    let exact = columns.iter().zip(&widths).filter(|(_, &width)| width == 16).flat_map(|(column, _)| column);
    let parts = Parts {
        out_features,
        scale: 1.0,
        range: 0..bytes.len(),
        codes: Arc::new(bytes),
        col_scale,
        row_scale: vec![f16::ONE; out_features],
        exact: exact.map(|&x| f16::from_f32(x)).collect(),
        exceptions: (0..out_features as u32)
            .step_by(8)
            .map(|row| Exception { row, column: (row % in_features as u32) as u16, value: f16::from_f32(0.75) })
            .collect(),
        widths,
    };
    PackedMatrix::new(parts, Arc::new(codes)).unwrap()
}

fn decoded(w: &PackedMatrix) -> Tensor {
    let mut dense = vec![0f32; w.out_features() * w.in_features()];
    w.decode(0..w.out_features(), &mut dense);
    Tensor::from_vec(dense, (w.out_features(), w.in_features()), &Device::Cpu).unwrap()
}

/// A golden model with quantized weights, packed or dense. The embedding becomes 8-bit rows, an untied head a packed matrix.
struct Quantized {
    source: Tensors,
    dense: bool,
}

impl Weights for Quantized {
    fn tensor(&self, name: &str, shape: &[usize]) -> Result<Tensor, WeightError> {
        self.source.tensor(name, shape)
    }
    fn linear(&self, prefix: &str, out_features: usize, in_features: usize, bias: bool) -> Result<Linear, WeightError> {
        let Linear { matrix: Matrix::Dense(w), bias } = self.source.linear(prefix, out_features, in_features, bias)? else {
            unreachable!()
        };
        let packed = packed(&w);
        let matrix = if self.dense { Matrix::Dense(decoded(&packed)) } else { Matrix::Packed(Arc::new(packed)) };
        Ok(Linear { matrix, bias })
    }
    fn table(&self, prefix: &str, vocab: usize, hidden: usize) -> Result<Table, WeightError> {
        let Table::Dense(w) = self.source.table(prefix, vocab, hidden)? else { unreachable!() };
        if prefix == "lm_head" {
            let packed = packed(&w);
            return Ok(if self.dense { Table::Dense(decoded(&packed)) } else { Table::Packed(Arc::new(packed)) });
        }
        let (q, scales, scale) = Rows8::quantize(&w.flatten_all()?.to_vec1::<f32>()?, hidden);
        let bytes: Vec<u8> = q.into_iter().map(|q| q as u8).collect();
        let rows = Rows8::new(vocab, hidden, Arc::new(bytes.clone()), 0..bytes.len(), scales, scale)?;
        if !self.dense {
            return Ok(Table::Rows8(Arc::new(rows)));
        }
        let mut dense = vec![0f32; vocab * hidden];
        for (r, row) in dense.chunks_exact_mut(hidden).enumerate() {
            rows.row(r, row);
        }
        Ok(Table::Dense(Tensor::from_vec(dense, (vocab, hidden), &Device::Cpu)?))
    }
}

fn relative(a: &Tensor, b: &Tensor) -> f32 {
    let norm = |x: &Tensor| x.sqr().unwrap().sum_all().unwrap().to_scalar::<f32>().unwrap().sqrt();
    norm(&(a - b).unwrap()) / norm(b)
}

fn inputs(shape: &[usize]) -> Tensor {
    let n: usize = shape.iter().product();
    Tensor::from_vec((0..n).map(|i| ((i * 37) % 101) as f32 * 0.02 - 1.0).collect::<Vec<_>>(), shape, &Device::Cpu).unwrap()
}

#[test]
fn products_with_any_input_layout() {
    let w = inputs(&[70, 56]);
    let packed = packed(&w);
    let dense = Linear { matrix: Matrix::Dense(decoded(&packed)), bias: Some(inputs(&[70])) };
    let packed = Linear { matrix: Matrix::Packed(Arc::new(packed)), bias: Some(inputs(&[70])) };
    let flat = inputs(&[3, 20, 56]);
    let turned = inputs(&[3, 56, 20]).transpose(1, 2).unwrap();
    let narrow = inputs(&[3, 9, 60]).narrow(2, 4, 56).unwrap();
    let one = inputs(&[56]);
    for x in [flat, turned, narrow, one] {
        let (a, b) = (packed.forward(&x).unwrap(), dense.forward(&x).unwrap());
        let mut shape = x.dims().to_vec();
        *shape.last_mut().unwrap() = 70;
        assert_eq!(a.dims(), shape);
        // Packed products have activations of 8 bits.
        assert!(relative(&a, &b) < 1e-2, "{:?}: {}", x.dims(), relative(&a, &b));
    }
}

#[test]
fn wrong_inputs_are_errors() {
    let matrix = Arc::new(packed(&inputs(&[16, 56])));
    let w = inputs(&[16, 56]);
    for matrix in [Matrix::Packed(matrix.clone()), Matrix::Dense(w)] {
        let linear = Linear { matrix, bias: None };
        assert!(linear.forward(&inputs(&[2, 55])).unwrap_err().to_string().contains("56 in-features"));
        assert!(linear.forward(&inputs(&[2, 56]).to_dtype(DType::F64).unwrap()).is_err());
    }
    let ids = Tensor::zeros((1, 1), DType::U32, &Device::Cpu).unwrap();
    assert!(Table::Packed(matrix).lookup(&ids).unwrap_err().to_string().contains("embedding table"));
}

#[test]
fn packed_models_match_their_dense_copies() {
    for name in ["llama-bias", "qwen2-tied", "qwen3"] {
        let model = |dense| {
            let source = Tensors::golden(name, Some(DType::F32));
            Model::load(config(name), &Quantized { source, dense }).unwrap()
        };
        let (packed, dense) = (model(false), model(true));
        let ids = Tensor::from_vec((0..60u32).map(|i| i * 29 % 128).collect::<Vec<_>>(), (2, 30), &Device::Cpu).unwrap();
        let expected = dense.forward_all(&ids).unwrap();
        let error = relative(&packed.forward_all(&ids).unwrap(), &expected);
        assert!(error < 2e-2, "{name}: {error}");

        let mut cache = KvCache::new(&packed.config, KvType::F32, 2, 30).unwrap();
        packed.forward(&ids.narrow(1, 0, 20).unwrap(), &mut cache).unwrap();
        for i in 20..30 {
            let logits = packed.forward(&ids.narrow(1, i, 1).unwrap(), &mut cache).unwrap();
            let error = relative(&logits, &expected.get_on_dim(1, i).unwrap());
            assert!(error < 2e-2, "{name} step {i}: {error}");
        }
    }
}
