//! `wsrun pull`.
use super::{load, output};
use crate::hub::Source;

/// Fetch a model from the Hub into the cache, and print where it is.
#[derive(clap::Args)]
#[command(after_help = "Examples:\n  wsrun pull smollm2-135m\n  wsrun pull Qwen/Qwen3-0.6B")]
pub(super) struct Args {
    /// Alias or Hub repository (owner/name)
    model: String,
}

pub(super) fn run(args: Args) -> anyhow::Result<()> {
    let path = match load::resolve(&args.model)? {
        Source::WsOnLoad { base, .. } => *base,
        source => source,
    };
    let (Source::Folder(path) | Source::Gguf(path) | Source::Ws(path) | Source::WsOnLoad { dir: path, .. }) = path;
    output::print(&format!("{}\n", path.display()))
}
