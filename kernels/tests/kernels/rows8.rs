//! 8-bit rows against dense f64 products.
use half::f16;
use rand::{Rng, SeedableRng};
use std::sync::Arc;
use ws_kernels::packed::PackError;
use ws_kernels::rows8::Rows8;

#[test]
fn rows_and_products_match_the_table() {
    let mut rng = rand_chacha::ChaCha8Rng::seed_from_u64(2);
    for n in 0..30 {
        // The last one has too many columns for sums of 32 bits.
        let (rows, columns) = if n == 29 { (2, 140_001) } else { (rng.random_range(1..=300), rng.random_range(1..=300)) };
        let magnitude: Vec<f32> = (0..rows).map(|_| 10f32.powf(rng.random_range(-6.0..3.0))).collect();
        let dense: Vec<f32> = (0..rows * columns).map(|i| magnitude[i / columns] * rng.random_range(-1.0f32..1.0)).collect();
        let (q, scales, scale) = Rows8::quantize(&dense, columns);
        let bytes: Vec<u8> = q.iter().map(|q| *q as u8).collect();
        let len = bytes.len();
        let table = Rows8::new(rows, columns, Arc::new(bytes), 0..len, scales, scale).unwrap();
        let mut decoded = vec![0.0; rows * columns];
        for (r, out) in decoded.chunks_exact_mut(columns).enumerate() {
            table.row(r, out);
            let original = &dense[r * columns..][..columns];
            let largest = original.iter().fold(0.0f32, |m, v| m.max(v.abs()));
            assert!(original.iter().zip(&*out).all(|(a, b)| (a - b).abs() <= largest / 127.0 * 0.51));
        }
        for tokens in [1, 2, 40] {
            let x: Vec<f32> = (0..tokens * columns).map(|_| rng.random_range(-2.0f32..2.0)).collect();
            let mut y = vec![f32::NAN; tokens * rows];
            table.multiply(&x, tokens, &mut y);
            for (x, y) in x.chunks_exact(columns).zip(y.chunks_exact(rows)) {
                let norm = |v: &[f32]| v.iter().map(|v| f64::from(v * v)).sum::<f64>().sqrt();
                for (row, y) in decoded.chunks_exact(columns).zip(y) {
                    let expected: f64 = row.iter().zip(x).map(|(a, b)| f64::from(a * b)).sum();
                    // Activations have 14 bits.
                    assert!((f64::from(*y) - expected).abs() <= 2e-4 * norm(row) * norm(x));
                }
            }
        }
    }
}

#[test]
fn tiny_and_broken_activations() {
    let table = Rows8::new(1, 3, Arc::new(vec![1u8, 255, 2]), 0..3, vec![f16::ONE], 1.0).unwrap();
    let product = |x: [f32; 3]| {
        let mut y = [f32::INFINITY];
        table.multiply(&x, 1, &mut y);
        y[0]
    };
    assert!((product([1e-30, 2e-30, 3e-30]) - 5e-30).abs() < 1e-34);
    assert_eq!(product([1e-44, 0.0, 0.0]), 0.0);
    for broken in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        assert!(product([1.0, broken, 0.0]).is_nan());
    }
}

#[test]
fn zero_rows_stay_zero() {
    let (q, scales, scale) = Rows8::quantize(&[0.0; 12], 4);
    assert!(q.iter().all(|q| *q == 0) && scales.iter().all(|s| *s == f16::ZERO) && scale.is_finite());
    let table = Rows8::new(3, 4, Arc::new(vec![0u8; 12]), 0..12, scales, scale).unwrap();
    let mut y = vec![f32::NAN; 3];
    table.multiply(&[1.0; 4], 1, &mut y);
    assert_eq!(y, [0.0; 3]);
}

#[test]
fn broken_tables_are_refused() {
    let make = |rows, columns, range: std::ops::Range<usize>, scales: usize, scale| {
        Rows8::new(rows, columns, Arc::new(vec![1u8; 12]), range, vec![f16::ONE; scales], scale).err()
    };
    assert_eq!(make(3, 4, 0..12, 3, 1.0), None);
    assert!(matches!(make(0, 4, 0..0, 0, 1.0), Some(PackError::Empty { .. })));
    assert!(matches!(make(usize::MAX, 4, 0..12, 3, 1.0), Some(PackError::TooLarge { .. })));
    assert!(matches!(make(3, 4, 4..16, 3, 1.0), Some(PackError::Range { .. })));
    assert!(matches!(make(3, 4, 0..11, 3, 1.0), Some(PackError::Length { tensor: "q", .. })));
    assert!(matches!(make(3, 4, 0..12, 2, 1.0), Some(PackError::Length { tensor: "scales", .. })));
    assert!(matches!(make(3, 4, 0..12, 3, f32::NAN), Some(PackError::NotFinite { tensor: "scale", .. })));
}
