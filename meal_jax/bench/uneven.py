"""Rollouts of responses of uneven length: with all rows kept, with ended rows compacted away, and by the peer.

Letters: B prompts, N candidates.
"""

from __future__ import annotations

import functools
import tempfile
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from meal_jax.bench import peer as peers
from meal_jax.bench import report, timing
from meal_jax.bench.phases import Side, open_bench
from meal_jax.meal.state import Setup
from meal_jax.models.lora import merge
from meal_jax.rollout.decode import Responses, decode, sample_keys
from meal_jax.rollout.weights import for_rollout
from meal_jax.saved_run import write_json

SHARES = (0.75, 0.5, 0.25)  # of `sampling.compact`, where the configuration gives none


def read_lengths(path: str | Path) -> np.ndarray:
    """Token counts from a file: one integer of at least 1 per line; lines that begin with # are comments.

    Raises:
      ValueError: names the line that is none.
    """
    counts = []
    for number, line in enumerate(Path(path).read_text().splitlines(), 1):
        text = line.strip()
        if not text or text.startswith("#"):
            continue
        if not text.isdecimal() or int(text) < 1:
            raise ValueError(f"{path}, line {number}: {text!r} is not a number of tokens, 1 or more.")
        counts.append(int(text))
    if not counts:
        raise ValueError(f"{path} has no token counts: give one per line.")
    return np.array(counts)


def roll(setup: Setup, state, frozen, batch, limits: jax.Array) -> Responses:
    """A rollout that no network conditions, of responses of at most limits [B, N] tokens. Jit this."""
    policy, params = for_rollout(setup.policy, merge(state.policy, frozen.policy), setup.rollout_weights)
    prompt = policy.apply({"params": params}, batch.tokens, batch.mask, method="prefill")
    k = len(setup.objectives)
    return decode(
        policy, params, prompt, jnp.full((*limits.shape, k), 1.0 / k), sample_keys(state.key, batch.id, limits.shape[1]),
        max_new=setup.max_new, sampling=setup.sampling, end=setup.end, pad=setup.pad, forbidden=setup.forbidden,
        limits=limits,
    )  # fmt: skip


def bench(
    config: ml_collections.ConfigDict,
    out: str,
    *,
    lengths: str,
    repeats: int = 5,
    vs: str = "",
    sampler: peers.Sampler = peers.PLAIN,
    random: bool = False,
) -> dict[str, Any]:
    """Measures rollouts whose responses end after lengths drawn from a file, other ones in each repeat, the sides in turn.

    Args:
      config: of the run; `config.sampling.compact`, or SHARES, is the compacted side's.
      out: directory of uneven.json.
      lengths: file for `read_lengths`; longer ones are cut at `config.sampling.max_new`.
      vs: "hf" for the peer.
      sampler: how that samples.

    Returns:
      The contents of uneven.json.

    Raises:
      ValueError: a side did not sample the given lengths; or as `open_bench`, `read_lengths`, `peer.need_peer`.
    """
    counts = read_lengths(lengths)
    if vs:
        peers.need_peer(config)
    opened = open_bench(config, random)
    with jax.set_mesh(opened.mesh), tempfile.TemporaryDirectory() as folder:
        sides = {"all rows": Side(opened, config.method, {"sampling.compact": ()})}
        plain = sides["all rows"]
        shares = tuple(config.sampling.compact) or SHARES
        sides["compacted"] = Side(opened, config.method, {"sampling.compact": shares}, share=plain)
        c = plain.config
        shape = (repeats + 1, c.batch_size, plain.method.cost(c).answers)
        limits = np.minimum(np.random.default_rng(c.seed).choice(counts, shape), c.sampling.max_new).astype(np.int32)
        programs = {name: jax.jit(functools.partial(roll, side.setup)) for name, side in sides.items()}
        arguments = (plain.state, plain.frozen, plain.batch)
        compile_s = {}
        for name, program in programs.items():
            lowered = program.lower(*arguments, limits[0])
            compile_s[name], programs[name] = timing.seconds(lowered.compile)
        seconds: dict[str, list[float]] = {name: [] for name in programs}
        equal = {"tokens": True, "logp": True}

        def own(name: str, stop: np.ndarray) -> tuple[float, int, Responses]:
            took, responses = timing.seconds(lambda: programs[name](*arguments, stop))
            return took, int(responses.mask.sum()), responses

        def measure(peer: peers.Peer | None) -> None:
            for repeat, stop in enumerate(limits):  # the first warms up
                responses = {}
                for name in list(seconds)[:: 1 if repeat % 2 else -1]:
                    if name == "hf":
                        answer = peer.ask("uneven", limits=stop.tolist())
                        took, tokens = answer["seconds"], answer["tokens"]
                    else:
                        took, tokens, responses[name] = own(name, stop)
                    if tokens != stop.sum():
                        raise ValueError(f"{name}: {tokens} tokens were sampled, not {stop.sum()}.")
                    if repeat:
                        seconds[name].append(took)
                for field in equal:
                    a, b = (np.asarray(getattr(responses[name], field)) for name in ("all rows", "compacted"))
                    equal[field] &= bool((a == b).all())

        if vs:
            seconds["hf"] = []
            with peers.start(opened, plain, Path(folder), sampler) as peer:
                measure(peer)
        else:
            measure(None)
    longest, total = limits[1:].max((1, 2)), limits[1:].sum((1, 2))
    results = {
        "machine": report.machine(), "config": c.to_dict(), "shares": shares, "bit_equal": equal, "compile_s": compile_s,
        "longest": longest.tolist(), "tokens": total.tolist(),
        "live": float(np.sum(total) / np.sum(longest * limits[0].size)),
        "seconds": {name: timing.spread(samples) for name, samples in seconds.items()},
        "ratios": {
            name: timing.ratio(samples, seconds["compacted"]) for name, samples in seconds.items() if name != "compacted"
        },
    }  # fmt: skip
    write_json(Path(out) / "uneven.json", results)
    _show(results)
    print(f"wrote {Path(out) / 'uneven.json'}")
    return results


def _show(results: dict[str, Any]) -> None:
    print(f"{results['live']:.0%} of the tokens up to the longest response's end are of live rows")
    for name, s in results["seconds"].items():
        compiled = f", compiled in {results['compile_s'][name]:.1f} s" if name in results["compile_s"] else ""
        print(f"{name:10} {s['median']:.3g} s (quartiles {s['q1']:.3g}–{s['q3']:.3g}){compiled}")
    for name, r in results["ratios"].items():
        p = r["of_pairs"]
        print(
            f"{name} / compacted: {r['of_medians']:.2f} of medians; pairs {p['median']:.2f} ({p['q1']:.2f}–{p['q3']:.2f})"
        )
    words = ", ".join(
        f"{name} {'bit-equal' if same else 'NOT bit-equal'}" for name, same in results["bit_equal"].items()
    )
    print(f"all rows and compacted: {words}")
