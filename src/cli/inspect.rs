//! `wsrun inspect`, and the summary that `wsrun quantize` prints.
use super::{load, output};
use crate::format::{Inspection, WsModel};
use crate::hub::Source;
use anyhow::bail;
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
    let inspection = model.inspect();
    if args.json {
        let mut object = serde_json::to_value(&inspection)?;
        if args.verify {
            object["verified"] = true.into();
        }
        return output::print_json(&object);
    }
    let mut text = table(&inspection);
    text += &totals(&inspection);
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

/// One line a layer.
fn table(inspection: &Inspection) -> String {
    let name = inspection.layers.iter().map(|l| l.name.len()).max().unwrap_or(0).max(5);
    let mut text =
        format!("{:name$}  {:>13}  {:>6}  {:>11}  {:>10}  columns of each width\n", "layer", "shape", "bits", "bytes", "exceptions");
    for layer in &inspection.layers {
        let widths: Vec<String> = layer.histogram.iter().map(|(width, count)| format!("{width}:{count}")).collect();
        text += &format!(
            "{:name$}  {:>13}  {:>6.3}  {:>11}  {:>10}  {}\n",
            layer.name,
            format!("{} x {}", layer.rows, layer.columns),
            layer.stored_bits,
            layer.bytes,
            layer.exceptions,
            widths.join(" ")
        );
    }
    text
}

/// The totals in two lines.
pub(super) fn totals(inspection: &Inspection) -> String {
    format!(
        "{:.4} stored bits a weight, {} weights in {} layers\n{} on disk, embeddings and norms included\n",
        inspection.stored_bits,
        inspection.weights,
        inspection.layers.len(),
        output::size(inspection.file_bytes)
    )
}
