//! `wsrun perplexity`.
use super::{load, output, Usage};
use crate::eval::{self, PerplexityOptions};
use crate::hub::wikitext;
use crate::progress::Progress;
use crate::text;
use anyhow::Context;
use serde_json::json;
use std::path::PathBuf;

/// Measure how well a model predicts a text.
///
/// The text is tokenized once, with a beginning-of-text token if the tokenizer adds one, and cut into whole windows; what is left at the end is not used.
/// The standard error is that of the mean over windows.
#[derive(clap::Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct Args {
    /// Model to measure: folder, GGUF file, Hub repository, alias, or ALIAS-wsR
    #[arg(long, short)]
    model: String,
    /// Text to measure on, by name: the test split through the Hub, joined with blank lines as in papers
    #[arg(long, value_enum, required_unless_present = "text")]
    dataset: Option<Dataset>,
    /// UTF-8 text file to measure on
    #[arg(long, value_name = "FILE", conflicts_with = "dataset")]
    text: Option<PathBuf>,
    /// Tokens of a window [default: 2048, or the model's longest if that is less]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(2..))]
    context: Option<u32>,
    /// Tokens from one window to the next; less than the context scores every token with more text before it [default: the context]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    stride: Option<u32>,
    /// Measure the first N windows only
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    windows: Option<u32>,
    /// Expand packed weights to dense f32 first (to compare the packed product with the dense one)
    #[arg(long)]
    dense: bool,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

#[derive(Clone, Copy, clap::ValueEnum)]
enum Dataset {
    /// WikiText-2 (raw)
    Wikitext2,
}

const EXAMPLES: &str = "Examples:
  wsrun perplexity --model smollm2-135m-ws3 --dataset wikitext2
  wsrun perplexity --model ./my-model --text wiki.test.raw --context 1024 --windows 20 --json
  wsrun perplexity --model llama3.2-1b --text book.txt --context 1024 --stride 512";

pub(super) fn run(args: Args) -> anyhow::Result<()> {
    if let (Some(context), Some(stride)) = (args.context, args.stride) {
        if stride > context {
            return Err(Usage(format!("--stride must be at most --context: {stride} is more than {context}")).into());
        }
    }
    let text = match &args.text {
        Some(path) => text::read(path).with_context(|| format!("cannot read {}", path.display()))?,
        None => wikitext::text(wikitext::Split::Test)?,
    };
    let model = load::load(&args.model, args.dense, None)?;
    let context = args.context.map_or(model.context().min(2048), |c| c as usize);
    let options =
        PerplexityOptions { context, stride: args.stride.map_or(context, |s| s as usize), windows: args.windows.map(|w| w as usize) };
    let mut bar: Option<Progress> = None;
    let result = eval::perplexity(&model, &text, &options, |done, total, so_far| {
        bar.get_or_insert_with(|| Progress::new("windows", total as u64)).set(done as u64, &format!("perplexity {so_far:.3}"));
    })?;
    drop(bar);

    if args.json {
        let mut object = json!(result);
        object["model"] = json!(args.model);
        return output::print_json(&object);
    }
    let error = result.standard_error.map_or(String::new(), |e| format!(" +- {e:.4}"));
    output::print(&format!(
        "perplexity {:.4}{error}\nmean negative log-likelihood {:.5} nats a token, {:.4} bits a byte\n{} tokens scored in {} windows of {}, stride {}\n",
        result.perplexity, result.mean_nll, result.bits_per_byte, result.tokens, result.windows, result.context, result.stride
    ))
}
