"""How a step's cost grows, from the cost model alone: the tables and pictures of docs/scaling.md.

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
    """A policy as configs/reddit.py and configs/assistant.py have it."""
    adapters = Lora(64, 128.0, 0.05, r"attention/(q|v)$")
    parsed = families.parse(known.DECODERS[MODELS[name]], name)
    return dataclasses.replace(parsed, dtype="bfloat16", param_dtype="bfloat16", remat="full", lora=adapters)


# Reddit Summary: 16 prompts of 512 tokens, 8 candidates of 48; a prefix of 4 and a prompt's tail of 6.
BASE = cost.Run(model("7B"), 16, 8, 512, 48, slots=10, tail=6, chunk=16)
MESH = {"data": 1, "fsdp": 8, "tensor": 2}
CHIP = CHIPS["v5e"]


def seconds(run: cost.Run, mesh=None, chip: Chip = CHIP) -> dict[str, roofline.Bound]:
    """Least seconds of each part of a step. Weights are gathered for every pass but decoding, where they stay."""
    mesh = MESH if mesh is None else mesh
    out = {}
    for name, one in cost.step(run).items():
        sent = 0.0 if name == "rollout/decode" else roofline.gathered(one, mesh)
        out[name] = roofline.bound(one, chip, mesh, sent)
    return out


def by_phase(bounds: dict[str, roofline.Bound]) -> dict[str, float]:
    """Seconds of each phase."""
    return {p: sum(b.seconds for name, b in bounds.items() if name.startswith(p)) for p in PHASES}


def sweeps() -> Iterator[tuple[str, dict[str, tuple[cost.Run, dict[str, int]]]]]:
    """What is varied, and by label the run and its mesh."""
    change = lambda **fields: dataclasses.replace(BASE, **fields)  # noqa: E731
    yield "model", {name: (change(model=model(name)), MESH) for name in MODELS}
    yield "candidates N", {str(n): (change(candidates=n), MESH) for n in (2, 4, 8, 16, 32)}
    yield "response tokens T", {str(t): (change(max_new=t), MESH) for t in (48, 128, 256, 512)}
    yield (
        "chips, a prompt each",
        {str(8 * d): (change(prompts=8 * d), {"data": 1, "fsdp": 4 * d, "tensor": 2}) for d in (1, 2, 4, 8)},
    )


def growth(path: Path) -> None:
    """Stacked bars of least seconds by phase, a panel for each thing that grows."""
    from matplotlib import pyplot as plt

    found = list(sweeps())
    figure, axes = plt.subplots(1, len(found), figsize=(13, 3.4), layout="constrained")
    for axis, (what, runs) in zip(axes, found, strict=True):
        bottom = [0.0] * len(runs)
        bars = [by_phase(seconds(run, mesh)) for run, mesh in runs.values()]
        for phase in PHASES:
            heights = [bar[phase] for bar in bars]
            axis.bar(range(len(runs)), heights, bottom=bottom, label=phase, color=COLOURS[phase])
            bottom = [a + b for a, b in zip(bottom, heights, strict=True)]
        axis.set(xlabel=what, ylim=(0, None), xticks=range(len(runs)), xticklabels=list(runs))
        axis.spines[["top", "right"]].set_visible(False)
    axes[0].set_ylabel(f"least seconds a step, {CHIP.name}")
    axes[0].legend(frameon=False)
    figure.savefig(path, dpi=130)
    plt.close(figure)


def roofline(path: Path) -> None:
    """Each part of a step by operations a byte of HBM traffic, under the chip's ceilings; decoding by the rows it has."""
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
    for name, one in points.items():
        flops, moved = roofline.on_chip(one, alone)
        at = min(CHIP.flops, flops / moved * CHIP.bandwidth) / 1e12
        axis.plot(flops / moved, at, "o", color=COLOURS.get(name, COLOURS["rollout"]))
        axis.annotate(name, (flops / moved, at), (6, below.get(name, -14)), textcoords="offset points", size=9)
    axis.set(xscale="log", yscale="log", xlabel="operations a byte of HBM traffic", ylabel="TFLOP/s a chip, at most")
    axis.legend(frameon=False)
    axis.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=130)
    plt.close(figure)


def tables() -> str:
    """Markdown: the parts of the base step, and how each sweep grows."""
    rows = ["| part | TFLOP | HBM GB a chip | compute s | HBM s | network s | bound |", "|---|---|---|---|---|---|---|"]
    costs = cost.step(BASE)
    for name, b in seconds(BASE).items():
        moved = roofline.on_chip(costs[name], MESH)[1] / 1e9
        times = " | ".join(f"{value:.3f}" for value in b)
        rows.append(f"| {name} | {costs[name].flops / 1e12:.1f} | {moved:.1f} | {times} | {b.by} |")
    rows += ["", "| what grows | value | rollout s | score s | update s | step s |", "|---|---|---|---|---|---|"]
    for what, runs in sweeps():
        for label, (run, mesh) in runs.items():
            p = by_phase(seconds(run, mesh))
            rows.append(f"| {what} | {label} | {' | '.join(f'{p[n]:.2f}' for n in PHASES)} | {sum(p.values()):.2f} |")
    return "\n".join(rows)


def bilevel_ratios() -> str:
    """Markdown: operations of an update, and of a step, over those of a plain step with the same rollouts."""
    plain = cost.phases(dataclasses.replace(BASE, net=False))
    whole = sum(one.flops for one in plain.values())
    rows = ["| hypergradient | reuse_virtual | update | step |", "|---|---|---|---|"]
    for kind in ("exact", "first_order", "none"):
        for reuse in (True, False):
            found = cost.phases(dataclasses.replace(BASE, hypergradient=kind, reuse_virtual=reuse))
            update = found["update"].flops / plain["update"].flops
            rows.append(f"| {kind} | {reuse} | {update:.2f} | {sum(one.flops for one in found.values()) / whole:.2f} |")
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
