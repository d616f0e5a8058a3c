//! Model aliases (`registry.toml`).
use std::sync::OnceLock;

/// An alias and where it leads.
#[derive(Debug, Clone, PartialEq, serde::Deserialize)]
pub struct Alias {
    /// `llama3-8b`, ...
    pub name: String,
    /// Hub repository.
    pub repo: String,
}

#[derive(serde::Deserialize)]
struct Registry {
    alias: Vec<Alias>,
}

/// All aliases, in file order.
pub fn aliases() -> &'static [Alias] {
    static ALIASES: OnceLock<Vec<Alias>> = OnceLock::new();
    ALIASES.get_or_init(|| {
        let registry: Registry = toml::from_str(include_str!("../registry.toml")).expect("registry.toml is checked by a test");
        registry.alias
    })
}
