//! The tensors of one packed matrix: names, types, shapes, and so its stored size.
use super::header::Dtype;
use super::TensorViolation;
use half::f16;
use std::collections::BTreeMap;
use ws_kernels::layout::Geometry;
use ws_kernels::packed::{Parts, MAX_IN_FEATURES};

/// Stored size of one packed matrix: every byte of its tensors in the file.
#[derive(Debug, Clone, PartialEq, serde::Serialize)]
pub struct LayerSize {
    /// Hugging Face name without `.weight`.
    pub name: String,
    /// Out-features.
    pub rows: usize,
    /// In-features.
    pub columns: usize,
    /// Bytes of its tensors.
    pub bytes: u64,
    /// Stored bits a weight.
    pub stored_bits: f64,
    /// Columns of each width.
    pub histogram: BTreeMap<u8, usize>,
    /// Exceptions stored.
    pub exceptions: usize,
}

impl LayerSize {
    pub(super) fn new(name: &str, out_features: usize, widths: &[u8], exceptions: usize, bytes: u64) -> Self {
        let mut histogram = BTreeMap::new();
        widths.iter().for_each(|&w| *histogram.entry(w).or_default() += 1);
        let stored_bits = stored_bits(bytes, (out_features * widths.len()) as u64);
        Self { name: name.to_owned(), rows: out_features, columns: widths.len(), bytes, stored_bits, histogram, exceptions }
    }

    /// Weights of the matrix.
    pub fn weights(&self) -> u64 {
        (self.rows * self.columns) as u64
    }
}

/// Bits a weight; 0 for no weights.
pub(super) fn stored_bits(bytes: u64, weights: u64) -> f64 {
    8.0 * bytes as f64 / weights.max(1) as f64
}

/// Model order: the first number in a name by value, then the order in which a block computes, then the name.
pub(super) fn order(name: &str) -> (usize, usize, &str) {
    const LINEARS: [&str; 7] = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"];
    let number = name.split('.').find_map(|part| part.parse().ok()).unwrap_or(usize::MAX);
    (number, LINEARS.iter().position(|l| name.ends_with(l)).unwrap_or(LINEARS.len()), name)
}

/// End of a tensor's name, its type and its shape.
pub(super) type Spec = (&'static str, Dtype, Vec<usize>);

/// The tensors of a packed matrix of this shape, plan and number of exceptions, with row scales or without. `None` where sizes overflow, a side is 0
/// or a width is unknown.
pub(super) fn specs(out_features: usize, widths: &[u8], row_scales: bool, exceptions: usize) -> Option<Vec<Spec>> {
    if out_features == 0 || widths.is_empty() || widths.len() > MAX_IN_FEATURES {
        return None;
    }
    let geometry = Geometry::new(out_features, widths)?;
    let coded = geometry.runs.iter().map(|run| run.columns.len()).sum();
    let exact = widths.iter().filter(|&&w| w == 16).count();
    let mut specs = vec![
        ("codes", Dtype::U8, vec![geometry.bytes]),
        ("plan", Dtype::U8, vec![widths.len().div_ceil(2)]),
        ("scale", Dtype::F32, vec![1]),
        ("col_scale", Dtype::F16, vec![coded]),
    ];
    if row_scales {
        specs.push(("row_scale", Dtype::F16, vec![out_features]));
    }
    if exact > 0 {
        specs.push(("exact", Dtype::F16, vec![exact, out_features]));
    }
    if exceptions > 0 {
        let rows = if out_features > 1 << 16 { Dtype::U32 } else { Dtype::U16 };
        specs.extend([("exc_row", rows), ("exc_col", Dtype::U16), ("exc_val", Dtype::F16)].map(|(end, d)| (end, d, vec![exceptions])));
    }
    specs.iter().all(|(_, dtype, shape)| dtype.bytes(shape).is_some()).then_some(specs)
}

/// Bytes of the tensors of a packed matrix with these column widths, with row scales or without (all 1), and so many exceptions: what `stored bits`
/// counts. `None` where sizes overflow, a side is 0 or a width is not 0 to 6, 8 or 16.
pub fn stored_size(out_features: usize, widths: &[u8], row_scales: bool, exceptions: usize) -> Option<u64> {
    let specs = specs(out_features, widths, row_scales, exceptions)?;
    specs.iter().try_fold(0u64, |sum, (_, dtype, shape)| sum.checked_add(dtype.bytes(shape)? as u64))
}

/// [`stored_size`] of these parts; `u64::MAX` for parts that no file can hold.
pub fn stored_bytes(parts: &Parts) -> u64 {
    stored_size(parts.out_features, &parts.widths, has_row_scales(parts), parts.exceptions.len()).unwrap_or(u64::MAX)
}

/// Row scales that are all 1 are not stored.
pub(super) fn has_row_scales(parts: &Parts) -> bool {
    parts.row_scale.iter().any(|&scale| scale != f16::ONE)
}

/// The column plan: a nibble an in-feature, the first one low.
pub(super) fn plan(widths: &[u8]) -> Vec<u8> {
    let nibble = |width: u8| match width {
        8 => 7,
        16 => 8,
        k => k,
    };
    widths.chunks(2).map(|pair| nibble(pair[0]) | pair.get(1).map_or(0, |&w| nibble(w) << 4)).collect()
}

/// The widths of a plan of `ceil(columns / 2)` bytes.
pub(super) fn widths(plan: &[u8], columns: usize) -> Result<Vec<u8>, TensorViolation> {
    let nibbles = plan.iter().flat_map(|b| [b & 15, b >> 4]);
    if nibbles.clone().skip(columns).any(|n| n != 0) {
        return Err(TensorViolation::PlanPadding);
    }
    let width = |(column, nibble)| match nibble {
        0..=6 => Ok(nibble),
        7 => Ok(8),
        8 => Ok(16),
        code => Err(TensorViolation::WidthCode { column, code }),
    };
    nibbles.take(columns).enumerate().map(width).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plans_round_trip_and_unknown_nibbles_are_named() {
        let all = [0, 1, 2, 3, 4, 5, 6, 8, 16];
        assert_eq!(plan(&all), [0x10, 0x32, 0x54, 0x76, 0x08]);
        assert_eq!(widths(&plan(&all), 9).unwrap(), all);
        assert_eq!(widths(&[0x90], 2), Err(TensorViolation::WidthCode { column: 1, code: 9 }));
        assert_eq!(widths(&[0x10], 1), Err(TensorViolation::PlanPadding));
    }

    #[test]
    fn size_is_the_sum_of_its_tensors() {
        // 100 rows have one lane of 104; 3 columns of 3 bits make one padded group of 64.
        let codes = 3 * 64 * 13;
        assert_eq!(stored_size(100, &[3, 3, 3], true, 0), Some(codes + 2 + 4 + 2 * (3 + 100)));
        assert_eq!(stored_size(100, &[3, 16, 3, 0, 3], true, 7), Some(codes + 3 + 4 + 2 * (3 + 100 + 100) + 7 * 6));
        assert_eq!(stored_size(70_000, &[0], true, 1).unwrap() - stored_size(70_000, &[0], true, 0).unwrap(), 8);
        assert_eq!(stored_size(100, &[3, 3, 3], false, 0), Some(codes + 2 + 4 + 2 * 3));
        assert_eq!(stored_size(100, &[7], true, 0), None);
        assert_eq!(stored_size(0, &[1], true, 0), None);
        assert_eq!(stored_size(100, &[], true, 0), None);
        assert_eq!(stored_size(usize::MAX, &[1], true, 0), None);
        assert_eq!(stored_size(100, &[1], true, usize::MAX), None);
    }

    #[test]
    fn layers_are_in_model_order() {
        let mut names = ["lm_head", "model.layers.10.mlp.up_proj", "model.layers.2.mlp.down_proj", "model.layers.2.self_attn.o_proj"];
        names.sort_by_key(|name| order(name));
        assert_eq!(names, ["model.layers.2.self_attn.o_proj", "model.layers.2.mlp.down_proj", "model.layers.10.mlp.up_proj", "lm_head"]);
    }
}
