//! Second moments of what a block's linear layers read.
use super::linalg;
use candle_core::{bail, CpuStorage, Result, Storage, Tensor};
use ws_models::model::{Site, Tap};

/// `sum x x^T` over calibration tokens for one input, `n x n`, lower triangle until [`Moments::finish`].
pub(crate) struct Moments {
    sum: Vec<f32>,
    n: usize,
}

impl Moments {
    fn new() -> Self {
        Self { sum: Vec::new(), n: 0 }
    }

    fn add(&mut self, x: &[f32], n: usize) {
        if self.sum.is_empty() {
            self.sum = vec![0.0; n * n];
            self.n = n;
        }
        linalg::add_gram(&mut self.sum, x, n);
    }

    fn finish(mut self, weight: f64) -> Vec<f64> {
        linalg::mirror(&mut self.sum, self.n);
        self.sum.iter().map(|&v| v as f64 / weight).collect()
    }
}

/// Second moment matrices of one block, row-major f64.
pub(crate) struct BlockMoments {
    /// Input of q, k and v, plain: dead in-features are found on it.
    pub(crate) qkv_plain: Vec<f64>,
    /// The same, weighted by the attention that each token receives (WaterSIC eq. 19) and blended with the plain one.
    pub(crate) qkv: Vec<f64>,
    /// Input of o.
    pub(crate) o: Vec<f64>,
    /// Input of gate and up.
    pub(crate) gate_up: Vec<f64>,
    /// Input of down.
    pub(crate) down: Vec<f64>,
}

/// Collects the moments of one block while calibration sequences pass through it.
pub(crate) struct Collector {
    qkv: Moments,
    weighted: Moments,
    o: Moments,
    gate_up: Moments,
    down: Moments,
    tokens: usize,
    /// Input of q, k, v until the attention weights of the same tokens arrive.
    pending: Vec<f32>,
}

impl Collector {
    pub(crate) fn new() -> Self {
        Self {
            qkv: Moments::new(),
            weighted: Moments::new(),
            o: Moments::new(),
            gate_up: Moments::new(),
            down: Moments::new(),
            tokens: 0,
            pending: Vec::new(),
        }
    }

    /// `plain_share`: weight of the plain covariance in that of q, k, v; the weighted one is first scaled to the same mean diagonal.
    pub(crate) fn finish(self, plain_share: f64) -> BlockMoments {
        let tokens = self.tokens as f64;
        let n = self.qkv.n;
        let qkv_plain = self.qkv.finish(tokens);
        let mut qkv = self.weighted.finish(tokens);
        let trace = |m: &[f64]| (0..n).map(|i| m[i * n + i]).sum::<f64>();
        let (plain_trace, weighted_trace) = (trace(&qkv_plain), trace(&qkv));
        let weighted_factor = if weighted_trace > 0.0 { (1.0 - plain_share) * plain_trace / weighted_trace } else { 0.0 };
        for (w, p) in qkv.iter_mut().zip(&qkv_plain) {
            *w = weighted_factor * *w + plain_share * p;
        }
        BlockMoments { qkv_plain, qkv, o: self.o.finish(tokens), gate_up: self.gate_up.finish(tokens), down: self.down.finish(tokens) }
    }
}

impl Tap for Collector {
    fn input(&mut self, site: Site, x: &Tensor) -> Result<()> {
        let n = x.dim(candle_core::D::Minus1)?;
        let (storage, layout) = x.storage_and_layout();
        let (Storage::Cpu(CpuStorage::F32(values)), Some((first, end))) = (&*storage, layout.contiguous_offsets()) else {
            bail!("calibration needs inputs that are f32 in main memory")
        };
        let values = &values[first..end];
        let moments = match site {
            Site::Qkv => &mut self.qkv,
            Site::O => &mut self.o,
            Site::GateUp => &mut self.gate_up,
            Site::Down => &mut self.down,
        };
        moments.add(values, n);
        if site == Site::Qkv {
            self.tokens += values.len() / n;
            self.pending = values.to_vec();
        }
        Ok(())
    }

    fn attention(&mut self, received: &Tensor) -> Result<()> {
        let weights = received.flatten_all()?.to_vec1::<f32>()?;
        let n = self.qkv.n;
        let mut x = std::mem::take(&mut self.pending);
        for (row, weight) in x.chunks_exact_mut(n).zip(weights) {
            let root = weight.max(0.0).sqrt();
            row.iter_mut().for_each(|v| *v *= root);
        }
        self.weighted.add(&x, n);
        Ok(())
    }
}
