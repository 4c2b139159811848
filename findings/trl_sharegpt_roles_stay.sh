#!/usr/bin/env bash
# trl 1.16.0: conversations in ShareGPT's form keep the roles "human" and "gpt", and ChatML templates write them.
#
# SFTTrainer converts rows of {"from", "value"} to {"role", "content"} by maybe_convert_to_chatml. The names of the fields change,
# their values do not, though ShareGPT's are human and gpt. A template that writes whatever role it is given, as ChatML's do,
# then makes turns of roles that the model has never seen, and at inference, with "assistant", it is asked something else than it
# was trained on. Templates that test the role leave such turns out or raise.
#
# Output seen (Python 3.11, transformers 5.24.0, torch 2.13.0, datasets 5.2.0):
#   converted: [{'role': 'human', 'content': 'Which tea?'}, {'role': 'gpt', 'content': 'Sencha.'}]
#   ChatML: '<|im_start|>human\nWhich tea?<|im_end|>\n<|im_start|>gpt\nSencha.<|im_end|>\n'
#   a template that tests the role: ''
set -euo pipefail
folder="$(mktemp -d)"
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check \
    trl==1.16.0 transformers==5.24.0 torch==2.13.0 datasets==5.2.0 accelerate==1.15.0 tokenizers==0.23.3 "numpy<2.5"
cat > "$folder/show.py" <<'PYTHON'
import tokenizers
import transformers
from trl import apply_chat_template, maybe_convert_to_chatml

TURN = "{{ '<|im_start|>' + turn['role'] + '\n' + turn['content'] + '<|im_end|>\n' }}"
TESTS = "{% if turn['role'] == 'user' or turn['role'] == 'assistant' %}" + TURN + "{% endif %}"
tokenizer = transformers.PreTrainedTokenizerFast(
    tokenizer_object=tokenizers.Tokenizer(tokenizers.models.WordLevel({"<unk>": 0}, unk_token="<unk>"))
)
row = {"conversations": [{"from": "human", "value": "Which tea?"}, {"from": "gpt", "value": "Sencha."}]}
row = maybe_convert_to_chatml(row)
print("converted:", row["messages"])
texts = []
for name, template in (("ChatML", TURN), ("a template that tests the role", TESTS)):
    tokenizer.chat_template = "{% for turn in messages %}" + template + "{% endfor %}"
    texts.append(apply_chat_template(row, tokenizer)["text"])
    print(f"{name}: {texts[-1]!r}")
assert [turn["role"] for turn in row["messages"]] == ["human", "gpt"], "roles are converted now"
assert texts[0].startswith("<|im_start|>human") and texts[1] == "", "rendered otherwise now"
PYTHON
"$folder/venv/bin/python" "$folder/show.py" 2> "$folder/log" || { cat "$folder/log"; exit 1; }
