"""Trains reward heads on pairs of answers.

    python -m meal_jax.reward_training.heads --config=configs/reward_small.py

It reads the pairs of each objective and runs every answer through the frozen decoder once. It fits one Bradley–Terry head
per objective, tests it on held-out conversations, and writes the heads and a card.

Letters: M pairs, K objectives, S prompt tokens, T response tokens, D width, F features of a response.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import time
from collections import Counter
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from meal_jax.data import chat as chats
from meal_jax.data import templates
from meal_jax.hf import pretrained
from meal_jax.models.policy import Conditioning, Policy
from meal_jax.reward_training import feature_cache, pairs
from meal_jax.reward_training.bradley_terry import accuracy, fit
from meal_jax.reward_training.card import machine
from meal_jax.rewards import linear_heads
from meal_jax.runtime import distributed, identity
from meal_jax.runtime.metrics import progress
from meal_jax.tasks.language import need_weights

HARMLESS = ("out", "cache", "batch_size", "command")  # fields that may differ from finished heads': names, and layout
BUCKET = 16  # prompts are padded to a multiple of this, so that few shapes are compiled


class Encoded(NamedTuple):
    """One pair in token ids, cut to the lengths of the config.

    Attributes:
      objective: index.
      held_out: no head is fitted on the pair.
      group: hash of the first human turn or of the post's id; a fold of the cross-validation holds whole groups.
      prompt: ids.
      responses: ids of (chosen, rejected).
      kind: of pairs within the objective, see `pairs.Pair`.
    """

    objective: int
    held_out: bool
    group: int
    prompt: list[int]
    responses: tuple[list[int], list[int]]
    kind: str = ""


class Features(NamedTuple):
    """Pairs as the heads see them: x [M, 2, F] of (chosen, rejected), objective [M], fitted [M] bool, group [M]."""

    x: np.ndarray
    objective: np.ndarray
    fitted: np.ndarray
    group: np.ndarray


def read_encoded(config, chat: chats.Chat) -> tuple[list[Encoded], dict[str, str], str]:
    """Reads and tokenises the pairs of every objective.

    Pairs are divided before any is left out, those of all objectives together: no head is fitted on a prompt that another is
    tested on. Of more than `config.data.pairs` the first that fit are taken, of the fitted and of the held-out ones in
    proportion.

    Returns:
      Pairs; per objective a sentence on what they are and what was left out; and what decided which are held out.

    Raises:
      FileNotFoundError, ValueError: as `pairs.read_objective_pairs`; or an objective has too few pairs left (`need_enough`).
    """
    out, counts = [], {}
    sets = [pairs.read_objective_pairs(source, config.data) for source in config.objectives.values()]
    every = [pair for pair_set in sets for pair in pair_set.pairs]
    sides = iter(pairs.sides(every))
    for k, ((name, source), pair_set) in enumerate(zip(config.objectives.items(), sets, strict=True)):
        held = list(itertools.islice(sides, len(pair_set.pairs)))
        room = dict(
            zip((False, True), pairs.quotas(held.count(False), held.count(True), config.data.pairs), strict=True)
        )
        left_out, before = Counter(pair_set.left_out), len(out)
        for pair, is_held in zip(pair_set.pairs, held, strict=True):
            if is_held is None:
                left_out["of a prompt that is also held out"] += 1
                continue
            if not room[is_held]:
                continue
            prompt = chats.prompt_ids(chat, pair.prompt) + chats.tail_ids(chat)
            responses = tuple(
                chats.response_ids(chat, text, config.data.max_new) for text in (pair.chosen, pair.rejected)
            )
            if len(prompt) > config.data.prompt_length:
                left_out[f"a prompt over {config.data.prompt_length} tokens"] += 1
            elif responses[0] == responses[1]:
                left_out["the same answer twice when cut"] += 1
            else:
                group = int(hashlib.sha256(pair.group.casefold().encode()).hexdigest()[:15], 16)
                out.append(Encoded(k, is_held, group, prompt, responses, pair.kind))
                room[is_held] -= 1
        reasons = ", ".join(f"{count} {reason}" for reason, count in left_out.items()) or "none"
        counts[name] = f"{len(out) - before} pairs of {pairs.name_of(source)}; left out: {reasons}."
        if len(out) == before:
            raise ValueError(
                f"Objective {name} ({source}) has no pair whose prompt fits config.data.prompt_length="
                f"{config.data.prompt_length} tokens: {counts[name]}"
            )
    objective, fitted = np.array([row.objective for row in out]), np.array([not row.held_out for row in out])
    need_enough(tuple(config.objectives), objective, fitted, config.folds, " ".join(counts.values()))
    by_hash = "every pair whose first human turn (for posts: whose id) falls into the splits `policy` and `eval` of "
    return out, counts, pairs.decided(every, by_hash + "`meal_jax/data/chat.py`")


def need_enough(
    objectives: tuple[str, ...], objective: np.ndarray, fitted: np.ndarray, folds: int, what: str = ""
) -> None:
    """Refuses pairs that are too few to fit a head of each objective or to test it.

    Args:
      objectives: names.
      objective, fitted: index of each pair's objective, and whether it is fitted, [M].
      folds: of the cross-validation.
      what: the pairs are, and what was left out, for the message.

    Raises:
      ValueError: names the objective and counts its pairs.
    """
    for k, name in enumerate(objectives):
        inside, outside = int((fitted & (objective == k)).sum()), int((~fitted & (objective == k)).sum())
        if inside < 2 * folds or not outside:
            raise ValueError(
                f"Objective {name} has {inside} pairs to fit and {outside} to test on; it needs at least {2 * folds} and 1. "
                "Give more pairs. Where a row or a file's name says test or validation, those are tested on and the rows of "
                "train fitted; else a hash of the prompt divides all. config.data.pairs and prompt_length leave pairs out."
                + (f" ({what})" if what else "")
            )


def extract(policy: Policy, params, rows: list[Encoded], *, max_new: int, batch_size: int, pad: int) -> np.ndarray:
    """Features [M, 2, 2 D] ("last+mean") of the pairs' answers, in the rows' order."""

    @jax.jit
    def run(params, tokens, mask, responses, response_mask):
        variables = {"params": {"transformer": params}}
        prompt = policy.apply(variables, tokens, mask, method="prefill")
        responses = jnp.pad(responses, ((0, 0), (0, 0), (0, 1)))  # one more: also the state after the last token
        unused = jnp.zeros((*responses.shape[:2], policy.conditioning.objectives))
        hidden = policy.apply(variables, prompt, unused, responses, method="respond")
        return linear_heads.features_of(hidden, response_mask, "last+mean")

    buckets: dict[int, list[int]] = {}
    for i, row in enumerate(rows):
        buckets.setdefault(-(-len(row.prompt) // BUCKET) * BUCKET, []).append(i)
    out = np.empty((len(rows), 2, 2 * policy.config.width), np.float32)
    done = 0
    with progress(len(rows), start=0, description="pairs read", unit="pair") as bar:
        for length, members in sorted(buckets.items()):
            for start in range(0, len(members), batch_size):
                batch = members[start : start + batch_size]
                # One shape per bucket
                filled = [rows[i] for i in batch] + [rows[batch[-1]]] * (batch_size - len(batch))
                prompts = chats.pad_left([row.prompt for row in filled], length, pad)
                responses = np.full((batch_size, 2, max_new), pad, np.int32)
                mask = np.zeros(responses.shape, bool)
                for b, row in enumerate(filled):
                    for n, ids in enumerate(row.responses):
                        responses[b, n, : len(ids)] = ids
                        mask[b, n, : len(ids)] = True
                out[batch] = np.asarray(run(params, prompts.tokens, prompts.mask, responses, mask))[: len(batch)]
                done += len(batch)
                bar.update(done)
    return out


def choose_l2(d: np.ndarray, group: np.ndarray, grid: tuple[float, ...], folds: int) -> tuple[float, list[float]]:
    """The l2 of the grid with the smallest mean negative log-likelihood over folds that keep groups together.

    Returns:
      That l2, and the figure of every l2.
    """
    fold = group % folds
    figures = []
    for l2 in grid:
        total = 0.0
        for f in range(folds):
            inside = fold == f
            if inside.any() and not inside.all():
                total += np.logaddexp(0.0, -d[inside] @ fit(d[~inside], l2)).sum()
        figures.append(float(total / len(d)))
    return grid[int(np.argmin(figures))], figures


class Report(NamedTuple):
    """A head on pairs it was not fitted on, and how it was fitted.

    Attributes:
      fitted, tested: numbers of pairs.
      l2: the chosen penalty.
      accuracy: share of pairs in the right order, a tie counting half.
      interval: its 95 % interval.
      nll: mean negative log-likelihood; 0.693 is that of a coin.
      confidence: mean probability given to the order the head prefers; equal to accuracy where calibrated.
    """

    fitted: int
    tested: int
    l2: float
    accuracy: float
    interval: tuple[float, float]
    nll: float
    confidence: float


def fit_heads(
    features: Features, objectives: tuple[str, ...], grid: tuple[float, ...], folds: int
) -> tuple[dict[str, np.ndarray], dict[str, Report], float]:
    """Fits and tests one head per objective.

    Returns:
      {"w": [K, F], "b": [K], "temperature": [K]} as in `Heads`, one Report per objective, and the mean correlation
      of different heads' scores over the held-out answers (nan for one head).

    Raises:
      ValueError: an objective has too few pairs to fit or to test on.
    """
    need_enough(objectives, features.objective, features.fitted, folds)
    x = features.x.astype(np.float64)
    train = x[features.fitted].reshape(-1, x.shape[-1])
    scale = np.maximum(train.std(axis=0), 1e-6)  # so that l2 weighs all features alike; hidden states have outliers
    held = x[~features.fitted].reshape(-1, x.shape[-1])
    w, b, temperature, reports, scores = [], [], [], {}, []
    for k, name in enumerate(objectives):
        of_objective = features.objective == k
        d = (x[:, 0] - x[:, 1]) / scale
        inside, outside = of_objective & features.fitted, of_objective & ~features.fitted
        l2, _ = choose_l2(d[inside], features.group[inside], grid, folds)
        v = fit(d[inside], l2)
        margin = d[outside] @ v
        share, interval = accuracy(margin)
        reports[name] = Report(
            fitted=int(inside.sum()),
            tested=int(outside.sum()),
            l2=l2,
            accuracy=share,
            interval=interval,
            nll=float(np.mean(np.logaddexp(0.0, -margin))),
            confidence=float(np.mean(1 / (1 + np.exp(-np.abs(margin))))),
        )
        score = held @ (v / scale)
        mean, std = score.mean(), max(score.std(), 1e-12)
        w.append(v / scale / std)
        b.append(-mean / std)
        temperature.append(std)
        scores.append((score - mean) / std)
    correlation = np.corrcoef(scores)[np.triu_indices(len(scores), 1)].mean() if len(scores) > 1 else float("nan")
    params = {"w": np.stack(w), "b": np.array(b), "temperature": np.array(temperature)}
    return {name: value.astype(np.float32) for name, value in params.items()}, reports, float(correlation)


def select_features(features: Features, kind: str) -> Features:
    """The part of the features "last+mean" that `kind` names."""
    width = features.x.shape[-1] // 2
    part = {"last": slice(width), "mean": slice(width, None), "last+mean": slice(None)}[kind]
    return features._replace(x=features.x[..., part])


def by_kind(features: Features, heads: dict[str, np.ndarray], kinds: np.ndarray) -> dict[str, tuple[float, int]]:
    """Share in the right order, and number, of the held-out pairs of each kind [M] that has a name."""
    scores = np.take_along_axis(features.x @ heads["w"].T, features.objective[:, None, None], axis=2)[..., 0]
    margin, out = scores[:, 0] - scores[:, 1], {}
    for kind in sorted({*kinds} - {""}):
        held = margin[(kinds == kind) & ~features.fitted]
        if len(held):
            out[kind] = accuracy(held)[0], len(held)
    return out


def render_card(
    config, heads: linear_heads.Heads, reports: dict[str, Report], counts: dict[str, str], correlation
) -> str:
    """The card of the heads in Markdown."""
    facts = heads.facts
    lines = [
        f"# Reward heads: {', '.join(heads.objectives)}",
        "",
        f"Linear Bradley–Terry heads on the frozen hidden states of {heads.base_name}, made by",
        f"`{facts['command']}` in {facts['seconds'] / 60:.0f} minutes ({facts['machine']}).",
        "",
        "| objective | pairs fitted | pairs held out | held-out accuracy | 95 % interval | negative log-likelihood (a "
        "coin's: 0.693) | mean confidence |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, r in reports.items():
        low, high = r.interval
        lines.append(
            f"| {name} | {r.fitted} | {r.tested} | {r.accuracy:.3f} | {low:.3f} … {high:.3f} | {r.nll:.3f} | "
            f"{r.confidence:.3f} |"
        )
    lines += [
        "",
        f"- Data: {config.data.name}; licence: {config.data.licence}. "
        + " ".join(f"{name}: {count}" for name, count in counts.items()),
        f"- Answers are cut to {config.data.max_new} tokens, the policy's maximum, for fitting and for testing. "
        "A cut answer has no end token, and the head judges only the part that it sees.",
        f"- Held out: {facts['held_out']}; no head was fitted on a prompt that is held out. l2: "
        + ", ".join(f"{name} {r.l2:g}" for name, r in reports.items())
        + f", by cross-validation in {config.folds} folds on the fitted pairs.",
        f"- A head reads {heads.features} ({heads.w.shape[1]} features) of the format [{heads.format}].",
        "- Scores have mean 0 and standard deviation 1 over all held-out answers. Difference of scores × temperature = "
        "log-odds: "
        + ", ".join(f"{n} {t:.2f}" for n, t in zip(heads.objectives, heads.temperature, strict=True))
        + ".",
        f"- Correlation of the heads over held-out answers: {correlation:.2f}.",
        *(
            f"- {share:.3f} of {number} held-out {kind} pairs are in the right order."
            for kind, (share, number) in facts["kinds"].items()
        ),
        "",
        f"Limits. {config.data.limits} A policy that is trained long against a linear head learns to exploit the head's "
        "mistakes: read its answers.",
        "",
    ]
    return "\n".join(lines)


def run(config: ml_collections.ConfigDict) -> tuple[linear_heads.Heads, dict[str, Report]]:
    """The whole command; writes config.out (.safetensors), and its card (.md) in the same directory."""
    distributed.refuse_several("python -m meal_jax.reward_training.heads")
    if config.features not in linear_heads.FEATURES:
        raise ValueError(f"config.features={config.features!r} is not one of {', '.join(linear_heads.FEATURES)}.")
    if config.folds < 2:
        raise ValueError(f"config.folds={config.folds} must be at least 2: one is left out at a time.")
    out = Path(config.out).expanduser()
    if (result := finished(config)) is not None:
        print(f"{out} holds the heads of this configuration already; remove it to fit them again.")
        return result
    with identity.hold(out.parent, f".{out.name}{identity.LOCK}"):
        return _run(config, out)


def finished(config: ml_collections.ConfigDict) -> tuple[linear_heads.Heads, dict[str, Report]] | None:
    """The heads in config.out and their reports if this configuration has already made them; None if there is no file.

    Raises:
      ValueError: config.out holds heads of another configuration, whose fields it names; or no heads.
    """
    out = Path(config.out).expanduser()
    if not out.exists():
        return None
    heads = linear_heads.load(out)
    if "config" not in heads.facts:
        raise ValueError(
            f"config.out={config.out} holds heads that do not say which configuration made them. Name another file, or "
            "remove this one."
        )
    identity.need_same(out, heads.facts["config"], json.loads(config.to_json_best_effort()), HARMLESS)
    reports = {
        name: report | {"interval": tuple(report["interval"])} for name, report in heads.facts["reports"].items()
    }
    return heads, {name: Report(**report) for name, report in reports.items()}


def _run(config: ml_collections.ConfigDict, out: Path) -> tuple[linear_heads.Heads, dict[str, Report]]:
    start = time.monotonic()
    objectives = tuple(config.objectives)
    need_weights(config.source)
    tokenizer, d = pretrained.load_tokenizer(config.source), config.data
    options = d.get("template_options", ())
    chat = templates.make_chat(
        tokenizer, d.get("template", "chat"), d.get("task", "assistant"), d.system, options=options
    )
    rows, counts, held_out = read_encoded(config, chat)
    for name, count in counts.items():
        print(f"{name}: {count}")
    transformer = pretrained.load_config(config.source)
    texts = ([*row.prompt, *answer] for row in rows for answer in row.responses)
    chats.need_known(chat, transformer.vocab_size, texts, "A pair's text, in row")
    params = pretrained.load_params(config.source, transformer)
    policy = Policy(transformer, Conditioning(kind="none", objectives=len(objectives)))
    base = linear_heads.fingerprint(params)
    key = feature_cache.cache_key(rows, base, config.data.max_new)
    x, earlier = feature_cache.read_cache(config.cache, key)
    if x is None:
        began = time.monotonic()
        x = extract(policy, params, rows, max_new=config.data.max_new, batch_size=config.batch_size, pad=chat.pad)
        if config.cache:
            feature_cache.write_cache(config.cache, key, x, time.monotonic() - began)
    features = Features(
        x,
        np.array([row.objective for row in rows]),
        np.array([not row.held_out for row in rows]),
        np.array([row.group for row in rows]),
    )
    features = select_features(features, config.features)
    fitted, reports, correlation = fit_heads(features, objectives, tuple(config.l2), config.folds)
    facts = {
        "command": config.command,
        "config": json.loads(config.to_json_best_effort()),
        "data": config.data.name,
        "max_new": config.data.max_new,
        "prompt_length": config.data.prompt_length,
        "held_out": held_out,
        "reports": {name: report._asdict() for name, report in reports.items()},
        "kinds": by_kind(features, fitted, np.array([row.kind for row in rows])),
        "correlation": correlation,
        "seconds": round(earlier + time.monotonic() - start, 1),  # including the time that the cached features took
        "machine": machine(),
    }
    heads = linear_heads.Heads(
        **fitted,
        objectives=objectives,
        features=config.features,
        base=base,
        base_name=config.base_name or str(config.source),
        format=chats.describe(chat),
        facts=facts,
    )
    linear_heads.save(heads, out)
    out.with_suffix(".md").write_text(render_card(config, heads, reports, counts, correlation), encoding="utf-8")
    for name, r in reports.items():
        low, high = r.interval
        print(f"{name}: {r.accuracy:.3f} of {r.tested} held-out pairs in order (95 % {low:.3f} … {high:.3f}), "
              f"nll {r.nll:.3f}, confidence {r.confidence:.3f}, l2 {r.l2:g}, fitted on {r.fitted}")  # fmt: skip
    print(f"Wrote {config.out} and its card in {facts['seconds']:.0f} s.")
    return heads, reports
