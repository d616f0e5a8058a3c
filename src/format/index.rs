//! `model.safetensors.index.json`: which shard holds a tensor, and the checksums of everything that is not in a shard.
use super::header::{self, Unique};
use super::shard::ShardFile;
use super::{files, FormatError, TensorViolation, Violation, CONFIG, INDEX};
use rayon::prelude::*;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::Path;

/// The index as it is stored. Written and compared as the text that [`Index::text`] makes.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Index {
    metadata: Metadata,
    weight_map: Unique<String>,
}

#[derive(Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Metadata {
    /// Bytes of all tensors.
    total_size: u64,
    /// xxh3-64 of config.json and the tokenizer's files.
    #[serde(rename = "ws.files")]
    files: Unique<String>,
    /// The checksum of each shard's header, which covers those of its tensors.
    #[serde(rename = "ws.shards")]
    shards: Unique<String>,
}

impl Index {
    /// The index of these shards; `files` with their contents.
    pub(super) fn new<'a>(shards: &[ShardFile], files: impl Iterator<Item = (&'a str, &'a [u8])>) -> Result<Self, FormatError> {
        let mut weight_map = BTreeMap::new();
        for shard in shards {
            for tensor in shard.header.tensors.keys() {
                if weight_map.insert(tensor.clone(), file_name(shard)).is_some() {
                    return Err(shard.bad(tensor, TensorViolation::TwoShards));
                }
            }
        }
        let metadata = Metadata {
            total_size: tensor_bytes(shards),
            files: Unique(files.map(|(name, bytes)| (name.to_owned(), header::sum(bytes))).collect()),
            shards: Unique(shards.iter().map(|shard| (file_name(shard), shard.header.sum.clone())).collect()),
        };
        Ok(Self { metadata, weight_map: Unique(weight_map) })
    }

    /// The bytes of the file.
    pub(super) fn text(&self) -> Vec<u8> {
        let text = serde_json::to_string_pretty(self).expect("names and numbers always make JSON");
        (text + "\n").into_bytes()
    }

    /// Reads a folder's index and opens its shards; both must agree in every tensor.
    pub(super) fn open(dir: &Path) -> Result<(Self, Vec<ShardFile>), FormatError> {
        let path = dir.join(INDEX);
        let index: Self = files::read_json(&path)?;
        let damaged = |violation| FormatError::Damaged { path: path.clone(), violation };
        let mut tensors: BTreeMap<&String, Vec<&String>> = BTreeMap::new();
        for (tensor, shard) in &index.weight_map.0 {
            tensors.entry(shard).or_default().push(tensor);
        }
        if let Some(shard) = header::difference(tensors.keys().copied(), index.metadata.shards.0.keys()) {
            return Err(damaged(Violation::IndexShards(shard)));
        }
        let wrong = |name: &&String| !files::is_plain(name) || !name.ends_with(".safetensors");
        if let Some(name) = index.metadata.shards.0.keys().find(wrong) {
            return Err(damaged(Violation::FileName(name.clone())));
        }
        let mut shards = Vec::new();
        for (name, sum) in &index.metadata.shards.0 {
            let shard = ShardFile::open(&dir.join(name))?;
            if let Some(tensor) = header::difference(tensors[name].iter().copied(), shard.header.tensors.keys()) {
                return Err(damaged(Violation::IndexTensors { shard: name.clone(), tensor }));
            }
            if shard.header.sum != *sum {
                return Err(shard.damaged(Violation::OtherShard));
            }
            shards.push(shard);
        }
        let expected = tensor_bytes(&shards);
        match index.metadata.total_size == expected {
            true => Ok((index, shards)),
            false => Err(damaged(Violation::TotalSize { found: index.metadata.total_size, expected })),
        }
    }

    /// Checks the text of the index itself, and the files that it has checksums of.
    pub(super) fn verify(&self, dir: &Path) -> Result<(), FormatError> {
        let path = dir.join(INDEX);
        if files::map(&path)?[..] != self.text() {
            return Err(FormatError::Damaged { path, violation: Violation::Changed });
        }
        let sums = &self.metadata.files.0;
        let named = |name: &str| FormatError::Damaged { path: dir.join(INDEX), violation: Violation::FileName(name.to_owned()) };
        if let Some(name) = sums.keys().find(|name| !files::is_plain(name)) {
            return Err(named(name));
        }
        if !sums.contains_key(CONFIG) {
            return Err(FormatError::Damaged { path, violation: Violation::Field("ws.files") });
        }
        let wrong = |(name, sum): (&String, &String)| match files::map(&dir.join(name)) {
            Ok(bytes) if header::sum(&bytes) == *sum => None,
            Ok(_) => Some(FormatError::Damaged { path: dir.join(name), violation: Violation::Checksum }),
            Err(error) => Some(error),
        };
        sums.par_iter().filter_map(wrong).collect::<Vec<_>>().into_iter().next().map_or(Ok(()), Err)
    }
}

fn tensor_bytes(shards: &[ShardFile]) -> u64 {
    shards.iter().flat_map(|shard| shard.header.tensors.values()).map(|entry| entry.range.len() as u64).sum()
}

fn file_name(shard: &ShardFile) -> String {
    shard.path.file_name().unwrap_or_default().to_string_lossy().into_owned()
}
