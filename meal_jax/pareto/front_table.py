"""The table that a run prints at its end: a line per front, what it reached and whether its answers are still language."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

COLUMNS = (
    "hypervolume", "95 % interval", "of the true", "inner product", "pairs in order", "log p/token", "repetitive",
    "distinct-2",
)  # fmt: skip


def front_table(fronts: Sequence[Mapping[str, Any]]) -> str:
    """Fronts as in pareto.json, each with its "method", as text; "–" for unknown measures.

    `pairs in order` is `pareto.front.monotonicity`, one number per objective: 1 follows every preference, 0.5 is chance.
    The last three columns are means over the preferences, see `meal_jax.fluency`.
    """
    rows = [["", *COLUMNS], *(_row(front) for front in fronts)]
    width = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    cells = [[row[0].ljust(width[0]), *(c.rjust(w) for c, w in zip(row[1:], width[1:], strict=True))] for row in rows]
    return "\n".join("  ".join(line) for line in cells)


def _row(front: Mapping[str, Any]) -> list[str]:
    def cell(name: str, form: str) -> str:
        return format(front[name], form) if front.get(name) is not None else "–"

    low, high = front["hypervolume_interval"]
    return [
        front["method"],
        cell("hypervolume", ".4f"),
        f"{low:.3f} … {high:.3f}",
        cell("share_of_true_hypervolume", ".3f"),
        cell("mean_inner_product", ".4f"),
        ", ".join(f"{value:.2f}" for value in front["monotonicity"]),
        cell("log_likelihood", ".2f"),
        cell("repetitive", ".2f"),
        cell("distinct_2", ".2f"),
    ]
