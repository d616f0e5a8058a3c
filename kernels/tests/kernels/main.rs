//! Packed products against independent definitions.
mod common;
mod packed;
mod rows8;
