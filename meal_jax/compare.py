"""Trains several methods over several seeds in one harness, and sets their fronts, measures and budgets side by side.

    python -m meal_jax.compare --config=configs/toy.py --workdir=runs/compare --methods=all --seeds=5
    python -m meal_jax.compare --config=configs/toy.py --workdir=runs/tau --methods=meal --sweep=meal.tau:0.03,0.1,0.3

All meet the same prompts, rewards, sampling and evaluator; a method's own choices are its section of the configuration.
Each run has a folder, SEED/METHOD; one that is finished is not run again, one that was cut short goes on. Written beside
them: compare.json, compare.md (the table), fronts.png (the seeds' mean points) and curves.png (hypervolume against tokens
sampled in training). With --sweep the runs are those of one method at several values of a field.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import ml_collections
import numpy as np
from absl import app, flags, logging
from ml_collections import config_flags

from meal_jax.runtime import distributed

CONFIG = config_flags.DEFINE_config_file("config", None, "A file of configs/; fields by --config.name=value.")
WORKDIR = flags.DEFINE_string("workdir", None, "Where the runs write; run again with the same to go on.")
METHODS = flags.DEFINE_list("methods", ["all"], "Names of meal_jax.methods.METHODS, or all.")
SEEDS = flags.DEFINE_integer("seeds", 1, "Runs of each method, by config.seed, config.seed + 1 …")
SWEEP = flags.DEFINE_string("sweep", None, "FIELD:VALUE,VALUE…, such as meal.tau:0.03,0.1,0.3.")


def variants(
    config: ml_collections.ConfigDict, methods: Sequence[str], sweep: str | None
) -> dict[str, tuple[str, ml_collections.ConfigDict]]:
    """Name of each variant to (its label, its method's configuration): the methods, or a sweep's values.

    Raises:
      ValueError: an unknown method, or a sweep that is not FIELD:VALUES of a field that there is.
    """
    from meal_jax import methods as known

    names = list(known.METHODS) if list(methods) == ["all"] else list(methods)
    if sweep is None:
        return {name: (known.get(name).label, known.configure(name, config)) for name in names}
    field, _, values = sweep.partition(":")
    out = {}
    for name in names:
        for value in filter(None, values.split(",")):
            changed = config.copy_and_resolve_references()
            try:
                old = changed
                for part in field.split("."):
                    old = old[part]
                changed.update_from_flattened_dict({field: type(old)(value)})
            except (KeyError, ValueError, TypeError) as error:
                raise ValueError(f"--sweep={sweep}: {field} cannot be set to {value!r} ({error}).") from None
            label = f"{known.get(name).label}, {field.rpartition('.')[2]} {value}"
            out[f"{name} {field}={value}"] = (label, known.configure(name, changed))
    if not out:
        raise ValueError(f"--sweep={sweep} names no values; write FIELD:VALUE,VALUE.")
    return out


def run(
    config: ml_collections.ConfigDict, workdir: str, methods: Sequence[str], seeds: int, sweep: str | None = None
) -> dict[str, Any] | None:
    """Trains what is not trained yet and writes the comparison.

    Returns:
      What compare.json holds, or None if a run was told to stop.
    """
    from meal_jax import build, train
    from meal_jax import methods as known
    from meal_jax.config import check

    distributed.refuse_several("python -m meal_jax.compare")
    root = Path(workdir)
    check(config)
    plan = variants(config, methods, sweep)
    task = build.build_task(config)
    results: dict[str, list[dict[str, Any]]] = {name: [] for name in plan}
    for seed in range(config.seed, config.seed + seeds):
        for name, (_, its) in plan.items():
            folder = root / str(seed) / name.replace(" ", "_")
            done = folder / "pareto.json"
            if not done.exists():
                its = its.copy_and_resolve_references()
                its.seed = seed
                if train.train_and_evaluate(its, known.get(its.method), build.for_method(task, its), folder) is None:
                    return None
            results[name].append(json.loads(done.read_text()))
    labels = {name: label for name, (label, _) in plan.items()}
    summary = {"task": task.name, "seeds": seeds, "methods": {n: summarise(r) for n, r in results.items()}}
    root.mkdir(parents=True, exist_ok=True)
    (root / "compare.json").write_text(json.dumps(summary, indent=1) + "\n")
    table = as_table(summary["methods"], labels)
    (root / "compare.md").write_text(table)
    draw(results, labels, task, root)
    print(f"\n{table}\ntable: {root / 'compare.md'}\nfigures: {root / 'fronts.png'}, {root / 'curves.png'}")
    return summary


def summarise(runs: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """One method's seeds in numbers: medians, and 95 % intervals of the median over resampled seeds (none for one seed)."""
    out: dict[str, Any] = {"by_seed": {}}
    for field in (
        "hypervolume", "share_of_true_hypervolume", "mean_inner_product", "sparsity", "spacing", "non_dominated",
        "truncated", "repetitive",
    ):  # fmt: skip
        if field in runs[0]:
            values = np.array([r[field] for r in runs])
            out[field], out["by_seed"][field] = float(np.median(values)), values.tolist()
            if len(values) > 1:
                draws = np.random.default_rng(0).integers(0, len(values), (2000, len(values)))
                medians = np.median(values[draws], axis=1)
                out[f"{field}_interval"] = np.quantile(medians, [0.025, 0.975]).tolist()
    out["monotonicity"] = np.median([r["monotonicity"] for r in runs], axis=0).tolist()
    out["budget"] = {key: float(np.median([r["budget"][key] for r in runs])) for key in runs[0]["budget"]}
    seconds = [r["seconds_training"] for r in runs if r["seconds_training"] is not None]
    out["seconds_training"] = float(np.median(seconds)) if seconds else None
    out["prompts_interval"] = [r["hypervolume_interval"] for r in runs]
    return out


def as_table(methods: dict[str, dict[str, Any]], labels: dict[str, str]) -> str:
    """The comparison in Markdown; the interval of a hypervolume is over seeds, or over prompts where there is one seed."""
    head = (
        "| method | hypervolume | 95 % interval | of the true | inner product | sparsity | spacing | non-dominated | "
        "monotone | truncated | repetitive | tokens sampled | tokens trained on | models | passes/token | seconds |"
    )
    lines = [head, "|" + "---|" * 16]
    for name, m in methods.items():
        low, high = m.get("hypervolume_interval", m["prompts_interval"][0])
        true = f"{m['share_of_true_hypervolume']:.3f}" if "share_of_true_hypervolume" in m else "–"
        b, seconds = m["budget"], m["seconds_training"]
        lines.append(
            f"| {labels[name]} | {m['hypervolume']:.4g} | {low:.4g} … {high:.4g} | {true} | "
            f"{m['mean_inner_product']:.3f} | {m['sparsity']:.3g} | {m['spacing']:.3g} | {m['non_dominated']:.2f} | "
            f"{', '.join(f'{v:.2f}' for v in m['monotonicity'])} | {m['truncated']:.2f} | {m['repetitive']:.2f} | "
            f"{b['rollout_tokens']:,.0f} | {b['gradient_tokens']:,.0f} | {b['models']:.0f} | "
            f"{b['forwards_per_token']:.0f} | {'–' if seconds is None else f'{seconds:.0f}'} |"
        )
    return "\n".join(lines) + "\n"


def draw(results: dict[str, list[dict[str, Any]]], labels: dict[str, str], task, root: Path) -> None:
    """fronts.png, each method's points averaged over its seeds, and curves.png."""
    from meal_jax import evaluate
    from meal_jax.pareto import figures

    mean = lambda runs, field: np.mean([r[field] for r in runs], axis=0)  # noqa: E731
    fronts = [
        figures.Front(labels[name], np.array(runs[0]["preferences"]), mean(runs, "points"))
        for name, runs in results.items()
    ]
    truth = evaluate.true_front(task) if task.truth is not None else None
    seeds = len(next(iter(results.values())))
    title = f"{task.name}, mean of {seeds} seeds" if seeds > 1 else task.name
    if len(task.objectives) in (2, 3):
        figures.draw_fronts(root / "fronts.png", fronts, task.objectives, truth=truth, title=title)
    curves = {}
    for name, runs in results.items():
        steps = np.array([h["step"] for h in runs[0]["history"]])
        volume = np.mean([[h["hypervolume"] for h in r["history"]] for r in runs], axis=0)
        # Tokens grow with steps as evenly as responses keep their length.
        tokens = np.mean([r["budget"]["rollout_tokens"] for r in runs]) * steps / max(steps[-1], 1)
        curves[labels[name]] = (tokens, volume)
    figures.draw_curves(root / "curves.png", curves, "tokens sampled in training", "hypervolume", title=title)


def main(argv):
    if len(argv) > 1:
        raise app.UsageError(f"unknown arguments: {' '.join(argv[1:])}. Fields are set by --config.name=value.")
    logging.set_verbosity(logging.WARNING)
    import jax

    if os.environ.get("MEAL_CACHE", "1") != "0":
        jax.config.update("jax_compilation_cache_dir", os.path.expanduser("~/.cache/meal_jax/xla"))
    try:
        run(CONFIG.value, WORKDIR.value, METHODS.value, SEEDS.value, SWEEP.value)
    except (ValueError, FileNotFoundError, FloatingPointError) as error:
        raise SystemExit(f"error: {error}") from None


if __name__ == "__main__":
    flags.mark_flags_as_required(["config", "workdir"])
    app.run(main)
