//! Published shapes, for measurements without a download (`shapes/`).

/// Name and `config.json` of each shape.
pub const SHAPES: [(&str, &str); 3] = [
    ("llama3.2-1b", include_str!("../shapes/llama3.2-1b.json")),
    ("llama3-8b", include_str!("../shapes/llama3-8b.json")),
    ("qwen3-4b", include_str!("../shapes/qwen3-4b.json")),
];

/// `config.json` of a shape.
pub fn config_json(name: &str) -> Option<&'static str> {
    SHAPES.iter().find(|shape| shape.0 == name).map(|shape| shape.1)
}
