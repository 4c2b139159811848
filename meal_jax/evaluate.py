"""A trained state and a grid of preferences → the points of its front, with intervals, and answers to read.

Letters: E test prompts, B prompts at a time, M preferences, K objectives, T response tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from meal_jax import fluency
from meal_jax.data import chat as chats
from meal_jax.data import templates
from meal_jax.data.prompts import Prompts
from meal_jax.meal.normalise import usable
from meal_jax.meal.step import Batch, Frozen, Setup, score
from meal_jax.methods import Cost, Method
from meal_jax.pareto import front
from meal_jax.rewards import copied, text
from meal_jax.rewards.text import TextScorer
from meal_jax.rollout.sampling import Sampling
from meal_jax.tasks.task import Task

PyTree = Any
BEGUN = 3  # bytes, and so at most tokens, that a character of UTF-8 may lack its end with


def grid(config) -> np.ndarray:
    """The preferences [M, K] that a run is evaluated at: `config.eval.grid`."""
    k = len(config.objectives)
    if config.eval.grid == "paper":
        return front.paper_grid_3() if k == 3 else front.grid(k, 10)
    return front.grid(k, config.eval.divisions)


class Answers(NamedTuple):
    """What a policy answered to every test prompt under every preference.

    Attributes:
      scores: [E, M, K] raw rewards (from the jitted `answer_fn`: the columns that the device computes).
      tokens, mask: [E, M, T] responses.
      ended: [E, M], the response reached its end token.
      proposals: [E, M, K], the preferences ŵ that the policy was conditioned on.
      log_likelihood: [E, M] of the answers under the frozen base, see `fluency`; None where there is none.
      copied: [E, M], tokens of the longest run that an answer shares with its prompt; None likewise.
    """

    scores: np.ndarray
    tokens: np.ndarray
    mask: np.ndarray
    ended: np.ndarray
    proposals: np.ndarray
    log_likelihood: np.ndarray | None = None
    copied: np.ndarray | None = None


def answer_fn(setup: Setup, method: Method, sampling: Sampling, fluently: bool = False) -> Callable:
    """The function to jit: (state, frozen, Batch [B], w [B, M, K], key) → Answers of the batch.

    With `fluently`, also how likely they are under the frozen base, where the run has one; that costs a pass of the base over
    the answers, unless scoring made it already. The grid's preferences take the place of training's candidates, so a prompt
    is prefilled once for all of them.
    """

    def answer(state: PyTree, frozen: Frozen, batch: Batch, w: jax.Array, key: jax.Array) -> Answers:
        rolled = method.answer(setup, state, frozen, batch, w, key, sampling)
        r = rolled.responses
        scores = score(setup, frozen, batch, r)
        likely = runs = None
        if fluently and setup.judge_of_fluency is not None:
            likely = fluency.log_likelihood(setup, frozen, batch, r, scores.reference)
            runs = copied.longest_run(r.tokens, r.mask, batch.tokens, batch.mask, setup.end)
        return Answers(scores.rewards, r.tokens, r.mask, r.ended, rolled.w_hat, likely, runs)

    return answer


def evaluate(
    answer: Callable,
    state: PyTree,
    frozen: Frozen,
    prompts: Prompts,
    preferences: np.ndarray,
    *,
    batch_size: int,
    seed: int,
    place: Callable[[Any], Any],
    scorer: TextScorer | None = None,
    tick: Callable[[int], None] = lambda prompts: None,
    stop: Callable[[], bool] = lambda: False,
) -> Answers | None:
    """Answers every prompt under every preference.

    Args:
      answer: `answer_fn`, jitted.
      state, frozen: the policy.
      prompts: E test prompts.
      preferences: [M, K].
      batch_size: B; the last batch is filled up with repeated prompts whose answers are dropped.
      seed: of the samples; the same for every method and step, so that comparisons are paired.
      place: puts a batch's arrays on the devices.
      scorer: computes the rewards that read text; None where the device has them all.
      tick: called with the number of prompts done, for progress.
      stop: asked after every batch whether to leave.

    Returns:
      Answers, NumPy; None if it was told to stop.
    """
    rows = len(prompts.id)
    out = []
    for start in range(0, rows, batch_size):
        index = np.arange(start, start + batch_size) % rows
        batch = Batch(*prompts.rows(index)[:3])
        w = np.broadcast_to(preferences.astype(np.float32), (batch_size, *preferences.shape))
        done = answer(state, frozen, *place((batch, w)), jax.random.key(seed))
        done = jax.tree.map(lambda a: a[: rows - start], jax.device_get(done))  # noqa: B023
        if scorer is not None:
            scores, _ = scorer.complete(prompts.rows(index[: rows - start]).text, done.tokens, done.mask, done.scores)
            done = done._replace(scores=scores)
        out.append(done)
        tick(min(start + batch_size, rows))
        if stop():
            return None
    return jax.tree.map(lambda *parts: np.concatenate(parts), *out)


def need_finite(answers: Answers, task: Task) -> None:
    """Raises FloatingPointError, with objective, function, row and value, where a score is not a finite number."""
    if np.all(usable(answers.scores)):
        return
    scores = answers.scores.reshape(-1, answers.scores.shape[-1])
    rows = zip(*(a.reshape(len(scores), -1) for a in (answers.tokens, answers.mask)), strict=True)
    responses = [task.show(row[real]) for row, real in rows]
    for k, objective in enumerate(task.objectives):
        text.need_finite(objective, scores[:, k], responses, task.token_functions[k] if task.token_functions else "")


def summarise(answers: Answers, preferences: np.ndarray, task: Task, bootstrap: int) -> dict[str, Any]:
    """The front of one evaluation as plain numbers.

    Returns:
      points [M, K] with points_low and points_high; every measure of `front.measures`, and how much has collapsed:
      "truncated", the share of responses that did not reach their end, and "repetitive", `repeats`' share; where the frozen
      base is at hand, "log_likelihood" under it and "copied", the mean of `rewards.copied.longest_run`. Each NAME has
      NAME_interval, [low, high], 95 % over the draw of prompts. "distinct_2" has none: repeated draws of a prompt would lower
      it. "fluency" has these measures for each preference, [M] (see `meal_jax.fluency`). Where the truth is known, also the
      share of the hypervolume that an exact maximiser of the same preferences has.
    """
    scores, reference, k = answers.scores.astype(np.float64), task.reference, answers.scores.shape[-1]
    flags = {"truncated": ~answers.ended, "repetitive": repeats(answers.tokens, answers.mask)}
    if answers.log_likelihood is not None:
        flags["log_likelihood"] = answers.log_likelihood
    if answers.copied is not None:
        flags["copied"] = answers.copied
    columns = np.stack([column.astype(np.float64) for column in flags.values()], axis=-1)  # [E, M, flags]

    def judge(mean: np.ndarray) -> dict[str, Any]:  # [M, K + flags]: a replicate's measures are of the same prompts
        points = mean[:, :k]
        measured = front.measures(points, preferences, reference)
        return {"points": points, **measured, **dict(zip(flags, mean[:, k:].mean(axis=0), strict=True))}

    estimates, low, high = front.bootstrap(np.concatenate([scores, columns], axis=-1), judge, bootstrap)
    by_preference = dict(zip(flags, columns.mean(axis=0).T.tolist(), strict=True))
    by_preference["distinct_2"] = fluency.distinct(answers.tokens, answers.mask).tolist()
    out = {
        "preferences": preferences.tolist(),
        "proposals": answers.proposals.mean(axis=0).astype(float).tolist(),
        "reference": reference.tolist(),
        "prompts": len(scores),
        "evaluation_set": task.evaluation_set,
        "points_low": low.pop("points").tolist(),
        "points_high": high.pop("points").tolist(),
        **{name: np.asarray(value).tolist() for name, value in estimates.items()},
        **{f"{name}_interval": [low[name].tolist(), high[name].tolist()] for name in low},
        "distinct_2": float(np.mean(by_preference["distinct_2"])),
        "fluency": by_preference,
    }
    if task.truth is not None:
        # As many points as the policy has, each the best there is for its preference: what a perfect policy would
        # score. The whole front holds more (a curve has more area under it than eleven of its points).
        exact = task.truth(preferences)
        out["exact_points"] = exact.tolist()
        out["true_hypervolume"] = front.hypervolume(exact, reference)
        if out["true_hypervolume"] > 0:  # the experts alone (eval.divisions=1) dominate nothing of a reference at 0
            share = np.array([out["hypervolume"], *out["hypervolume_interval"]]) / out["true_hypervolume"]
            out["share_of_true_hypervolume"], *out["share_of_true_hypervolume_interval"] = share.tolist()
        out["whole_front_hypervolume"] = front.hypervolume(true_front(task), reference)
    return out


def fix_reference(reference: np.ndarray, answers: Answers) -> np.ndarray:
    """The reference point [K] with its NaN replaced by a point behind all that these answers score.

    In each objective it is 3 standard deviations of a response's reward below their mean, and at least one below the worst
    preference's mean: a policy may lose that much of an objective that it gives up. A reward that never varies counts as
    one of deviation 1. So every point dominates it, and the hypervolume is above 0.

    Args:
      reference: [K], NaN where it is to be fixed.
      answers: of the first evaluation, scores [E, M, K].
    """
    scores = answers.scores.astype(np.float64)
    spread = scores.std(axis=(0, 1))
    spread = np.where(spread > 1e-9 * np.maximum(np.abs(scores).max(axis=(0, 1)), 1e-9), spread, 1.0)
    below = np.minimum(scores.mean(axis=(0, 1)) - 3 * spread, scores.mean(axis=0).min(axis=0) - spread)
    return np.where(np.isnan(reference), below, reference)


def repeats(tokens: np.ndarray, mask: np.ndarray, gram: int = 3) -> np.ndarray:
    """Which responses [..., T] are a collapsed policy's, [...] bool: more than half of their three-token runs occurred in
    them before."""

    def looped(row, real):
        grams = [tuple(row[i : i + gram]) for i in range(real - gram + 1)]
        return bool(grams) and len(set(grams)) < len(grams) / 2

    rows = zip(tokens.reshape(-1, tokens.shape[-1]), mask.sum(-1).ravel(), strict=True)
    return np.array([looped(row, real) for row, real in rows]).reshape(tokens.shape[:-1])


def budget(cost: Cost, config, lengths: dict[int, float], steps: int) -> dict[str, float]:
    """What a run spent in its first `steps` steps, and what its policy costs to use.

    Args:
      cost: of the method.
      config: of the run.
      lengths: step to its mean response length ("response/length"), for each step done.
      steps: as above.

    Returns:
      rollout_tokens (tokens sampled in training), reward_calls (responses × objectives), gradient_tokens (response tokens
      that went through a backward pass), updates (optimizer steps, of all that it trains), models (policies or
      adapters to keep), forwards_per_token (forward passes for each token of an answer).
    """
    answers = cost.answers * config.batch_size
    tokens = answers * sum(length for step, length in lengths.items() if step < steps)
    return {
        "rollout_tokens": round(tokens),
        "reward_calls": answers * steps * len(config.objectives),
        "gradient_tokens": round(tokens * cost.backward),
        "updates": cost.updates * (cost.models - cost.frozen) * steps,
        "models": cost.models,
        "forwards_per_token": cost.forwards,
    }


def true_front(task: Task) -> np.ndarray:
    """The exact front [points, K]: the best average rewards over a lattice of preferences fine enough to miss none."""
    k = len(task.objectives)
    points = task.truth(front.grid(k, {2: 4000, 3: 60, 4: 20}.get(k, 8)))
    return np.unique(points, axis=0)


def row(evaluation: Mapping[str, Any], objectives: Sequence[str]) -> dict[str, float]:
    """What metrics.jsonl has of an evaluation, of `summarise`'s result: measures of the front, and each objective's mean."""
    points, ordered = np.asarray(evaluation["points"]), evaluation["monotonicity"]
    out = {
        "eval/hypervolume": evaluation["hypervolume"],
        "eval/mean_inner_product": evaluation["mean_inner_product"],
        "eval/monotonicity": float(np.mean(ordered)),
    }
    for k, name in enumerate(objectives):
        out[f"eval/reward/{name}/mean"] = float(points[:, k].mean())
        out[f"eval/monotonicity/{name}"] = ordered[k]
    return out


def readable_prompt(task: Task, prompts: Prompts, row: int) -> str:
    """A prompt as a person wrote it, without the template's words for roles; tokens, where the benchmark has no texts."""
    if not prompts.text:
        return task.show(prompts.tokens[row][prompts.mask[row]])
    return chats.spoken(prompts.text[row])


def whole_answer(task: Task, tokens: np.ndarray, mask: np.ndarray, ended: bool) -> str:
    """All of a response [T] as text. One that was cut may end within a character, whose bytes no text can show: they are left
    out. Tokenizers that fall back to bytes mark whole characters before it too, and show them without its tokens."""
    ids = tokens[mask]
    text = task.show(ids)
    if ended or not text.endswith("\ufffd"):
        return text if ended else text.rstrip()
    shorter = (task.show(ids[: len(ids) - begun]) for begun in range(1, min(BEGUN + 1, len(ids))))
    return max((t.rstrip("\ufffd").rstrip() for t in (text, *shorter)), key=len)


def readable_answer(task: Task, tokens: np.ndarray, mask: np.ndarray, ended: bool) -> str:
    """A response [T] as its rewards, and people, read it: its text up to the first of `Task.stop`."""
    return cut_answer(task, whole_answer(task, tokens, mask, ended))


def cut_answer(task: Task, whole: str) -> str:
    """The part of `whole_answer` that rewards read."""
    return templates.cut(whole, task.stop) if task.stop else whole


def sample_answers(answers: Answers, preferences: np.ndarray, task: Task, prompts: int) -> list[dict[str, Any]]:
    """Readable answers of the first test prompts at every preference, with their rewards."""
    out = []
    for e in range(min(prompts, len(answers.scores))):
        samples = [
            {
                "preference": [round(float(v), 3) for v in preferences[m]],
                "response": readable_answer(task, answers.tokens[e, m], answers.mask[e, m], answers.ended[e, m]),
                "rewards": {
                    name: round(float(v), 3) for name, v in zip(task.objectives, answers.scores[e, m], strict=True)
                },
            }
            for m in range(len(preferences))
        ]
        out.append({"prompt": readable_prompt(task, task.test, e), "answers": samples})
    return out


def markdown(sample: Mapping[str, Any]) -> str:
    """One prompt of `sample_answers` with its answers as a Markdown table."""
    names = list(sample["answers"][0]["rewards"])
    lines = [f"| preference | answer | {' | '.join(names)} |", "|---" * (2 + len(names)) + "|"]
    for answer in sample["answers"]:
        weights = " ".join(f"{v:.2f}" for v in answer["preference"])
        scores = " | ".join(f"{answer['rewards'][name]:.2f}" for name in names)
        lines.append(f"| {weights} | {_cell(answer['response'])} | {scores} |")
    return f"**{_cell(sample['prompt'])}**\n\n" + "\n".join(lines)


def _cell(text: str) -> str:
    for mark, escaped in (("&", "&amp;"), ("<", "&lt;"), ("|", "&#124;"), ("*", "&#42;"), ("_", "&#95;")):
        text = text.replace(mark, escaped)
    return "<br>".join(text.split("\n"))
