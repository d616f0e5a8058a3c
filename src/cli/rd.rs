//! `wsrun rd`.
use super::{load, output, quantize::Level, Usage};
use crate::eval::PerplexityOptions;
use crate::format;
use crate::hub::Source;
use crate::progress::Progress;
use crate::quantize::{self, Calibration, Options};
use crate::rd::synthetic::{Spectrum, Synthetic};
use crate::rd::{self, Curve, Mean, Method, ModelOptions, Scored, Text};
use crate::text;
use anyhow::Context;
use serde_json::json;
use std::fmt::Write as _;
use std::io::Write as _;
use std::path::PathBuf;

/// Compare quantizers with each other and with the water-filling limit: on Gaussian layers, or on the layers of a model.
///
/// The gap is the rate above that of reverse water-filling at the same output error, in bits a weight, all side data counted (a live weight for
/// Gaussian layers); for a model's layers, whose weights are not Gaussian, it can be below 0. With --text the model that each method makes is measured too.
#[derive(clap::Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct Args {
    /// Dense model whose layers are measured: folder, GGUF file, Hub repository or alias
    #[arg(long, short, conflicts_with_all = ["spectrum", "in_features", "out_features", "dead", "null"])]
    model: Option<String>,
    /// Gaussian layer with these eigenvalues: `flat` or `power:EXPONENT`; more than one may be given [default: flat, power:1 and power:2]
    #[arg(long, value_name = "SPECTRUM")]
    spectrum: Vec<Spectrum>,
    /// Its in-features
    #[arg(long, value_name = "N", default_value = "1024", value_parser = clap::value_parser!(u16).range(8..=16384))]
    in_features: u16,
    /// Its out-features
    #[arg(long, value_name = "N", default_value = "1024", value_parser = clap::value_parser!(u16).range(8..=16384))]
    out_features: u16,
    /// Share of its in-features that are always 0
    #[arg(long, value_name = "SHARE", default_value = "0", value_parser = share)]
    dead: f64,
    /// Share of its eigenvalues that are 0
    #[arg(long, value_name = "SHARE", default_value = "0", value_parser = share)]
    null: f64,
    /// Bits a weight, separated by commas
    #[arg(long, short, value_name = "R,..", value_delimiter = ',', default_value = "1.5,2,3,4", value_parser = super::quantize::rate)]
    rates: Vec<f64>,
    /// Methods, separated by commas [default: all]
    #[arg(long, value_enum, value_delimiter = ',', value_name = "M,..", hide_possible_values = true, long_help = methods_help())]
    methods: Vec<Method>,
    /// Work spent on the search for trellis codes
    #[arg(long, value_enum, default_value = "default")]
    effort: Level,
    /// Only layers of the model whose name contains this
    #[arg(long, value_name = "NAME", default_value = "", requires = "model")]
    layers: String,
    /// Calibration text: `self` (the model writes it), `wikitext2` (train split through the Hub), or a UTF-8 file
    #[arg(long, default_value = "self", value_name = "TEXT", value_parser = super::quantize::calibration, requires = "model")]
    calibration: Calibration,
    /// Calibration sequences [default: 64]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..), requires = "model")]
    samples: Option<u32>,
    /// Tokens of a calibration sequence [default: 256]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(2..), requires = "model")]
    context: Option<u32>,
    /// Seed of everything random
    #[arg(long, value_name = "N", default_value = "0")]
    seed: u64,
    /// UTF-8 text file to measure the perplexity of each model on; more than one may be given
    #[arg(long, value_name = "FILE", requires = "model")]
    text: Vec<PathBuf>,
    /// Tokens of a window of these texts
    #[arg(long, value_name = "N", default_value = "1024", value_parser = clap::value_parser!(u32).range(2..), requires = "text")]
    window: u32,
    /// Measure the first N windows of each only
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..), requires = "text")]
    windows: Option<u32>,
    /// Draw gaps over rates into this SVG file
    #[arg(long, value_name = "FILE")]
    plot: Option<PathBuf>,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

const EXAMPLES: &str = "Examples:
  wsrun rd --spectrum power:1 --rates 1.5,2,3,4 --plot gap.svg
  wsrun rd --model smollm2-135m --rates 2,3 --methods trellis,scalar,entropy --text wiki.test.raw --windows 20
  wsrun rd --model smollm2-135m --layers layers.12. --rates 3 --json";

fn methods_help() -> String {
    use clap::ValueEnum;
    let mut help = String::from("Methods, separated by commas [default: all]\n");
    for value in Method::ALL.iter().filter_map(|m| m.to_possible_value()) {
        let text = value.get_help().map(ToString::to_string).unwrap_or_default();
        let _ = write!(help, "\n{:<14} {text}", value.get_name());
    }
    help
}

fn share(text: &str) -> Result<f64, String> {
    text.parse().ok().filter(|s| (0.0..=0.9).contains(s)).ok_or_else(|| "a share is a number from 0 to 0.9".into())
}

pub(super) fn run(args: Args) -> anyhow::Result<()> {
    let methods = if args.methods.is_empty() { Method::ALL.to_vec() } else { args.methods.clone() };
    if let Some(file) = &args.plot {
        // Hours of work must not end in a folder that is not there.
        let folder = format::parent(file);
        anyhow::ensure!(folder.is_dir(), "--plot: {} is not a folder", folder.display());
    }
    let (title, curves, scored) = match &args.model {
        Some(model) => of_model(&args, model, &methods)?,
        None => of_spectra(&args, &methods)?,
    };
    if let Some(file) = &args.plot {
        let svg = rd::plot(&title, &curves).map_err(anyhow::Error::msg)?;
        format::write_file(file, |out| out.write_all(svg.as_bytes()), |_| Ok(()))?;
    }
    if args.json {
        let texts: Vec<String> = args.text.iter().map(|p| p.display().to_string()).collect();
        return output::print_json(&json!({"layers": curves, "means": rd::means(&curves), "texts": texts, "perplexity": scored}));
    }
    output::print(&table(&title, &curves, &args.rates, args.model.is_some()))?;
    if !scored.is_empty() {
        output::print(&scores(&args.text, &scored, &args.rates))?;
    }
    Ok(())
}

fn of_spectra(args: &Args, methods: &[Method]) -> anyhow::Result<(String, Vec<Curve>, Vec<Scored>)> {
    let defaults = [Spectrum::Flat, Spectrum::Power(1.0), Spectrum::Power(2.0)];
    let spectra = if args.spectrum.is_empty() { &defaults[..] } else { &args.spectrum };
    let bar = Progress::new("layers", spectra.len() as u64);
    let mut bar = Some(bar);
    let mut curves = Vec::new();
    for (i, &spectrum) in spectra.iter().enumerate() {
        if let Some(bar) = &mut bar {
            bar.set(i as u64, &spectrum.to_string());
        }
        let layer = Synthetic {
            spectrum,
            in_features: args.in_features.into(),
            out_features: args.out_features.into(),
            dead: args.dead,
            null: args.null,
            seed: args.seed,
        };
        curves.extend(rd::measure(&[layer.layer()?], methods, &args.rates, args.effort.into(), args.seed)?);
    }
    let title = if curves.len() == 1 { format!("Gaussian layer, {}", curves[0].layer) } else { "Gaussian layers".into() };
    Ok((title, curves, Vec::new()))
}

fn of_model(args: &Args, model: &str, methods: &[Method]) -> anyhow::Result<(String, Vec<Curve>, Vec<Scored>)> {
    let source = load::resolve(model)?;
    if matches!(source, Source::Ws(_) | Source::WsOnLoad { .. }) {
        return Err(Usage(format!("{model} is quantized: give the dense model")).into());
    }
    let read = |path: &PathBuf| {
        let text = text::read(path).with_context(|| format!("cannot read {}", path.display()))?;
        Ok(Text { name: path.display().to_string(), text })
    };
    let texts = args.text.iter().map(read).collect::<anyhow::Result<Vec<_>>>()?;
    let defaults = Options::new(args.rates[0]);
    let calibration = Options {
        calibration: args.calibration.clone(),
        samples: args.samples.map_or(defaults.samples, |n| n as usize),
        context: args.context.map_or(defaults.context, |n| n as usize),
        seed: args.seed,
        ..defaults
    };
    let window = args.window as usize;
    let options = ModelOptions {
        methods,
        rates: &args.rates,
        effort: args.effort.into(),
        layers: &args.layers,
        calibration: &calibration,
        texts: &texts,
        windows: PerplexityOptions { context: window, stride: window, windows: args.windows.map(|w| w as usize) },
    };
    let mut bar: Option<(&str, Progress)> = None;
    let (curves, scored) = rd::measure_model(&source, &options, &mut |progress| {
        let (label, done, total) = match progress {
            quantize::Progress::Calibration { tokens, total } => ("calibration text", tokens, total),
            quantize::Progress::Blocks { done, total } => ("blocks", done as u64, total as u64),
        };
        if bar.as_ref().is_none_or(|(stage, _)| *stage != label) {
            bar = Some((label, Progress::new(label, total)));
        }
        if let Some((_, bar)) = &mut bar {
            bar.set(done, "");
        }
    })?;
    Ok((format!("{model}, {} layers", curves.len()), curves, scored))
}

/// A row for each method, a cell for each rate.
fn rows(out: &mut String, what: &str, rates: &[f64], cells: impl IntoIterator<Item = (String, Vec<String>)>) {
    let _ = write!(out, "{what:<44}");
    *out += &rates.iter().map(|r| format!("{:>10}", format!("{r} bits"))).collect::<String>();
    out.push('\n');
    for (name, cells) in cells {
        let _ = write!(out, "  {name:<42}");
        *out += &cells.iter().map(|c| format!("{c:>10}")).collect::<String>();
        out.push('\n');
    }
}

fn label(method: Method) -> String {
    format!("{} ({})", method.name(), method.counted())
}

fn by_method<'a>(means: &'a [Mean], cell: impl Fn(&Mean) -> String + 'a) -> impl Iterator<Item = (String, Vec<String>)> + 'a {
    means.chunk_by(|a, b| a.method == b.method).map(move |group| (label(group[0].method), group.iter().map(&cell).collect()))
}

fn table(title: &str, curves: &[Curve], rates: &[f64], of_model: bool) -> String {
    let mut out = format!("{title}\n");
    let whole = [(String::new(), curves)];
    let each: Vec<(String, &[Curve])> = curves.iter().map(|c| (format!("\n{}\n", c.layer), std::slice::from_ref(c))).collect();
    for (name, curves) in if of_model { &whole[..] } else { &each[..] } {
        let means = rd::means(curves);
        out += name;
        rows(&mut out, "bits above the water-filling limit", rates, by_method(&means, |m| format!("{:.3}", m.gap)));
        let limits = rd::mean_limits(curves).iter().map(|d| format!("{d:.3e}")).collect();
        let errors = by_method(&means, |m| format!("{:.3e}", m.relative_error));
        rows(&mut out, "relative output error", rates, std::iter::once(("water-filling limit (theory)".to_owned(), limits)).chain(errors));
        rows(&mut out, "bits a weight", rates, by_method(&means, |m| format!("{:.4}", m.rate)));
    }
    let loss = curves.iter().map(|c| c.equal_rate_loss).sum::<f64>() / curves.len() as f64;
    let _ = writeln!(out, "equal rates lose {loss:.3} bits at high rate (from the diagonal of L; mean over layers)");
    out
}

fn scores(texts: &[PathBuf], scored: &[Scored], rates: &[f64]) -> String {
    let mut out = String::new();
    for (i, text) in texts.iter().enumerate() {
        let dense = scored.iter().find(|s| s.method.is_none()).map_or(f64::NAN, |s| s.perplexity[i]);
        let what = format!("perplexity of {} (dense {dense:.3})", text.display());
        let methods: Vec<&Scored> = scored.iter().filter(|s| s.method.is_some()).collect();
        let cells = methods.chunk_by(|a, b| a.method == b.method).map(|group| {
            let name = group[0].method.map_or(String::new(), label);
            (name, group.iter().map(|s| format!("{:.3}", s.perplexity[i])).collect())
        });
        out.push('\n');
        let _ = writeln!(out, "{what}");
        rows(&mut out, "", rates, cells);
    }
    out
}
