//! Speed of packed products by width, with criterion: `cargo bench --bench products [-- FILTER]`.
//!
//! Random codes from DRAM (copies of a matrix fill 256 MB and are taken in turn; 2048x512 is one matrix in the second-level cache). Criterion prints weights
//! (times tokens) a second with its confidence interval; the line after it is the median with its share of the read bandwidth: how long a loop without arithmetic
//! needs for as many bytes, by the same threads, before each timed product (other programs on the machine change both), and cycles for 64 weights (times tokens)
//! of the clock right after each. The threads stay awake from one product to the next, as in a model.
//! `RAYON_NUM_THREADS` sets the threads, `WSRUN_ISA` the path. FILTER is a part of a line's name.
use criterion::{BenchmarkId, Criterion, Throughput};
use half::f16;
use rand::{Rng, RngCore, SeedableRng};
use std::hint::black_box;
use std::sync::Arc;
use std::time::{Duration, Instant};
use ws_kernels::code::CodeSet;
use ws_kernels::cpu::Isa;
use ws_kernels::layout::Geometry;
use ws_kernels::packed::{PackedMatrix, Parts};
use ws_kernels::pages::LargePages;
use ws_kernels::rows8::Rows8;
use ws_kernels::tables::Effort;
use wsrun::eval::{machine, Spread};

/// As a loaded model has its weights.
fn random_bytes(len: usize, rng: &mut impl RngCore) -> Arc<LargePages> {
    let mut bytes = LargePages::zeroed(len).expect("memory");
    rng.fill_bytes(&mut bytes);
    Arc::new(bytes)
}

fn matrices(rows: usize, columns: usize, width: u8, codes: &Arc<CodeSet>, rng: &mut impl Rng) -> Vec<PackedMatrix> {
    let bytes = Geometry::new(rows, &vec![width; columns]).expect("a small shape").bytes;
    let copies = if (rows, columns) == CACHED { 1 } else { (256 << 20) / bytes };
    let stored = random_bytes(copies * bytes, rng);
    let make = |n: usize| {
        let parts = Parts {
            out_features: rows,
            widths: vec![width; columns],
            scale: 1.0,
            codes: stored.clone(),
            range: n * bytes..(n + 1) * bytes,
            col_scale: vec![f16::ONE; columns],
            row_scale: vec![f16::ONE; rows],
            exact: Vec::new(),
            exceptions: Vec::new(),
        };
        PackedMatrix::new(parts, codes.clone()).expect("valid parts")
    };
    (0..copies).map(make).collect()
}

/// Rows and columns of a matrix that is not copied: its codes stay in the second-level cache.
const CACHED: (usize, usize) = (2048, 512);

/// Clock of the CPU in GHz: a multiplication and an exclusive or, each of which waits for the one before, take four cycles on x86-64 CPUs.
fn clock() -> f64 {
    const COUNT: usize = 20_000;
    let (factor, start) = (black_box(5u64), Instant::now());
    black_box((0..COUNT).fold(black_box(3u64), |product, _| product.wrapping_mul(factor) ^ product));
    4.0 * COUNT as f64 / start.elapsed().as_secs_f64() / 1e9
}

/// Nearly Gaussian, as activations are: how far sums fit into 16 bits depends on it.
fn normal(rng: &mut impl Rng) -> f32 {
    (0..12).map(|_| rng.random_range(-0.5f32..0.5)).sum()
}

/// The criterion of this program and what the lines after its own need.
struct Bench {
    criterion: Criterion,
    filter: String,
    isa: Isa,
}

impl Bench {
    fn wants(&self, name: &str) -> bool {
        name.contains(&self.filter)
    }

    /// Times `call`, which gets the number of the call and multiplies `weights` by `tokens` vectors. What it reads is a copy of one of `copies`.
    fn run(&mut self, name: &str, weights: usize, tokens: usize, copies: &[&[u8]], mut call: impl FnMut(usize) + Send) {
        let (mut times, mut shares, mut cycles) = (Vec::new(), Vec::new(), Vec::new());
        let mut number = 0;
        let mut group = self.criterion.benchmark_group("product");
        group.throughput(Throughput::Elements((weights * tokens) as u64));
        group.bench_function(BenchmarkId::from_parameter(name), |bencher| {
            bencher.iter_custom(|calls| {
                // None of the bytes may still be in a cache.
                let numbers = number..number + calls as usize;
                let start = Instant::now();
                numbers.clone().for_each(|n| _ = black_box(machine::read(self.isa, copies[(n + copies.len() / 2) % copies.len()])));
                let read = start.elapsed();
                let start = Instant::now();
                ws_kernels::parallel::attentive(|| numbers.clone().for_each(&mut call));
                let time = start.elapsed();
                number = numbers.end;
                times.push(time.as_secs_f64() / calls as f64);
                cycles.push(64e9 * clock() * time.as_secs_f64() / (calls as usize * weights * tokens) as f64);
                shares.push(100.0 * read.as_secs_f64() / time.as_secs_f64());
                time
            });
        });
        group.finish();
        if !times.is_empty() {
            let (median, share, cycles) = (Spread::of(times).median, Spread::of(shares), Spread::of(cycles));
            let speed = (weights * tokens) as f64 / median / 1e9;
            println!(
                "{name:44} {speed:8.2} Gweights/s  {:5.1} % of the bandwidth ({:.0} to {:.0})  {:9.1} us  {:.2} cycles for 64 ({:.2} to {:.2})",
                share.median,
                share.min,
                share.max,
                median * 1e6,
                cycles.median,
                cycles.min,
                cycles.max
            );
        }
    }
}

fn main() {
    // The caller takes part in the pool's work, as in a model.
    rayon::ThreadPoolBuilder::new().use_current_thread().build_global().expect("threads");
    let isa = ws_kernels::cpu::isa().unwrap_or_else(|error| panic!("{error}"));
    let mut rng = rand_chacha::ChaCha8Rng::seed_from_u64(1);
    let mut codes = vec![("scalar", Arc::new(CodeSet::scalar()))];
    codes.extend(
        Effort::ALL.iter().zip(["fast", "light", "default", "best"]).map(|(&effort, name)| (name, Arc::new(CodeSet::trellis(effort)))),
    );
    let (_, bandwidth) = machine::bandwidth().expect("the path is there");
    println!("{}, {}, {} threads, {:.1} GB/s", machine::name(), isa.name(), rayon::current_num_threads(), bandwidth.median);
    let mut bench = Bench {
        criterion: Criterion::default()
            .sample_size(15)
            .warm_up_time(Duration::from_millis(200))
            .measurement_time(Duration::from_millis(800))
            .without_plots(),
        filter: std::env::args().skip(1).find(|a| !a.starts_with('-')).unwrap_or_default(),
        isa,
    };
    for (rows, columns) in [(4096, 4096), (14336, 4096), (4096, 14336), (576, 576), (1536, 576), CACHED] {
        for (kind, codes) in &codes {
            for width in [1u8, 2, 3, 4, 5, 6, 8] {
                for tokens in [1usize, 4, 8, 12, 32, 256] {
                    let name = format!("{rows}x{columns} {kind} {width} bits {tokens} tokens");
                    if !bench.wants(&name) || (tokens > 1 && (width != 3 || rows != 4096 || *kind != "default")) {
                        continue;
                    }
                    let matrices = matrices(rows, columns, width, codes, &mut rng);
                    let x: Vec<f32> = (0..tokens * columns).map(|_| normal(&mut rng)).collect();
                    let mut y = vec![0.0; tokens * rows];
                    let weights = rows * columns;
                    let copies: Vec<&[u8]> = matrices.iter().map(|m| &(*m.parts().codes).as_ref()[m.parts().range.clone()]).collect();
                    bench.run(&name, weights, tokens, &copies, |n| matrices[n % matrices.len()].multiply(&x, tokens, &mut y));
                }
            }
        }
    }
    for (rows, columns) in [(49152, 576), (32768, 4096)] {
        for tokens in [1usize, 8, 12, 32] {
            let name = format!("{rows}x{columns} rows8 {tokens} tokens");
            if !bench.wants(&name) {
                continue;
            }
            let stored = random_bytes(rows * columns, &mut rng);
            let table = Rows8::new(rows, columns, stored.clone(), 0..rows * columns, vec![f16::ONE; rows], 1.0).expect("valid");
            let x: Vec<f32> = (0..tokens * columns).map(|_| normal(&mut rng)).collect();
            let mut y = vec![0.0; tokens * rows];
            bench.run(&name, rows * columns, tokens, &[&stored], |_| table.multiply(&x, tokens, &mut y));
        }
    }
}
