"""What a report shows, read from the files of finished runs.

Letters: M preferences, K objectives.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from meal_jax import config as defaults
from meal_jax import methods
from meal_jax.json_files import read_object, read_rows
from meal_jax.pareto import equal as equals
from meal_jax.pareto import one_point
from meal_jax.rewards import sources
from meal_jax.saved_run import fine_tuned, read_json, recorded_config
from meal_jax.tasks import toy_explanation

POINTS = 240  # most points of a curve; steps between are averaged
MEASURES = (
    "hypervolume", "share_of_true_hypervolume", "mean_inner_product", "sparsity", "spacing", "non_dominated", "monotonicity",
    "truncated", "repetitive", "log_likelihood", "distinct_2", "copied",
)  # fmt: skip
CURVES = (
    "utility", "loss/base", "loss/meta", "grad_norm/policy", "response/length", "response/ended", "response/entropy",
    "accept/effective", "preference/kl_proposed_target", "preference/kl_adapted_proposed",
)  # fmt: skip


class Entry(NamedTuple):
    """One method of a report: its label and its runs' directories, one per seed."""

    label: str
    folders: list[Path]


def find(workdir: Path) -> list[Entry]:
    """What finished runs a directory holds: a run's methods, those of its last comparison, or a study's variants.

    Raises:
      FileNotFoundError: it holds none.
    """
    if (workdir / "sft.json").exists():
        raise FileNotFoundError(fine_tuned(workdir))
    if (workdir / "pareto.json").exists():
        config = recorded_config(workdir)
        names = [n for n in config.compare_with if n != config.method and (workdir / n / "pareto.json").exists()]
        return [Entry(_label(config.method), [workdir]), *(Entry(_label(n), [workdir / n]) for n in names)]
    variants = (read_json(workdir / "study.json") or {}).get("variants", {})
    compared = _newest_comparison(workdir)
    if variants:
        folders = {variant["label"]: _seeds(workdir / name, variant.get("seeds")) for name, variant in variants.items()}
    elif "runs" in compared:
        folders = {label: [workdir / path for path in paths] for label, paths in compared["runs"].items()}
    else:
        seeds = _seeds(workdir)
        known = list(compared.get("methods", {})) or sorted(
            {path.parent.name for seed in seeds for path in seed.glob("*/pareto.json")}
        )
        folders = {_label(name): [seed / name.replace(" ", "_") for seed in seeds] for name in known}
    finished = {label: [path for path in paths if (path / "pareto.json").exists()] for label, paths in folders.items()}
    runs = [Entry(label, paths) for label, paths in finished.items() if paths]
    if not runs:
        raise FileNotFoundError(
            f"{workdir} holds no finished run: there is no pareto.json in it, nor in SEED/METHOD or a study's VARIANT/SEED "
            "below it. Start the run again with the same command; it resumes from its last checkpoint."
        )
    return runs


def read_equal(workdir: Path) -> str:
    """At which point of training the report of a directory shows its runs, a key of `equal.BASES`: as its last comparison."""
    return _newest_comparison(workdir).get("equal", "steps")


def _newest_comparison(workdir: Path) -> dict[str, Any]:
    """What the last command of `meal_jax.compare` wrote here; {} for none. Each --equal has a file of its own."""
    paths = sorted(workdir.glob("compare*.json"), key=lambda path: path.stat().st_mtime_ns)
    return (read_json(paths[-1]) if paths else None) or {}


def _seeds(workdir: Path, seeds: Sequence[int] | None = None) -> list[Path]:
    """The folders of these seeds, or of all that there are."""
    known = [int(path.name) for path in workdir.glob("*") if path.name.isdigit()] if seeds is None else seeds
    return [workdir / str(seed) for seed in sorted(known)]


def gather(entries: Sequence[Entry], equal: str = "steps") -> dict[str, Any]:
    """The report's content as JSON values, of the point of training that `equal` chooses.

    Several seeds of a method are one front: its points are the seeds' means, without intervals. Answers, curves and
    configuration are those of the first seed. Hypervolumes are from one reference point; "note" says so if they were moved.

    Raises:
      FileNotFoundError, ValueError: a file is not there, or damaged; or a run has no evaluation so early.
    """
    first = entries[0].folders[0]
    results = {f: read_object(f / "pareto.json") for entry in entries for f in entry.folders}
    results, reference = one_point.of_folders(equals.cut(results, equal))
    notes = [one_point.sentence(reference)] if reference is not None else []
    notes += [equals.sentence(equal)] if equal != "steps" else []
    head = results[first]
    config = recorded_config(first) if (first / "config.json").exists() else None
    k = len(head["preferences"][0])
    objectives = head.get("objectives") or [f"objective {i + 1}" for i in range(k)]
    seeds = max(len(entry.folders) for entry in entries)
    task = head.get("task", "")
    return {
        "title": f"{task}: {', '.join(entry.label for entry in entries)}{equals.BASES[equal].title}",
        "task": task,
        "seeds": seeds,
        "objectives": list(objectives),
        "axes": list(sources.describe(config)) if config is not None else list(objectives),
        "methods": [_method(entry, results, objectives, config) for entry in entries],
        "note": " ".join(notes) or None,
        "rule": toy_explanation.rule(objectives, config.sampling.max_new) if _own_toy(config) else None,
        "before": _front(head["before"]) if head.get("before") else None,
        "exact": _rounded(head["exact_points"]) if "exact_points" in head else None,
        "config": [] if config is None else list(_fields(config)),
        "environment": _environment(head),
        "splits": head.get("splits"),
        "evaluation_set": head.get("evaluation_set"),
    }


def _own_toy(config: Any) -> tuple[int, ...]:
    """Objectives whose rewards `toy_explanation` explains."""
    return tuple(sources.own_objectives(config)) if config is not None and config.task == "toy" else ()


def _method(
    entry: Entry, results: Mapping[Path, dict[str, Any]], objectives: Sequence[str], config: Any
) -> dict[str, Any]:
    runs = [results[folder] for folder in entry.folders]
    head = runs[0]
    out = {"label": entry.label, "seed": head.get("seed"), **_front(head)}
    if len(runs) > 1:
        out["points"] = _rounded(np.mean([run["points"] for run in runs], axis=0))
        out["low"] = out["high"] = None
    out["measures"] = {
        name: _rounded(np.mean([run[name] for run in runs], axis=0))
        for name in MEASURES
        if all(run.get(name) is not None for run in runs)  # some seeds may be of a version without it
    }
    out["intervals"] = {
        name: _rounded(head[f"{name}_interval"])
        for name in out["measures"]
        if len(runs) == 1 and f"{name}_interval" in head
    }
    out["budget"] = {name: float(np.mean([r["budget"][name] for r in runs])) for name in head.get("budget", {})}
    seconds = [run.get("seconds_training") for run in runs]
    out["seconds"] = None if None in seconds else round(float(np.mean(seconds)), 1)
    out["samples"] = [_sample(sample, objectives, config) for sample in head.get("samples", [])]
    out["history"] = [[h["step"], _rounded(h["hypervolume"])] for h in head.get("history", [])]
    tables = [read_json(path) for path in sorted((entry.folders[0] / "evals").glob("*.json"))]
    tables = [table for table in tables if table and table.get("preferences") == head["preferences"]]
    # Of what is shown, or before
    tables = [table for table in tables if table["step"] <= head.get("step", table["step"])]
    out["proposed"] = [[table["step"], _rounded(table["proposals"])] for table in tables if "proposals" in table]
    # Of several seeds the report shows the mean front, which has no evaluations of its own.
    out["evaluations"] = [[table["step"], _rounded(table["points"])] for table in tables if len(runs) == 1]
    out["curves"] = _curves(entry.folders[0] / "metrics.jsonl", objectives)
    return out


def _front(evaluation: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "preferences": _rounded(evaluation["preferences"]),
        "points": _rounded(evaluation["points"]),
        "low": _rounded(evaluation["points_low"]) if "points_low" in evaluation else None,
        "high": _rounded(evaluation["points_high"]) if "points_high" in evaluation else None,
    }


def _sample(sample: Mapping[str, Any], objectives: Sequence[str], config: Any) -> dict[str, Any]:
    own = _own_toy(config)

    def explained(response: str) -> str | None:
        if not own:
            return None
        return toy_explanation.explain(sample["prompt"], response, objectives, own, config.sampling.max_new)

    answers = [
        {
            "preference": _rounded(answer["preference"]),
            "response": answer["response"],
            "rewards": [_rounded(answer["rewards"].get(name)) for name in objectives],
            "explained": explained(answer["response"]),
        }
        for answer in sample["answers"]
    ]
    return {"prompt": sample["prompt"], "answers": answers}


def _curves(path: Path, objectives: Sequence[str]) -> dict[str, Any]:
    """The metrics that are drawn: {"step": [points], name: [points]}, averaged over runs of steps if there are many."""
    names = [
        *CURVES,
        *(f"reward/{name}/mean" for name in objectives),
        *(f"weight/{name}/{which}" for name in objectives for which in ("target", "proposed", "adapted")),
    ]
    rows = read_rows(path)
    steps = [step for step, row in rows.items() if "utility" in row]
    groups = [
        steps[i : i + math.ceil(len(steps) / POINTS)] for i in range(0, len(steps), math.ceil(len(steps) / POINTS) or 1)
    ]
    out: dict[str, Any] = {"step": [group[-1] for group in groups]}
    for name in names:
        values = [[v for step in group if (v := rows[step].get(name)) is not None] for group in groups]
        if any(values):
            out[name] = [_rounded(sum(v) / len(v)) if v else None for v in values]
    return out


def _fields(config: Any) -> Iterator[list[Any]]:
    """[field, value, default, whether they differ] of every field, as text."""
    default = dict(_leaves(defaults.default()))
    for name, value in _leaves(config):
        yield [name, repr(value), repr(default.get(name)), value != default.get(name)]


def _leaves(config: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name in config:
        value = config[name]
        if hasattr(value, "items"):
            yield from _leaves(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value


def _environment(head: Mapping[str, Any]) -> list[list[str]]:
    entries = {name: head[name] for name in ("device", "processes") if name in head} | head.get("environment", {})
    return [[name, str(value)] for name, value in entries.items()]


def _label(name: str) -> str:
    return methods.get(name).label if name in methods.METHODS else name


def _rounded(value: Any) -> Any:
    """JSON values with floats to five digits, and null in place of what is not finite."""
    if isinstance(value, np.ndarray | np.generic):
        value = value.tolist()
    if isinstance(value, list | tuple):
        return [_rounded(v) for v in value]
    if isinstance(value, float):
        return float(f"{value:.5g}") if math.isfinite(value) else None
    return value
