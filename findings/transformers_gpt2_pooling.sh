#!/usr/bin/env bash
# transformers 4.45.2 and 5.24.0 score the same ids differently where a GPT-2 classifier's pad id stands within the text.
#
# GPT-2 has one special token, so pad, begin and end share an id. A layout of reward models puts it between two texts ("summary
# <|endoftext|> post"). 4.45.2 takes the state before the first pad id: it scores the summary alone, whatever the post. 5.24.0
# takes the last token that is not pad: it scores both. Raw scores from one version do not compare with those of the other.
# One row, no padding, same weights.
#
# Output seen (torch 2.13.0, CPU; ids 1 2 [3] 4 5 with pad 3, and the ids before the pad alone):
#   transformers 4.45.2: the post counts False
#   transformers 5.24.0: the post counts True
set -euo pipefail
folder="$(mktemp -d)"
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check torch==2.13.0 numpy safetensors
for version in 4.45.2 5.24.0; do
    "$folder/venv/bin/pip" install --quiet --disable-pip-version-check --target "$folder/$version" "transformers==$version"
done
cat > "$folder/show.py" <<'PYTHON'
import torch
import transformers

torch.manual_seed(0)
config = transformers.GPT2Config(
    vocab_size=20, n_embd=8, n_layer=1, n_head=2, n_positions=16, num_labels=1, bos_token_id=3, eos_token_id=3, pad_token_id=3
)
model = transformers.GPT2ForSequenceClassification(config).eval()


def score(*ids):
    with torch.no_grad():
        return model(input_ids=torch.tensor([ids])).logits.item()


counts = abs(score(1, 2, 3, 4, 5) - score(1, 2)) > 1e-6
print(f"transformers {transformers.__version__}: the post counts {counts}")
assert counts == (transformers.__version__ == "5.24.0"), "the behaviour has changed"
PYTHON
for version in 4.45.2 5.24.0; do
    PYTHONPATH="$folder/$version" "$folder/venv/bin/python" "$folder/show.py" 2> "$folder/log" || { cat "$folder/log"; exit 1; }
done
