#!/usr/bin/env python3
"""Golden files: tiny models with fixed random weights, and what Hugging Face transformers (f32, eager attention) makes of them.

    python3 -m venv venv && venv/bin/pip install torch 'transformers>=5' safetensors
    venv/bin/python make_golden.py

Beside this script, a folder for each model: config.json, model.safetensors (f16 or bf16, so that rounding them is part of the model) and
golden.safetensors with, for each prompt NAME: NAME.ids, NAME.positions and NAME.logits [positions, vocab], and for the prompt of 17 tokens
NAME.received [layers, tokens]: the attention that each token receives, averaged over heads and the queries that can see it.
"""
import json
import pathlib

import torch
import transformers
from safetensors.torch import save_file

PROMPTS = {"one": 1, "two": 2, "short": 17, "other": 17, "long": 300}
BASE = dict(hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=4, vocab_size=128,
            max_position_embeddings=512, rms_norm_eps=1e-5, bos_token_id=1, eos_token_id=2)


def llama3(factor, original):
    return dict(rope_type="llama3", rope_theta=500000.0, factor=factor, low_freq_factor=1.0, high_freq_factor=4.0,
                original_max_position_embeddings=original)


# folder: (class, type of the stored weights, configuration on top of BASE)
MODELS = {
    "llama2": ("Llama", torch.float16, dict(num_hidden_layers=3)),
    "llama3.2-tied": ("Llama", torch.bfloat16, dict(hidden_size=64, num_attention_heads=8, num_key_value_heads=2, tie_word_embeddings=True,
                                                    rope_parameters=llama3(8.0, 64), eos_token_id=[2, 3])),
    "llama3.1-wide": ("Llama", torch.bfloat16, dict(num_attention_heads=2, num_key_value_heads=1, head_dim=64, rope_parameters=llama3(32.0, 128))),
    "llama-linear": ("Llama", torch.float16, dict(num_key_value_heads=2, rope_parameters=dict(rope_type="linear", factor=2.5, rope_theta=10000.0))),
    "llama-bias": ("Llama", torch.float16, dict(hidden_size=48, num_attention_heads=6, num_key_value_heads=2, head_dim=12, attention_bias=True,
                                                mlp_bias=True, vocab_size=211)),
    "mistral": ("Mistral", torch.bfloat16, dict(num_key_value_heads=1, head_dim=16, sliding_window=None,
                                                rope_parameters=dict(rope_type="default", rope_theta=1000000.0))),
    "qwen2-tied": ("Qwen2", torch.bfloat16, dict(hidden_size=48, num_attention_heads=6, num_key_value_heads=2, tie_word_embeddings=True,
                                                 rope_parameters=dict(rope_type="default", rope_theta=1000000.0))),
    "qwen2": ("Qwen2", torch.float16, dict(num_attention_heads=7, hidden_size=56, num_key_value_heads=1, rms_norm_eps=1e-6, bos_token_id=None)),
    "qwen3": ("Qwen3", torch.bfloat16, dict(num_key_value_heads=2, head_dim=16, rope_parameters=dict(rope_type="default", rope_theta=1000000.0))),
    "qwen3-tied-bias": ("Qwen3", torch.float16, dict(num_attention_heads=6, num_key_value_heads=2, head_dim=8, attention_bias=True,
                                                     tie_word_embeddings=True)),
}
# These keep the fields that transformers wrote before version 5.
OLD_FIELDS = {"llama2", "llama3.2-tied", "llama-linear", "qwen2-tied", "qwen3"}


def randomize(model, generator):
    """Weights large enough that attention is far from uniform and every norm, bias and head matters."""
    for name, p in model.named_parameters():
        noise = torch.randn(p.shape, generator=generator)
        if "norm" in name:
            p.copy_(1.0 + 0.3 * noise)
        elif name.endswith("bias"):
            p.copy_(0.5 * noise)
        elif "embed" in name or "lm_head" in name:
            p.copy_(noise)
        else:
            gain = 2.0 if "q_proj" in name or "k_proj" in name else 1.0
            p.copy_(noise * gain / p.shape[1] ** 0.5)


def old_fields(config):
    rope = config.pop("rope_parameters", None) or {}
    config["rope_theta"] = rope.pop("rope_theta", 10000.0)
    kind = rope.pop("rope_type", "default")
    config["rope_scaling"] = None if kind == "default" else {"type" if kind == "linear" else "rope_type": kind, **rope}


@torch.no_grad()
def make(folder, family, dtype, extra, seed):
    generator = torch.Generator().manual_seed(seed)
    config = getattr(transformers, f"{family}Config")(**{**BASE, **extra})
    config._attn_implementation = "eager"
    model = getattr(transformers, f"{family}ForCausalLM")(config).float().eval()
    randomize(model, generator)
    for p in model.parameters():
        p.copy_(p.to(dtype).float())
    weights = {name: p.detach().to(dtype).contiguous() for name, p in model.named_parameters()}

    golden = {}
    for name, length in PROMPTS.items():
        ids = torch.randint(config.vocab_size, (1, length), generator=generator)
        out = model(ids, output_attentions=True)
        positions = torch.arange(length) if length < 20 else torch.tensor([0, 1, 63, 64, 65, 127, 128, 200, 255, 256, 298, 299])
        golden[f"{name}.ids"] = ids[0].to(torch.uint32)
        golden[f"{name}.positions"] = positions.to(torch.uint32)
        golden[f"{name}.logits"] = out.logits[0, positions].contiguous()
        if name == "short":
            queries = torch.arange(length, 0, -1)
            golden["short.received"] = torch.stack([a[0].mean(0).sum(0) / queries for a in out.attentions])

    folder.mkdir(exist_ok=True)
    fields = json.loads(config.to_json_string(use_diff=False))
    fields["architectures"] = [f"{family}ForCausalLM"]
    fields["dtype"] = str(dtype).removeprefix("torch.")
    if folder.name in OLD_FIELDS:
        old_fields(fields)
    (folder / "config.json").write_text(json.dumps(fields, indent=2, sort_keys=True) + "\n")
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    save_file(golden, folder / "golden.safetensors")


def main():
    here = pathlib.Path(__file__).resolve().parent
    for seed, (name, (family, dtype, extra)) in enumerate(MODELS.items()):
        make(here / name, family, dtype, extra, seed)
        print(name)


if __name__ == "__main__":
    main()
