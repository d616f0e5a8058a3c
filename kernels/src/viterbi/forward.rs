//! The forward pass of the Viterbi search: the cheapest path to every state, one definition over vectors of any instruction set.
//!
//! Path costs are 16-bit numbers. What a row's indices cost is counted from its cheapest one and capped, so that the costs of all states lie within
//! `memory` caps of each other; the cheapest state is brought to 0 after every path byte. So sums need no saturation.
use super::lanes::Lanes;
use super::trellis::{taps, Phase, Trellis, LANES, LANE_BITS};
use crate::code::{CodeError, LinearCode};

/// The cap of a row's costs, in mean costs of a random index of a Gaussian row. Mean squared errors of 2^19 Gaussian rows with a cap of 4, 8, 16 (default
/// codes): 3 bits 0.017513, 0.017464, 0.017462; 4 bits 0.0045935, 0.0045935, 0.0045918; 1 bit the same within 0.002 %.
const CAP: f32 = 16.0;

/// Inputs are clamped to so many level steps.
const FARTHEST: f32 = 1000.0;

/// Inputs and levels are compared in fractions of a level step, as unsigned numbers around [`MIDDLE`].
const FRACTIONS: f32 = 32.0;
const MIDDLE: f32 = 32768.0;

/// A 64-byte line: costs are kept aligned.
#[derive(Debug, Clone, Copy)]
#[repr(C, align(64))]
struct Line([u16; LANES]);

/// Working memory of an encoder; grows to the longest column, free to be used with any code.
#[derive(Debug, Clone, Default)]
pub struct Scratch {
    costs: Vec<Line>,
    branches: Vec<Line>,
    entries: Vec<u16>,
    squares: Vec<f32>,
    /// One bit a state and row, by address: the oldest bit of the cheaper predecessor.
    decisions: Vec<u32>,
}

/// What the search needs of a code.
pub(super) struct Tables {
    trellis: Trellis,
    unit: f32,
    /// Most that an index costs in a row.
    cap: u16,
    /// Cost units a squared level step.
    gain: f32,
    /// Of each phase: levels as [`place`] gives them, `[raw][entry]`; entries are `[representative][lane]`, the index being
    /// `representative ^ lanes[lane]`.
    levels: Vec<Vec<u16>>,
}

impl Tables {
    pub(super) fn new(code: &LinearCode) -> Result<Self, CodeError> {
        let trellis = Trellis::new(taps(code).ok_or(CodeError::NotConvolutional)?, code.index_bits);
        // All states are reached from the first one within `memory` rows, and the search begins with the others as far behind.
        let cap = (u32::from(u16::MAX - 1) / (trellis.memory + trellis.memory.max(8)) as u32) as u16;
        let levels = |phase: &Phase| {
            let entries = phase.representatives.iter().flat_map(|r| phase.lanes.map(|lane| usize::from(r ^ lane)));
            let place_of = |raw: usize, index: usize| place(f32::from(code.levels[0][raw << code.index_bits | index]));
            (0..1 << code.raw_bits).flat_map(|raw| entries.clone().map(move |index| place_of(raw, index))).collect()
        };
        let levels = trellis.phases.iter().map(levels).collect();
        Ok(Tables { levels, unit: code.unit, cap, gain: f32::from(cap) / (CAP * mean_cost(code)), trellis })
    }

    /// Path bits that a row reads.
    pub(super) fn window(&self) -> u32 {
        self.trellis.window
    }

    fn states(&self) -> usize {
        self.trellis.vectors() * LANES
    }
}

/// Mean over Gaussian rows of what a random index costs more than the best one, in squared level steps.
fn mean_cost(code: &LinearCode) -> f32 {
    let indices = 1usize << code.index_bits;
    let sigma = 1.0 / code.unit;
    let (mut sum, mut mass) = (0.0, 0.0);
    for i in -30..=30 {
        let x = i as f32 / 10.0;
        let weight = (-0.5 * x * x).exp();
        let best = |index: usize| {
            let square = |level: &i8| (x * sigma - f32::from(*level)).powi(2);
            code.levels[0].iter().skip(index).step_by(indices).map(square).fold(f32::INFINITY, f32::min)
        };
        let costs: Vec<f32> = (0..indices).map(best).collect();
        let least = costs.iter().copied().fold(f32::INFINITY, f32::min);
        sum += weight * costs.iter().map(|c| c - least).sum::<f32>() / indices as f32;
        mass += weight;
    }
    (sum / mass).max(1e-3)
}

/// Where a value in level steps stands among the numbers that are compared.
#[inline(always)]
fn place(steps: f32) -> u16 {
    (steps.clamp(-FARTHEST, FARTHEST) * FRACTIONS + MIDDLE).round() as u16
}

/// The lesser of two numbers as one instruction, which [`f32::min`] with its care for NaN is not.
#[inline(always)]
fn lesser(a: f32, b: f32) -> f32 {
    if a < b {
        a
    } else {
        b
    }
}

/// Costs of one row's entries; the cheapest is 0. `y`: where the row's value stands.
#[inline(always)]
fn entry_costs(tables: &Tables, levels: &[u16], y: u16, squares: &mut [f32], costs: &mut [u16]) {
    let step = costs.len() / 16;
    // Whole chunks: bounds known to the compiler make these loops vector code without masks.
    let squares = squares.as_chunks_mut::<16>().0;
    let levels = levels.as_chunks::<16>().0;
    let mut least = [f32::INFINITY; 16];
    for (chunk, squares) in squares.iter_mut().enumerate() {
        let (mut nearest, mut at) = ([u16::MAX; 16], chunk);
        while at < levels.len() {
            nearest = std::array::from_fn(|i| nearest[i].min(levels[at][i].abs_diff(y)));
            at += step;
        }
        *squares = std::array::from_fn(|i| {
            let distance = f32::from(nearest[i]) * (1.0 / FRACTIONS);
            distance * distance
        });
        least = std::array::from_fn(|i| lesser(squares[i], least[i]));
    }
    let least: [f32; 8] = std::array::from_fn(|i| lesser(least[i], least[i + 8]));
    let least: [f32; 4] = std::array::from_fn(|i| lesser(least[i], least[i + 4]));
    let least = lesser(lesser(least[0], least[2]), lesser(least[1], least[3]));
    let cap = f32::from(tables.cap);
    for (costs, squares) in costs.as_chunks_mut::<16>().0.iter_mut().zip(squares) {
        *costs = squares.map(|square| {
            let scaled = lesser((square - least) * tables.gain + 0.5, cap);
            // SAFETY: 0.5 to the cap.
            unsafe { scaled.to_int_unchecked::<i32>() as u16 }
        });
    }
}

/// Room for `count` vectors.
fn vectors(lines: &mut Vec<Line>, count: usize) -> *mut u16 {
    if lines.len() < count {
        lines.resize(count, Line([0; LANES]));
    }
    lines.as_mut_ptr().cast()
}

/// Runs the trellis over all rows of a column, from the state of zero bits. Returns the address of the cheapest last state; `scratch` then holds the decisions.
///
/// # Safety
/// The CPU must have the instruction set of `V`.
#[inline(always)]
pub(super) unsafe fn forward<V: Lanes>(tables: &Tables, x: &[f32], scratch: &mut Scratch) -> usize {
    let trellis = &tables.trellis;
    let most_entries = trellis.phases.iter().map(Phase::entries).max().unwrap_or(0);
    scratch.squares.resize(most_entries.max(scratch.squares.len()), 0.0);
    scratch.entries.resize((8 * most_entries).max(scratch.entries.len()), 0);
    scratch.decisions.resize(scratch.decisions.len().max(x.len() * trellis.vectors()), 0);
    let branches = vectors(&mut scratch.branches, trellis.most_branches());
    let costs = vectors(&mut scratch.costs, trellis.vectors());
    // SAFETY: there is room for the states.
    let start = std::slice::from_raw_parts_mut(costs, tables.states());
    start.fill(tables.cap * trellis.memory as u16 + 1);
    start[0] = 0;
    let mut decisions = scratch.decisions.as_mut_ptr();
    let mut row = 0;
    for x in x.as_chunks::<8>().0 {
        // Costs of eight rows before their steps: each is a chain of operations that wait for each other, and so they overlap.
        let places = x.map(|x| place(x / tables.unit));
        let mut ahead = row;
        for ((x, y), entries) in x.iter().zip(places).zip(scratch.entries.chunks_exact_mut(most_entries)) {
            let entries = &mut entries[..trellis.phases[ahead].entries()];
            if x.is_nan() {
                // A row without a value costs nothing.
                entries.fill(0);
            } else {
                entry_costs(tables, &tables.levels[ahead], y, &mut scratch.squares[..entries.len()], entries);
            }
            ahead = if ahead + 1 == trellis.phases.len() { 0 } else { ahead + 1 };
        }
        for entries in scratch.entries.chunks_exact(most_entries).take(8) {
            let phase = &trellis.phases[row];
            spread::<V>(phase, entries, branches);
            match (phase.far, phase.oldest) {
                (Some(far), _) => across::<V>(phase, far, costs, branches, decisions),
                (None, 0) => within::<V, 0>(phase, costs, branches, decisions),
                (None, 1) => within::<V, 1>(phase, costs, branches, decisions),
                (None, 2) => within::<V, 2>(phase, costs, branches, decisions),
                (None, 3) => within::<V, 3>(phase, costs, branches, decisions),
                (None, _) => within::<V, 4>(phase, costs, branches, decisions),
            }
            decisions = decisions.add(trellis.vectors());
            row = if row + 1 == trellis.phases.len() { 0 } else { row + 1 };
        }
        rebase::<V>(costs, trellis.vectors());
    }
    let end = std::slice::from_raw_parts(costs, tables.states());
    (0..end.len()).min_by_key(|&state| end[state]).unwrap_or(0)
}

/// Makes all branch vectors from a row's entries.
#[inline(always)]
unsafe fn spread<V: Lanes>(phase: &Phase, entries: &[u16], branches: *mut u16) {
    let mut out = branches;
    for representative in 0..phase.representatives.len() {
        let costs = V::load(entries.as_ptr().add(representative * LANES));
        for &by in &phase.exchanges {
            costs.exchange(by).store(out);
            out = out.add(LANES);
        }
    }
}

/// A step whose oldest bit is one of the vectors' numbers: states of two vectors become those of the same two.
#[inline(always)]
unsafe fn across<V: Lanes>(phase: &Phase, far: usize, costs: *mut u16, branches: *const u16, decisions: *mut u32) {
    for group in &phase.groups {
        let [[n00, n01], [n10, n11]] = group.branches;
        let (b00, b01) = (V::load(branches.add(n00 * LANES)), V::load(branches.add(n01 * LANES)));
        let (b10, b11) = (V::load(branches.add(n10 * LANES)), V::load(branches.add(n11 * LANES)));
        for &v in phase.members.get_unchecked(group.members.clone()) {
            let (near, far) = (usize::from(v), usize::from(v) + far);
            let (old0, old1) = (V::load(costs.add(near * LANES)), V::load(costs.add(far * LANES)));
            let (best, decision) = old0.add(b00).choose(old1.add(b01));
            best.store(costs.add(near * LANES));
            decisions.add(near).write(decision);
            let (best, decision) = old0.add(b10).choose(old1.add(b11));
            best.store(costs.add(far * LANES));
            decisions.add(far).write(decision);
        }
    }
}

/// A step whose oldest bit is bit `BIT` of the lanes' numbers.
#[inline(always)]
unsafe fn within<V: Lanes, const BIT: u32>(phase: &Phase, costs: *mut u16, branches: *const u16, decisions: *mut u32) {
    for group in &phase.groups {
        let [n0, n1] = group.branches[0];
        let (branch0, branch1) = (V::load(branches.add(n0 * LANES)), V::load(branches.add(n1 * LANES)));
        for &v in phase.members.get_unchecked(group.members.clone()) {
            let at = usize::from(v);
            let old = V::load(costs.add(at * LANES));
            let (best, decision) = old.only::<BIT, false>().add(branch0).choose(old.only::<BIT, true>().add(branch1));
            best.store(costs.add(at * LANES));
            decisions.add(at).write(decision);
        }
    }
}

/// Brings the cheapest state to 0.
#[inline(always)]
unsafe fn rebase<V: Lanes>(costs: *mut u16, vectors: usize) {
    let mut least = V::splat(u16::MAX);
    for v in 0..vectors {
        least = least.min(V::load(costs.add(v * LANES)));
    }
    let mut lanes = [0; LANES];
    least.store(lanes.as_mut_ptr());
    let least = V::splat(lanes.into_iter().fold(u16::MAX, u16::min));
    for v in 0..vectors {
        V::load(costs.add(v * LANES)).sub(least).store(costs.add(v * LANES));
    }
}

/// Follows the decisions back from the last state and gives the path, first row of a byte highest.
pub(super) fn trace_back(tables: &Tables, mut state: usize, scratch: &Scratch, path: &mut [u8]) {
    let trellis = &tables.trellis;
    path.fill(0);
    for row in (0..8 * path.len()).rev() {
        let bit = row % trellis.memory;
        path[row / 8] |= ((state >> bit & 1) as u8) << (7 - row % 8);
        let decision = scratch.decisions[row * trellis.vectors() + (state >> LANE_BITS)] >> (state & (LANES - 1)) & 1;
        state = state & !(1 << bit) | (decision as usize) << bit;
    }
}
