//! Tokenizer, BOS rule and chat template of a Hugging Face folder.
use super::HubError;
use serde_json::Value;
use std::path::Path;
use tokenizers::Tokenizer;

/// Files beside the weights that a .ws folder takes over.
const SIDE_FILES: [&str; 4] = ["tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "generation_config.json"];

/// What a folder says about text.
pub(super) struct TextFiles {
    pub(super) tokenizer: Tokenizer,
    pub(super) add_bos: bool,
    pub(super) chat_template: Option<String>,
    /// Ends of text that generation_config.json adds to those of config.json.
    pub(super) ends: Vec<u32>,
    pub(super) side_files: Vec<(String, Vec<u8>)>,
}

/// Reads tokenizer and templates of `dir`; `bos` is the model's beginning of text.
pub(super) fn read(dir: &Path, bos: Option<u32>) -> Result<TextFiles, HubError> {
    let mut side_files = Vec::new();
    for name in SIDE_FILES {
        match std::fs::read(dir.join(name)) {
            Ok(bytes) => side_files.push((name.to_owned(), bytes)),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            Err(error) => return Err(HubError::Io { action: "read", path: dir.join(name), error }),
        }
    }
    from_files(dir, side_files, bos)
}

/// The same from the files' bytes.
pub(super) fn from_files(dir: &Path, side_files: Vec<(String, Vec<u8>)>, bos: Option<u32>) -> Result<TextFiles, HubError> {
    let file = |name: &str| side_files.iter().find(|(n, _)| n == name).map(|(_, bytes)| bytes.as_slice());
    let damaged = |name: &str, why: String| HubError::Damaged { path: dir.join(name), why: format!("{why}; fetch the file again") };
    let bytes = file("tokenizer.json").ok_or_else(|| HubError::Missing {
        path: dir.join("tokenizer.json"),
        fix: "put the model's tokenizer.json into the folder (slow tokenizers are not supported)".to_owned(),
    })?;
    let tokenizer = Tokenizer::from_bytes(bytes).map_err(|e| damaged("tokenizer.json", format!("is no tokenizer: {e}")))?;
    let json = |name: &str| match file(name) {
        Some(bytes) => serde_json::from_slice(bytes).map_err(|e| damaged(name, format!("is not JSON: {e}"))),
        None => Ok(Value::Null),
    };
    let config: Value = json("tokenizer_config.json")?;
    let ends = ends(&json("generation_config.json")?);
    let add_bos = bos.is_some()
        && config["add_bos_token"].as_bool().unwrap_or_else(|| {
            let encoding = tokenizer.encode_fast("a", true);
            encoding.is_ok_and(|e| e.get_ids().len() > 1 && e.get_ids().first().copied() == bos)
        });
    let chat_template = match file("chat_template.jinja") {
        Some(bytes) => Some(String::from_utf8_lossy(bytes).into_owned()),
        None => template(&config["chat_template"]),
    };
    Ok(TextFiles { tokenizer, add_bos, chat_template, ends, side_files })
}

/// A template, or the one named `default` of several.
fn template(value: &Value) -> Option<String> {
    let named = |entries: &Vec<Value>| {
        let default = entries.iter().find(|e| e["name"] == "default").or_else(|| entries.first())?;
        default["template"].as_str().map(str::to_owned)
    };
    value.as_str().map(str::to_owned).or_else(|| value.as_array().and_then(named))
}

/// Token ids of `eos_token_id` in generation_config.json: none, one or many.
fn ends(config: &Value) -> Vec<u32> {
    let ends = &config["eos_token_id"];
    let id = |v: &Value| v.as_u64().and_then(|v| u32::try_from(v).ok());
    id(ends).into_iter().chain(ends.as_array().into_iter().flatten().filter_map(id)).collect()
}
