#!/usr/bin/env bash
# mlx-lm 0.32.2: Mistral, Phi 3, Gemma 2 and Qwen 2 attend beyond their sliding windows, without a word.
#
# Their configurations name a sliding_window, which transformers keeps to and mlx-lm does not read. Up to the window's length
# logits agree; from there on an answer is that of another model. Gemma 3's windows are kept.
#
# Output seen (Python 3.11, mlx 0.32.4 on a CPU, torch 2.13.0, transformers 5.24.0; random models of two layers, a window of 16, 60
# tokens; largest difference of a logit from transformers):
#   mistral: within the window 2.9e-06, beyond 6.1
#   phi3: within the window 3.2e-06, beyond 6
#   gemma2: within the window 2.6e-06, beyond 3.1
#   qwen2: within the window 6.3e-06, beyond 3.7
#   gemma3: within the window 2.5e-06, beyond 2.4e-06
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

WINDOW = 16
sizes = {
    "vocab_size": 200, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "initializer_range": 0.15, "pad_token_id": 0, "sliding_window": WINDOW,
}
families = {
    "mistral": (transformers.MistralConfig, {"head_dim": 16}),
    "phi3": (transformers.Phi3Config, {}),
    "gemma2": (transformers.Gemma2Config, {"head_dim": 32}),
    "qwen2": (transformers.Qwen2Config, {"use_sliding_window": True, "max_window_layers": 1}),
    "gemma3": (transformers.Gemma3TextConfig, {"head_dim": 32, "sliding_window_pattern": 2}),
}
tokens = np.random.default_rng(0).integers(1, 200, (1, 60))
for name, (kind, more) in families.items():
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(
        kind(**sizes | more), attn_implementation="eager", dtype=torch.float32
    ).eval()
    directory = Path(sys.argv[1]) / name
    model.save_pretrained(directory)
    file = directory / "config.json"
    config = json.loads(file.read_text())
    if "rope_theta" in config["rope_parameters"]:  # else mlx-lm would take its default
        config["rope_theta"] = config["rope_parameters"]["rope_theta"]
    file.write_text(json.dumps(config))
    with torch.no_grad():
        right = model(torch.tensor(tokens)).logits[0].numpy()
    read, _ = load_model(directory)
    gap = np.abs(np.array(read(mx.array(tokens)).astype(mx.float32))[0] - right)
    within, beyond = float(gap[:WINDOW].max()), float(gap[WINDOW:].max())
    print(f"{name}: within the window {within:.2g}, beyond {beyond:.2g}")
    assert within < 1e-3, "another difference"
    assert (beyond > 0.05) == (name != "gemma3"), "it behaves otherwise now"
PYTHON
"$folder/venv/bin/python" "$folder/show.py" "$folder" 2> "$folder/log" || { cat "$folder/log"; exit 1; }
