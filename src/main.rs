fn main() -> std::process::ExitCode {
    wsrun::cli::main()
}
