"""How a step's cost grows, by the cost model alone: the tables and figures of docs/scaling.md.

python -m meal_jax.aot.figures --out=docs
"""

import dataclasses
from collections.abc import Iterator
from pathlib import Path

from absl import flags

from meal_jax import command, cost, roofline
from meal_jax.chips import CHIPS, Chip
from meal_jax.hf import families, known
from meal_jax.models.lora import Lora

PHASES = ("rollout", "score", "update")
COLOURS = {"rollout": "#4477aa", "score": "#ccbb44", "update": "#aa3377"}
MODELS = {
    "135M": "HuggingFaceTB/SmolLM2-135M-Instruct",
    "1.7B": "HuggingFaceTB/SmolLM2-1.7B-Instruct",
    "7B": "meta-llama/Llama-2-7b-hf",
    "8B": "Qwen/Qwen3-8B",
    "13B": "meta-llama/Llama-2-13b-hf",
}


def model(name: str):
    """A policy as in configs/reddit.py and configs/assistant.py."""
    adapters = Lora(64, 128.0, 0.05, r"attention/(q|v)$")
    parsed = families.parse(known.DECODERS[MODELS[name]], name)
    return dataclasses.replace(parsed, dtype="bfloat16", param_dtype="bfloat16", remat="full", lora=adapters)


# Reddit Summary: 16 prompts of 512 tokens, 8 candidates of 48; a prefix of 4 and a prompt's tail of 6.
BASE = cost.Run(model("7B"), 16, 8, 512, 48, slots=10, tail=6, chunk=16)
MESH = {"data": 1, "fsdp": 8, "tensor": 2}
CHIP = CHIPS["v5e"]


def seconds(run: cost.Run, mesh=None, chip: Chip = CHIP) -> dict[str, roofline.Bound]:
    """Lower bound of the seconds of each part of a step. All passes but decoding gather the weights."""
    mesh = MESH if mesh is None else mesh
    out = {}
    for name, part in cost.step(run).items():
        received = 0.0 if name == "rollout/decode" else roofline.gathered(part, mesh)
        out[name] = roofline.bound(part, chip, mesh, received)
    return out


def by_phase(bounds: dict[str, roofline.Bound]) -> dict[str, float]:
    """Seconds of each phase."""
    return {p: sum(b.seconds for name, b in bounds.items() if name.startswith(p)) for p in PHASES}


def sweeps() -> Iterator[tuple[str, dict[str, tuple[cost.Run, dict[str, int]]]]]:
    """The name of the varied size, and label → (run, mesh)."""

    def change(**fields) -> cost.Run:
        return dataclasses.replace(BASE, **fields)

    yield "model", {name: (change(model=model(name)), MESH) for name in MODELS}
    yield "candidates N", {str(n): (change(candidates=n), MESH) for n in (2, 4, 8, 16, 32)}
    yield "response tokens T", {str(t): (change(max_new=t), MESH) for t in (48, 128, 256, 512)}
    yield (
        "chips, one prompt each",
        {str(8 * d): (change(prompts=8 * d), {"data": 1, "fsdp": 4 * d, "tensor": 2}) for d in (1, 2, 4, 8)},
    )


def growth(path: Path) -> None:
    """Draws stacked bars of the lower bound of seconds by phase, one panel per size that grows."""
    from matplotlib import pyplot as plt

    panels = list(sweeps())
    figure, axes = plt.subplots(1, len(panels), figsize=(13, 3.4), layout="constrained")
    for axis, (size, runs) in zip(axes, panels, strict=True):
        bottom = [0.0] * len(runs)
        bars = [by_phase(seconds(run, mesh)) for run, mesh in runs.values()]
        for phase in PHASES:
            heights = [bar[phase] for bar in bars]
            axis.bar(range(len(runs)), heights, bottom=bottom, label=phase, color=COLOURS[phase])
            bottom = [a + b for a, b in zip(bottom, heights, strict=True)]
        axis.set(xlabel=size, ylim=(0, None), xticks=range(len(runs)), xticklabels=list(runs))
        axis.spines[["top", "right"]].set_visible(False)
    axes[0].set_ylabel(f"seconds per step (lower bound), {CHIP.name}")
    axes[0].legend(frameon=False)
    figure.savefig(path, dpi=130)
    plt.close(figure)


def roofline(path: Path) -> None:
    """Draws each part of a step by operations per byte of HBM traffic, under the chip's ceilings; decoding per row count."""
    from matplotlib import pyplot as plt

    figure, axis = plt.subplots(figsize=(7.5, 4.2), layout="constrained")
    grid = [10 ** (i / 20) for i in range(0, 72)]
    for name in ("v5e", "v5p", "v6e", "h100"):
        chip = CHIPS[name]
        axis.plot(grid, [min(chip.flops, x * chip.bandwidth) / 1e12 for x in grid], label=name, lw=1.2)
    alone = {"data": 1, "fsdp": 1, "tensor": 1}
    parts = cost.phases(BASE)
    points = {"prefill": cost.rollout(BASE)["prefill"], "score": parts["score"], "update": parts["update"]}
    for rows in (2, 16, 128):
        points[f"decode, {rows * 8} rows"] = cost.rollout(dataclasses.replace(BASE, prompts=rows))["decode"]
    below = {"prefill": -14, "score": -26}
    for name, part in points.items():
        flops, moved = roofline.on_chip(part, alone)
        rate = min(CHIP.flops, flops / moved * CHIP.bandwidth) / 1e12
        axis.plot(flops / moved, rate, "o", color=COLOURS.get(name, COLOURS["rollout"]))
        axis.annotate(name, (flops / moved, rate), (6, below.get(name, -14)), textcoords="offset points", size=9)
    axis.set(
        xscale="log", yscale="log", xlabel="operations per byte of HBM traffic", ylabel="TFLOP/s per chip, upper bound"
    )
    axis.legend(frameon=False)
    axis.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=130)
    plt.close(figure)


def tables() -> str:
    """Markdown: the parts of the base step, and the growth with each size."""
    rows = [
        "| part | TFLOP | HBM GB per chip | compute s | HBM s | network s | bound |",
        "|---|---|---|---|---|---|---|",
    ]
    costs = cost.step(BASE)
    for name, b in seconds(BASE).items():
        moved = roofline.on_chip(costs[name], MESH)[1] / 1e9
        times = " | ".join(f"{value:.3f}" for value in b)
        rows.append(f"| {name} | {costs[name].flops / 1e12:.1f} | {moved:.1f} | {times} | {b.by} |")
    rows += ["", "| what grows | value | rollout s | score s | update s | step s |", "|---|---|---|---|---|---|"]
    for size, runs in sweeps():
        for label, (run, mesh) in runs.items():
            p = by_phase(seconds(run, mesh))
            rows.append(f"| {size} | {label} | {' | '.join(f'{p[n]:.2f}' for n in PHASES)} | {sum(p.values()):.2f} |")
    return "\n".join(rows)


def bilevel_ratios() -> str:
    """Markdown: operations of an update, and of a step, over those of a plain step with the same rollouts."""
    plain = cost.phases(dataclasses.replace(BASE, net=False))
    plain_step = sum(part.flops for part in plain.values())
    rows = ["| hypergradient | reuse_virtual | update | step |", "|---|---|---|---|"]
    for kind in ("exact", "first_order", "none"):
        for reuse in (True, False):
            phases = cost.phases(dataclasses.replace(BASE, hypergradient=kind, reuse_virtual=reuse))
            update = phases["update"].flops / plain["update"].flops
            rows.append(
                f"| {kind} | {reuse} | {update:.2f} | {sum(part.flops for part in phases.values()) / plain_step:.2f} |"
            )
    return "\n".join(rows)


def run() -> None:
    out = Path(flags.FLAGS.out)
    out.mkdir(parents=True, exist_ok=True)
    growth(out / "scaling_growth.png")
    roofline(out / "scaling_roofline.png")
    print(f"{tables()}\n\n{bilevel_ratios()}")


if __name__ == "__main__":
    flags.DEFINE_string("out", "docs", "Directory of scaling_growth.png and scaling_roofline.png.")
    command.main(run)
