//! `wsrun bench`.
use super::{load, output};
use crate::eval::{self, BenchOptions, Spread};
use crate::progress::Progress;
use serde_json::json;

/// Time prefill and decode: medians over repeated runs.
#[derive(clap::Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct Args {
    /// Model to time: folder, GGUF file, Hub repository, alias, or ALIAS-wsR
    #[arg(long, short)]
    model: String,
    /// Tokens of the synthetic prompt
    #[arg(long, default_value_t = 128, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    prompt_tokens: u32,
    /// Tokens to decode after it
    #[arg(long, default_value_t = 32, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    tokens: u32,
    /// Timed runs, after one that is not counted
    #[arg(long, default_value_t = 5, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    repeat: u32,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

const EXAMPLES: &str = "Examples:
  wsrun bench --model smollm2-135m-ws3
  wsrun bench --model ./my-model --prompt-tokens 512 --tokens 128 --threads 1 --json";

pub(super) fn run(args: Args, threads: usize) -> anyhow::Result<()> {
    let model = load::load(&args.model, false, None)?;
    let options = BenchOptions { prompt_tokens: args.prompt_tokens as usize, tokens: args.tokens as usize, repeat: args.repeat as usize };
    let mut bar = Progress::new("runs", args.repeat.into());
    let result = eval::bench(&model, &options, |done, _| bar.set(done as u64, ""))?;
    drop(bar);
    let machine = machine();
    if args.json {
        return output::print_json(&json!({
            "model": args.model,
            "machine": machine,
            "threads": threads,
            "prompt_tokens": args.prompt_tokens,
            "tokens": args.tokens,
            "repeat": args.repeat,
            "prefill_tokens_per_s": result.prefill.median,
            "prefill_spread": result.prefill,
            "decode_tokens_per_s": result.decode.median,
            "decode_spread": result.decode,
            "weight_bytes_per_token": result.bytes_per_token,
            "weight_gigabytes_per_s": result.gigabytes_per_s(),
        }));
    }
    let line = |s: Spread| format!("{:.1} tokens/s ({:.1} to {:.1})", s.median, s.min, s.max);
    output::print(&format!(
        "{}\n{machine}, {threads} threads, median of {} runs\nprefill {:>4} tokens: {}\ndecode  {:>4} tokens: {}\nweights {} a token, {:.2} GB/s\n",
        args.model,
        args.repeat,
        args.prompt_tokens,
        line(result.prefill),
        args.tokens,
        line(result.decode),
        output::size(result.bytes_per_token),
        result.gigabytes_per_s()
    ))
}

/// Name of the processor, as the system tells it.
fn machine() -> String {
    let text = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let name = text.lines().find_map(|line| line.strip_prefix("model name")?.trim_start().strip_prefix(':'));
    name.map_or(std::env::consts::ARCH, str::trim).to_string()
}
