//! Searches linear trellis codes for the unit Gaussian: random masks, then simulated annealing by bit flips, the levels trained on the code's own
//! output.
//!
//!     cargo run --release -p ws-kernels --example search_codes -- path=1 raw=1 index=5 bytes=3 window=12 steps=600 seed=1
//!
//! prints the best code, that of three bytes and shared taps as a row of `src/tables/`. Options, `key=value`:
//! * `path`, `raw`, `index`: bits of each kind; `window`: path bits that a row reads at most; `bytes`: path bytes that they are in at most, 2 or 3.
//! * `structure`: `window` (all row positions share taps on the newest path bits, one level table), `rows` (masks and levels of its own for each
//!   row position, reading up to `ahead` path bits after the row's own), `shift` (the previous byte through one mixing matrix, shifted by the row
//!   position), `nibble` (every nibble of path bits gives one byte from the last three nibbles, its halves being the indices).
//! * `start`: taps, or with `rows` also masks for each position, to start from instead of random ones; `a,b,c;d,e,f` for several.
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

/// Rounds of training before and after a search.
const TRAINING: usize = 12;

/// What is searched.
#[derive(Clone, Copy)]
struct Shape {
    path: u8,
    raw: u8,
    index: usize,
    window: u32,
    bytes: u32,
    structure: Structure,
}

#[derive(Clone, Copy, PartialEq)]
enum Structure {
    Window,
    Rows { ahead: u32 },
    Shift,
    Nibble,
}

/// A point of the search: matrices as words of bits, and one level table or two in units of the standard deviation, negated at the complement.
#[derive(Clone)]
struct Candidate {
    words: Vec<u16>,
    levels: Vec<Vec<f64>>,
}

impl Shape {
    fn positions(&self) -> usize {
        8 / usize::from(self.path)
    }

    /// Bits of each word.
    fn word_bits(&self) -> Vec<u32> {
        match self.structure {
            Structure::Window => vec![self.window; self.index],
            Structure::Rows { .. } => (0..self.positions()).flat_map(|i| vec![self.seen(i).1; self.index]).collect(),
            Structure::Shift => vec![8; self.index + 8],
            Structure::Nibble => vec![8; 12],
        }
    }

    /// The path bits that row position `i` reads: how many of the current byte's are yet to come, and how many it reads.
    fn seen(&self, i: usize) -> (u32, u32) {
        let own = u32::from(self.path) * (i as u32 + 1);
        let known = if let Structure::Rows { ahead } = self.structure { (own + ahead).min(8) } else { own };
        (8 - known, self.window.min(8 * (self.bytes - 1) + known))
    }

    /// Words from words, or from taps that all row positions share.
    fn start(&self, taps: &[u16]) -> Vec<u16> {
        let Structure::Rows { .. } = self.structure else { return taps.to_vec() };
        if taps.len() == self.positions() * self.index {
            return taps.to_vec();
        }
        let row = |i: usize| {
            let (later, bits) = self.seen(i);
            let ahead = 8 - u32::from(self.path) * (i as u32 + 1) - later;
            taps.iter().map(move |&tap| (u32::from(tap) << ahead & ((1 << bits) - 1)) as u16)
        };
        (0..self.positions()).flat_map(row).collect()
    }

    /// Level tables by row position.
    fn tables(&self) -> usize {
        match self.structure {
            Structure::Nibble => self.positions() / 2,
            Structure::Rows { .. } => self.positions(),
            _ => 1,
        }
    }

    fn code(&self, candidate: &Candidate) -> LinearCode {
        let most = candidate.levels.iter().flatten().fold(0f64, |m, l| m.max(l.abs()));
        let unit = most / 127.0;
        let rounded = |levels: &Vec<f64>| levels.iter().map(|l| (l / unit).round() as i8).collect::<Vec<i8>>();
        let tables: Vec<Vec<i8>> = candidate.levels.iter().map(rounded).collect();
        let words = &candidate.words;
        let (window, bytes) = if self.structure == Structure::Window { (self.window, self.bytes) } else { (8, 2) };
        let taps = if self.structure == Structure::Nibble { &words[..4] } else { &words[..self.index] };
        let mut code = LinearCode::convolutional(self.path, self.raw, bytes, window, taps, tables[0].clone(), unit as f32);
        match self.structure {
            Structure::Window => {}
            Structure::Rows { .. } => {
                code.levels = tables;
                if self.bytes == 3 {
                    code.d = code.c.clone();
                }
                for i in 0..self.positions() {
                    for j in 0..self.index {
                        let word = u32::from(words[i * self.index + j]) << self.seen(i).0;
                        (code.a[i][j], code.c[i][j]) = (word as u8, (word >> 8) as u8);
                        if let Some(masks) = code.d.get_mut(i) {
                            masks[j] = (word >> 16) as u8;
                        }
                    }
                }
            }
            Structure::Shift => {
                // Index bit `j` (highest first) of row `i` gets bit `i + j` of the mixed byte.
                code.c = (0..self.positions())
                    .map(|i| (0..self.index).map(|j| words[self.index..].get(i + j).map_or(0, |w| *w as u8)).collect())
                    .collect();
                for (i, masks) in code.a.iter_mut().enumerate() {
                    // What a window of 8 sees of the previous byte belongs to the mixed byte.
                    let own = 0xFFu16 << (8 - usize::from(self.path) * (i + 1));
                    masks.iter_mut().for_each(|mask| *mask &= own as u8);
                }
            }
            Structure::Nibble => {
                // Byte U = F0[N_t] ^ F1[N_(t-1)] ^ F2[N_(t-2)]; words 4k + b: image of bit b under F_k.
                let row = |i: usize, byte: usize| -> Vec<u8> {
                    let rows_a_nibble = self.positions() / 2;
                    let (nibble, in_nibble) = (i / rows_a_nibble, i % rows_a_nibble);
                    let upper = 2 * in_nibble / rows_a_nibble;
                    (0..4)
                        .map(|j| {
                            let bit = 4 * upper + 3 - j;
                            // Nibbles of (B_(t-1), B_t) newest first: B_t low is 0, B_t high 1, then the byte before.
                            let age = |k: usize| (1 - nibble) + k;
                            (0..3).filter(|&k| age(k) / 2 == byte).fold(0u8, |mask, k| {
                                let shift = 4 * (age(k) % 2);
                                (0..4).fold(mask, |mask, b| mask | ((words[4 * k + b] >> bit & 1) as u8) << (shift + b))
                            })
                        })
                        .collect()
                };
                code.index_bits = 4;
                code.a = (0..self.positions()).map(|i| row(i, 0)).collect();
                code.c = (0..self.positions()).map(|i| row(i, 1)).collect();
                code.levels = (0..self.positions()).map(|i| tables[i % tables.len()].clone()).collect();
            }
        }
        code
    }

    fn random(&self, rng: &mut ChaCha8Rng) -> Candidate {
        let count = 1usize << (self.index + usize::from(self.raw));
        // Power of the levels that short searches end near, by width.
        let spread = [0.87, 1.03, 1.12, 1.15, 1.17, 1.18][usize::from(self.path + self.raw) - 1];
        let quantiles: Vec<f64> = (0..count).map(|i| quantile((i as f64 + 0.5) / count as f64)).collect();
        let power = (quantiles.iter().map(|q| q * q).sum::<f64>() / count as f64).sqrt();
        Candidate {
            words: self.word_bits().iter().map(|&bits| rng.random::<u16>() & (((1u32 << bits) - 1) as u16)).collect(),
            levels: vec![quantiles.iter().map(|q| q / power * spread).collect(); self.tables()],
        }
    }

    fn flipped(&self, candidate: &Candidate, rng: &mut ChaCha8Rng) -> Candidate {
        let mut new = candidate.clone();
        let bits = self.word_bits();
        for _ in 0..[1, 1, 2, 2, 3][rng.random_range(0..5)] {
            let word = rng.random_range(0..bits.len());
            new.words[word] ^= 1 << rng.random_range(0..bits[word]);
        }
        new
    }

    /// Encodes and adds up.
    fn tally(&self, encoder: &Encoder, x: &[f32], tally: &mut Tally, scratch: &mut Scratch) {
        let mut values = vec![0.0; ROWS];
        for x in x.chunks_exact(ROWS) {
            let column = encoder.encode(x, &mut values, scratch);
            let indices = encoder.code().indices(&column.path, &column.raw, ROWS);
            for (row, ((x, value), index)) in x.iter().zip(&values).zip(indices).enumerate() {
                tally.error += f64::from(x - value).powi(2);
                let (sum, count) = &mut tally.sums[row % self.positions() % self.tables()][usize::from(index)];
                *sum += f64::from(*x);
                *count += 1.0;
            }
        }
        tally.rows += x.len() as f64;
    }

    fn empty_tally(&self) -> Tally {
        let count = 1usize << (self.index + usize::from(self.raw));
        Tally { error: 0.0, rows: 0.0, sums: vec![vec![(0.0, 0.0); count]; self.tables()] }
    }

    fn encoder(&self, candidate: &Candidate) -> Encoder {
        Encoder::new(Arc::new(self.code(candidate))).expect("a valid code")
    }

    /// The levels' conditional means, the value negated at the complement.
    fn trained(&self, candidate: &Candidate, tally: &Tally) -> Candidate {
        let mut next = candidate.clone();
        for (levels, sums) in next.levels.iter_mut().zip(&tally.sums) {
            for ((level, own), other) in levels.iter_mut().zip(sums).zip(sums.iter().rev()) {
                if own.1 + other.1 > 0.0 {
                    *level += OVERSHOOT * ((own.0 - other.0) / (own.1 + other.1) - *level);
                }
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
    /// Sum and number of the values by level table and level.
    sums: Vec<Vec<(f64, f64)>>,
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
    let structure = match options.get("structure").map(String::as_str) {
        None | Some("window") => Structure::Window,
        Some("rows") => Structure::Rows { ahead: number("ahead", 0) as u32 },
        Some("shift") => Structure::Shift,
        Some("nibble") => Structure::Nibble,
        Some(other) => panic!("unknown structure {other}"),
    };
    let shape = Shape {
        path: number("path", 2) as u8,
        raw: number("raw", 0) as u8,
        index: if structure == Structure::Nibble { 4 } else { number("index", 6) },
        window: number("window", 12) as u32,
        bytes: number("bytes", 2) as u32,
        structure,
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
                Some(words) => Candidate { words: shape.start(words), ..shape.random(&mut rng) },
                None => (0..64)
                    .map(|_| shape.random(&mut rng))
                    .map(|c| (shape.error(&c, &data.short[..CHUNK], &mut scratch), c))
                    .min_by(|a, b| a.0.total_cmp(&b.0))
                    .map(|(_, c)| c)
                    .expect("64 points"),
            };
            let (error, best) = shape.anneal(start, steps, heat, &data, &mut rng);
            println!("round {round}: {error:.6}, words {:?}", best.words);
            (error, round, best)
        })
        .collect();
    let (error, _, best) = found.into_iter().min_by(|a, b| a.0.total_cmp(&b.0).then(a.1.cmp(&b.1))).expect("at least one round");
    let code = shape.code(&best);
    println!("// {:.4} bits above the limit", f64::from(code.bits()) + error.log2() / 2.0);
    if shape.structure == Structure::Window && shape.bytes == 3 {
        let levels = &code.levels[0][code.levels[0].len() / 2..];
        print!("Row {{ raw_bits: {}, window: {}, taps: &{:?}, levels: &{levels:?}, ", shape.raw, shape.window, best.words);
        println!("unit: {:?}, error: {error:.4e} }},", code.unit);
    } else {
        println!("{code:?}, error {error:.4e}");
    }
}
