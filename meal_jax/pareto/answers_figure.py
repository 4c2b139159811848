"""A figure of text: one prompt's answers at several preferences.

Letters: K objectives.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from meal_jax.pareto.figures import AS_WRITTEN, COLOURS, DPI, GREY, INK

WEIGHTS = (0.0, 0.25, 0.5, 0.75, 1.0)  # of the first objective
SIZE = 9  # of text, in points
WIDTH, LINE, LEFT, RIGHT = 9.5, 0.21, 1.75, 1.55  # inches: figure, line of text, column of bars, columns of rewards
Marks = Callable[[str, Sequence[str]], list[tuple[str, int | None]]]


def choose(answers: Sequence[dict[str, Any]], weights: Sequence[float] = WEIGHTS) -> list[dict[str, Any]]:
    """The answers whose preference lies nearest to each weight of the first objective, the rest shared equally; none twice."""
    chosen = []
    for weight in weights:

        def distance(answer, weight=weight):
            w = np.array(answer["preference"])
            preference = np.array([weight] + [(1 - weight) / max(len(w) - 1, 1)] * (len(w) - 1))
            return float(np.abs(w - preference).sum())

        best = min(answers, key=distance)
        if best not in chosen:
            chosen.append(best)
    return chosen


@matplotlib.rc_context(AS_WRITTEN)
def draw_answers(
    path: str | Path,
    prompt: str,
    answers: Sequence[dict[str, Any]],
    objectives: Sequence[str],
    mark: Marks | None = None,
) -> None:
    """Writes the figure; the suffix of `path` gives the format.

    Args:
      path: .png, .pdf or .svg.
      prompt: what all of them answer.
      answers: rows, as in pareto.json's samples: preference, response, rewards.
      objectives: K names.
      mark: (response, objectives) → its parts in order, each with the number of the objective that counts it, or None.
    """
    mark = mark or (lambda text, objectives: [(text, None)])
    figure = Figure(figsize=(WIDTH, 1), dpi=DPI)
    FigureCanvasAgg(figure)
    axes = figure.add_axes((0, 0, 1, 1))
    axes.axis("off")
    head = _lines(axes, [(prompt, None)], "bold")
    bodies = [_lines(axes, mark(answer["response"], objectives)) for answer in answers]
    heights = [LINE * max(len(body), 1) + 0.2 for body in bodies]
    height = 0.5 + LINE * len(head) + sum(heights)
    figure.set_size_inches(WIDTH, height)
    axes.set(xlim=(0, WIDTH), ylim=(height, 0))
    edges = [WIDTH - RIGHT + RIGHT * (k + 1) / len(objectives) - 0.1 for k in range(len(objectives))]

    y = 0.3
    small = {"fontsize": 8.5, "va": "center"}
    axes.text(0.15, y, "weight of", color=GREY, **small)
    axes.text(0.15 + _width(axes, "weight of", fontsize=8.5) + 0.05, y, objectives[0], color=COLOURS[0], **small)
    _write(axes, head, y, "bold")
    for name, edge, colour in zip(objectives, edges, COLOURS, strict=False):
        axes.text(edge, y, name, color=colour, ha="right", **small)
    y += LINE * len(head)
    for answer, body, tall in zip(answers, bodies, heights, strict=True):
        axes.axhline(y, color="#DDDDDD", linewidth=0.6)
        _bar(axes, answer["preference"], y + 0.13)
        _write(axes, body, y + 0.2)
        for name, edge in zip(objectives, edges, strict=True):
            text = f"{answer['rewards'][name]:.2f}"
            axes.text(edge, y + 0.2, text, fontsize=SIZE, color=INK, va="center", ha="right")
        y += tall
    figure.savefig(path, dpi=DPI, facecolor="white")


def _bar(axes: Axes, preference: Sequence[float], top: float) -> None:
    """A preference as a bar of its weights, and the first weight as a number."""
    left, whole = 0.15, LEFT - 0.75
    for weight, colour in zip(preference, COLOURS, strict=False):
        axes.add_patch(Rectangle((left, top), whole * weight, 0.14, facecolor=colour, linewidth=0))
        left += whole * weight
    axes.text(LEFT - 0.15, top + 0.07, f"{preference[0]:.2f}", fontsize=SIZE, color=INK, va="center", ha="right")


class Word(NamedTuple):
    """A word, or the part of one that an objective counts: text, the objective's number or None, inches from the left."""

    text: str
    objective: int | None
    x: float


def _lines(axes: Axes, parts: Sequence[tuple[str, int | None]], weight: str = "normal") -> list[list[Word]]:
    """Parts as lines of words that fit the column; a part that begins within a word stays with it."""
    gap = _width(axes, "n n", weight) - 2 * _width(axes, "n", weight)
    lines, line, x, joined = [], [], 0.0, True
    for text, objective in parts:
        for i, piece in enumerate(text.replace("\n", " ").split(" ")):
            joined = joined and i == 0  # no space between this piece and the one before
            if not piece:
                continue
            wide = _width(axes, piece, weight)
            x += 0.0 if joined or not line else gap
            if line and not joined and x + wide > WIDTH - LEFT - RIGHT:
                lines.append(line)
                line, x = [], 0.0
            line.append(Word(piece, objective, x))
            x, joined = x + wide, True
    return [*lines, line] if line else lines


def _write(axes: Axes, lines: Sequence[Sequence[Word]], y: float, weight: str = "normal") -> None:
    for i, line in enumerate(lines):
        for word in line:
            colour = INK if word.objective is None else COLOURS[word.objective]
            axes.text(LEFT + word.x, y + LINE * i, word.text, fontsize=SIZE, color=colour, va="center", weight=weight)


def _width(axes: Axes, text: str, weight: str = "normal", fontsize: float = SIZE) -> float:
    """Inches that a text takes."""
    drawn = axes.text(0, 0, text, fontsize=fontsize, weight=weight)
    box = drawn.get_window_extent()
    drawn.remove()
    return box.width / axes.figure.dpi
