//! The safetensors header: written so that what follows is aligned, read with every length checked.
use super::{FormatError, TensorViolation, Violation, ALIGNMENT, VERSION};
use serde::de::{Error, MapAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::{Map, Value};
use std::collections::BTreeMap;
use std::marker::PhantomData;
use std::ops::Range;
use std::path::Path;
use xxhash_rust::xxh3::xxh3_64;

/// Longest header that is read. A model of 1000 layers in one shard has about 2 MiB.
const LONGEST: usize = 64 << 20;
const METADATA: &str = "__metadata__";
/// Metadata key of the header's own checksum.
const SUM: &str = "ws.header";
/// Its value while the checksum is computed.
const ZEROS: &str = "0000000000000000";
const FIELDS: [&str; 4] = ["ws.version", "ws.checksums", "ws.shapes", SUM];

/// Element types of the format.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Dtype {
    U8,
    I8,
    U16,
    U32,
    F16,
    F32,
}

impl Dtype {
    const ALL: [Self; 6] = [Self::U8, Self::I8, Self::U16, Self::U32, Self::F16, Self::F32];

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::U8 => "U8",
            Self::I8 => "I8",
            Self::U16 => "U16",
            Self::U32 => "U32",
            Self::F16 => "F16",
            Self::F32 => "F32",
        }
    }

    pub(super) fn size(self) -> usize {
        match self {
            Self::U8 | Self::I8 => 1,
            Self::U16 | Self::F16 => 2,
            Self::U32 | Self::F32 => 4,
        }
    }

    /// Bytes of a tensor; `None` where they overflow.
    pub(super) fn bytes(self, shape: &[usize]) -> Option<usize> {
        shape.iter().try_fold(self.size(), |n, &d| n.checked_mul(d))
    }
}

/// Place and type of one tensor.
#[derive(Debug, Clone)]
pub(super) struct Entry {
    pub(super) dtype: Dtype,
    pub(super) shape: Vec<usize>,
    /// Bytes of the file.
    pub(super) range: Range<usize>,
}

/// A checked header.
#[derive(Debug)]
pub(super) struct Header {
    pub(super) tensors: BTreeMap<String, Entry>,
    /// xxh3-64 of each tensor's bytes.
    pub(super) sums: BTreeMap<String, String>,
    /// Out- and in-features of the packed matrices.
    pub(super) shapes: BTreeMap<String, [usize; 2]>,
    /// The header's own checksum.
    pub(super) sum: String,
}

/// The hexadecimal checksum of bytes as it is stored.
pub(super) fn sum(bytes: &[u8]) -> String {
    stored(xxh3_64(bytes))
}

/// A checksum as it is stored: 16 lower-case hexadecimal digits.
pub(super) fn stored(sum: u64) -> String {
    format!("{sum:016x}")
}

/// What a header says of one tensor.
pub(super) struct Item {
    pub(super) name: String,
    pub(super) dtype: Dtype,
    pub(super) shape: Vec<usize>,
    pub(super) bytes: usize,
    pub(super) sum: String,
}

/// Header bytes (length prefix included) for tensors in file order.
pub(super) fn build(items: &[Item], shapes: &BTreeMap<String, [usize; 2]>) -> Vec<u8> {
    let sums: BTreeMap<&str, &str> = items.iter().map(|item| (item.name.as_str(), item.sum.as_str())).collect();
    let mut object = Map::new();
    object.insert(
        METADATA.to_owned(),
        serde_json::json!({
            "format": "pt",
            "ws.version": VERSION.to_string(),
            "ws.checksums": serde_json::json!(sums).to_string(),
            "ws.shapes": serde_json::json!(shapes).to_string(),
            SUM: ZEROS,
        }),
    );
    let mut offset = 0;
    for Item { name, dtype, shape, bytes, .. } in items {
        object.insert(name.clone(), serde_json::json!({"dtype": dtype.name(), "shape": shape, "data_offsets": [offset, offset + bytes]}));
        offset += bytes;
    }
    let mut text = Value::Object(object).to_string().into_bytes();
    text.resize((8 + text.len()).next_multiple_of(ALIGNMENT) - 8, b' ');
    let mut header = (text.len() as u64).to_le_bytes().to_vec();
    header.extend(text);
    let sum = sum(&header);
    let place = place_of_sum(&header).expect("the checksum's place was just written");
    header[place].copy_from_slice(sum.as_bytes());
    header
}

/// Parses and checks the header of a whole file.
pub(super) fn parse(path: &Path, file: &[u8]) -> Result<Header, FormatError> {
    let damaged = |violation| FormatError::Damaged { path: path.to_owned(), violation };
    let header = header_bytes(file).map_err(damaged)?;
    let raw: RawHeader = serde_json::from_slice(&header[8..]).map_err(|e| damaged(Violation::Json(e)))?;
    let metadata = raw.metadata;
    let version = metadata.get("ws.version").map_or("", String::as_str);
    if version != VERSION.to_string() {
        return Err(FormatError::Version { path: path.to_owned(), found: if version.is_empty() { "none" } else { version }.to_owned() });
    }
    let sum = check_sum(header).map_err(damaged)?;
    if let Some(field) = metadata.keys().find(|k| k.starts_with("ws.") && !FIELDS.contains(&k.as_str())) {
        return Err(FormatError::UnknownField { path: path.to_owned(), field: field.clone() });
    }
    let tensors = entries(raw.tensors, header.len(), file.len()).map_err(|(tensor, violation)| FormatError::Tensor {
        path: path.to_owned(),
        tensor,
        violation,
    })?;
    let end = tensors.values().map(|e| e.range.end).max().unwrap_or(header.len());
    if end != file.len() {
        return Err(damaged(Violation::End { tensors: end, file: file.len() }));
    }
    let sums: BTreeMap<String, String> = field(&metadata, "ws.checksums").map_err(damaged)?;
    let shapes = field(&metadata, "ws.shapes").map_err(damaged)?;
    if let Some(tensor) = difference(sums.keys(), tensors.keys()) {
        return Err(damaged(Violation::FieldTensors { field: "ws.checksums", tensor }));
    }
    Ok(Header { tensors, sums, shapes, sum })
}

/// The first name that only one of two sorted lists has.
pub(super) fn difference<'a>(a: impl Iterator<Item = &'a String>, b: impl Iterator<Item = &'a String>) -> Option<String> {
    let (mut a, mut b) = (a, b);
    loop {
        return match (a.next(), b.next()) {
            (Some(a), Some(b)) if a == b => continue,
            (Some(a), Some(b)) => Some(a.min(b).clone()),
            (a, b) => a.or(b).cloned(),
        };
    }
}

/// Length prefix and JSON text of a file.
fn header_bytes(file: &[u8]) -> Result<&[u8], Violation> {
    let prefix: [u8; 8] = file.get(..8).and_then(|b| b.try_into().ok()).ok_or(Violation::TooShort(file.len()))?;
    let length = u64::from_le_bytes(prefix);
    let end = usize::try_from(length).ok().and_then(|l| l.checked_add(8)).filter(|&end| end <= file.len() && end <= LONGEST);
    let end = end.ok_or(Violation::HeaderLength { length, file: file.len() })?;
    if !end.is_multiple_of(ALIGNMENT) {
        return Err(Violation::HeaderAlignment(length));
    }
    Ok(&file[..end])
}

/// A JSON object inside of a metadata string.
fn field<V: for<'de> Deserialize<'de>>(metadata: &BTreeMap<String, String>, name: &'static str) -> Result<BTreeMap<String, V>, Violation> {
    let text = metadata.get(name).ok_or(Violation::Field(name))?;
    serde_json::from_str::<Unique<V>>(text).map(|u| u.0).map_err(|_| Violation::Field(name))
}

/// Where the checksum's digits stand. The marker occurs once at most: inside of a JSON string its quotes would be escaped, and a second
/// key of this name is refused.
fn place_of_sum(header: &[u8]) -> Option<Range<usize>> {
    let marker = format!("\"{SUM}\":\"");
    let start = header.windows(marker.len()).position(|w| w == marker.as_bytes())? + marker.len();
    (start + ZEROS.len() <= header.len()).then_some(start..start + ZEROS.len())
}

fn check_sum(header: &[u8]) -> Result<String, Violation> {
    let place = place_of_sum(header).ok_or(Violation::Field(SUM))?;
    let mut zeroed = header.to_vec();
    zeroed[place.clone()].copy_from_slice(ZEROS.as_bytes());
    let sum = sum(&zeroed);
    match sum.as_bytes() == &header[place] {
        true => Ok(sum),
        false => Err(Violation::Checksum),
    }
}

/// Checks that tensors of the right sizes cover the data without gap or overlap.
fn entries(raw: BTreeMap<String, RawEntry>, start: usize, file: usize) -> Result<BTreeMap<String, Entry>, (String, TensorViolation)> {
    let data = file - start;
    let mut sorted: Vec<(String, RawEntry)> = raw.into_iter().collect();
    sorted.sort_by_key(|(_, entry)| entry.data_offsets);
    let mut next = 0;
    let mut entries = BTreeMap::new();
    for (name, RawEntry { dtype, shape, data_offsets: [from, to] }) in sorted {
        let Some(&dtype) = Dtype::ALL.iter().find(|d| d.name() == dtype) else {
            return Err((name, TensorViolation::UnknownDtype(dtype)));
        };
        let violation = match dtype.bytes(&shape) {
            _ if from > to || to > data => TensorViolation::Place { start: from, end: to, data },
            _ if from != next => TensorViolation::Offset { found: from, expected: next },
            None => TensorViolation::TooLarge,
            Some(expected) if expected != to - from => TensorViolation::Bytes { found: to - from, expected },
            Some(_) => {
                next = to;
                entries.insert(name, Entry { dtype, shape, range: start + from..start + to });
                continue;
            }
        };
        return Err((name, violation));
    }
    Ok(entries)
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawEntry {
    dtype: String,
    shape: Vec<usize>,
    data_offsets: [usize; 2],
}

struct RawHeader {
    metadata: BTreeMap<String, String>,
    tensors: BTreeMap<String, RawEntry>,
}

impl<'de> Deserialize<'de> for RawHeader {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Header;
        impl<'de> Visitor<'de> for Header {
            type Value = RawHeader;

            fn expecting(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
                f.write_str("a safetensors header")
            }

            fn visit_map<M: MapAccess<'de>>(self, mut map: M) -> Result<RawHeader, M::Error> {
                let (mut metadata, mut tensors) = (None, BTreeMap::new());
                while let Some(name) = map.next_key::<String>()? {
                    let twice = if name == METADATA {
                        metadata.replace(map.next_value::<Unique<String>>()?.0).is_some()
                    } else {
                        let entry = map.next_value().map_err(|e| M::Error::custom(format!("tensor {name}: {e}")))?;
                        tensors.insert(name.clone(), entry).is_some()
                    };
                    if twice {
                        return Err(M::Error::custom(format!("{name} is there twice")));
                    }
                }
                Ok(RawHeader { metadata: metadata.unwrap_or_default(), tensors })
            }
        }
        deserializer.deserialize_map(Header)
    }
}

/// A JSON object that has no key twice.
#[derive(Debug, PartialEq, Serialize)]
#[serde(transparent)]
pub(super) struct Unique<V>(pub(super) BTreeMap<String, V>);

impl<'de, V: Deserialize<'de>> Deserialize<'de> for Unique<V> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Keys<V>(PhantomData<V>);
        impl<'de, V: Deserialize<'de>> Visitor<'de> for Keys<V> {
            type Value = BTreeMap<String, V>;

            fn expecting(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<M: MapAccess<'de>>(self, mut map: M) -> Result<Self::Value, M::Error> {
                let mut object = BTreeMap::new();
                while let Some(key) = map.next_key::<String>()? {
                    if object.contains_key(&key) {
                        return Err(M::Error::custom(format!("{key} is there twice")));
                    }
                    let value = map.next_value()?;
                    object.insert(key, value);
                }
                Ok(object)
            }
        }
        deserializer.deserialize_map(Keys(PhantomData)).map(Unique)
    }
}
