//! Reading: memory-mapped shards, everything checked before a kernel sees it.
use super::header::{self, Dtype, Entry, Header};
use super::{FormatError, VERSION};
use half::f16;
use memmap2::Mmap;
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use ws_kernels::code::{CodeSet, LinearCode};
use ws_kernels::layout::Geometry;
use ws_kernels::packed::{Bytes, Exception, PackedMatrix, Parts};
use ws_kernels::rows8::Rows8;
use xxhash_rust::xxh3::xxh3_64;

/// Ends of the names of a packed matrix' tensors.
pub(crate) const PACKED_ENDS: [&str; 9] = ["codes", "plan", "scale", "col_scale", "row_scale", "exact", "exc_row", "exc_col", "exc_val"];
const FIELDS: [&str; 3] = ["ws.version", "ws.checksums", "ws.shapes"];

/// One memory-mapped shard with a checked header.
pub(crate) struct ShardFile {
    pub(crate) path: PathBuf,
    map: Arc<Mmap>,
    pub(crate) header: Header,
    sums: BTreeMap<String, String>,
    shapes: BTreeMap<String, [usize; 2]>,
}

impl ShardFile {
    pub(crate) fn open(path: &Path) -> Result<Self, FormatError> {
        let io = |error| FormatError::Io { action: "open", path: path.to_owned(), error };
        let file = std::fs::File::open(path).map_err(io)?;
        // SAFETY: the map is read-only; whoever changes a model's file while it is in use gets wrong numbers or a bus error, as with every
        // memory-mapped format. All offsets are checked against the length at the time of mapping.
        let map = Arc::new(unsafe { Mmap::map(&file) }.map_err(io)?);
        let header = header::parse(path, &map)?;
        let version = header.metadata.get("ws.version").cloned().unwrap_or_default();
        if version != VERSION.to_string() {
            return Err(FormatError::Version { path: path.to_owned(), found: version });
        }
        if let Some(field) = header.metadata.keys().find(|k| k.starts_with("ws.") && !FIELDS.contains(&k.as_str())) {
            return Err(FormatError::UnknownField { path: path.to_owned(), field: field.clone() });
        }
        let field = |name: &str| header.metadata.get(name).map_or("", String::as_str);
        let damaged = |what: &str| FormatError::Header { path: path.to_owned(), why: format!("field {what}") };
        let sums: BTreeMap<String, String> = serde_json::from_str(field("ws.checksums")).map_err(|_| damaged("ws.checksums"))?;
        let shapes = serde_json::from_str(field("ws.shapes")).map_err(|_| damaged("ws.shapes"))?;
        if !sums.keys().eq(header.tensors.keys()) {
            return Err(damaged("ws.checksums"));
        }
        Ok(Self { path: path.to_owned(), map, header, sums, shapes })
    }

    /// Reads everything and compares checksums.
    pub(crate) fn verify(&self) -> Result<(), FormatError> {
        for (name, entry) in &self.header.tensors {
            if format!("{:016x}", xxh3_64(&self.map[entry.range.clone()])) != self.sums[name] {
                return Err(FormatError::Checksum { path: self.path.clone(), tensor: name.clone() });
            }
        }
        Ok(())
    }

    fn bad(&self, tensor: &str, why: impl Into<String>) -> FormatError {
        FormatError::Tensor { path: self.path.clone(), tensor: tensor.to_owned(), why: why.into() }
    }

    fn entry(&self, name: &str) -> Result<&Entry, FormatError> {
        self.header.tensors.get(name).ok_or_else(|| FormatError::Missing { path: self.path.clone(), tensor: name.to_owned() })
    }

    fn bytes(&self, name: &str, dtype: Dtype) -> Result<&[u8], FormatError> {
        let entry = self.entry(name)?;
        if entry.dtype != dtype {
            return Err(self.bad(name, format!("is {}, must be {}", entry.dtype.name(), dtype.name())));
        }
        Ok(&self.map[entry.range.clone()])
    }

    fn halves(&self, name: &str) -> Result<Vec<f16>, FormatError> {
        Ok(self.bytes(name, Dtype::F16)?.chunks_exact(2).map(|b| f16::from_le_bytes([b[0], b[1]])).collect())
    }

    fn floats(&self, name: &str) -> Result<Vec<f32>, FormatError> {
        let values = self.bytes(name, Dtype::F32)?.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]]));
        let values: Vec<f32> = values.collect();
        match values.iter().all(|v| v.is_finite()) {
            true => Ok(values),
            false => Err(self.bad(name, "holds NaN or infinite values")),
        }
    }

    fn one_float(&self, name: &str) -> Result<f32, FormatError> {
        match self.floats(name)?[..] {
            [value] => Ok(value),
            _ => Err(self.bad(name, "must hold one value")),
        }
    }

    fn widths(&self, name: &str, columns: usize) -> Result<Vec<u8>, FormatError> {
        let tensor = format!("{name}.plan");
        let plan = self.bytes(&tensor, Dtype::U8)?;
        if plan.len() != columns.div_ceil(2) {
            return Err(self.bad(&tensor, format!("has {} bytes for {columns} in-features", plan.len())));
        }
        let nibbles = plan.iter().flat_map(|b| [b & 15, b >> 4]);
        if nibbles.clone().skip(columns).any(|n| n != 0) {
            return Err(self.bad(&tensor, "has bits beyond the last in-feature"));
        }
        let width = |nibble: u8| match nibble {
            0..=6 => Ok(nibble),
            7 => Ok(8),
            8 => Ok(16),
            other => Err(self.bad(&tensor, format!("width code {other} is unknown"))),
        };
        nibbles.take(columns).map(width).collect()
    }

    fn exceptions(&self, name: &str) -> Result<Vec<Exception>, FormatError> {
        let [rows, columns, values] = ["exc_row", "exc_col", "exc_val"].map(|end| format!("{name}.{end}"));
        let Some(entry) = self.header.tensors.get(&rows) else {
            return match [columns, values].into_iter().find(|t| self.header.tensors.contains_key(t)) {
                Some(_) => Err(FormatError::Missing { path: self.path.clone(), tensor: rows }),
                None => Ok(Vec::new()),
            };
        };
        let rows: Vec<u32> = match entry.dtype {
            Dtype::U16 => self.map[entry.range.clone()].chunks_exact(2).map(|b| u16::from_le_bytes([b[0], b[1]]).into()).collect(),
            Dtype::U32 => self.map[entry.range.clone()].chunks_exact(4).map(|b| u32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect(),
            other => return Err(self.bad(&rows, format!("is {}, must be U16 or U32", other.name()))),
        };
        let column_values: Vec<u16> = self.bytes(&columns, Dtype::U16)?.chunks_exact(2).map(|b| u16::from_le_bytes([b[0], b[1]])).collect();
        let differences = self.halves(&values)?;
        if rows.len() != column_values.len() || rows.len() != differences.len() {
            return Err(self.bad(&values, "has another length than the exceptions' rows"));
        }
        let triples = rows.into_iter().zip(column_values).zip(differences);
        Ok(triples.map(|((row, column), value)| Exception { row, column, value }).collect())
    }

    fn parts(&self, name: &str) -> Result<Parts, FormatError> {
        let codes = format!("{name}.codes");
        let [out_features, columns] = *self.shapes.get(name).ok_or_else(|| self.bad(&codes, "has no shape in ws.shapes"))?;
        self.bytes(&codes, Dtype::U8)?;
        let exact = format!("{name}.exact");
        Ok(Parts {
            out_features,
            widths: self.widths(name, columns)?,
            scale: self.one_float(&format!("{name}.scale"))?,
            codes: self.map() as Bytes,
            range: self.entry(&codes)?.range.clone(),
            col_scale: self.halves(&format!("{name}.col_scale"))?,
            row_scale: self.halves(&format!("{name}.row_scale"))?,
            exact: if self.header.tensors.contains_key(&exact) { self.halves(&exact)? } else { Vec::new() },
            exceptions: self.exceptions(name)?,
        })
    }

    fn map(&self) -> Arc<MapBytes> {
        Arc::new(MapBytes(self.map.clone()))
    }

    fn codes(&self) -> Result<CodeSet, FormatError> {
        let mut set = CodeSet::default();
        for width in 1..=6u8 {
            let prefix = format!("ws.code.{width}");
            let [a, c, levels] = ["a", "c", "levels"].map(|end| format!("{prefix}.{end}"));
            if !self.header.tensors.contains_key(&a) {
                continue;
            }
            let rectangle = |name: &str, dtype: Dtype| -> Result<Vec<Vec<u8>>, FormatError> {
                let bytes = self.bytes(name, dtype)?;
                match self.entry(name)?.shape[..] {
                    [rows, columns] if rows > 0 && columns > 0 => Ok(bytes.chunks_exact(columns).map(<[u8]>::to_vec).collect()),
                    _ => Err(self.bad(name, "must have two dimensions")),
                }
            };
            let (a_masks, c_masks, tables) = (rectangle(&a, Dtype::U8)?, rectangle(&c, Dtype::U8)?, rectangle(&levels, Dtype::I8)?);
            let index_bits = a_masks[0].len();
            let table_bits = tables[0].len().ilog2() as usize;
            let path_bits = match a_masks.len() {
                8 => 1,
                4 => 2,
                found => return Err(self.bad(&a, format!("has {found} row positions, must have 4 or 8"))),
            };
            if index_bits > 8 || table_bits > 8 || table_bits < index_bits {
                return Err(self.bad(&levels, format!("a table of {} levels for an index of {index_bits} bits", tables[0].len())));
            }
            let code = LinearCode {
                path_bits,
                raw_bits: (table_bits - index_bits) as u8,
                index_bits: index_bits as u8,
                a: a_masks,
                c: c_masks,
                levels: tables.into_iter().map(|t| t.into_iter().map(|l| l as i8).collect()).collect(),
                unit: self.one_float(&format!("{prefix}.unit"))?,
            };
            code.validate().map_err(|error| FormatError::Code { path: self.path.clone(), width, error })?;
            if code.bits() != width {
                return Err(self.bad(&levels, format!("is a code of {} bits", code.bits())));
            }
            set.codes[width as usize] = Some(Arc::new(code));
        }
        Ok(set)
    }
}

struct MapBytes(Arc<Mmap>);

impl AsRef<[u8]> for MapBytes {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}

/// Stored size of one packed matrix: every byte of its tensors in the file.
#[derive(Debug, Clone, PartialEq, serde::Serialize)]
pub struct LayerSize {
    /// Hugging Face name without `.weight`.
    pub name: String,
    /// Out-features.
    pub rows: usize,
    /// In-features.
    pub columns: usize,
    /// Bytes of its tensors.
    pub bytes: u64,
    /// Stored bits a weight.
    pub bits: f64,
    /// Columns of each width.
    pub histogram: BTreeMap<u8, usize>,
    /// Exceptions stored.
    pub exceptions: usize,
}

/// An opened .ws folder: shards are memory-mapped, headers, plans and code tables checked.
pub struct WsModel {
    shards: Vec<ShardFile>,
    /// Shard of each tensor.
    place: BTreeMap<String, usize>,
    dir: PathBuf,
    codes: Arc<CodeSet>,
    layers: Vec<LayerSize>,
    config: serde_json::Value,
}

impl WsModel {
    /// True if the folder's config.json names this format.
    pub fn is_ws(dir: &Path) -> bool {
        read_config(dir).is_ok_and(|config| config["quantization_config"]["quant_method"] == super::METHOD)
    }

    /// Opens a folder and checks headers, versions, shapes, lengths, plans and code tables; codes are not read.
    ///
    /// # Errors
    /// The first violation found.
    pub fn open(dir: &Path) -> Result<Self, FormatError> {
        let config = read_config(dir)?;
        let quantization = &config["quantization_config"];
        if quantization["quant_method"] != super::METHOD {
            let why = "config.json has no quantization_config of method watersic".to_owned();
            return Err(FormatError::NotWs { path: dir.to_owned(), why });
        }
        if quantization["format_version"] != VERSION {
            return Err(FormatError::Version { path: dir.join("config.json"), found: quantization["format_version"].to_string() });
        }
        let shards = indexed_shards(dir)?.iter().map(|path| ShardFile::open(path)).collect::<Result<Vec<_>, _>>()?;
        let mut place = BTreeMap::new();
        for (i, shard) in shards.iter().enumerate() {
            for name in shard.header.tensors.keys() {
                if place.insert(name.clone(), i).is_some() {
                    return Err(shard.bad(name, "is in two shards"));
                }
            }
        }
        let holder = place.get("ws.code.1.a").or_else(|| place.iter().find(|(k, _)| k.starts_with("ws.code.")).map(|(_, i)| i));
        let holder = holder.ok_or_else(|| FormatError::Missing { path: dir.to_owned(), tensor: "ws.code.1.a".to_owned() })?;
        let codes = Arc::new(shards[*holder].codes()?);
        let mut model = Self { shards, place, dir: dir.to_owned(), codes, layers: Vec::new(), config };
        model.layers = model.sizes()?;
        Ok(model)
    }

    fn shard_of(&self, tensor: &str) -> Result<&ShardFile, FormatError> {
        let missing = || FormatError::Missing { path: self.dir.clone(), tensor: tensor.to_owned() };
        Ok(&self.shards[*self.place.get(tensor).ok_or_else(missing)?])
    }

    fn sizes(&self) -> Result<Vec<LayerSize>, FormatError> {
        let names: BTreeSet<(Vec<usize>, &str)> =
            self.place.keys().filter_map(|n| n.strip_suffix(".codes")).map(|n| (order(n), n)).collect();
        let mut layers = Vec::new();
        for (_, name) in names {
            let shard = self.shard_of(&format!("{name}.codes"))?;
            let parts = shard.parts(name)?;
            let geometry = Geometry::new(parts.out_features, &parts.widths)
                .filter(|g| g.bytes == parts.range.len())
                .ok_or_else(|| shard.bad(&format!("{name}.codes"), "its size does not fit its shape and plan"))?;
            let bytes: usize =
                PACKED_ENDS.iter().filter_map(|end| shard.header.tensors.get(&format!("{name}.{end}"))).map(|e| e.range.len()).sum();
            let mut histogram = BTreeMap::new();
            parts.widths.iter().for_each(|&w| *histogram.entry(w).or_default() += 1);
            layers.push(LayerSize {
                name: name.to_owned(),
                rows: geometry.out_features,
                columns: parts.widths.len(),
                bytes: bytes as u64,
                bits: 8.0 * bytes as f64 / (geometry.out_features * parts.widths.len()).max(1) as f64,
                histogram,
                exceptions: parts.exceptions.len(),
            });
        }
        Ok(layers)
    }

    /// The packed matrix of this name; its codes stay in the memory map.
    ///
    /// # Errors
    /// It is missing or its tensors do not fit together.
    pub fn matrix(&self, name: &str) -> Result<PackedMatrix, FormatError> {
        let shard = self.shard_of(&format!("{name}.codes"))?;
        PackedMatrix::new(shard.parts(name)?, self.codes.clone()).map_err(|error| FormatError::Matrix {
            path: shard.path.clone(),
            tensor: name.to_owned(),
            error,
        })
    }

    /// True if this name is stored packed.
    pub fn has_matrix(&self, name: &str) -> bool {
        self.place.contains_key(&format!("{name}.codes"))
    }

    /// The 8-bit table of this name; its values stay in the memory map.
    ///
    /// # Errors
    /// It is missing or its tensors do not fit together.
    pub fn rows8(&self, name: &str) -> Result<Rows8, FormatError> {
        let tensor = format!("{name}.q8");
        let shard = self.shard_of(&tensor)?;
        shard.bytes(&tensor, Dtype::I8)?;
        let entry = shard.entry(&tensor)?;
        let [rows, columns] = entry.shape[..] else { return Err(shard.bad(&tensor, "must have two dimensions")) };
        let scales = shard.halves(&format!("{name}.q8_scale"))?;
        let unit = shard.one_float(&format!("{name}.q8_unit"))?;
        Rows8::new(rows, columns, shard.map(), entry.range.clone(), scales, unit).map_err(|error| FormatError::Matrix {
            path: shard.path.clone(),
            tensor: name.to_owned(),
            error,
        })
    }

    /// True if this name is stored as an 8-bit table.
    pub fn has_rows8(&self, name: &str) -> bool {
        self.place.contains_key(&format!("{name}.q8"))
    }

    /// A dense tensor: shape and values.
    ///
    /// # Errors
    /// It is missing or holds values that are not finite.
    pub fn dense(&self, name: &str) -> Result<(Vec<usize>, Vec<f32>), FormatError> {
        let shard = self.shard_of(name)?;
        Ok((shard.entry(name)?.shape.clone(), shard.floats(name)?))
    }

    /// Sizes of all packed matrices in model order.
    pub fn layers(&self) -> &[LayerSize] {
        &self.layers
    }

    /// The model's config.json, `quantization_config` included.
    pub fn config(&self) -> &serde_json::Value {
        &self.config
    }

    /// The code tables.
    pub fn codes(&self) -> &Arc<CodeSet> {
        &self.codes
    }

    /// Bytes of all shards.
    pub fn file_bytes(&self) -> u64 {
        self.shards.iter().map(|s| s.map.len() as u64).sum()
    }

    /// Reads everything and checks every checksum.
    ///
    /// # Errors
    /// The first tensor whose bytes are not those that were written.
    pub fn verify(&self) -> Result<(), FormatError> {
        self.shards.iter().try_for_each(ShardFile::verify)
    }
}

/// True if this shard is complete and unaltered.
pub fn shard_is_complete(path: &Path) -> bool {
    ShardFile::open(path).is_ok_and(|shard| shard.verify().is_ok())
}

fn read_config(dir: &Path) -> Result<serde_json::Value, FormatError> {
    read_json(&dir.join("config.json"))
}

fn read_json(path: &Path) -> Result<serde_json::Value, FormatError> {
    let text = std::fs::read_to_string(path).map_err(|error| FormatError::Io { action: "read", path: path.to_owned(), error })?;
    serde_json::from_str(&text).map_err(|e| FormatError::Header { path: path.to_owned(), why: e.to_string() })
}

/// The shards that the index names, each once.
fn indexed_shards(dir: &Path) -> Result<Vec<PathBuf>, FormatError> {
    let path = dir.join("model.safetensors.index.json");
    let index = read_json(&path)?;
    let damaged = |why: String| FormatError::Header { path: path.clone(), why };
    let map = index["weight_map"].as_object().ok_or_else(|| damaged("it has no weight_map".to_owned()))?;
    let mut files = BTreeSet::new();
    for file in map.values() {
        let file = file.as_str().ok_or_else(|| damaged(format!("shard {file} is not a name")))?;
        if Path::new(file).file_name() != Some(file.as_ref()) {
            return Err(damaged(format!("shard `{file}` is not a plain file name")));
        }
        files.insert(file);
    }
    Ok(files.into_iter().map(|file| dir.join(file)).collect())
}

/// Model order: numbers in a name by value, then the order in which a block computes.
fn order(name: &str) -> Vec<usize> {
    const LINEARS: [&str; 7] = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"];
    let number = name.split('.').filter_map(|part| part.parse().ok()).next().unwrap_or(usize::MAX);
    vec![number, LINEARS.iter().position(|l| name.ends_with(l)).unwrap_or(LINEARS.len())]
}
