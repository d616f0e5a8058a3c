//! A folder: opened for reading, or completed after its shards are written.
use super::index::Index;
use super::layer::{self, LayerSize};
use super::shard::ShardFile;
use super::{files, FormatError, TensorViolation, Violation, ALIGNMENT, CONFIG, INDEX, METHOD, VERSION};
use rayon::prelude::*;
use serde_json::Value;
use std::collections::BTreeMap;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use ws_kernels::code::CodeSet;
use ws_kernels::packed::{Bytes, PackedMatrix};
use ws_kernels::pages::LargePages;
use ws_kernels::rows8::Rows8;

/// Bytes that a thread copies in one piece.
const PIECE: usize = 1 << 21;
/// Bytes between two reports of how much is copied.
const REPORT: usize = 1 << 26;

/// An opened .ws folder: shards are memory-mapped; headers, index, plans and code tables are checked, codes and scales not yet read.
pub struct WsModel {
    dir: PathBuf,
    config: Value,
    index: Index,
    shards: Vec<ShardFile>,
    /// Which shard holds a packed matrix, an 8-bit table or a dense tensor.
    place: BTreeMap<String, usize>,
    codes: Arc<CodeSet>,
    layers: Vec<LayerSize>,
}

impl WsModel {
    /// True if the folder's config.json names this format.
    pub fn is_ws(dir: &Path) -> bool {
        files::read_json::<Value>(&dir.join(CONFIG)).is_ok_and(|config| config["quantization_config"]["quant_method"] == METHOD)
    }

    /// Opens a folder. Time and memory do not depend on the size of the weights.
    ///
    /// # Errors
    /// The first violation found.
    pub fn open(dir: &Path) -> Result<Self, FormatError> {
        let config: Value = files::read_json(&dir.join(CONFIG))?;
        let quantization = &config["quantization_config"];
        if quantization["quant_method"] != METHOD {
            return Err(FormatError::NotWs { path: dir.to_owned() });
        }
        if quantization["format_version"] != VERSION {
            return Err(FormatError::Version { path: dir.join(CONFIG), found: quantization["format_version"].to_string() });
        }
        let (index, shards) = Index::open(dir)?;
        let codes = code_tables(&shards)?;
        shards.iter().try_for_each(|shard| shard.check_codes(&codes))?;
        let names =
            |shard: &ShardFile| -> Vec<String> { shard.matrices.keys().chain(shard.tables.keys()).chain(&shard.dense).cloned().collect() };
        let place = shards.iter().enumerate().flat_map(|(i, shard)| names(shard).into_iter().map(move |name| (name, i))).collect();
        let mut layers: Vec<LayerSize> = shards.iter().flat_map(|shard| shard.matrices.values().cloned()).collect();
        layers.sort_by(|a, b| layer::order(&a.name).cmp(&layer::order(&b.name)));
        Ok(Self { dir: dir.to_owned(), config, index, shards, place, codes, layers })
    }

    /// Reads all shards into memory, in pages as large as the system has: products are faster there than in a mapped file. Matrices and tables asked for from now
    /// on stand there. `report` gets the bytes that have been read.
    ///
    /// # Errors
    /// Not enough memory; everything stays as it was.
    pub fn read_into_memory(&mut self, report: &mut dyn FnMut(u64)) -> Result<(), FormatError> {
        let sizes: Vec<usize> = self.shards.iter().map(|shard| shard.len().next_multiple_of(ALIGNMENT)).collect();
        let io = |error| FormatError::Io { action: "get memory for", path: self.dir.clone(), error };
        let mut memory = LargePages::zeroed(sizes.iter().sum()).map_err(io)?;
        let (mut rest, mut done) = (&mut *memory, 0);
        for (shard, size) in self.shards.iter().zip(&sizes) {
            let (own, others) = std::mem::take(&mut rest).split_at_mut(*size);
            rest = others;
            for (to, from) in own.chunks_mut(REPORT).zip(shard.content().chunks(REPORT)) {
                to.par_chunks_mut(PIECE).zip(from.par_chunks(PIECE)).for_each(|(to, from)| to[..from.len()].copy_from_slice(from));
                done += from.len() as u64;
                report(done);
            }
        }
        let memory: Bytes = Arc::new(memory);
        let mut start = 0;
        for (shard, size) in self.shards.iter_mut().zip(sizes) {
            shard.move_to(memory.clone(), start);
            start += size;
        }
        Ok(())
    }

    fn shard(&self, name: &str, holds: impl Fn(&ShardFile) -> bool) -> Result<&ShardFile, FormatError> {
        let missing = || FormatError::Missing { path: self.dir.clone(), tensor: name.to_owned() };
        self.place.get(name).map(|&i| &self.shards[i]).filter(|shard| holds(shard)).ok_or_else(missing)
    }

    /// The packed matrix of this name (without `.weight`), `[out-features, in-features]`; its codes are not copied.
    ///
    /// # Errors
    /// It is missing, or a scale is not finite, or exceptions are out of order or out of place.
    pub fn matrix(&self, name: &str) -> Result<PackedMatrix, FormatError> {
        let shard = self.shard(name, |shard| shard.matrices.contains_key(name))?;
        PackedMatrix::new(shard.parts(name)?, self.codes.clone()).map_err(|error| shard.bad_matrix(name, error))
    }

    /// True if this name is stored packed.
    pub fn has_matrix(&self, name: &str) -> bool {
        self.shard(name, |shard| shard.matrices.contains_key(name)).is_ok()
    }

    /// The 8-bit table of this name (without `.weight`), `[rows, columns]`; its values are not copied.
    ///
    /// # Errors
    /// It is missing or a scale is not finite.
    pub fn rows8(&self, name: &str) -> Result<Rows8, FormatError> {
        self.shard(name, |shard| shard.tables.contains_key(name))?.rows8(name)
    }

    /// True if this name is stored as an 8-bit table.
    pub fn has_rows8(&self, name: &str) -> bool {
        self.shard(name, |shard| shard.tables.contains_key(name)).is_ok()
    }

    /// A dense tensor by its full name: shape and values.
    ///
    /// # Errors
    /// It is missing or holds values that are not finite.
    pub fn dense(&self, name: &str) -> Result<(Vec<usize>, Vec<f32>), FormatError> {
        self.shard(name, |shard| shard.dense.contains(name))?.dense(name)
    }

    /// Sizes of all packed matrices in model order: blocks by number, then q, k, v, o, gate, up, down.
    pub fn layers(&self) -> &[LayerSize] {
        &self.layers
    }

    /// The model's config.json, `quantization_config` included.
    pub fn config(&self) -> &Value {
        &self.config
    }

    /// The code tables.
    pub fn codes(&self) -> &Arc<CodeSet> {
        &self.codes
    }

    /// Bytes of all shards.
    pub fn file_bytes(&self) -> u64 {
        self.shards.iter().map(|shard| shard.len() as u64).sum()
    }

    /// Rows and columns of all 8-bit tables by name.
    pub fn tables(&self) -> BTreeMap<String, [usize; 2]> {
        self.shards.iter().flat_map(|shard| shard.tables.clone()).collect()
    }

    /// Reads everything: every checksum of the folder is compared and every value checked. A folder in which any byte that was
    /// written has changed does not pass, be it in a shard, the index, config.json or a tokenizer's file.
    ///
    /// # Errors
    /// The first violation found.
    pub fn verify(&self) -> Result<(), FormatError> {
        self.index.verify(&self.dir)?;
        for shard in &self.shards {
            shard.verify()?;
            shard.matrices.keys().try_for_each(|name| self.matrix(name).map(drop))?;
            shard.tables.keys().try_for_each(|name| shard.rows8(name).map(drop))?;
            shard.dense.iter().try_for_each(|name| shard.dense(name).map(drop))?;
        }
        Ok(())
    }
}

/// The code tables of the one shard that has some.
fn code_tables(shards: &[ShardFile]) -> Result<Arc<CodeSet>, FormatError> {
    let mut holders = shards.iter().filter_map(|shard| shard.codes.as_ref().map(|codes| (shard, codes)));
    let Some((_, codes)) = holders.next() else { return Ok(Arc::default()) };
    match holders.next() {
        Some((shard, _)) => Err(shard.bad("ws.code", TensorViolation::TwoShards)),
        None => Ok(codes.clone()),
    }
}

/// Completes a folder of shards: writes `files` (name and bytes), `config.json` (`config` with `quantization` as its
/// `quantization_config`, to which method, version, stored bits and weights are added) and the index into `partial`, opens it as a
/// reader would, and renames it to `dir`. Returns `dir`.
///
/// # Errors
/// [`FormatError::Exists`] if there is something at `dir`; [`FormatError::Io`]; or the folder makes no model that
/// [`WsModel::open`] accepts. `dir` does not exist then.
pub fn finish_folder(
    partial: &Path,
    dir: &Path,
    config: &Value,
    quantization: &Value,
    files: &[(String, Vec<u8>)],
) -> Result<PathBuf, FormatError> {
    if dir.symlink_metadata().is_ok() {
        return Err(FormatError::Exists { path: dir.to_owned() });
    }
    let damaged = |name: &str, violation| FormatError::Damaged { path: partial.join(name), violation };
    let reserved = |name: &str| name == CONFIG || name == INDEX || name.ends_with(".safetensors") || !files::is_plain(name);
    if let Some((name, _)) = files.iter().find(|(name, _)| reserved(name)) {
        return Err(damaged(INDEX, Violation::FileName(name.clone())));
    }
    let shards = shard_paths(partial)?.iter().map(|path| ShardFile::open(path)).collect::<Result<Vec<_>, _>>()?;
    let sizes: Vec<&LayerSize> = shards.iter().flat_map(|shard| shard.matrices.values()).collect();
    let weights: u64 = sizes.iter().map(|size| size.weights()).sum();
    let (mut config, mut quantization) = match (config, quantization) {
        (Value::Object(config), Value::Object(quantization)) => (config.clone(), quantization.clone()),
        _ => return Err(damaged(CONFIG, Violation::NotAnObject)),
    };
    quantization.insert("quant_method".to_owned(), METHOD.into());
    quantization.insert("format_version".to_owned(), VERSION.into());
    quantization.insert("stored_bits".to_owned(), layer::stored_bits(sizes.iter().map(|s| s.bytes).sum(), weights).into());
    quantization.insert("weights".to_owned(), weights.into());
    config.insert("quantization_config".to_owned(), quantization.into());
    let config = format!("{:#}\n", Value::from(config)).into_bytes();

    let files = || files.iter().map(|(name, bytes)| (name.as_str(), bytes.as_slice())).chain([(CONFIG, config.as_slice())]);
    let index = Index::new(&shards, files())?.text();
    for (name, bytes) in files().chain([(INDEX, index.as_slice())]) {
        files::write(&partial.join(name), |file| file.write_all(bytes), |_| Ok(()))?;
    }
    WsModel::open(partial)?;
    std::fs::rename(partial, dir).map_err(|error| FormatError::Io { action: "rename to", path: dir.to_owned(), error })?;
    files::sync_folder(files::parent(dir))?;
    Ok(dir.to_owned())
}

/// The shards of a folder by name.
fn shard_paths(dir: &Path) -> Result<Vec<PathBuf>, FormatError> {
    let io = |error| FormatError::Io { action: "read", path: dir.to_owned(), error };
    let entries = std::fs::read_dir(dir).map_err(io)?.collect::<Result<Vec<_>, _>>().map_err(io)?;
    let mut paths: Vec<PathBuf> = entries.iter().map(std::fs::DirEntry::path).collect();
    paths.retain(|path| path.extension().is_some_and(|e| e == "safetensors"));
    paths.sort();
    Ok(paths)
}
