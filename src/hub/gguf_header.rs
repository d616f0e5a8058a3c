//! A walk over a GGUF header that checks every length against the file, so that candle's reader can be trusted with it.
use candle_core::quantized::gguf_file::Content;

/// Arrays within arrays that are followed.
const DEEPEST: usize = 4;
/// Elements of an array at most: the reader spends 32 bytes on each, and the longest real ones (merges) have a few hundred thousand.
const LONGEST: u64 = 1 << 22;
/// Tensor types that can be dequantized: F32, F16, Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, Q2_K to Q6_K and BF16.
const TYPES: [u32; 13] = [0, 1, 2, 3, 6, 7, 8, 10, 11, 12, 13, 14, 30];
/// Dimensions of a tensor at most.
const DIMENSIONS: u32 = 4;

struct Walk<'a> {
    left: &'a [u8],
    wide: bool,
}

impl<'a> Walk<'a> {
    fn take(&mut self, count: u64) -> Option<&'a [u8]> {
        let count = usize::try_from(count).ok().filter(|&c| c <= self.left.len())?;
        let (taken, left) = self.left.split_at(count);
        self.left = left;
        Some(taken)
    }

    fn u32(&mut self) -> Option<u32> {
        Some(u32::from_le_bytes(self.take(4)?.try_into().ok()?))
    }

    /// A count: 8 bytes from version 2 on.
    fn count(&mut self) -> Option<u64> {
        match self.wide {
            true => Some(u64::from_le_bytes(self.take(8)?.try_into().ok()?)),
            false => self.u32().map(u64::from),
        }
    }

    fn string(&mut self) -> Option<&'a [u8]> {
        let length = self.count()?;
        self.take(length)
    }

    fn value(&mut self, kind: u32, depth: usize) -> Option<()> {
        let size = match kind {
            0 | 1 | 7 => 1,
            2 | 3 => 2,
            4..=6 => 4,
            10..=12 => 8,
            8 => return self.string().map(drop),
            9 if depth < DEEPEST => {
                let (kind, count) = (self.u32()?, self.count()?);
                if count > LONGEST.min(self.left.len() as u64) {
                    return None;
                }
                return (0..count).try_for_each(|_| self.value(kind, depth + 1));
            }
            _ => return None,
        };
        self.take(size).map(drop)
    }
}

/// What is wrong with the header of this file, if anything.
pub(super) fn check(file: &[u8]) -> Result<(), String> {
    let mut walk = Walk { left: file, wide: true };
    if walk.take(4) != Some(b"GGUF") {
        return Err("is not a GGUF file".to_owned());
    }
    let version = walk.u32().ok_or("is truncated in its header")?;
    if !(1..=3).contains(&version) {
        return Err(format!("has GGUF version {version}; supported are 1 to 3"));
    }
    walk.wide = version > 1;
    let truncated = |what: &str, i: u64| format!("is truncated or altered in its header ({what} {i})");
    let (tensors, values) = walk.count().zip(walk.count()).ok_or("is truncated in its header")?;
    for i in 0..values {
        let entry = (|| {
            let key = walk.string()?;
            let kind = walk.u32()?;
            let value = walk.left;
            walk.value(kind, 0)?;
            let used = value.len() - walk.left.len();
            // The reader divides by it.
            (key != b"general.alignment" || value[..used].iter().any(|&byte| byte != 0)).then_some(())
        })();
        entry.ok_or_else(|| truncated("metadata entry", i))?;
    }
    for i in 0..tensors {
        let entry = (|| {
            let name = walk.string()?;
            let dimensions = walk.u32().filter(|&d| d <= DIMENSIONS)?;
            let mut elements = 1u64;
            for _ in 0..dimensions {
                elements = elements.checked_mul(walk.count().filter(|&n| n > 0)?)?;
            }
            usize::try_from(elements).ok()?;
            let kind = walk.u32()?;
            walk.take(8)?;
            Some((name, kind))
        })();
        let (name, kind) = entry.ok_or_else(|| truncated("tensor", i))?;
        if !TYPES.contains(&kind) {
            let name = String::from_utf8_lossy(name);
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
