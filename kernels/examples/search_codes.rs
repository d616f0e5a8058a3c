//! Searches convolutional trellis codes for the unit Gaussian: random taps, then simulated annealing by bit flips, the levels trained on the code's own
//! output.
//!
//!     cargo run --release -p ws-kernels --example search_codes -- raw=1 index=5 window=12 steps=600 seed=1
//!
//! prints the best code as a row of `src/tables/`. Options, `key=value`:
//! * `raw`, `index`: bits of each kind; `window`: path bits that a row reads; `top`: the largest level at most.
//! * `sum=1`: levels are sums, one of 16 picked by four index bits and one picked by raw bits and the row's own path bit, which is the other index bit if `index=5`, not 4;
//!   `share`: deviation of the former at the start, in percent of that of all levels.
//! * `nibbles=1`: rows read the path nibble up to their own bit and the two before it, each row of a nibble by taps of its own ([`LinearCode::by_nibbles`]).
//! * `start`: taps to start from instead of random ones; `a,b,c;d,e,f` for several.
//! * `rounds`: starts; `steps`: flips tried in each; `heat`: first temperature in 1/10000 of the error; `seed`; `threads`: the result does not
//!   depend on it; `short`: rows of the sample of the search, a multiple of 131072 for the eighth that trains a start. Two codes' errors over 2^17 rows differ by 0.3 % by chance, and
//!   thousands of steps find such chances.
use rand::seq::SliceRandom;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use rayon::prelude::*;
use std::collections::HashMap;
use std::sync::Arc;
use ws_kernels::code::LinearCode;
use ws_kernels::viterbi::{Encoder, Scratch};

/// Rows of a column: edge effects are those of real matrices.
const ROWS: usize = 2048;

/// Samples are stratified, and points of the search rejected, in chunks of so many rows.
const CHUNK: usize = 1 << 14;

/// Relative difference of two codes' errors over a chunk that may be chance.
const CHUNK_NOISE: f64 = 0.004;

/// Levels go so many times as far as their conditional means: without, rounding stops them early (1.2 % more error at 4 bits).
const OVERSHOOT: f64 = 1.8;

/// Index bits of the first of two tables.
const SUM_BITS: usize = 4;

/// Rounds of training before and after a search.
const TRAINING: usize = 12;

/// What is searched.
#[derive(Clone, Copy)]
struct Shape {
    raw: u8,
    index: usize,
    window: u32,
    /// Each row of a path nibble has its own taps.
    nibbles: bool,
    top: f64,
    /// Of sums: share of the first table at the start.
    share: Option<f64>,
}

/// A point of the search: taps, row by row, and two tables in units of the standard deviation, negated at the complement, whose sums are the levels; the second is `[0]` if levels are
/// no sums.
#[derive(Clone)]
struct Candidate {
    taps: Vec<u16>,
    tables: [Vec<f64>; 2],
}

impl Candidate {
    /// The sums; the first table has the lower bits of their index.
    fn levels(&self) -> Vec<f64> {
        let [first, second] = &self.tables;
        second.iter().flat_map(|s| first.iter().map(move |f| f + s)).collect()
    }

    /// The same in steps of `unit`, each table rounded.
    fn rounded(&self, unit: f64) -> Vec<f64> {
        let tables = self.tables.each_ref().map(|table| table.iter().map(|l| (l / unit).round()).collect());
        Candidate { taps: Vec::new(), tables }.levels()
    }
}

impl Shape {
    fn code(&self, candidate: &Candidate) -> LinearCode {
        let most = candidate.levels().iter().fold(0f64, |m, l| m.max(l.abs()));
        // Few levels, and large steps: the unit is the one that rounds least.
        let error = |unit: f64| candidate.tables.iter().flatten().map(|l| (l - unit * (l / unit).round()).powi(2)).sum::<f64>();
        let fits = |unit: &f64| candidate.rounded(*unit).iter().all(|l| l.abs() <= self.top);
        let steps = if self.top < 127.0 { 60 } else { 1 };
        let units = (0..steps).map(|i| most / (self.top - self.top / 310.0 * f64::from(i))).filter(fits);
        let unit = units.min_by(|a, b| error(*a).total_cmp(&error(*b))).unwrap_or(most / (self.top - 1.0));
        let levels = candidate.rounded(unit).iter().map(|l| *l as i8).collect();
        if self.nibbles {
            let mut rows = candidate.taps.chunks(self.index).map(<[u16]>::to_vec);
            return LinearCode::by_nibbles(
                self.raw,
                &std::array::from_fn(|_| rows.next().expect("taps of four rows")),
                levels,
                unit as f32,
            );
        }
        LinearCode::convolutional(1, self.raw, 3, self.window, &candidate.taps, levels, unit as f32)
    }

    fn random(&self, rng: &mut ChaCha8Rng) -> Candidate {
        // Power of the levels that short searches end near, by width.
        let spread = [0.87, 1.03, 1.12, 1.15, 1.17, 1.18][usize::from(self.raw)];
        let table = |bits: usize, spread: f64| {
            let count = 1usize << bits;
            let quantiles: Vec<f64> = (0..count).map(|i| quantile((i as f64 + 0.5) / count as f64)).collect();
            let power = (quantiles.iter().map(|q| q * q).sum::<f64>() / count as f64).sqrt();
            quantiles.iter().map(|q| q / power * spread).collect()
        };
        let bits = self.index + usize::from(self.raw);
        let tables = match self.share {
            Some(share) => [table(SUM_BITS, spread * share), table(bits - SUM_BITS, spread * (1.0 - share * share).sqrt())],
            None => [table(bits, spread), vec![0.0]],
        };
        let mut tap = |tap: usize| match tap % self.index < self.own() {
            true => 1,
            false => rng.random::<u16>() & (((1u32 << self.seen(tap)) - 1) as u16),
        };
        Candidate { taps: (0..self.index * if self.nibbles { 4 } else { 1 }).map(&mut tap).collect(), tables }
    }

    /// Path bits that a tap may read.
    fn seen(&self, tap: usize) -> u32 {
        if self.nibbles {
            (tap / self.index) as u32 + if tap % self.index < self.own() { 1 } else { 9 }
        } else {
            self.window
        }
    }

    /// Index bits that are the row's own path bit.
    fn own(&self) -> usize {
        if self.share.is_some() {
            self.index - SUM_BITS
        } else {
            0
        }
    }

    fn flipped(&self, candidate: &Candidate, rng: &mut ChaCha8Rng) -> Candidate {
        let mut new = candidate.clone();
        if self.share.is_some() && rng.random_bool(0.35) {
            self.shift(&mut new.tables[rng.random_range(0..2)], rng);
            return new;
        }
        for _ in 0..[1, 1, 2, 2, 3][rng.random_range(0..5)] {
            // Of a row's own path bit alone only the nibble before it may join in.
            let first = if self.nibbles { 0 } else { self.own() };
            let tap = rng.random_range(0..new.taps.len() / self.index) * self.index + rng.random_range(first..self.index);
            new.taps[tap] ^= 1 << rng.random_range(0..self.seen(tap));
        }
        new
    }

    /// Changes a table as a whole, or one pair of its entries: training alone hardly moves how two tables share the levels' power.
    fn shift(&self, table: &mut [f64], rng: &mut ChaCha8Rng) {
        if rng.random() {
            let factor = rng.random_range(-0.06f64..0.06).exp();
            table.iter_mut().for_each(|l| *l *= factor);
        } else {
            let (entry, by) = (rng.random_range(0..table.len()), rng.random_range(-0.1..0.1));
            table[entry] += by;
            table[table.len() - 1 - entry] -= by;
        }
    }

    /// Encodes and adds up.
    fn tally(&self, encoder: &Encoder, x: &[f32], tally: &mut Tally, scratch: &mut Scratch) {
        let mut values = vec![0.0; ROWS];
        for x in x.chunks_exact(ROWS) {
            let column = encoder.encode(x, &mut values, scratch);
            let indices = encoder.code().indices(&column.path, &column.raw, ROWS);
            for ((x, value), index) in x.iter().zip(&values).zip(indices) {
                tally.error += f64::from(x - value).powi(2);
                let (sum, count) = &mut tally.sums[usize::from(index)];
                *sum += f64::from(*x);
                *count += 1.0;
            }
        }
        tally.rows += x.len() as f64;
    }

    fn empty_tally(&self) -> Tally {
        let count = 1usize << (self.index + usize::from(self.raw));
        Tally { error: 0.0, rows: 0.0, sums: vec![(0.0, 0.0); count] }
    }

    fn encoder(&self, candidate: &Candidate) -> Encoder {
        Encoder::new(Arc::new(self.code(candidate))).expect("a valid code")
    }

    /// The tables whose sums are nearest to the levels' conditional means (least squares), one after the other.
    fn trained(&self, candidate: &Candidate, tally: &Tally) -> Candidate {
        let mut next = candidate.clone();
        let (mut means, mut weights) = (candidate.levels(), Vec::new());
        for ((level, own), other) in means.iter_mut().zip(&tally.sums).zip(tally.sums.iter().rev()) {
            let weight = own.1 + other.1;
            if weight > 0.0 {
                *level += OVERSHOOT * ((own.0 - other.0) / weight - *level);
            }
            weights.push(weight);
        }
        let length = candidate.tables[0].len();
        for turn in 0..if self.share.is_some() { 60 } else { 1 } {
            let levels = next.levels();
            let table = &mut next.tables[turn % 2];
            let mut changes = vec![(0.0, 0.0); table.len()];
            for (i, ((mean, level), weight)) in means.iter().zip(&levels).zip(&weights).enumerate() {
                let (change, all) = &mut changes[if turn % 2 == 0 { i % length } else { i / length }];
                *change += weight * (mean - level);
                *all += weight;
            }
            for (level, (change, all)) in table.iter_mut().zip(changes) {
                *level += if all > 0.0 { change / all } else { 0.0 };
            }
        }
        next
    }

    /// Mean squared error, and the candidate with the levels that the sample asks for.
    fn train(&self, candidate: &Candidate, x: &[f32], scratch: &mut Scratch) -> (f64, Candidate) {
        let mut tally = self.empty_tally();
        self.tally(&self.encoder(candidate), x, &mut tally, scratch);
        (tally.mean(), self.trained(candidate, &tally))
    }

    fn error(&self, candidate: &Candidate, x: &[f32], scratch: &mut Scratch) -> f64 {
        self.train(candidate, x, scratch).0
    }

    /// Alternates encoding and conditional means; returns the best point seen.
    fn settle(&self, candidate: &Candidate, x: &[f32], times: usize, scratch: &mut Scratch) -> (f64, Candidate) {
        let mut best = (f64::INFINITY, candidate.clone());
        let mut current = candidate.clone();
        for _ in 0..times {
            let (error, next) = self.train(&current, x, scratch);
            if error < best.0 {
                best = (error, current);
            }
            current = next;
        }
        best
    }

    /// One start: simulated annealing by bit flips on the short sample, the levels following their conditional means; then the last word of
    /// another sample. A point that the first chunks of the sample find hopeless does not see the others.
    fn anneal(&self, start: Candidate, steps: usize, heat: f64, data: &Data, rng: &mut ChaCha8Rng) -> (f64, Candidate) {
        let mut scratch = Scratch::default();
        let mut current = self.settle(&start, &data.short[..data.short.len() / 8], TRAINING, &mut scratch).1;
        // Mean error over the first chunks.
        let mut current_errors = vec![f64::INFINITY; data.short.len() / CHUNK];
        let mut best = (f64::INFINITY, current.clone());
        for step in 0..=steps {
            // Step 0 is the start itself.
            let next = if step == 0 { current.clone() } else { self.flipped(&current, rng) };
            let temperature = heat * best.0 * (1.0 - step as f64 / (steps + 1) as f64).powi(2);
            let allowed = if step == 0 { 0.0 } else { -temperature * (1.0 - rng.random::<f64>()).ln() };
            let encoder = self.encoder(&next);
            let mut tally = self.empty_tally();
            let mut errors = Vec::with_capacity(current_errors.len());
            for (x, current_error) in data.short.chunks_exact(CHUNK).zip(&current_errors) {
                self.tally(&encoder, x, &mut tally, &mut scratch);
                errors.push(tally.mean());
                let noise = if errors.len() < current_errors.len() { CHUNK_NOISE / (errors.len() as f64).sqrt() } else { 0.0 };
                if tally.mean() >= current_error * (1.0 + noise) + allowed {
                    break;
                }
                if errors.len() == current_errors.len() {
                    if tally.mean() < best.0 {
                        best = (tally.mean(), next.clone());
                    }
                    current = self.trained(&next, &tally);
                    current_errors = errors;
                    break;
                }
            }
        }
        let best = self.settle(&best.1, &data.short, TRAINING, &mut scratch).1;
        (self.error(&best, &data.last, &mut scratch), best)
    }
}

/// Sums over encoded rows.
struct Tally {
    error: f64,
    rows: f64,
    /// Sum and number of the values by level.
    sums: Vec<(f64, f64)>,
}

impl Tally {
    fn mean(&self) -> f64 {
        self.error / self.rows
    }
}

/// Samples for the search and for the last word.
struct Data {
    short: Vec<f32>,
    last: Vec<f32>,
}

/// A long random sample of unit power.
fn gaussian(rng: &mut ChaCha8Rng, count: usize) -> Vec<f32> {
    let mut one = || (-2.0 * (1.0 - rng.random::<f64>()).ln()).sqrt() * (std::f64::consts::TAU * rng.random::<f64>()).cos();
    let x: Vec<f64> = (0..count).map(|_| one()).collect();
    let power = (x.iter().map(|x| x * x).sum::<f64>() / count as f64).sqrt();
    x.iter().map(|x| (x / power) as f32).collect()
}

/// Chunks of quantile midpoints in random order: a sample that ranks codes with less noise than a random one.
fn stratified(rng: &mut ChaCha8Rng, count: usize) -> Vec<f32> {
    let quantiles: Vec<f32> = (0..CHUNK).map(|i| quantile((i as f64 + 0.5) / CHUNK as f64) as f32).collect();
    let shuffled = |_| {
        let mut x = quantiles.clone();
        x.shuffle(rng);
        x
    };
    (0..count / CHUNK).flat_map(shuffled).collect()
}

/// Quantile of the standard normal distribution by bisection of its series.
fn quantile(p: f64) -> f64 {
    let below = |x: f64| {
        let (mut term, mut sum) = (x, x);
        for i in 1..120 {
            term *= x * x / f64::from(2 * i + 1);
            sum += term;
        }
        0.5 + sum * (-0.5 * x * x).exp() / std::f64::consts::TAU.sqrt()
    };
    let (mut low, mut high) = (-5.0, 5.0);
    for _ in 0..50 {
        let middle = (low + high) / 2.0;
        if below(middle) < p {
            low = middle;
        } else {
            high = middle;
        }
    }
    low
}

fn main() {
    let options: HashMap<String, String> =
        std::env::args().skip(1).filter_map(|a| a.split_once('=').map(|(k, v)| (k.to_owned(), v.to_owned()))).collect();
    let number = |key: &str, default: usize| options.get(key).map_or(default, |v| v.parse().expect("a number"));
    let shape = Shape {
        raw: number("raw", 0) as u8,
        index: number("index", 4),
        window: number("window", 12) as u32,
        nibbles: number("nibbles", 0) == 1,
        top: number("top", 127) as f64,
        share: (number("sum", 0) == 1).then_some(number("share", 60) as f64 / 100.0),
    };
    let mut rng = ChaCha8Rng::seed_from_u64(1);
    let data = Data { short: stratified(&mut rng, number("short", 1 << 20)), last: gaussian(&mut rng, 1 << 20) };
    let (rounds, steps, seed) = (number("rounds", 10), number("steps", 2000), number("seed", 1) as u64);
    let heat = number("heat", 20) as f64 / 1e4;
    let starts: Vec<Vec<u16>> = options.get("start").map_or_else(Vec::new, |taps| {
        taps.split(';').map(|taps| taps.split(',').map(|t| t.parse().expect("taps as numbers")).collect()).collect()
    });
    rayon::ThreadPoolBuilder::new().num_threads(number("threads", 1)).build_global().expect("one pool");
    let found: Vec<(f64, usize, Candidate)> = (0..rounds)
        .into_par_iter()
        .map(|round| {
            let mut rng = ChaCha8Rng::seed_from_u64(seed << 32 | round as u64);
            let mut scratch = Scratch::default();
            // The best of a handful of random points is a cheap head start.
            let start = match starts.get(round % starts.len().max(1)) {
                Some(taps) => Candidate { taps: taps.clone(), ..shape.random(&mut rng) },
                None => (0..64)
                    .map(|_| shape.random(&mut rng))
                    .map(|c| (shape.error(&c, &data.short[..CHUNK], &mut scratch), c))
                    .min_by(|a, b| a.0.total_cmp(&b.0))
                    .map(|(_, c)| c)
                    .expect("64 points"),
            };
            let (error, best) = shape.anneal(start, steps, heat, &data, &mut rng);
            println!("round {round}: {error:.6}, taps {:?}", best.taps);
            (error, round, best)
        })
        .collect();
    let (error, _, best) = found.into_iter().min_by(|a, b| a.0.total_cmp(&b.0).then(a.1.cmp(&b.1))).expect("at least one round");
    let code = shape.code(&best);
    println!("// {:.4} bits above the limit", f64::from(code.bits()) + error.log2() / 2.0);
    let levels = &code.levels[0][code.levels[0].len() / 2..];
    print!("Row {{ raw_bits: {}, window: {}, taps: &{:?}, by_nibbles: {}, ", shape.raw, shape.window, best.taps, shape.nibbles);
    print!("levels: &{levels:?}, ");
    println!("unit: {:?}, error: {error:.4e} }},", code.unit);
}
