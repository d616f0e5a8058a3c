//! The safetensors header: written so that packed codes are aligned, read with every length checked.
use super::FormatError;
use serde_json::{Map, Value};
use std::collections::BTreeMap;
use std::ops::Range;
use std::path::Path;
use xxhash_rust::xxh3::xxh3_64;

/// Longest header that is read. A model of 1000 layers has about 2 MiB.
const LONGEST: usize = 64 << 20;
/// Codes start at multiples of this.
const ALIGNMENT: usize = 64;
/// Metadata key of the header's own checksum.
const SUM: &str = "ws.header";
/// Its value while the checksum is computed.
const ZEROS: &str = "0000000000000000";

/// Element types of a .ws file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Dtype {
    U8,
    I8,
    U16,
    U32,
    F16,
    F32,
}

impl Dtype {
    const ALL: [(Self, &'static str, usize); 6] = [
        (Self::U8, "U8", 1),
        (Self::I8, "I8", 1),
        (Self::U16, "U16", 2),
        (Self::U32, "U32", 4),
        (Self::F16, "F16", 2),
        (Self::F32, "F32", 4),
    ];

    fn from_name(name: &str) -> Option<Self> {
        Self::ALL.iter().find(|d| d.1 == name).map(|d| d.0)
    }

    pub(crate) fn name(self) -> &'static str {
        Self::ALL.iter().find(|d| d.0 == self).expect("all types are listed").1
    }

    pub(crate) fn size(self) -> usize {
        Self::ALL.iter().find(|d| d.0 == self).expect("all types are listed").2
    }
}

/// Place and type of one tensor.
#[derive(Debug, Clone)]
pub(crate) struct Entry {
    pub(crate) dtype: Dtype,
    pub(crate) shape: Vec<usize>,
    /// Bytes of the file.
    pub(crate) range: Range<usize>,
}

/// A checked header.
#[derive(Debug)]
pub(crate) struct Header {
    pub(crate) tensors: BTreeMap<String, Entry>,
    pub(crate) metadata: BTreeMap<String, String>,
}

/// Header bytes (length prefix included) for tensors in file order.
pub(crate) fn build(tensors: &[(String, Dtype, Vec<usize>, usize)], metadata: &BTreeMap<String, String>) -> Vec<u8> {
    let mut object = Map::new();
    let mut meta: Map<String, Value> = metadata.iter().map(|(k, v)| (k.clone(), Value::from(v.clone()))).collect();
    meta.insert(SUM.to_owned(), Value::from(ZEROS));
    object.insert("__metadata__".to_owned(), Value::Object(meta));
    let mut offset = 0;
    for (name, dtype, shape, bytes) in tensors {
        object.insert(name.clone(), serde_json::json!({"dtype": dtype.name(), "shape": shape, "data_offsets": [offset, offset + bytes]}));
        offset += bytes;
    }
    let mut text = Value::Object(object).to_string().into_bytes();
    text.resize((8 + text.len()).next_multiple_of(ALIGNMENT) - 8, b' ');
    let mut header = (text.len() as u64).to_le_bytes().to_vec();
    header.extend(text);
    let sum = format!("{:016x}", xxh3_64(&header));
    let place = place_of_sum(&header).expect("the checksum's place was just written");
    header[place].copy_from_slice(sum.as_bytes());
    header
}

fn place_of_sum(header: &[u8]) -> Option<Range<usize>> {
    let key = format!("\"{SUM}\":\"");
    let start = header.windows(key.len()).position(|w| w == key.as_bytes())? + key.len();
    (start + ZEROS.len() <= header.len()).then_some(start..start + ZEROS.len())
}

/// Parses and checks the header of a whole file.
pub(crate) fn parse(path: &Path, file: &[u8]) -> Result<Header, FormatError> {
    let damaged = |why: String| FormatError::Header { path: path.to_owned(), why };
    let prefix: [u8; 8] =
        file.get(..8).and_then(|b| b.try_into().ok()).ok_or_else(|| damaged(format!("the file has {} bytes", file.len())))?;
    let length = u64::from_le_bytes(prefix);
    let end = usize::try_from(length).ok().and_then(|l| l.checked_add(8)).filter(|&end| end <= file.len() && end <= LONGEST);
    let end = end.ok_or_else(|| damaged(format!("a header of {length} bytes in a file of {} bytes", file.len())))?;
    let value: Value = serde_json::from_slice(&file[8..end]).map_err(|e| damaged(e.to_string()))?;
    let Value::Object(mut object) = value else { return Err(damaged("not an object".to_owned())) };

    let mut metadata = BTreeMap::new();
    if let Some(Value::Object(meta)) = object.remove("__metadata__") {
        for (key, value) in meta {
            let Value::String(value) = value else { return Err(damaged(format!("metadata `{key}` is not a string"))) };
            metadata.insert(key, value);
        }
    }
    check_sum(&file[..end]).map_err(|why| damaged(why.to_owned()))?;
    metadata.remove(SUM);

    let mut tensors = BTreeMap::new();
    for (name, value) in object {
        let entry = entry(&value, end, file.len()).ok_or_else(|| damaged(format!("entry of tensor {name}: {value}")))?;
        tensors.insert(name, entry);
    }
    let mut ranges: Vec<(&String, &Range<usize>)> = tensors.iter().map(|(n, e)| (n, &e.range)).collect();
    ranges.sort_by_key(|(_, r)| (r.start, r.end));
    let mut next = end;
    for (name, range) in ranges {
        if range.start != next {
            return Err(damaged(format!("tensor {name} starts at byte {}, the one before it ends at {next}", range.start)));
        }
        next = range.end;
    }
    if next != file.len() {
        return Err(damaged(format!("the tensors end at byte {next}, the file at {}", file.len())));
    }
    Ok(Header { tensors, metadata })
}

fn check_sum(header: &[u8]) -> Result<(), &'static str> {
    let place = place_of_sum(header).ok_or("it has no checksum")?;
    let mut zeroed = header.to_vec();
    zeroed[place.clone()].copy_from_slice(ZEROS.as_bytes());
    match format!("{:016x}", xxh3_64(&zeroed)).as_bytes() == &header[place] {
        true => Ok(()),
        false => Err("its checksum differs"),
    }
}

fn entry(value: &Value, data: usize, file: usize) -> Option<Entry> {
    let object = value.as_object().filter(|o| o.len() == 3)?;
    let dtype = Dtype::from_name(object.get("dtype")?.as_str()?)?;
    let number = |v: &Value| v.as_u64().and_then(|v| usize::try_from(v).ok());
    let shape: Vec<usize> = object.get("shape")?.as_array()?.iter().map(number).collect::<Option<_>>()?;
    let offsets = object.get("data_offsets")?.as_array().filter(|o| o.len() == 2)?;
    let (start, end) = (data.checked_add(number(&offsets[0])?)?, data.checked_add(number(&offsets[1])?)?);
    let elements = shape.iter().try_fold(1usize, |n, &d| n.checked_mul(d))?;
    let fits = start <= end && end <= file && elements.checked_mul(dtype.size())? == end - start;
    fits.then_some(Entry { dtype, shape, range: start..end })
}
