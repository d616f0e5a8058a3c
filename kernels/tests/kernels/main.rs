//! Packed products and committed codes against independent definitions and figures.
mod codes;
mod common;
mod packed;
mod rows8;
