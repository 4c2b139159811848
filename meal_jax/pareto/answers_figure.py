"""A figure of text: one prompt's answers at several preferences.

Letters: K objectives.
"""

from __future__ import annotations

import itertools
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
WIDTH, LINE = 9.5, 0.21  # inches: the figure, a line of text
LEFT, RIGHT = 1.75, 1.55  # inches: least width of the column of bars, and of the columns of rewards together
MOST_LEFT, MOST_RIGHT = 2.5, 3.6  # where names are longer, they are cut
SMALL = 8.5  # of names, in points
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
    left, names, edges = _columns(axes, answers, objectives)
    room = edges[0][0] - left  # for the answers
    head = _lines(axes, [(prompt, None)], room, "bold")
    bodies = [_lines(axes, mark(answer["response"], objectives), room) for answer in answers]
    heights = [LINE * max(len(body), 1) + 0.2 for body in bodies]
    height = 0.5 + LINE * len(head) + sum(heights)
    figure.set_size_inches(WIDTH, height)
    axes.set(xlim=(0, WIDTH), ylim=(height, 0))

    y = 0.3
    small = {"fontsize": SMALL, "va": "center"}
    axes.text(0.15, y, "weight of", color=GREY, **small)
    axes.text(_first_name(axes), y, names[0], color=COLOURS[0], **small)
    _write(axes, head, left, y, "bold")
    for name, (_, edge), colour in zip(names[1:], edges, itertools.cycle(COLOURS), strict=False):
        axes.text(edge, y, name, color=colour, ha="right", **small)
    y += LINE * len(head)
    for answer, body, tall in zip(answers, bodies, heights, strict=True):
        axes.axhline(y, color="#DDDDDD", linewidth=0.6)
        _bar(axes, answer["preference"], left, y + 0.13)
        _write(axes, body, left, y + 0.2)
        for name, (_, edge) in zip(objectives, edges, strict=True):
            text = _number(answer["rewards"][name])
            axes.text(edge, y + 0.2, text, fontsize=SIZE, color=INK, va="center", ha="right")
        y += tall
    figure.savefig(path, dpi=DPI, facecolor="white")


def _columns(
    axes: Axes, answers: Sequence[dict[str, Any]], objectives: Sequence[str]
) -> tuple[float, list[str], list[tuple[float, float]]]:
    """The widths that names and numbers need, in inches.

    Returns:
      Where the answers begin; the first name as the column of bars has room for it, and each as its column of rewards has;
      where each column of rewards begins, and the right edge of its texts.
    """
    first = _cut(axes, objectives[0], MOST_LEFT - _first_name(axes) - 0.15)
    left = max(LEFT, _first_name(axes) + _width(axes, first, fontsize=SMALL) + 0.15)
    names = [_cut(axes, name, MOST_RIGHT / len(objectives) - 0.2) for name in objectives]
    widths = []
    for name, shown in zip(objectives, names, strict=True):
        numbers = [_width(axes, _number(answer["rewards"][name])) for answer in answers]
        needed = max(_width(axes, shown, fontsize=SMALL), *numbers) + 0.2
        widths.append(max(RIGHT / len(objectives), needed))
    ends = WIDTH - sum(widths) + np.cumsum(widths)
    return left, [first, *names], [(end - wide, end - 0.1) for end, wide in zip(ends, widths, strict=True)]


def _first_name(axes: Axes) -> float:
    """Where the name after "weight of" begins, inches from the left."""
    return 0.15 + _width(axes, "weight of", fontsize=SMALL) + 0.05


def _cut(axes: Axes, name: str, room: float) -> str:
    """A name that takes at most `room` inches, with an ellipsis for what is cut."""
    if _width(axes, name, fontsize=SMALL) <= room:
        return name
    fits = (name[:n].rstrip() + "…" for n in range(len(name) - 1, 0, -1))
    return next((text for text in fits if _width(axes, text, fontsize=SMALL) <= room), "…")


def _number(value: float) -> str:
    return f"{value:.2f}" if abs(value) < 1e6 else f"{value:.3g}"


def _bar(axes: Axes, preference: Sequence[float], end: float, top: float) -> None:
    """A preference as a bar of its weights, and the first weight as a number, in the column up to `end`."""
    left, whole = 0.15, end - 0.75
    for weight, colour in zip(preference, COLOURS, strict=False):
        axes.add_patch(Rectangle((left, top), whole * weight, 0.14, facecolor=colour, linewidth=0))
        left += whole * weight
    axes.text(end - 0.15, top + 0.07, f"{preference[0]:.2f}", fontsize=SIZE, color=INK, va="center", ha="right")


class Word(NamedTuple):
    """A word, or the part of one that an objective counts: text, the objective's number or None, inches from the left."""

    text: str
    objective: int | None
    x: float


def _lines(
    axes: Axes, parts: Sequence[tuple[str, int | None]], room: float, weight: str = "normal"
) -> list[list[Word]]:
    """Parts as lines of words that fit `room` inches; a part that begins within a word stays with it, and a word that is
    longer than a line goes on in the next."""
    gap = _width(axes, "n n", weight) - 2 * _width(axes, "n", weight)
    lines, line, x, joined = [], [], 0.0, True
    for text, objective in parts:
        for i, piece in enumerate(text.replace("\n", " ").split(" ")):
            joined = joined and i == 0  # no space between this piece and the one before
            for n, section in enumerate(_sections(axes, piece, room, weight)):
                wide = _width(axes, section, weight)
                x += 0.0 if joined or not line else gap
                if n or (line and not joined and x + wide > room):
                    lines.append(line)
                    line, x = [], 0.0
                line.append(Word(section, objective, x))
                x, joined = x + wide, True
    return [*lines, line] if line else lines


def _sections(axes: Axes, word: str, room: float, weight: str) -> list[str]:
    """A word in parts that each fit a line; [] for no word."""
    sections = []
    while word:
        length = len(word)
        while length > 1 and (wide := _width(axes, word[:length], weight)) > room:
            length = min(length - 1, int(length * room / wide) + 1)
        sections.append(word[:length])
        word = word[length:]
    return sections


def _write(axes: Axes, lines: Sequence[Sequence[Word]], left: float, y: float, weight: str = "normal") -> None:
    for i, line in enumerate(lines):
        for word in line:
            colour = INK if word.objective is None else COLOURS[word.objective]
            axes.text(left + word.x, y + LINE * i, word.text, fontsize=SIZE, color=colour, va="center", weight=weight)


def _width(axes: Axes, text: str, weight: str = "normal", fontsize: float = SIZE) -> float:
    """Inches that a text takes."""
    drawn = axes.text(0, 0, text, fontsize=fontsize, weight=weight)
    box = drawn.get_window_extent()
    drawn.remove()
    return box.width / axes.figure.dpi
