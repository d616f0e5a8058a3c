//! Writing shards and folders: temporary name, sync, rename.
use super::header::{self, Dtype};
use super::{FormatError, VERSION};
use half::f16;
use std::collections::BTreeMap;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use ws_kernels::code::CodeSet;
use ws_kernels::packed::Parts;
use xxhash_rust::xxh3::xxh3_64;

/// A quantized matrix before it is written: `parts.codes` are owned bytes.
pub struct Packed {
    /// Hugging Face name without `.weight`.
    pub name: String,
    /// What the file holds of it.
    pub parts: Parts,
}

/// An 8-bit table before it is written.
pub struct Table8 {
    /// Hugging Face name without `.weight`.
    pub name: String,
    /// Rows.
    pub rows: usize,
    /// Columns.
    pub columns: usize,
    /// Row-major values, `rows * columns`.
    pub values: Vec<i8>,
    /// One a row.
    pub scales: Vec<f16>,
    /// One for all.
    pub unit: f32,
}

/// One shard's contents.
#[derive(Default)]
pub struct Shard {
    /// Packed matrices.
    pub packed: Vec<Packed>,
    /// 8-bit tables.
    pub tables: Vec<Table8>,
    /// Small dense tensors (norms, biases): full name, shape, values.
    pub dense: Vec<(String, Vec<usize>, Vec<f32>)>,
    /// Code tables; one shard of a model holds them.
    pub codes: Option<Arc<CodeSet>>,
}

struct Tensor {
    name: String,
    dtype: Dtype,
    shape: Vec<usize>,
    bytes: Vec<u8>,
}

impl Tensor {
    fn new(name: String, dtype: Dtype, shape: Vec<usize>, bytes: Vec<u8>) -> Self {
        Self { name, dtype, shape, bytes }
    }

    fn halves(name: String, values: &[f16]) -> Self {
        Self::new(name, Dtype::F16, vec![values.len()], values.iter().flat_map(|v| v.to_le_bytes()).collect())
    }

    fn floats(name: String, shape: Vec<usize>, values: &[f32]) -> Self {
        Self::new(name, Dtype::F32, shape, values.iter().flat_map(|v| v.to_le_bytes()).collect())
    }
}

/// Bytes of a packed matrix' tensors in the file: what `stored bits` counts.
pub fn stored_bytes(parts: &Parts) -> u64 {
    let row_bytes = exception_row_bytes(parts.out_features) as u64;
    parts.range.len() as u64
        + parts.widths.len().div_ceil(2) as u64
        + 4
        + 2 * (parts.col_scale.len() + parts.row_scale.len() + parts.exact.len()) as u64
        + (row_bytes + 4) * parts.exceptions.len() as u64
}

/// Rows of exceptions are stored in 2 bytes where that is enough.
fn exception_row_bytes(out_features: usize) -> usize {
    if out_features > 1 << 16 {
        4
    } else {
        2
    }
}

/// The nibble of a width in the column plan.
fn plan_code(width: u8) -> u8 {
    match width {
        8 => 7,
        16 => 8,
        k => k,
    }
}

fn packed_tensors(packed: &Packed) -> Vec<Tensor> {
    let (name, parts) = (&packed.name, &packed.parts);
    let codes = (*parts.codes).as_ref()[parts.range.clone()].to_vec();
    let plan: Vec<u8> = parts.widths.chunks(2).map(|pair| plan_code(pair[0]) | pair.get(1).map_or(0, |&w| plan_code(w) << 4)).collect();
    let mut tensors = vec![
        Tensor::new(format!("{name}.codes"), Dtype::U8, vec![codes.len()], codes),
        Tensor::new(format!("{name}.plan"), Dtype::U8, vec![plan.len()], plan),
        Tensor::floats(format!("{name}.scale"), vec![1], &[parts.scale]),
        Tensor::halves(format!("{name}.col_scale"), &parts.col_scale),
        Tensor::halves(format!("{name}.row_scale"), &parts.row_scale),
    ];
    if !parts.exact.is_empty() {
        let columns = parts.exact.len() / parts.out_features;
        let mut exact = Tensor::halves(format!("{name}.exact"), &parts.exact);
        exact.shape = vec![columns, parts.out_features];
        tensors.push(exact);
    }
    if !parts.exceptions.is_empty() {
        let count = vec![parts.exceptions.len()];
        let (dtype, rows) = match exception_row_bytes(parts.out_features) {
            2 => (Dtype::U16, parts.exceptions.iter().flat_map(|e| (e.row as u16).to_le_bytes()).collect()),
            _ => (Dtype::U32, parts.exceptions.iter().flat_map(|e| e.row.to_le_bytes()).collect()),
        };
        let columns = parts.exceptions.iter().flat_map(|e| e.column.to_le_bytes()).collect();
        let values: Vec<f16> = parts.exceptions.iter().map(|e| e.value).collect();
        tensors.push(Tensor::new(format!("{name}.exc_row"), dtype, count.clone(), rows));
        tensors.push(Tensor::new(format!("{name}.exc_col"), Dtype::U16, count, columns));
        tensors.push(Tensor::halves(format!("{name}.exc_val"), &values));
    }
    tensors
}

fn code_tensors(codes: &CodeSet) -> Vec<Tensor> {
    let mut tensors = Vec::new();
    for (width, code) in codes.codes.iter().enumerate().filter_map(|(k, c)| c.as_ref().map(|c| (k, c))) {
        let prefix = format!("ws.code.{width}");
        for (end, masks) in [("a", &code.a), ("c", &code.c)] {
            let shape = vec![masks.len(), code.index_bits as usize];
            tensors.push(Tensor::new(format!("{prefix}.{end}"), Dtype::U8, shape, masks.concat()));
        }
        let shape = vec![code.levels.len(), code.levels[0].len()];
        let levels = code.levels.iter().flatten().map(|&l| l as u8).collect();
        tensors.push(Tensor::new(format!("{prefix}.levels"), Dtype::I8, shape, levels));
        tensors.push(Tensor::floats(format!("{prefix}.unit"), vec![1], &[code.unit]));
    }
    tensors
}

impl Shard {
    /// Writes the shard to a temporary name beside `path`, syncs it and renames it.
    ///
    /// # Errors
    /// [`FormatError::Io`]; nothing is left at `path` then.
    pub fn write(&self, path: &Path) -> Result<(), FormatError> {
        let mut tensors: Vec<Tensor> = self.packed.iter().flat_map(packed_tensors).collect();
        for table in &self.tables {
            let values = table.values.iter().map(|&v| v as u8).collect();
            tensors.push(Tensor::new(format!("{}.q8", table.name), Dtype::I8, vec![table.rows, table.columns], values));
            tensors.push(Tensor::halves(format!("{}.q8_scale", table.name), &table.scales));
            tensors.push(Tensor::floats(format!("{}.q8_unit", table.name), vec![1], &[table.unit]));
        }
        tensors.extend(self.dense.iter().map(|(name, shape, values)| Tensor::floats(name.clone(), shape.clone(), values)));
        tensors.extend(self.codes.iter().flat_map(|codes| code_tensors(codes)));
        // Codes are whole 64-byte vectors: first in the file, they stay aligned.
        tensors.sort_by_key(|t| !t.name.ends_with(".codes"));

        let sums: BTreeMap<&str, String> = tensors.iter().map(|t| (t.name.as_str(), format!("{:016x}", xxh3_64(&t.bytes)))).collect();
        let shapes: BTreeMap<&str, [usize; 2]> =
            self.packed.iter().map(|p| (p.name.as_str(), [p.parts.out_features, p.parts.widths.len()])).collect();
        let metadata = BTreeMap::from([
            ("format".to_owned(), "pt".to_owned()),
            ("ws.version".to_owned(), VERSION.to_string()),
            ("ws.checksums".to_owned(), serde_json::json!(sums).to_string()),
            ("ws.shapes".to_owned(), serde_json::json!(shapes).to_string()),
        ]);
        let entries: Vec<_> = tensors.iter().map(|t| (t.name.clone(), t.dtype, t.shape.clone(), t.bytes.len())).collect();
        let header = header::build(&entries, &metadata);
        write_file(path, |file| {
            file.write_all(&header)?;
            tensors.iter().try_for_each(|t| file.write_all(&t.bytes))
        })
    }
}

/// Writes a file under a temporary name in the same folder, syncs and renames it.
fn write_file(path: &Path, fill: impl FnOnce(&mut std::fs::File) -> std::io::Result<()>) -> Result<(), FormatError> {
    let folder = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let write = || -> std::io::Result<()> {
        let mut file = tempfile::NamedTempFile::new_in(folder)?;
        fill(file.as_file_mut())?;
        file.as_file().sync_all()?;
        file.persist(path)?;
        sync_folder(folder)
    };
    write().map_err(|error| FormatError::Io { action: "write", path: path.to_owned(), error })
}

/// A rename is only durable once its folder is.
fn sync_folder(folder: &Path) -> std::io::Result<()> {
    std::fs::File::open(folder)?.sync_all()
}

/// Completes a folder of shards and renames it: writes `model.safetensors.index.json`, `config.json` (with `quantization_config`) and `files`
/// (name and bytes) into `partial`, then renames `partial` to `dir`. Returns `dir`.
///
/// # Errors
/// [`FormatError::Io`], a damaged shard, or [`FormatError::Exists`] if `dir` exists.
pub fn finish_folder(
    partial: &Path,
    dir: &Path,
    config: &serde_json::Value,
    quantization: &serde_json::Value,
    files: &[(String, Vec<u8>)],
) -> Result<PathBuf, FormatError> {
    if dir.exists() {
        return Err(FormatError::Exists { path: dir.to_owned() });
    }
    let mut weight_map = BTreeMap::new();
    let mut total = 0;
    for path in super::shard_paths(partial)? {
        let shard = super::read::ShardFile::open(&path)?;
        let file = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        for (name, entry) in &shard.header.tensors {
            total += entry.range.len() as u64;
            weight_map.insert(name.clone(), file.clone());
        }
    }
    let mut config = config.clone();
    let mut quantization = quantization.clone();
    quantization["quant_method"] = super::METHOD.into();
    quantization["format_version"] = VERSION.into();
    config["quantization_config"] = quantization;
    let index = serde_json::json!({"metadata": {"total_size": total}, "weight_map": weight_map});
    let text = |value: &serde_json::Value| format!("{value:#}\n").into_bytes();
    let own = [("model.safetensors.index.json".to_owned(), text(&index)), ("config.json".to_owned(), text(&config))];
    for (name, bytes) in files.iter().chain(&own) {
        write_file(&partial.join(name), |file| file.write_all(bytes))?;
    }
    std::fs::rename(partial, dir).map_err(|error| FormatError::Io { action: "rename to", path: dir.to_owned(), error })?;
    let parent = dir.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    sync_folder(parent).map_err(|error| FormatError::Io { action: "sync", path: parent.to_owned(), error })?;
    Ok(dir.to_owned())
}
