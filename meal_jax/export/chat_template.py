"""The chat template of an exported model: the base's own, with the preference where training had it.

The base's template is kept whole, as a macro. Around it go the system message that training used, where a conversation has
none, and the conditioning, between the conversation and the generation prompt. Whether the tokens of such a text are those
that the policy was trained on depends on the tokenizer: `spells` compares them.

Letters: K objectives.
"""

from __future__ import annotations

import json
from collections.abc import Sequence

from meal_jax.data import chat as chats
from meal_jax.data.chat import Chat
from meal_jax.data.template_text import dated
from meal_jax.models.policy import Conditioning

EXAMPLE = (("user", "How are you?"), ("assistant", "Well, thank you."), ("user", "Good. Say no."))


def wrap(chat: Chat, conditioning: str = "") -> str:
    """The template.

    Args:
      chat: format of the run's prompts.
      conditioning: Jinja source that prints what stands between conversation and generation prompt.
    """
    own = _enclosed(dated(chat.tokenizer.chat_template, chat.date))
    turns = "messages"
    if chat.system is not None:
        system = f"[{{'role': 'system', 'content': {quote(chat.system)}}}]"
        turns = f"messages if messages[0]['role'] == 'system' else {system} + messages"
    cut = ""
    if chat.closing:  # the tail writes it, behind the conditioning
        cut = (
            "{%- if add_generation_prompt -%}\n"
            f"{{%- set end = said|length - {len(chat.closing)} -%}}\n"
            "{%- set said = said[:end] -%}\n"
            "{%- endif -%}\n"
        )
    return (
        f"{{%- macro conversation(messages, add_generation_prompt) -%}}{own}{{%- endmacro -%}}\n"
        f"{{%- set turns = {turns} -%}}\n"
        "{%- set said = conversation(turns, false) -%}\n"
        f"{cut}"
        "{{- said -}}\n"
        "{%- if add_generation_prompt -%}\n"
        f"{conditioning}"
        "{%- set opened = conversation(turns, true) -%}\n"  # minja takes no part of a call's result
        "{{- opened[said|length:] -}}\n"
        "{%- endif -%}"
    )


def _enclosed(template: str) -> str:
    """The template as the body of a macro whose tags strip white space: what counts at its ends is written as expressions.

    Only so does it read alike everywhere: the plus signs that keep white space are errors in llama.cpp and minja. As
    transformers sets jinja2 up, a tag takes one newline after it and the blanks before it on its line, and the template's
    last newline is dropped.
    """
    template = template.removesuffix("\n")
    inner = template.strip()
    before, _, after = template.partition(inner) if inner else ("", "", "")
    if inner.startswith(("{%-", "{{-", "{#-")):
        before = ""
    elif inner.startswith(("{%", "{#")) and not inner.startswith("{%+"):
        before = before[: before.rfind("\n") + 1]
    if inner.endswith(("-%}", "-}}", "-#}")):
        after = ""
    elif inner.endswith(("%}", "#}")) and not inner.endswith("+%}"):
        after = after.removeprefix("\n")
    return "".join(f"{{{{ {quote(part)} }}}}" if part != inner and part else part for part in (before, inner, after))


def numerals(
    chat: Chat, conditioning: Conditioning, objectives: Sequence[str], default: Sequence[float] | None = None
) -> str:
    """Jinja source that spells the variable `preference`, a list of K weights, as `Policy.condition` does.

    Args:
      chat: format of the run's prompts.
      conditioning: of kind "text".
      objectives: K names, for the message on a wrong number of weights.
      default: weights where a request gives none; None for equal ones.
    """
    k, levels = conditioning.objectives, len(conditioning.table[0])
    default = [1 / k] * k if default is None else [float(v) for v in default]
    message = f"preference needs {k} weights that sum to 1: {', '.join(objectives)}"
    lines = [
        f"{{%- set weights = preference if preference else {json.dumps(default)} -%}}",
        f"{{%- if weights|length != {k} -%}}{{{{ raise_exception({quote(message)}) }}}}{{%- endif -%}}",
    ]
    for i, rows in enumerate(conditioning.table):
        # Rounds halves to even, as training does, by comparisons: other engines than jinja2 have no `round` for floats.
        lines.append(f"{{%- set level = weights[{i}] * {levels - 1} -%}}")
        for j, row in enumerate(rows):
            test = f"if level {'<' if j % 2 else '<='} {j}.5" if j + 1 < levels else "else"
            branch = test if j == 0 or test == "else" else f"el{test}"
            lines.append(f"{{%- {branch} -%}}{{{{- {quote(text_of(chat, row))} -}}}}")
        lines.append("{%- endif -%}")
    return "\n".join(lines) + "\n"


def spells(chat: Chat, template: str, ids: Sequence[int], **variables) -> bool:
    """True if the template, under these variables, reads as a conversation's tokens, `ids`, the generation prompt's."""
    messages = [{"role": role, "content": text} for role, text in EXAMPLE]
    text = chat.tokenizer.apply_chat_template(
        messages, chat_template=template, tokenize=False, add_generation_prompt=True, **variables
    )
    encoded = chat.tokenizer(text, add_special_tokens=False)["input_ids"]
    return encoded == [*chats.prompt_ids(chat, EXAMPLE), *ids, *chats.tail_ids(chat)]


def quote(text: str) -> str:
    """A Jinja string literal."""
    return json.dumps(text, ensure_ascii=False)


def text_of(chat: Chat, ids: Sequence[int]) -> str:
    """The text of token ids that follow others: at the start of a text, some tokenizers drop a leading space."""

    def decode(ids: Sequence[int]) -> str:
        return chat.tokenizer.decode(ids, clean_up_tokenization_spaces=False)

    before = chat.tokenizer(":", add_special_tokens=False)["input_ids"]
    return decode([*before, *ids]).removeprefix(decode(before))
