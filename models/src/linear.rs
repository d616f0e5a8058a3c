//! Dense or packed product behind one call.
use candle_core::{bail, CpuStorage, CustomOp1, CustomOp2, DType, Layout, Result, Shape, Tensor};
use std::sync::Arc;
use ws_kernels::dense::{self, Values};
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
    ///
    /// # Errors
    /// If the last dimension of `x` is not `in`, or `x` is not f32.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let y = match &self.matrix {
            Matrix::Dense(w) => dense_product(x, w)?,
            Matrix::Packed(w) => packed_product(x, w)?,
        };
        match &self.bias {
            Some(bias) => y.broadcast_add(bias),
            None => Ok(y),
        }
    }

    /// Bytes of the matrix and the bias as they are stored.
    pub fn bytes(&self) -> u64 {
        let matrix = match &self.matrix {
            Matrix::Dense(w) => dense_bytes(w),
            Matrix::Packed(w) => packed_bytes(w),
        };
        matrix + self.bias.as_ref().map_or(0, dense_bytes)
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
    ///
    /// # Errors
    /// If an id is not below `vocab`, or the table is packed.
    pub fn lookup(&self, ids: &Tensor) -> Result<Tensor> {
        let (batch, tokens) = ids.dims2()?;
        let ids = ids.flatten_all()?;
        let vocab = match self {
            Self::Dense(w) => w.dim(0)?,
            Self::Rows8(w) => w.rows(),
            Self::Packed(_) => bail!("a packed matrix cannot be used as an embedding table"),
        };
        let list = ids.to_vec1::<u32>()?;
        if let Some(id) = list.iter().find(|&&id| id as usize >= vocab) {
            bail!("token id {id} is outside the vocabulary of {vocab}")
        }
        let rows = match self {
            Self::Dense(w) => w.index_select(&ids, 0)?.to_dtype(DType::F32)?,
            Self::Rows8(w) => {
                let mut rows = vec![0f32; list.len() * w.columns()];
                for (&id, row) in list.iter().zip(rows.chunks_exact_mut(w.columns())) {
                    w.row(id as usize, row);
                }
                Tensor::from_vec(rows, (list.len(), w.columns()), ids.device())?
            }
            Self::Packed(_) => unreachable!("refused above"),
        };
        let hidden = rows.dim(1)?;
        rows.reshape((batch, tokens, hidden))
    }

    /// f32 `[.., hidden]` -> logits f32 `[.., vocab]`.
    ///
    /// # Errors
    /// If the last dimension of `x` is not `hidden`, or `x` is not f32.
    pub fn logits(&self, x: &Tensor) -> Result<Tensor> {
        match self {
            Self::Dense(w) => dense_product(x, w),
            Self::Rows8(w) => packed_product(x, w),
            Self::Packed(w) => packed_product(x, w),
        }
    }

    /// Bytes as they are stored: of the whole table, and of one row of it.
    pub fn bytes(&self) -> (u64, u64) {
        let (all, rows) = match self {
            Self::Dense(w) => (dense_bytes(w), w.dims()[0]),
            Self::Rows8(w) => (w.rows() as u64 * (w.columns() as u64 + 2), w.rows()),
            Self::Packed(w) => (packed_bytes(w), w.out_features()),
        };
        (all, all / rows.max(1) as u64)
    }
}

fn dense_bytes(w: &Tensor) -> u64 {
    w.elem_count() as u64 * w.dtype().size_in_bytes() as u64
}

/// Codes, scales, exact columns, exceptions (row, column and value of two bytes each) and one width a column.
fn packed_bytes(w: &PackedMatrix) -> u64 {
    let parts = w.parts();
    let halves = parts.col_scale.len() + parts.row_scale.len() + parts.exact.len();
    (parts.range.len() + 2 * halves + 6 * parts.exceptions.len() + parts.widths.len()) as u64
}

/// `x [.., in] W^T`. The weight is neither copied nor transposed; in main memory other types than f32 are converted piece by piece.
fn dense_product(x: &Tensor, w: &Tensor) -> Result<Tensor> {
    let (out_features, in_features) = w.dims2()?;
    let (x, mut shape) = flatten(x, in_features)?;
    shape.push(out_features);
    let y = match w.device().is_cpu() {
        true => x.contiguous()?.apply_op2_no_bwd(&w.contiguous()?, &DenseProduct)?,
        false => x.matmul(&w.to_dtype(DType::F32)?.t()?)?,
    };
    y.reshape(shape)
}

/// `[tokens, in]`, `[out, in]` -> `[tokens, out]`, all contiguous.
struct DenseProduct;

impl CustomOp2 for DenseProduct {
    fn name(&self) -> &'static str {
        "dense-product"
    }

    fn cpu_fwd(&self, x: &CpuStorage, x_layout: &Layout, w: &CpuStorage, w_layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let (Some((x_start, x_end)), Some((w_start, w_end))) = (x_layout.contiguous_offsets(), w_layout.contiguous_offsets()) else {
            bail!("dense-product needs contiguous operands")
        };
        let w = match w {
            CpuStorage::F32(w) => Values::F32(&w[w_start..w_end]),
            CpuStorage::F16(w) => Values::F16(&w[w_start..w_end]),
            CpuStorage::BF16(w) => Values::Bf16(&w[w_start..w_end]),
            _ => bail!("dense weights must be f32, f16 or bf16"),
        };
        let (tokens, out_features) = (x_layout.dims()[0], w_layout.dims()[0]);
        let mut y = vec![0f32; tokens * out_features];
        dense::multiply(w, w_layout.dims()[1], &x.as_slice::<f32>()?[x_start..x_end], tokens, &mut y);
        Ok((CpuStorage::F32(y), (tokens, out_features).into()))
    }
}

/// `[.., in]` as `[tokens, in]` and its leading dimensions.
fn flatten(x: &Tensor, in_features: usize) -> Result<(Tensor, Vec<usize>)> {
    let mut shape = x.dims().to_vec();
    if shape.pop() != Some(in_features) {
        bail!("a linear layer of {in_features} in-features was given an input of shape {:?}", x.dims())
    }
    let tokens = shape.iter().product::<usize>();
    Ok((x.reshape((tokens, in_features))?, shape))
}

/// A matrix of `ws-kernels` that multiplies slices.
trait Multiply: Send + Sync {
    fn out_features(&self) -> usize;
    fn in_features(&self) -> usize;
    fn multiply(&self, x: &[f32], tokens: usize, y: &mut [f32]);
}

impl Multiply for PackedMatrix {
    fn out_features(&self) -> usize {
        PackedMatrix::out_features(self)
    }
    fn in_features(&self) -> usize {
        PackedMatrix::in_features(self)
    }
    fn multiply(&self, x: &[f32], tokens: usize, y: &mut [f32]) {
        PackedMatrix::multiply(self, x, tokens, y)
    }
}

impl Multiply for Rows8 {
    fn out_features(&self) -> usize {
        self.rows()
    }
    fn in_features(&self) -> usize {
        self.columns()
    }
    fn multiply(&self, x: &[f32], tokens: usize, y: &mut [f32]) {
        Rows8::multiply(self, x, tokens, y)
    }
}

fn packed_product<M: Multiply>(x: &Tensor, matrix: &Arc<M>) -> Result<Tensor> {
    let (x, mut shape) = flatten(x, matrix.in_features())?;
    shape.push(matrix.out_features());
    x.contiguous()?.apply_op1_no_bwd(&Product(matrix.as_ref()))?.reshape(shape)
}

/// `[tokens, in]` -> `[tokens, out]`, contiguous.
struct Product<'a, M>(&'a M);

impl<M: Multiply> CustomOp1 for Product<'_, M> {
    fn name(&self) -> &'static str {
        "packed-product"
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let Some((start, end)) = layout.contiguous_offsets() else { bail!("packed-product needs a contiguous input") };
        let x = &storage.as_slice::<f32>()?[start..end];
        let tokens = layout.dims()[0];
        let mut y = vec![0f32; tokens * self.0.out_features()];
        self.0.multiply(x, tokens, &mut y);
        Ok((CpuStorage::F32(y), (tokens, self.0.out_features()).into()))
    }
}
