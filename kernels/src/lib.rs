//! Decode and multiply by packed variable-rate columns: slices in, slices out.
//!
//! * [`code`]: the linear trellis code, the one definition that encoder, container and kernels share.
//! * [`encode`]: encoding with scalar codes.
//! * [`layout`]: where the bits of a column stand in memory.
//! * [`packed`]: a validated packed matrix and its products.
//! * [`rows8`]: embedding tables and heads as 8-bit rows.
//! * [`dense`]: products with dense matrices.
//! * [`viterbi`]: encoding with convolutional codes.
//! * [`tables`]: the committed trellis codes.
//! * [`pages`]: memory in large pages.
//! * [`parallel`]: how threads share a product.
//! * [`cpu`]: the instruction-set paths behind one run-time dispatch.
mod activations;
pub mod code;
pub mod cpu;
pub mod dense;
pub mod encode;
pub mod layout;
pub mod packed;
pub mod pages;
pub mod parallel;
mod product;
pub mod rows8;
pub mod tables;
pub mod viterbi;
