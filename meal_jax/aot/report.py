"""The report from compiled programs and the cost model: does a run fit, how long is a step, and what limits it.

Times are lower bounds: a program takes at least as long as its slowest resource (matrix units, HBM or network), with the other
two hidden behind it. Real steps take longer. The network is assumed to use all links of a chip at once, without latency.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
from rich import box
from rich.console import Console
from rich.table import Table

from meal_jax import cost, roofline
from meal_jax.aot import compiler, memory
from meal_jax.aot.abstract import Plan
from meal_jax.aot.compiler import Compiled
from meal_jax.aot.topology import Topology
from meal_jax.chips import Chip


class Row(NamedTuple):
    """One program of a step on a topology.

    Attributes:
      program: the compiler's figures.
      cost: by the cost model, over all chips and all calls of a step.
      bound: lower bound of the seconds by resource, for the same.
    """

    program: Compiled
    cost: cost.Cost
    bound: roofline.Bound


class Report(NamedTuple):
    """A step on a topology.

    Attributes:
      topology, mesh: the devices; axis → size.
      rows: programs.
      analytic: kind → bytes per chip by the cost model.
      compiled: whether it was compiled for the chip itself; memory of fake devices is not reported.
      quick: whether the compiler ran with less effort.
    """

    topology: Topology
    mesh: dict[str, int]
    rows: tuple[Row, ...]
    analytic: dict[str, float]
    compiled: bool
    quick: bool = False

    @property
    def problems(self) -> list[str]:
        """Programs that did not compile, and why."""
        return [f"{row.program.name}: {row.program.problem}" for row in self.rows if row.program.problem]

    @property
    def peak(self) -> float:
        """Peak bytes per chip: by the compiler, or for fake devices by the cost model."""
        return max(row.program.total for row in self.rows) if self.compiled else memory.peak(self.analytic)

    @property
    def fits(self) -> bool:
        """Whether all programs compile and fit the chip's memory."""
        return not self.problems and self.peak <= self.topology.chip.memory

    @property
    def seconds(self) -> float:
        """Lower bound of the time of a step."""
        return sum(row.bound.seconds for row in self.rows)

    @property
    def mfu(self) -> float:
        """Upper bound of the model FLOPs utilisation: operations without recomputation, over those possible in `seconds`."""
        useful = sum(row.cost.flops - row.cost.repeated for row in self.rows)
        return useful / (self.topology.chips * self.topology.chip.flops * self.seconds)

    @property
    def efficiency(self) -> tuple[float, float]:
        """Speed per chip over that of a single chip with its share of the batch: (network exposed, network hidden)."""
        alone = sum(max(row.bound.compute, row.bound.memory) for row in self.rows)
        return alone / (alone + sum(row.bound.network for row in self.rows)), alone / self.seconds


def make_report(
    plan: Plan, config, topology: Topology, compiled: Sequence[Compiled], for_chip: bool, quick: bool = False
) -> Report:
    """The Report of compiled programs. `for_chip`: compiled for the topology's own chips; `quick`: see Report."""
    run = cost.of_setup(plan.setup, config.batch_size, plan.batch.tokens.shape[1])
    mesh = dict(plan.mesh.shape)
    rows = tuple(_row(program, plan, run, mesh, topology.chip) for program in compiled)
    analytic = memory.estimate(run, mesh, base_copies=1 if plan.frozen.base is None else 2)
    sizes = compiler.bytes_on_chip(plan.rewards)
    return Report(topology, mesh, rows, analytic | ({"reward models": sizes} if sizes else {}), for_chip, quick)


def _row(program: Compiled, plan: Plan, run: cost.Run, mesh: Mapping[str, int], chip: Chip) -> Row:
    phases, (phase, _, name) = cost.phases(run), program.name.partition("/")
    if phase == "reward":
        parameters = sum(leaf.size for leaf in jax.tree.leaves(plan.rewards[name]))
        length = min(compiler.reward_tokens(plan), plan.classifiers[name].max_length)
        part = cost.encoder(parameters, run.prompts * run.candidates, length)
        part = dataclasses.replace(part, weights=part.weights * program.calls)
    else:
        part = sum(phases.values(), cost.Cost()) if phase == "step" else phases[phase]
    return Row(program, part, roofline.bound(part, chip, mesh, program.calls * program.collectives.network))


def show(report: Report, console: Console | None = None) -> None:
    """Prints the tables and the verdict."""
    console = console or Console(soft_wrap=True)
    chip, mesh = report.topology.chip, " × ".join(f"{axis}={size}" for axis, size in report.mesh.items())
    title = f"{report.topology.name}, {report.topology.chips} chips of {chip.memory / 1e9:.0f} GB, mesh {mesh}"
    console.print(f"[bold]{title}[/bold]")
    console.print(_memory_table(report), _time_table(report), _collectives_table(report), sep="\n")
    for problem in report.problems:
        console.print(f"did not compile: {problem}", markup=False)
    low, high = report.efficiency
    source = "by the compiler" if report.compiled else "by the cost model"
    console.print(
        f"memory   {report.peak / 1e9:.2f} GB per chip of {chip.memory / 1e9:.0f} ({source}): "
        f"{'[green]fits' if report.fits else '[red]does not fit'}[/]"
    )
    if report.quick and report.compiled and not report.fits:
        console.print("It may fit without --quick: compiled as for training, a step can need a fifth less memory.")
    console.print(f"step     at least {report.seconds:.2f} s; MFU at most {report.mfu:.0%}")
    console.print(f"scaling  {low:.0%} (network exposed) to {high:.0%} (network hidden) of a single chip's speed")
    if any(row.program.collectives.at_most for row in report.rows):
        console.print("Loops that may end early are counted in full: collectives of decoding are upper bounds.")


def _table(title: str, columns: Sequence[str]) -> Table:
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD)
    for i, name in enumerate(columns):
        table.add_column(name, justify="right" if i else "left")
    return table


def _memory_table(report: Report) -> Table:
    if not report.compiled:
        table = _table("Memory per chip by the cost model, GB", ["kind", "GB"])
        for kind, value in report.analytic.items():
            table.add_row(kind, f"{value / 1e9:.2f}")
        return table
    columns = ["program", "arguments", "output", "temporary", "code", "other arrays", "total"]
    table = _table("Memory per chip by the compiler, GB", columns)
    for row in report.rows:
        p = row.program
        values = (p.arguments, p.output, p.temporary, p.code, p.resident, p.total)
        table.add_row(p.name, *(f"{value / 1e9:.2f}" for value in values))
    return table


def _time_table(report: Report) -> Table:
    columns = ["program", "calls", "TFLOP", "compute s", "HBM s", "network s", "bound", "compile s"]
    table = _table("Lower bound of the time", columns)
    for row in report.rows:
        b = row.bound
        seconds = (f"{value:.3f}" for value in b)
        table.add_row(
            row.program.name,
            f"{row.program.calls}",
            f"{row.cost.flops / 1e12:.1f}",
            *seconds,
            b.by,
            f"{row.program.seconds:.0f}",
        )
    return table


def _collectives_table(report: Report) -> Table:
    table = _table("Collectives of a step", ["program", "kind", "count", "payload GB", "received per chip GB"])
    for row in report.rows:
        bound = "≤ " if row.program.collectives.at_most else ""
        for kind, total in row.program.collectives.kinds.items():
            count, payload, network = (row.program.calls * value for value in total)
            table.add_row(
                row.program.name, kind, f"{bound}{count:,.0f}", f"{payload / 1e9:.3f}", f"{network / 1e9:.3f}"
            )
    return table


def as_json(report: Report) -> dict[str, Any]:
    """All figures as JSON values."""
    low, high = report.efficiency
    return {
        "topology": report.topology.name,
        "chips": report.topology.chips,
        "chip": report.topology.chip._asdict(),
        "mesh": report.mesh,
        "fits": report.fits,
        "compiled_for_the_chip": report.compiled,
        "quick": report.quick,
        "bytes_per_chip": report.peak,
        "bytes_per_chip_by_arithmetic": report.analytic,
        "step_seconds_at_least": report.seconds,
        "mfu_at_most": report.mfu,
        "weak_scaling_efficiency": {"network_exposed": low, "network_hidden": high},
        "problems": report.problems,
        "programs": [
            {
                **{name: value for name, value in row.program._asdict().items() if name != "collectives"},
                "total": row.program.total,
                "collectives": {kind: total._asdict() for kind, total in row.program.collectives.kinds.items()},
                "collectives_at_most": row.program.collectives.at_most,
                "flops": row.cost.flops,
                "flops_repeated": row.cost.repeated,
                "bound": row.bound._asdict(),
                "bound_by": row.bound.by,
            }
            for row in report.rows
        ],
    }
