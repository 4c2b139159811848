"""Trains several methods over several seeds in one harness, and sets their fronts, measures and budgets side by side.

    python -m meal_jax.compare --config=configs/toy.py --workdir=runs/compare --methods=all --seeds=5
    python -m meal_jax.compare --config=configs/toy.py --workdir=runs/compare --methods=all --seeds=5 --equal=tokens
    python -m meal_jax.compare --config=configs/toy.py --workdir=runs/tau --methods=meal --sweep=meal.tau:0.03,0.1,0.3

All meet the same prompts, rewards, sampling and evaluator; a method's own choices are its section of the configuration.
Each run has a folder, SEED/METHOD; one that is finished is not run again, one that was cut short resumes, and one of another
configuration is refused by the fields that differ, before anything is trained. Written beside
them: compare.json, compare.md (the table), fronts.png (the seeds' mean points), curves.png (hypervolume against what
training spent) and report.html (the runs on one page, see `meal_jax.report`). With --sweep the runs are those of each method
at several values of a field, and sweep.png shows hypervolume and inner product against it.

The first method named is compared with each other one, paired over seeds: differences, intervals, Wilcoxon's signed-rank test
with Holm's correction, and how large a difference these seeds could have found.

--equal says at which point of training the methods are set side by side: at its end ("steps", which they have in common),
or each at its last evaluation within the tokens sampled, or the optimizer steps taken (of all its models), that the thriftiest
run took in all; the files are then compare_tokens.json and so on. The shorter config.eval.every, the closer it comes to equal.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import ml_collections
import numpy as np
from absl import flags

from meal_jax import command
from meal_jax.json_files import read_object
from meal_jax.pareto.equal import BASES, Basis, cut
from meal_jax.runtime import distributed

MEASURES = (
    "hypervolume", "share_of_true_hypervolume", "mean_inner_product", "sparsity", "spacing", "non_dominated", "monotonicity",
    "truncated", "repetitive", "log_likelihood", "distinct_2", "copied",
)  # fmt: skip
# Fields that each run of a comparison gets from a flag, which would hide the values of a sweep.
SET_BY_FLAGS = {
    "method": "--methods=NAME,NAME",
    "compare_with": "--methods=NAME,NAME",
    "seed": "--seeds=COUNT, which counts from --config.seed",
}


class Variant(NamedTuple):
    """One of the things compared: its label, its method's configuration, and of a sweep the method's label and the value."""

    label: str
    config: ml_collections.ConfigDict
    method: str
    value: str = ""


def variants(config: ml_collections.ConfigDict, methods: Sequence[str], sweep: str | None) -> dict[str, Variant]:
    """What is to be compared, by name: the methods, or each at a sweep's values.

    Raises:
      ValueError: no method or an unknown one, or a sweep that is not FIELD:VALUES of a field that there is, or of one that a
        flag sets.
    """
    from meal_jax import methods as known
    from meal_jax.saved_run import apply_change

    names = list(known.METHODS) if list(methods) == ["all"] else [name for name in methods if name.strip()]
    if not names:
        raise ValueError(f"--methods names none: give some of {', '.join(known.METHODS)}, with commas between, or all.")
    label = {name: known.get(name).label for name in names}
    if sweep is None:
        return {name: Variant(label[name], known.configure(name, config), label[name]) for name in names}
    field, _, values = sweep.partition(":")
    if field in SET_BY_FLAGS:
        raise ValueError(f"--sweep={sweep}: the comparison sets {field} itself; use {SET_BY_FLAGS[field]} instead.")
    out = {}
    for name in names:
        for value in filter(None, values.split(",")):
            changed = config.copy_and_resolve_references()
            try:
                apply_change(changed, f"{field}={value}")
            except ValueError as error:
                reason = str(error).rpartition(": ")[2]
                raise ValueError(f"--sweep={sweep}: {field} cannot be set to {value!r} ({reason}).") from None
            setting = f"{label[name]}, {field.rpartition('.')[2]} {value}"
            out[f"{name} {field}={value}"] = Variant(setting, known.configure(name, changed), label[name], value)
    if not out:
        raise ValueError(f"--sweep={sweep} names no values; write FIELD:VALUE,VALUE.")
    return out


def run(
    config: ml_collections.ConfigDict,
    workdir: str,
    methods: Sequence[str],
    seeds: int,
    sweep: str | None = None,
    equal: str = "steps",
) -> dict[str, Any] | None:
    """Trains what is not trained yet and writes the comparison.

    Returns:
      What compare.json holds, or None if a run was told to stop.
    """
    from meal_jax import build, evaluate, train
    from meal_jax import methods as known
    from meal_jax.config import check
    from meal_jax.pareto import one_point
    from meal_jax.report import write as report
    from meal_jax.rewards import sources
    from meal_jax.runtime import identity
    from meal_jax.saved_run import need_no_run, recorded_reference
    from meal_jax.tasks import attach_rewards

    distributed.refuse_several("python -m meal_jax.compare")
    root = Path(workdir).expanduser()
    check(config)
    need_no_run(root, "the comparison")
    plan = variants(config, methods, sweep)
    for name, variant in plan.items():  # what a field asks for may depend on the method, and a sweep sets fields
        try:
            check(variant.config)
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from None
    runs: dict[Path, ml_collections.ConfigDict] = {}
    folders: dict[str, list[Path]] = {name: [] for name in plan}
    for seed in range(config.seed, config.seed + seeds):
        for name, variant in plan.items():
            folder = root / str(seed) / name.replace(" ", "_")
            folders[name].append(folder)
            runs[folder] = variant.config.copy_and_resolve_references()
            runs[folder].seed = seed
    left = [
        folder for folder, run_config in runs.items() if train.finished(folder, run_config) is None
    ]  # refuses other runs
    task = build.build_task(config)
    attach_rewards.warn_of_reference(task, config)
    unknown = task.reference  # NaN where a run's first evaluation fixes it; then new runs take that of an earlier one
    for folder in runs:
        task = task._replace(reference=recorded_reference(folder, task.reference))
    # No benchmark reads a field of these sections; of any other a sweep builds it anew at every value.
    apart = {"meal", "optim", *(method.section[0] for method in known.METHODS.values() if method.section)}
    rebuilt = sweep is not None and sweep.partition(".")[0] not in apart
    with identity.hold(root) if left else contextlib.nullcontext():
        for folder in left:
            run_config = runs[folder]
            reference = recorded_reference(folder, unknown)  # of a run that resumes: its history has one point
            reference = np.where(np.isnan(reference), task.reference, reference)
            own = (build.build_task(run_config) if rebuilt else task)._replace(reference=reference)
            done = train.train_and_evaluate(
                run_config, known.get(run_config.method), build.for_method(own, run_config), folder
            )
            if done is None:
                return None
            task = task._replace(reference=np.array(done.get("reference", task.reference)))
    by_folder = {f: read_object(f / "pareto.json") for some in folders.values() for f in some}
    by_folder, reference = one_point.of_folders(cut(by_folder, equal))
    results = {name: [by_folder[f] for f in some] for name, some in folders.items()}
    summary = {
        "task": task.name,
        "seeds": seeds,
        "equal": equal,
        "reference": reference,
        "runs": {plan[name].label: [str(f.relative_to(root)) for f in some] for name, some in folders.items()},
        "methods": {name: summarise(runs) for name, runs in results.items()},
    }
    labels = {name: variant.label for name, variant in plan.items()}
    summary["paired"], sentences = against_first(summary["methods"], labels, seeds)
    sentences += [] if reference is None else [one_point.sentence(reference)]
    root.mkdir(parents=True, exist_ok=True)
    ending = BASES[equal].ending
    (root / f"compare{ending}.json").write_text(json.dumps(summary, indent=1) + "\n")
    table = as_table(summary["methods"], labels) + "\n" * bool(sentences) + "".join(f"- {s}\n" for s in sentences)
    (root / f"compare{ending}.md").write_text(table)
    truth = evaluate.true_front(task) if task.truth is not None and not rebuilt else None
    drawn = draw(results, BASES[equal], plan, sources.describe(config), truth, task, root)
    if sweep is not None:
        drawn.append(draw_sweep(summary["methods"], plan, sweep.partition(":")[0], root))
    print(f"\n{table}\ntable: {root / f'compare{ending}.md'}\nfigures: {', '.join(map(str, drawn))}")
    report.write_and_say(root)
    return summary


def summarise(runs: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """One method's seeds in numbers: of each measure the median, and as NAME_interval the 95 % interval of the median over
    resampled seeds, or for one seed that over prompts. `by_seed` has each seed's, with the intervals over prompts."""
    out: dict[str, Any] = {"by_seed": {}}
    for field in MEASURES:
        if not all(field in run for run in runs):
            continue  # no truth is known, or no base at hand; or some runs are of a version without it
        values = np.array([r[field] for r in runs])
        out[field], out["by_seed"][field] = np.median(values, axis=0).tolist(), values.tolist()
        interval = None
        if f"{field}_interval" in runs[0]:  # distinct_2 has none over prompts
            over_prompts = [r[f"{field}_interval"] for r in runs]
            out["by_seed"][f"{field}_interval"], interval = over_prompts, over_prompts[0]
        if len(values) > 1:
            draws = np.random.default_rng(0).integers(0, len(values), (2000, len(values)))
            interval = np.quantile(np.median(values[draws], axis=1), [0.025, 0.975], axis=0).tolist()
        if interval is not None:
            out[f"{field}_interval"] = interval
    out["budget"] = {key: float(np.median([r["budget"][key] for r in runs])) for key in runs[0]["budget"]}
    seconds = [r["seconds_training"] for r in runs if r["seconds_training"] is not None]
    out["seconds_training"] = float(np.median(seconds)) if seconds else None
    return out


def estimate(summary: dict[str, Any], measure: str) -> tuple[float, float, float]:
    """A measure of `summarise` with the ends of its interval; where it has none, both ends are the measure itself."""
    value = summary[measure]
    low, high = summary.get(f"{measure}_interval", (value, value))
    return value, low, high


def against_first(
    methods: dict[str, dict[str, Any]], labels: dict[str, str], seeds: int
) -> tuple[dict[str, dict[str, Any]], list[str]]:
    """The first method against each other one, paired over seeds: by measure and method, and a sentence for each.

    The p values of a measure are adjusted together. Nothing for one method or one seed.
    """
    from meal_jax.pareto import paired

    first, *others = methods
    if not others or seeds < 2:
        return {}, []
    tests, sentences = {}, []
    for field, measure in (("mean_inner_product", "inner product"), ("hypervolume", "hypervolume")):
        by_seed = {name: m["by_seed"][field] for name, m in methods.items()}
        differences = paired.compare(by_seed[first], {name: by_seed[name] for name in others})
        tests[field] = {name: paired.as_dict(d) for name, d in differences.items()}
        sentences += [paired.verdict(labels[first], labels[name], measure, d, seeds) for name, d in differences.items()]
    return tests, sentences


def as_table(methods: dict[str, dict[str, Any]], labels: dict[str, str]) -> str:
    """The comparison in Markdown: what the methods reached and what they spent. Intervals are over seeds, or over prompts
    where there is one seed; those that the table leaves out are in compare.json."""

    def cell(m: dict[str, Any], field: str) -> str:
        if field not in m:
            return "–"
        if f"{field}_interval" not in m:  # of one seed whose reference point was moved
            return f"{m[field]:.3f}"
        low, high = m[f"{field}_interval"]
        return f"{m[field]:.3f} ({low:.3f} … {high:.3f})"

    reached = {
        "hypervolume": lambda m: cell(m, "hypervolume"),
        "of the true": lambda m: cell(m, "share_of_true_hypervolume"),
        "inner product": lambda m: cell(m, "mean_inner_product"),
        "sparsity": lambda m: f"{m['sparsity']:.3g}",
        "spacing": lambda m: f"{m['spacing']:.3g}",
        "non-dominated": lambda m: f"{m['non_dominated']:.2f}",
        "pairs in order": lambda m: ", ".join(f"{value:.2f}" for value in m["monotonicity"]),
        "truncated": lambda m: f"{m['truncated']:.2f}",
        "repetitive": lambda m: f"{m['repetitive']:.2f}",
        "log p/token": lambda m: f"{m['log_likelihood']:.2f}" if "log_likelihood" in m else "–",
        "distinct-2": lambda m: f"{m['distinct_2']:.2f}" if "distinct_2" in m else "–",
        "copied tokens": lambda m: f"{m['copied']:.1f}" if "copied" in m else "–",
    }
    spent = {
        "tokens sampled": lambda m: f"{m['budget']['rollout_tokens']:,.0f}",
        "reward calls": lambda m: f"{m['budget']['reward_calls']:,.0f}",
        "tokens trained on": lambda m: f"{m['budget']['gradient_tokens']:,.0f}",
        "updates": lambda m: f"{m['budget']['updates']:,.0f}",
        "models": lambda m: f"{m['budget']['models']:.0f}",
        "passes a token": lambda m: f"{m['budget']['forwards_per_token']:.0f}",
        "seconds": lambda m: "–" if m["seconds_training"] is None else f"{m['seconds_training']:.0f}",
    }
    tables = []
    for columns in (reached, spent):
        lines = [["method", *columns], ["---"] * (1 + len(columns))]
        lines += [[labels[name], *(show(m) for show in columns.values())] for name, m in methods.items()]
        tables.append("\n".join(f"| {' | '.join(line)} |" for line in lines))
    return "\n\n".join(tables) + "\n"


def draw(
    results: dict[str, list[dict[str, Any]]],
    basis: Basis,
    plan: dict[str, Variant],
    axes: Sequence[str],
    truth: np.ndarray | None,
    task,
    root: Path,
) -> list[Path]:
    """Draws fronts, each method's points averaged over its seeds, and curves; the paths."""
    from meal_jax.pareto import figures

    seeds, drawn = len(next(iter(results.values()))), []
    title = f"{task.name}, mean of {seeds} seeds" if seeds > 1 else task.name
    if figures.drawn(task.objectives):
        fronts = [figures.mean_front(plan[name].label, runs) for name, runs in results.items()]
        drawn.append(root / f"fronts{basis.ending}.png")
        figures.draw_fronts(drawn[-1], fronts, axes, truth=truth, title=title + basis.title)
    curves = {}
    for name, runs in results.items():
        kept = common_history([r["history"] for r in runs])
        x = np.mean([[h["budget"][basis.spent] for h in history] for history in kept], axis=0)
        curves[plan[name].label] = (x, np.mean([[h["hypervolume"] for h in history] for history in kept], axis=0))
    drawn.append(root / f"curves{basis.ending}.png")
    figures.draw_curves(drawn[-1], curves, basis.axis, "hypervolume", title=title)
    return drawn


def common_history(histories: Sequence[Sequence[dict[str, Any]]]) -> list[list[dict[str, Any]]]:
    """The evaluations at steps that all histories have: a run that was made longer, or evaluated again, has others too."""
    steps = set.intersection(*({h["step"] for h in history} for history in histories))
    return [[h for h in history if h["step"] in steps] for history in histories]


def draw_sweep(methods: dict[str, dict[str, Any]], plan: dict[str, Variant], field: str, root: Path) -> Path:
    """sweep.png: hypervolume and inner product of each method against the field's values."""
    from meal_jax.pareto import figures

    values = list(dict.fromkeys(variant.value for variant in plan.values()))
    panels = {}
    for measure, label in (("hypervolume", "hypervolume"), ("mean_inner_product", "mean inner product")):
        panels[label] = {}
        for method in dict.fromkeys(variant.method for variant in plan.values()):
            swept = [methods[name] for name, variant in plan.items() if variant.method == method]
            panels[label][method] = [estimate(m, measure) for m in swept]
    figures.draw_sweep(root / "sweep.png", values, panels, f"config.{field}")
    return root / "sweep.png"


def compare_as_flags_say() -> None:
    f = flags.FLAGS
    run(f.config, f.workdir, f.methods, f.seeds, f.sweep, f.equal)


if __name__ == "__main__":
    command.define_config()
    flags.DEFINE_string("workdir", None, "Where the runs write; run again with the same to resume.", required=True)
    flags.DEFINE_list("methods", ["all"], "Names of meal_jax.methods.METHODS, or all.")
    flags.DEFINE_integer("seeds", 1, "Runs of each method, by config.seed, config.seed + 1 …", lower_bound=1)
    flags.DEFINE_enum("equal", "steps", list(BASES), "What the methods set side by side have spent alike.")
    flags.DEFINE_string("sweep", None, "FIELD:VALUE,VALUE…, such as meal.tau:0.03,0.1,0.3.")
    command.main(compare_as_flags_say)
