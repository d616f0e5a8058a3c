//! Ctrl-C: exit code 130. Files are written under temporary names and renamed when they are complete, so there is nothing to undo.
use super::output::note;
use std::sync::{Mutex, PoisonError};

static HINT: Mutex<Option<String>> = Mutex::new(None);

/// Ends the process on SIGINT and SIGTERM.
pub(super) fn install() -> anyhow::Result<()> {
    ctrlc::set_handler(|| {
        let hint = HINT.lock().unwrap_or_else(PoisonError::into_inner).take();
        note(&format!("\ninterrupted{}", hint.map(|h| format!(": {h}")).unwrap_or_default()));
        std::process::exit(130);
    })?;
    Ok(())
}

/// What to tell the user after Ctrl-C from now on.
pub(super) fn hint(text: Option<String>) {
    *HINT.lock().unwrap_or_else(PoisonError::into_inner) = text;
}
