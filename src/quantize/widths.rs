//! Column widths by Lagrangian cost: water-filling with integer rates.
use super::column::{slot_of, WIDTHS};

/// Sizes that a matrix' widths are chosen under.
pub(crate) struct Budget {
    /// Rows as stored, padding included.
    pub(crate) padded_rows: usize,
    /// Rows.
    pub(crate) rows: usize,
    /// Columns of one width are stored in groups of this many.
    pub(crate) group: usize,
    /// Bits for codes, column scales and exact columns.
    pub(crate) bits: u64,
}

impl Budget {
    /// Stored bits of one column: codes and scale.
    fn column_bits(&self, width: u8) -> u64 {
        match width {
            0 => 0,
            16 => 16 * self.rows as u64,
            k => k as u64 * self.padded_rows as u64 + 16,
        }
    }

    /// Stored bits of all columns, padding columns included.
    pub(crate) fn size(&self, widths: &[u8]) -> u64 {
        let slots: Vec<usize> = widths.iter().map(|&width| slot_of(width)).collect();
        self.total(&slots)
    }

    fn total(&self, widths: &[usize]) -> u64 {
        let mut count = [0u64; WIDTHS.len()];
        widths.iter().for_each(|&w| count[w] += 1);
        let mut bits = 0;
        for (slot, &columns) in count.iter().enumerate() {
            let width = WIDTHS[slot];
            bits += columns * self.column_bits(width);
            if (1..=8).contains(&width) {
                let padding = columns.next_multiple_of(self.group as u64) - columns;
                bits += padding * width as u64 * self.padded_rows as u64;
            }
        }
        bits
    }
}

/// Widths that minimise `sum of distortion + lambda * bits` with the least lambda whose size fits the budget.
/// `distortion[j][i]`: summed squared error of column `j` at `WIDTHS[i]`. All zero if nothing else fits.
/// Returns lambda too.
pub(crate) fn assign(distortion: &[[f64; WIDTHS.len()]], budget: &Budget) -> (Vec<u8>, f64) {
    let largest = distortion.iter().map(|d| d[0]).fold(0.0, f64::max);
    let (mut low, mut high) = (largest * 1e-18, largest * 16.0);
    let mut best = vec![0; distortion.len()];
    if largest > 0.0 {
        for _ in 0..50 {
            let lambda = (low * high).sqrt();
            let widths = at(distortion, budget, lambda);
            if budget.total(&widths) <= budget.bits {
                high = lambda;
                best = widths;
            } else {
                low = lambda;
            }
        }
    }
    (best.into_iter().map(|slot| WIDTHS[slot]).collect(), high)
}

/// Slots of [`WIDTHS`] at one lambda, with counts of each width moved to whole groups where that costs less than padding.
fn at(distortion: &[[f64; WIDTHS.len()]], budget: &Budget, lambda: f64) -> Vec<usize> {
    let cost = |j: usize, slot: usize| distortion[j][slot] + lambda * budget.column_bits(WIDTHS[slot]) as f64;
    let mut slots: Vec<usize> = (0..distortion.len())
        .map(|j| (0..WIDTHS.len()).min_by(|&a, &b| cost(j, a).total_cmp(&cost(j, b))).expect("there are widths"))
        .collect();
    for slot in (1..WIDTHS.len() - 1).rev() {
        let members: Vec<usize> = (0..slots.len()).filter(|&j| slots[j] == slot).collect();
        let over = members.len() % budget.group;
        if over == 0 {
            continue;
        }
        let missing = budget.group - over;
        let cheapest = |candidates: Vec<usize>, to: usize, count: usize| {
            let mut moves: Vec<(f64, usize)> = candidates.into_iter().map(|j| (cost(j, to) - cost(j, slots[j]), j)).collect();
            moves.sort_by(|a, b| a.0.total_cmp(&b.0).then(a.1.cmp(&b.1)));
            (moves.len() >= count).then(|| {
                moves.truncate(count);
                (moves.iter().map(|m| m.0).sum::<f64>(), to, moves)
            })
        };
        let padding = lambda * (missing * WIDTHS[slot] as usize * budget.padded_rows) as f64;
        let down = cheapest(members, slot - 1, over);
        let up = cheapest((0..slots.len()).filter(|&j| slots[j] < slot).collect(), slot, missing);
        let change = [down, up].into_iter().flatten().min_by(|a, b| a.0.total_cmp(&b.0));
        if let Some((price, to, moves)) = change {
            if price < padding {
                moves.iter().for_each(|&(_, j)| slots[j] = to);
            }
        }
    }
    slots
}

#[cfg(test)]
mod tests {
    use super::*;

    fn gaussian(energies: &[f64]) -> Vec<[f64; WIDTHS.len()]> {
        energies.iter().map(|e| WIDTHS.map(|k| if k == 16 { 0.0 } else { e * 0.25f64.powi(k as i32) })).collect()
    }

    #[test]
    fn uses_the_budget_in_whole_groups_and_gives_more_bits_to_more_energy() {
        let energies: Vec<f64> = (0..576).map(|i| 1e3 * 0.98f64.powi(i)).collect();
        let budget = Budget { padded_rows: 576, rows: 576, group: 8, bits: 3 * 576 * 576 };
        let (widths, _) = assign(&gaussian(&energies), &budget);
        let used = budget.size(&widths);
        assert!(used <= budget.bits && used + 2 * 8 * 576 > budget.bits, "{used} of {}", budget.bits);
        assert!(widths.windows(2).all(|w| w[0] >= w[1]));
        for k in 1..=8 {
            assert_eq!(widths.iter().filter(|&&w| w == k).count() % 8, 0);
        }
    }

    #[test]
    fn nothing_fits_or_nothing_to_store_gives_zero_widths() {
        let budget = Budget { padded_rows: 64, rows: 64, group: 8, bits: 10 };
        assert_eq!(assign(&gaussian(&[1.0; 16]), &budget).0, vec![0; 16]);
        assert_eq!(assign(&gaussian(&[0.0; 16]), &Budget { bits: 1 << 20, ..budget }).0, vec![0; 16]);
    }
}
