//! WikiText-2 (raw) through the Hub: the archive of raw text files, as llama.cpp's tests use it, needs no Parquet reader.
use super::{fetch, HubError};
use std::io::Read;

/// Data set repository and file.
const ARCHIVE: (&str, &str) = ("ggml-org/ci", "wikitext-2-raw-v1.zip");

/// Part of the data set.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Split {
    /// For calibration.
    Train,
    /// For perplexity.
    Test,
}

/// The text of a split, its lines joined with blank lines as in papers.
///
/// # Errors
/// The archive cannot be fetched or is damaged.
pub fn text(split: Split) -> Result<String, HubError> {
    let path = fetch::dataset_file(ARCHIVE.0, ARCHIVE.1)?;
    let name = match split {
        Split::Train => "wikitext-2-raw/wiki.train.raw",
        Split::Test => "wikitext-2-raw/wiki.test.raw",
    };
    let io = |error| HubError::Io { action: "read", path: path.clone(), error };
    let damaged = |why: String| HubError::Damaged { path: path.clone(), why: format!("{why}; remove it and try again") };
    let mut archive = zip::ZipArchive::new(std::fs::File::open(&path).map_err(io)?).map_err(|e| damaged(e.to_string()))?;
    let mut text = String::new();
    archive.by_name(name).map_err(|e| damaged(format!("{name}: {e}")))?.read_to_string(&mut text).map_err(io)?;
    Ok(join(&text))
}

/// Every line with its end is a record, a blank one an empty record; records are joined with blank lines.
fn join(raw: &str) -> String {
    let raw = raw.replace("\r\n", "\n");
    let records: Vec<&str> = raw.split_inclusive('\n').map(|line| if line.trim().is_empty() { "" } else { line }).collect();
    records.join("\n\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_joined_as_in_papers() {
        assert_eq!(join(" \n = Title = \n \n Text . \n"), "\n\n = Title = \n\n\n\n\n Text . \n");
        assert_eq!(join(" = Title = \r\n"), " = Title = \n");
        assert_eq!(join(""), "");
    }
}
