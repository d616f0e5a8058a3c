//! Tokens to text, piece by piece.
use tokenizers::Tokenizer;

/// Incremental detokeniser: the pieces, joined, are what decoding all tokens at once gives, and no piece ends inside a UTF-8 character.
///
/// Only a short window of tokens is decoded at a time. It starts one settled piece back, because decoders treat the first
/// token of a text differently (SentencePiece drops its leading space).
pub struct Detokenizer<'a> {
    tokenizer: &'a Tokenizer,
    byte_fallback: bool,
    window: Vec<u32>,
    /// Tokens of the window whose text is settled.
    settled: usize,
    /// Bytes of the window's text that are emitted.
    emitted: usize,
}

/// What incomplete UTF-8 decodes to.
const REPLACEMENT: char = char::REPLACEMENT_CHARACTER;

impl<'a> Detokenizer<'a> {
    /// At the beginning of a text.
    pub fn new(tokenizer: &'a Tokenizer) -> Self {
        let byte_fallback = tokenizer.token_to_id("<0x41>").is_some_and(|id| tokenizer.decode(&[id], true).is_ok_and(|text| text == "A"));
        Self { tokenizer, byte_fallback, window: Vec::new(), settled: 0, emitted: 0 }
    }

    /// After the tokens of a prompt, whose text is not repeated.
    ///
    /// # Errors
    /// If the tokenizer's decoder fails.
    pub fn after(tokenizer: &'a Tokenizer, prompt: &[u32]) -> Result<Self, tokenizers::Error> {
        // A few tokens are context enough: a decoder looks no further back than one run of byte tokens.
        let mut this = Self::new(tokenizer);
        for &id in &prompt[prompt.len().saturating_sub(16)..] {
            this.push(id)?;
        }
        this.finish()?;
        Ok(this)
    }

    /// Takes the next token, returns the text that is certain now; often empty. Special tokens and ids without a token have no text.
    ///
    /// # Errors
    /// If the tokenizer's decoder fails.
    pub fn push(&mut self, id: u32) -> Result<String, tokenizers::Error> {
        let Some(token) = self.tokenizer.id_to_token(id) else { return Ok(String::new()) };
        if self.tokenizer.get_added_vocabulary().is_special_token(&token) {
            return Ok(String::new());
        }
        self.window.push(id);
        if self.byte_fallback && is_byte(&token) {
            // One invalid byte changes the text of its whole run of byte tokens.
            return Ok(String::new());
        }
        let text = self.tokenizer.decode(&self.window, true)?;
        // A character that is cut off by the end of the tokens shows as one replacement character at the end.
        let certain = text.strip_suffix(REPLACEMENT).unwrap_or(&text).len();
        let piece = text.get(self.emitted..certain).unwrap_or_default().to_string();
        self.emitted = self.emitted.max(certain);
        // A window without text of its own could not keep the next token's leading space.
        if certain == text.len() && !piece.is_empty() {
            self.slide()?;
        }
        Ok(piece)
    }

    /// Text that was still held back at the end: broken characters show as U+FFFD.
    ///
    /// # Errors
    /// If the tokenizer's decoder fails.
    pub fn finish(&mut self) -> Result<String, tokenizers::Error> {
        let text = self.tokenizer.decode(&self.window, true)?;
        let piece = text.get(self.emitted..).unwrap_or_default().to_string();
        if !piece.is_empty() {
            self.slide()?;
        }
        Ok(piece)
    }

    /// Drops all but the last settled piece.
    fn slide(&mut self) -> Result<(), tokenizers::Error> {
        self.window.drain(..self.settled);
        self.settled = self.window.len();
        self.emitted = self.tokenizer.decode(&self.window, true)?.len();
        Ok(())
    }
}

/// `<0xE2>`: a token that stands for one byte.
fn is_byte(token: &str) -> bool {
    token.len() == 6 && token.strip_prefix("<0x").and_then(|t| t.strip_suffix('>')).is_some_and(|hex| u8::from_str_radix(hex, 16).is_ok())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::json;

    fn tokenizer(model: serde_json::Value, decoder: serde_json::Value, pre_tokenizer: serde_json::Value) -> Tokenizer {
        let text = json!({
            "version": "1.0", "truncation": null, "padding": null, "normalizer": null, "pre_tokenizer": pre_tokenizer, "post_processor": null,
            "added_tokens": [{"id": 0, "content": "<s>", "single_word": false, "lstrip": false, "rstrip": false, "normalized": false, "special": true}],
            "model": model, "decoder": decoder,
        });
        text.to_string().parse().unwrap()
    }

    /// Id 0 is special, 1 to 256 are the bytes, then words.
    fn sentencepiece() -> Tokenizer {
        let mut vocab = serde_json::Map::new();
        vocab.insert("<s>".into(), json!(0));
        for byte in 0..256 {
            vocab.insert(format!("<0x{byte:02X}>"), json!(1 + byte));
        }
        for (i, word) in ["▁", "▁Hello", "▁▁", "world", "é", "", "\n"].iter().enumerate() {
            vocab.insert(word.to_string(), json!(257 + i));
        }
        let decoder = json!({"type": "Sequence", "decoders": [
            {"type": "Replace", "pattern": {"String": "▁"}, "content": " "}, {"type": "ByteFallback"}, {"type": "Fuse"},
            {"type": "Strip", "content": " ", "start": 1, "stop": 0}]});
        tokenizer(json!({"type": "BPE", "vocab": vocab, "merges": [], "byte_fallback": true, "fuse_unk": true}), decoder, json!(null))
    }

    /// Id 0 is special, the others are all byte characters and a few words.
    fn byte_level() -> Tokenizer {
        let mut words: Vec<String> = tokenizers::pre_tokenizers::byte_level::ByteLevel::alphabet().into_iter().map(String::from).collect();
        words.sort();
        words.extend(["ĠHello", "world", "Ã©", "âĤ", "ï¿½"].map(String::from));
        let mut vocab = serde_json::Map::new();
        vocab.insert("<s>".into(), json!(0));
        vocab.extend(words.into_iter().zip(1..).map(|(w, id)| (w, json!(id))));
        let decoder = json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true});
        tokenizer(json!({"type": "BPE", "vocab": vocab, "merges": []}), decoder.clone(), decoder)
    }

    fn streamed(tokenizer: &Tokenizer, ids: &[u32]) -> String {
        let mut detokenizer = Detokenizer::new(tokenizer);
        let mut text: String = ids.iter().map(|id| detokenizer.push(*id).unwrap()).collect();
        text += &detokenizer.finish().unwrap();
        text
    }

    proptest! {
        #[test]
        fn pieces_are_the_whole_sentencepiece(ids in prop::collection::vec(prop_oneof![Just(0u32), 190..260u32, 257..300u32], 0..24)) {
            let t = sentencepiece();
            prop_assert_eq!(streamed(&t, &ids), t.decode(&ids, true).unwrap());
        }

        #[test]
        fn pieces_are_the_whole_byte_level(ids in prop::collection::vec(0..264u32, 0..24)) {
            let t = byte_level();
            prop_assert_eq!(streamed(&t, &ids), t.decode(&ids, true).unwrap());
        }

        #[test]
        fn text_streams_character_by_character(text in "[ a-zé€\u{1F600}]{0,12}", sentencepiece_like in any::<bool>()) {
            let t = if sentencepiece_like { sentencepiece() } else { byte_level() };
            let ids = t.encode(text.as_str(), false).unwrap().get_ids().to_vec();
            let mut detokenizer = Detokenizer::new(&t);
            for (i, id) in ids.iter().enumerate() {
                let piece = detokenizer.push(*id).unwrap();
                prop_assert!(!piece.contains(REPLACEMENT), "{:?} at {}", piece, i);
            }
        }
    }

    #[test]
    fn a_character_comes_with_its_last_byte() {
        let t = byte_level();
        let ids = t.encode("a€", false).unwrap().get_ids().to_vec();
        let mut detokenizer = Detokenizer::new(&t);
        let pieces: Vec<String> = ids.iter().map(|id| detokenizer.push(*id).unwrap()).collect();
        assert_eq!(pieces, ["a", "", "", "€"]);
    }

    #[test]
    fn the_first_word_after_a_prompt_keeps_its_space() {
        let t = sentencepiece();
        let hello = t.token_to_id("▁Hello").unwrap();
        assert_eq!(Detokenizer::new(&t).push(hello).unwrap(), "Hello");
        assert_eq!(Detokenizer::after(&t, &[0, hello]).unwrap().push(hello).unwrap(), " Hello");
    }

    #[test]
    fn an_unfinished_character_shows_at_the_end() {
        let t = byte_level();
        let half = t.token_to_id("âĤ").unwrap();
        let mut detokenizer = Detokenizer::new(&t);
        assert_eq!(detokenizer.push(half).unwrap(), "");
        assert_eq!(detokenizer.finish().unwrap(), "\u{FFFD}");
    }
}
