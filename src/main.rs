//! The `wsrun` program: everything is in the library.

/// A token allocates some thousand times, and the system's allocator gives large blocks back each time, to get them again page by page: SmolLM2-135M at 3 bits, in turn,
/// 1.05 times as fast with one thread and 1.13 with two (Sapphire Rapids class Xeon).
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> std::process::ExitCode {
    wsrun::cli::main()
}
