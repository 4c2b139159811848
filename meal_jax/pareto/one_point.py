"""Hypervolumes of several runs from one reference point.

With rewards whose scale nobody knows, the first evaluation of a run fixes the point (`evaluate.fix_reference`). Hypervolumes
from different points cannot be compared. The lowest of each objective lies behind all of these points.

Letters: K objectives, E evaluations, M preferences.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from meal_jax.json_files import read_object
from meal_jax.pareto import front

# Of a run's own point, and not known from another: intervals need the scores of each prompt, shares the true front.
OWN = (
    "hypervolume_interval",
    "share_of_true_hypervolume",
    "share_of_true_hypervolume_interval",
    "true_hypervolume",
    "whole_front_hypervolume",
)


def of_folders(results: Mapping[Path, dict[str, Any]]) -> tuple[dict[Path, dict[str, Any]], list[float] | None]:
    """Runs' results, by folder, with all hypervolumes from one point, and that point; None where they have one already.

    Raises:
      FileNotFoundError, ValueError: as `read_evaluations`.
    """
    reference = lowest(results.values())
    if reference is None:
        return dict(results), None

    def points(folder: Path, result: Mapping[str, Any]) -> list[np.ndarray]:
        return [np.array(evaluation["points"]) for evaluation in read_evaluations(folder, result)]

    return {f: moved(result, points(f, result), reference) for f, result in results.items()}, reference


def lowest(results: Iterable[Mapping[str, Any]]) -> list[float] | None:
    """The lowest [K] of the reference points of runs or evaluations; None where they have one point already.

    Results without "reference", of older versions, are of a benchmark's own rewards, whose point is fixed.
    """
    references = [result["reference"] for result in results if "reference" in result]
    if all(reference == references[0] for reference in references):
        return None
    return np.min(references, axis=0).tolist()


def moved(result: Mapping[str, Any], points: Sequence[np.ndarray], reference: Sequence[float]) -> dict[str, Any]:
    """A run's results with the hypervolumes, also those of its history, from another point.

    Args:
      result: the content of pareto.json.
      points: of each evaluation of its history, E × [M, K].
      reference: [K].

    Returns:
      The results without `OWN`.
    """
    lower = np.asarray(reference, float)
    history = [
        entry | {"hypervolume": front.hypervolume(np.asarray(at, float), lower)}
        for entry, at in zip(result["history"], points, strict=True)
    ]
    kept = {key: value for key, value in result.items() if key not in OWN}
    volume = front.hypervolume(np.asarray(result["points"], float), lower)
    return kept | {"history": history, "hypervolume": volume, "reference": list(reference)}


def read_evaluations(folder: Path, result: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The evaluations [E] of the history of the run in a folder, from its evals; `result` is its pareto.json.

    Raises:
      FileNotFoundError: an evaluation of its history is not there.
      ValueError: one is damaged; names the file.
    """
    return [read_object(folder / "evals" / f"{h['step']:06d}.json") for h in result["history"]]


def sentence(reference: Sequence[float]) -> str:
    """For people: which point the hypervolumes were moved to, and that the runs' own files have others."""
    point = ", ".join(f"{value:.4g}" for value in reference)
    return (
        f"Hypervolumes are from ({point}), the lowest of the points that the runs' first evaluations fixed, so that they can "
        "be compared; the runs' own files have them from their own points."
    )
