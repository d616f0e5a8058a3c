//! Speed of the search for trellis codes by effort and width: `cargo bench --bench encoding [-- FILTER]`.
//!
//! One thread, a Gaussian column of 4096 rows, median and quartiles of many calls. `WSRUN_ISA` picks the path; FILTER is a part of a line's name.
use rand::{Rng, SeedableRng};
use std::time::{Duration, Instant};
use ws_kernels::code::CodeSet;
use ws_kernels::tables::Effort;
use ws_kernels::viterbi::{Encoder, Scratch};

const ROWS: usize = 4096;

fn main() {
    let filter = std::env::args().skip(1).find(|a| !a.starts_with('-')).unwrap_or_default();
    println!("{}", ws_kernels::cpu::isa().unwrap_or_else(|error| panic!("{error}")).name());
    let mut rng = rand_chacha::ChaCha8Rng::seed_from_u64(1);
    let column: Vec<f32> = (0..ROWS).map(|_| (0..12).map(|_| rng.random::<f32>()).sum::<f32>() - 6.0).collect();
    let (mut values, mut scratch) = (vec![0.0; ROWS], Scratch::default());
    for effort in Effort::ALL {
        for width in 1..=6u8 {
            let name = format!("{effort:?} {width} bits").to_lowercase();
            if !name.contains(&filter) {
                continue;
            }
            let encoder = Encoder::new(CodeSet::trellis(effort).get(width).expect("every width has a code").clone()).expect("a valid code");
            let mut times = Vec::new();
            let start = Instant::now();
            while start.elapsed() < Duration::from_millis(700) || times.len() < 9 {
                let begin = Instant::now();
                encoder.encode(&column, &mut values, &mut scratch);
                times.push(begin.elapsed());
            }
            times.sort_unstable();
            let speed = |share: usize| ROWS as f64 / times[times.len() * share / 4].as_secs_f64() / 1e6;
            println!("{name:16} window {:2}  {:6.2} Mweights/s ({:.2} to {:.2})", encoder.window(), speed(2), speed(3), speed(1));
        }
    }
}
