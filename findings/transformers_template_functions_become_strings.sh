#!/usr/bin/env bash
# transformers 5.24.0: a function given to apply_chat_template reaches the template as a string, and cannot be called there.
#
# Variables of a chat template are passed as keyword arguments of apply_chat_template. Numbers and texts arrive as they are.
# A function arrives as text, so calling it in the template raises "'str' object is not callable". It also replaces the
# library's own strftime_now: templates that write today's date (as Llama 3.1's does) fail when a caller wants to fix the
# date, as whoever needs equal prompts on different days does. Without the argument the same template renders today's
# date. Rendering with the tokenizer's template in jinja2 directly, or writing the date into the template's text, works.
#
# Output seen (transformers 5.24.0, Python 3.11):
#   own strftime_now: renders a year
#   number passed: 3
#   strftime_now passed: TypeError 'str' object is not callable
#   function passed: TypeError 'str' object is not callable
set -euo pipefail
folder="$(mktemp -d)"
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check transformers==5.24.0 jinja2==3.1.6
cat > "$folder/show.py" <<'PYTHON'
import tokenizers
import transformers

words = tokenizers.models.WordLevel({"a": 0, "[UNK]": 1}, unk_token="[UNK]")
tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizers.Tokenizer(words))


def render(template, **variables):
    return tokenizer.apply_chat_template(
        [{"role": "user", "content": "a"}], chat_template=template, tokenize=False, **variables
    )


assert len(render("{{ strftime_now('%Y') }}")) == 4
print("own strftime_now: renders a year")
assert render("{{ count + 1 }}", count=2) == "3"
print("number passed: 3")
for name, template, variables in (
    ("strftime_now passed", "{{ strftime_now('%Y') }}", {"strftime_now": lambda form: "1999"}),
    ("function passed", "{{ shout('a') }}", {"shout": lambda text: text.upper()}),
):
    try:
        raise SystemExit(f"{name}: {render(template, **variables)}; the behaviour has changed")
    except TypeError as error:
        assert "not callable" in str(error)
        print(f"{name}: TypeError {error}")
PYTHON
"$folder/venv/bin/python" "$folder/show.py" 2>/dev/null
