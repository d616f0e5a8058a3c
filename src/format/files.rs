//! Files: mapped for reading, written under a temporary name.
use super::{FormatError, Violation};
use memmap2::Mmap;
use std::fs::{self, File};
use std::io;
use std::path::Path;

/// Longest JSON file (config, index) that is read.
const LONGEST_JSON: usize = 64 << 20;

/// Maps a regular file.
pub(super) fn map(path: &Path) -> Result<Mmap, FormatError> {
    let io = |error| FormatError::Io { action: "open", path: path.to_owned(), error };
    // Opening a pipe would wait for its other end.
    if !fs::metadata(path).map_err(io)?.is_file() {
        return Err(FormatError::Damaged { path: path.to_owned(), violation: Violation::NotAFile });
    }
    map_open(&File::open(path).map_err(io)?).map_err(io)
}

pub(super) fn map_open(file: &File) -> io::Result<Mmap> {
    // SAFETY: the map is read-only; whoever changes a model's file while it is in use gets wrong numbers or a bus error, as with every
    // memory-mapped format. All offsets are checked against the length at the time of mapping.
    unsafe { Mmap::map(file) }
}

/// Reads a JSON file of bounded length.
pub(super) fn read_json<T: for<'de> serde::Deserialize<'de>>(path: &Path) -> Result<T, FormatError> {
    let damaged = |violation| FormatError::Damaged { path: path.to_owned(), violation };
    let text = map(path)?;
    if text.len() > LONGEST_JSON {
        return Err(damaged(Violation::TooLong(text.len())));
    }
    serde_json::from_slice(&text).map_err(|e| damaged(Violation::Json(e)))
}

/// True for the name of a file in a folder: no separators, no `..`.
pub(super) fn is_plain(name: &str) -> bool {
    !name.contains(['/', '\\', '\0']) && Path::new(name).file_name() == Some(name.as_ref())
}

/// Writes a file under a temporary name in the same folder, syncs it, lets `check` read it and renames it.
///
/// The temporary name follows from the name, so that what a killed process left is overwritten by the next one.
pub(crate) fn write(
    path: &Path,
    fill: impl FnOnce(&mut File) -> io::Result<()>,
    check: impl FnOnce(&File) -> Result<(), FormatError>,
) -> Result<(), FormatError> {
    let io = |error| FormatError::Io { action: "write", path: path.to_owned(), error };
    let name = path.file_name().ok_or_else(|| io(io::ErrorKind::InvalidFilename.into()))?;
    let temporary = path.with_file_name(format!(".{}.tmp", name.to_string_lossy()));
    let attempt = || {
        // A link that stands there is not followed.
        match fs::remove_file(&temporary) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(io(error)),
            _ => {}
        }
        let mut file = File::options().read(true).write(true).create_new(true).open(&temporary).map_err(io)?;
        fill(&mut file).and_then(|()| file.sync_all()).map_err(io)?;
        check(&file)?;
        fs::rename(&temporary, path).map_err(io)?;
        sync_folder(parent(path))
    };
    attempt().inspect_err(|_| {
        // The first error is the one that counts.
        let _ = fs::remove_file(&temporary);
    })
}

/// The folder that a path stands in.
pub(crate) fn parent(path: &Path) -> &Path {
    path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// A rename is only durable once its folder is.
pub(super) fn sync_folder(folder: &Path) -> Result<(), FormatError> {
    let sync = || File::open(folder)?.sync_all();
    sync().map_err(|error| FormatError::Io { action: "sync", path: folder.to_owned(), error })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_names_inside_of_the_folder_are_plain() {
        for name in ["", ".", "..", "/", "a/b", "../a", "/a", "a/", "a\\b", "a\0"] {
            assert!(!is_plain(name), "{name:?}");
        }
        assert!(is_plain("model-00001-of-00002.safetensors"));
    }
}
