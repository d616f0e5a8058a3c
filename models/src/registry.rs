//! Model aliases (`registry.toml`).

/// An alias and where it leads.
#[derive(Debug, Clone, PartialEq, serde::Deserialize)]
pub struct Alias {
    /// `llama3-8b`, ...
    pub name: String,
    /// Hub repository.
    pub repo: String,
}

/// All aliases, in file order.
pub fn aliases() -> &'static [Alias] {
    todo!()
}
