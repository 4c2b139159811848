#!/usr/bin/env bash
# transformers 5.24.0: AutoTokenizer drops the normaliser that a DeBERTa v2 or v3 tokenizer.json has; 4.45.2 keeps it.
#
# The class DebertaV2Tokenizer is built anew from the vocabulary, with an NFC normaliser of its own, and nothing is said. The
# published files normalise as sentencepiece does (NFKC): "…" is read as three dots, a no-break space as a space. Read by 5.24
# these characters are unknown tokens, in texts that 4.45 read as it was trained. So a reward model or classifier scores other
# ids, and other scores come out. tokenizers.Tokenizer.from_file on the same file, or setting backend_tokenizer.normalizer from
# it, gives the trained ids.
#
# Output seen (Python 3.11):
#   file itself          ['▁well', '.', '.', '.', '▁yes']
#   transformers 4.45.2  ['▁well', '.', '.', '.', '▁yes']
#   transformers 5.24.0  ['▁well', '[UNK]', '▁yes']
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
from tokenizers import models, normalizers, pre_tokenizers

directory = Path(sys.argv[1]) / "tokenizer"
if not directory.exists():
    directory.mkdir()
    special = ["[PAD]", "[CLS]", "[SEP]", "[UNK]", "[MASK]"]
    pieces = [(s, 0.0) for s in special] + [("▁well", -1.0), ("▁yes", -1.0), (".", -1.0), ("▁", -2.0)]
    made = tokenizers.Tokenizer(models.Unigram(pieces, unk_id=3))
    made.normalizer = normalizers.Sequence([normalizers.Strip(), normalizers.NFKC()])
    made.pre_tokenizer = pre_tokenizers.Metaspace()
    made.add_special_tokens(special)
    made.save(str(directory / "tokenizer.json"))
    names = {"pad": "[PAD]", "cls": "[CLS]", "sep": "[SEP]", "unk": "[UNK]", "mask": "[MASK]"}
    entries = {f"{name}_token": token for name, token in names.items()} | {"tokenizer_class": "DebertaV2Tokenizer"}
    (directory / "tokenizer_config.json").write_text(json.dumps(entries))
text, expected = "well\u2026 yes", ["▁well", ".", ".", ".", "▁yes"]
whole = tokenizers.Tokenizer.from_file(str(directory / "tokenizer.json")).encode(text, add_special_tokens=False).tokens
tokenizer = transformers.AutoTokenizer.from_pretrained(str(directory))
read = tokenizer.convert_ids_to_tokens(tokenizer(text, add_special_tokens=False)["input_ids"])
assert whole == expected, whole
if transformers.__version__ == "4.45.2":
    print(f"{'file itself':20} {whole}")
    assert read == expected, read
else:
    assert read == ["▁well", "[UNK]", "▁yes"], f"the behaviour has changed: {read}"
print(f"transformers {transformers.__version__:7} {read}")
PYTHON
for version in 4.45.2 5.24.0; do
    "$folder/$version/bin/python" "$folder/show.py" "$folder" 2> "$folder/log" || { cat "$folder/log"; exit 1; }
done
