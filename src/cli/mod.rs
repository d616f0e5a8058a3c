//! The command line: one file a subcommand.
mod bench;
mod doctor;
mod generate;
mod inspect;
mod interrupt;
mod load;
mod models;
mod output;
mod perplexity;
mod pull;
mod quantize;
mod rd;

use clap::{CommandFactory, Parser, Subcommand};
use std::process::ExitCode;

/// Runs Llama and Qwen models from low-bit .ws weights, and makes such weights.
///
/// A MODEL is a Hugging Face folder, a GGUF file, a .ws folder, a Hub repository (owner/name), an alias (see `wsrun models`),
/// or ALIAS-wsR: the alias quantized to R stored bits a weight, made at first use and kept.
#[derive(Parser)]
#[command(version, max_term_width = 120, after_help = EXAMPLES)]
struct Cli {
    /// Threads to use; the result does not depend on them [default: all cores]
    #[arg(long, global = true, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1024))]
    threads: Option<u16>,
    #[command(subcommand)]
    command: Command,
}

const EXAMPLES: &str = "Examples:
  wsrun generate --model smollm2-135m-ws4 --chat 'Why is the sky blue?'
  wsrun quantize smollm2-135m --rate 3 --out smollm2-ws3
  wsrun perplexity --model smollm2-ws3 --text wiki.test.raw --context 1024 --windows 20
  wsrun inspect smollm2-ws3 --verify";

#[derive(Subcommand)]
enum Command {
    Generate(generate::Args),
    Quantize(quantize::Args),
    Perplexity(perplexity::Args),
    Bench(bench::Args),
    Inspect(inspect::Args),
    Pull(pull::Args),
    Models(models::Args),
    Rd(rd::Args),
    Doctor(doctor::Args),
}

/// A wrong use of the command line that only the command itself can see: exit code 2.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct Usage(String);

/// Parses arguments, runs one command, prints one error. Exit codes: 0, 1 for an error, 2 for wrong usage, 130 after Ctrl-C.
pub fn main() -> ExitCode {
    let cli = Cli::parse();
    let result = set_threads(cli.threads.map(usize::from)).and_then(|threads| {
        interrupt::install()?;
        match cli.command {
            Command::Generate(args) => generate::run(args, threads),
            Command::Quantize(args) => quantize::run(args),
            Command::Perplexity(args) => perplexity::run(args),
            Command::Bench(args) => bench::run(args, threads),
            Command::Inspect(args) => inspect::run(args),
            Command::Pull(args) => pull::run(args),
            Command::Models(args) => models::run(args),
            Command::Rd(args) => rd::run(args),
            Command::Doctor(args) => doctor::run(args, threads),
        }
    });
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) if error.is::<output::Closed>() => ExitCode::SUCCESS,
        Err(error) => match error.downcast::<Usage>() {
            Ok(usage) => Cli::command().error(clap::error::ErrorKind::ValueValidation, usage).exit(),
            Err(error) => {
                output::note(&format!("error: {error:#}"));
                ExitCode::FAILURE
            }
        },
    }
}

/// Makes every library use the same number of threads: candle reads the environment, everything else uses rayon's pool.
/// Must run before any of them starts a thread.
fn set_threads(asked: Option<usize>) -> anyhow::Result<usize> {
    let environment = || std::env::var("RAYON_NUM_THREADS").ok()?.parse().ok().filter(|n| *n > 0);
    let cores = || std::thread::available_parallelism().map_or(1, usize::from);
    let threads = asked.or_else(environment).unwrap_or_else(cores);
    for variable in ["RAYON_NUM_THREADS", "CANDLE_NUM_THREADS"] {
        std::env::set_var(variable, threads.to_string());
    }
    rayon::ThreadPoolBuilder::new().num_threads(threads).build_global()?;
    Ok(threads)
}
