//! Encoding with convolutional codes: the path through the trellis with the least squared error (Viterbi 1967; for sources, Marcellin and Fischer 1990,
//! "Trellis coded quantization of memoryless and Gauss-Markov sources").
//!
//! * `trellis`: states and steps, from the matrices of a code.
//! * `lanes`: vectors of path costs for each instruction set.
//! * `forward`: the search itself.
mod forward;
mod lanes;
mod trellis;

use crate::code::{CodeError, IndexTables, LinearCode};
use crate::cpu::{isa, Isa};
use crate::encode::encode_scalar;
use crate::layout::Column;
pub use forward::Scratch;
use forward::Tables;
use std::sync::Arc;

/// An encoder for columns of one code.
///
/// The search is exact but for the 16-bit costs of paths, which are the same on every instruction set, and so are the bits that come out.
pub struct Encoder {
    code: Arc<LinearCode>,
    index: IndexTables,
    /// Values of the levels, `[position][index][raw]`.
    levels: Vec<f32>,
    /// `None` for scalar codes.
    trellis: Option<Tables>,
    isa: Isa,
}

impl Encoder {
    /// An encoder for this code with the fastest instructions of this CPU, or those that `WSRUN_ISA` names.
    ///
    /// # Errors
    /// The code is not valid, or neither scalar nor convolutional: one path bit a row, and every row reading the bits before it in the same way, or as the fourth row after it does.
    pub fn new(code: Arc<LinearCode>) -> Result<Self, CodeError> {
        Self::with_isa(code, isa().unwrap_or_else(|_| Isa::best()))
    }

    /// An encoder with the instructions of this path.
    ///
    /// # Errors
    /// As for [`Encoder::new`].
    ///
    /// # Panics
    /// If this CPU cannot run the path.
    pub fn with_isa(code: Arc<LinearCode>, isa: Isa) -> Result<Self, CodeError> {
        assert!(isa.is_available(), "this CPU cannot run {}", isa.name());
        code.validate()?;
        let trellis = if code.is_scalar() { None } else { Some(Tables::new(&code)?) };
        let candidates = |index: u8| (0..1 << code.raw_bits).map(move |raw| (index, raw));
        let pairs = || (0..=u8::MAX >> (8 - code.index_bits)).flat_map(candidates);
        let level = |position: usize, (index, raw)| code.unit * f32::from(code.level(position, index, raw));
        let levels = (0..code.positions()).flat_map(|position| pairs().map(move |pair| level(position, pair))).collect();
        Ok(Encoder { index: IndexTables::new(&code), levels, trellis, isa, code })
    }

    /// The code.
    pub fn code(&self) -> &Arc<LinearCode> {
        &self.code
    }

    /// Path bits that a row reads; 0 for scalar codes. A row costs `2^window` branches.
    pub fn window(&self) -> u32 {
        self.trellis.as_ref().map_or(0, Tables::window)
    }

    /// Encodes `x` (one value of about unit variance a padded row, a multiple of 8; NaN for a row that does not matter, which padding should be) and
    /// writes the values that a decoder will see into `values`.
    ///
    /// # Panics
    /// If `x` is not a multiple of 8 long or `values` has another length.
    pub fn encode(&self, x: &[f32], values: &mut [f32], scratch: &mut Scratch) -> Column {
        let Some(tables) = &self.trellis else { return encode_scalar(&self.code, x, values) };
        assert!(x.len().is_multiple_of(8) && x.len() == values.len(), "lengths {} and {}", x.len(), values.len());
        let mut path = vec![0; x.len() / 8];
        // SAFETY: the path was available when the encoder was made.
        let state = unsafe { forward(self.isa, tables, x, scratch) };
        forward::trace_back(tables, state, scratch, &mut path);
        let raw = self.settle(x, &path, values);
        Column { path, raw }
    }

    /// The best raw values for a path, and the values that come out.
    fn settle(&self, x: &[f32], path: &[u8], values: &mut [f32]) -> Vec<u8> {
        let code = &*self.code;
        let positions = code.positions();
        let mut raws = vec![0; if code.raw_bits == 0 { 0 } else { x.len() }];
        let mut before = [0; 2];
        for (t, (x, values)) in x.chunks_exact(positions).zip(values.chunks_exact_mut(positions)).enumerate() {
            for (i, (x, value)) in x.iter().zip(values).enumerate() {
                let index = self.index.get(i, path[t], before);
                let candidates = &self.levels[(i << code.index_bits | usize::from(index)) << code.raw_bits..][..1 << code.raw_bits];
                // Distances are not negative, so that their bits are in their order; the last bits give way to the candidate's number.
                let key = |(raw, level): (u32, &f32)| (x - level).abs().to_bits() & !31 | raw;
                let raw = ((0..).zip(candidates).map(key).min().unwrap_or(0) & 31) as u8;
                *value = code.unit * f32::from(code.level(i, index, raw));
                if code.raw_bits > 0 {
                    raws[t * positions + i] = raw;
                }
            }
            before = [path[t], before[0]];
        }
        raws
    }
}

/// The forward pass with the instructions of a path.
///
/// # Safety
/// The CPU must have them.
unsafe fn forward(isa: Isa, tables: &Tables, x: &[f32], scratch: &mut Scratch) -> usize {
    #[cfg(target_arch = "x86_64")]
    {
        #[target_feature(enable = "avx2")]
        unsafe fn avx2(tables: &Tables, x: &[f32], scratch: &mut Scratch) -> usize {
            forward::forward::<lanes::Avx2>(tables, x, scratch)
        }
        #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
        unsafe fn avx512(tables: &Tables, x: &[f32], scratch: &mut Scratch) -> usize {
            forward::forward::<lanes::Avx512>(tables, x, scratch)
        }
        match isa {
            Isa::Portable => {}
            Isa::Avx2 | Isa::Avx2Gfni => return avx2(tables, x, scratch),
            Isa::Avx512 | Isa::Avx512Amx => return avx512(tables, x, scratch),
        }
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = isa;
    forward::forward::<lanes::Portable>(tables, x, scratch)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::code::{antisymmetric, CodeSet};
    use crate::tables::Effort;
    use rand::{Rng, SeedableRng};
    use rand_chacha::ChaCha8Rng;

    /// Least squared error over all paths, from the definition alone: dynamic programming over whole path bytes, a state being the last one or two.
    fn least_error(code: &LinearCode, x: &[f32]) -> f64 {
        let positions = code.positions();
        let bit = |mask: u8, byte: usize| (mask & byte as u8).count_ones() as usize % 2;
        let parity = |masks: &[u8], byte: usize| masks.iter().fold(0, |index, mask| 2 * index + bit(*mask, byte));
        let tables = |matrices: &[Vec<u8>]| -> Vec<Vec<usize>> {
            matrices.iter().map(|masks| (0..256).map(|byte| parity(masks, byte)).collect()).collect()
        };
        let (a, c, d) = (tables(&code.a), tables(&code.c), tables(&code.d));
        let states = if d.is_empty() { 256 } else { 1 << 16 };
        let mut costs: Vec<f64> = (0..states).map(|state| if state == 0 { 0.0 } else { f64::INFINITY }).collect();
        for x in x.chunks(positions) {
            let errors: Vec<Vec<f64>> = (0..x.len())
                .map(|i| {
                    let square = |level: &i8| (f64::from(x[i]) - f64::from(code.unit) * f64::from(*level)).powi(2);
                    let levels = &code.levels[if code.levels.len() == 1 { 0 } else { i }];
                    let subset = |index: usize| levels.iter().skip(index).step_by(1 << code.index_bits);
                    let best = |index| if x[i].is_nan() { 0.0 } else { subset(index).map(square).fold(f64::INFINITY, f64::min) };
                    (0..1 << code.index_bits).map(best).collect()
                })
                .collect();
            let mut next = vec![f64::INFINITY; states];
            for (state, cost) in costs.into_iter().enumerate().filter(|(_, cost)| cost.is_finite()) {
                let (previous, older) = (state % 256, state / 256);
                for byte in 0..256 {
                    let index = |i: usize| a[i][byte] ^ c[i][previous] ^ d.get(i).map_or(0, |d| d[older]);
                    let cost = cost + (0..x.len()).map(|i| errors[i][index(i)]).sum::<f64>();
                    let next = &mut next[(previous << 8 | byte) % states];
                    *next = next.min(cost);
                }
            }
            costs = next;
        }
        costs.into_iter().fold(f64::INFINITY, f64::min)
    }

    fn gaussian(rng: &mut ChaCha8Rng, count: usize) -> Vec<f32> {
        let mut one = || (-2.0 * (1.0 - rng.random::<f64>()).ln()).sqrt() * (std::f64::consts::TAU * rng.random::<f64>()).cos();
        (0..count).map(|_| one() as f32).collect()
    }

    /// A code of random taps over two or three path bytes with spread-out levels.
    fn random_code(rng: &mut ChaCha8Rng, raw_bits: u8, index_bits: u8, bytes: u32) -> LinearCode {
        let half: Vec<i8> = (0..1 << (raw_bits + index_bits - 1)).map(|_| rng.random_range(-127..=127)).collect();
        let levels = antisymmetric(&half);
        let taps: Vec<u16> = (0..index_bits).map(|_| rng.random()).collect();
        let window = rng.random_range(2..=if bytes == 2 { 9 } else { 16 });
        LinearCode::convolutional(1, raw_bits, bytes, window, &taps, levels, 0.02)
    }

    /// A code that reads nibbles, with taps for each row of them.
    fn by_nibbles(rng: &mut ChaCha8Rng, raw_bits: u8, index_bits: u8) -> LinearCode {
        let levels = random_code(rng, raw_bits, index_bits, 2).levels.remove(0);
        LinearCode::by_nibbles(raw_bits, &std::array::from_fn(|_| (0..index_bits).map(|_| rng.random()).collect()), levels, 0.02)
    }

    #[test]
    fn values_far_out_do_not_spoil_the_rest() {
        let mut rng = ChaCha8Rng::seed_from_u64(2);
        // What another code left in the memory must not matter.
        let mut used = Scratch::default();
        for effort in Effort::ALL {
            for width in 1..=6 {
                let code = CodeSet::trellis(effort).get(width).unwrap().clone();
                let plain = gaussian(&mut rng, 1 << 12);
                let mut x = plain.clone();
                for byte in (8..x.len()).step_by(64) {
                    // A few to each, some of them in a row.
                    for _ in 0..rng.random_range(1..=8) {
                        x[byte + rng.random_range(0..8)] = rng.random_range(-1f32..1.0) * 10f32.powi(rng.random_range(1..=30));
                    }
                }
                let near: Vec<bool> = x.iter().zip(&plain).map(|(x, p)| x == p).collect();
                let mut error = |x: &[f32]| {
                    let mut values = vec![0.0; x.len()];
                    let mut encode =
                        |isa: Isa, scratch: &mut Scratch| Encoder::with_isa(code.clone(), isa).unwrap().encode(x, &mut values, scratch);
                    let fresh = encode(Isa::Portable, &mut Scratch::default());
                    for isa in Isa::ALL.into_iter().filter(|isa| isa.is_available()) {
                        assert!(encode(isa, &mut used) == fresh, "{effort:?} {width} {isa:?}");
                    }
                    let errors = x.iter().zip(&values).zip(&near).filter(|(_, near)| **near).map(|((x, v), _)| f64::from(x - v).powi(2));
                    errors.sum::<f64>()
                };
                // A value far out takes the bits of its neighbours; the rest must not notice.
                let (without, with) = (error(&plain), error(&x));
                assert!(with < 1.6 * without, "{effort:?} {width}: {with} against {without}");
            }
        }
    }

    #[test]
    fn other_codes_are_refused() {
        let code = CodeSet::trellis(Effort::Default).get(2).unwrap().clone();
        let refused = |change: fn(&mut LinearCode)| {
            let mut code = LinearCode::clone(&code);
            change(&mut code);
            code.validate().unwrap();
            assert_eq!(Encoder::new(Arc::new(code)).err(), Some(CodeError::NotConvolutional));
        };
        refused(|code| code.a[2][0] ^= 1);
        refused(|code| code.c[5][1] ^= 8);
        refused(|code| code.d[0][0] ^= 8);
        refused(|code| code.levels = vec![code.levels[0].clone(); 8]);
        refused(|code| *code = LinearCode::convolutional(2, 0, 2, 8, &[3, 5, 9], antisymmetric(&[1, 2, 3, 4]), 0.5));
        // Two path bytes show nine bits to the first row only.
        refused(|code| *code = LinearCode::convolutional(1, 0, 2, 12, &[0xFFF, 5, 9], antisymmetric(&[1, 2, 3, 4]), 0.5));
    }

    #[test]
    fn a_path_is_found_whatever_a_column_begins_with() {
        // Most states cannot be reached yet, and values far out make those that can as dear.
        let mut rng = ChaCha8Rng::seed_from_u64(3);
        let mut scratch = Scratch::default();
        for width in 1..=6 {
            for effort in [Effort::Fast, Effort::Default] {
                let code = CodeSet::trellis(effort).get(width).unwrap().clone();
                let encoder = Encoder::new(code.clone()).unwrap();
                for _ in 0..1500 {
                    let power = rng.random_range(-2f32..4.0);
                    let x: Vec<f32> = gaussian(&mut rng, 32).iter().map(|x| x * 10f32.powf(rng.random_range(-1f32..1.0) * power)).collect();
                    let (mut values, mut decoded) = ([0.0; 32], [0.0; 32]);
                    let column = encoder.encode(&x, &mut values, &mut scratch);
                    code.decode(&column.path, &column.raw, &mut decoded);
                    assert_eq!(values, decoded);
                }
            }
        }
    }

    #[test]
    fn finds_the_least_error_the_same_way_on_every_instruction_set() {
        let mut rng = ChaCha8Rng::seed_from_u64(1);
        for case in 0..40 {
            let three = case % 5 == 0;
            let raw_bits = rng.random_range(0..=if three { 1 } else { 3 });
            let index_bits = rng.random_range(2..=8 - raw_bits);
            let code = match case % 5 {
                4 => by_nibbles(&mut rng, raw_bits, index_bits),
                _ => random_code(&mut rng, raw_bits, index_bits, if three { 3 } else { 2 }),
            };
            let code = Arc::new(code);
            // All pairs of bytes times all bytes take a while.
            let rows = rng.random_range(1..if three { 40 } else { 100usize });
            let mut x = gaussian(&mut rng, rows);
            let mut values = vec![0.0; rows.next_multiple_of(8)];
            x.resize(values.len(), f32::NAN);
            let mut scratch = Scratch::default();
            let column = Encoder::with_isa(code.clone(), Isa::Portable).unwrap().encode(&x, &mut values, &mut scratch);
            let mut decoded = vec![0.0; values.len()];
            code.decode(&column.path, &column.raw, &mut decoded);
            assert_eq!(decoded, values);
            let error: f64 = x[..rows].iter().zip(&values).map(|(x, v)| f64::from(x - v).powi(2)).sum();
            let least = least_error(&code, &x);
            assert!(error <= least * 1.002 + 1e-4, "case {case}: {error} against {least}: {code:?}");
            assert!(error >= least * 0.9999 - 1e-6, "case {case}: {error} below the least {least}");
            for isa in Isa::ALL.into_iter().filter(|isa| isa.is_available()) {
                let mut again = vec![0.0; values.len()];
                assert_eq!(
                    Encoder::with_isa(code.clone(), isa).unwrap().encode(&x, &mut again, &mut scratch),
                    column,
                    "case {case} {isa:?}"
                );
                assert_eq!(again, values);
            }
        }
    }
}
