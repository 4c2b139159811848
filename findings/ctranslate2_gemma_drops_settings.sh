#!/usr/bin/env bash
# ctranslate2 4.8.5: Gemma 2 and Gemma 3 convert without a word and lose settings that their published checkpoints have.
#
# Not read are the soft caps of attention and logits (every Gemma 2), query_pre_attn_scalar where it is not the head's size (144
# over heads of 128 in gemma-2-27b, 168 over 128 in gemma-3-27b), Gemma 2's sliding windows, and the linear scaling of Gemma 3's
# global layers (a factor of 8 from 4b on). Models without these settings agree with transformers.
#
# Output seen (Python 3.11, torch 2.13.0 and transformers 5.24.0 on a CPU; random models of two layers, heads of 32, 60 tokens;
# largest difference of a logit from transformers):
#   Gemma 2 without soft caps: 3.2e-06 of 7
#   Gemma 2 with its caps, 50 and 30: 0.13 of 6.9
#   Gemma 2 without caps, scalar 24: 0.67 of 7
#   Gemma 2 without caps, window 16: 4.4 of 7
#   Gemma 3: 2.4e-06 of 6.9
#   Gemma 3, scalar 24: 0.49 of 6.9
#   Gemma 3, linear scaling of 8: 1.1 of 6.7
set -euo pipefail
folder="$(mktemp -d)"
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check \
    ctranslate2==4.8.5 torch==2.13.0 transformers==5.24.0 tokenizers==0.23.3 "numpy<2.5"
cat > "$folder/show.py" <<'PYTHON'
import sys
from pathlib import Path

import ctranslate2
import numpy as np
import tokenizers
import torch
import transformers
from ctranslate2.converters import TransformersConverter

vocabulary = ["<pad>", "<s>", "</s>"] + [f"t{i}" for i in range(3, 200)]
words = tokenizers.models.WordLevel({token: i for i, token in enumerate(vocabulary)}, unk_token="<pad>")
tokenizer = transformers.PreTrainedTokenizerFast(
    tokenizer_object=tokenizers.Tokenizer(words), bos_token="<s>", eos_token="</s>", pad_token="<pad>", unk_token="<pad>"
)
sizes = {
    "vocab_size": 200, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 32, "query_pre_attn_scalar": 32, "sliding_window": 4096,
    "max_position_embeddings": 8192, "initializer_range": 0.15, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0,
}
two, three = transformers.Gemma2Config, transformers.Gemma3TextConfig
bare = {"attn_logit_softcapping": None, "final_logit_softcapping": None}
layers = ["sliding_attention", "full_attention"]
local, everywhere = {"rope_type": "default", "rope_theta": 1e4}, {"rope_theta": 1e6}
rope = {
    kind: {"sliding_attention": local, "full_attention": everywhere | scaled}
    for kind, scaled in {"plain": {"rope_type": "default"}, "scaled": {"rope_type": "linear", "factor": 8.0}}.items()
}
plain = {"layer_types": layers, "rope_parameters": rope["plain"]}
models = {
    "Gemma 2 without soft caps": (two, bare, False),
    "Gemma 2 with its caps, 50 and 30": (two, {}, True),
    "Gemma 2 without caps, scalar 24": (two, bare | {"query_pre_attn_scalar": 24}, True),
    "Gemma 2 without caps, window 16": (two, bare | {"sliding_window": 16}, True),
    "Gemma 3": (three, plain, False),
    "Gemma 3, scalar 24": (three, plain | {"query_pre_attn_scalar": 24}, True),
    "Gemma 3, linear scaling of 8": (three, plain | {"rope_parameters": rope["scaled"]}, True),
}
tokens = np.random.default_rng(0).integers(3, 200, (1, 60))
for i, (name, (kind, more, lost)) in enumerate(models.items()):
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(
        kind(**sizes | more), attn_implementation="eager", dtype=torch.float32
    ).eval()
    directory = Path(sys.argv[1]) / str(i)
    model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    with torch.no_grad():
        right = model(torch.tensor(tokens)).logits[0].numpy()
    TransformersConverter(str(directory)).convert(str(directory / "converted"), quantization="float32")
    generator = ctranslate2.Generator(str(directory / "converted"), device="cpu", compute_type="float32")
    given = np.array(generator.forward_batch([tokens[0].tolist()]))[0][:, :200]
    gap = float(np.abs(given - right).max())
    print(f"{name}: {gap:.2g} of {np.abs(right).max():.2g}")
    assert gap > 0.02 if lost else gap < 1e-3, "it behaves otherwise now"
PYTHON
"$folder/venv/bin/python" "$folder/show.py" "$folder" 2> "$folder/log" || { cat "$folder/log"; exit 1; }
