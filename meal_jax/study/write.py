"""Writes a study's study.json, study.md and figures."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import ml_collections
import numpy as np

from meal_jax.compare import as_table, common_history, estimate
from meal_jax.pareto import differences_figure, figures, one_point, paired
from meal_jax.saved_run import read_json, write_json, write_text
from meal_jax.study.analysis import Records, ahead, analyse
from meal_jax.study.measures import EQUAL, MEASURES, TRAINING
from meal_jax.study.runs import Run, shown

METHOD = f"""\
A difference is the first variant's measure minus the other's, paired by seed: both have the same prompts, initial weights and
samples of the evaluation. Brackets hold the 95 % interval of the mean difference over resampled seeds. p is of Wilcoxon's
two-sided signed-rank test, with Holm's correction over all questions of a table; at least {paired.MIN_SEEDS} seeds are needed.
*Effect* is Cohen's d_z, the mean difference in its standard deviations, with a 95 % interval from the noncentral t
distribution. *Detectable* is the mean difference that a paired t test of as many seeds finds in four of five tries.

*At equal policy updates* and *at equal tokens sampled* compare each pair of runs when both had spent what the thriftier one
spent in all, interpolated between evaluations. Measures of steadiness are of the whole of training
(`meal_jax/pareto/steadiness.py` defines them): variances are over the steps after the first fifth."""


def write(
    study: ml_collections.ConfigDict,
    runs: Sequence[Run],
    records: Records,
    failed: dict[str, str],
    root: Path,
    reference: Sequence[float] | None = None,
) -> Path:
    """Writes the study of the runs that are finished.

    Args:
      study: checked.
      runs: the whole table.
      records: of the finished runs.
      failed: message of each run that failed, by name.
      root: the study's workdir.
      reference: the point that hypervolumes were moved to, `measures.from_one_point`.

    Returns:
      The path of study.md.
    """
    content = analyse(study, records)
    content |= {
        "reference": reference,
        "runs": len(runs),
        "finished": sum(map(len, records.values())),
        "failed": failed,
        "missing": [r.name for r in runs if r.seed not in records.get(r.variant, {}) and r.name not in failed],
        "commands": {v.name: shown(next(r for r in runs if r.variant == v.name)) for v in study.variants},
    }
    write_json(root / "study.json", content)
    drawn = draw(study, content, records, root) if records else []
    path = root / "study.md"
    write_text(path, markdown(study, content, [figure.name for figure in drawn]))
    return path


def markdown(study: ml_collections.ConfigDict, content: dict[str, Any], figure_names: Sequence[str]) -> str:
    """The text of study.md."""
    seeds = f"seeds {study.seed} to {study.seed + study.seeds - 1}" if study.seeds > 1 else f"seed {study.seed}"
    parts = [
        f"# Study of {study.base}",
        f"{content['finished']} of {content['runs']} runs are finished ({seeds}). {_lack(content)}".strip(),
    ]
    for equal, label in EQUAL.items():
        rows = content["questions"][equal]
        if rows:
            parts += [
                f"## At equal {label}",
                _answers(study, rows),
                "\n".join(f"- {row['sentence']}" for row in rows.values()),
            ]
            parts.append(_power(rows))
        unasked = [
            q.name for q in study.questions if q.name not in rows and (q.measure not in TRAINING or equal == "updates")
        ]
        if unasked:
            lack = f"Not answered at equal {label}, for want of two runs of one seed that were evaluated there"
            parts.append(f"{lack}: {', '.join(unasked)}.")
    if content["reference"]:
        parts.append(one_point.sentence(content["reference"]))
    if content["variants"]:
        labels = {name: variant["label"] for name, variant in content["variants"].items()}
        parts += [
            "## Variants",
            "At the end of training; medians over seeds, in brackets the 95 % interval of the median.",
        ]
        parts += [as_table(content["variants"], labels).strip(), "## Steadiness", _steadiness(content["variants"])]
    parts += [f"![{name.removesuffix('.png')}]({name})" for name in figure_names]
    parts += [
        "## What the numbers are",
        METHOD,
        "## Commands",
        "Of each variant's first seed; others by `--config.seed`.",
    ]
    parts.append("```bash\n" + "\n".join(content["commands"].values()) + "\n```")
    return "\n\n".join(filter(None, parts)) + "\n"


def _lack(content: dict[str, Any]) -> str:
    failed = [f"{name} ({message})" for name, message in content["failed"].items()]
    out = f"Failed: {'; '.join(failed)}. " if failed else ""
    return out + (f"Not run: {len(content['missing'])}." if content["missing"] else "")


def _answers(study: ml_collections.ConfigDict, rows: dict[str, dict[str, Any]]) -> str:
    labels = {v.name: v.label for v in study.variants}
    header = (
        "question",
        "first",
        "other",
        "measure",
        "seeds",
        "medians",
        "difference",
        "effect",
        "p, adjusted",
        "detectable",
        "first is",
    )
    lines = [header, ("---",) * len(header)]
    for name, row in rows.items():
        word = ahead(row)
        lines.append((
            name, labels[row["first"]], labels[row["other"]], MEASURES[row["measure"]][0], str(len(row["seeds"])),
            f"{row['first_median']:.4g}, {row['other_median']:.4g}",
            _interval(row["mean"], row["low"], row["high"], "+.3g"),
            "–" if row["effect"] is None else _interval(row["effect"], row["effect_low"], row["effect_high"], "+.2f"),
            f"{row['adjusted']:.2g}", "–" if row["detectable"] is None else f"{row['detectable']:.3g}",
            word if word == "ahead" else f"**{word}**",
        ))  # fmt: skip
    return _table(lines)


def _interval(estimate: float, low: float | None, high: float | None, form: str) -> str:
    """An estimate with its interval, a dash for an end that is not known."""
    ends = ("–" if end is None else f"{end:{form}}" for end in (low, high))
    return f"{estimate:{form}} ({' … '.join(ends)})"


def _power(rows: dict[str, dict[str, Any]]) -> str:
    few = [f"{name} ({row['smallest_p']:.2g})" for name, row in rows.items() if row["smallest_p"] >= 0.05]
    if not few:
        return ""
    return (
        "No result could have been significant here, since even differences of one sign in all seeds have a larger adjusted "
        f"p: {', '.join(few)}. Ask fewer questions at once (`--only`) or run more seeds."
    )


def _steadiness(variants: dict[str, dict[str, Any]]) -> str:
    columns = {
        "variance of the gradient norm": "grad_norm_variance", "variance of utility": "utility_variance",
        "noise of utility": "utility_noise", "steps to 90 %": "steps_to_90", "rise lost": "lost",
        "collapsed": "collapse_rate",
    }  # fmt: skip
    header = ("variant", *columns, "worst seed: hypervolume", "worst inner product")
    lines = [header, ("---",) * len(header)]
    for variant in variants.values():
        values = [variant["steadiness"][name] for name in columns.values()]
        lines.append((
            variant["label"], *("–" if value is None else f"{value:.3g}" for value in values),
            f"{variant['worst_seed']}: {variant['worst_hypervolume']:.3f}", f"{variant['worst_inner_product']:.3f}",
        ))  # fmt: skip
    return _table(lines)


def _table(lines: Sequence[Sequence[str]]) -> str:
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def draw(study: ml_collections.ConfigDict, content: dict[str, Any], records: Records, root: Path) -> list[Path]:
    """Draws what there are runs for: standardised differences, training curves, fronts, and the study's own curves."""
    drawn = [_draw_differences(study, content, root)] if content["questions"]["updates"] else []
    shown_variants = [v for v in study.variants if v.name in study.drawn and records.get(v.name)]
    if shown_variants:
        drawn += [_draw_training(shown_variants, records, root), *_draw_fronts(study, shown_variants, records, root)]
    for curve in study.curves:
        points = [(value, content["variants"][name]) for value, name in curve.points if name in content["variants"]]
        if len(points) > 1:
            panels = {
                label: {"Meal": [estimate(variant, measure) for _, variant in points]}
                for measure, label in (("hypervolume", "hypervolume"), ("mean_inner_product", "mean inner product"))
            }
            drawn.append(root / f"curve_{curve.name}.png")
            figures.draw_sweep(drawn[-1], [value for value, _ in points], panels, f"config.{curve.field}")
    return drawn


def _draw_differences(study: ml_collections.ConfigDict, content: dict[str, Any], root: Path) -> Path:
    labels = {v.name: v.label for v in study.variants}
    rows = content["questions"]["updates"]
    names = [f"{labels[r['first']]} − {labels[r['other']]}: {MEASURES[r['measure']][0]}" for r in rows.values()]

    def estimate(row: dict[str, Any] | None) -> tuple[float, float, float] | None:
        values = None if row is None else (row["effect"], row["effect_low"], row["effect_high"])
        return None if values is None or None in values else values

    groups = {
        f"at equal {label}": [estimate(content["questions"][e].get(name)) for name in rows]
        for e, label in EQUAL.items()
    }
    path = root / "differences.png"
    differences_figure.draw_differences(path, names, groups, "effect size d_z, 95 % intervals", study.base)
    return path


def _draw_training(variants: Sequence[Any], records: Records, root: Path) -> Path:
    curves = {}
    for variant in variants:
        kept = common_history([r.final["history"] for r in records[variant.name].values()])
        updates = np.mean([[h["budget"]["updates"] for h in history] for history in kept], axis=0)
        curves[variant.label] = (updates, np.mean([[h["hypervolume"] for h in history] for history in kept], axis=0))
    path = root / "training.png"
    figures.draw_curves(path, curves, "policy updates", "hypervolume, mean of seeds")
    return path


def _draw_fronts(study: ml_collections.ConfigDict, variants: Sequence[Any], records: Records, root: Path) -> list[Path]:
    finals = {v.label: [r.final for r in records[v.name].values()] for v in variants}
    head = next(iter(finals.values()))[0]
    objectives = head["objectives"]
    if not figures.drawn(objectives):
        return []
    fronts = [figures.mean_front(label, runs) for label, runs in finals.items()]
    figures.draw_fronts(root / "fronts.png", fronts, objectives, title=f"{study.base}, mean of seeds")
    return [root / "fronts.png"]


def read_failures(root: Path) -> dict[str, str]:
    """The failed runs that study.json records; none where there is none, or where it is damaged: it is written anew."""
    record = read_json(root / "study.json")
    return record.get("failed", {}) if isinstance(record, dict) else {}
