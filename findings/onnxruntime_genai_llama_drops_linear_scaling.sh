#!/usr/bin/env bash
# onnxruntime-genai 0.18.0: a Llama with the rotary scaling "linear" is built without it, and without a word.
#
# Long-context Llamas and deepseek-coder have such a scaling. The tables of cosines in the built model are those of the base alone;
# the same builder applies the scaling "llama3".
#
# Output seen (Python 3.11, onnxruntime 1.32.0, torch 2.13.0 and transformers 5.24.0 on a CPU; a random Llama of two layers, 30 tokens;
# largest difference of the last token's logits from transformers, and the angle between two positions in the fastest pair):
#   default: 3.6e-06 of 4.9, angle 1.000
#   linear: 3.3 of 4, angle 1.000 (0.250 would be right)
#   llama3: 3e-06 of 4, angle 1.000
set -euo pipefail
folder="$(mktemp -d)"
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check \
    onnxruntime-genai==0.18.0 onnxruntime==1.32.0 onnx-ir==1.1.0 onnx==1.23.2 torch==2.13.0 transformers==5.24.0 \
    tokenizers==0.23.3 "numpy<2.5"
cat > "$folder/show.py" <<'PYTHON'
import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime_genai
import tokenizers
import torch
import transformers
from onnxruntime_genai.models import builder

tokens = np.random.default_rng(0).integers(3, 200, 30).astype(np.int32)
kinds = {
    "default": {},
    "linear": {"factor": 4.0},
    "llama3": {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 64},
}
for kind, scaling in kinds.items():
    torch.manual_seed(0)
    directory = Path(sys.argv[1]) / kind
    config = transformers.LlamaConfig(
        vocab_size=200, hidden_size=128, intermediate_size=192, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, initializer_range=0.1, bos_token_id=1, eos_token_id=2, pad_token_id=0,
        rope_parameters={"rope_type": kind, "rope_theta": 10_000.0} | scaling,
    )
    model = transformers.LlamaForCausalLM(config).eval()
    model.save_pretrained(directory)
    names = {"<pad>": 0, "<s>": 1, "</s>": 2} | {f"t{i}": i for i in range(3, 200)}
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizers.Tokenizer(tokenizers.models.BPE(names, [])), bos_token="<s>", eos_token="</s>",
        pad_token="<pad>",
    ).save_pretrained(directory)
    with torch.no_grad():
        right = model(torch.tensor(tokens[None]).long()).logits[0, -1].numpy()
    place = ("", str(directory), str(directory / "built"), "fp32", "cpu", str(directory / "cache"))
    builder.create_model(*place, **builder.parse_extra_options(*place, []))
    built = onnxruntime_genai.Model(str(directory / "built"))
    settings = onnxruntime_genai.GeneratorParams(built)
    settings.set_search_options(max_length=64)
    generator = onnxruntime_genai.Generator(built, settings)
    generator.append_tokens(tokens)
    gap = float(np.abs(np.array(generator.get_output("logits"))[0, -1] - right).max())
    graph = onnx.load(directory / "built" / "model.onnx").graph
    tables = {t.name: onnx.numpy_helper.to_array(t) for t in graph.initializer if t.name == "cos_cache"}
    angle = float(np.arccos(tables["cos_cache"][1, 0]))
    print(f"SEEN {kind}: {gap:.2g} of {np.abs(right).max():.2g}, angle {angle:.3f}")
    assert gap > 0.1 if kind == "linear" else gap < 1e-3, "it behaves otherwise now"
PYTHON
"$folder/venv/bin/python" "$folder/show.py" "$folder" > "$folder/log" 2>&1 || { cat "$folder/log"; exit 1; }
sed -n 's/^SEEN //p' "$folder/log"
