//! Llama and Qwen blocks on candle tensors; linear layers through one enum.
//!
//! * [`config`]: a checked description of an architecture from `config.json`.
//! * [`weights`]: the seam: where a model gets its tensors and linear layers from.
//! * [`linear`]: dense or packed product behind one call.
//! * [`model`]: embedding, blocks, norm, head.
//! * [`registry`]: model aliases; [`shapes`]: published shapes without weights.
mod attention;
mod cache;
pub mod config;
pub mod linear;
pub mod model;
mod ops;
pub mod registry;
mod rope;
pub mod shapes;
pub mod weights;
