//! Weights, tokenizer and chat template of one model.
use super::{ChatTemplate, Message, RuntimeError, Session};
use crate::hub::Opened;
use serde_json::Value;
use tokenizers::Tokenizer;
use ws_models::model::{KvType, Model};

/// A model that reads and writes text.
pub struct TextModel {
    model: Model,
    tokenizer: Tokenizer,
    /// Prepended to every text that does not start with it.
    bos: Option<u32>,
    eos: Vec<u32>,
    chat_template: Option<ChatTemplate>,
    context: usize,
    kv: KvType,
}

impl TextModel {
    /// Loads all weights; packed ones stay where the source has them, in memory or in a memory map.
    ///
    /// # Errors
    /// [`RuntimeError::Weights`] for a weight that is missing or wrong, [`RuntimeError::Template`] for a broken chat template.
    pub fn load(opened: Opened) -> Result<Self, RuntimeError> {
        let tokenizer_config = side_file(&opened, "tokenizer_config.json");
        let generation_config = side_file(&opened, "generation_config.json");
        let Opened { config, weights, mut tokenizer, add_bos, chat_template, .. } = opened;
        // Either would change a text silently; some tokenizer.json files carry them from training.
        tokenizer.with_truncation(None).map_err(RuntimeError::Tokenizer)?;
        tokenizer.with_padding(None);
        let special = |name: &str, id: Option<u32>| {
            let entry = &tokenizer_config[name];
            let text = entry.as_str().or_else(|| entry["content"].as_str()).map(String::from);
            text.or_else(|| tokenizer.id_to_token(id?)).unwrap_or_default()
        };
        let (bos_token, eos_token) = (special("bos_token", config.bos), special("eos_token", config.eos.first().copied()));
        let bos = if add_bos { config.bos.or_else(|| tokenizer.token_to_id(&bos_token)) } else { None };
        let mut eos = config.eos.clone();
        eos.extend(tokenizer.token_to_id(&eos_token));
        eos.extend(ids(&generation_config["eos_token_id"]));
        let chat_template = chat_template.map(|source| ChatTemplate::new(&source, &bos_token, &eos_token)).transpose()?;
        let context = config.max_context;
        let model = Model::load(config, &*weights).map_err(RuntimeError::Weights)?;
        Ok(Self { model, tokenizer, bos, eos, chat_template, context, kv: KvType::default() })
    }

    /// Limits (or restores) the context: prompt and generated tokens together. It starts as the model's longest.
    ///
    /// # Errors
    /// [`RuntimeError::Context`] if it is 0 or beyond the model's longest.
    pub fn set_context(&mut self, context: usize) -> Result<(), RuntimeError> {
        let longest = self.model.config.max_context;
        if context == 0 || context > longest {
            return Err(RuntimeError::Context { context, longest });
        }
        self.context = context;
        Ok(())
    }

    /// How the sessions to come store keys and values: half precision if this is not called.
    pub fn set_kv_type(&mut self, kv: KvType) {
        self.kv = kv;
    }

    /// Tokens that a prompt and its continuation may have together.
    pub fn context(&self) -> usize {
        self.context
    }

    /// The network alone.
    pub fn model(&self) -> &Model {
        &self.model
    }

    /// The tokenizer, without truncation and padding.
    pub fn tokenizer(&self) -> &Tokenizer {
        &self.tokenizer
    }

    /// The token that every text begins with, if the tokenizer's rule says so.
    pub fn bos(&self) -> Option<u32> {
        self.bos
    }

    /// Tokens at which generation ends.
    pub fn eos(&self) -> &[u32] {
        &self.eos
    }

    /// Tokens of a text, with BOS in front if the tokenizer's rule says so.
    ///
    /// # Errors
    /// [`RuntimeError::EmptyPrompt`] for an empty text, [`RuntimeError::Vocabulary`] for a tokenizer of another model.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>, RuntimeError> {
        let encoding = self.tokenizer.encode_fast(text, false).map_err(RuntimeError::Tokenizer)?;
        if encoding.is_empty() {
            return Err(RuntimeError::EmptyPrompt);
        }
        self.with_bos(encoding.get_ids())
    }

    /// Tokens of a conversation, ready for the assistant's next turn. The template writes BOS itself where the model wants one.
    ///
    /// # Errors
    /// [`RuntimeError::NoChatTemplate`], or [`RuntimeError::Template`] if the template refuses the messages.
    pub fn encode_chat(&self, messages: &[Message]) -> Result<Vec<u32>, RuntimeError> {
        let text = self.chat_template.as_ref().ok_or(RuntimeError::NoChatTemplate)?.render(messages)?;
        let encoding = self.tokenizer.encode_fast(text, false).map_err(RuntimeError::Tokenizer)?;
        if encoding.is_empty() {
            return Err(RuntimeError::EmptyPrompt);
        }
        self.check(encoding.get_ids())?;
        Ok(encoding.get_ids().to_vec())
    }

    /// `ids` with BOS in front if the tokenizer's rule says so and it is not there yet.
    ///
    /// # Errors
    /// [`RuntimeError::Vocabulary`] if an id is beyond the model's vocabulary.
    pub fn with_bos(&self, ids: &[u32]) -> Result<Vec<u32>, RuntimeError> {
        let bos = self.bos.filter(|bos| ids.first() != Some(bos));
        let all: Vec<u32> = bos.into_iter().chain(ids.iter().copied()).collect();
        self.check(&all)?;
        Ok(all)
    }

    /// A new sequence with room for `capacity` tokens.
    ///
    /// # Errors
    /// [`RuntimeError::Context`] if that is 0 or more than [`TextModel::context`].
    pub fn session(&self, capacity: usize) -> Result<Session<'_>, RuntimeError> {
        if capacity == 0 || capacity > self.context {
            return Err(RuntimeError::Context { context: capacity, longest: self.context });
        }
        Session::new(&self.model, self.kv, capacity)
    }

    fn check(&self, ids: &[u32]) -> Result<(), RuntimeError> {
        let vocab = self.model.config.vocab;
        match ids.iter().find(|id| **id as usize >= vocab) {
            Some(&token) => Err(RuntimeError::Vocabulary { token, vocab }),
            None => Ok(()),
        }
    }
}

/// A JSON file that came with the model; null if it has none.
fn side_file(opened: &Opened, name: &str) -> Value {
    let bytes = opened.side_files.iter().find(|(n, _)| n == name).map(|(_, bytes)| bytes.as_slice());
    bytes.and_then(|b| serde_json::from_slice(b).ok()).unwrap_or(Value::Null)
}

/// One id or a list of them.
fn ids(value: &Value) -> Vec<u32> {
    let one = |v: &Value| v.as_u64().and_then(|id| u32::try_from(id).ok());
    match value {
        Value::Array(list) => list.iter().filter_map(one).collect(),
        other => one(other).into_iter().collect(),
    }
}
