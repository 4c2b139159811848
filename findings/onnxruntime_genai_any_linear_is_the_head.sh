#!/usr/bin/env bash
# onnxruntime-genai 0.18.0: where a layer's projection has as many outputs as the vocabulary, the model that it builds computes its
# logits from inside of the first layer, without a word.
#
# The builder takes every linear map with vocab_size outputs for the language model's head. In a small model, of bytes say, the
# keys' or another projection can have that many: the graph then has "logits" before the first layer is through, and all that
# follows does not count. One more row in the vocabulary mends it.
#
# Output seen (Python 3.11, onnxruntime 1.32.0, torch 2.13.0 and transformers 5.24.0 on a CPU; a random Llama of two layers whose
# keys and values are 256 wide; largest difference of the last token's logits from transformers):
#   a vocabulary of 256: 3.2 of 3.7
#   a vocabulary of 257: 3.3e-06 of 3.3
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
import onnxruntime_genai
import tokenizers
import torch
import transformers
from onnxruntime_genai.models import builder

tokens = np.random.default_rng(0).integers(3, 250, 30).astype(np.int32)
for size in (256, 257):
    torch.manual_seed(0)
    directory = Path(sys.argv[1]) / str(size)
    config = transformers.LlamaConfig(
        vocab_size=size, hidden_size=128, intermediate_size=192, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=4, head_dim=64, initializer_range=0.1, bos_token_id=1, eos_token_id=2, pad_token_id=0,
    )
    model = transformers.LlamaForCausalLM(config).eval()
    model.save_pretrained(directory)
    names = {"<pad>": 0, "<s>": 1, "</s>": 2} | {f"t{i}": i for i in range(3, size)}
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
    print(f"SEEN a vocabulary of {size}: {gap:.2g} of {np.abs(right).max():.2g}")
    assert gap > 0.5 if size == 256 else gap < 1e-3, "it behaves otherwise now"
PYTHON
"$folder/venv/bin/python" "$folder/show.py" "$folder" > "$folder/log" 2>&1 || { cat "$folder/log"; exit 1; }
sed -n 's/^SEEN //p' "$folder/log"
