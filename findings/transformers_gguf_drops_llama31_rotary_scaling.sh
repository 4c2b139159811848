#!/usr/bin/env bash
# transformers 5.24.0: a Llama 3.1 or 3.2 read from GGUF (gguf_file=…) loses its rotary scaling, without a word.
#
# llama.cpp's converter stores that scaling as a tensor of divisors, rope_freqs.weight, and no rope.scaling.* entry. transformers
# reads the entries and passes over the tensor: its configuration says rope_type "default", and logits are the same with and
# without the divisors. Short prompts hardly show it; the difference grows with the position. Setting config.rope_parameters by
# hand, as in the original config.json, gives the right logits from the same weights.
#
# Output seen (Python 3.11, gguf 0.19.0, torch 2.13.0 on a CPU; a random model of one layer):
#   rope_type with the divisors: default
#   largest difference of a logit from the model with rope_type llama3, positions 0-9: 0.029, 1000-1999: 4.8
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
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

folder, rng = Path(sys.argv[1]), np.random.default_rng(0)
width, heads, head, hidden, vocabulary = 32, 2, 16, 48, 64
scaling = {
    "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192, "rope_theta": 500_000.0,
}
shapes = {
    "attn_norm": (width,), "ffn_norm": (width,), "attn_q": (heads * head, width), "attn_k": (heads * head, width),
    "attn_v": (heads * head, width), "attn_output": (width, heads * head), "ffn_gate": (hidden, width),
    "ffn_up": (hidden, width), "ffn_down": (width, hidden),
}
tensors = {f"blk.0.{name}.weight": shape for name, shape in shapes.items()}
tensors |= {"token_embd.weight": (vocabulary, width), "output.weight": (vocabulary, width), "output_norm.weight": (width,)}
tensors = {name: rng.normal(size=shape).astype(np.float32) / 2 for name, shape in tensors.items()}

# The divisors, as the converter computes them
frequency = scaling["rope_theta"] ** (-np.arange(0, head, 2) / head)
turns = scaling["original_max_position_embeddings"] * frequency / (2 * np.pi)
smooth = np.clip((turns - 1.0) / (4.0 - 1.0), 0, 1)
divisors = (1 / ((1 - smooth) / scaling["factor"] + smooth)).astype(np.float32)


def read(divided: bool):
    writer = gguf.GGUFWriter(folder / f"{divided}.gguf", "llama")
    sizes = {
        "block_count": 1, "context_length": 131_072, "embedding_length": width, "feed_forward_length": hidden,
        "attention.head_count": heads, "attention.head_count_kv": heads, "rope.dimension_count": head,
        "vocab_size": vocabulary,
    }
    for name, value in sizes.items():
        writer.add_uint32(f"llama.{name}", value)
    writer.add_float32("llama.attention.layer_norm_rms_epsilon", 1e-5)
    writer.add_float32("llama.rope.freq_base", scaling["rope_theta"])
    writer.add_string("tokenizer.ggml.model", "gpt2")
    writer.add_string("tokenizer.ggml.pre", "llama-bpe")
    writer.add_array("tokenizer.ggml.tokens", [f"t{i}" for i in range(vocabulary)])
    writer.add_array("tokenizer.ggml.token_type", [1] * vocabulary)
    writer.add_array("tokenizer.ggml.merges", ["t 1"])
    for name, value in (tensors | ({"rope_freqs.weight": divisors} if divided else {})).items():
        writer.add_tensor(name, value)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return AutoModelForCausalLM.from_pretrained(folder, gguf_file=f"{divided}.gguf", dtype=torch.float32)


plain, divided = read(False), read(True)
entries = divided.config.to_dict() | {"rope_parameters": scaling}
right = LlamaForCausalLM(LlamaConfig.from_dict(entries))
right.load_state_dict(divided.state_dict())
with torch.no_grad():
    row = torch.arange(2000)[None] % vocabulary
    logits = {name: model(row).logits[0] for name, model in (("plain", plain), ("divided", divided), ("right", right))}
gap = (logits["divided"] - logits["right"]).abs()
kind = divided.config.rope_parameters["rope_type"]
print(f"rope_type with the divisors: {kind}")
print(
    "largest difference of a logit from the model with rope_type llama3, "
    f"positions 0-9: {gap[:10].max():.2g}, 1000-1999: {gap[1000:].max():.2g}"
)
assert kind == "default" and torch.equal(logits["plain"], logits["divided"]), "the divisors are read now"
assert gap[1000:].max() > 1, "the difference is gone"
PYTHON
"$folder/venv/bin/python" "$folder/show.py" "$folder" 2> "$folder/log" || { cat "$folder/log"; exit 1; }
