"""Metrics by step that a run's results are computed from, kept in its checkpoints.

metrics.jsonl has them too, but nobody would notice a file that was cut, damaged or deleted: tokens sampled would be too few.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from meal_jax import json_files

META = "series"  # key in a checkpoint's meta
# Name of a metric → [step, value] of each step that has it, in order. JSON has no integers for keys.
Series = dict[str, list[list[float]]]


def add(series: Series, step: int, row: Mapping[str, float]) -> None:
    """Adds a step's row of metrics, in place."""
    for name, pairs in series.items():
        if name in row:
            pairs.append([step, row[name]])


def restore(meta: Mapping[str, Any], workdir: Path, start: int, names: Sequence[str]) -> Series:
    """The series of the checkpoint that a run resumes from; of a version without them, those of metrics.jsonl.

    Args:
      meta: of that checkpoint.
      workdir: of the run.
      start: steps done; 0 begins the series.
      names: of the metrics.

    Raises:
      ValueError: metrics.jsonl is needed and lacks rows; names the steps.
    """
    if start == 0:
        return {name: [] for name in names}
    kept = meta.get(META, {})
    if all(name in kept for name in names):
        return kept
    path = workdir / "metrics.jsonl"
    rows = json_files.read_rows(path)
    absent = [step for step in range(start) if step not in rows]
    if absent:
        raise ValueError(
            f"{path} lacks the rows of {len(absent)} of {start} steps, the first of which is step {absent[0]}: it was cut or "
            f"damaged. The results need their {' and '.join(names)}, which checkpoints of this older run do not hold. Nothing "
            "there was changed. Bring the file back, or give this run a --workdir of its own."
        )
    return {name: [[step, rows[step][name]] for step in range(start) if name in rows[step]] for name in names}
