//! The forward pass of the Viterbi search: the cheapest path to every state, one definition over vectors of any width.
//!
//! Path costs are 16-bit: a cost unit is [`Tables::gain`] squared level steps (times 4: the two low bits hold, for the stage to come, the highest
//! state bits, so that a plain minimum over candidates also says which one won, ties to the lowest). A row's index costs are counted from its cheapest index, and the cheapest state is
//! brought to 0 after each path byte, so that sums stay in range; what saturates is hopeless. Next to values far out all may saturate: that byte is
//! searched again with capped costs.
use super::lanes::Lanes;
use super::trellis::{stages, SettledRow, Stage};
use crate::code::{IndexTables, LinearCode};

/// Cost of the worst index, before the two low bits.
const TOP: f32 = 16383.0;

/// Cost at which sums saturate.
const HOPELESS: u32 = 4 * TOP as u32;

/// Target of the mean spread of path costs, relative to [`TOP`].
const MEAN_SPREAD: f32 = 0.25;

/// Inputs are clamped to so many level steps.
const FARTHEST: f32 = 1000.0;

/// Inputs and levels are compared in fractions of a level step, as unsigned numbers around [`MIDDLE`].
const FRACTIONS: f32 = 32.0;
const MIDDLE: f32 = 32768.0;

/// A 64-byte line: costs are kept aligned.
#[derive(Debug, Clone, Copy)]
#[repr(C, align(64))]
struct Line([u16; 32]);

/// Working memory of an encoder; grows to the longest column, free to be used with any code.
#[derive(Debug, Clone, Default)]
pub struct Scratch {
    costs: [Vec<Line>; 2],
    branches: Vec<Line>,
    squares: Vec<f32>,
    decisions: Vec<u16>,
    /// Costs before the byte at hand.
    before: Vec<u16>,
}

impl Scratch {
    /// Of the last column, by byte.
    pub(super) fn decisions(&self) -> &[u16] {
        &self.decisions
    }
}

/// A row position that a stage settles.
struct Row {
    position: usize,
    /// Levels as [`place`] gives them, `[raw][entry]`; entries are `[representative][lane]`, the index being `representative ^ index of the lane`.
    levels: Vec<u16>,
    entries: usize,
    /// An entry of every index.
    entry: Vec<u16>,
    /// Lane exchanges that make all costs vectors of a representative from one.
    exchanges: Vec<usize>,
    /// The row's first costs vector among the stage's.
    first_branch: usize,
    /// Where among the stage's costs each vector of words finds its own, the candidates of one vector of states side by side.
    branches: Vec<u32>,
}

/// A [`Stage`] for one vector width.
struct Step {
    stage: Stage,
    rows: Vec<Row>,
    /// Bits that the next stage takes off.
    tag_bits: u32,
    /// Where its decisions start in those of a byte.
    decisions: usize,
}

/// What the search needs of a code.
pub(super) struct Tables {
    lanes: usize,
    positions: usize,
    unit: f32,
    /// Cost units a squared level step.
    gain: f32,
    index: IndexTables,
    steps: Vec<Step>,
    /// 16-bit words of decisions a byte.
    decisions: usize,
    /// Costs vectors of the step that needs most.
    branches: usize,
    /// Most entries of a row.
    entries: usize,
}

impl Tables {
    pub(super) fn new(code: &LinearCode, lanes: usize) -> Self {
        let stages = stages(code);
        let tags: Vec<u32> = stages.iter().map(|s| s.reduce).cycle().skip(1).take(stages.len()).collect();
        let mut tables = Tables {
            lanes,
            positions: code.positions(),
            unit: code.unit,
            gain: gain(code, &stages),
            index: IndexTables::new(code),
            steps: Vec::new(),
            decisions: 0,
            branches: 0,
            entries: 0,
        };
        for (stage, tag_bits) in stages.into_iter().zip(tags) {
            let mut branches = 0;
            let rows: Vec<Row> = stage.rows.iter().map(|row| Row::new(code, &stage, row, lanes, &mut branches)).collect();
            tables.branches = tables.branches.max(branches);
            tables.entries = rows.iter().map(|r| r.entries).fold(tables.entries, usize::max);
            let vectors: usize = (1 << stage.next_bits()) / lanes;
            let decisions = tables.decisions;
            if stage.reduce > 0 {
                tables.decisions += vectors.div_ceil(8) * lanes;
            }
            tables.steps.push(Step { stage, rows, tag_bits, decisions });
        }
        tables
    }

    /// Most bits of a word: the window that the code really has.
    pub(super) fn window(&self) -> u32 {
        self.steps.iter().map(|s| s.stage.word_bits()).max().unwrap_or(0)
    }
}

impl Row {
    fn new(code: &LinearCode, stage: &Stage, row: &SettledRow, lanes: usize, branches: &mut usize) -> Self {
        let indices = 1usize << code.index_bits;
        let of_lane: Vec<usize> = (0..lanes).map(|l| row.index(l).into()).collect();
        let exchanges: Vec<usize> = (0..lanes).filter(|&l| !of_lane[..l].contains(&of_lane[l])).collect();
        let first_branch = *branches;
        let (mut representatives, mut entry, mut branch) = (Vec::new(), vec![u16::MAX; indices], vec![0; indices]);
        for index in 0..indices {
            if entry[index] != u16::MAX {
                continue;
            }
            for &lane in &exchanges {
                entry[index ^ of_lane[lane]] = (representatives.len() * lanes + lane) as u16;
                branch[index ^ of_lane[lane]] = (*branches * lanes) as u32;
                *branches += 1;
            }
            representatives.push(index);
        }
        let table = &code.levels[if code.levels.len() == 1 { 0 } else { row.position }];
        let index_of_entry: Vec<usize> = representatives.iter().flat_map(|r| of_lane.iter().map(move |l| r ^ l)).collect();
        let level = |raw: usize, index: usize| place(f32::from(table[raw << code.index_bits | index]));
        let words = 1usize << stage.word_bits();
        let word_of = |v: usize| ((v & ((1 << stage.reduce) - 1)) << stage.next_bits()) + (v >> stage.reduce) * lanes;
        Row {
            position: row.position,
            levels: (0..1 << code.raw_bits).flat_map(|raw| index_of_entry.iter().map(move |index| level(raw, *index))).collect(),
            entries: index_of_entry.len(),
            entry,
            exchanges,
            first_branch,
            branches: (0..words / lanes).map(|v| branch[usize::from(row.index(word_of(v)))]).collect(),
        }
    }
}

/// Cost units a squared level step: the mean cost of as many random indices as a state remembers is [`MEAN_SPREAD`] of the range.
fn gain(code: &LinearCode, stages: &[Stage]) -> f32 {
    let remembered = stages.iter().map(Stage::word_bits).max().unwrap_or(0) / u32::from(code.path_bits);
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
    let mean = (sum / mass).max(1e-3);
    MEAN_SPREAD * TOP / (mean * remembered as f32)
}

/// Where a value in level steps stands among the numbers that are compared.
#[inline(always)]
pub(super) fn place(steps: f32) -> u16 {
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

/// Costs of one row's entries in multiples of 4; the cheapest is 0. A row without a value (NaN) costs nothing.
#[inline(always)]
fn entry_costs(tables: &Tables, row: &Row, x: f32, squares: &mut [f32], costs: &mut [u16]) {
    if x.is_nan() {
        costs.fill(0);
        return;
    }
    let y = place(x / tables.unit);
    // Whole chunks: bounds known to the compiler make these loops vector code without masks.
    let squares = squares.as_chunks_mut::<16>().0;
    let levels = row.levels.as_chunks::<16>().0;
    for (chunk, squares) in squares.iter_mut().enumerate() {
        let (mut nearest, mut at) = ([u16::MAX; 16], chunk);
        while at < levels.len() {
            nearest = std::array::from_fn(|i| nearest[i].min(levels[at][i].abs_diff(y)));
            at += row.entries / 16;
        }
        *squares = std::array::from_fn(|i| {
            let distance = f32::from(nearest[i]) * (1.0 / FRACTIONS);
            distance * distance
        });
    }
    let least = squares.iter().fold([f32::INFINITY; 16], |least, part| std::array::from_fn(|i| lesser(part[i], least[i])));
    let least: [f32; 8] = std::array::from_fn(|i| lesser(least[i], least[i + 8]));
    let least: [f32; 4] = std::array::from_fn(|i| lesser(least[i], least[i + 4]));
    let least = lesser(lesser(least[0], least[2]), lesser(least[1], least[3]));
    for (costs, squares) in costs.as_chunks_mut::<16>().0.iter_mut().zip(squares) {
        *costs = squares.map(|square| {
            let scaled = lesser((square - least) * tables.gain + 0.5, TOP);
            // SAFETY: 0.5 to TOP.
            (unsafe { scaled.to_int_unchecked::<i32>() } as u16) << 2
        });
    }
}

/// [`entry_costs`] of a byte's rows, `tables.entries` apart.
#[inline(always)]
fn byte_costs(tables: &Tables, x: &[f32], squares: &mut [f32], costs: &mut [u16]) {
    for row in tables.steps.iter().flat_map(|step| &step.rows) {
        let costs = &mut costs[row.position * tables.entries..][..row.entries];
        entry_costs(tables, row, x[row.position], &mut squares[..row.entries], costs);
    }
}

/// Caps the costs of a byte's rows so that even the dearest path through the byte costs no more than `room`.
fn cap(tables: &Tables, costs: &mut [u16], mut room: u32) {
    let of = |row: &Row| row.position * tables.entries..row.position * tables.entries + row.entries;
    let rows = tables.steps.iter().flat_map(|step| &step.rows);
    let mut dearest: Vec<u16> = rows.clone().map(|row| costs[of(row)].iter().copied().max().unwrap_or(0)).collect();
    dearest.sort_unstable();
    let mut cap = 0;
    for (i, cost) in dearest.iter().map(|&cost| u32::from(cost)).enumerate() {
        cap = room / (dearest.len() - i) as u32;
        if cost > cap {
            break;
        }
        room -= cost;
    }
    for row in rows {
        costs[of(row)].iter_mut().for_each(|cost| *cost = (*cost).min(cap as u16 & !3));
    }
}

/// Flat view of lines.
fn words(lines: &mut Vec<Line>, count: usize) -> *mut u16 {
    let needed = count.div_ceil(32);
    if lines.len() < needed {
        lines.resize(needed, Line([0; 32]));
    }
    lines.as_mut_ptr().cast()
}

/// Runs the trellis over all bytes of a column. Returns the cheapest last state; `scratch` then holds the decisions.
///
/// # Safety
/// The CPU must have the instruction set of `V`, which must have `tables.lanes` lanes.
#[inline(always)]
pub(super) unsafe fn forward<V: Lanes>(tables: &Tables, x: &[f32], first: &mut [u8; 256], scratch: &mut Scratch) -> usize {
    debug_assert_eq!(tables.lanes, V::LANES);
    let most_states = 1usize << tables.steps.iter().map(|s| s.stage.state_bits.max(s.stage.next_bits())).max().unwrap_or(0);
    let bytes = x.len() / tables.positions;
    scratch.squares.resize(tables.entries.max(scratch.squares.len()), 0.0);
    scratch.decisions.resize(scratch.decisions.len().max(bytes * tables.decisions), 0);
    let branches = words(&mut scratch.branches, tables.branches * V::LANES + tables.positions * tables.entries);
    let mut old = words(&mut scratch.costs[0], most_states);
    let mut new = words(&mut scratch.costs[1], most_states);
    // The rows' own entries stand behind the costs vectors, those of a byte side by side.
    let entries = branches.add(tables.branches * V::LANES);
    let states = 1usize << tables.steps[0].stage.state_bits;

    // SAFETY: `old` has room for the states.
    let start = std::slice::from_raw_parts_mut(old, states);
    first_byte(tables, &x[..tables.positions], first, &mut scratch.squares, start);
    let tag_shift = tables.steps[0].stage.state_bits - tables.steps[0].stage.reduce;
    for (state, cost) in start.iter_mut().enumerate() {
        *cost = *cost & !3 | (state >> tag_shift) as u16;
    }
    for (t, x) in x.chunks_exact(tables.positions).enumerate().skip(1) {
        let decisions = scratch.decisions.as_mut_ptr().add(t * tables.decisions);
        // SAFETY: `entries` has room for every position, and is read through the pointer only after the slice is gone.
        byte_costs(tables, x, &mut scratch.squares, std::slice::from_raw_parts_mut(entries, tables.positions * tables.entries));
        scratch.before.clear();
        scratch.before.extend_from_slice(std::slice::from_raw_parts(old, states));
        let mut capped = false;
        // States that the first byte cannot lead to are hopeless, and every state must be reached from another.
        let all = t == 1 && states > 256;
        loop {
            for step in &tables.steps {
                for row in &step.rows {
                    spread::<V>(row, entries.add(row.position * tables.entries), branches);
                }
                let decisions = decisions.add(step.decisions);
                match (step.rows.len(), step.stage.extend, step.stage.reduce) {
                    (1, 1, 0) => advance::<V, 1, 1, 1>(step, old, new, branches, decisions),
                    (1, 1, 1) => advance::<V, 1, 1, 2>(step, old, new, branches, decisions),
                    (1, 1, _) => advance::<V, 1, 1, 4>(step, old, new, branches, decisions),
                    (1, _, 0) => advance::<V, 1, 2, 1>(step, old, new, branches, decisions),
                    (1, _, 1) => advance::<V, 1, 2, 2>(step, old, new, branches, decisions),
                    (1, _, _) => advance::<V, 1, 2, 4>(step, old, new, branches, decisions),
                    (_, 0, 0 | 1) => advance::<V, 8, 0, 2>(step, old, new, branches, decisions),
                    (_, 0, _) => advance::<V, 8, 0, 4>(step, old, new, branches, decisions),
                    (_, 1, 0) => advance::<V, 8, 1, 1>(step, old, new, branches, decisions),
                    (_, 1, 1) => advance::<V, 8, 1, 2>(step, old, new, branches, decisions),
                    (_, 1, _) => advance::<V, 8, 1, 4>(step, old, new, branches, decisions),
                    (_, _, 0) => advance::<V, 8, 2, 1>(step, old, new, branches, decisions),
                    (_, _, 1) => advance::<V, 8, 2, 2>(step, old, new, branches, decisions),
                    (_, _, _) => advance::<V, 8, 2, 4>(step, old, new, branches, decisions),
                }
                std::mem::swap(&mut old, &mut new);
            }
            let mut least = V::splat(u16::MAX);
            for v in (0..states).step_by(V::LANES) {
                least = least.min(V::load(old.add(v)));
            }
            let mut lanes = [0; 32];
            least.store(lanes.as_mut_ptr());
            let least = lanes[..V::LANES].iter().fold(u16::MAX, |a, b| a.min(*b)) & !3;
            // SAFETY: `old` has room for the states, and is read through the pointer only after the slice is gone.
            let costs = std::slice::from_raw_parts_mut(old, states);
            if !capped && (least == !3 || all && costs.iter().any(|cost| cost & !3 == !3)) {
                let room = if all { HOPELESS / 2 } else { HOPELESS };
                cap(tables, std::slice::from_raw_parts_mut(entries, tables.positions * tables.entries), room);
                costs.copy_from_slice(&scratch.before);
                if all {
                    let reached = costs.iter_mut().filter(|cost| **cost & !3 != !3);
                    reached.for_each(|cost| *cost = (*cost).min(HOPELESS as u16 / 2 - 4) & !3 | *cost & 3);
                }
                capped = true;
                continue;
            }
            let least = V::splat(least);
            for v in (0..states).step_by(V::LANES) {
                V::load(old.add(v)).sub(least).store(old.add(v));
            }
            break;
        }
    }
    let end = std::slice::from_raw_parts(old, states);
    (0..states).min_by_key(|&state| end[state] & !3).unwrap_or(0)
}

/// Makes the costs vectors of all representatives and lane exchanges from a row's entries.
#[inline(always)]
unsafe fn spread<V: Lanes>(row: &Row, entries: *const u16, branches: *mut u16) {
    let mut out = branches.add(row.first_branch * V::LANES);
    for representative in (0..row.entries).step_by(V::LANES) {
        let costs = V::load(entries.add(representative));
        for &by in &row.exchanges {
            costs.exchange(by).store(out);
            out = out.add(V::LANES);
        }
    }
}

/// Two-bit tags in every lane.
static TAGS: [Line; 4] = [Line([0; 32]), Line([1; 32]), Line([2; 32]), Line([3; 32])];

/// One step: `old` states to `new` states. `ROWS` is 1 if the step settles exactly one row, otherwise 8; `CANDIDATES` is `2^reduce`.
#[inline(always)]
unsafe fn advance<V: Lanes, const ROWS: usize, const EXTEND: u32, const CANDIDATES: usize>(
    step: &Step,
    old: *const u16,
    new: *mut u16,
    branches: *const u16,
    mut decisions: *mut u16,
) {
    let next_bits = step.stage.next_bits();
    let vectors = (1usize << next_bits) / V::LANES;
    let stride = 1usize << (next_bits - EXTEND);
    let tag_shift = next_bits - step.tag_bits - V::LANES.ilog2();
    let one = if ROWS == 1 { step.rows[0].branches.as_ptr() } else { std::ptr::null() };
    let candidate = |k: usize, v: usize| {
        let mut cost = V::expand::<EXTEND>(old.add(k * stride + v * (V::LANES >> EXTEND)));
        let word = v * CANDIDATES + k;
        if ROWS == 1 {
            return cost.add(V::load(branches.add(*one.add(word) as usize)));
        }
        for row in &step.rows {
            cost = cost.add(V::load(branches.add(*row.branches.as_ptr().add(word) as usize)));
        }
        cost
    };
    let mut v = 0;
    while v < vectors {
        let mut tags = V::splat(0);
        for _ in 0..(vectors - v).min(8) {
            let best = match CANDIDATES {
                1 => candidate(0, v),
                2 => candidate(0, v).min(candidate(1, v)),
                _ => candidate(0, v).min(candidate(1, v)).min(candidate(2, v).min(candidate(3, v))),
            };
            if CANDIDATES > 1 {
                tags = tags.push_tag(best);
            }
            best.retag(V::load(TAGS[v >> tag_shift & 3].0.as_ptr())).store(new.add(v * V::LANES));
            v += 1;
        }
        if CANDIDATES > 1 {
            tags.store(decisions);
            decisions = decisions.add(V::LANES);
        }
    }
}

/// Follows the decisions back from the last state and gives the path.
pub(super) fn trace_back(tables: &Tables, mut state: usize, first: &[u8; 256], decisions: &[u16], path: &mut [u8]) {
    let lane_bits = tables.lanes.ilog2();
    for t in (1..path.len()).rev() {
        let (mut byte, mut bit) = (0, 0);
        for step in tables.steps.iter().rev() {
            let stage = &step.stage;
            let mut word = state;
            if stage.reduce > 0 {
                let (vector, lane) = (state >> lane_bits, state & (tables.lanes - 1));
                let group = vector / 8;
                let last = ((1 << stage.next_bits() >> lane_bits) - 1).min(group * 8 + 7);
                let tags = decisions[t * tables.decisions + step.decisions + group * tables.lanes + lane];
                word |= (usize::from(tags >> (2 * (last - vector))) & ((1 << stage.reduce) - 1)) << stage.next_bits();
            }
            byte |= (word & ((1 << stage.extend) - 1)) << bit;
            bit += stage.extend;
            state = word >> stage.extend;
        }
        path[t] = byte as u8;
    }
    if let Some(byte) = path.first_mut() {
        *byte = first[state];
    }
}

/// Costs of the states after the first byte, whose predecessor is 0, and the cheapest byte that leads to each.
#[inline(always)]
fn first_byte(tables: &Tables, x: &[f32], first: &mut [u8; 256], squares: &mut [f32], costs: &mut [u16]) {
    let mut sums = [0u32; 256];
    let mut entries = vec![0; tables.entries];
    for step in &tables.steps {
        for row in &step.rows {
            let entries = &mut entries[..row.entries];
            entry_costs(tables, row, x[row.position], &mut squares[..row.entries], entries);
            for (byte, sum) in (0..=255).zip(&mut sums) {
                *sum += u32::from(entries[usize::from(row.entry[usize::from(tables.index.get(row.position, byte, [0; 2]))])]);
            }
        }
    }
    let least = sums.iter().copied().min().unwrap_or(0);
    costs.fill(u16::MAX);
    for (byte, sum) in (0..=255u8).zip(sums) {
        let state = usize::from(byte) & (costs.len() - 1);
        let cost = (sum - least).min(HOPELESS - 4) as u16;
        if cost < costs[state] {
            costs[state] = cost;
            first[state] = byte;
        }
    }
}
