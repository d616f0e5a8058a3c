//! `wsrun inspect`, and the summary that `wsrun quantize` prints.
use super::{load, output};
use crate::format::{LayerSize, WsModel};
use crate::hub::Source;
use anyhow::{bail, Context};
use serde::Serialize;
use serde_json::Value;
use std::path::{Path, PathBuf};

/// Show what a .ws folder holds, layer by layer: stored bits, column widths, bytes.
#[derive(clap::Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct Args {
    /// .ws folder, or ALIAS-wsR
    #[arg(value_name = "DIR")]
    model: String,
    /// Read everything and check every checksum
    #[arg(long)]
    verify: bool,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

const EXAMPLES: &str = "Examples:
  wsrun inspect smollm2-ws3
  wsrun inspect smollm2-135m-ws4 --verify --json";

pub(super) fn run(args: Args) -> anyhow::Result<()> {
    let dir = folder(&args.model)?;
    let model = WsModel::open(&dir)?;
    if args.verify {
        model.verify()?;
    }
    let summary = Summary::new(&dir, &model)?;
    if args.json {
        let mut object = serde_json::to_value(&summary)?;
        if args.verify {
            object["verified"] = true.into();
        }
        return output::print_json(&object);
    }
    let mut text = summary.table();
    text += &summary.totals();
    if args.verify {
        text += "all checksums are right\n";
    }
    output::print(&text)
}

fn folder(name: &str) -> anyhow::Result<PathBuf> {
    let source = if Path::new(name).is_dir() { Source::Ws(name.into()) } else { load::resolve(name)? };
    match source {
        Source::Ws(dir) if WsModel::is_ws(&dir) => Ok(dir),
        Source::WsOnLoad { dir, .. } => {
            bail!("{name} is not quantized yet ({} does not exist): wsrun generate --model {name} makes it", dir.display())
        }
        _ => bail!("{name} is not a .ws folder: its config.json does not say quant_method watersic; wsrun quantize makes one"),
    }
}

/// Sizes of a .ws folder.
#[derive(Serialize)]
pub(super) struct Summary {
    /// Stored bits a weight over all packed layers, every byte of their tensors counted.
    stored_bits: f64,
    /// Weights of the packed layers.
    weights: u64,
    /// Bytes of all shards, embeddings and norms included.
    file_bytes: u64,
    /// `quantization_config` of `config.json`.
    quantization: Value,
    layers: Vec<Layer>,
}

#[derive(Serialize)]
struct Layer {
    #[serde(flatten)]
    size: LayerSize,
    stored_bits: f64,
}

impl Summary {
    pub(super) fn new(dir: &Path, model: &WsModel) -> anyhow::Result<Self> {
        let path = dir.join("config.json");
        let bytes = std::fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?;
        let config: Value = serde_json::from_slice(&bytes).with_context(|| format!("cannot read {}", path.display()))?;
        let weights = |l: &LayerSize| l.rows as u64 * l.columns as u64;
        let bits = |bytes: u64, weights: u64| 8.0 * bytes as f64 / weights.max(1) as f64;
        let sizes = model.layers();
        let total = sizes.iter().map(weights).sum();
        Ok(Self {
            stored_bits: bits(sizes.iter().map(|l| l.bytes).sum(), total),
            weights: total,
            file_bytes: model.file_bytes(),
            quantization: config["quantization_config"].clone(),
            layers: sizes.iter().map(|size| Layer { stored_bits: bits(size.bytes, weights(size)), size: size.clone() }).collect(),
        })
    }

    /// One line a layer.
    fn table(&self) -> String {
        let name = self.layers.iter().map(|l| l.size.name.len()).max().unwrap_or(0).max(5);
        let mut text =
            format!("{:name$}  {:>13}  {:>6}  {:>11}  {:>10}  columns of each width\n", "layer", "shape", "bits", "bytes", "exceptions");
        for Layer { size, stored_bits } in &self.layers {
            let widths: Vec<String> = size.histogram.iter().map(|(width, count)| format!("{width}:{count}")).collect();
            let shape = format!("{} x {}", size.rows, size.columns);
            text += &format!(
                "{:name$}  {shape:>13}  {stored_bits:>6.3}  {:>11}  {:>10}  {}\n",
                size.name,
                size.bytes,
                size.exceptions,
                widths.join(" ")
            );
        }
        text
    }

    /// The totals in two lines.
    pub(super) fn totals(&self) -> String {
        format!(
            "{:.4} stored bits a weight, {} weights in {} layers\n{} on disk, embeddings and norms included\n",
            self.stored_bits,
            self.weights,
            self.layers.len(),
            output::size(self.file_bytes)
        )
    }
}
