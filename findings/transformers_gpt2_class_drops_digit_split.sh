#!/usr/bin/env bash
# transformers 5.24.0: AutoTokenizer replaces the pre-tokenizer of a tokenizer.json whose tokenizer_config.json names GPT2Tokenizer
# by GPT-2's own; 4.45.2 keeps the file's.
#
# Llama-shaped models with a byte-level vocabulary name that class and split digits off before GPT-2's pattern is applied. 5.24
# builds the class anew from vocabulary and merges, so the split is gone and nothing is said: a blank line before a number,
# as in every numbered list, is read as two tokens in place of the one that the model was trained on, and numbers merge where
# the vocabulary has them. Ids stay valid, so answers and scores only get worse. With PreTrainedTokenizerFast in its place, or
# backend_tokenizer.pre_tokenizer set from tokenizers.Tokenizer.from_file, the ids are the trained ones.
#
# Output seen (Python 3.11):
#   file itself          ['a', 'ĊĊ', '1', '2']
#   transformers 4.45.2  ['a', 'ĊĊ', '1', '2']  GPT2Tokenizer
#   transformers 5.24.0  ['a', 'Ċ', 'Ċ', '12']  GPT2Tokenizer
#   transformers 5.24.0  ['a', 'ĊĊ', '1', '2']  PreTrainedTokenizerFast
set -euo pipefail
folder="$(mktemp -d)"
trap 'rm -rf "$folder"' EXIT
for version in 4.45.2 5.24.0; do
    python3 -m venv "$folder/$version"
    "$folder/$version/bin/pip" install --quiet --disable-pip-version-check "transformers==$version" "numpy<2.4"
done
cat > "$folder/show.py" <<'PYTHON'
import json
import sys
from pathlib import Path

import tokenizers
import transformers
from tokenizers import decoders, models, pre_tokenizers

directory = Path(sys.argv[1]) / "tokenizer"
if not directory.exists():
    directory.mkdir()
    vocabulary = [*sorted(pre_tokenizers.ByteLevel.alphabet()), "ĊĊ", "12", "<|end|>"]
    made = tokenizers.Tokenizer(models.BPE({token: i for i, token in enumerate(vocabulary)}, [("Ċ", "Ċ"), ("1", "2")]))
    digits = pre_tokenizers.Digits(individual_digits=True)
    made.pre_tokenizer = pre_tokenizers.Sequence([digits, pre_tokenizers.ByteLevel(add_prefix_space=False)])
    made.decoder = decoders.ByteLevel()
    made.add_special_tokens(["<|end|>"])
    made.save(str(directory / "tokenizer.json"))
    (directory / "config.json").write_text(json.dumps({"model_type": "llama"}))
text, trained, instead = "a\n\n12", ["a", "ĊĊ", "1", "2"], ["a", "Ċ", "Ċ", "12"]
old = transformers.__version__ == "4.45.2"
if old:
    whole = tokenizers.Tokenizer.from_file(str(directory / "tokenizer.json")).encode(text).tokens
    print(f"{'file itself':20} {whole}")
    assert whole == trained
for name in ("GPT2Tokenizer", "PreTrainedTokenizerFast")[: 1 if old else 2]:
    entries = {"tokenizer_class": name, "eos_token": "<|end|>", "unk_token": "<|end|>"}
    (directory / "tokenizer_config.json").write_text(json.dumps(entries))
    tokenizer = transformers.AutoTokenizer.from_pretrained(str(directory))
    read = tokenizer.convert_ids_to_tokens(tokenizer(text)["input_ids"])
    print(f"transformers {transformers.__version__:7} {read}  {name}")
    assert read == (instead if name == "GPT2Tokenizer" and not old else trained), "the behaviour has changed"
PYTHON
for version in 4.45.2 5.24.0; do
    "$folder/$version/bin/python" "$folder/show.py" "$folder" 2> "$folder/log" || { cat "$folder/log"; exit 1; }
done
