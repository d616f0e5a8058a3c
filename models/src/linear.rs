//! Dense or packed product behind one call.
use candle_core::{Result, Tensor};
use std::sync::Arc;
use ws_kernels::{packed::PackedMatrix, rows8::Rows8};

/// The matrix of a linear layer.
#[derive(Clone)]
pub enum Matrix {
    /// `[out, in]`, f32, f16 or bf16; the product is computed in f32.
    Dense(Tensor),
    /// Packed columns behind a candle `CustomOp`.
    Packed(Arc<PackedMatrix>),
}

/// `y = x W^T + b`.
#[derive(Clone)]
pub struct Linear {
    /// W.
    pub matrix: Matrix,
    /// b, f32 `[out]`.
    pub bias: Option<Tensor>,
}

impl Linear {
    /// `x`: f32 `[.., in]` -> f32 `[.., out]`.
    pub fn forward(&self, _x: &Tensor) -> Result<Tensor> {
        todo!()
    }
}

/// Embedding table, and head where it is used as one.
#[derive(Clone)]
pub enum Table {
    /// `[vocab, hidden]`, f32, f16 or bf16.
    Dense(Tensor),
    /// 8-bit rows.
    Rows8(Arc<Rows8>),
    /// A head that was quantized like any linear layer (cannot be looked up).
    Packed(Arc<PackedMatrix>),
}

impl Table {
    /// Token ids u32 `[batch, tokens]` -> f32 `[batch, tokens, hidden]`.
    pub fn lookup(&self, _ids: &Tensor) -> Result<Tensor> {
        todo!()
    }
    /// f32 `[.., hidden]` -> logits f32 `[.., vocab]`.
    pub fn logits(&self, _x: &Tensor) -> Result<Tensor> {
        todo!()
    }
}
