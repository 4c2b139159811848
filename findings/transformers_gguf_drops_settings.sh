#!/usr/bin/env bash
# transformers 5.24.0: what a GGUF file says of linear rotary scaling, of biases and of Gemma 3's query scale is passed over.
#
# llama.cpp's converter writes rope.scaling.type and rope.scaling.factor for a model with linear scaling: deepseek-coder's and other
# long-context Llamas, and Gemma 3 from 4b on. from_pretrained(gguf_file=…) gives the same model with and without these entries.
# A Llama's bias tensors change nothing either. Gemma 3's queries are scaled by 256 ** -0.5 whatever the size of the heads; the
# 27b, whose heads have 128, needs 168 ** -0.5. Weights are read; setting the configuration by hand mends all of it but biases.
#
# Output seen (Python 3.11, gguf 0.19.0, torch 2.13.0 on a CPU; random models of one layer, 64 tokens; largest difference of a
# logit between the files with and without, and, where a configuration can say it, from the model that is meant):
#   Llama, linear scaling: with and without 0, from what is meant 5.5
#   Llama, biases: with and without 0
#   Gemma 3, linear scaling: with and without 0, from what is meant 0.17
#   Gemma 3, heads of 16 and a scale of 256: from what is meant 0.48
set -euo pipefail
folder="$(mktemp -d)"
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check \
    torch==2.13.0 transformers==5.24.0 gguf==0.19.0 accelerate==1.15.0 "numpy<2.5"
cat > "$folder/show.py" <<'PYTHON'
import sys
from pathlib import Path

import gguf
import numpy as np
import torch
from transformers import AutoModelForCausalLM

folder, rng = Path(sys.argv[1]), np.random.default_rng(0)
width, heads, head, hidden, vocabulary = 32, 2, 16, 48, 64
matrices = {
    "attn_q": (heads * head, width), "attn_k": (heads * head, width), "attn_v": (heads * head, width),
    "attn_output": (width, heads * head), "ffn_gate": (hidden, width), "ffn_up": (hidden, width), "ffn_down": (width, hidden),
}
norms = {
    "llama": {"attn_norm": width, "ffn_norm": width},
    "gemma3": {
        "attn_norm": width, "ffn_norm": width, "post_attention_norm": width, "post_ffw_norm": width, "attn_q_norm": head,
        "attn_k_norm": head,
    },
}
LINEAR = {"rope.scaling.type": "linear", "rope.scaling.factor": 8.0}


def tensors(kind: str) -> dict[str, np.ndarray]:
    shapes = {f"blk.0.{name}.weight": shape for name, shape in matrices.items()}
    shapes |= {f"blk.0.{name}.weight": (size,) for name, size in norms[kind].items()}
    shapes |= {"token_embd.weight": (vocabulary, width), "output_norm.weight": (width,)}
    shapes |= {"output.weight": (vocabulary, width)} if kind == "llama" else {}
    return {name: rng.normal(size=shape).astype(np.float32) / 2 for name, shape in shapes.items()}


def read(kind: str, name: str, weights: dict[str, np.ndarray], more: dict):
    writer = gguf.GGUFWriter(folder / f"{name}.gguf", kind)
    sizes = {
        "block_count": 1, "context_length": 4096, "embedding_length": width, "feed_forward_length": hidden,
        "attention.head_count": heads, "attention.head_count_kv": heads, "attention.key_length": head,
        "attention.value_length": head, "rope.dimension_count": head, "vocab_size": vocabulary,
    } | ({"attention.sliding_window": 512} if kind == "gemma3" else {})
    for entry, value in sizes.items():
        writer.add_uint32(f"{kind}.{entry}", value)
    for entry, value in ({"attention.layer_norm_rms_epsilon": 1e-5, "rope.freq_base": 10_000.0} | more).items():
        (writer.add_string if isinstance(value, str) else writer.add_float32)(f"{kind}.{entry}", value)
    writer.add_string("tokenizer.ggml.model", "gpt2")
    writer.add_string("tokenizer.ggml.pre", "llama-bpe")
    writer.add_array("tokenizer.ggml.tokens", [f"t{i}" for i in range(vocabulary)])
    writer.add_array("tokenizer.ggml.token_type", [1] * vocabulary)
    writer.add_array("tokenizer.ggml.merges", ["t 1"])
    for tensor, value in weights.items():
        writer.add_tensor(tensor, value)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return AutoModelForCausalLM.from_pretrained(
        folder, gguf_file=f"{name}.gguf", dtype=torch.float32, attn_implementation="eager"
    ).eval()


def gap(a, b) -> float:
    row = torch.arange(64)[None]
    with torch.no_grad():
        return float((a(row).logits - b(row).logits).abs().max())


def meant(model, change):
    config = type(model.config).from_dict(model.config.to_dict())
    change(config)
    other = AutoModelForCausalLM.from_config(config, dtype=torch.float32, attn_implementation="eager").eval()
    other.load_state_dict(model.state_dict())
    return other


def scale_llama(config):
    config.rope_parameters = config.rope_parameters | {"rope_type": "linear", "factor": 8.0}


def scale_gemma(config):
    everywhere = config.rope_parameters["full_attention"] | {"rope_type": "linear", "factor": 8.0}
    config.rope_parameters = config.rope_parameters | {"full_attention": everywhere}
    config.layer_types = ["full_attention"]


def unscaled_gemma(config):
    config.layer_types = ["full_attention"]


def heads_of_16(config):
    config.query_pre_attn_scalar = head


found = {}
weights = tensors("llama")
plain, scaled = read("llama", "plain", weights, {}), read("llama", "linear", weights, LINEAR)
found["Llama, linear scaling"] = gap(plain, scaled), gap(scaled, meant(scaled, scale_llama))
sizes = {name: shape[0] for name, shape in matrices.items()}
biases = {f"blk.0.{name}.bias": rng.normal(size=size).astype(np.float32) for name, size in sizes.items()}
found["Llama, biases"] = gap(plain, read("llama", "biases", weights | biases, {})), None
weights = tensors("gemma3")
plain, scaled = read("gemma3", "gemma", weights, {}), read("gemma3", "gemma_linear", weights, LINEAR)
right = gap(meant(scaled, unscaled_gemma), meant(scaled, scale_gemma))
found["Gemma 3, linear scaling"] = gap(plain, scaled), right
found["Gemma 3, heads of 16 and a scale of 256"] = None, gap(plain, meant(plain, heads_of_16))
for name, (same, off) in found.items():
    told = [f"{what} {value:.2g}" for what, value in (("with and without", same), ("from what is meant", off)) if value is not None]
    print(f"{name}: {', '.join(told)}")
assert plain.config.query_pre_attn_scalar == 256, "it is read now"
assert all(same in (0, None) and (off is None or off > 0.01) for same, off in found.values()), "it behaves otherwise now"
PYTHON
"$folder/venv/bin/python" "$folder/show.py" "$folder" 2> "$folder/log" || { cat "$folder/log"; exit 1; }
