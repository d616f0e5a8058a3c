//! The layers of a model, and the perplexity of the model that each method makes.
use super::{curve, Coders, Curve, Layer, Method};
use crate::eval::{perplexity, EvalError, PerplexityOptions};
use crate::hub::{Opened, Source};
use crate::quantize::calibration::sequences;
use crate::quantize::pipeline::{dense_values, hidden_states, sites, PLAIN_SHARE};
use crate::quantize::statistics::Collector;
use crate::quantize::{Options, Progress, QuantizeError};
use crate::runtime::TextModel;
use candle_core::{Device, Tensor};
use rayon::prelude::*;
use serde::Serialize;
use std::collections::HashMap;
use std::sync::Arc;
use ws_kernels::tables::Effort;
use ws_models::linear::{Linear, Matrix, Table};
use ws_models::model::{Block, Model};
use ws_models::weights::{WeightError, Weights};

/// A text to measure perplexity on.
pub struct Text {
    /// Name to print.
    pub name: String,
    /// The text.
    pub text: String,
}

/// What is measured on a model.
pub struct ModelOptions<'a> {
    /// Methods.
    pub methods: &'a [Method],
    /// Bits a weight, the same for every layer.
    pub rates: &'a [f64],
    /// Codes of [`Method::Trellis`].
    pub effort: Effort,
    /// Layers whose name contains this; the others stay dense.
    pub layers: &'a str,
    /// Calibration text and seed; rate and codes are not used.
    pub calibration: &'a Options,
    /// Texts for perplexity; with none only errors are measured.
    pub texts: &'a [Text],
    /// Windows of these texts.
    pub windows: PerplexityOptions,
}

/// Perplexity of the model that one method makes at one rate.
#[derive(Debug, Clone, Serialize)]
pub struct Scored {
    /// Method; `None` for the dense model.
    pub method: Option<Method>,
    /// Rate that was asked for.
    pub target: f64,
    /// Perplexity of each text, in their order.
    pub perplexity: Vec<f64>,
}

/// Measures every method on the layers of a dense model, on the statistics that `wsrun quantize` uses. With texts, the reconstructions of all
/// methods and rates stay in memory (f32).
///
/// # Errors
/// As of [`crate::quantize::quantize`] and [`crate::eval::perplexity`].
pub fn measure_model(
    source: &Source,
    options: &ModelOptions,
    progress: &mut dyn FnMut(Progress),
) -> anyhow::Result<(Vec<Curve>, Vec<Scored>)> {
    let model = source.open()?;
    let config = &model.config;
    let sequences = sequences(&model, options.calibration, progress)?;
    let embedding = Model::load_embedding(config, &*model.weights).map_err(QuantizeError::Weights)?;
    let mut hidden = hidden_states(&embedding, &sequences)?;
    let coders = Coders::new(options.effort);
    let mut curves = Vec::new();
    let mut replaced = vec![HashMap::new(); options.methods.len() * options.rates.len()];
    for index in 0..config.layers {
        progress(Progress::Blocks { done: index, total: config.layers });
        let block = Block::load(config, &*model.weights, index).map_err(QuantizeError::Weights)?;
        let mut collector = Collector::new();
        for part in &mut hidden {
            *part = block.forward(config, part, Some(&mut collector))?;
        }
        drop(block);
        for (layer, found, values) in measure_block(&model, options, &coders, index, collector)? {
            curves.push(found);
            if !options.texts.is_empty() {
                values.into_iter().zip(&mut replaced).for_each(|(values, model)| drop(model.insert(layer.clone(), values)));
            }
        }
    }
    anyhow::ensure!(!curves.is_empty(), "the model has no linear layer whose name contains `{}`", options.layers);
    drop((model, hidden));
    let mut scored = Vec::new();
    if !options.texts.is_empty() {
        scored.push(Scored { method: None, target: 32.0, perplexity: score(source, HashMap::new(), options)? });
        let tasks = options.methods.iter().flat_map(|&m| options.rates.iter().map(move |&r| (m, r)));
        for ((method, target), replaced) in tasks.zip(replaced) {
            scored.push(Scored { method: Some(method), target, perplexity: score(source, replaced, options)? });
        }
    }
    Ok((curves, scored))
}

type Measured = (String, Curve, Vec<Vec<f32>>);

fn measure_block(
    model: &Opened,
    options: &ModelOptions,
    coders: &Coders,
    index: usize,
    collector: Collector,
) -> Result<Vec<Measured>, QuantizeError> {
    let linears = model.config.block_linears(index);
    let sites = sites(&linears, &collector.finish(PLAIN_SHARE))?;
    linears
        .par_iter()
        .zip(sites)
        .filter(|((name, ..), _)| name.contains(options.layers))
        .map(|((name, rows, columns, bias), site)| {
            let linear = model.weights.linear(name, *rows, *columns, *bias).map_err(QuantizeError::Weights)?;
            let Matrix::Dense(weight) = &linear.matrix else { return Err(QuantizeError::Packed { name: name.clone() }) };
            let weight = dense_values(weight, &format!("{name}.weight"))?;
            let layer = Layer::with_site(name.clone(), weight, Arc::clone(&site));
            let (curve, values) = curve(&layer, options.methods, options.rates, coders, options.calibration.seed)?;
            Ok((name.clone(), curve, values))
        })
        .collect()
}

fn score(source: &Source, replaced: HashMap<String, Vec<f32>>, options: &ModelOptions) -> anyhow::Result<Vec<f64>> {
    let mut opened = source.open()?;
    opened.weights = Box::new(Replaced { original: opened.weights, matrices: replaced });
    let model = TextModel::load(opened)?;
    let scores = options.texts.iter().map(|text| Ok(perplexity(&model, &text.text, &options.windows, |_, _, _| {})?.perplexity));
    Ok(scores.collect::<Result<Vec<f64>, EvalError>>()?)
}

/// A model some of whose matrices are others.
struct Replaced {
    original: Box<dyn Weights>,
    /// By Hugging Face name, row-major.
    matrices: HashMap<String, Vec<f32>>,
}

impl Weights for Replaced {
    fn tensor(&self, name: &str, shape: &[usize]) -> Result<Tensor, WeightError> {
        self.original.tensor(name, shape)
    }

    fn linear(&self, prefix: &str, out_features: usize, in_features: usize, bias: bool) -> Result<Linear, WeightError> {
        let mut linear = self.original.linear(prefix, out_features, in_features, bias)?;
        if let Some(values) = self.matrices.get(prefix) {
            linear.matrix = Matrix::Dense(Tensor::from_slice(values, (out_features, in_features), &Device::Cpu)?);
        }
        Ok(linear)
    }

    fn table(&self, prefix: &str, vocab: usize, hidden: usize) -> Result<Table, WeightError> {
        self.original.table(prefix, vocab, hidden)
    }
}
