"""From finished runs to answers: each question's paired test at equal policy updates and at equal tokens sampled."""

from __future__ import annotations

import math
from typing import Any

import ml_collections
import numpy as np

from meal_jax import compare
from meal_jax.pareto import paired
from meal_jax.study.measures import EQUAL, MEASURES, TRAINING, Record, pairs, steady
from meal_jax.study.plan import Question

Records = dict[str, dict[int, Record]]  # by variant and seed


def analyse(study: ml_collections.ConfigDict, records: Records) -> dict[str, Any]:
    """What study.json holds, but for the runs that are missing; JSON values, with None for what is not a number.

    Returns:
      variants: of each that has a run, its seeds, the summary of `compare.summarise`, its worst seed by hypervolume and its
      steadiness. questions: by "updates" and "tokens" and name, the fields of `paired.Difference` with the medians of both
      variants, the seeds, and a sentence. Questions without two runs to compare are left out.

    Raises:
      ValueError: as `measures.pair`.
    """
    variants = {v.name: _variant(v.label, records[v.name]) for v in study.variants if records.get(v.name)}
    return _json(
        {
            "base": study.base,
            "changes": list(study.changes),
            "variants": variants,
            "questions": {equal: answer(study, records, equal) for equal in EQUAL},
        }
    )


def answer(study: ml_collections.ConfigDict, records: Records, equal: str) -> dict[str, dict[str, Any]]:
    """The questions at one kind of equal spending, tested as one family.

    Measures of training are of the whole run and stand with the policy updates alone, which is what runs have in common.
    """
    labels = {v.name: v.label for v in study.variants}
    values = {}
    for question in study.questions:
        if question.measure in TRAINING and equal != "updates":
            continue
        both = pairs(records.get(question.first, {}), records.get(question.other, {}), question.measure, equal)
        if both:
            values[question] = both
    columns = {q.name: tuple(np.array(list(both.values())).T) for q, both in values.items()}
    lacking = {
        q.name: sorted(records[q.first].keys() & records[q.other].keys() - both.keys()) for q, both in values.items()
    }
    differences = paired.family(columns)
    return {
        q.name: {
            "first": q.first,
            "other": q.other,
            "measure": q.measure,
            "seeds": list(both),
            "without_value": lacking[q.name],
            "first_median": float(np.median(columns[q.name][0])),
            "other_median": float(np.median(columns[q.name][1])),
            **paired.as_dict(differences[q.name]),
            "smallest_p": paired.smallest_p(differences[q.name].wins + differences[q.name].losses, len(columns)),
            "sentence": sentence(q, labels, differences[q.name], len(both), len(columns), len(lacking[q.name])),
        }
        for q, both in values.items()
    }


def sentence(
    question: Question, labels: dict[str, str], d: paired.Difference, seeds: int, questions: int, lacking: int = 0
) -> str:
    """The verdict on a question. Says so where no result of so few seeds that differ could have been significant, and how
    many further seeds are left out because a run has no value of the measure."""
    label, lower = MEASURES[question.measure]
    text = paired.verdict(labels[question.first], labels[question.other], label, d, seeds, lower_is_better=lower)
    differ = d.wins + d.losses
    if seeds >= paired.MIN_SEEDS and paired.smallest_p(differ, questions) >= 0.05:
        text = text.removesuffix(".") + f"; {differ} seeds are too few for {questions} questions at once."
    return text + f" Left out: {lacking} seeds in which a run has no value." * bool(lacking)


def ahead(row: dict[str, Any]) -> str:
    """A question's answer in a word: "ahead", "behind", or "not told apart"."""
    if row["adjusted"] >= 0.05 or len(row["seeds"]) < paired.MIN_SEEDS:
        return "not told apart"
    return "ahead" if (row["direction"] > 0) != MEASURES[row["measure"]][1] else "behind"


def _variant(label: str, records: dict[int, Record]) -> dict[str, Any]:
    runs = [record.final for record in records.values()]
    worst = min(records, key=lambda seed: records[seed].final["hypervolume"])
    return {
        "label": label,
        "seeds": list(records),
        **compare.summarise(runs),
        "worst_seed": worst,
        "worst_hypervolume": records[worst].final["hypervolume"],
        "worst_inner_product": min(run["mean_inner_product"] for run in runs),
        "steadiness": steady(list(records.values())),
    }


def _json(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _json(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_json(entry) for entry in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value
