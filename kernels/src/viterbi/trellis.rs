//! The trellis of a convolutional code, laid out so that the search works in place.
//!
//! A state is the newest `memory` path bits. They stay where they are while they age: the step of row `t` replaces the oldest of them, bit
//! `t mod memory` of a state's address, by the newest, as a fast Fourier transform in place does (Rader 1981, "Memory management in a Viterbi decoder"). So a step reads and
//! writes the same two states, and what differs from step to step is which address bit has which age: that is a [`Phase`].
use crate::code::{bit_images, LinearCode};

/// States of a vector of path costs, neighbours in their addresses.
pub(super) const LANES: usize = 32;
pub(super) const LANE_BITS: usize = LANES.ilog2() as usize;

/// Rows after which codes read their path bits in the same way again, at most: a path nibble.
const PERIOD: usize = 4;

/// Index contributions of the path bits that the rows of a period of one row or of [`PERIOD`] read, newest first; `None` if rows differ otherwise, a row reads bits of rows to come, or
/// there are two path bits a row.
pub(super) fn taps(code: &LinearCode) -> Option<Vec<Vec<u8>>> {
    if code.path_bits != 1 || code.levels.len() != 1 {
        return None;
    }
    let bytes: Vec<_> = [&code.a, &code.c, &code.d].into_iter().filter(|masks| !masks.is_empty()).collect();
    // Of row position `i`: bit `age` is the path bit of `age` rows before, those of rows to come stand at the end.
    let row = |i: usize| {
        let images: Vec<u8> = bytes.iter().flat_map(|masks| bit_images(&masks[i])).collect();
        let (later, mut seen) = (images[..7 - i].to_vec(), images[7 - i..].to_vec());
        seen.resize(8 * bytes.len(), 0);
        (later, seen)
    };
    let mut rows = Vec::new();
    for i in 0..8 {
        let (later, seen) = row(i);
        if later.iter().any(|image| *image != 0) {
            return None;
        }
        rows.push(seen);
    }
    let period = [1, PERIOD].into_iter().find(|period| rows[*period..].iter().zip(&rows).all(|(row, before)| row == before))?;
    rows.truncate(period);
    let longest = rows.iter().filter_map(|taps| taps.iter().rposition(|image| *image != 0)).max().unwrap_or(0);
    rows.iter_mut().for_each(|taps| taps.truncate(longest + 1));
    Some(rows)
}

/// States and the phases of their addresses.
pub(super) struct Trellis {
    /// Bits of a state.
    pub memory: usize,
    /// The phase of row `t` is `phases[t % phases.len()]`.
    pub phases: Vec<Phase>,
    /// Path bits that a row reads.
    pub window: u32,
}

/// What a step does, in vectors of states and of branch costs. A branch vector of index `i` holds the costs of `i ^ lanes[l]` in lanes `l`.
pub(super) struct Phase {
    /// The address bit that holds the oldest path bit.
    pub oldest: usize,
    /// Index contribution of the lanes: of their address bits, the newest bit being the one to come if it is among them.
    pub lanes: [u8; LANES],
    /// Indices whose branch vectors are made from entries, one for each coset of the lanes' span.
    pub representatives: Vec<u8>,
    /// Lane exchanges that make all branch vectors of a representative from the first: that of `representative ^ lanes[by]`, in this order.
    pub exchanges: Vec<usize>,
    /// Vectors of states that share branch vectors.
    pub groups: Vec<Group>,
    /// The members of all groups.
    pub members: Vec<u16>,
    /// Vectors from a state of oldest bit 0 to that of 1; `None` where that bit is among the lanes.
    pub far: Option<usize>,
}

/// Vectors of states that share branch vectors.
pub(super) struct Group {
    /// Numbers of the branch vectors of oldest bit 0 and 1; with the newest bit in the vectors' numbers those for 0 come first, then those for 1.
    pub branches: [[usize; 2]; 2],
    /// Where [`Phase::members`] has the vectors, those of oldest bit 0.
    pub members: std::ops::Range<usize>,
}

impl Trellis {
    pub(super) fn new(mut taps: Vec<Vec<u8>>, index_bits: u8) -> Self {
        let window = taps[0].len();
        // At least two vectors of states.
        let memory = (window - 1).max(LANE_BITS + 1);
        taps.iter_mut().for_each(|images| images.resize(memory + 1, 0));
        // Until a row meets the same address bits and the same taps again.
        let rows = (memory..).step_by(memory).find(|rows| rows.is_multiple_of(taps.len())).unwrap_or(memory);
        let phases = (0..rows).map(|row| Phase::new(&taps[row % taps.len()], index_bits, row % memory)).collect();
        Trellis { memory, phases, window: window as u32 }
    }

    /// Vectors of states.
    pub(super) fn vectors(&self) -> usize {
        1 << (self.memory - LANE_BITS)
    }

    /// Most branch vectors of a phase.
    pub(super) fn most_branches(&self) -> usize {
        self.phases.iter().map(|p| p.representatives.len() * p.exchanges.len()).max().unwrap_or(0)
    }
}

impl Phase {
    /// Entries that all branch vectors are made from.
    pub(super) fn entries(&self) -> usize {
        self.representatives.len() * LANES
    }

    /// `images`: index contributions by age.
    fn new(images: &[u8], index_bits: u8, oldest: usize) -> Self {
        let memory = images.len() - 1;
        let (newest, oldest_image) = (images[0], images[memory]);
        // The address bit `oldest` stands for the newest bit once the step is done.
        let image = |bit: usize| images[(memory + oldest - bit) % memory];
        let contribution = |address: usize| (0..memory).filter(|bit| address >> bit & 1 == 1).fold(0, |index, bit| index ^ image(bit));
        let lanes: [u8; LANES] = std::array::from_fn(contribution);
        let exchanges: Vec<usize> = (0..LANES).filter(|&l| !lanes[..l].contains(&lanes[l])).collect();
        let mut representatives = Vec::new();
        let mut branch = vec![None; 1 << index_bits];
        for index in 0..=u8::MAX >> (8 - index_bits) {
            if branch[usize::from(index)].is_none() {
                for (n, &by) in exchanges.iter().enumerate() {
                    branch[usize::from(index ^ lanes[by])] = Some(representatives.len() * exchanges.len() + n);
                }
                representatives.push(index);
            }
        }
        let far = oldest.checked_sub(LANE_BITS).map(|bit| 1 << bit);
        let first: Vec<usize> = (0..1 << (memory - LANE_BITS)).filter(|v| far.is_none_or(|far| v & far == 0)).collect();
        let mut by_branches = std::collections::BTreeMap::<_, Vec<u16>>::new();
        for v in first {
            let index = contribution(v << LANE_BITS);
            let number = |index: u8| branch[usize::from(index)].expect("every index has a branch vector");
            let of = |newest: u8| [number(index ^ newest), number(index ^ newest ^ oldest_image)];
            by_branches.entry([of(0), of(newest)]).or_default().push(v as u16);
        }
        let (mut groups, mut members) = (Vec::new(), Vec::new());
        for (branches, vectors) in by_branches {
            groups.push(Group { branches, members: members.len()..members.len() + vectors.len() });
            members.extend(vectors);
        }
        Phase { oldest, lanes, representatives, exchanges, groups, members, far }
    }
}
