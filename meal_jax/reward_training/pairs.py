"""Pairs of responses that rewards are fitted on: read, split, put into a reward model's layout, and cut into batches.

A whole reward model (`fit_model`) names its pairs by `config.data.kind`, one of KINDS; `read_pairs` reads them.
Reward heads (`fit_heads`) name them per objective, one of OBJECTIVE_KINDS; `read_objective_pairs` reads them:

    hh_rlhf:FOLDER   people's choices between answers to a conversation, in config.data.path/FOLDER
    comparisons      people's choices between summaries of a post, in config.data.path
    own:FILE         pairs of one's own, JSON lines with prompt, chosen and rejected (data/own.py), in config.data.path/FILE
    faithful         summaries by a post's author against unfaithful ones (`faithful_pairs`): posts of config.data.posts,
                     or those of config.data.path's comparisons that include an author's summary

Letters: M pairs, B pairs per batch, S tokens of a row.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from meal_jax.data import chat as chats
from meal_jax.data import hh_rlhf, overlap, own, templates, tldr
from meal_jax.data import summarize_from_feedback as sff
from meal_jax.reward_training import faithful_pairs
from meal_jax.rewards import text
from meal_jax.rewards.formats import Encoded

KINDS = ("jsonl", "hh_rlhf", "summarize_from_feedback")
OBJECTIVE_KINDS = ("hh_rlhf:FOLDER", "own:FILE", "comparisons", "faithful")
PROMPTS = ("transcript", "last")
HELD_OUT = 1 - chats.SPLITS["reward"]  # share of the groups that a policy's splits keep from rewards


class Pair(NamedTuple):
    """Two responses to one prompt.

    Attributes:
      group: decides the split: the first human turn, or the post's id.
      prompt: what is read as the prompt: its text (`read_pairs`), or the conversation as a policy sees it
        (`read_objective_pairs`).
      chosen, rejected: the preferred response and the other.
      kind: pairs of each named kind get an accuracy of their own; "" for none.
      split: the split that a row of the user's own data names: "train", "test", "validation", or "" for none.
    """

    group: str
    prompt: str | chats.Turns
    chosen: str
    rejected: str
    kind: str = ""
    split: str = ""


class PairSet(NamedTuple):
    """Pairs in the files' order, and the number of rows that were left out, per reason."""

    pairs: list[Pair]
    left_out: Counter


def read_pairs(kind: str, path: str, split: str | None = None, prompt: str = "transcript") -> PairSet:
    """Reads pairs as a policy's reward will see them (`Prompts.text`): stripped, prompts in the benchmarks' forms.

    Args:
      kind: one of KINDS: "jsonl" (data/own.py), or "hh_rlhf" or "summarize_from_feedback", published or prepared.
      path: file or directory.
      split: reads only the rows of this split of the data; None reads all.
      prompt: how a conversation becomes text: its "transcript", as the benchmark `assistant` shows it, or the text of
        its "last" human turn. A post always becomes its text on one line, as `reddit` shows it.

    Raises:
      FileNotFoundError, ValueError: as the readers of `meal_jax.data`; or `kind` or `prompt` is none of those.
    """
    if kind not in KINDS:
        raise ValueError(f"config.data.kind={kind!r} is not one of {', '.join(KINDS)}.")
    if prompt not in PROMPTS:
        raise ValueError(f"config.data.prompt={prompt!r} is not one of {', '.join(PROMPTS)}.")
    if kind == "summarize_from_feedback":
        rows = sff.read_comparisons(path, split)
        return from_comparisons(rows, lambda row: templates.one_line(row.post or row.article))
    if kind == "jsonl" and split is None:
        parts = _own_parts(path)
    else:
        parts = {"": own.read_rows(path, split) if kind == "jsonl" else hh_rlhf.read_pairs(path, split)}
    return from_conversations(parts, chats.transcript if prompt == "transcript" else _last_turn)


def read_objective_pairs(source: str, data: Any) -> PairSet:
    """The pairs of one objective, their prompts as the benchmark shows them to a policy.

    Args:
      source: one of OBJECTIVE_KINDS.
      data: `config.data`. Posts may have any length; `config.data.prompt_length` limits them later.

    Raises:
      FileNotFoundError, ValueError: as the readers of `meal_jax.data`; there is no such kind; or no post has an
        author's summary.
    """
    kind, _, folder = source.partition(":")
    path = Path(data.path).expanduser()
    if kind == "hh_rlhf" and folder:
        return from_conversations({"": hh_rlhf.read_pairs(path / folder)}, lambda turns: turns)
    if kind == "own" and folder:
        return from_conversations(_own_parts(path / folder), lambda turns: turns)
    if source == "comparisons":
        return from_comparisons(
            sff.read_comparisons(path), lambda row: templates.reddit_turns(row.post, "chat") if row.post else None
        )
    if source == "faithful":
        summarised = (
            tldr.read_summarised(data.posts) if data.posts else tldr.of_comparisons(sff.iterate_comparisons(path))
        )
        if not summarised:
            raise ValueError(f"{path} has no author's summary among its comparisons: set config.data.posts.")
        return from_summarised(summarised)
    raise ValueError(f"config.objectives names pairs by {source!r}, which is none of {', '.join(OBJECTIVE_KINDS)}.")


def _own_parts(path: Any) -> dict[str, hh_rlhf.Pairs]:
    """Rows of the user's own by the split that they name; all under "" where none is held out by its own: all are divided."""
    parts = own.read_by_split(path)
    return parts if parts.keys() & {"test", "validation"} else {"": own.read_rows(path)}


def name_of(source: str) -> str:
    """What the card calls the pairs of an objective."""
    kind, _, folder = source.partition(":")
    return "posts with their authors' summaries" if kind == "faithful" else folder or kind


def from_conversations(parts: Mapping[str, hh_rlhf.Pairs], show: Callable[[chats.Turns], Any]) -> PairSet:
    """Pairs of answers to conversations, per split that the rows name; `show` gives the prompt of a conversation."""
    pairs, left_out = [], Counter()
    for split, part in parts.items():
        pairs += [Pair(p.turns[0][1], show(p.turns), p.chosen, p.rejected, split=split) for p in part.pairs]
        left_out.update(reason for _, reason in part.skipped)
        if bare := len(part.prompts) - len(part.pairs) - len(part.skipped):
            left_out["a prompt without answers"] += bare
    return PairSet(pairs, left_out)


def from_comparisons(rows: Iterable[sff.Comparison], show: Callable[[sff.Comparison], Any]) -> PairSet:
    """Pairs of summaries; `show` gives the prompt of a row, None for a news article that is to be left out."""
    pairs, left_out = [], Counter()
    for row in rows:
        chosen, rejected = row.answers
        prompt = show(row)
        if reason := "a news article" if prompt is None else hh_rlhf.why_no_pair(chosen, rejected):
            left_out[reason] += 1
        else:
            pairs.append(Pair(row.id, prompt, chosen, rejected))
    return PairSet(pairs, left_out)


def from_summarised(summarised: Sequence[tldr.Summarised]) -> PairSet:
    """Each post of the benchmark's lengths with a mismatched summary, and with a swapped one if it has a fact to swap."""
    prompts = {row.name: row.turns for row in templates.reddit_rows([s.post for s in summarised], "chat")}
    used = [s for s in summarised if s.post.id in prompts]
    pairs = [
        Pair(s.post.id, prompts[s.post.id], s.summary, unfaithful, kind)
        for s, unfaithful, kind in faithful_pairs.make_pairs(used)
    ]
    return PairSet(pairs, +Counter({"a post of another length": len(summarised) - len(used)}))


def _last_turn(turns: chats.Turns) -> str:
    return turns[-1][1]


def is_held_out(pair: Pair, share: float = HELD_OUT) -> bool:
    """Whether rewards are not fitted on a pair: by its own split if it names one, else by its group.

    A group is held out if it falls into the last `share` of the hash of `chat.split_of`; neither a seed nor the order of
    rows matters. At the default the groups that are not held out are the split "reward".
    """
    return pair.split != "train" if pair.split else chats.position_of(pair.group) >= 1 - share


def sides(pairs: Sequence[Pair], share: float = HELD_OUT) -> list[bool | None]:
    """Whether each pair is held out, by `is_held_out`; None for one that is not and whose prompt is held out elsewhere.

    Pairs of None are to be left out, so that no prompt is in both parts, case and spaces aside. A post that was published
    twice has one prompt under two groups; rows that name their split may put two pairs of a prompt in different splits.
    """
    held = [is_held_out(pair, share) for pair in pairs]
    prompts = {_plain(pair.prompt) for pair, out in zip(pairs, held, strict=True) if out}
    return [True if out else None if _plain(p.prompt) in prompts else False for p, out in zip(pairs, held, strict=True)]


def divide(pairs: Sequence[Pair], share: float) -> tuple[list[Pair], list[Pair]]:
    """(fitted, held out) by `sides`; no prompt is in both, and no group of the pairs without a split of their own."""
    of = sides(pairs, share)
    fitted, held = ([p for p, out in zip(pairs, of, strict=True) if out is part] for part in (False, True))
    return fitted, held


def quotas(fitted: int, held: int, most: int | None) -> tuple[int, int]:
    """How many pairs to take of so many fitted and held-out ones, in their proportion: `most` in all, None for all."""
    if not most or most >= fitted + held:
        return fitted, held
    first = round(most * fitted / (fitted + held))
    if fitted and held and most > 1:  # one of each at least
        first = min(max(first, 1), most - 1)
    return first, most - first


def decided(pairs: Iterable[Pair], by_hash: str) -> str:
    """What decides which pairs are held out, for cards: the rows' own split, a hash (`by_hash` says of what), or both."""
    named = {bool(pair.split) for pair in pairs}
    if True not in named:
        return by_hash
    own_split = "the pairs whose row or file says test or validation"
    return f"{own_split}, and of those that say nothing {by_hash}" if False in named else own_split


def _plain(prompt: str | chats.Turns) -> str:
    return overlap.plain(prompt if isinstance(prompt, str) else chats.name_of(prompt))


class EncodedPair(NamedTuple):
    """A pair as token ids, and the pair."""

    pair: Pair
    chosen: Encoded
    rejected: Encoded


def encode_pairs(pairs: Sequence[Pair], layout: Callable[[str, str], Encoded], left_out: Counter) -> list[EncodedPair]:
    """Pairs in token ids; pairs whose responses are empty, or equal after cutting, are counted in `left_out`."""
    rows = []
    for pair in pairs:
        chosen, rejected = (layout(pair.prompt, response) for response in (pair.chosen, pair.rejected))
        if chosen.ids == rejected.ids:
            left_out["the same row twice, when cut"] += 1
        elif not chosen.ids or not rejected.ids:
            left_out["a row without tokens"] += 1
        else:
            rows.append(EncodedPair(pair, chosen, rejected))
    return rows


def batches(lengths: np.ndarray, size: int, seed: int, epoch: int) -> list[tuple[int, np.ndarray]]:
    """One epoch's batches: M // B of them, in an order that (seed, epoch) decides.

    Pairs are shuffled and grouped by length; what does not fill a batch goes to the next longer length. The last M % B
    pairs are left out, different ones in every epoch.

    Args:
      lengths: padded length of each pair, [M].
      size: B.
      seed, epoch: of the order.

    Returns:
      (padded length, indices of the pairs [B]) of each batch.
    """
    rng = np.random.default_rng((seed, epoch))
    ordered, rest = [], np.zeros(0, np.int64)
    for length in np.unique(lengths):
        members = np.concatenate([rest, rng.permutation(np.flatnonzero(lengths == length))])
        full = len(members) // size * size
        ordered += [(int(length), part) for part in members[:full].reshape(-1, size)]
        rest = members[full:]
    return [ordered[i] for i in rng.permutation(len(ordered))]


def lengths_of(rows: Sequence[EncodedPair], limit: int) -> np.ndarray:
    """The padded length of each pair, [M], one of the few that `text.bucket` gives."""
    return np.array([text.bucket(max(len(row.chosen.ids), len(row.rejected.ids)), limit) for row in rows])


def collate(rows: Sequence[EncodedPair], length: int, pad: int) -> tuple[Any, Any, Any]:
    """Tokens, mask and types [B, 2, S] of pairs, the chosen response first."""
    flat = [encoded for row in rows for encoded in (row.chosen, row.rejected)]
    return tuple(array.reshape(len(rows), 2, length) for array in text.pad(flat, len(flat), length, pad))
