//! Reads memory as the products do: what their share of its bandwidth is measured against.
use super::prefetch::{prefetch, Distances};
use super::vector::Vector;
use super::{Isa, IsaError};

/// Bytes that are read together.
const TOGETHER: usize = 256;

/// # Safety
/// The CPU must have the instruction set.
#[inline(always)]
unsafe fn read_all<T: Vector>(bytes: &[[u8; TOGETHER]]) -> u8 {
    let distances = Distances::in_order();
    let mut sums = [T::load([0; 64].as_ptr()); 4];
    for bytes in bytes {
        prefetch::<T>(bytes.as_ptr(), TOGETHER / 64, distances);
        for (i, at) in (0..TOGETHER).step_by(T::BYTES).enumerate() {
            sums[i % 4] = T::xor(sums[i % 4], T::load(bytes.as_ptr().add(at)));
        }
    }
    let mut out = [0; 64];
    let mut all = 0;
    for sum in sums {
        T::store(out.as_mut_ptr(), sum);
        all = out[..T::BYTES].iter().fold(all, |all, byte| all ^ byte);
    }
    all
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma")]
unsafe fn avx2(bytes: &[[u8; TOGETHER]]) -> u8 {
    read_all::<super::x86::Avx2>(bytes)
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vbmi,avx512vnni,gfni")]
unsafe fn avx512(bytes: &[[u8; TOGETHER]]) -> u8 {
    read_all::<super::x86::Avx512>(bytes)
}

/// Reads the bytes, a whole number of 256, with the instructions of a path; the exclusive or of all of them.
///
/// # Panics
/// If the CPU cannot run the path.
pub fn read(isa: Isa, bytes: &[u8]) -> u8 {
    assert!(isa.is_available(), "{}", IsaError::Unavailable(isa));
    let bytes = bytes.as_chunks().0;
    // SAFETY: the CPU has the instructions.
    unsafe {
        match isa {
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2 | Isa::Avx2Gfni => avx2(bytes),
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512 | Isa::Avx512Amx => avx512(bytes),
            _ => read_all::<super::portable::Portable<16>>(bytes),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_path_reads_every_byte() {
        let mut bytes: Vec<u8> = (0..1024u32).map(|i| ((i * i) >> 3) as u8).collect();
        for change in [0, 255, 256, 700, 1023] {
            bytes[change] ^= 0x55;
            let expected = bytes.iter().fold(0, |all, byte| all ^ byte);
            assert!(Isa::ALL.into_iter().filter(|isa| isa.is_available()).all(|isa| read(isa, &bytes) == expected));
        }
    }
}
