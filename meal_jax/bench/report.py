"""Measurements as rows: on the terminal, in bench.json, and as figures.

A row is a dict: side, phase, seconds (see `timing.spread`), and figures derived from these and from the cost model. JSON holds
base units: seconds, bytes, operations.
"""

from __future__ import annotations

import importlib.metadata
import os
import platform
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator
from rich.console import Console
from rich.table import Table

from meal_jax import cost
from meal_jax.bench.phases import Side
from meal_jax.bench.timing import Ceilings, spread
from meal_jax.chips import Chip
from meal_jax.pareto.figures import COLOURS, DPI, GREY, INK, MARKERS

HATCHES = ("", "///", "...", "xxx")
PACKAGES = ("jax", "jaxlib", "flax", "optax", "torch", "transformers", "peft")


def phase_row(name: str, side: Side, phase: str, samples: Sequence[float], ceilings: Ceilings) -> dict[str, Any]:
    """One phase of one side: rates from the median; MFU and share of the roofline against the measured ceilings.

    mfu is operations (without recomputation) divided by seconds and by the rate of the large product. roofline is the lower
    bound of the time divided by the seconds taken; each part of the phase is bound by the slower of the two ceilings.
    """
    devices, seconds = jax.device_count(), spread(samples)
    row = {
        "side": name,
        "phase": phase,
        "seconds": seconds,
        "tokens_per_s": side.tokens / seconds["median"],
        "samples_per_s": side.samples / seconds["median"],
    }
    program = side.programs.get(phase)
    if program is not None:
        row |= {"trace_s": program.trace_s, "compile_s": program.compile_s, "temporary_bytes": program.temporary}
    costs = side.costs()
    if costs is None:
        return row
    chip = Chip("measured", ceilings.flops * devices, 0.0, ceilings.bandwidth * devices, 0.0, 0)
    parts = costs[phase].values()
    total = sum(parts, cost.Cost())
    lower_bound = sum(max(part.flops / chip.flops, part.bytes / chip.bandwidth) for part in parts)
    return row | {
        "flops": total.flops,
        "bytes": total.bytes,
        "mfu": (total.flops - total.repeated) / chip.flops / seconds["median"],
        "least_s": lower_bound,
        "roofline": lower_bound / seconds["median"],
    }


def machine() -> dict[str, Any]:
    """The machine and the versions of a measurement."""
    versions = {}
    for package in PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else None
    return {
        "device": f"{jax.device_count()} × {jax.devices()[0].device_kind}",
        "cores": cores,
        "load_before": load,  # average number of running tasks in the last minute: above 0, others disturb
        "python": platform.python_version(),
        "versions": versions,
    }


def show(results: Mapping[str, Any], console: Console | None = None) -> None:
    """Prints the table of phases, the ratios, and one line per other figure."""
    console = console or Console(width=None if os.isatty(1) else 140)
    m, c = results["machine"], results["ceilings"]
    console.print(
        f"{m['device']}, {m['cores']} cores, load {m['load_before']:.1f}; " + results["work"], highlight=False
    )
    console.print(
        f"measured here: {quantity(c['flops'])}FLOP/s ({c['dtype']} product of {c['size']}²), "
        f"{quantity(c['bandwidth'])}B/s (copy of {quantity(c['copied'])}B)",
        highlight=False,
    )
    table = Table("side", "phase")
    for title in (
        "seconds",
        "quartiles",
        "tokens/s",
        "samples/s",
        "FLOPs",
        "bytes",
        "MFU",
        "roofline",
        "compile",
        "memory",
    ):
        table.add_column(title, justify="right")
    for row in results["rows"]:
        s = row["seconds"]
        table.add_row(
            row["side"], row["phase"], f"{s['median']:.3g}", f"{s['q1']:.3g}–{s['q3']:.3g}", f"{row['tokens_per_s']:.4g}",
            f"{row['samples_per_s']:.3g}", *(quantity(row.get(n)) for n in ("flops", "bytes")),
            *(f"{row[n]:.1%}" if n in row else "" for n in ("mfu", "roofline")),
            f"{row['trace_s'] + row['compile_s']:.1f} s" if "compile_s" in row else "", quantity(row.get("temporary_bytes")),
        )  # fmt: skip
    console.print(table)
    for title, ratios in results.get("ratios", {}).items():
        table = Table(title, "ratio of medians", "ratios of pairs: median", "quartiles")
        for name, r in ratios.items():
            p = r["of_pairs"]
            table.add_row(name, f"{r['of_medians']:.2f}", f"{p['median']:.2f}", f"{p['q1']:.2f}–{p['q3']:.2f}")
        console.print(table)
    for line in results.get("notes", ()):
        console.print(line, highlight=False)


def quantity(value: float | None) -> str:
    """1.23e9 as "1.23 G"; "" for None."""
    if value is None:
        return ""
    for factor, prefix in ((1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= factor:
            return f"{value / factor:.3g} {prefix}"
    return f"{value:.3g} "


def draw_step(path: Path, stacks: Mapping[str, Mapping[str, float]], title: str) -> None:
    """Draws the parts of a step's time: one bar per side, one segment per phase, labelled with seconds.

    Colours are Okabe and Ito's; hatches distinguish the segments without colour.
    """
    figure = Figure(figsize=(7.2, 1.5 + 0.55 * len(stacks)), layout="constrained")
    axes = figure.subplots()
    names = list(dict.fromkeys(phase for pieces in stacks.values() for phase in pieces))
    longest = max(sum(pieces.values()) for pieces in stacks.values())
    for row, pieces in enumerate(stacks.values()):
        left = 0.0
        for phase, width in pieces.items():
            n = names.index(phase)
            axes.barh(row, width, left=left, color=COLOURS[n], hatch=HATCHES[n % 4], edgecolor="white", height=0.62)
            if width > 0.06 * longest:
                box = {"facecolor": "white", "edgecolor": "none", "pad": 1.5, "alpha": 0.9}
                axes.text(
                    left + width / 2, row, f"{width:.3g}", ha="center", va="center", fontsize=8, color=INK, bbox=box
                )
            left += width
        axes.text(left + 0.01 * longest, row, f"{left:.3g} s", va="center", fontsize=9, color=INK)
    for n, phase in enumerate(names):
        axes.barh(0, 0, color=COLOURS[n], hatch=HATCHES[n % 4], edgecolor="white", label=phase)
    axes.set_yticks(range(len(stacks)), list(stacks))
    axes.invert_yaxis()
    axes.set_xlim(0, 1.13 * longest)
    _finish(axes, figure, "seconds (medians)", None, title)
    figure.savefig(path, dpi=DPI)


def draw_growth(
    path: Path, size: str, values: Sequence[float], curves: Mapping[str, Sequence[dict]], title: str
) -> None:
    """Draws how seconds grow with a size: one line per phase on two logarithmic axes, quartiles as bars.

    Args:
      path: of the figure.
      size: its name.
      values: of the size.
      curves: phase → one `timing.spread` per value.
      title: of the figure.
    """
    figure = Figure(figsize=(5.6, 4.4), layout="constrained")
    axes = figure.subplots()
    for n, (phase, spreads) in enumerate(curves.items()):
        y = np.array([[s["q1"], s["median"], s["q3"]] for s in spreads]).T
        bars = [np.maximum(y[1] - y[0], 0), np.maximum(y[2] - y[1], 0)]
        axes.errorbar(
            values, y[1], yerr=bars, label=phase, color=COLOURS[n], marker=MARKERS[n], capsize=2, linewidth=1.5
        )
    ends = np.array([values[0], values[-1]], float)
    top = max(s[0]["median"] for s in curves.values())
    axes.plot(ends, top * ends / ends[0], color=GREY, linestyle=":", linewidth=1, label="proportional")
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.set_xticks(list(values), [f"{v:g}" for v in values])
    axes.minorticks_off()
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter("{x:g}")
    _finish(axes, figure, size, "seconds", title)
    figure.savefig(path, dpi=DPI)


def _finish(axes, figure, xlabel: str, ylabel: str | None, title: str) -> None:
    axes.set_xlabel(xlabel, color=INK)
    if ylabel:
        axes.set_ylabel(ylabel, color=INK)
    axes.grid(True, axis="both" if ylabel else "x", color="#E4E4E4", linewidth=0.6)
    axes.set_axisbelow(True)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    figure.legend(loc="outside lower center", ncols=4, frameon=False, fontsize=9)
    figure.suptitle(textwrap.fill(title, int(12 * figure.get_figwidth())), fontsize=10, color=INK)
