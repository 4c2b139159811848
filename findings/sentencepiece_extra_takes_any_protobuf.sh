#!/usr/bin/env bash
# sentencepiece 0.2.3: its extra "protobuf" takes any protobuf, and its own sentencepiece_model_pb2 takes none before 7.36.1. 0.2.1's takes 6.
#
# pip leaves an environment's protobuf 6.33.6 (TensorFlow and others hold it below 7) where it is and calls the extra satisfied. The
# C++ side reads a tokenizer.model as before. transformers 5.24.0, which reads the file by that module, then takes it for a
# tiktoken file and asks for tiktoken.
#
# Output seen (Python 3.11):
#   sentencepiece 0.2.1, protobuf 6.33.6: encodes ['▁low', '▁lower']; pb2 imports; AutoTokenizer ['▁low', '▁lower']
#   sentencepiece 0.2.3, protobuf 6.33.6: encodes ['▁low', '▁lower']; pb2 VersionError; AutoTokenizer ValueError: `tiktoken` is required
#   pip check: No broken requirements found.
set -euo pipefail
folder="$(mktemp -d)"
trap 'rm -rf "$folder"' EXIT
cat > "$folder/show.py" <<'PYTHON'
import json
import sys
from importlib.metadata import version
from pathlib import Path

import sentencepiece
import transformers

directory = Path(sys.argv[1])
directory.mkdir()
(directory / "text").write_text("low lower lowest new newer newest wide wider widest\n" * 20)
sentencepiece.SentencePieceTrainer.train(
    input=str(directory / "text"), model_prefix=str(directory / "tokenizer"), model_type="bpe", vocab_size=40, minloglevel=2
)
(directory / "config.json").write_text(json.dumps({"model_type": "llama"}))
(directory / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "LlamaTokenizer"}))
pieces = sentencepiece.SentencePieceProcessor(model_file=str(directory / "tokenizer.model")).encode("low lower", out_type=str)
try:
    from sentencepiece import sentencepiece_model_pb2  # noqa: F401

    module = "imports"
except Exception as error:
    module = type(error).__name__
try:
    tokenizer = transformers.AutoTokenizer.from_pretrained(str(directory))
    read = str(tokenizer.convert_ids_to_tokens(tokenizer("low lower", add_special_tokens=False).input_ids))
except Exception as error:
    read = f"{type(error).__name__}: {str(error)[:22]}"
now = version("sentencepiece")
print(f"sentencepiece {now}, protobuf {version('protobuf')}: encodes {pieces}; pb2 {module}; AutoTokenizer {read}")
expected = {"0.2.1": ("imports", str(pieces)), "0.2.3": ("VersionError", "ValueError: `tiktoken` is required")}[now]
assert (module, read) == expected, "the behaviour has changed"
PYTHON
for version in 0.2.1 0.2.3; do
    python3 -m venv "$folder/$version"
    "$folder/$version/bin/pip" install --quiet --disable-pip-version-check protobuf==6.33.6
    "$folder/$version/bin/pip" install --quiet --disable-pip-version-check "sentencepiece[protobuf]==$version" transformers==5.24.0
    "$folder/$version/bin/python" "$folder/show.py" "$folder/run_$version" 2> "$folder/log" || { cat "$folder/log"; exit 1; }
done
"$folder/0.2.3/bin/pip" check --disable-pip-version-check
