//! The command line: one file a subcommand.

/// Parses arguments, runs one command, prints one error.
pub fn main() -> std::process::ExitCode {
    todo!()
}
