//! Text files.
use std::path::Path;

/// Reads a UTF-8 file; line ends `\r\n` and `\r` become `\n`, as text files are read where published perplexities are measured (Python).
///
/// # Errors
/// If the file cannot be read or is not UTF-8.
pub fn read(path: &Path) -> std::io::Result<String> {
    let text = std::fs::read_to_string(path)?;
    Ok(if text.contains('\r') { text.replace("\r\n", "\n").replace('\r', "\n") } else { text })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn line_ends_are_one_character() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), "a\r\nb\rc\nd\r\n\r\n").unwrap();
        assert_eq!(read(file.path()).unwrap(), "a\nb\nc\nd\n\n");
        std::fs::write(file.path(), b"\xff").unwrap();
        assert!(read(file.path()).is_err());
    }
}
