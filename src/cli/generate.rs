//! `wsrun generate`.
use super::{load, output, Usage};
use crate::runtime::{GenerateOptions, Generation, Message, RuntimeError};
use crate::sampling::Sampling;
use anyhow::Context;
use std::io::{IsTerminal, Read};
use std::ops::ControlFlow;
use ws_models::model::KvType;

/// Continue a prompt, or answer it with --chat; the text streams to stdout as it comes.
#[derive(clap::Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct Args {
    /// The prompt; `-`, or nothing with piped input, reads it from stdin (a final newline is dropped)
    prompt: Option<String>,
    /// Model to use: folder, GGUF file, Hub repository, alias, or ALIAS-wsR
    #[arg(long, short)]
    model: String,
    /// Apply the model's chat template: the prompt is the user's message
    #[arg(long)]
    chat: bool,
    /// System message
    #[arg(long, requires = "chat", value_name = "TEXT")]
    system: Option<String>,
    /// 0 is greedy: always the most likely token
    #[arg(long, default_value_t = 0.0, value_name = "T", allow_negative_numbers = true)]
    temperature: f32,
    /// Sample among the K most likely tokens only
    #[arg(long, value_name = "K")]
    top_k: Option<usize>,
    /// Sample among the most likely tokens that together have probability P
    #[arg(long, default_value_t = 1.0, value_name = "P", allow_negative_numbers = true)]
    top_p: f32,
    /// Drop tokens less likely than P times the most likely one
    #[arg(long, default_value_t = 0.0, value_name = "P", allow_negative_numbers = true)]
    min_p: f32,
    /// Above 1: make tokens that have occurred less likely
    #[arg(long, default_value_t = 1.0, value_name = "X", allow_negative_numbers = true)]
    repetition_penalty: f32,
    /// Seed of the sampling
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Tokens to generate at most
    #[arg(long, short = 'n', default_value_t = 256, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    max_tokens: u32,
    /// Stop before this text; may be given several times
    #[arg(long, value_name = "TEXT", value_parser = clap::builder::NonEmptyStringValueParser::new())]
    stop: Vec<String>,
    /// Tokens that prompt and answer may have together [default: the model's longest]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    context: Option<u32>,
    /// How keys and values are stored: f32, f16 or int8
    #[arg(long, value_name = "TYPE", default_value_t)]
    kv_cache: KvType,
    /// Print one JSON object at the end instead of streaming
    #[arg(long)]
    json: bool,
}

const EXAMPLES: &str = "Examples:
  wsrun generate --model smollm2-135m-ws4 'The capital of France is' --max-tokens 20
  wsrun generate --model smollm2-135m-ws4 --chat --temperature 0.7 --top-p 0.9 --seed 1 'Write a haiku about rivers.'
  echo 'Translate to French: good morning' | wsrun generate --model ./my-model --chat --stop $'\\n\\n'";

pub(super) fn run(args: Args, threads: usize) -> anyhow::Result<()> {
    let options = GenerateOptions {
        sampling: Sampling {
            repetition_penalty: args.repetition_penalty,
            temperature: args.temperature,
            top_k: args.top_k,
            top_p: args.top_p,
            min_p: args.min_p,
            seed: args.seed,
        },
        max_tokens: args.max_tokens as usize,
        stop: args.stop,
    };
    options.sampling.validate().map_err(|e| Usage(e.to_string()))?;
    let prompt = read_prompt(args.prompt)?;
    if prompt.is_empty() {
        return Err(RuntimeError::EmptyPrompt.into());
    }
    let mut model = load::load(&args.model, false, args.context.map(|c| c as usize))?;
    model.set_kv_type(args.kv_cache);
    let ids = if args.chat {
        let system = args.system.map(|s| Message::new("system", &s));
        let messages: Vec<Message> = system.into_iter().chain([Message::new("user", &prompt)]).collect();
        model.encode_chat(&messages)?
    } else {
        model.encode(&prompt)?
    };

    let mut printed = Ok(());
    let generation = model.generate(&ids, &options, |text| {
        if args.json {
            return ControlFlow::Continue(());
        }
        printed = output::print(text);
        if printed.is_ok() {
            ControlFlow::Continue(())
        } else {
            ControlFlow::Break(())
        }
    });
    printed?;
    let generation = generation?;
    if args.json {
        return output::print_json(&serde_json::json!({
            "model": args.model,
            "text": generation.text,
            "tokens": generation.tokens.len(),
            "token_ids": generation.tokens,
            "prompt_tokens": generation.prompt_tokens,
            "finish": generation.finish,
            "prefill_tokens_per_s": generation.prefill_tokens_per_s(),
            "decode_tokens_per_s": generation.decode_tokens_per_s(),
            "threads": threads,
        }));
    }
    output::print("\n")?;
    output::note(&statistics(&generation));
    Ok(())
}

fn statistics(generation: &Generation) -> String {
    format!(
        "prefill {} tokens, {:.1} tokens/s; decode {} tokens, {:.1} tokens/s",
        generation.prompt_tokens,
        generation.prefill_tokens_per_s(),
        generation.tokens.len(),
        generation.decode_tokens_per_s()
    )
}

fn read_prompt(argument: Option<String>) -> anyhow::Result<String> {
    match argument {
        Some(prompt) if prompt != "-" => return Ok(prompt),
        None if std::io::stdin().is_terminal() => {
            return Err(Usage("no prompt: give it as an argument or through stdin".into()).into());
        }
        _ => {}
    }
    let mut text = String::new();
    std::io::stdin().read_to_string(&mut text).context("cannot read the prompt from stdin")?;
    if text.ends_with('\n') {
        text.pop();
        if text.ends_with('\r') {
            text.pop();
        }
    }
    Ok(text)
}
