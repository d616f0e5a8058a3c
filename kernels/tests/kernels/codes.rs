//! The committed codes reach their figures from stored bytes.
use half::f16;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use rayon::prelude::*;
use std::sync::Arc;
use ws_kernels::code::CodeSet;
use ws_kernels::layout::{pack, Geometry};
use ws_kernels::packed::{PackedMatrix, Parts};
use ws_kernels::tables::Effort;
use ws_kernels::viterbi::{Encoder, Scratch};

const ROWS: usize = 2048;

/// Mean squared error of `columns` columns of a unit Gaussian of this width, decoded from packed bytes.
fn stored_error(codes: &Arc<CodeSet>, width: u8, columns: usize) -> f64 {
    let encoder = Encoder::new(codes.get(width).unwrap().clone()).unwrap();
    let encoded: Vec<_> = (0..columns)
        .into_par_iter()
        .map_init(Scratch::default, |scratch, column| {
            let mut rng = ChaCha8Rng::seed_from_u64(1000 + column as u64);
            let mut one = || (-2.0 * (1.0 - rng.random::<f64>()).ln()).sqrt() * (std::f64::consts::TAU * rng.random::<f64>()).cos();
            let x: Vec<f32> = (0..ROWS).map(|_| one() as f32).collect();
            let mut values = vec![0.0; ROWS];
            (encoder.encode(&x, &mut values, scratch), x)
        })
        .collect();
    let (encoded, x): (Vec<_>, Vec<_>) = encoded.into_iter().unzip();
    let widths = vec![width; columns];
    let geometry = Geometry::new(ROWS, &widths).unwrap();
    let stored = pack(&geometry, codes, &[encoded]);
    let parts = Parts {
        out_features: ROWS,
        widths,
        scale: 1.0,
        range: 0..stored.len(),
        codes: Arc::new(stored),
        col_scale: vec![f16::ONE; columns],
        row_scale: vec![f16::ONE; ROWS],
        exact: Vec::new(),
        exceptions: Vec::new(),
    };
    let matrix = PackedMatrix::new(parts, codes.clone()).unwrap();
    let mut decoded = vec![0.0; ROWS * columns];
    matrix.decode(0..ROWS, &mut decoded);
    let square = |(i, value): (usize, &f32)| f64::from(x[i % columns][i / columns] - value).powi(2);
    let error: f64 = decoded.iter().enumerate().map(square).sum();
    error / decoded.len() as f64
}

#[test]
fn codes_reach_their_committed_figures() {
    for effort in Effort::ALL {
        let codes = Arc::new(CodeSet::trellis(effort));
        for (width, committed) in (1..).zip(effort.gaussian_error()) {
            let error = stored_error(&codes, width, 512);
            // A measurement's standard deviation is about 0.2 %; the highest widths hang on few values beyond the last level.
            let noise = if width < 5 { 0.006 } else { 0.02 };
            assert!((error / committed - 1.0).abs() < noise, "{effort:?}, {width} bits: {error}, committed {committed}");
        }
    }
}
