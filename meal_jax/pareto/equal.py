"""The point of training at which runs are set side by side: its end, or where they have spent alike.

At equal spending each run is taken at its last evaluation within what the thriftiest run spent in all.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from meal_jax.json_files import read_object


class Basis(NamedTuple):
    """What --equal means: the budget's name, its axis, and what is added to titles and names of files."""

    spent: str
    axis: str = "tokens sampled in training"
    title: str = ""
    ending: str = ""


BASES = {
    "steps": Basis("rollout_tokens"),
    "tokens": Basis("rollout_tokens", title=", at equal tokens sampled", ending="_tokens"),
    "updates": Basis("updates", "optimizer steps, of all models", ", at equal optimizer steps", "_updates"),
}


def cut(results: Mapping[Path, dict[str, Any]], equal: str) -> dict[Path, dict[str, Any]]:
    """Runs' results, by folder, as of the evaluation that `equal` (a key of BASES) chooses for each.

    Args:
      results: the content of each pareto.json.
      equal: "steps" leaves them as they are.

    Raises:
      ValueError: a run has no evaluation so early, or a file is damaged.
    """
    if equal == "steps":
        return dict(results)
    spent = BASES[equal].spent
    limit = min(run["budget"][spent] for run in results.values())

    def earlier(run: dict[str, Any], folder: Path) -> dict[str, Any]:
        within = [h for h in run["history"] if h["budget"][spent] <= limit]
        if not within:  # its earlier evaluations were set aside, as ones under other settings of config.eval
            raise ValueError(
                f"{folder} has no evaluation up to {limit:,} {BASES[equal].axis}, which is all that the thriftiest run took: "
                "compare at the end of training (--equal=steps), or train it anew in another --workdir."
            )
        chosen = max(within, key=lambda h: h["step"])
        evaluation = read_object(folder / "evals" / f"{chosen['step']:06d}.json")
        whole = chosen["step"] == run["history"][-1]["step"]
        seconds = run["seconds_training"] if whole else None  # of a part of a run it is not known
        return run | evaluation | {"budget": chosen["budget"], "seconds_training": seconds}

    return {folder: earlier(run, folder) for folder, run in results.items()}


def sentence(equal: str) -> str:
    """For people: what of each run is shown at equal spending."""
    return (
        f"Each run is shown at its last evaluation within the {BASES[equal].axis} that the thriftiest run took in all "
        f"(--equal={equal}); its curves are of all of its training."
    )
