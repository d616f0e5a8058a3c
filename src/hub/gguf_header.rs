//! A walk over a GGUF header that checks every length against the file, so that candle's reader can be trusted with it.
use candle_core::quantized::gguf_file::Content;

/// Arrays within arrays that are followed.
const DEEPEST: usize = 4;
/// Metadata values at most, elements of arrays included: the reader spends 32 bytes on each, and real headers (tokens, scores, merges) have a million.
const MOST: u32 = 1 << 22;
/// Tensor types that can be dequantized: F32, F16, Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, Q2_K to Q6_K and BF16.
const TYPES: [u32; 13] = [0, 1, 2, 3, 6, 7, 8, 10, 11, 12, 13, 14, 30];
/// Dimensions of a tensor at most.
const DIMENSIONS: u32 = 4;

const BEYOND: &str = "reaches beyond the end of the file";

/// Or what is wrong with the entry at hand.
type Checked<T> = Result<T, &'static str>;

struct Walk<'a> {
    left: &'a [u8],
    wide: bool,
    /// Values that may still come.
    values: u32,
}

impl<'a> Walk<'a> {
    fn take(&mut self, count: u64) -> Checked<&'a [u8]> {
        let count = usize::try_from(count).ok().filter(|&c| c <= self.left.len()).ok_or(BEYOND)?;
        let (taken, left) = self.left.split_at(count);
        self.left = left;
        Ok(taken)
    }

    fn u32(&mut self) -> Checked<u32> {
        self.take(4)?.try_into().map(u32::from_le_bytes).map_err(|_| BEYOND)
    }

    /// A count: 8 bytes from version 2 on.
    fn count(&mut self) -> Checked<u64> {
        match self.wide {
            true => self.take(8)?.try_into().map(u64::from_le_bytes).map_err(|_| BEYOND),
            false => self.u32().map(u64::from),
        }
    }

    fn string(&mut self) -> Checked<&'a [u8]> {
        let length = self.count()?;
        self.take(length)
    }

    /// A key or a tensor's name, as the reader takes it: without the zeros that some writers leave at its end.
    fn name(&mut self) -> Checked<String> {
        Ok(String::from_utf8_lossy(self.string()?).trim_end_matches('\0').to_owned())
    }

    fn value(&mut self, kind: u32, depth: usize) -> Checked<()> {
        self.values = self.values.checked_sub(1).ok_or("brings more values than the header of any model has")?;
        let size = match kind {
            0 | 1 | 7 => 1,
            2 | 3 => 2,
            4..=6 => 4,
            10..=12 => 8,
            8 => return self.string().map(drop),
            9 if depth == DEEPEST => return Err("is an array nested too deeply"),
            9 => {
                let (kind, count) = (self.u32()?, self.count()?);
                if kind > 12 {
                    return Err("has an unknown type");
                }
                if count > self.left.len() as u64 {
                    return Err(BEYOND);
                }
                return (0..count).try_for_each(|_| self.value(kind, depth + 1));
            }
            _ => return Err("has an unknown type"),
        };
        match (kind, self.take(size)?) {
            (7, [byte]) if *byte > 1 => Err("is neither true nor false"),
            _ => Ok(()),
        }
    }

    /// The type of a tensor.
    fn tensor(&mut self) -> Checked<u32> {
        let dimensions = self.u32()?;
        if dimensions > DIMENSIONS {
            return Err("has too many dimensions");
        }
        let mut elements = 1u64;
        for _ in 0..dimensions {
            elements = match self.count()? {
                0 => return Err("has a dimension of 0"),
                n => elements.checked_mul(n).filter(|&n| usize::try_from(n).is_ok()).ok_or("has too many elements")?,
            };
        }
        let kind = self.u32()?;
        self.take(8)?;
        Ok(kind)
    }
}

/// What is wrong with the header of this file, if anything.
pub(super) fn check(file: &[u8]) -> Result<(), String> {
    let mut walk = Walk { left: file, wide: true, values: MOST };
    if walk.take(4) != Ok(b"GGUF") {
        return Err("is not a GGUF file".to_owned());
    }
    let truncated = |_| "is truncated in its header".to_owned();
    let version = walk.u32().map_err(truncated)?;
    if !(1..=3).contains(&version) {
        return Err(format!("has GGUF version {version}; supported are 1 to 3"));
    }
    walk.wide = version > 1;
    let (tensors, values) = (walk.count().map_err(truncated)?, walk.count().map_err(truncated)?);
    let damaged = |what: &str, why: &str| format!("is truncated or altered in its header: {what} {why}");
    for i in 0..values {
        let key = walk.name().map_err(|why| damaged(&format!("metadata key {i}"), why))?;
        let bad = |why| damaged(&format!("metadata `{key}`"), why);
        let kind = walk.u32().map_err(bad)?;
        let value = walk.left;
        walk.value(kind, 0).map_err(bad)?;
        let used = value.len() - walk.left.len();
        // The reader divides by it.
        if key == "general.alignment" && value[..used].iter().all(|&byte| byte == 0) {
            return Err(bad("is 0"));
        }
    }
    for i in 0..tensors {
        let name = walk.name().map_err(|why| damaged(&format!("the name of tensor {i}"), why))?;
        let kind = walk.tensor().map_err(|why| damaged(&format!("tensor {name}"), why))?;
        if !TYPES.contains(&kind) {
            return Err(format!(
                "tensor {name} has GGML type {kind}; supported are F32, F16, BF16, Q8_0, Q4_0, Q4_1, Q5_0, Q5_1 and Q2_K to Q6_K"
            ));
        }
    }
    Ok(())
}

/// Which tensor lies outside of a file of this many bytes, if any.
pub(super) fn check_tensors(content: &Content, bytes: u64) -> Result<(), String> {
    let mut names: Vec<&String> = content.tensor_infos.keys().collect();
    names.sort();
    for name in names {
        let info = &content.tensor_infos[name];
        let (elements, block) = (info.shape.elem_count(), info.ggml_dtype.block_size());
        let size = (elements / block).checked_mul(info.ggml_dtype.type_size()).map(|s| s as u64);
        let end = size.and_then(|size| content.tensor_data_offset.checked_add(info.offset)?.checked_add(size));
        if !elements.is_multiple_of(block) || end.is_none_or(|end| end > bytes) {
            return Err(format!(
                "is truncated or altered: tensor {name} {:?} of {:?} does not fit into {bytes} bytes",
                info.ggml_dtype,
                info.shape.dims()
            ));
        }
    }
    Ok(())
}
