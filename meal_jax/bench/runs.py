"""The measurements: phases (alone or against the peer), the cost of the second level, growth with a size."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import ml_collections
import numpy as np

from meal_jax.bench import peer as peers
from meal_jax.bench import report, timing
from meal_jax.bench.phases import PHASES, Opened, Side, measure, open_bench, round_of
from meal_jax.saved_run import write_json

# Compared with static targets, which make as many policy updates from the same rollouts.
LEVELS = {
    "none": {"meal.hypergradient": "none", "meal.reuse_virtual": False},
    "none, reuse": {"meal.hypergradient": "none", "meal.reuse_virtual": True},
    "first_order": {"meal.hypergradient": "first_order", "meal.reuse_virtual": False},
    "first_order, reuse": {"meal.hypergradient": "first_order", "meal.reuse_virtual": True},
    "exact": {"meal.hypergradient": "exact", "meal.reuse_virtual": False},
    "exact, reuse": {"meal.hypergradient": "exact", "meal.reuse_virtual": True},
    "half, reuse": {"meal.hypergradient": "exact", "meal.reuse_virtual": True, "meal.meta_fraction": 0.5},
    "quarter, reuse": {"meal.hypergradient": "exact", "meal.reuse_virtual": True, "meal.meta_fraction": 0.25},
}
SWEEPS = {
    "batch": ("batch_size", (2, 4, 8, 16), "prompts per step (B)"),
    "candidates": ("meal.candidates", (1, 2, 4, 8), "candidates per prompt (N)"),
    "length": ("sampling.max_new", (16, 32, 64, 128), "response tokens (T)"),
    "objectives": ("objectives", (2, 3, 5, 8), "objectives (K)"),
}


def bench(
    config: ml_collections.ConfigDict,
    out: str,
    *,
    phases: Sequence[str] = PHASES,
    repeats: int = 10,
    vs: str = "",
    sampler: peers.Sampler = peers.PLAIN,
    random: bool = False,
    loop: int = 3,
) -> dict[str, Any]:
    """Measures the phases of `config.method`, with `vs` in alternation with the peer; writes and shows the results.

    With a peer, static targets are measured too: their update is the same as the peer's, two policy updates.

    Args:
      sampler: how the peer samples.
      loop: number of steps of the short training loop; 0 for none.

    Returns:
      The contents of bench.json.

    Raises:
      ValueError: an unknown phase; or as `open_bench`, `peer.need_peer`, `peer.check`.
    """
    _need_phases(phases)
    if vs:
        peers.need_peer(config)
    opened, results = _open(config, random)
    out = Path(out)
    with jax.set_mesh(opened.mesh):
        sides = {config.method: Side(opened, config.method)}
        side = sides[config.method]
        if vs and config.method != "static":
            sides["static"] = Side(opened, "static", share=side)
        side.compile(phases)
        rounds = {config.method: round_of(side, phases)}
        for name, other in list(sides.items())[1:]:
            # Its rollout and score differ from the first side's only in the weight-net, so it reuses their results.
            other.rolled, other.scores = side.rolled, side.scores
            measured = [phase for phase in phases if phase in ("update", "step")]
            for phase in measured:
                other.compile_one(phase)
            rounds[name] = round_of(other, measured)
        if vs:
            seconds, results["peer"] = _measure_with_peer(opened, side, rounds, repeats, sampler)
        else:
            seconds = measure(rounds, repeats)
        results |= _rows(sides, seconds, results["ceilings"])
        if "rollout" in side.programs and side.sampled() != side.tokens:
            raise ValueError(
                f"{side.sampled()} tokens were sampled instead of {side.tokens}: the measurement is wrong."
            )
        if vs:
            results["ratios"] = _against_peer(seconds, config.method)
        if loop and "step" in phases:
            results["loop"] = _loop(side, loop, np.median([r["step"] for r in seconds[config.method]]))
    peak, owner = timing.peak_memory()
    results["peak_memory"] = {"bytes": peak, "of": owner}
    stacks = {_label(row["side"]): {} for row in results["rows"]}
    for row in results["rows"]:
        if row["phase"] != "step":
            stacks[_label(row["side"])][row["phase"]] = row["seconds"]["median"]
    if vs and {"rollout", "score"} <= set(phases):
        stacks |= {
            "static": {p: stacks[_label(config.method)][p] for p in ("rollout", "score")} | stacks.get("static", {})
        }
    stacks = {name: pieces for name, pieces in stacks.items() if pieces}
    return _finish(results, out, "bench.json", stacks)


def bilevel(config: ml_collections.ConfigDict, out: str, *, repeats: int = 10, random: bool = False) -> dict[str, Any]:
    """Measures the update of each hypergradient against that of static targets, on the same rollouts.

    Rollout and score are common to all and measured once per round; a step is their sum with an update.

    Returns:
      The contents of bilevel.json; `ratios` are of steps and of updates over those of static targets.
    """
    opened, results = _open(config, random)
    with jax.set_mesh(opened.mesh):
        static = Side(opened, "static")
        static.compile(["rollout", "score", "update"])
        sides = {"static": static}
        for name, changes in LEVELS.items():
            taken = changes.get("meal.meta_fraction", 1.0) * (config.batch_size // 2)
            if taken != round(taken):  # too few prompts for so small a part
                continue
            side = sides[name] = Side(opened, "meal", changes, share=static)
            # The rollout differs only in the weight-net, so its programs are not compiled for every variant.
            side.rolled, side.scores = static.rolled, static.scores
            side.compile_one("update")
        first = {"common": round_of(static, ["rollout", "score"])}
        seconds = measure(first | {name: round_of(side, ["update"]) for name, side in sides.items()}, repeats)
        common = seconds.pop("common")
        results |= _rows(sides, seconds, results["ceilings"])
    update = {name: np.array([r["update"] for r in rows]) for name, rows in seconds.items()}
    before = np.array([sum(r.values()) for r in common])
    results["common_s"] = timing.spread(before)
    results["ratios"] = {
        "step over a plain step": {n: timing.ratio(before + u, before + update["static"]) for n, u in update.items()},
        "update over a plain update": {n: timing.ratio(u, update["static"]) for n, u in update.items()},
    }
    shared = {p: float(np.median([r[p] for r in common])) for p in ("rollout", "score")}
    stacks = {name: shared | {"update": float(np.median(u))} for name, u in update.items()}
    return _finish(results, Path(out), "bilevel.json", stacks)


def sweep(
    config: ml_collections.ConfigDict,
    out: str,
    *,
    over: str,
    values: Sequence[int] = (),
    phases: Sequence[str] = PHASES,
    repeats: int = 5,
    random: bool = False,
) -> dict[str, Any]:
    """Measures the phases at several values of one size, and draws how they grow.

    Steps are not measured, since they are the sum of the phases.

    Returns:
      The contents of sweep_OVER.json.

    Raises:
      ValueError: an unknown phase; or as `open_bench`.
    """
    field, chosen, label = SWEEPS[over]
    _need_phases(phases)
    phases = [p for p in PHASES[:3] if p in phases] or list(PHASES[:3])
    values = sorted(values or chosen)
    results = {"machine": report.machine()}
    rows = []
    for value in values:
        changed = config.copy_and_resolve_references()
        names = tuple(f"objective{k}" for k in range(value))
        # Nothing is evaluated, and many objectives' default lattice is refused.
        changed.update_from_flattened_dict({field: names if over == "objectives" else value, "eval.divisions": 1})
        opened = open_bench(changed, random)
        if not rows:
            results["ceilings"] = timing.ceilings(changed.policy.dtype)._asdict()
        with jax.set_mesh(opened.mesh):
            side = Side(opened, changed.method)
            side.compile(phases)
            seconds = measure({changed.method: round_of(side, phases)}, repeats)
            rows += [row | {over: value} for row in _rows({changed.method: side}, seconds, results["ceilings"])["rows"]]
        for row in rows[-len(phases) :]:
            share = f", {row['roofline']:.1%} of the roofline, MFU {row['mfu']:.1%}" if "mfu" in row else ""
            rates = f"{row['seconds']['median']:.3g} s, {row['tokens_per_s']:.4g} tokens/s"
            print(f"{over} {value}  {row['phase']:8} {rates}{share}", flush=True)
        del side, opened  # the weights of both may not fit in memory
    curves = {p: [row["seconds"] for row in rows if row["phase"] == p] for p in phases}
    results |= {"over": over, "values": list(values), "rows": rows}
    out = Path(out)
    write_json(out / f"sweep_{over}.json", results)
    report.draw_growth(out / f"sweep_{over}.png", label, values, curves, _work(config, over))
    print(f"wrote {out / f'sweep_{over}.json'} and .png")
    return results


def _need_phases(phases: Sequence[str]) -> None:
    if not phases or not set(phases) <= set(PHASES):
        raise ValueError(f"--phases={','.join(phases)}: phases are {', '.join(PHASES)}.")


def _open(config, random: bool) -> tuple[Opened, dict[str, Any]]:
    opened = open_bench(config, random)
    results = {"machine": report.machine(), "ceilings": timing.ceilings(config.policy.dtype)._asdict()}
    return opened, results | {"work": _work(opened.config), "config": opened.config.to_dict()}


def _work(c, over: str = "") -> str:
    """The work in one line; a size that a sweep varies is given by its letter."""
    sizes = {"batch": c.batch_size, "candidates": c.meal.candidates, "length": c.sampling.max_new}
    sizes |= {name: letter for name, letter in (("batch", "B"), ("candidates", "N"), ("length", "T")) if name == over}
    return (
        f"{c.policy.source or 'own sizes'}, {sizes['batch']} × {sizes['candidates']} sequences × ({c.data.prompt_length} + "
        f"{sizes['length']}) tokens, LoRA {c.policy.lora_rank}, {c.policy.dtype}, remat {c.policy.remat}"
    )


def _rows(sides: dict[str, Side], seconds: dict[str, list[dict]], ceilings: dict[str, Any]) -> dict[str, Any]:
    ceilings, rows = timing.Ceilings(**ceilings), []
    for name, rounds in seconds.items():
        for phase in rounds[0]:
            if phase not in PHASES:
                continue
            samples = [r[phase] for r in rounds]
            if name in sides:
                rows.append(report.phase_row(name, sides[name], phase, samples, ceilings))
                continue
            side, median = next(iter(sides.values())), float(np.median(samples))
            rates = {"tokens_per_s": side.tokens / median, "samples_per_s": side.samples / median}
            rows.append({"side": name, "phase": phase, "seconds": timing.spread(samples)} | rates)
    return {"rows": rows}


def _measure_with_peer(opened: Opened, side: Side, rounds: dict, repeats: int, sampler: peers.Sampler):
    """Measures rounds of this package and of the peer in turn, after checking that they do the same work."""
    with tempfile.TemporaryDirectory() as folder, peers.start(opened, side, Path(folder), sampler) as peer:
        agreement = peers.check(opened, side, peer, Path(folder))
        sampled = peer.ask("step")["tokens"]  # its warm-up
        if sampled != side.tokens:
            raise ValueError(f"The peer sampled {sampled} tokens, this side {side.tokens}: not the same work.")
        seconds = measure(rounds | {"hf": lambda: peer.ask("step")}, repeats)
        facts = peer.facts | {"agreement": agreement, "response_tokens": sampled}
    return seconds, facts


def _against_peer(seconds: dict[str, list[dict]], method: str) -> dict[str, Any]:
    """The peer's seconds over ours, by phase; 2 means that ours takes half the time."""
    out = {}
    for name in dict.fromkeys((method, "static")):
        for phase in seconds.get(name, [{}])[0]:
            own, peer = ([r[phase] for r in rounds] for rounds in (seconds[name], seconds["hf"]))
            out[f"{name} {phase}"] = timing.ratio(peer, own)
    return {"peer's seconds / ours": out}


def _loop(side: Side, steps: int, alone: float) -> dict[str, float]:
    """The short loop; idle is the share of its time in excess of the step's program alone."""
    measured = side.loop(steps)
    return measured | {"idle": max(0.0, 1.0 - float(alone) / measured["seconds_per_step"]), "steps": steps}


def _label(side: str) -> str:
    return {"hf": "transformers + PEFT"}.get(side, side)


def _finish(results: dict[str, Any], out: Path, name: str, stacks: dict[str, dict[str, float]]) -> dict[str, Any]:
    notes = []
    if "peak_memory" in results:
        peak = results["peak_memory"]
        notes.append(f"peak memory of the {peak['of']}: {report.quantity(peak['bytes'])}B")
    if "loop" in results:
        loop = results["loop"]
        notes.append(
            f"training loop: {loop['seconds_per_step']:.3g} s per step, idle {loop['idle']:.1%}, waiting for data "
            f"{loop['data_wait']:.1%}"
        )
    if "peer" in results:
        agreement = results["peer"]["agreement"]
        notes.append(
            "peer: its own random weights, so agreement was not checked"
            if agreement is None
            else f"peer: same losses to {agreement['loss']:.1e}, same gradient norm to {agreement['grad_norm']:.1e}, "
            "same tokens"
        )
    results["notes"] = notes
    write_json(out / name, results)
    report.show(results)
    if stacks:
        picture = (out / name).with_suffix(".png")
        report.draw_step(picture, stacks, results["work"])
        print(f"wrote {out / name} and {picture}")
    return results
