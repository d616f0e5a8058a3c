//! `wsrun bench`.
use super::{load, output, quantize::Level};
use crate::eval::random_weights::RandomWeights;
use crate::eval::{self, machine, BenchOptions, Spread};
use crate::progress::Progress;
use crate::runtime::TextModel;
use serde_json::json;
use ws_models::model::KvType;
use ws_models::shapes;

/// Time prefill and decode: medians over repeated runs.
#[derive(clap::Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct Args {
    /// Model to time: folder, GGUF file, Hub repository, alias, or ALIAS-wsR
    #[arg(long, short, required_unless_present = "random_weights")]
    model: Option<String>,
    /// Time a packed model of this shape with random codes instead: llama3.2-1b, llama3-8b or qwen3-4b
    #[arg(long, value_name = "SHAPE", value_parser = shape, conflicts_with = "model")]
    random_weights: Option<String>,
    /// Its stored bits a weight, 1 to 6
    #[arg(long, value_name = "R", value_parser = rate, default_value = "3", conflicts_with = "model")]
    rate: f64,
    /// Its trellis codes
    #[arg(long, value_enum, default_value = "default", conflicts_with = "model")]
    effort: Level,
    /// Its first N blocks only
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..), conflicts_with = "model")]
    layers: Option<u32>,
    /// Tokens of the synthetic prompt
    #[arg(long, default_value_t = 128, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    prompt_tokens: u32,
    /// Tokens to decode after it
    #[arg(long, default_value_t = 32, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    tokens: u32,
    /// Timed runs, after one that is not counted
    #[arg(long, default_value_t = 5, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    repeat: u32,
    /// How keys and values are stored: f32, f16 or int8
    #[arg(long, value_name = "TYPE", default_value_t)]
    kv_cache: KvType,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

const EXAMPLES: &str = "Examples:
  wsrun bench --model smollm2-135m-ws3
  wsrun bench --random-weights llama3-8b --rate 2 --layers 8
  wsrun bench --model ./my-model --prompt-tokens 512 --tokens 128 --threads 1 --json";

pub(super) fn run(args: Args, threads: usize) -> anyhow::Result<()> {
    let (name, mut model) = match (&args.random_weights, &args.model) {
        (Some(shape), _) => {
            let opened = RandomWeights::new(args.rate, args.effort.into())?
                .open(shapes::config_json(shape).unwrap_or_default(), args.layers.map(|n| n as usize))?;
            let name = format!("{shape} at {} bits, random codes, {} blocks", args.rate, opened.config.layers);
            (name, TextModel::load(opened)?)
        }
        (None, model) => {
            let name = model.clone().unwrap_or_default();
            let model = load::load(&name, false, None)?;
            (name, model)
        }
    };
    model.set_kv_type(args.kv_cache);
    let options = BenchOptions { prompt_tokens: args.prompt_tokens as usize, tokens: args.tokens as usize, repeat: args.repeat as usize };
    let mut bar = Progress::new("runs", args.repeat.into());
    let result = eval::bench(&model, &options, |done, _| bar.set(done as u64, ""))?;
    drop(bar);
    let machine = machine::name();
    if args.json {
        return output::print_json(&json!({
            "model": name,
            "machine": machine,
            "threads": threads,
            "prompt_tokens": args.prompt_tokens,
            "tokens": args.tokens,
            "repeat": args.repeat,
            "kv_cache": args.kv_cache.to_string(),
            "prefill_tokens_per_s": result.prefill.median,
            "prefill_spread": result.prefill,
            "decode_tokens_per_s": result.decode.median,
            "decode_spread": result.decode,
            "outside_products": result.outside_products,
            "weight_bytes_per_token": result.bytes_per_token,
            "weight_gigabytes_per_s": result.gigabytes_per_s(),
        }));
    }
    let line = |s: Spread| format!("{:.1} tokens/s ({:.1} to {:.1})", s.median, s.min, s.max);
    output::print(&format!(
        "{name}\n{machine}, {threads} threads, median of {} runs\nprefill {:>4} tokens: {}\ndecode  {:>4} tokens: {}, {:.0} % of the time outside products\nweights {} a token, {:.2} GB/s\n",
        args.repeat,
        args.prompt_tokens,
        line(result.prefill),
        args.tokens,
        line(result.decode),
        100.0 * result.outside_products,
        output::size(result.bytes_per_token),
        result.gigabytes_per_s()
    ))
}

fn shape(name: &str) -> Result<String, String> {
    let names: Vec<&str> = shapes::SHAPES.iter().map(|s| s.0).collect();
    shapes::config_json(name).map(|_| name.to_owned()).ok_or_else(|| format!("shapes are {}", names.join(", ")))
}

pub(super) fn rate(text: &str) -> Result<f64, String> {
    text.parse().ok().filter(|r| (1.0..=6.0).contains(r)).ok_or_else(|| "the rate is a number of bits from 1 to 6".into())
}
