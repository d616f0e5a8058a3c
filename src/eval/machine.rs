//! What this machine can do: read memory, and multiply by packed weights that come from there.
use super::{random_weights::RandomWeights, Spread};
use rayon::prelude::*;
use std::time::Instant;
use ws_models::weights::WeightError;

/// Bytes that are read from: several times any cache.
const BYTES: usize = 512 << 20;
/// Bytes of packed matrices that are taken in turn.
const PACKED_BYTES: usize = 192 << 20;
/// Timed runs.
const RUNS: usize = 7;

/// Name of the processor, as the system tells it.
pub fn name() -> String {
    let text = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let name = text.lines().find_map(|line| line.strip_prefix("model name")?.trim_start().strip_prefix(':'));
    name.map_or(std::env::consts::ARCH, str::trim).to_string()
}

/// Memory read a second in 10^9 bytes, with one thread and with all.
pub fn bandwidth() -> (Spread, Spread) {
    let words: Vec<u64> = (0..BYTES as u64 / 8).collect();
    let sum = |part: &[u64]| part.iter().fold(0u64, |sum, word| sum.wrapping_add(*word));
    let time = |run: &dyn Fn() -> u64| {
        let speeds = (0..RUNS).map(|_| {
            let start = Instant::now();
            std::hint::black_box(run());
            BYTES as f64 / start.elapsed().as_secs_f64() / 1e9
        });
        Spread::of(speeds.collect())
    };
    let part = words.len().div_ceil(4 * rayon::current_num_threads());
    (time(&|| sum(&words)), time(&|| words.par_chunks(part).map(sum).sum()))
}

/// Products of a packed matrix (4096 x 4096 at `rate` stored bits, from memory) with one vector, all threads, in 10^9 weights a second.
///
/// # Errors
/// `WSRUN_ISA` asks for what this CPU cannot run.
pub fn products(rate: f64) -> Result<Spread, WeightError> {
    const SIDE: usize = 4096;
    let weights = RandomWeights::new(rate);
    let copies = (8.0 * PACKED_BYTES as f64 / (rate * (SIDE * SIDE) as f64)).ceil() as usize;
    let matrices = (0..copies).map(|_| weights.matrix(SIDE, SIDE)).collect::<Result<Vec<_>, _>>()?;
    let x: Vec<f32> = (0..SIDE).map(|i| (i as f32 * 0.37).sin()).collect();
    let mut y = vec![0.0; SIDE];
    let speeds = (0..=RUNS).map(|_| {
        let start = Instant::now();
        matrices.iter().for_each(|matrix| matrix.multiply(&x, 1, &mut y));
        (copies * SIDE * SIDE) as f64 / start.elapsed().as_secs_f64() / 1e9
    });
    // The first run wakes the threads.
    Ok(Spread::of(speeds.skip(1).collect()))
}
