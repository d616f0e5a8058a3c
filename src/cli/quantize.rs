//! `wsrun quantize`.
use super::{inspect, load, output, Usage};
use crate::format::WsModel;
use crate::hub::Source;
use crate::quantize::{Calibration, Codes, Options};
use anyhow::bail;
use std::path::PathBuf;
use std::time::Instant;
use ws_kernels::tables::Effort;

/// Quantize a model to a given number of stored bits a weight.
///
/// Works in DIR.partial and renames it when everything is there; a stopped run goes on where it stopped if the same command is given again.
#[derive(clap::Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct Args {
    /// Dense model: folder, GGUF file, Hub repository or alias
    model: String,
    /// Stored bits a weight of the linear layers, 1 to 8, every side byte counted
    #[arg(long, short, value_name = "R", value_parser = rate, allow_negative_numbers = true)]
    rate: f64,
    /// Folder to make
    #[arg(long, short, value_name = "DIR")]
    out: PathBuf,
    /// Codes of columns of 1 to 6 bits
    #[arg(long, value_enum, default_value = "trellis")]
    codes: Kind,
    /// Work spent on the search for trellis codes; the file is as large at each
    #[arg(long, value_enum, default_value = "default")]
    effort: Level,
    /// Calibration text: `self` (the model writes it), `wikitext2` (train split through the Hub), or a UTF-8 file
    #[arg(long, default_value = "self", value_name = "TEXT", value_parser = calibration)]
    calibration: Calibration,
    /// Calibration sequences [default: 64]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    samples: Option<u32>,
    /// Tokens of a calibration sequence [default: 256]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(2..))]
    context: Option<u32>,
    /// Seed of everything random
    #[arg(long, value_name = "N")]
    seed: Option<u64>,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

#[derive(Clone, Copy, clap::ValueEnum)]
enum Kind {
    /// Linear trellis codes, found by Viterbi search
    Trellis,
    /// Fixed-width levels, rounded to nearest: for comparison
    Scalar,
}

#[derive(Clone, Copy, clap::ValueEnum)]
pub(super) enum Level {
    /// Least time
    Fast,
    /// Codes that a CPU without AVX-512 multiplies by two to three times as fast, with a little more error up to 5 bits
    Light,
    /// What the commands that quantize on load use
    Default,
    /// For files that are published
    Best,
}

impl From<Level> for Effort {
    fn from(level: Level) -> Self {
        match level {
            Level::Fast => Self::Fast,
            Level::Light => Self::Light,
            Level::Default => Self::Default,
            Level::Best => Self::Best,
        }
    }
}

const EXAMPLES: &str = "Examples:
  wsrun quantize smollm2-135m --rate 3 --out smollm2-ws3
  wsrun quantize meta-llama/Llama-3.2-1B --rate 2.5 --out llama-ws2.5 --calibration wikitext2 --samples 256 --context 2048
  wsrun quantize ./model.gguf --rate 4 --out model-ws4 --calibration notes.txt";

pub(super) fn rate(text: &str) -> Result<f64, String> {
    text.parse().ok().filter(|r| (1.0..=8.0).contains(r)).ok_or_else(|| "the rate is a number of bits from 1 to 8".into())
}

pub(super) fn calibration(text: &str) -> Result<Calibration, String> {
    match text {
        "" => Err("give `self`, `wikitext2` or a file".into()),
        "self" => Ok(Calibration::SelfGenerated),
        "wikitext2" => Ok(Calibration::Wikitext2),
        file => Ok(Calibration::File(file.into())),
    }
}

pub(super) fn run(args: Args) -> anyhow::Result<()> {
    if args.out.file_name().is_none() {
        return Err(Usage(format!("--out must name a new folder, not {:?}", args.out)).into());
    }
    // The quantizer refuses it too, but only after the model has been fetched.
    if args.out.exists() {
        bail!("{} exists already; remove it or choose another --out", args.out.display());
    }
    let source = load::resolve(&args.model)?;
    match &source {
        Source::Ws(dir) => bail!("{} is quantized already: give the dense model", dir.display()),
        Source::WsOnLoad { rate, .. } => {
            return Err(Usage(format!(
                "{} names a model at {rate} bits: give the dense model's name, and the rate with --rate",
                args.model
            ))
            .into());
        }
        Source::Folder(_) | Source::Gguf(_) => {}
    }
    let defaults = Options::new(args.rate);
    let options = Options {
        codes: match args.codes {
            Kind::Trellis => Codes::Trellis(args.effort.into()),
            Kind::Scalar => Codes::Scalar,
        },
        calibration: args.calibration,
        samples: args.samples.map_or(defaults.samples, |n| n as usize),
        context: args.context.map_or(defaults.context, |n| n as usize),
        seed: args.seed.unwrap_or(defaults.seed),
        ..defaults
    };
    let start = Instant::now();
    let report = load::quantize_into(&source.open()?, &options, &args.out)?;
    let seconds = start.elapsed().as_secs_f64();
    let inspection = WsModel::open(&args.out)?.inspect();
    if args.json {
        let mut object = serde_json::to_value(&inspection)?;
        object["out"] = args.out.display().to_string().into();
        object["seconds"] = seconds.into();
        object["mean_relative_error"] = report.mean_error().into();
        return output::print_json(&object);
    }
    output::print(&format!(
        "{}{:.3e} mean relative output error (geometric), {seconds:.0} s\n{}\n",
        inspect::totals(&inspection),
        report.mean_error(),
        args.out.display()
    ))
}
