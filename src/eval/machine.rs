//! What this machine can do: read memory, and multiply by packed weights that come from there.
use super::{random_weights::RandomWeights, Spread};
use rayon::prelude::*;
use std::time::Instant;
use ws_kernels::cpu::{self, Isa};
use ws_kernels::pages::LargePages;
use ws_kernels::tables::Effort;
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

/// Memory read a second in 10^9 bytes, with one thread and with all, by vectors and from pages as the products read it.
///
/// # Errors
/// `WSRUN_ISA` asks for what this CPU cannot run, or there is too little memory.
pub fn bandwidth() -> Result<(Spread, Spread), WeightError> {
    let isa = cpu::isa()?;
    let mut bytes = LargePages::zeroed(BYTES)?;
    // Pages of their own: untouched ones are all the same.
    bytes.par_chunks_mut(1 << 12).for_each(|page| page.fill(1));
    let time = |run: &dyn Fn() -> u8| {
        let speeds = (0..RUNS).map(|_| {
            let start = Instant::now();
            std::hint::black_box(run());
            BYTES as f64 / start.elapsed().as_secs_f64() / 1e9
        });
        Spread::of(speeds.collect())
    };
    Ok((time(&|| cpu::read(isa, &bytes)), time(&|| read(isa, &bytes))))
}

/// Reads bytes as the products do, with all threads.
pub fn read(isa: Isa, bytes: &[u8]) -> u8 {
    let parts = 4 * rayon::current_num_threads();
    let part = bytes.len().div_ceil(parts).next_multiple_of(1 << 12);
    bytes.par_chunks(part).map(|part| cpu::read(isa, part)).reduce(|| 0, |a, b| a ^ b)
}

/// Products of a packed matrix (4096 x 4096 at `rate` stored bits in the codes of an effort, from memory) with one vector, all threads, in 10^9 weights a second.
///
/// # Errors
/// `WSRUN_ISA` asks for what this CPU cannot run.
pub fn products(rate: f64, effort: Effort) -> Result<Spread, WeightError> {
    const SIDE: usize = 4096;
    let weights = RandomWeights::new(rate, effort)?;
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
