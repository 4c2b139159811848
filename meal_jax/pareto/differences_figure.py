"""A figure of paired differences with their intervals, one row per question."""

from __future__ import annotations

import os
import textwrap
from collections.abc import Mapping, Sequence

import matplotlib
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from meal_jax.pareto.figures import AS_WRITTEN, COLOURS, DPI, GREY, INK, MARKERS

Estimate = tuple[float, float, float]
LABEL = 45  # characters of a line of a row's label; longer ones leave the estimates no room


@matplotlib.rc_context(AS_WRITTEN)
def draw_differences(
    path: str | os.PathLike,
    rows: Sequence[str],
    groups: Mapping[str, Sequence[Estimate | None]],
    xlabel: str,
    title: str | None = None,
) -> None:
    """Writes a figure of (estimate, low, high) against 0; the suffix of `path` gives the format.

    Args:
      path: .png, .pdf or .svg.
      rows: labels, from the top down.
      groups: label → an estimate for each row, None where there is none; drawn side by side.
      xlabel: what the estimates are.
      title: of the figure.
    """
    wrapped = [textwrap.wrap(row, LABEL, break_on_hyphens=False) for row in rows]
    tall = max(0.34, 0.1 + 0.14 * max(map(len, wrapped), default=1))
    figure = Figure(figsize=(7.2, 1.2 + tall * len(rows)), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    axes.axvline(0, color=GREY, linewidth=1)
    for n, (label, estimates) in enumerate(groups.items()):
        shift = 0.22 * (n - (len(groups) - 1) / 2)
        drawn = [(y + shift, *estimate) for y, estimate in enumerate(estimates) if estimate is not None]
        y, middle, low, high = np.array(drawn, float).reshape(-1, 4).T
        spread = np.maximum([middle - low, high - middle], 0)
        axes.errorbar(middle, y, xerr=spread, fmt=MARKERS[n], color=COLOURS[n], markersize=4.5, elinewidth=1.2, capsize=2,
                      label=label)  # fmt: skip
    axes.set_yticks(range(len(rows)), ["\n".join(lines) for lines in wrapped], fontsize=8, color=INK)
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.set_xlabel(xlabel, fontsize=9, color=INK)
    axes.tick_params(axis="x", labelsize=8, colors=INK)
    axes.grid(axis="x", color="#E4E4E4", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.spines["bottom"].set_color(GREY)
    figure.legend(loc="outside lower center", ncols=len(groups), frameon=False, fontsize=8)
    if title:
        figure.suptitle(title, fontsize=10, color=INK)
    figure.savefig(path, dpi=DPI)
