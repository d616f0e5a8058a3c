//! Random packed matrices and a decoder written from the definition of the code alone.
use half::f16;
use rand::seq::index::sample;
use rand::Rng;
use std::sync::Arc;
use ws_kernels::code::{antisymmetric, CodeSet, LinearCode};
use ws_kernels::layout::{pack, Column, Geometry};
use ws_kernels::packed::{Exception, PackedMatrix, Parts};

/// A valid code of `bits` bits with random matrices and levels.
pub fn random_code(rng: &mut impl Rng, bits: u8) -> LinearCode {
    let path_bits = if bits == 1 { 1 } else { rng.random_range(1..=2) };
    let raw_bits = bits - path_bits;
    let index_bits = rng.random_range(1..=8 - raw_bits);
    let positions = 8 / usize::from(path_bits);
    let mut masks = |zero: bool| -> Vec<Vec<u8>> {
        (0..positions).map(|_| (0..index_bits).map(|_| if zero { 0 } else { rng.random() }).collect()).collect()
    };
    let (a, c) = (masks(false), masks(bits == 4));
    let d = if path_bits == 1 { masks(false) } else { Vec::new() };
    if path_bits == 1 && rng.random() {
        // Kernels of their own read the newest 12 path bits.
        let mut taps: Vec<u16> = (0..index_bits).map(|_| rng.random()).collect();
        if (1..=4).contains(&raw_bits) && index_bits >= 4 && rng.random() {
            // And others those whose levels are sums of two tables, one of them without path bits but the row's own.
            taps[..usize::from(index_bits) - 4].iter_mut().for_each(|tap| *tap = rng.random_range(0..2));
            let mut table = |bits: u8| antisymmetric(&(0..1 << (bits - 1)).map(|_| rng.random_range(-31i8..=31)).collect::<Vec<_>>());
            let (first, second) = (table(4), table(raw_bits + index_bits - 4));
            let levels = second.iter().flat_map(|s| first.iter().map(move |f| f + s)).collect();
            return LinearCode::convolutional(1, raw_bits, 3, 12, &taps, levels, rng.random_range(0.005..0.02));
        }
        let half: Vec<i8> = (0..1 << (raw_bits + index_bits - 1)).map(|_| rng.random_range(-127..=127)).collect();
        return LinearCode::convolutional(1, raw_bits, 3, 12, &taps, antisymmetric(&half), rng.random_range(0.005..0.02));
    }
    let tables = if rng.random() { 1 } else { positions };
    let mut half = || (0..1 << (raw_bits + index_bits - 1)).map(|_| rng.random_range(-127..=127)).collect::<Vec<i8>>();
    let levels = (0..tables).map(|_| antisymmetric(&half())).collect();
    LinearCode { path_bits, raw_bits, index_bits, a, c, d, levels, unit: rng.random_range(0.005..0.02) }
}

/// Random codes of all widths.
pub fn random_codes(rng: &mut impl Rng) -> CodeSet {
    let mut set = CodeSet::default();
    for bits in 1..=6 {
        set.codes[usize::from(bits)] = Some(Arc::new(random_code(rng, bits)));
    }
    set
}

/// A packed matrix and the dense one that it stands for.
pub struct Sample {
    pub parts: Parts,
    pub codes: Arc<CodeSet>,
    pub dense: Vec<f64>,
}

impl Sample {
    pub fn matrix(&self) -> PackedMatrix {
        PackedMatrix::new(self.parts.clone(), self.codes.clone()).unwrap()
    }

    pub fn product(&self, x: &[f32]) -> Vec<f64> {
        self.dense.chunks_exact(x.len()).map(|row| row.iter().zip(x).map(|(v, x)| v * f64::from(*x)).sum()).collect()
    }
}

fn half(rng: &mut impl Rng, range: std::ops::Range<f32>) -> f16 {
    f16::from_f32(rng.random_range(range))
}

/// Random codes, scales, exact columns and exceptions for these widths.
pub fn sample_matrix(rng: &mut impl Rng, rows: usize, widths: &[u8], codes: CodeSet) -> Sample {
    let n = widths.len();
    let geometry = Geometry::new(rows, widths).unwrap();
    let padded = geometry.padded_rows();
    let scale = rng.random_range(0.01f32..0.1);
    let row_scale: Vec<f16> = (0..rows).map(|_| half(rng, 0.5..2.0)).collect();
    let mut dense = vec![0.0; rows * n];
    let (mut col_scale, mut columns) = (Vec::new(), Vec::new());
    for run in &geometry.runs {
        let mut packed = Vec::new();
        for &j in &run.columns {
            col_scale.push(half(rng, 0.3..1.5));
            let (column, values) = match codes.get(run.width) {
                None => {
                    let raw: Vec<u8> = (0..padded).map(|_| rng.random_range(1..=255)).collect();
                    let values = raw.iter().map(|&b| f64::from(b) - 128.0).collect();
                    (Column { path: Vec::new(), raw }, values)
                }
                Some(code) => {
                    let path: Vec<u8> = (0..padded * usize::from(code.path_bits) / 8).map(|_| rng.random()).collect();
                    let rows = if code.raw_bits == 0 { 0 } else { padded };
                    let raw: Vec<u8> = (0..rows).map(|_| rng.random_range(0..1u16 << code.raw_bits) as u8).collect();
                    let values = by_definition(code, &path, &raw, padded);
                    (Column { path, raw }, values)
                }
            };
            for r in 0..rows {
                let scales = f64::from(scale) * row_scale[r].to_f64() * col_scale[col_scale.len() - 1].to_f64();
                dense[r * n + j as usize] = scales * values[r];
            }
            packed.push(column);
        }
        columns.push(packed);
    }
    let mut exact = Vec::new();
    for j in (0..n).filter(|j| widths[*j] == 16) {
        for r in 0..rows {
            exact.push(half(rng, -3.0..3.0));
            dense[r * n + j] = f64::from(scale) * exact[exact.len() - 1].to_f64();
        }
    }
    let count = rng.random_range(0..=(rows * n / 50).min(40));
    let mut places = sample(rng, rows * n, count).into_vec();
    places.sort_unstable();
    let mut exceptions = Vec::new();
    for place in places {
        let e = Exception { row: (place / n) as u32, column: (place % n) as u16, value: half(rng, -20.0..20.0) };
        dense[place] += f64::from(scale) * e.value.to_f64();
        exceptions.push(e);
    }
    let bytes = pack(&geometry, &codes, &columns);
    // The matrix need not start where the bytes do, and nothing is aligned.
    let mut stored = vec![0xAA; 3];
    stored.extend(&bytes);
    stored.extend([0xAA; 5]);
    let parts = Parts {
        out_features: rows,
        widths: widths.to_vec(),
        scale,
        range: 3..3 + bytes.len(),
        codes: Arc::new(stored),
        col_scale,
        row_scale,
        exact,
        exceptions,
    };
    Sample { parts, codes: Arc::new(codes), dense }
}

/// Values of a column straight from the definition: every index bit is a parity over two or three path bytes.
pub fn by_definition(code: &LinearCode, path: &[u8], raw: &[u8], rows: usize) -> Vec<f64> {
    let per_byte = 8 / usize::from(code.path_bits);
    let value = |r: usize| {
        let (t, i) = (r / per_byte, r % per_byte);
        let [before, two_before] = [1, 2].map(|age| if t < age { 0 } else { path[t - age] });
        let mut index = 0usize;
        for j in 0..usize::from(code.index_bits) {
            let older = code.d.get(i).map_or(0, |masks| (two_before & masks[j]).count_ones());
            let parity = ((path[t] & code.a[i][j]).count_ones() + (before & code.c[i][j]).count_ones() + older) % 2;
            index = 2 * index + parity as usize;
        }
        let raw = if code.raw_bits == 0 { 0 } else { usize::from(raw[r]) };
        let table = if code.levels.len() == 1 { 0 } else { i };
        f64::from(code.unit) * f64::from(code.levels[table][(raw << code.index_bits) + index])
    };
    (0..rows).map(value).collect()
}

pub fn random_widths(rng: &mut impl Rng, n: usize) -> Vec<u8> {
    const WIDTHS: [u8; 9] = [0, 1, 2, 3, 4, 5, 6, 8, 16];
    match rng.random_range(0..3) {
        0 => vec![WIDTHS[rng.random_range(0..9)]; n],
        _ => (0..n).map(|_| WIDTHS[rng.random_range(0..9)]).collect(),
    }
}

/// Error of `y` as a product by `x` in the Euclidean norm, relative to the product that terms of these magnitudes and random signs have.
pub fn relative_error(y: &[f32], sample: &Sample, x: &[f32]) -> f64 {
    let square = |(v, x): (&f64, &f32)| (v * f64::from(*x)).powi(2);
    let expected: f64 = sample.dense.chunks_exact(x.len()).flat_map(|row| row.iter().zip(x)).map(square).sum();
    let error: f64 = y.iter().zip(sample.product(x)).map(|(y, e)| (f64::from(*y) - e).powi(2)).sum();
    if error == 0.0 {
        return 0.0;
    }
    (error / expected).sqrt()
}
