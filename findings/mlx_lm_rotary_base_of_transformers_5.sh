#!/usr/bin/env bash
# mlx-lm 0.32.2: models that transformers 5 has saved are read with a rotary base of 10,000, without a word.
#
# transformers 5 writes the base inside of config.json's rope_parameters and no longer as rope_theta beside it. mlx-lm's Llama
# (which also reads Mistral), Qwen 2, OLMo 2, Phi 3 and SmolLM 3 look for rope_theta alone and take a default where it is absent:
# the answers of a Llama 3 (base 500,000) degrade with the distance between tokens. Its Qwen 3 reads both places. Writing
# rope_theta into config.json by hand mends it.
#
# Output seen (Python 3.11, mlx 0.32.4 on a CPU, torch 2.13.0, transformers 5.24.0; random models of two layers, base 500,000,
# 200 tokens; largest difference of a logit from transformers, and of the same model with rope_theta in config.json):
#   llama: 5.8, with rope_theta 1.4e-05
#   mistral: 7.1, with rope_theta 1e-05
#   qwen2: 4.1, with rope_theta 9.1e-06
#   olmo2: 4.6, with rope_theta 5e-06
#   phi3: 6.5, with rope_theta 1e-05
#   smollm3: 6.8, with rope_theta 1.1e-05
#   qwen3: 9.3e-06, with rope_theta 9.3e-06
set -euo pipefail
folder="$(mktemp -d)"
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check \
    mlx-lm==0.32.2 "mlx[cpu]==0.32.4" torch==2.13.0 transformers==5.24.0 "numpy<2.5"
cat > "$folder/show.py" <<'PYTHON'
import json
import sys
from pathlib import Path

import mlx.core as mx
import numpy as np
import torch
import transformers
from mlx_lm.utils import load_model

torch.manual_seed(0)
sizes = {
    "vocab_size": 200, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "initializer_range": 0.15, "tie_word_embeddings": False, "pad_token_id": 0,
    "rope_parameters": {"rope_type": "default", "rope_theta": 500_000.0},
}
families = {
    "llama": (transformers.LlamaConfig, {}),
    "mistral": (transformers.MistralConfig, {"head_dim": 16, "sliding_window": None}),
    "qwen2": (transformers.Qwen2Config, {}),
    "olmo2": (transformers.Olmo2Config, {}),
    "phi3": (transformers.Phi3Config, {"sliding_window": None}),
    "smollm3": (transformers.SmolLM3Config, {"no_rope_layers": [1, 1]}),
    "qwen3": (transformers.Qwen3Config, {"head_dim": 16}),
}
tokens = np.random.default_rng(0).integers(1, 200, (1, 200))


def gap(directory: Path, right: np.ndarray) -> float:
    model, _ = load_model(directory)
    return float(np.abs(np.array(model(mx.array(tokens)).astype(mx.float32)) - right).max())


for name, (kind, more) in families.items():
    model = transformers.AutoModelForCausalLM.from_config(kind(**sizes | more), dtype=torch.float32).eval()
    directory = Path(sys.argv[1]) / name
    model.save_pretrained(directory)
    with torch.no_grad():
        right = model(torch.tensor(tokens)).logits.numpy()
    saved = gap(directory, right)
    file = directory / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"rope_theta": 500_000.0}))
    mended = gap(directory, right)
    print(f"{name}: {saved:.2g}, with rope_theta {mended:.2g}")
    assert mended < 1e-4, "another difference"
    assert (saved > 0.05) == (name != "qwen3"), "the base is read otherwise now"
PYTHON
"$folder/venv/bin/python" "$folder/show.py" "$folder" 2> "$folder/log" || { cat "$folder/log"; exit 1; }
