"""The embedded benchmark's answers for a person: letters for what each token serves, and the sum that gives the reward.

    A A B · end      A: a token that serves the first objective, B: the second, …; ·: one that serves none

Letters: K objectives, T response tokens.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from meal_jax.tasks import toy

WORDS = {word: i for i, word in ((toy.PAD, "."), (toy.BEGIN, "<"), (toy.END, ">"))}
LETTERS, NONE = "ABCDEFGHIJKLMNOPQRSTUVWXYZ", "·"


def rule(objectives: Sequence[str], max_new: int) -> str:
    """What the rewards count, in three sentences; `max_new` is T."""
    letters = " and ".join(f"{letter} the reward {name}" for letter, name in zip(LETTERS, objectives, strict=False))
    powers = ", ".join(f"{gamma:g}" for gamma in toy.GAMMAS)
    return (
        f"The second and third token of a prompt, its markers, make it one of {toy.TYPES} types. For each type {toy.SET} "
        f"tokens serve each objective: {letters}; all others, {NONE}, serve none. With n of an answer's tokens serving an "
        f"objective, its reward is (n / {max_new - 1})^γ, where γ is {powers} by type; an answer that does not end within "
        f"{max_new} tokens has half of it."
    )


def explain(prompt: str, response: str, objectives: Sequence[str], own: Sequence[int], max_new: int) -> str | None:
    """One answer's letters and its rewards' sums.

    Args:
      prompt, response: as `toy.show` writes them.
      objectives: K names.
      own: indices of those whose reward is the benchmark's own; others are not explained.
      max_new: T.

    Returns:
      "A B · end: first (1/11)^0.5 = 0.30, second …"; None if either text is not the benchmark's.
    """
    try:
        asked, tokens = (np.array([_id(word) for word in text.split()], np.int32) for text in (prompt, response))
    except ValueError:
        return None
    kind, ended = int(toy.prompt_types(asked, np)), toy.END in tokens
    table, gamma = toy.values(len(objectives))[kind], float(toy.gammas()[kind])
    letters = [_letter(int(token), table, own) for token in tokens]
    sums = []
    for k in own:
        count = int(sum(table[token, k] for token in tokens if token != toy.END))
        value = min(count / (max_new - 1), 1.0) ** gamma * (1.0 if ended else 0.5)
        half = "" if ended else " / 2"
        sums.append(f"{objectives[k]} ({count}/{max_new - 1})^{gamma:g}{half} = {value:.2f}")
    return f"{' '.join(letters) or '(empty)'}: {', '.join(sums)}" + ("" if ended else "; halved, it did not end")


def _id(word: str) -> int:
    number = WORDS[word] if word in WORDS else int(word)
    if not 0 <= number < toy.VOCABULARY:
        raise ValueError(word)
    return number


def _letter(token: int, table: np.ndarray, own: Sequence[int]) -> str:
    """Of a token; `table` [V, K] is 1 where it serves."""
    if token == toy.END:
        return "end"
    return next((LETTERS[k] for k in own if table[token, k]), NONE)
