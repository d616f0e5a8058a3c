//! `wsrun doctor`.
use super::quantize::Level;
use super::{load, output};
use crate::eval::{machine, Spread};
use crate::hub::Source;
use crate::progress::Progress;
use serde_json::json;
use ws_kernels::cpu::{self, Isa};
use ws_models::config::Config;
use ws_models::shapes;

/// Say what this machine has, which path the products take, and how fast a model can run here.
///
/// Speeds are measured with the threads that the other commands use (--threads). The expectation counts packed products and the 8-bit head only.
#[derive(clap::Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct Args {
    /// Model whose speed is foretold: a local model or a name, or one of the shapes llama3.2-1b, llama3-8b, qwen3-4b [default: these shapes]
    #[arg(long, short)]
    model: Option<String>,
    /// Stored bits a weight, separated by commas, 1 to 6
    #[arg(long, short, value_name = "R,..", value_delimiter = ',', default_value = "2,3,4", value_parser = super::bench::rate)]
    rates: Vec<f64>,
    /// Codes of the packed weights, as for wsrun quantize
    #[arg(long, value_enum, default_value = "default")]
    effort: Level,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

const EXAMPLES: &str = "Examples:
  wsrun doctor
  wsrun doctor --model qwen3-4b --rates 2.5 --threads 1
  WSRUN_ISA=avx2 wsrun doctor --effort light";

pub(super) fn run(args: Args, threads: usize) -> anyhow::Result<()> {
    let isa = cpu::isa()?;
    let models: Vec<(String, Config)> = match &args.model {
        Some(name) => vec![(name.clone(), config(name)?)],
        None => {
            shapes::SHAPES.iter().map(|(name, json)| Ok((name.to_string(), Config::from_json(json)?))).collect::<anyhow::Result<_>>()?
        }
    };
    let mut bar = Progress::new("measuring", 1 + args.rates.len() as u64);
    let (one, all) = machine::bandwidth().map_err(|e| anyhow::anyhow!(e))?;
    let mut products = Vec::new();
    for (i, &rate) in args.rates.iter().enumerate() {
        bar.set(1 + i as u64, &format!("{rate} bits"));
        products.push(machine::products(rate, args.effort.into()).map_err(|e| anyhow::anyhow!(e))?);
    }
    drop(bar);
    let expected = |config: &Config, rate: f64, product: &Spread| {
        let weights: usize = (0..config.layers).flat_map(|i| config.block_linears(i)).map(|(_, rows, columns, _)| rows * columns).sum();
        let head = (config.vocab * config.hidden) as f64;
        let bytes = weights as f64 * rate / 8.0 + head;
        (bytes, 1.0 / (weights as f64 / product.median / 1e9 + head / all.median / 1e9))
    };
    if args.json {
        let mut foretold = Vec::new();
        for (name, config) in &models {
            for (&rate, product) in args.rates.iter().zip(&products) {
                let (bytes, tokens) = expected(config, rate, product);
                foretold
                    .push(json!({"model": name, "rate": rate, "bytes_per_token": bytes as u64, "expected_decode_tokens_per_s": tokens}));
            }
        }
        let products: Vec<_> = args.rates.iter().zip(&products).map(|(rate, p)| json!({"rate": rate, "gigaweights_per_s": p})).collect();
        return output::print_json(&json!({
            "machine": machine::name(), "threads": threads, "features": features(), "path": isa.name(),
            "bandwidth_one_thread_gb_per_s": one, "bandwidth_gb_per_s": all, "products": products, "models": foretold,
        }));
    }
    let spread = |s: &Spread| format!("{:.1} ({:.1} to {:.1})", s.median, s.min, s.max);
    let others: Vec<&str> = Isa::ALL.iter().filter(|i| **i != isa && i.is_available()).map(|i| i.name()).collect();
    let mut text = format!(
        "machine    {}, {threads} threads\nfeatures   {}\npath       {} (WSRUN_ISA can force: {})\nmemory     {} GB/s with one thread, {} GB/s with {threads}\n",
        machine::name(),
        features().join(" "),
        isa.name(),
        others.join(", "),
        spread(&one),
        spread(&all)
    );
    for (rate, product) in args.rates.iter().zip(&products) {
        text += &format!("products   {} Gweights/s at {rate} bits, {:.1} GB/s\n", spread(product), product.median * rate / 8.0);
    }
    for (name, config) in &models {
        for (&rate, product) in args.rates.iter().zip(&products) {
            let (bytes, tokens) = expected(config, rate, product);
            text += &format!("expected   {name} at {rate} bits: {tokens:.1} tokens/s, {} a token\n", output::size(bytes as u64));
        }
    }
    output::print(&text)
}

fn config(name: &str) -> anyhow::Result<Config> {
    if let Some(json) = shapes::config_json(name) {
        return Ok(Config::from_json(json)?);
    }
    let source = match load::resolve(name)? {
        Source::WsOnLoad { base, .. } => *base,
        source => source,
    };
    Ok(source.open()?.config)
}

/// Instructions of this CPU that the products or its dense libraries use.
fn features() -> Vec<&'static str> {
    let mut found = Vec::new();
    #[cfg(target_arch = "x86_64")]
    {
        macro_rules! look {
            ($($feature:tt)*) => { $(if std::arch::is_x86_feature_detected!($feature) { found.push($feature); })* };
        }
        look!("avx2" "fma" "f16c" "gfni" "avxvnni" "avx512f" "avx512bw" "avx512dq" "avx512vl" "avx512vbmi" "avx512vnni" "avx512bf16");
        if Isa::Avx512Amx.is_available() {
            found.push("amx-int8");
        }
    }
    found
}
