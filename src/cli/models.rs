//! `wsrun models`.
use super::output;
use crate::hub;
use serde_json::json;
use std::path::Path;
use ws_models::registry;

/// List the aliases, each usable as NAME and as NAME-wsR with any rate R from 1 to 8.
#[derive(clap::Args)]
pub(super) struct Args {
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

pub(super) fn run(args: Args) -> anyhow::Result<()> {
    let aliases = registry::aliases();
    let home = hub::home();
    let (copies, packed) = (folders(&home.join("models")), folders(&home.join("packed")));
    if args.json {
        let list: Vec<_> = aliases.iter().map(|a| json!({"name": a.name, "repo": a.repo})).collect();
        return output::print_json(&json!({"models": list, "home": home.display().to_string(), "copies": copies, "packed": packed}));
    }
    let width = aliases.iter().map(|a| a.name.len()).max().unwrap_or(0);
    let mut text: String = aliases.iter().map(|a| format!("{:width$}  {}\n", a.name, a.repo)).collect();
    for (what, names) in [("local copies", copies), ("packed", packed)] {
        if !names.is_empty() {
            text += &format!("\n{what} in {}: {}\n", home.display(), names.join(", "));
        }
    }
    output::print(&text)
}

/// Names of the finished models in a folder.
fn folders(path: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(path).into_iter().flatten().flatten();
    let models = entries.filter(|e| e.path().is_dir() && e.path().extension().is_none_or(|x| x != "partial"));
    let mut names: Vec<String> = models.map(|e| e.file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    names
}
