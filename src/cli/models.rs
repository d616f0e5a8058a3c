//! `wsrun models`.
use super::output;
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
    if args.json {
        let list: Vec<_> = aliases.iter().map(|a| serde_json::json!({"name": a.name, "repo": a.repo})).collect();
        return output::print_json(&serde_json::json!({"models": list}));
    }
    let width = aliases.iter().map(|a| a.name.len()).max().unwrap_or(0);
    let lines: String = aliases.iter().map(|a| format!("{:width$}  {}\n", a.name, a.repo)).collect();
    output::print(&lines)
}
