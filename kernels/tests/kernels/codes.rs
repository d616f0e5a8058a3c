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

/// Columns of a Gaussian, scaled so that the whole sample has unit power.
fn gaussian_columns(columns: usize) -> Vec<Vec<f32>> {
    let mut rng = ChaCha8Rng::seed_from_u64(1000);
    let mut one = || (-2.0 * (1.0 - rng.random::<f64>()).ln()).sqrt() * (std::f64::consts::TAU * rng.random::<f64>()).cos();
    let x: Vec<f64> = (0..columns * ROWS).map(|_| one()).collect();
    let power = x.iter().map(|x| x * x).sum::<f64>() / x.len() as f64;
    x.chunks_exact(ROWS).map(|column| column.iter().map(|x| (x / power.sqrt()) as f32).collect()).collect()
}

/// Mean squared error of columns of this width, decoded from packed bytes.
fn stored_error(codes: &Arc<CodeSet>, width: u8, x: &[Vec<f32>]) -> f64 {
    let columns = x.len();
    let encoder = Encoder::new(codes.get(width).unwrap().clone()).unwrap();
    let encode = |scratch: &mut Scratch, x: &Vec<f32>| encoder.encode(x, &mut [0.0; ROWS], scratch);
    let encoded: Vec<_> = x.par_iter().map_init(Scratch::default, encode).collect();
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
    // What docs/codes.md promises for 1 to 4 bits.
    let promised = [
        (Effort::Fast, [0.272, 0.0710, 0.0183, 0.0047]),
        (Effort::Light, [0.276, 0.0734, 0.0190, 0.0050]),
        (Effort::Default, [0.268, 0.0690, 0.0178, 0.0046]),
        (Effort::Best, [0.263, 0.0670, 0.0172, 0.0044]),
    ];
    let x = gaussian_columns(512);
    for (effort, promised) in promised {
        let codes = Arc::new(CodeSet::trellis(effort));
        for (width, committed) in (1..).zip(effort.gaussian_error()) {
            let error = stored_error(&codes, width, &x);
            // A measurement's standard deviation is about 0.1 %; the highest widths hang on few values beyond the last level.
            let noise = if width < 5 { 0.004 } else { 0.015 };
            assert!((error / committed - 1.0).abs() < noise, "{effort:?}, {width} bits: {error}, committed {committed}");
            if let Some(promised) = promised.get(usize::from(width) - 1) {
                assert!(error <= *promised, "{effort:?}, {width} bits: {error}, promised {promised}");
            }
        }
    }
}
