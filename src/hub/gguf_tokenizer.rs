//! A `tokenizer.json` rebuilt from a GGUF header: byte-level BPE, or SentencePiece with merges recovered from scores.
use super::gguf::Meta;
use super::HubError;
use candle_core::quantized::gguf_file::Value;
use serde_json::{json, Value as Json};
use std::collections::HashMap;

/// Token types of GGUF.
const UNKNOWN: i64 = 2;
const CONTROL: i64 = 3;
const USER_DEFINED: i64 = 4;

/// Splits of Llama 3 and Qwen 2; they differ in how many digits make a piece.
fn split_pattern(digits: &str) -> String {
    format!(
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}{digits}| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    )
}

/// `tokenizer.json`, `tokenizer_config.json` and `generation_config.json`.
pub(super) fn side_files(meta: &Meta) -> Result<Vec<(String, Vec<u8>)>, HubError> {
    let model = meta.text("tokenizer.ggml.model").ok_or_else(|| meta.bad("has no tokenizer (tokenizer.ggml.model)".to_owned()))?;
    let tokens = strings(meta, "tokenizer.ggml.tokens")?;
    let vocab: HashMap<&str, usize> = tokens.iter().enumerate().map(|(id, token)| (*token, id)).collect();
    if vocab.len() != tokens.len() {
        return Err(meta.bad("has a token twice in tokenizer.ggml.tokens".to_owned()));
    }
    let (mut tokenizer, add_bos) = match model {
        "gpt2" => byte_level(meta, &vocab)?,
        "llama" => (sentence_piece(meta, &tokens, &vocab)?, true),
        other => {
            return Err(
                meta.bad(format!("has a tokenizer of kind `{other}`; supported are gpt2 (byte-level BPE) and llama (SentencePiece)"))
            )
        }
    };
    tokenizer["version"] = "1.0".into();
    tokenizer["added_tokens"] = added_tokens(meta, &tokens).into();

    let token = |key: &str| meta.whole(key).and_then(|id| tokens.get(usize::try_from(id).ok()?)).copied();
    let config = json!({
        "add_bos_token": meta.bool("tokenizer.ggml.add_bos_token").unwrap_or(add_bos),
        "bos_token": token("tokenizer.ggml.bos_token_id"),
        "eos_token": token("tokenizer.ggml.eos_token_id"),
        "chat_template": meta.text("tokenizer.chat_template"),
    });
    let ends: Vec<u64> = ["eos", "eot", "eom"].iter().filter_map(|end| meta.whole(&format!("tokenizer.ggml.{end}_token_id"))).collect();
    let text = |value: &Json| value.to_string().into_bytes();
    Ok(vec![
        ("tokenizer.json".to_owned(), text(&tokenizer)),
        ("tokenizer_config.json".to_owned(), text(&config)),
        ("generation_config.json".to_owned(), text(&json!({"eos_token_id": ends}))),
    ])
}

fn array<'a>(meta: &'a Meta, key: &str) -> Result<&'a Vec<Value>, HubError> {
    let values = meta.get(key).and_then(|v| v.to_vec().ok());
    values.ok_or_else(|| meta.bad(format!("has no usable metadata `{key}`; convert the model again")))
}

fn strings<'a>(meta: &'a Meta, key: &str) -> Result<Vec<&'a str>, HubError> {
    let texts = array(meta, key)?.iter().map(|v| v.to_string().ok().map(String::as_str)).collect::<Option<Vec<_>>>();
    texts.ok_or_else(|| meta.bad(format!("has metadata `{key}` that is not text")))
}

fn added_tokens(meta: &Meta, tokens: &[&str]) -> Vec<Json> {
    let kinds: &[Value] = meta.get("tokenizer.ggml.token_type").and_then(|v| v.to_vec().ok()).map_or(&[], Vec::as_slice);
    let kind = |id: usize| kinds.get(id).and_then(|v| v.to_i32().map(i64::from).or_else(|_| v.to_i64()).ok()).unwrap_or(1);
    let added = tokens.iter().enumerate().filter(|(id, _)| matches!(kind(*id), UNKNOWN | CONTROL | USER_DEFINED));
    added
        .map(|(id, token)| {
            let special = kind(id) != USER_DEFINED;
            json!({"id": id, "content": token, "single_word": false, "lstrip": false, "rstrip": false, "normalized": false, "special": special})
        })
        .collect()
}

/// Byte-level BPE, and whether its kind starts text with BOS.
fn byte_level(meta: &Meta, vocab: &HashMap<&str, usize>) -> Result<(Json, bool), HubError> {
    let merges: Vec<Vec<&str>> = strings(meta, "tokenizer.ggml.merges")?.iter().map(|m| m.splitn(2, ' ').collect()).collect();
    let known = |m: &Vec<&str>| m.len() == 2 && m.iter().all(|part| vocab.contains_key(part)) && vocab.contains_key(m.concat().as_str());
    if let Some(merge) = merges.iter().find(|m| !known(m)) {
        return Err(meta.bad(format!("has a merge {merge:?} of tokens that do not exist")));
    }
    let bytes = |regex: bool| json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": regex});
    let split = |digits: &str| {
        let split = json!({"type": "Split", "pattern": {"Regex": split_pattern(digits)}, "behavior": "Isolated", "invert": false});
        json!({"type": "Sequence", "pretokenizers": [split, bytes(false)]})
    };
    let pre = meta.text("tokenizer.ggml.pre").unwrap_or("default");
    let (pre_tokenizer, normalizer, whole_words, add_bos) = match pre {
        "smollm" => {
            let digits = json!({"type": "Digits", "individual_digits": true});
            (json!({"type": "Sequence", "pretokenizers": [digits, bytes(true)]}), Json::Null, false, false)
        }
        "llama-bpe" | "llama3" | "llama-v3" => (split("{1,3}"), Json::Null, true, true),
        "qwen2" => (split(""), json!({"type": "NFC"}), false, false),
        "default" | "gpt-2" | "gpt2" => (bytes(true), Json::Null, false, false),
        other => {
            let supported = "smollm, llama-bpe, qwen2 and gpt-2";
            return Err(meta.bad(format!("has the pre-tokenizer `{other}`; supported are {supported}")));
        }
    };
    let tokenizer = json!({
        "normalizer": normalizer,
        "pre_tokenizer": pre_tokenizer,
        "post_processor": null,
        "decoder": bytes(true),
        "model": {
            "type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null, "end_of_word_suffix": null,
            "fuse_unk": false, "byte_fallback": false, "ignore_merges": whole_words, "vocab": vocab, "merges": merges,
        },
    });
    Ok((tokenizer, add_bos))
}

/// SentencePiece BPE: every split of a piece into two pieces is a merge; better scores merge first.
fn sentence_piece(meta: &Meta, tokens: &[&str], vocab: &HashMap<&str, usize>) -> Result<Json, HubError> {
    let scores = array(meta, "tokenizer.ggml.scores")?.iter().map(|v| v.to_f32().ok()).collect::<Option<Vec<f32>>>();
    let scores = scores.filter(|s| s.len() == tokens.len()).ok_or_else(|| meta.bad("has unusable tokenizer.ggml.scores".to_owned()))?;
    let mut merges: Vec<(f32, usize, usize, &str, &str)> = Vec::new();
    for (token, score) in tokens.iter().zip(scores) {
        for (at, _) in token.char_indices().skip(1) {
            let (left, right) = token.split_at(at);
            if let (Some(&l), Some(&r)) = (vocab.get(left), vocab.get(right)) {
                merges.push((score, l, r, left, right));
            }
        }
    }
    merges.sort_by(|a, b| b.0.total_cmp(&a.0).then((a.1, a.2).cmp(&(b.1, b.2))));
    let merges: Vec<[&str; 2]> = merges.into_iter().map(|(_, _, _, left, right)| [left, right]).collect();
    let unknown = tokens.get(meta.whole("tokenizer.ggml.unknown_token_id").unwrap_or(0) as usize);
    let replace = |from: &str, to: &str| json!({"type": "Replace", "pattern": {"String": from}, "content": to});
    let mut normalizers = vec![replace(" ", "▁")];
    let mut decoders = vec![replace("▁", " "), json!({"type": "ByteFallback"}), json!({"type": "Fuse"})];
    if meta.bool("tokenizer.ggml.add_space_prefix").unwrap_or(true) {
        normalizers.insert(0, json!({"type": "Prepend", "prepend": "▁"}));
        decoders.push(json!({"type": "Strip", "content": " ", "start": 1, "stop": 0}));
    }
    Ok(json!({
        "normalizer": {"type": "Sequence", "normalizers": normalizers},
        "pre_tokenizer": null,
        "post_processor": null,
        "decoder": {"type": "Sequence", "decoders": decoders},
        "model": {
            "type": "BPE", "dropout": null, "unk_token": unknown, "continuing_subword_prefix": null, "end_of_word_suffix": null,
            "fuse_unk": true, "byte_fallback": true, "ignore_merges": false, "vocab": vocab, "merges": merges,
        },
    }))
}
