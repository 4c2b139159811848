#!/usr/bin/env bash
# trl 1.16.0: of preference pairs without a prompt of their own, the prompt takes in what both answers begin with, and where one
# answer begins with the whole other one, all of that but its last character.
#
# Rows like hh-rlhf's hold the conversation in both texts. extract_prompt, which DPOTrainer and KTOTrainer call for such rows,
# takes their longest common prefix for the prompt. Answers that begin alike lose their first words to it, even half a word, so
# the pair is judged, and a prompt is tokenized, in the middle of an answer. If no character differs up to the end of the shorter
# text, the cut falls before its last one. Rows with a prompt of their own, and lists of messages, are not touched by this.
#
# Output seen (Python 3.11, transformers 5.24.0, torch 2.13.0, datasets 5.2.0):
#   prompt '\n\nHuman: Which tea?\n\nAssistant: I', answers "'d take sencha." and ' do not know.'
#   prompt '\n\nHuman: Which tea?\n\nAssistant: Sench', answers 'a' and 'a, of course.'
set -euo pipefail
folder="$(mktemp -d)"
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check \
    trl==1.16.0 transformers==5.24.0 torch==2.13.0 datasets==5.2.0 accelerate==1.15.0 "numpy<2.5"
cat > "$folder/show.py" <<'PYTHON'
from trl import extract_prompt

asked = "\n\nHuman: Which tea?\n\nAssistant:"
seen = []
for chosen, rejected in ((" I'd take sencha.", " I do not know."), (" Sencha", " Sencha, of course.")):
    row = extract_prompt({"chosen": asked + chosen, "rejected": asked + rejected})
    print(f"prompt {row['prompt']!r}, answers {row['chosen']!r} and {row['rejected']!r}")
    seen.append((row["prompt"].removeprefix(asked), row["chosen"]))
assert seen == [(" I", "'d take sencha."), (" Sench", "a")], "it cuts otherwise now"
PYTHON
"$folder/venv/bin/python" "$folder/show.py" 2> "$folder/log" || { cat "$folder/log"; exit 1; }
