//! Speed of packed products by width: `cargo bench --bench products [-- FILTER]`.
//!
//! Random codes from DRAM (copies of a matrix fill 256 MB and are taken in turn), medians of many calls. `RAYON_NUM_THREADS` sets the threads,
//! `WSRUN_ISA` the path. FILTER is a part of a line's name.
use half::f16;
use rand::{Rng, RngCore, SeedableRng};
use std::sync::Arc;
use std::time::{Duration, Instant};
use ws_kernels::code::{CodeSet, LinearCode};
use ws_kernels::layout::Geometry;
use ws_kernels::packed::{PackedMatrix, Parts};
use ws_kernels::rows8::Rows8;

/// A code of this width with trellis-like matrices: 64 levels (128 at 4 bits and more), every index bit over both path bytes.
fn trellis(bits: u8, rng: &mut impl Rng) -> LinearCode {
    let mut code = LinearCode::scalar(bits);
    code.index_bits = [0, 5, 6, 5, 5, 4, 4][usize::from(bits)];
    let mut masks = || (0..code.index_bits).map(|_| rng.random()).collect::<Vec<u8>>();
    let positions = 8 / usize::from(code.path_bits);
    code.a = (0..positions).map(|_| masks()).collect();
    code.c = (0..positions).map(|_| masks()).collect();
    code.levels = vec![(0..1 << (code.index_bits + code.raw_bits)).map(|_| rng.random_range(-127..=127)).collect()];
    code
}

fn random_bytes(len: usize, rng: &mut impl RngCore) -> Vec<u8> {
    let mut bytes = vec![0; len];
    rng.fill_bytes(&mut bytes);
    bytes
}

fn matrices(rows: usize, columns: usize, width: u8, codes: &Arc<CodeSet>, rng: &mut impl Rng) -> Vec<PackedMatrix> {
    let bytes = Geometry::new(rows, &vec![width; columns]).expect("a small shape").bytes;
    let copies = (256 << 20) / bytes;
    let stored: Arc<Vec<u8>> = Arc::new(random_bytes(copies * bytes + 64, rng));
    let aligned = stored.as_ptr().align_offset(64);
    let make = |n: usize| {
        let parts = Parts {
            out_features: rows,
            widths: vec![width; columns],
            scale: 1.0,
            codes: stored.clone(),
            range: aligned + n * bytes..aligned + (n + 1) * bytes,
            col_scale: vec![f16::ONE; columns],
            row_scale: vec![f16::ONE; rows],
            exact: Vec::new(),
            exceptions: Vec::new(),
        };
        PackedMatrix::new(parts, codes.clone()).expect("valid parts")
    };
    (0..copies).map(make).collect()
}

/// Median time of a call; `call` gets the number of the call.
fn median(mut call: impl FnMut(usize)) -> Duration {
    let mut times = Vec::new();
    let start = Instant::now();
    while start.elapsed() < Duration::from_millis(700) || times.len() < 7 {
        let begin = Instant::now();
        call(times.len());
        times.push(begin.elapsed());
    }
    times.sort_unstable();
    times[times.len() / 2]
}

fn main() {
    let filter = std::env::args().skip(1).find(|a| !a.starts_with('-')).unwrap_or_default();
    let isa = ws_kernels::cpu::isa().unwrap_or_else(|error| panic!("{error}"));
    println!("{}, {} threads", isa.name(), rayon::current_num_threads());
    let mut rng = rand_chacha::ChaCha8Rng::seed_from_u64(1);
    let mut trellis_codes = CodeSet::default();
    for bits in 1..=6 {
        trellis_codes.codes[usize::from(bits)] = Some(Arc::new(trellis(bits, &mut rng)));
    }
    let (scalar, trellis) = (Arc::new(CodeSet::scalar()), Arc::new(trellis_codes));
    // The caller takes part in the pool's work, as in a model.
    rayon::ThreadPoolBuilder::new().num_threads(rayon::current_num_threads()).build().expect("threads").install(|| {
        for (rows, columns) in [(4096, 4096), (576, 576), (1536, 576)] {
            for (kind, codes) in [("scalar", &scalar), ("trellis", &trellis)] {
                for width in [1u8, 2, 3, 4, 5, 6, 8] {
                    for tokens in [1usize, 4, 8, 12, 32, 256] {
                        let name = format!("{rows}x{columns} {kind} {width} bits {tokens} tokens");
                        if !name.contains(&filter) || (tokens > 1 && (width != 3 || rows == 1536)) {
                            continue;
                        }
                        let matrices = matrices(rows, columns, width, codes, &mut rng);
                        let x: Vec<f32> = (0..tokens * columns).map(|_| rng.random_range(-2.0f32..2.0)).collect();
                        let mut y = vec![0.0; tokens * rows];
                        let time = median(|n| matrices[n % matrices.len()].multiply(&x, tokens, &mut y)).as_secs_f64();
                        let weights = (rows * columns) as f64;
                        println!(
                            "{name:44} {:8.2} Gweights/s  {:6.2} GB/s  {:9.1} us",
                            weights * tokens as f64 / time / 1e9,
                            weights * f64::from(width) / 8.0 / time / 1e9,
                            time * 1e6
                        );
                    }
                }
            }
        }
        for (rows, columns) in [(49152, 576), (32768, 4096)] {
            for tokens in [1usize, 8, 12, 32] {
                let name = format!("{rows}x{columns} rows8 {tokens} tokens");
                if !name.contains(&filter) {
                    continue;
                }
                let bytes: Arc<Vec<u8>> = Arc::new(random_bytes(rows * columns, &mut rng));
                let table = Rows8::new(rows, columns, bytes, 0..rows * columns, vec![f16::ONE; rows], 1.0).expect("valid");
                let x: Vec<f32> = (0..tokens * columns).map(|_| rng.random_range(-2.0f32..2.0)).collect();
                let mut y = vec![0.0; tokens * rows];
                let time = median(|_| table.multiply(&x, tokens, &mut y)).as_secs_f64();
                let weights = (rows * columns) as f64;
                println!("{name:44} {:8.2} Gweights/s  {:6.2} GB/s", weights * tokens as f64 / time / 1e9, weights / time / 1e9);
            }
        }
    });
}
