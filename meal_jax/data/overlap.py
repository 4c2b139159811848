"""What training and evaluation share: sizes, and prompts that stand in both, by their text and by their first turn.

A row of the evaluation split is never trained on, so the overlap by text is 0 wherever a benchmark does its work. By first
turn it may be above 0 where a data set's own splits are kept: published conversations open alike and go on differently.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

from meal_jax.data.prompts import Prompts

OPENING = re.compile(r"\n\nHuman: (.*?) ?\n\nAssistant:", re.DOTALL)
WHY = "conversations of different splits open alike and go on differently; by config.data.split=hash none would"


def between(train: Iterable[str], test: Iterable[str]) -> dict[str, Any]:
    """Sizes of the two, and how many rows to train on have a text, or a first turn, that stands in the evaluation.

    Args:
      train, test: prompts as `Prompts.text` has them: transcripts, or texts of one turn. Case and spaces do not matter.

    Returns:
      training, evaluation, same_text, same_first_turn; and why, where the last is not 0.
    """
    train, test = list(train), list(test)
    out: dict[str, Any] = {"training": len(train), "evaluation": len(test)}
    for name, part in (("same_text", plain), ("same_first_turn", _first_turn)):
        held = {part(text) for text in test}
        out[name] = sum(part(text) in held for text in train)
    if out["same_text"]:
        return out | {"why": "the same prompts stand in both"}
    return out | ({"why": WHY} if out["same_first_turn"] else {})


def of_prompts(train: Prompts, test: Prompts) -> dict[str, Any]:
    """`between` of two splits' prompts; of a benchmark whose prompts have no text, by their tokens."""
    texts = [
        prompts.text or [str(tokens[mask].tolist()) for tokens, mask in zip(prompts.tokens, prompts.mask, strict=True)]
        for prompts in (train, test)
    ]
    return between(*texts)


def say(counts: dict[str, Any]) -> str:
    """`between` in a sentence."""
    why = f" ({counts['why']})" if "why" in counts else ""
    return (
        f"{counts['training']} prompts to train on, {counts['evaluation']} to evaluate on; in both: {counts['same_text']} by "
        f"text, {counts['same_first_turn']} by first turn{why}"
    )


def plain(text: str) -> str:
    """A text without what people do not see: case, and how much space there is."""
    return " ".join(text.casefold().split())


def _first_turn(text: str) -> str:
    opening = OPENING.match(text)
    return plain(opening[1] if opening else text)
