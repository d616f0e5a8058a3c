//! Every tensor type of GGUF that is supported.
use crate::common::{Fixture, Tiny};
use crate::gguf_file::Gguf;
use crate::support::{load, read_tensors, small, SINGLE};
use candle_core::quantized::GgmlDType;
use half::f16;
use wsrun::hub::{Opened, Source};

fn values(opened: &Opened, name: &str, shape: &[usize]) -> Vec<f32> {
    opened.weights.tensor(name, shape).unwrap().flatten_all().unwrap().to_vec1().unwrap()
}

/// Each type's error, relative to the weights, on random ones.
#[test]
fn every_type_is_as_close_as_its_bits_allow() {
    let f = Fixture::with(&Tiny { hidden: 256, intermediate: 256, layers: 1, ..Tiny::default() });
    let tensors = read_tensors(&f.path("model").join(SINGLE));
    let names = ["self_attn.q_proj", "self_attn.k_proj", "mlp.down_proj"].map(|n| format!("model.layers.0.{n}.weight"));
    for (kind, least, most) in [
        (GgmlDType::F32, 0.0, 0.0),
        (GgmlDType::F16, 1e-4, 3e-4),
        (GgmlDType::BF16, 1e-3, 2e-3),
        (GgmlDType::Q8_0, 0.002, 0.01),
        (GgmlDType::Q6K, 0.01, 0.03),
        (GgmlDType::Q5_0, 0.02, 0.06),
        (GgmlDType::Q5_1, 0.02, 0.06),
        (GgmlDType::Q5K, 0.02, 0.06),
        (GgmlDType::Q4_0, 0.05, 0.12),
        (GgmlDType::Q4_1, 0.05, 0.12),
        (GgmlDType::Q4K, 0.05, 0.12),
        (GgmlDType::Q3K, 0.1, 0.25),
        (GgmlDType::Q2K, 0.2, 0.45),
    ] {
        let path = f.path("model.gguf");
        Gguf::convert(&f.path("model"), kind).write(&path);
        let source = Source::Gguf(path);
        let opened = source.open().unwrap();
        for name in &names {
            let (shape, exact) = &tensors[name];
            let close = values(&opened, name, shape);
            let squares = |values: &mut dyn Iterator<Item = f32>| values.map(|v| f64::from(v) * f64::from(v)).sum::<f64>();
            let error = (squares(&mut close.iter().zip(exact).map(|(a, b)| a - b)) / squares(&mut exact.iter().copied())).sqrt();
            assert!((least..=most).contains(&error), "{kind:?} {name}: {error}");
        }
        load(&source).unwrap();
    }
}

/// Blocks written by hand.
#[test]
fn blocks_are_read_as_llama_cpp_writes_them() {
    let f = Fixture::with(&Tiny { hidden: 32, ..small() });
    let mut gguf = Gguf::convert(&f.path("model"), GgmlDType::F32);
    let rows = |block: Vec<u8>, rows: usize| block.repeat(rows);
    let scale = f16::from_f32(0.5).to_le_bytes();
    let up = gguf.tensor("blk.0.ffn_up.weight");
    up.kind = 8;
    up.bytes = rows(scale.into_iter().chain((0..32).map(|i| (i - 16) as u8)).collect(), 32);
    let gate = gguf.tensor("blk.0.ffn_gate.weight");
    gate.kind = 2;
    gate.bytes = rows(scale.into_iter().chain((0..16).map(|i| i | (15 - i) << 4)).collect(), 32);
    gguf.write(&f.path("model.gguf"));
    let opened = Source::Gguf(f.path("model.gguf")).open().unwrap();
    let row = |name: &str| values(&opened, name, &[32, 32])[32 * 31..].to_vec();
    let q8: Vec<f32> = (-16..16).map(|q| q as f32 / 2.0).collect();
    assert_eq!(row("model.layers.0.mlp.up_proj.weight"), q8);
    let q4: Vec<f32> = (-8..8).chain((-8..8).rev()).map(|q| q as f32 / 2.0).collect();
    assert_eq!(row("model.layers.0.mlp.gate_proj.weight"), q4);
}
