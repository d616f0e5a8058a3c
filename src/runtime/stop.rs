//! Stop strings, which may straddle tokens.

/// Holds back text that may be the beginning of a stop string.
#[derive(Debug, Clone)]
pub struct StopMatcher {
    stops: Vec<String>,
    held: String,
}

impl StopMatcher {
    /// A matcher for these strings. Empty ones are ignored: they would stop before the first character.
    pub fn new(stops: &[String]) -> Self {
        Self { stops: stops.iter().filter(|s| !s.is_empty()).cloned().collect(), held: String::new() }
    }

    /// Takes the next piece of text; returns what can be emitted, and true if a stop string was completed: the text then ends right before it.
    ///
    /// The stop string that is complete first wins, of several complete at once the longest, however the text is cut into pieces.
    pub fn push(&mut self, piece: &str) -> (String, bool) {
        let from = self.held.len();
        self.held.push_str(piece);
        let first = (from..=self.held.len())
            .filter(|end| self.held.is_char_boundary(*end))
            .find_map(|end| Some(end - self.stops.iter().filter(|s| self.held[..end].ends_with(*s)).map(String::len).max()?));
        if let Some(start) = first {
            self.held.truncate(start);
            return (std::mem::take(&mut self.held), true);
        }
        let keep = self.stops.iter().map(|s| overlap(&self.held, s)).max().unwrap_or(0);
        let rest = self.held.split_off(self.held.len() - keep);
        (std::mem::replace(&mut self.held, rest), false)
    }

    /// What is still held back when the text ends without a stop string.
    pub fn finish(&mut self) -> String {
        std::mem::take(&mut self.held)
    }
}

/// Length of the longest end of `text` that is a proper beginning of `stop`.
fn overlap(text: &str, stop: &str) -> usize {
    stop.char_indices().map(|(i, _)| i).rev().find(|&n| text.ends_with(&stop[..n])).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(stops: &[&str], pieces: &[&str]) -> (Vec<String>, bool) {
        let mut matcher = StopMatcher::new(&stops.iter().map(|s| s.to_string()).collect::<Vec<_>>());
        let mut out = Vec::new();
        for piece in pieces {
            let (text, stopped) = matcher.push(piece);
            out.push(text);
            if stopped {
                return (out, true);
            }
        }
        out.push(matcher.finish());
        (out, false)
    }

    #[test]
    fn a_stop_string_may_straddle_pieces() {
        assert_eq!(run(&["\n\nUser:"], &["Hi.", "\n", "\nUs", "er: more"]), (vec!["Hi.".into(), "".into(), "".into(), "".into()], true));
        assert_eq!(run(&["STOP"], &["aST", "OPb"]).0.concat(), "a");
    }

    #[test]
    fn text_that_only_began_like_a_stop_string_is_emitted() {
        let (out, stopped) = run(&["STOP"], &["aST", "Ox", "ST"]);
        assert_eq!((out, stopped), (vec!["a".into(), "STOx".into(), "".into(), "ST".into()], false));
    }

    #[test]
    fn overlapping_beginnings_are_found() {
        assert_eq!(run(&["aab"], &["a", "a", "a", "b"]), (vec!["".into(), "".into(), "a".into(), "".into()], true));
        assert_eq!(run(&["ééx"], &["é", "éé", "x!"]).0.concat(), "é");
    }

    #[test]
    fn the_cut_into_pieces_does_not_matter() {
        let text = "one abcd two";
        for stops in [&["abcd", "bc"][..], &["bcd", "d"], &["cd two", "two", "wo"]] {
            let whole = run(stops, &[text]).0.concat();
            for i in 0..text.len() {
                for j in i..text.len() {
                    assert_eq!(run(stops, &[&text[..i], &text[i..j], &text[j..]]).0.concat(), whole, "{stops:?} cut at {i} and {j}");
                }
            }
        }
    }

    #[test]
    fn no_stop_strings_hold_nothing_back() {
        assert_eq!(run(&[], &["a", "b"]), (vec!["a".into(), "b".into(), "".into()], false));
        assert_eq!(run(&[""], &["a"]), (vec!["a".into(), "".into()], false));
    }
}
