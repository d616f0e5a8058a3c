//! Packed matrices against a decoder written from the definition alone.
use crate::common::*;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use ws_kernels::code::CodeSet;
use ws_kernels::cpu::{Isa, IsaError};
use ws_kernels::packed::PackedMatrix;

fn vector(rng: &mut impl Rng, n: usize) -> Vec<f32> {
    (0..n).map(|_| rng.random_range(-2.0f32..2.0)).collect()
}

#[test]
fn decode_and_product_match_the_definition() {
    let mut rng = ChaCha8Rng::seed_from_u64(1);
    let mut errors = Vec::new();
    for case in 0..150 {
        let (rows, n) = (rng.random_range(1..=300), rng.random_range(1..=300));
        let widths = random_widths(&mut rng, n);
        let codes = if case % 3 == 0 { CodeSet::scalar() } else { random_codes(&mut rng) };
        let sample = sample_matrix(&mut rng, rows, &widths, codes);
        let matrix = sample.matrix();
        let mut dense = vec![0.0; rows * n];
        matrix.decode(0..rows, &mut dense);
        for (place, (v, e)) in dense.iter().zip(&sample.dense).enumerate() {
            assert!((f64::from(*v) - e).abs() <= 1e-6 * e.abs() + 1e-7, "case {case}, {rows} x {n}, at {place}: {v} for {e}");
        }
        let from = rng.random_range(0..rows);
        let to = rng.random_range(from..=rows);
        let mut part = vec![0.0; (to - from) * n];
        matrix.decode(from..to, &mut part);
        assert_eq!(part, dense[from * n..to * n]);
        for tokens in [1, 3, 20] {
            let x = vector(&mut rng, tokens * n);
            let mut portable: Option<Vec<f32>> = None;
            for isa in Isa::ALL.into_iter().filter(|isa| isa.is_available()) {
                let matrix = PackedMatrix::with_isa(sample.parts.clone(), sample.codes.clone(), isa).unwrap();
                let mut y = vec![f32::NAN; tokens * rows];
                matrix.multiply(&x, tokens, &mut y);
                for (x, y) in x.chunks_exact(n).zip(y.chunks_exact(rows)) {
                    let error = relative_error(y, &sample, x);
                    errors.push(error * error);
                    // By chance more for a few rows.
                    assert!(error < 3e-2, "case {case}, {}, {tokens} tokens, {rows} x {n}: {error}", isa.name());
                }
                // Integer sums are the same on every path, and everything after them too.
                assert_eq!(portable.get_or_insert_with(|| y.clone()), &y, "case {case}, {}, {tokens} tokens, {rows} x {n}", isa.name());
            }
        }
    }
    let mean = (errors.iter().sum::<f64>() / errors.len() as f64).sqrt();
    assert!(mean < 5e-3, "{mean}");
}

fn product(matrix: &PackedMatrix, x: &[f32], tokens: usize) -> Vec<f32> {
    let mut y = vec![f32::NAN; tokens * matrix.out_features()];
    matrix.multiply(x, tokens, &mut y);
    y
}

#[test]
fn results_do_not_depend_on_the_thread_count() {
    let mut rng = ChaCha8Rng::seed_from_u64(2);
    for rows in [1000, 1024, 576] {
        // Of width 2 a panel and a part, of width 3 two and a part.
        let widths: Vec<u8> = if rows == 1024 { (0..700).map(|j| [2, 3][j % 2]).collect() } else { random_widths(&mut rng, 700) };
        let codes = random_codes(&mut rng);
        let sample = sample_matrix(&mut rng, rows, &widths, codes);
        let matrix = sample.matrix();
        for tokens in [1, 4, 30] {
            let x = vector(&mut rng, tokens * 700);
            let results: Vec<Vec<f32>> = [1, 2, 5]
                .map(|threads| rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap())
                .iter()
                .map(|pool| pool.install(|| product(&matrix, &x, tokens)))
                .collect();
            assert_eq!(results[0], results[1]);
            assert_eq!(results[0], results[2]);
        }
    }
}

#[test]
fn a_token_has_the_same_product_alone_and_among_others() {
    // Widths of 6, 5 and 1 bits take several panels.
    let mut rng = ChaCha8Rng::seed_from_u64(6);
    let widths: Vec<u8> = (0..10_000).map(|j| [6, 6, 6, 5, 5, 1][j % 6]).collect();
    let codes = random_codes(&mut rng);
    let sample = sample_matrix(&mut rng, 272, &widths, codes);
    let matrix = sample.matrix();
    let x = vector(&mut rng, 2 * widths.len());
    let alone: Vec<f32> = x.chunks_exact(widths.len()).flat_map(|x| product(&matrix, x, 1)).collect();
    assert!(relative_error(&alone[..272], &sample, &x[..widths.len()]) < 1e-2);
    assert_eq!(product(&matrix, &x, 2), alone);
}

#[test]
fn one_huge_activation_does_not_drown_the_others() {
    let mut rng = ChaCha8Rng::seed_from_u64(4);
    let n = 4000;
    let codes = random_codes(&mut rng);
    let sample = sample_matrix(&mut rng, 64, &vec![3; n], codes);
    let matrix = sample.matrix();
    for huge in [1e2f32, 1e4, 1e6, 1e20] {
        let mut x = vector(&mut rng, n);
        x[77] = huge;
        let y = product(&matrix, &x, 1);
        assert!(relative_error(&y, &sample, &x) < 1e-2, "{huge}");
    }
}

#[test]
fn extreme_activations() {
    let mut rng = ChaCha8Rng::seed_from_u64(5);
    let n = 100;
    let sample = sample_matrix(&mut rng, 40, &vec![2; n], CodeSet::scalar());
    let matrix = sample.matrix();
    for tokens in [1, 20] {
        assert!(product(&matrix, &vec![0.0; tokens * n], tokens).iter().all(|y| *y == 0.0));
        assert!(product(&matrix, &vec![1e-40; tokens * n], tokens).iter().all(|y| y.abs() < 1e-30));
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            let mut x = vec![1.0; tokens * n];
            x[3] = bad;
            assert!(product(&matrix, &x, tokens)[..40].iter().all(|y| !y.is_finite()), "{bad}");
        }
    }
}

#[test]
fn an_unknown_instruction_set_is_an_error() {
    assert_eq!(Isa::choose(None), Ok(Isa::best()));
    assert_eq!(Isa::choose(Some("portable")), Ok(Isa::Portable));
    assert_eq!(Isa::choose(Some("AVX9")), Err(IsaError::Unknown("AVX9".into())));
    for isa in Isa::ALL {
        let expected = if isa.is_available() { Ok(isa) } else { Err(IsaError::Unavailable(isa)) };
        assert_eq!(Isa::choose(Some(isa.name())), expected);
    }
}

mod hostile {
    use super::*;
    use half::f16;
    use proptest::prelude::*;
    use std::ops::Range;
    use std::sync::Arc;
    use ws_kernels::code::{CodeError, LinearCode};
    use ws_kernels::packed::{Exception, PackError, Parts};

    fn sample(seed: u64) -> Sample {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        sample_matrix(&mut rng, 20, &[0, 1, 2, 3, 4, 5, 6, 8, 16, 3, 16], CodeSet::scalar())
    }

    fn refusal(change: impl FnOnce(&mut Parts, &mut CodeSet)) -> PackError {
        let Sample { mut parts, codes, .. } = sample(3);
        parts.exceptions = [(0, 5), (2, 0), (2, 10)].map(|(row, column)| Exception { row, column, value: f16::ONE }).to_vec();
        let mut codes = (*codes).clone();
        change(&mut parts, &mut codes);
        PackedMatrix::new(parts, Arc::new(codes)).err().expect("must be refused")
    }

    #[test]
    fn every_violation_has_its_name() {
        assert_eq!(refusal(|p, _| p.out_features = 0), PackError::Empty { rows: 0, columns: 11 });
        assert_eq!(refusal(|p, _| p.widths.clear()), PackError::Empty { rows: 20, columns: 0 });
        assert_eq!(refusal(|p, _| p.widths[4] = 7), PackError::Width { column: 4, width: 7 });
        assert_eq!(refusal(|p, _| p.out_features = usize::MAX), PackError::TooLarge { rows: usize::MAX, columns: 11 });
        assert_eq!(refusal(|p, _| p.widths = vec![0; 65537]), PackError::TooLarge { rows: 20, columns: 65537 });
        assert_eq!(refusal(|_, c| c.codes[5] = None), PackError::MissingCode(5));
        assert_eq!(refusal(|_, c| c.codes.swap(5, 6)), PackError::CodeWidth { width: 5, bits: 6 });
        let broken = |c: &mut CodeSet| c.codes[2] = Some(Arc::new(LinearCode { unit: -1.0, ..LinearCode::scalar(2) }));
        assert_eq!(refusal(|_, c| broken(c)), PackError::Code { width: 2, error: CodeError::Unit(-1.0) });
        assert!(matches!(refusal(|p, _| p.range.end += 6), PackError::Range { .. }));
        assert!(matches!(refusal(|p, _| p.range = Range { start: 8, end: 4 }), PackError::Range { start: 8, end: 4, .. }));
        assert!(matches!(refusal(|p, _| p.range.end -= 1), PackError::Length { tensor: "codes", .. }));
        assert!(matches!(refusal(|p, _| p.widths[0] = 1), PackError::Length { tensor: "col_scale", .. }));
        assert!(matches!(refusal(|p, _| p.out_features = 21), PackError::Length { tensor: "row_scale", .. }));
        assert!(matches!(refusal(|p, _| p.widths[0] = 16), PackError::Length { tensor: "exact", .. }));
        assert!(matches!(refusal(|p, _| p.scale = f32::INFINITY), PackError::NotFinite { tensor: "scale", .. }));
        assert!(matches!(refusal(|p, _| p.col_scale[3] = f16::NAN), PackError::NotFinite { tensor: "col_scale", index: 3, .. }));
        assert!(matches!(refusal(|p, _| p.row_scale[9] = f16::INFINITY), PackError::NotFinite { tensor: "row_scale", index: 9, .. }));
        assert!(matches!(refusal(|p, _| p.exact[1] = f16::NAN), PackError::NotFinite { tensor: "exact", index: 1, .. }));
        assert!(matches!(refusal(|p, _| p.exceptions[2].value = f16::NAN), PackError::NotFinite { tensor: "exceptions", index: 2, .. }));
        assert!(matches!(refusal(|p, _| p.exceptions[2].row = 20), PackError::ExceptionPlace { index: 2, row: 20, .. }));
        assert!(matches!(refusal(|p, _| p.exceptions[0].column = 11), PackError::ExceptionPlace { index: 0, column: 11, .. }));
        assert_eq!(refusal(|p, _| p.exceptions[2].column = 0), PackError::ExceptionOrder(2));
        assert_eq!(refusal(|p, _| p.exceptions.swap(0, 1)), PackError::ExceptionOrder(1));
    }

    proptest! {
        /// Whatever is accepted can be decoded and multiplied; anything else is an error, never a panic.
        #[test]
        fn altered_parts_never_panic(
            seed in 0u64..4,
            rows in prop_oneof![Just(20usize), 0usize..40, Just(usize::MAX / 16), Just(1usize << 32)],
            widths in proptest::collection::vec((0usize..11, 0u8..18), 0..3),
            range in proptest::option::of((0usize..9000, 0usize..9000)),
            drop in (0usize..3, 0usize..3, 0usize..3),
            exception in proptest::option::of((0u32..25, 0u16..14)),
        ) {
            let Sample { mut parts, codes, .. } = sample(seed);
            parts.out_features = rows;
            for (j, width) in widths {
                parts.widths[j] = width;
            }
            if let Some((start, end)) = range {
                parts.range = start..end;
            }
            parts.col_scale.truncate(parts.col_scale.len() - drop.0);
            parts.row_scale.truncate(parts.row_scale.len() - drop.1);
            parts.exact.truncate(parts.exact.len() - drop.2);
            if let Some((row, column)) = exception {
                parts.exceptions.push(Exception { row, column, value: f16::ONE });
            }
            if let Ok(matrix) = PackedMatrix::new(parts, codes) {
                let (rows, n) = (matrix.out_features(), matrix.in_features());
                matrix.decode(0..rows, &mut vec![0.0; rows * n]);
                let mut y = vec![f32::NAN; rows];
                matrix.multiply(&vec![1.0; n], 1, &mut y);
                prop_assert!(y.iter().all(|y| y.is_finite()));
            }
        }
    }
}
