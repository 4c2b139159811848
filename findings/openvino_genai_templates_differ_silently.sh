#!/usr/bin/env bash
# openvino-genai 2026.4.1: chat templates render to other text than in jinja2, without an error, where they divide, test
# an empty mapping, or default a none.
#
# Its template engine is not jinja2. Division of whole numbers is cut to a whole number, and both // and % round towards
# zero, so a template that computes a rounded level or a position shows another one. An empty mapping counts as true:
# `{% if not tools %}` goes the other way for {}. `default` replaces none, which jinja2 does only when asked to with a
# second argument, `and` gives a boolean in place of its operand, and a float that is joined to text by ~ has six decimals.
# A prompt built by such a template differs from the one that the model was trained on, and nothing says so. Subscripts and
# methods right after a call of a macro are an error; through a variable they work.
#
# Output seen (openvino-genai 2026.4.1.0 and openvino-tokenizers 2026.4.1.0 beside transformers 5.24.0, Python 3.11):
#   {{ 7 / 2 }}: jinja2 '3.5', openvino-genai '3'
#   {{ -7 // 2 }}: jinja2 '-4', openvino-genai '-3'
#   {{ -7 % 3 }}: jinja2 '2', openvino-genai '-1'
#   {{ not {} }}: jinja2 'True', openvino-genai 'False'
#   {{ none | default('y') }}: jinja2 'None', openvino-genai 'y'
#   {{ '' and 'x' }}: jinja2 '', openvino-genai 'False'
#   {{ 'x' ~ 1.0 }}: jinja2 'x1.0', openvino-genai 'x1.000000'
#   {{ [] | tojson(indent=2) }}: jinja2 '[]', openvino-genai '[\n  \n]'
#   {{ messages[0].content[2:] }}: both 'cdef'
#   {% macro f(x) %}{{ x }}{% endmacro %}{% set y = f('abcdef') %}{{ y[2:] }}: both 'cdef'
#   {% macro f(x) %}{{ x }}{% endmacro %}{{ f('abcdef')[2:] }}: jinja2 'cdef', openvino-genai raises
set -euo pipefail
folder="$(mktemp -d)"
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check \
    openvino==2026.4.1 openvino-genai==2026.4.1.0 openvino-tokenizers==2026.4.1.0 transformers==5.24.0 jinja2==3.1.6
cat > "$folder/show.py" <<'PYTHON'
import sys

import openvino
import openvino_genai
import openvino_tokenizers
import tokenizers
import transformers

words = tokenizers.Tokenizer(tokenizers.models.WordLevel({"a": 0, "[UNK]": 1, "</s>": 2}, unk_token="[UNK]"))
words.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
ours = transformers.PreTrainedTokenizerFast(
    tokenizer_object=words, unk_token="[UNK]", eos_token="</s>", pad_token="</s>"
)
for name, part in zip(("tokenizer", "detokenizer"), openvino_tokenizers.convert_tokenizer(ours, with_detokenizer=True)):
    openvino.save_model(part, f"{sys.argv[1]}/openvino_{name}.xml")
other = openvino_genai.Tokenizer(sys.argv[1])

MESSAGES = [{"role": "user", "content": "abcdef"}]
MACRO = "{% macro f(x) %}{{ x }}{% endmacro %}"
DIFFERENT = {
    "{{ 7 / 2 }}": ("3.5", "3"),
    "{{ -7 // 2 }}": ("-4", "-3"),
    "{{ -7 % 3 }}": ("2", "-1"),
    "{{ not {} }}": ("True", "False"),
    "{{ none | default('y') }}": ("None", "y"),
    "{{ '' and 'x' }}": ("", "False"),
    "{{ 'x' ~ 1.0 }}": ("x1.0", "x1.000000"),
    "{{ [] | tojson(indent=2) }}": ("[]", "[\n  \n]"),
}
EQUAL = ("{{ messages[0].content[2:] }}", MACRO + "{% set y = f('abcdef') %}{{ y[2:] }}")


def both(template):
    expected = ours.apply_chat_template(MESSAGES, chat_template=template, tokenize=False)
    return expected, other.apply_chat_template(MESSAGES, add_generation_prompt=False, chat_template=template)


for template, seen in DIFFERENT.items():
    now = both(template)
    assert now == seen, f"{template}: {now}; the behaviour has changed"
    print(f"{template}: jinja2 {now[0]!r}, openvino-genai {now[1]!r}")
for template in EQUAL:
    now = both(template)
    assert now == ("cdef", "cdef"), f"{template}: {now}; the behaviour has changed"
    print(f"{template}: both {now[0]!r}")
template = MACRO + "{{ f('abcdef')[2:] }}"
try:
    raise SystemExit(f"{template}: {both(template)}; the behaviour has changed")
except RuntimeError as error:
    assert "Expected closing expression tag" in str(error), error
    print(f"{template}: jinja2 'cdef', openvino-genai raises")
PYTHON
"$folder/venv/bin/python" "$folder/show.py" "$folder" 2>/dev/null
