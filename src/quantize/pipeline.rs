//! The model, block by block: statistics of a block from the dense model, its seven layers, its shard. Memory: the hidden states of the
//! calibration text, one block's weights and one block's statistics.
use super::calibration::sequences;
use super::checkpoint::Checkpoint;
use super::column::Coder;
use super::layer::quantize_matrix;
use super::site::Site;
use super::statistics::{BlockMoments, Collector};
use super::{LayerReport, Options, Progress, QuantizeError, Report};
use crate::format::{finish_folder, shard_is_complete, stored_bytes, Packed, Shard, Table8};
use crate::hub::Opened;
use candle_core::{DType, Device, Tensor};
use rayon::prelude::*;
use std::path::Path;
use std::sync::Arc;
use ws_kernels::rows8::Rows8;
use ws_models::config::Config;
use ws_models::linear::{Matrix, Table};
use ws_models::model::{Block, Model};

/// Share of the plain covariance in that of q, k and v. SmolLM2-135M: see docs/quantization.md.
pub(crate) const PLAIN_SHARE: f64 = 0.1;
/// Tokens that pass through a block at a time: what they leave between its layers then comes from the last-level cache, and from memory that is used again.
/// All 16384 at once took 5 % longer (SmolLM2-135M, Zen 3, two threads).
const PART_TOKENS: usize = 4096;
/// Bytes set aside for the code tables.
const CODE_TABLE_BYTES: f64 = 2048.0;

pub(crate) fn run(model: &Opened, options: &Options, dir: &Path, progress: &mut dyn FnMut(Progress)) -> Result<Report, QuantizeError> {
    let config = &model.config;
    check(config, options, dir)?;
    let embedding = Model::load_embedding(config, &*model.weights).map_err(QuantizeError::Weights)?;
    let table = dense_table(&embedding, "model.embed_tokens")?;
    let coder = Coder::new(Arc::new(options.codes.set()));
    let fingerprint = fingerprint(model, &table, &coder);
    let mut checkpoint = match Checkpoint::load(dir, &fingerprint, options)? {
        Some(checkpoint) => checkpoint,
        None => Checkpoint::start(dir, fingerprint, options, sequences(model, options, progress)?)?,
    };
    let shards = config.layers + 1;
    let shard_path = |i: usize| format!("model-{:05}-of-{shards:05}.safetensors", i + 1);
    // A machine that went down may have kept the state but not the shard.
    while let Some(last) = checkpoint.state.blocks.len().checked_sub(1) {
        if shard_is_complete(&checkpoint.folder.join(shard_path(last))) {
            break;
        }
        checkpoint.state.blocks.pop();
    }

    let mut hidden = hidden_states(&embedding, &checkpoint.state.sequences)?;
    let mut carry = -CODE_TABLE_BYTES;
    progress(Progress::Blocks { done: checkpoint.state.blocks.len(), total: config.layers });
    for index in 0..config.layers {
        let block = Block::load(config, &*model.weights, index).map_err(QuantizeError::Weights)?;
        let mut collector = Collector::new();
        let finished = checkpoint.state.blocks.get(index);
        for part in &mut hidden {
            *part = match finished {
                Some(_) => block.forward(config, part, None)?,
                None => block.forward(config, part, Some(&mut collector))?,
            };
        }
        drop(block);
        if let Some(layers) = finished {
            carry += layers.iter().map(|l| options.rate * l.weights as f64 / 8.0 - l.bytes as f64).sum::<f64>();
            continue;
        }
        let (shard, reports) = quantize_block(model, options, &coder, index, collector.finish(PLAIN_SHARE), &mut carry)?;
        shard.write(&checkpoint.folder.join(shard_path(index)))?;
        checkpoint.finished(reports)?;
        progress(Progress::Blocks { done: index + 1, total: config.layers });
    }

    let last = tables_shard(model, &table, &coder)?;
    last.write(&checkpoint.folder.join(shard_path(config.layers)))?;
    let report = Report { layers: checkpoint.state.blocks.iter().flatten().cloned().collect() };
    if report.stored_bits() > options.rate {
        return Err(QuantizeError::RateTooLow { stored: report.stored_bits(), rate: options.rate });
    }
    let quantization = serde_json::json!({
        "rate": options.rate,
        "mean_relative_error": report.mean_error(),
        "codes": options.codes,
        "calibration": options.calibration,
        "samples": checkpoint.state.sequences.len(),
        "context": options.context,
        "seed": options.seed,
    });
    checkpoint.complete(dir, |folder| {
        finish_folder(folder, dir, &model.config_json, &quantization, &model.side_files)?;
        Ok(())
    })?;
    Ok(report)
}

fn check(config: &Config, options: &Options, dir: &Path) -> Result<(), QuantizeError> {
    if !(1.0..=8.0).contains(&options.rate) {
        return Err(QuantizeError::Rate { rate: options.rate });
    }
    if options.samples == 0 || options.context < 2 {
        return Err(QuantizeError::NoCalibration { samples: options.samples, context: options.context });
    }
    if options.context > config.max_context {
        return Err(QuantizeError::Context { context: options.context, limit: config.max_context });
    }
    if dir.exists() {
        return Err(QuantizeError::Exists { path: dir.to_owned() });
    }
    if let Some((name, _, features, _)) = config.block_linears(0).into_iter().find(|l| l.2 > 65536) {
        return Err(QuantizeError::TooWide { name, features });
    }
    Ok(())
}

fn dense_table(table: &Table, name: &str) -> Result<Vec<f32>, QuantizeError> {
    match table {
        Table::Dense(tensor) => dense_values(tensor, &format!("{name}.weight")),
        _ => Err(QuantizeError::Packed { name: name.to_owned() }),
    }
}

pub(crate) fn dense_values(tensor: &Tensor, name: &str) -> Result<Vec<f32>, QuantizeError> {
    let values = tensor.to_dtype(DType::F32)?.flatten_all()?.to_vec1::<f32>()?;
    match values.iter().all(|v| v.is_finite()) {
        true => Ok(values),
        false => Err(QuantizeError::NotFinite { name: name.to_owned() }),
    }
}

/// Tells models, versions and codes apart, so that a stopped run is not continued with others: a file has one table of codes.
fn fingerprint(model: &Opened, table: &[f32], coder: &Coder) -> String {
    let mut hash = xxhash_rust::xxh3::Xxh3::new();
    hash.update(env!("CARGO_PKG_VERSION").as_bytes());
    hash.update(&crate::format::VERSION.to_le_bytes());
    hash.update(format!("{:?}", coder.codes).as_bytes());
    hash.update(model.config_json.to_string().as_bytes());
    table.iter().for_each(|v| hash.update(&v.to_le_bytes()));
    format!("{:016x}", hash.digest())
}

/// Embedded sequences in parts of [`PART_TOKENS`], or single ones that are longer.
pub(crate) fn hidden_states(embedding: &Table, sequences: &[Vec<u32>]) -> Result<Vec<Tensor>, QuantizeError> {
    let context = sequences[0].len();
    let part = (PART_TOKENS / context.max(1)).max(1);
    sequences
        .chunks(part)
        .map(|sequences| {
            let ids = Tensor::from_vec(sequences.concat(), (sequences.len(), context), &Device::Cpu)?;
            Ok(embedding.lookup(&ids)?)
        })
        .collect()
}

/// The prepared input of each of a block's linear layers.
pub(crate) fn sites(linears: &[(String, usize, usize, bool)], moments: &BlockMoments) -> Result<Vec<Arc<Site>>, QuantizeError> {
    // Where an input is read, the moments that decide on dead in-features, and those that are minimised.
    let inputs: [(&[&str], &[f64], &[f64]); 4] = [
        (&["q_proj", "k_proj", "v_proj"], &moments.qkv_plain, &moments.qkv),
        (&["o_proj"], &moments.o, &moments.o),
        (&["gate_proj", "up_proj"], &moments.gate_up, &moments.gate_up),
        (&["down_proj"], &moments.down, &moments.down),
    ];
    let reads = |name: &str, ends: &[&str]| ends.iter().any(|end| name.ends_with(end));
    let sites = inputs
        .par_iter()
        .map(|(ends, plain, covariance)| {
            let name = linears.iter().map(|l| &l.0).find(|name| reads(name, ends)).expect("every input is read");
            Ok(Arc::new(Site::new(name, plain, covariance)?))
        })
        .collect::<Result<Vec<_>, QuantizeError>>()?;
    let input = |name: &str| inputs.iter().position(|(ends, ..)| reads(name, ends)).expect("every layer has an input");
    Ok(linears.iter().map(|(name, ..)| sites[input(name)].clone()).collect())
}

fn quantize_block(
    model: &Opened,
    options: &Options,
    coder: &Coder,
    index: usize,
    moments: BlockMoments,
    carry: &mut f64,
) -> Result<(Shard, Vec<LayerReport>), QuantizeError> {
    let config = &model.config;
    let linears = config.block_linears(index);
    let mut shard = Shard::default();
    let mut reports = Vec::new();
    let sites = sites(&linears, &moments)?;
    let total: f64 = linears.iter().map(|(_, rows, columns, _)| (rows * columns) as f64).sum();
    // Layers of a block do not depend on each other in one pass, so all of them run at once. What earlier blocks left of their budget, or
    // took too much, is shared by size.
    let share = options.rate / 8.0 + *carry / total;
    let quantize = |(name, rows, columns, bias): &(String, usize, usize, bool), site: &Site| {
        let linear = model.weights.linear(name, *rows, *columns, *bias).map_err(QuantizeError::Weights)?;
        let Matrix::Dense(weight) = &linear.matrix else {
            return Err(QuantizeError::Packed { name: name.clone() });
        };
        let weight = dense_values(weight, &format!("{name}.weight"))?;
        let bias = linear.bias.map(|b| dense_values(&b, &format!("{name}.bias"))).transpose()?;
        let budget = share * weight.len() as f64;
        let quantized = quantize_matrix(name, &weight, site, coder, budget.max(0.0) as u64, options.seed)?;
        Ok((quantized, bias))
    };
    // The largest first, so that no thread is left with one of them at the end.
    let mut tasks: Vec<_> = linears.iter().zip(&sites).map(|(linear, site)| (linear, site, None)).collect();
    let mut order: Vec<_> = tasks.iter_mut().collect();
    order.sort_by_key(|((_, rows, columns, _), ..)| std::cmp::Reverse(rows * columns));
    rayon::scope_fifo(|scope| {
        for (linear, site, done) in order {
            scope.spawn_fifo(move |_| *done = Some(quantize(linear, site)));
        }
    });
    let done = tasks.into_iter().filter_map(|task| task.2).collect::<Result<Vec<_>, QuantizeError>>()?;
    for ((name, rows, columns, _), (quantized, bias)) in linears.into_iter().zip(done) {
        let bytes = stored_bytes(&quantized.parts);
        let weights = (rows * columns) as u64;
        *carry += options.rate * weights as f64 / 8.0 - bytes as f64;
        reports.push(LayerReport { name: name.clone(), weights, bytes, relative_error: quantized.relative_error });
        if let Some(bias) = bias {
            shard.dense.push((format!("{name}.bias"), vec![rows], bias));
        }
        shard.packed.push(Packed { name, parts: quantized.parts });
    }
    let prefix = format!("model.layers.{index}");
    let mut norms = vec![("input_layernorm", config.hidden), ("post_attention_layernorm", config.hidden)];
    if config.qk_norm {
        norms.extend([("self_attn.q_norm", config.head_dim), ("self_attn.k_norm", config.head_dim)]);
    }
    for (norm, size) in norms {
        push_dense(&mut shard, model, &format!("{prefix}.{norm}.weight"), size)?;
    }
    Ok((shard, reports))
}

/// Embedding, final norm, head and code tables.
fn tables_shard(model: &Opened, table: &[f32], coder: &Coder) -> Result<Shard, QuantizeError> {
    let config = &model.config;
    let mut shard = Shard { codes: Some(coder.codes.clone()), ..Default::default() };
    push_table(&mut shard, "model.embed_tokens", table, config);
    push_dense(&mut shard, model, "model.norm.weight", config.hidden)?;
    if !config.tied {
        let head = model.weights.table("lm_head", config.vocab, config.hidden).map_err(QuantizeError::Weights)?;
        push_table(&mut shard, "lm_head", &dense_table(&head, "lm_head")?, config);
    }
    Ok(shard)
}

fn push_dense(shard: &mut Shard, model: &Opened, name: &str, size: usize) -> Result<(), QuantizeError> {
    let tensor = model.weights.tensor(name, &[size]).map_err(QuantizeError::Weights)?;
    shard.dense.push((name.to_owned(), vec![size], dense_values(&tensor, name)?));
    Ok(())
}

fn push_table(shard: &mut Shard, name: &str, values: &[f32], config: &Config) {
    let (q, scales, unit) = Rows8::quantize(values, config.hidden);
    shard.tables.push(Table8 { name: name.to_owned(), rows: config.vocab, columns: config.hidden, values: q, scales, unit });
}
