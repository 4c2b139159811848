"""Pairs of responses that a reward model is fitted on: read, split, put into its layout, and cut into batches.

Letters: M pairs, B pairs of a batch, S tokens of a row.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from meal_jax.data import chat as chats
from meal_jax.data import hh_rlhf, own, templates
from meal_jax.data import summarize_from_feedback as sff
from meal_jax.rewards import text
from meal_jax.rewards.formats import Encoded

KINDS = ("jsonl", "hh_rlhf", "summarize_from_feedback")
PROMPTS = ("transcript", "last")


class Pair(NamedTuple):
    """Two responses to one prompt.

    Attributes:
      group: what decides the split: the first human turn, or the post's id.
      prompt: the text that the reward model reads as the prompt.
      chosen, rejected: the response that people preferred, and the other.
      split: that a row of one's own gives itself: "train", "test", "validation", or "" for none.
    """

    group: str
    prompt: str
    chosen: str
    rejected: str
    split: str = ""


def read(kind: str, path: str, split: str | None = None, prompt: str = "transcript") -> tuple[list[Pair], Counter]:
    """Reads pairs as a policy's reward will see them (`Prompts.text`): stripped, prompts in the benchmarks' forms.

    Args:
      kind: "jsonl" (data/own.py), "hh_rlhf" or "summarize_from_feedback", the last two published or prepared.
      path: file or directory.
      split: the rows of this split of the data alone; None takes all.
      prompt: a conversation becomes its "transcript", as the benchmark `assistant` shows it, or the text of its "last" human
        turn alone. A post becomes its text on one line, as `reddit` shows it, whatever `prompt` says.

    Returns:
      Pairs in the files' order, and how many rows were left out, by reason.

    Raises:
      FileNotFoundError, ValueError: as the readers of `meal_jax.data`; or `kind` or `prompt` is none of those.
    """
    if kind not in KINDS:
        raise ValueError(f"config.data.kind={kind!r} is not one of {', '.join(KINDS)}.")
    if prompt not in PROMPTS:
        raise ValueError(f"config.data.prompt={prompt!r} is not one of {', '.join(PROMPTS)}.")
    if kind == "summarize_from_feedback":
        return _posts(path, split)
    if kind == "jsonl" and split is None:
        parts = own.read_by_split(path)
        if not parts.keys() & {"test", "validation"}:  # nothing is kept from fitting: all of it is divided
            parts = {"": own.read(path)}
    else:
        parts = {"": (own if kind == "jsonl" else hh_rlhf).read(path, split)}
    show = chats.transcript if prompt == "transcript" else lambda turns: turns[-1][1]
    pairs, left_out = [], Counter()
    for its, found in parts.items():
        pairs += [Pair(pair.turns[0][1], show(pair.turns), pair.chosen, pair.rejected, its) for pair in found.pairs]
        left_out.update(reason for _, reason in found.skipped)
        if bare := len(found.prompts) - len(found.pairs) - len(found.skipped):
            left_out["a prompt without answers"] += bare
    return pairs, left_out


def _posts(path: str, split: str | None) -> tuple[list[Pair], Counter]:
    pairs, left_out = [], Counter()
    for row in sff.read(path, split):
        chosen, rejected = row.answers
        if reason := hh_rlhf.why_no_pair(chosen, rejected):
            left_out[reason] += 1
        else:
            pairs.append(Pair(row.id, templates.one_line(row.post or row.article), chosen, rejected))
    return pairs, left_out


def divide(pairs: Sequence[Pair], share: float) -> tuple[list[Pair], list[Pair]]:
    """(fitted, held out). Neither a seed nor the order of rows matters, and no prompt is in both. Pairs that give their split
    keep it; of the others no group is in both either.

    A group is held out if it falls into the last `share` of a hash, that of `chat.split_of`: at 0.3 what is fitted is the
    split "reward". Of a prompt that stands in both under different groups (a post published twice), the pairs that would
    be fitted are left out.
    """
    is_held = [pair.split != "train" if pair.split else chats.position_of(pair.group) >= 1 - share for pair in pairs]
    held = [pair for pair, out in zip(pairs, is_held, strict=True) if out]
    prompts = {pair.prompt for pair in held}
    return [p for p, out in zip(pairs, is_held, strict=True) if not out and p.prompt not in prompts], held


class Rows(NamedTuple):
    """A pair as token ids, and the pair."""

    pair: Pair
    chosen: Encoded
    rejected: Encoded


def encode(pairs: Sequence[Pair], layout: Callable[[str, str], Encoded], left_out: Counter) -> list[Rows]:
    """Pairs in token ids; those whose responses are equal once cut, or empty, go to `left_out`."""
    rows = []
    for pair in pairs:
        chosen, rejected = (layout(pair.prompt, response) for response in (pair.chosen, pair.rejected))
        if chosen.ids == rejected.ids:
            left_out["the same row twice, when cut"] += 1
        elif not chosen.ids or not rejected.ids:
            left_out["a row without tokens"] += 1
        else:
            rows.append(Rows(pair, chosen, rejected))
    return rows


def batches(lengths: np.ndarray, size: int, seed: int, epoch: int) -> list[tuple[int, np.ndarray]]:
    """One epoch's batches: M // B of them, in an order that (seed, epoch) decides.

    Pairs are shuffled and put together by length; what does not fill a batch goes to the next longer one. The last M % B
    pairs are left out, others in every epoch.

    Args:
      lengths: padded length of each pair, [M].
      size: B.
      seed, epoch: of the order.

    Returns:
      (padded length, numbers of the pairs [B]) of each batch.
    """
    rng = np.random.default_rng((seed, epoch))
    found, rest = [], np.zeros(0, np.int64)
    for length in np.unique(lengths):
        members = np.concatenate([rest, rng.permutation(np.flatnonzero(lengths == length))])
        whole = len(members) // size * size
        found += [(int(length), part) for part in members[:whole].reshape(-1, size)]
        rest = members[whole:]
    return [found[i] for i in rng.permutation(len(found))]


def lengths_of(rows: Sequence[Rows], limit: int) -> np.ndarray:
    """The padded length of each pair, [M]: of one of the few that `text.bucket` knows."""
    return np.array([text.bucket(max(len(row.chosen.ids), len(row.rejected.ids)), limit) for row in rows])


def collate(rows: Sequence[Rows], length: int, pad: int) -> tuple[Any, Any, Any]:
    """Tokens, mask and types [B, 2, S] of pairs, the chosen response first."""
    flat = [encoded for row in rows for encoded in (row.chosen, row.rejected)]
    return tuple(array.reshape(len(rows), 2, length) for array in text.pad(flat, len(flat), length, pad))
