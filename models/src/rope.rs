//! Rotary position embedding: frequencies with their scaling, tables of cosines and sines.
use crate::config::{Config, RopeScaling};
use candle_core::{Device, Result, Tensor};
use std::sync::RwLock;

/// The rotation of each token position. Tables grow as far as they are asked for.
///
/// Frequencies and angles are rounded to f32 where Hugging Face's implementation rounds them: at long contexts the rounding of the angle is larger
/// than any other difference.
pub(crate) struct Rope {
    frequencies: Vec<f32>,
    tables: RwLock<Option<(Tensor, Tensor)>>,
}

impl Rope {
    pub(crate) fn new(config: &Config) -> Self {
        Self { frequencies: frequencies(config), tables: RwLock::new(None) }
    }

    /// Cosines and sines, f32 `[tokens, head_dim / 2]` each, of the positions from `start`.
    pub(crate) fn tables(&self, start: usize, tokens: usize, device: &Device) -> Result<(Tensor, Tensor)> {
        let slice = |(cos, sin): &(Tensor, Tensor)| Ok((cos.narrow(0, start, tokens)?, sin.narrow(0, start, tokens)?));
        let positions = start + tokens;
        if let Some(tables) = self.tables.read().unwrap_or_else(|e| e.into_inner()).as_ref() {
            if tables.0.dim(0)? >= positions && tables.0.device().same_device(device) {
                return slice(tables);
            }
        }
        let tables = self.compute(positions.next_power_of_two().max(64), device)?;
        let result = slice(&tables);
        *self.tables.write().unwrap_or_else(|e| e.into_inner()) = Some(tables);
        result
    }

    fn compute(&self, positions: usize, device: &Device) -> Result<(Tensor, Tensor)> {
        let shape = (positions, self.frequencies.len());
        let angles = || (0..positions).flat_map(|p| self.frequencies.iter().map(move |f| (p as f32 * f) as f64));
        let cos = Tensor::from_vec(angles().map(|a| a.cos() as f32).collect::<Vec<_>>(), shape, device)?;
        let sin = Tensor::from_vec(angles().map(|a| a.sin() as f32).collect::<Vec<_>>(), shape, device)?;
        Ok((cos, sin))
    }
}

/// Radians a token for each pair of features, `head_dim / 2`.
fn frequencies(config: &Config) -> Vec<f32> {
    let pairs = config.head_dim / 2;
    (0..pairs)
        .map(|i| {
            let frequency = 1.0 / (config.rope_theta as f32).powf((2 * i) as f32 / config.head_dim as f32);
            match config.rope_scaling {
                RopeScaling::None => frequency,
                RopeScaling::Linear { factor } => frequency / factor as f32,
                RopeScaling::Llama3 { factor, low_freq_factor, high_freq_factor, original_context } => {
                    let turns = original_context as f64 * frequency as f64 / std::f64::consts::TAU;
                    let kept = ((turns - low_freq_factor) / (high_freq_factor - low_freq_factor)).clamp(0.0, 1.0);
                    ((1.0 - kept) * frequency as f64 / factor + kept * frequency as f64) as f32
                }
            }
        })
        .collect()
}
