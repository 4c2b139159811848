#!/usr/bin/env bash
# transformers 5.24.0: AutoTokenizer reads a directory that has config.json and no tokenizer file, and says nothing. 4.45.2 refuses it.
#
# That is what model.save_pretrained leaves, when the tokenizer was forgotten. For Qwen 2 and Gemma 2 a tokenizer of no more than the
# special tokens comes back: of a text nothing is left, or only unknown tokens. A model then trains or answers on empty prompts.
#
# Output seen (Python 3.11):
#   transformers 4.45.2 qwen2   OSError
#   transformers 4.45.2 gemma2  OSError
#   transformers 5.24.0 qwen2   1 tokens, "Hello world" -> []
#   transformers 5.24.0 gemma2  5 tokens, "Hello world" -> ['<unk>']
set -euo pipefail
folder="$(mktemp -d)"
trap 'rm -rf "$folder"' EXIT
for version in 4.45.2 5.24.0; do
    python3 -m venv "$folder/$version"
    "$folder/$version/bin/pip" install --quiet --disable-pip-version-check "transformers==$version" sentencepiece==0.2.1 "numpy<2.4"
done
cat > "$folder/show.py" <<'PYTHON'
import json
import sys
from pathlib import Path

import transformers

for kind in ("qwen2", "gemma2"):
    directory = Path(sys.argv[1]) / kind
    directory.mkdir(exist_ok=True)
    (directory / "config.json").write_text(json.dumps({"model_type": kind, "architectures": [f"{kind.title()}ForCausalLM"]}))
    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(str(directory))
        read = tokenizer.convert_ids_to_tokens(tokenizer("Hello world")["input_ids"])
        result = f'{len(tokenizer)} tokens, "Hello world" -> {read}'
        quiet = not set(read) - {"<bos>", "<unk>"}
    except Exception as error:
        result, quiet = type(error).__name__, False
    print(f"transformers {transformers.__version__} {kind:7} {result}")
    assert quiet == transformers.__version__.startswith("5."), "the behaviour has changed"
PYTHON
for version in 4.45.2 5.24.0; do
    "$folder/$version/bin/python" "$folder/show.py" "$folder" 2> "$folder/log" || { cat "$folder/log"; exit 1; }
done
