//! Encoding with scalar codes: the nearest level of every row.
use crate::code::LinearCode;
use crate::layout::Column;

/// Encodes `x` (one value a padded row, a multiple of 8) with the nearest levels of a scalar code and writes the values that a decoder will
/// see into `out_values`. A value half way between two levels takes the upper one; NaN takes the level nearest to 0.
///
/// # Panics
/// If the code is not scalar ([`LinearCode::is_scalar`]), `x` is not a multiple of 8 long or `out_values` has another length.
pub fn encode_scalar(code: &LinearCode, x: &[f32], out_values: &mut [f32]) -> Column {
    assert!(code.is_scalar(), "only scalar codes are encoded row by row");
    assert!(x.len().is_multiple_of(8) && x.len() == out_values.len(), "lengths {} and {}", x.len(), out_values.len());
    let nearest = nearest_levels(&code.levels[0]);
    let half_steps = 2.0 / code.unit;
    let path_bits = u32::from(code.path_bits);
    let index_mask = (1u8 << path_bits) - 1;
    let rows_per_byte = code.positions();
    let mut raw = vec![0; if code.raw_bits == 0 { 0 } else { x.len() }];
    let mut path = Vec::with_capacity(x.len() / rows_per_byte);
    for (t, (x, out)) in x.chunks_exact(rows_per_byte).zip(out_values.chunks_exact_mut(rows_per_byte)).enumerate() {
        let mut byte = 0u32;
        for (i, (&x, out)) in x.iter().zip(out).enumerate() {
            let index = nearest[((x * half_steps).floor() as i32).clamp(-256, 255) as usize & 511];
            *out = code.unit * f32::from(code.levels[0][usize::from(index)]);
            byte = byte << path_bits | u32::from(index & index_mask);
            if code.raw_bits != 0 {
                raw[t * rows_per_byte + i] = index >> path_bits;
            }
        }
        path.push(byte as u8);
    }
    Column { path, raw }
}

/// Index of the nearest level for every half step: level midpoints are whole numbers of half steps, so the half step that holds a value
/// decides. Entry `h & 511` is for values in `h..h + 1` half steps, `h` from -256 to 255.
fn nearest_levels(levels: &[i8]) -> [u8; 512] {
    let mut order: Vec<usize> = (0..levels.len()).collect();
    order.sort_by_key(|&i| levels[i]);
    let mut table = [0; 512];
    let mut below = -256;
    for (n, &i) in order.iter().enumerate() {
        let above = order.get(n + 1).map_or(256, |&next| i32::from(levels[i]) + i32::from(levels[next]));
        for half_step in below..above {
            table[half_step as usize & 511] = i as u8;
        }
        below = below.max(above);
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::{Rng, SeedableRng};

    #[test]
    fn encodes_the_nearest_level() {
        let mut rng = rand_chacha::ChaCha8Rng::seed_from_u64(1);
        for bits in 1..=6 {
            let code = LinearCode::scalar(bits);
            let levels: Vec<f32> = code.levels[0].iter().map(|&l| code.unit * f32::from(l)).collect();
            let mut x: Vec<f32> = (0..800).map(|_| rng.random_range(-4.0f32..4.0)).collect();
            x.extend([f32::INFINITY, f32::NEG_INFINITY, f32::MAX, f32::MIN, 0.0, -0.0, 1e-40, f32::NAN]);
            let (mut values, mut decoded) = (vec![0.0; x.len()], vec![0.0; x.len()]);
            let column = encode_scalar(&code, &x, &mut values);
            code.decode(&column.path, &column.raw, &mut decoded);
            assert_eq!(values, decoded);
            for (x, value) in x.iter().zip(&values).filter(|(x, _)| !x.is_nan()) {
                let x = x.clamp(-10.0, 10.0);
                let best = levels.iter().map(|l| (l - x).abs()).fold(f32::INFINITY, f32::min);
                assert!((x - value).abs() <= best + 1e-6, "{bits} bits: {x} became {value}");
            }
        }
    }
}
