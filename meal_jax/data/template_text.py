"""The text of a chat template: which of several it is, its variables, its date.

What a template is given besides the conversation is written into its text. So every reader has it: the hash that names a
format, transformers, and an export's own template.
"""

from __future__ import annotations

import contextlib
import copy
import datetime
import json
import re
from collections.abc import Sequence

DATE = "2024-07-26"  # the date that Llama 3.1's template takes where it cannot ask
CODES = ("%d", "%b", "%B", "%Y", "%m", "%y", "%A", "%a", "%H", "%M", "%S")  # of dates, in chat templates
GIVEN = ("messages", "add_generation_prompt")  # variables that every conversation sets
# Before a template that takes a message's content as a list of parts alone, as those of image models do
TEXTS = (
    "{%- set parted = namespace(messages=[]) -%}{%- for message in messages -%}{%- if message['content'] is string -%}"
    "{%- set message = dict(message, content=[{'type': 'text', 'text': message['content']}]) -%}{%- endif -%}"
    "{%- set parted.messages = parted.messages + [message] -%}{%- endfor -%}{%- set messages = parted.messages -%}\n"
)


def with_one_template(tokenizer):
    """The tokenizer with its default chat template where it has several by name (a dict); a copy then.

    Raises:
      ValueError: none is named default.
    """
    templates = getattr(tokenizer, "chat_template", None)
    if not isinstance(templates, dict):
        return tokenizer
    if "default" not in templates:
        raise ValueError(
            f"The tokenizer's chat templates are named {', '.join(sorted(templates))}, and none is named default: rename the "
            "right one in tokenizer_config.json."
        )
    tokenizer = copy.copy(tokenizer)
    tokenizer.chat_template = templates["default"]
    return tokenizer


def with_options(tokenizer, options: Sequence[str]):
    """The tokenizer with variables set at the head of its chat template; a copy then.

    Args:
      tokenizer: with one chat template.
      options: "NAME=VALUE" each, VALUE as in JSON, such as "enable_thinking=false".

    Raises:
      ValueError: an option is not of this form, or the template does not read its variable.
    """
    lines = ""
    for name, literal in map(parse_option, options):
        if not re.search(rf"\b{name}\b", tokenizer.chat_template):
            raise ValueError(f"The tokenizer's chat template reads no variable {name} (config.data.template_options).")
        lines += (
            f"{{% set {name} = {literal} %}}\n"  # the tag takes the newline, and leaves the template's first blanks
        )
    if lines:
        tokenizer = copy.copy(tokenizer)
        tokenizer.chat_template = lines + tokenizer.chat_template
    return tokenizer


def parse_option(option: str) -> tuple[str, str]:
    """The variable of an option of `with_options`, and its value as Jinja writes it.

    Raises:
      ValueError: it is not of this form.
    """
    name, _, text = option.partition("=")
    with contextlib.suppress(ValueError):
        value = json.loads(text)
        literal = "none" if value is None else json.dumps(value, ensure_ascii=False, allow_nan=False)
        if name.isidentifier() and name not in GIVEN and not isinstance(value, list | dict):
            return name, literal
    raise ValueError(
        f"config.data.template_options: {option!r} is not NAME=VALUE, such as 'enable_thinking=false': NAME a variable of the "
        f"chat template other than {' and '.join(GIVEN)}, VALUE true, false, null, a number, or a text in double quotes."
    )


def dated(template: str, date: str) -> str:
    """The chat template with a fixed date in place of today's, which `strftime_now(FORMAT)` would write.

    In the text of the template, since transformers 5 turns functions among a template's variables into strings.
    """
    if "strftime_now" not in template:
        return template
    day = datetime.date.fromisoformat(date)
    call = re.compile(r"""strftime_now\(\s*(["'])(.*?)\1\s*\)""")
    template = call.sub(lambda match: json.dumps(day.strftime(match[2])), template)
    template = template.replace("strftime_now is defined", "true")
    if "strftime_now" in template:  # called on a variable
        codes = "".join(f" | replace({json.dumps(code)}, {json.dumps(day.strftime(code))})" for code in CODES)
        template = f"{{%- macro strftime_now(format) -%}}{{{{- format{codes} -}}}}{{%- endmacro %}}\n{template}"
    return template
