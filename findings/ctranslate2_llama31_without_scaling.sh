#!/usr/bin/env bash
# ctranslate2 4.8.5: a Llama 3.1 or 3.2 converts without a word and answers as if its rotary scaling were not there.
#
# The converter takes the rope_type "llama3", but logits are those of the same weights under the rope_type "default". Short prompts
# hardly show it; the difference grows with the position. The type "linear" is applied.
#
# Output seen (Python 3.11, torch 2.13.0 and transformers 5.24.0 on a CPU; a random model of two layers, base 500,000, 3,000 tokens;
# largest difference of ctranslate2's logits from transformers'):
#   llama3: positions 0-99 0.22, 2000-2999 5.8; from the model without scaling 1.1e-05
#   linear: positions 0-99 6.1e-06, 2000-2999 6.3e-06; from the model without scaling 6.8
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

torch.manual_seed(0)
vocabulary = ["<pad>", "<s>", "</s>"] + [f"t{i}" for i in range(3, 200)]
words = tokenizers.models.WordLevel({token: i for i, token in enumerate(vocabulary)}, unk_token="<pad>")
tokenizer = transformers.PreTrainedTokenizerFast(
    tokenizer_object=tokenizers.Tokenizer(words), bos_token="<s>", eos_token="</s>", pad_token="<pad>", unk_token="<pad>"
)
kinds = {
    "llama3": {
        "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    },
    "linear": {"rope_type": "linear", "factor": 4.0},
}
tokens = np.random.default_rng(0).integers(3, 200, (1, 3000))


def logits(rope: dict):
    config = transformers.LlamaConfig(
        vocab_size=200, hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=131_072, initializer_range=0.15, bos_token_id=1, eos_token_id=2,
        pad_token_id=0, rope_parameters={"rope_theta": 500_000.0} | rope,
    )
    model = transformers.LlamaForCausalLM(config).eval()
    if weights:
        model.load_state_dict(weights)
    with torch.no_grad():
        return model, model(torch.tensor(tokens)).logits[0].numpy()


weights = {}
model, plain = logits({"rope_type": "default"})
weights = model.state_dict()
for name, rope in kinds.items():
    directory = Path(sys.argv[1]) / name
    model, right = logits(rope)
    model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    TransformersConverter(str(directory)).convert(str(directory / "converted"), quantization="float32")
    generator = ctranslate2.Generator(str(directory / "converted"), device="cpu", compute_type="float32")
    given = np.array(generator.forward_batch([tokens[0].tolist()]))[0][:, :200]
    early, late = (float(np.abs(given - right)[part].max()) for part in (slice(100), slice(2000, None)))
    unscaled = float(np.abs(given - plain).max())
    print(f"{name}: positions 0-99 {early:.2g}, 2000-2999 {late:.2g}; from the model without scaling {unscaled:.2g}")
    assert (late > 0.5 and unscaled < 1e-3) if name == "llama3" else late < 1e-3, "it behaves otherwise now"
PYTHON
"$folder/venv/bin/python" "$folder/show.py" "$folder" 2> "$folder/log" || { cat "$folder/log"; exit 1; }
