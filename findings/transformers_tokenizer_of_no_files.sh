#!/usr/bin/env bash
# transformers 5.24.0: AutoTokenizer on a directory without tokenizer files gives a tokenizer without a vocabulary, and no error.
#
# The directory has the config.json of a GPT-2 or BERT model and nothing else, as a copy that was cut short or a checkpoint saved
# without its tokenizer has. 4.45.2 raises OSError. 5.24.0 builds the class that config.json names from nothing: GPT-2's encodes
# every text to no ids, BERT's every word to [UNK]. Training and scoring go on with empty rows. Who loads tokenizers has to check
# that the vocabulary is more than the special tokens.
#
# Output seen (Python 3.11):
#   transformers 4.45.2 gpt2: OSError
#   transformers 4.45.2 bert: OSError
#   transformers 5.24.0 gpt2: GPT2Tokenizer of 1 tokens, 'hello world' has the ids []
#   transformers 5.24.0 bert: BertTokenizer of 5 tokens, 'hello world' has the ids [2, 1, 1, 3]
set -euo pipefail
folder="$(mktemp -d)"
trap 'rm -rf "$folder"' EXIT
for version in 4.45.2 5.24.0; do
    python3 -m venv "$folder/$version"
    "$folder/$version/bin/pip" install --quiet --disable-pip-version-check "transformers==$version" "numpy<2.4"
done
cat > "$folder/show.py" <<'PYTHON'
import os
import tempfile

os.environ["HF_HUB_OFFLINE"] = "1"
import transformers

for config in (transformers.GPT2Config(), transformers.BertConfig()):
    start = f"transformers {transformers.__version__} {config.model_type}:"
    with tempfile.TemporaryDirectory() as directory:
        config.save_pretrained(directory)
        try:
            tokenizer = transformers.AutoTokenizer.from_pretrained(directory)
        except OSError:
            print(start, "OSError")
            assert transformers.__version__ == "4.45.2", "the behaviour has changed"
            continue
    ids = tokenizer("hello world")["input_ids"]
    print(start, f"{type(tokenizer).__name__} of {len(tokenizer)} tokens, 'hello world' has the ids {ids}")
    assert transformers.__version__ == "5.24.0" and set(ids) <= set(tokenizer.all_special_ids), "the behaviour has changed"
PYTHON
for version in 4.45.2 5.24.0; do
    "$folder/$version/bin/python" "$folder/show.py" 2> "$folder/log" || { cat "$folder/log"; exit 1; }
done
