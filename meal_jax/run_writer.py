"""Where a run's numbers go: metrics.jsonl, TensorBoard with answers and fronts, and a tracker."""

from __future__ import annotations

import functools
import io
import operator
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import ml_collections
import numpy as np

from meal_jax import command, evaluate, track
from meal_jax.pareto import figures
from meal_jax.runtime.metrics import MetricWriter


def open_writer(config: ml_collections.ConfigDict, workdir: Path, start: int, metrics: Sequence[str]) -> MetricWriter:
    """A run's metrics with TensorBoard and `config.track`, from step `start` on; `metrics` name those of its table of runs."""
    values = {name: functools.reduce(operator.getitem, name.split("."), config) for name in command.leaves(config)}
    tracker = track.start(config.track, workdir, values)
    writer = MetricWriter(workdir, tensorboard=config.tensorboard, start_step=start, tracker=tracker)
    writer.hyperparameters(values, metrics)
    return writer


def show_evaluation(writer: MetricWriter, evaluation: dict[str, Any], axes: Sequence[str], label: str) -> None:
    """Writes an evaluation's sample answers and front to TensorBoard."""
    if not writer.shows:
        return
    for number, sample in enumerate(evaluation["samples"]):
        writer.text(evaluation["step"], f"samples/prompt_{number}", evaluate.markdown(sample))
    if figures.drawn(axes):
        arrays = [np.array(evaluation[name]) for name in ("preferences", "points", "points_low", "points_high")]
        picture = io.BytesIO()
        title = f"step {evaluation['step']}"
        figures.draw_fronts(picture, [figures.Front(label, *arrays)], axes, title=title)
        writer.image(evaluation["step"], "eval/front", picture.getvalue())
