"""What a story's text is rewarded for: the cheerful words, rewards as Python functions, and what they count, marked.

`config.reward.sources` names them, python:meal_jax.tasks.story_text:short for one.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

CHEERFUL = (
    "beautiful", "best", "bright", "cheerful", "excited", "fun", "giggled", "glad", "happily", "happy",
    "hug", "hugged", "joy", "kind", "laugh", "laughed", "laughing", "love", "loved", "loves", "nice", "proud", "shiny",
    "smile", "smiled", "smiling", "sunny", "warm", "wonderful", "yummy",
)  # fmt: skip
SPEECH = re.compile(r'"[^"]*(?:"|$)')  # from a quotation mark to the next, or to the end
SILENT, GRAVE = ("shy", "small"), ("brave", "curious")  # natures of heroes, see `tasks/stories.py`


def dialogue(prompts: list[str], responses: list[str]) -> list[float]:
    """√ of the share of a text's characters, spaces left out, that are speech: what `stories.dialogue` counts in tokens."""
    return [(printed("".join(SPEECH.findall(text))) / max(printed(text), 1)) ** 0.5 for text in responses]


def cheerful(prompts: list[str], responses: list[str]) -> list[float]:
    """√ of the share of a text's words that are of CHEERFUL and outside speech, as `stories.cheerful`."""
    narrated = [words(SPEECH.sub(" ", text).lower()) for text in responses]
    return [
        (sum(word in CHEERFUL for word in told) / max(len(words(text)), 1)) ** 0.5
        for told, text in zip(narrated, responses, strict=True)
    ]


def printed(text: str) -> int:
    """Characters that are no space."""
    return len(re.sub(r"\s", "", text))


def words(text: str) -> list[str]:
    return re.findall(r"[A-Za-z']+", text)


def short(prompts: list[str], responses: list[str]) -> list[float]:
    """√ of sentences per word: 1 where every word is a sentence, 0.32 where ten are one. Signs alone are no sentence."""
    return [sentences_per_word(response) ** 0.5 for response in responses]


def sentences_per_word(text: str) -> float:
    """0 for a text without words."""
    sentences = [part for part in re.split(r"[.!?]", text) if words(part)]
    return len(sentences) / max(len(words(text)), 1)


def marked(text: str, objectives: Sequence[str]) -> list[tuple[str, int | None]]:
    """The text's parts in order, each with the number of the objective that counts it, or None.

    Speech is counted by `dialogue`, words of CHEERFUL outside of it by `cheerful` (`tasks/stories.py`).
    """
    number = {name: k for k, name in enumerate(objectives)}
    words = "|".join(CHEERFUL)
    parts = re.split(rf"({SPEECH.pattern}|(?i:(?<![a-z'])(?:{words})(?![a-z'])))", text)

    def counts(part: str) -> int | None:
        if part.startswith('"'):
            return number.get("dialogue", number.get("fitting_dialogue"))
        return number.get("cheerful", number.get("fitting_cheerful"))

    return [(part, counts(part) if i % 2 else None) for i, part in enumerate(parts) if part]
