"""Rewards that read text: computed on the host, between the rollout and the update of a step.

A text reward is a callable (prompts, responses) → float32 [R] on two lists of R strings; it returns the raw score, never
rounded. It may be a model with its own tokenizer (`ModelReward`), a judge (`rewards/judge.py`) or a user's function
(`rewards/python.py`). Its scores are then treated like every reward: the running mean and variance in `State.rewards`, which
are checkpointed, put the objectives on one scale before preferences weight them.

`TextScorer` adds the columns of the text rewards to those that the device computed. With several processes, each holds all
texts. They run a model together, on their common mesh; each runs a user's function on its share of the rows.

Letters: B prompts, N candidates, K objectives, T response tokens, R rows, S tokens of a row.
"""

from __future__ import annotations

import math
import numbers
import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from meal_jax.classifiers.classifier import Classifier
from meal_jax.meal.normalise import usable, what_is_wrong
from meal_jax.rewards.formats import Encoded, limit
from meal_jax.runtime import distributed, sharding

PyTree = Any
TextReward = Callable[[list[str], list[str]], np.ndarray]
SHORTEST = 32  # tokens of the shortest bucket
CACHE_SIZE = 65_536  # scores in a model's cache


class ModelReward:
    """A text reward computed by a model: it tokenises, sorts rows into buckets by length, and caches scores.

    All batches have the same number of rows, and a length from `bucket`, so few programs are compiled. A pair of prompt and
    response is scored once while its score is in the cache, which holds the `cache_size` newest ones.

    Attributes:
      params: the model's parameters on the mesh.
      scored: number of rows that the model was run on so far.
      compiled: the jitted score; `compiled._cache_size()` is the number of programs.
    """

    def __init__(
        self,
        encode: Callable[[str, str], Encoded],
        score: Callable[..., jax.Array],
        params: PyTree,
        mesh: jax.sharding.Mesh,
        *,
        limit: int,
        pad: int,
        left: bool = False,
        batch_size: int = 32,
        cache_size: int = CACHE_SIZE,
    ):
        """Sets up the reward.

        Args:
          encode: (prompt, response) → Encoded of 1 to `limit` tokens.
          score: (params, tokens [R, S] int32, mask [R, S] bool, types [R, S] int32) → [R] float32, pure.
          params: on the mesh.
          mesh: rows are split over its data axes.
          limit: max tokens of a row.
          pad: token id that fills rows.
          left: pad rows on the left, as decoders that answer need it, not on the right.
          batch_size: rows per call; rounded up to a multiple that the mesh divides.
          cache_size: max number of cached scores; 0 for no cache.
        """
        self.params, self.scored = params, 0
        self.compiled = jax.jit(score, out_shardings=sharding.replicated(mesh))
        self._encode, self._limit, self._pad, self._left = encode, limit, pad, left
        self._placed = sharding.batch_sharding(mesh)
        pieces = math.prod(mesh.shape[axis] for axis in sharding.BATCH_AXES)
        self._rows, self._cache, self._cache_size = -(-batch_size // pieces) * pieces, {}, cache_size

    def __call__(self, prompts: Sequence[str], responses: Sequence[str]) -> np.ndarray:
        """Scores [R] float32."""
        pairs = list(zip(prompts, responses, strict=True))
        new = [pair for pair in dict.fromkeys(pairs) if pair not in self._cache]
        fresh = dict(zip(new, self._score(new), strict=True))
        cached = {pair: self._cache.pop(pair) for pair in dict.fromkeys(pairs) if pair not in fresh}
        scores = cached | fresh
        self._cache |= scores  # the last requested scores come last, and are dropped last
        for oldest in list(self._cache)[: max(len(self._cache) - self._cache_size, 0)]:
            del self._cache[oldest]
        self.scored += len(new)
        return np.array([scores[pair] for pair in pairs], np.float32)

    def _score(self, pairs: Sequence[tuple[str, str]]) -> np.ndarray:
        rows = [self._encode(*pair) for pair in pairs]
        groups = defaultdict(list)
        for i, row in enumerate(rows):
            groups[bucket(len(row.ids), self._limit)].append(i)
        running = []  # all batches are dispatched before the first result is awaited
        for length, group in sorted(groups.items()):
            for start in range(0, len(group), self._rows):
                index = group[start : start + self._rows]
                batch = pad([rows[i] for i in index], self._rows, length, self._pad, self._left)
                running.append((index, self.compiled(self.params, *sharding.put(batch, self._placed))))
        scores = np.empty(len(rows), np.float32)
        for index, values in running:
            scores[index] = np.asarray(values)[: len(index)]
        return scores


def classifier_reward(
    classifier: Classifier, tokenizer, layout: Callable[..., Encoded], label: int, mesh: jax.sharding.Mesh, **options
) -> ModelReward:
    """The reward by a classifier's raw logit.

    Args:
      classifier: of `classifiers.classifier`; its parameters are copied to every device, since moving parameters that are
        split over fsdp takes many times longer than the model itself.
      tokenizer: the model's.
      layout: of `rewards.formats`.
      label: index of the logit.
      mesh: rows are split over its data axes.
      **options: batch_size and cache_size of `ModelReward`.

    Returns:
      ModelReward.
    """
    max_tokens = limit(tokenizer, classifier.max_length)
    return ModelReward(
        lambda prompt, response: layout(tokenizer, prompt, response, max_tokens),
        lambda params, *rows: classifier.apply(params, *rows)[:, label],
        sharding.put(classifier.params, sharding.replicated(mesh)),
        mesh,
        limit=max_tokens,
        pad=classifier.pad,
        **options,
    )


def bucket(length: int, limit: int) -> int:
    """The padded length of a row of `length` tokens: the next power of two, at least SHORTEST and at most `limit`."""
    return min(max(SHORTEST, 1 << (length - 1).bit_length()), limit)


def pad(
    rows: Sequence[Encoded], count: int, length: int, pad: int, left: bool = False
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Rows as tokens, mask and types [count, length]; missing rows repeat the first one.

    Raises:
      ValueError: a row without tokens, which no model can read.
    """
    tokens, types = np.full((count, length), pad, np.int32), np.zeros((count, length), np.int32)
    mask = np.zeros((count, length), bool)
    for i in range(count):
        row = rows[i if i < len(rows) else 0]
        if not row.ids:
            raise ValueError("An empty prompt with an empty response has no tokens, so no reward model can score it.")
        place = slice(length - len(row.ids), length) if left else slice(0, len(row.ids))
        tokens[i, place], types[i, place], mask[i, place] = row.ids, row.types, True
    return tokens, mask, types


def check(name: str, values: Any, responses: Sequence[str], source: str = "") -> np.ndarray:
    """A reward's return as float32 [R].

    Args:
      name: of the objective.
      values: what the reward returned: numbers in a list, a tuple, a NumPy, JAX or torch array; integers too.
      responses: R of them.
      source: the reward's function, for messages.

    Raises:
      ValueError: it is not one number for each response; names the row and its value.
      FloatingPointError: some are not finite; names the first.
    """
    scores = _numbers(name, values, responses, source)
    need_finite(name, scores, responses, source)
    return scores


def need_finite(name: str, scores: np.ndarray, responses: Sequence[str], source: str = "") -> None:
    """Raises FloatingPointError where a reward [R] is not a finite number, or too large; names the first, and its response."""
    bad = np.flatnonzero(~usable(scores))
    if len(bad):
        response = f" for {responses[bad[0]][:80]!r}" if responses else ""
        raise FloatingPointError(
            f"{_of(name, source)} is {what_is_wrong(scores[bad[0]])} for {len(bad)} of {len(scores)} responses; the first is "
            f"row {bad[0]}, {scores[bad[0]]:g}{response}."
        )


def _of(name: str, source: str) -> str:
    return f"The reward of objective {name!r}" + (f" ({source})" if source else "")


def _numbers(name: str, values: Any, responses: Sequence[str], source: str = "") -> np.ndarray:
    """float32 [R], perhaps not finite; errors as of `check`."""
    kind, needed = (
        type(values).__name__,
        f"it must return one number for each of the {len(responses)} responses, in order",
    )
    if values is None or isinstance(values, str | bytes | Mapping | set | frozenset):
        raise ValueError(
            f"{_of(name, source)} returned {kind} {str(values)[:80]}, not a sequence of numbers: {needed}."
        )
    if not isinstance(values, list | tuple):
        try:
            if isinstance(values, np.ma.MaskedArray):  # what is masked is no number
                values = values.astype(np.float64).filled(np.nan)
            values = np.asarray(values)  # NumPy's, JAX's and torch's arrays, a number alone
        except (TypeError, ValueError, RuntimeError) as error:
            raise ValueError(
                f"{_of(name, source)} returned {kind}, not a sequence of numbers ({error}): {needed}."
            ) from None
        if values.dtype.kind not in "biuf" and values.dtype.name != "bfloat16":
            raise ValueError(
                f"{_of(name, source)} returned {kind} of {values.dtype}, not a sequence of numbers: {needed}."
            )
        shape = values.shape
    else:
        shape = (len(values), *{np.shape(value) for value in values if _is_sized(value)})
        shape = (len(values), *shape[1]) if len(shape) == 2 else (len(values),)
    if shape != (len(responses),):
        raise ValueError(
            f"{_of(name, source)} returned shape {list(shape)} for {len(responses)} responses; it must return one number for "
            f"each, shape [{len(responses)}]."
        )
    if isinstance(values, np.ndarray):
        return values.astype(np.float32)
    for row, value in enumerate(values):
        if not _is_number(value):
            raise ValueError(
                f"{_of(name, source)} did not return a sequence of numbers: row {row} is {value!r}, a "
                f"{type(value).__name__}, for {responses[row][:80]!r}; {needed}."
            )
    with np.errstate(over="ignore"):  # what float32 cannot hold is found as infinite
        return np.array([_float(value) for value in values], np.float64).astype(np.float32)


def _is_number(value: Any) -> bool:
    """Whether a value is one real number: Python's, or a scalar of NumPy, JAX or torch; NumPy's texts and dates are none."""
    dtype = getattr(value, "dtype", None)
    if dtype is None or np.ndim(value):
        return isinstance(value, numbers.Real)
    if not hasattr(dtype, "kind"):  # torch's
        return not getattr(dtype, "is_complex", False)
    return dtype.kind in "biuf" or dtype.name == "bfloat16"


def _float(value: Any) -> float:
    try:
        return float(value)
    except OverflowError:  # an integer of hundreds of digits
        return np.inf


def _is_sized(value: Any) -> bool:
    """Whether a value is an array or a sequence of some length, all of whose shapes are known."""
    try:
        return not isinstance(value, str | bytes | Mapping) and np.ndim(value) > 0
    except (TypeError, ValueError):
        return False


def _column(name: str, reward: TextReward, prompts: Sequence[str], responses: Sequence[str]) -> np.ndarray:
    """A text reward's scores [R], the same and checked on every process."""
    source = getattr(reward, "source", "")
    if isinstance(reward, ModelReward):
        scores = reward(prompts, responses)
    else:
        scores = distributed.in_shares(lambda p, r: _numbers(name, reward(p, r), r, source), prompts, responses)
    return check(name, scores, responses, source)


class TextScorer(NamedTuple):
    """The part of scoring on the host.

    Attributes:
      objectives: K names.
      rewards: K text rewards, None if the device computes the objective.
      texts: the prompt's text by its id, for training batches.
      show: token ids of a response to its text.
      functions: `Task.token_functions`, for messages.
      charged: `Task.charged`.
    """

    objectives: tuple[str, ...]
    rewards: tuple[TextReward | None, ...]
    texts: dict[int, str]
    show: Callable[[np.ndarray], str]
    functions: tuple[str, ...] = ()
    charged: bool = False

    def complete(
        self, prompts: Sequence[str], tokens: np.ndarray, mask: np.ndarray, device: np.ndarray
    ) -> tuple[np.ndarray, dict[str, float]]:
        """Adds the columns of the text rewards.

        Args:
          prompts: B texts.
          tokens, mask: responses [B, N, T].
          device: rewards [B, N, number of None in `rewards`] that the device computed, in the objectives' order; where
            `charged`, one more, which is taken from the others.

        Returns:
          Raw rewards [B, N, K] float32; and metrics: seconds, and the share of rows with a cached score (0 without models).

        Raises:
          ValueError, FloatingPointError: what a reward returned is of a wrong shape or not finite; names the objective.
        """
        began, before = time.perf_counter(), _scored(self.rewards)
        lead = tokens.shape[:2]
        repeated = [text for text in prompts for _ in range(lead[1])]
        rows = zip(tokens.reshape(-1, tokens.shape[-1]), mask.reshape(-1, mask.shape[-1]), strict=True)
        responses = [self.show(row[real]) for row, real in rows]
        taken, device = (device[..., -1], device[..., :-1]) if self.charged else (0.0, device)
        columns, on_device = [], iter(np.moveaxis(device, -1, 0))
        sources = self.functions or ("",) * len(self.rewards)
        for name, reward, source in zip(self.objectives, self.rewards, sources, strict=True):
            if reward is None:
                columns.append(next(on_device))
                need_finite(name, columns[-1].ravel(), responses, source)
            else:
                columns.append(_column(name, reward, repeated, responses).reshape(lead) - taken)
        models = sum(isinstance(reward, ModelReward) for reward in self.rewards)
        requested = models * len(responses)
        known = 1 - (_scored(self.rewards) - before) / requested if requested else 0.0
        cost = {"time/text_rewards": time.perf_counter() - began, "score/known": known}
        return np.stack(columns, axis=-1).astype(np.float32), cost


def _scored(rewards: Sequence[TextReward | None]) -> int:
    return sum(reward.scored for reward in rewards if isinstance(reward, ModelReward))
