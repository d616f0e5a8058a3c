//! The `wsrun` program: everything is in the library.
fn main() -> std::process::ExitCode {
    wsrun::cli::main()
}
