"""Figures of fronts and of curves, with Matplotlib's own Figure objects: no pyplot, no global state, no display.

Colours are Okabe and Ito's, which colour-blind readers can tell apart; markers differ too, for print in grey.

Letters: M points (one per preference), K objectives.
"""

from __future__ import annotations

import dataclasses
import itertools
import os
import re
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any, BinaryIO

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke
from matplotlib.text import Text
from matplotlib.transforms import Bbox

from meal_jax.pareto.front import non_dominated

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", ">")  # two more than colours, so that pairs of both repeat late
GREY, INK = "#8C8C8C", "#333333"
DPI = 200
AS_WRITTEN = {"text.parse_math": False}  # texts are people's: a dollar sign in a question begins no formula
MAIN_WEIGHTS = (0.0, 0.5, 1.0)  # labelled first


@dataclasses.dataclass(frozen=True)
class Front:
    """One method's points.

    Attributes:
      label: for the legend.
      preferences: [M, K] of the points.
      points: [M, K] mean rewards.
      low, high: [M, K] 95 % interval of each point, or None.
      style: "" or "before": the model before training, drawn hollow, dotted and grey, without labels.
    """

    label: str
    preferences: np.ndarray
    points: np.ndarray
    low: np.ndarray | None = None
    high: np.ndarray | None = None
    style: str = ""


def mean_front(label: str, runs: Sequence[Mapping[str, Any]]) -> Front:
    """The mean of the fronts of runs that share their preferences; each run is the content of its pareto.json."""
    return Front(label, np.array(runs[0]["preferences"]), np.mean([run["points"] for run in runs], axis=0))


def drawn(objectives: Sequence[str]) -> bool:
    """Whether fronts of these objectives have a figure."""
    return len(objectives) in (2, 3)


@matplotlib.rc_context(AS_WRITTEN)
def draw_fronts(
    path: str | os.PathLike | BinaryIO,
    fronts: Sequence[Front],
    objectives: Sequence[str],
    truth: np.ndarray | None = None,
    title: str | None = None,
    reference: Sequence[float] | None = None,
) -> None:
    """Writes a figure of Pareto fronts; the suffix of `path` gives the format.

    Two objectives: one panel. A line joins each front's points in the order of their preferences; labels at some points give
    the weight of the first objective. Three: one panel per pair of objectives, where a line joins the points that no other
    point dominates in that pair.

    Args:
      path: .png, .pdf or .svg; or a file opened for bytes, which gets a PNG.
      fronts: in the order of the legend.
      objectives: K names, 2 or 3; or names with what computes the reward, as of `rewards.sources.describe`, for the axes.
      truth: [M, K] points of the true front, if known.
      title: of the figure.
      reference: [K], the hypervolume's reference point; drawn as a cross if it is near the points.
    """
    count = len(objectives)
    if not drawn(objectives):
        raise ValueError(f"Fronts are drawn for 2 or 3 objectives, not {count}: {', '.join(objectives)}.")
    for front in fronts:
        for name in ("preferences", "points"):
            shape = np.shape(getattr(front, name))
            if shape != (len(front.points), count):
                raise ValueError(f"{name} of front {front.label!r} have shape {shape}, not [points, {count}].")
    pairs = list(itertools.combinations(range(count), 2))
    figure = Figure(figsize=(5.6, 4.9) if count == 2 else (11.5, 4.5), layout="constrained")
    for axes, (i, j) in zip(np.ravel(figure.subplots(1, len(pairs))), pairs, strict=True):
        _draw_panel(axes, fronts, i, j, truth, reference)
        _frame(axes, _axis_name(objectives[i]), _axis_name(objectives[j]))
    if count == 2:
        notes = [f"numbers: weight of {_name(objectives[0])}"]
    else:
        notes = ["lines: points not dominated in the pair", f"numbers: weights of {', '.join(map(_name, objectives))}"]
    notes += ["bars: 95 % intervals"] if any(front.low is not None for front in fronts) else []
    _finish(figure, title, "  ·  ".join(notes))
    for axes, (i, j) in zip(figure.axes, pairs, strict=True):
        _label_points(axes, fronts, i, j)
    figure.savefig(path, dpi=DPI)


@matplotlib.rc_context(AS_WRITTEN)
def draw_curves(
    path: str | os.PathLike,
    curves: Mapping[str, tuple[Sequence[float], Sequence[float]]],
    xlabel: str,
    ylabel: str,
    title: str | None = None,
) -> None:
    """Writes a figure of curves, label → (x, y); the suffix of `path` gives the format."""
    figure = Figure(figsize=(5.6, 4.2), layout="constrained")
    axes = figure.subplots()
    for n, (label, (x, y)) in enumerate(curves.items()):
        marked = (n / len(curves) / 8, 1 / 8) if len(x) > 1 else 1  # of a run that was evaluated once, its one point
        axes.plot(x, y, label=label, markevery=marked, linewidth=1.5, **_look(n))
    _frame(axes, xlabel, ylabel)
    axes.margins(x=0.02, y=0.08)
    _finish(figure, title, None)
    figure.savefig(path, dpi=DPI)


@matplotlib.rc_context(AS_WRITTEN)
def draw_sweep(
    path: str | os.PathLike,
    values: Sequence[str],
    panels: Mapping[str, Mapping[str, Sequence[tuple[float, float, float]]]],
    xlabel: str,
) -> None:
    """Writes a figure of measures against a field's values, which are evenly spaced in their order.

    Args:
      path: its suffix gives the format.
      values: of the field.
      panels: measure → label of a line → (estimate, low, high) at each value; the interval becomes an error bar.
      xlabel: the field.
    """
    figure = Figure(figsize=(4.2 * len(panels), 3.6), layout="constrained")
    position = np.arange(len(values))
    for axes, (measure, lines) in zip(np.ravel(figure.subplots(1, len(panels))), panels.items(), strict=True):
        for n, (label, estimates) in enumerate(lines.items()):
            y, low, high = np.array(estimates, float).T
            # So that error bars of several methods do not overlap
            shifted = position + 0.06 * (n - (len(lines) - 1) / 2)
            spread = np.maximum([y - low, high - y], 0)
            axes.errorbar(shifted, y, yerr=spread, label=label, linewidth=1.5, elinewidth=1, capsize=2, **_look(n))
        _frame(axes, xlabel, measure)
        axes.set_xticks(position, values)
    _finish(figure, None, "bars: 95 % intervals")
    figure.savefig(path, dpi=DPI)


def _draw_panel(axes: Axes, fronts: Sequence[Front], i: int, j: int, truth, reference) -> None:
    """The points of all fronts, objective i against objective j."""
    flat = len(fronts) > 0 and np.shape(fronts[0].points)[1] == 2
    if truth is not None:
        truth = np.asarray(truth)[:, [i, j]]
        truth = truth[non_dominated(truth)]
        axes.plot(*truth[np.argsort(truth[:, 0])].T, color=GREY, linewidth=1.2, zorder=1, label="true front")
    trained = 0
    for front in fronts:
        points = np.asarray(front.points)[:, [i, j]]
        if front.style == "before":
            look = {"color": GREY, "marker": "o", "markerfacecolor": "white", "markersize": 5, "linestyle": ":"}
        else:
            look, trained = _look(trained), trained + 1
        order = np.argsort(np.asarray(front.preferences)[:, 0], kind="stable")
        if not flat:
            order = np.flatnonzero(non_dominated(points))
            order = order[np.argsort(points[order, 0])]
        line = look | {"marker": "None", "linewidth": 1.1, "alpha": 0.7}
        axes.plot(*points[order].T, zorder=2, **line)
        if front.low is not None and front.high is not None:
            low, high = (np.asarray(bound)[:, [i, j]] for bound in (front.low, front.high))
            spread = np.maximum([points - low, high - points], 0)  # [2, M, 2]
            bars = {
                "ecolor": look["color"],
                "elinewidth": 0.7,
                "alpha": 0.2 if front.style == "before" else 0.4,
                "fmt": "none",
                "zorder": 1.5,
            }
            axes.errorbar(*points.T, xerr=spread[:, :, 0], yerr=spread[:, :, 1], **bars)
        axes.plot(*points.T, zorder=3, **look | {"linestyle": "None"})
        axes.plot([], [], label=front.label, **look | {"linewidth": 1.1})  # the legend shows line and marker together
    if reference is not None:
        x, y = reference[i], reference[j]
        (left, right), (bottom, top) = axes.get_xlim(), axes.get_ylim()
        if left - 0.3 * (right - left) < x < right and bottom - 0.3 * (top - bottom) < y < top:
            axes.plot(x, y, "+", color=INK, markersize=9, label="hypervolume reference", zorder=3)


def _label_points(axes: Axes, fronts: Sequence[Front], i: int, j: int) -> None:
    """Writes preferences next to points if the text covers nothing; the layout must be final.

    Two objectives: the weight of the first, MAIN_WEIGHTS before others. Three: only the corners of the simplex.
    """
    labelled = [front for front in fronts if front.style != "before"]
    jobs = []
    for n, front in enumerate(labelled):
        for w, point in zip(np.asarray(front.preferences), np.asarray(front.points)[:, [i, j]], strict=True):
            main = np.isclose(w[0], MAIN_WEIGHTS).any() if len(w) == 2 else np.max(w) > 1 - 1e-6
            if main or (len(w) == 2 and len(labelled) <= 3):
                label = f"{w[0]:.2f}".removesuffix("0") if len(w) == 2 else ", ".join(f"{weight:.0f}" for weight in w)
                jobs.append((not main, n, label, point))
    frame = axes.get_window_extent().padded(-4)
    occupied, bars = _ink(axes)
    for minor, n, label, point in sorted(jobs, key=lambda job: job[0]):
        text = axes.annotate(
            label, point, xytext=(0, 0), textcoords="offset points", ha="center", va="center", fontsize=7.5,
            color=_darker(_look(n)["color"]), zorder=4, path_effects=[withStroke(linewidth=2, foreground="white")],
        )  # fmt: skip
        # If nothing else is free, an important label may cross an error bar.
        tries = [(occupied, bars)] if minor else [(occupied, bars), (occupied,)]
        offset = next(filter(None, (_free_offset(text, obstacles, frame, minor) for obstacles in tries)), None)
        if offset is None:
            text.remove()
            continue
        text.set_position(offset)
        occupied = np.concatenate([occupied, _fill(text.get_window_extent())])


def _free_offset(text, obstacles: Sequence[np.ndarray], frame: Bbox, minor: bool) -> tuple[float, float] | None:
    """An offset in points at which a centred text covers no obstacle and stays in the frame; None if there is none."""
    pixels = text.axes.figure.dpi / 72  # per point
    box = text.get_window_extent()
    for distance, angle in itertools.product((1, 1.3, 1.6), (45, 225, 90, 0, 270, 180, 135, 315)):
        x = distance * np.cos(np.radians(angle)) * (box.width / pixels / 2 + 5)
        y = distance * np.sin(np.radians(angle)) * (box.height / pixels / 2 + 5)
        placed = box.translated(x * pixels, y * pixels).padded((3 if minor else 1) * pixels)
        within = frame.x0 < placed.x0 and placed.x1 < frame.x1 and frame.y0 < placed.y0 and placed.y1 < frame.y1
        if within and not any(np.all((o > placed.min) & (o < placed.max), axis=1).any() for o in obstacles):
            return x, y
    return None


def _ink(axes: Axes) -> tuple[np.ndarray, np.ndarray]:
    """Pixels [n, 2] within markers and along lines, and those along error bars, dense enough to test labels against."""
    pixels, bars = [np.zeros((0, 2))], [np.zeros((0, 2))]
    for line in axes.lines:
        points = axes.transData.transform(np.column_stack(line.get_data()).astype(float).reshape(-1, 2))
        if line.get_marker() not in ("None", None):
            size = line.get_markersize() * axes.figure.dpi / 72
            pixels += [_fill(Bbox.from_bounds(x - size / 2, y - size / 2, size, size)) for x, y in points]
        if line.get_linestyle() != "None":
            pixels += [_between(a, b) for a, b in itertools.pairwise(points)]
    for collection in axes.collections:
        bars += [_between(*axes.transData.transform(segment)) for segment in collection.get_segments()]
    return np.concatenate(pixels), np.concatenate(bars)


def _between(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return a + np.linspace(0, 1, max(2, int(np.hypot(*(b - a)) / 2)))[:, None] * (b - a)


def _fill(box: Bbox) -> np.ndarray:
    x, y = (np.linspace(low, high, 6) for low, high in zip(box.min, box.max, strict=True))
    return np.stack(np.meshgrid(x, y), axis=-1).reshape(-1, 2)


def _look(n: int) -> dict:
    """Colour and marker of the n-th line."""
    return {
        "color": COLOURS[n % len(COLOURS)],
        "marker": MARKERS[n % len(MARKERS)],
        "linestyle": ("-", "--", "-.")[n // len(COLOURS) % 3],
        "markersize": 7.5 if MARKERS[n % len(MARKERS)] in "PX" else 6,  # these two look smaller
        "markeredgecolor": "white",
        "markeredgewidth": 0.6,
    }


def _darker(colour: str) -> tuple[float, ...]:
    """The colour at 70 %, for text: light colours of the palette are hard to read on white."""
    return tuple(0.7 * int(colour[k : k + 2], 16) / 255 for k in (1, 3, 5))


def _axis_name(objective: str) -> str:
    return objective if "reward" in objective else f"{objective} reward"


def _name(objective: str) -> str:
    """An objective's name without what `rewards.sources.describe` adds to it."""
    return re.sub(r" reward( \(.*\))?$", "", objective, flags=re.DOTALL) or objective


def _frame(axes: Axes, xlabel: str, ylabel: str) -> None:
    axes.set_xlabel(xlabel, fontsize=10, color=INK)
    axes.set_ylabel(ylabel, fontsize=10, color=INK)
    axes.tick_params(labelsize=8.5, colors=INK)
    axes.grid(color="#E4E4E4", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(GREY)
    axes.margins(0.08)


def _finish(figure: Figure, title: str | None, note: str | None) -> None:
    """Adds a title above and one legend for all panels below, outside the data; wraps what is too long; fixes the layout."""
    FigureCanvasAgg(figure)
    figure.get_layout_engine().set(w_pad=0.08, h_pad=0.06)
    whole = 0.96 * figure.bbox.width
    if title:
        wrap(figure.suptitle(title, fontsize=11, color=INK), title, whole)
    handles, labels = figure.axes[0].get_legend_handles_labels()
    for columns in range(min(len(handles), 4 if len(figure.axes) == 1 else 8), 0, -1):
        balanced = -(-len(handles) // -(-len(handles) // columns))  # no row much shorter than the others
        legend = figure.legend(handles, labels, loc="outside lower center", ncols=balanced, frameon=False, fontsize=9)
        figure.draw_without_rendering()
        if columns == 1 or legend.get_window_extent().width < 0.98 * figure.bbox.width:
            break
        legend.remove()
    for text, label in zip(legend.get_texts(), labels, strict=True):
        wrap(text, label, 0.85 * whole)  # the rest is the line and the marker
    if note:
        legend.set_title(note)
        legend.get_title().set(fontsize=8, color=GREY, multialignment="center")
        wrap(legend.get_title(), note, whole)
    names = [(axes, axes.get_xlabel(), axes.get_ylabel()) for axes in figure.axes]
    for _ in range(3):  # a label of more lines makes the panels smaller
        figure.draw_without_rendering()
        for axes, xlabel, ylabel in names:
            box = axes.get_window_extent()
            wrap(axes.xaxis.label, xlabel, box.width)
            wrap(axes.yaxis.label, ylabel, box.height)
    figure.draw_without_rendering()
    figure.set_layout_engine("none")


def wrap(artist: Text, text: str, room: float, lines: int = 3) -> None:
    """Sets a text in lines that are at most `room` pixels long, whatever its angle; "…" stands for what needs more lines."""
    renderer, font = artist.figure.canvas.get_renderer(), artist.get_fontproperties()

    def length(line: str) -> float:
        return renderer.get_text_width_height_descent(line, font, ismath=False)[0]

    pieces, most = [text], len(text)
    while max(map(length, pieces), default=0) > room and most > 1:
        most = min(most - 1, int(most * room / max(map(length, pieces))) + 1)
        pieces = textwrap.wrap(text, most, max_lines=lines, placeholder=" …")
    artist.set_text("\n".join(pieces))
