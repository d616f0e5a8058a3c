//! Tokenizers rebuilt from GGUF headers: the ids of texts whose pieces depend on each rule.
use crate::common::Fixture;
use crate::gguf_file::{array, bool, f32, text, texts, u32, Field, Gguf};
use crate::support::small;
use candle_core::quantized::GgmlDType;
use serde_json::Value;
use wsrun::hub::{Opened, Source};

const NORMAL: i32 = 1;
const UNKNOWN: i32 = 2;
const CONTROL: i32 = 3;
const USER: i32 = 4;
const BYTE: i32 = 6;

const MERGES: [&str; 14] = ["1 2", "12 3", "4 5", "123 45", "h e", "l l", "he ll", "hell o", "Ġ a", "Ġ Ġ", "' L", "'L L", "! Ċ", "Ċ Ċ"];

/// A model with these tokens, and the tokens.
struct Rebuilt {
    opened: Opened,
    tokens: Vec<String>,
}

impl Rebuilt {
    fn new(tokens: &[(String, i32)], edit: impl FnOnce(&mut Gguf)) -> Self {
        let f = Fixture::with(&small());
        let mut gguf = Gguf::convert(&f.path("model"), GgmlDType::F32);
        let kinds: Vec<i32> = tokens.iter().map(|t| t.1).collect();
        let tokens: Vec<String> = tokens.iter().map(|t| t.0.clone()).collect();
        gguf.set("tokenizer.ggml.tokens", texts(&tokens));
        gguf.set("tokenizer.ggml.token_type", array(&kinds, |k| Field(5, k.to_le_bytes().to_vec())));
        gguf.set("tokenizer.ggml.bos_token_id", u32(1));
        edit(&mut gguf);
        gguf.write(&f.path("model.gguf"));
        Self { opened: Source::Gguf(f.path("model.gguf")).open().unwrap(), tokens }
    }

    fn ids(&self, text: &str) -> Vec<u32> {
        self.opened.tokenizer.encode(text, false).unwrap().get_ids().to_vec()
    }

    fn pieces(&self, text: &str) -> Vec<&str> {
        self.ids(text).into_iter().map(|id| self.tokens[id as usize].as_str()).collect()
    }

    fn decode(&self, text: &str) -> String {
        self.opened.tokenizer.decode(&self.ids(text), false).unwrap()
    }
}

/// The 256 bytes, the merged tokens, a word without merges, a control token, a token of the user's.
fn byte_level(pre: &str) -> Rebuilt {
    let f = Fixture::with(&small());
    let json: Value = serde_json::from_slice(&std::fs::read(f.path("model/tokenizer.json")).unwrap()).unwrap();
    let mut letters: Vec<(u64, &String)> =
        json["model"]["vocab"].as_object().unwrap().iter().map(|(t, id)| (id.as_u64().unwrap(), t)).collect();
    letters.sort();
    let mut tokens: Vec<(String, i32)> = letters.into_iter().take(256).map(|(_, t)| (t.clone(), NORMAL)).collect();
    tokens.extend(MERGES.iter().map(|m| (m.replace(' ', ""), NORMAL)));
    tokens.extend([("qz".into(), NORMAL), ("<|end|>".into(), CONTROL), ("<tool>".into(), USER)]);
    Rebuilt::new(&tokens, |gguf| {
        gguf.set("tokenizer.ggml.pre", text(pre));
        gguf.set("tokenizer.ggml.merges", texts(&MERGES));
    })
}

#[test]
fn pre_tokenizers_split_as_their_models_do() {
    let singles = ["1", "2", "3", "4", "5"];
    let (any_case, lower_case) = (["I", "'LL"], ["I", "'", "L", "L"]);
    let (with_mark, without_mark) = (["hello", "!Ċ", "Ċ"], ["hello", "!", "ĊĊ"]);
    let (composed, apart) = (["Ã", "©"], ["e", "Ì", "ģ"]);
    type Case<'a> = (&'a str, &'a [&'a str], &'a [&'a str], &'a [&'a str], &'a [&'a str], &'a [&'a str]);
    let cases: [Case; 6] = [
        ("llama-bpe", &["123", "45"], &any_case, &with_mark, &apart, &["qz"]),
        ("llama3", &["123", "45"], &any_case, &with_mark, &apart, &["qz"]),
        ("qwen2", &singles, &any_case, &with_mark, &composed, &["q", "z"]),
        ("smollm", &singles, &lower_case, &without_mark, &apart, &["q", "z"]),
        ("gpt-2", &["12345"], &lower_case, &without_mark, &apart, &["q", "z"]),
        ("default", &["12345"], &lower_case, &without_mark, &apart, &["q", "z"]),
    ];
    for (pre, digits, contraction, line_ends, accent, word) in cases {
        let t = byte_level(pre);
        assert_eq!(t.pieces("12345"), digits, "{pre}");
        assert_eq!(t.pieces("I'LL"), contraction, "{pre}");
        assert_eq!(t.pieces("hello!\n\n"), line_ends, "{pre}");
        assert_eq!(t.pieces("e\u{301}"), accent, "{pre}");
        assert_eq!(t.pieces("qz"), word, "{pre}");
        assert_eq!(t.pieces("a   a"), ["a", "ĠĠ", "Ġa"], "{pre}");
        assert_eq!(t.pieces("h<|end|>e<tool>"), ["h", "<|end|>", "e", "<tool>"], "{pre}");
        let mixed = "Zürich, 東京 👍\r\n\tend  ";
        assert_eq!(t.decode(mixed), mixed, "{pre}");
    }
}

#[test]
fn control_tokens_are_special_and_those_of_users_are_not() {
    let t = byte_level("qwen2");
    assert_eq!(t.opened.tokenizer.decode(&t.ids("h<|end|>e<tool>"), true).unwrap(), "he<tool>");
}

#[test]
fn bos_follows_the_kind_unless_the_header_says_otherwise() {
    for (pre, expected) in [("llama-bpe", true), ("qwen2", false), ("smollm", false)] {
        assert_eq!(byte_level(pre).opened.add_bos, expected, "{pre}");
    }
    for says in [false, true] {
        let set = |gguf: &mut Gguf| gguf.set("tokenizer.ggml.add_bos_token", bool(says));
        assert_eq!(sentence_piece(&[], set).opened.add_bos, says);
    }
    assert!(sentence_piece(&[], |_| {}).opened.add_bos);
}

#[test]
fn every_end_of_text_is_taken() {
    let t = sentence_piece(&[], |gguf| {
        gguf.set("tokenizer.ggml.eos_token_id", u32(2));
        gguf.set("tokenizer.ggml.eot_token_id", u32(7));
        gguf.set("tokenizer.ggml.eom_token_id", u32(9));
    });
    assert_eq!(t.opened.config.eos, [2, 7, 9]);
    assert_eq!(t.opened.config.bos, Some(1));
}

/// `<unk>`, `<s>`, `</s>`, the bytes, some letters, and pieces that are worth less the later they come.
fn sentence_piece(pieces: &[&str], edit: impl FnOnce(&mut Gguf)) -> Rebuilt {
    let mut tokens = vec![("<unk>".to_owned(), UNKNOWN), ("<s>".to_owned(), CONTROL), ("</s>".to_owned(), CONTROL)];
    tokens.extend((0..256).map(|byte| (format!("<0x{byte:02X}>"), BYTE)));
    let first = tokens.len();
    tokens.extend(pieces.iter().chain(&["▁", "a", "b", "c", "e", "h", "t"]).map(|p| ((*p).to_owned(), NORMAL)));
    let scores: Vec<f32> = (0..tokens.len()).map(|id| if id < first { 0.0 } else { first as f32 - id as f32 }).collect();
    Rebuilt::new(&tokens, |gguf| {
        gguf.set("tokenizer.ggml.model", text("llama"));
        gguf.unset("tokenizer.ggml.pre");
        gguf.unset("tokenizer.ggml.merges");
        gguf.set("tokenizer.ggml.scores", array(&scores, |s| f32(*s)));
        edit(gguf);
    })
}

#[test]
fn sentence_pieces_merge_by_their_scores() {
    let t = sentence_piece(&["▁t", "he", "▁the", "ab", "bc"], |_| {});
    assert_eq!(t.pieces("the cab"), ["▁the", "▁", "c", "ab"]);
    assert_eq!(t.pieces("abc"), ["▁", "ab", "c"]);
    assert_eq!(sentence_piece(&["bc", "ab"], |_| {}).pieces("abc"), ["▁", "a", "bc"]);
    assert_eq!(t.pieces("é"), ["▁", "<0xC3>", "<0xA9>"], "bytes stand for what has no piece");
    assert_eq!(t.ids("<s>")[0], 1);
    for text in ["the cab", " the  cab ", "é 東京\n", "abc"] {
        assert_eq!(t.decode(text), text);
    }
}

#[test]
fn a_space_in_front_is_only_where_the_header_wants_it() {
    let t = sentence_piece(&["ab"], |gguf| gguf.set("tokenizer.ggml.add_space_prefix", bool(false)));
    assert_eq!(t.pieces("ab a"), ["ab", "▁", "a"]);
    assert_eq!(t.decode(" ab"), " ab");
}
