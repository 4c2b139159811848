"""What fields of a configuration ask of each other, section by section; `config.check` calls these.

Each takes the configuration and need(ok, message), which raises ValueError where it does not hold.
"""

from __future__ import annotations

import datetime
import math
from collections.abc import Callable

import ml_collections

from meal_jax import field_types
from meal_jax.data.template_text import parse_option
from meal_jax.limits import is_interval

Need = Callable[[bool, str], None]
# Benchmark → fields that name files and that it does not read.
FILES = ("data.path", "data.posts", "reward.heads")
UNREAD = {
    "toy": ("policy.source", *FILES),
    "toy_attainable": ("policy.source", *FILES),
    "synthetic": FILES,
    "assistant": ("data.posts",),
    "stories": ("data.posts",),
}
# Preferences of an evaluation: of 1,001 in five objectives the hypervolume's intervals alone take nine minutes.
LATTICE = 1_000


def check_targets(config: ml_collections.ConfigDict, need: Need) -> None:
    """Targets leave out an interval, and types of prompts are held out, only where that means something."""
    m = config.meal
    need(
        m.gap is None or (is_interval(m.gap) and m.gap != (0, 1) and len(config.objectives) > 1),
        f"config.meal.gap={m.gap} must be two numbers between 0 and 1, the smaller first, that leave some of the "
        f"{len(config.objectives)} objectives' simplex, such as (0.4, 0.6); None leaves all.",
    )
    need(
        m.gap is None or config.method in ("meal", "static", "raft"),
        f"config.meal.gap={m.gap} is about targets, which config.method={config.method!r} does not draw: meal, static and "
        "raft do.",
    )
    need(
        config.data.split != "types" or (config.task == "stories" and not config.data.path),
        "config.data.split=types is for the task stories and its own prompts, whose types are known.",
    )


def check_meta_fraction(config: ml_collections.ConfigDict, need: Need) -> None:
    """The part of a half's prompts that the second level reads, and the rest, are whole numbers of prompts and of parts."""
    from meal_jax.meal import subset

    half, fraction, micro = config.batch_size // 2, config.meal.meta_fraction, config.micro.gradient
    try:
        taken = subset.size(half, fraction)
    except ValueError as error:
        need(False, f"config.meal.meta_fraction={fraction} of half of config.batch_size={config.batch_size}: {error}")
    common = math.gcd(half, taken)
    need(
        not micro or all(prompts <= micro or prompts % micro == 0 for prompts in (taken, half - taken)),
        f"config.micro.gradient={micro} prompts at a time do not divide the {taken} that config.meal.meta_fraction={fraction} "
        f"takes of {half} and the {half - taken} that it leaves: take {common} or a divisor of it.",
    )


def check_grid(config: ml_collections.ConfigDict, need: Need) -> None:
    """The evaluation's preferences are published for so many objectives, or a lattice that can be answered and measured."""
    k, e = len(config.objectives), config.eval
    need(
        e.grid != "paper" or k in (2, 3),
        f"config.eval.grid=paper is published for 2 and 3 objectives, not {k}: use lattice.",
    )

    def size(divisions: int) -> int:
        return math.comb(divisions + k - 1, k - 1)

    if e.grid == "lattice" and e.divisions > 0 and size(e.divisions) > LATTICE:
        fitting = max(d for d in range(1, LATTICE) if d == 1 or size(d) <= LATTICE)
        need(
            False,
            f"config.eval.divisions={e.divisions} makes {size(e.divisions):,} preferences of {k} objectives, each of which "
            f"answers every test prompt: take at most {fitting} ({size(fitting):,} preferences).",
        )


def check_texts(config: ml_collections.ConfigDict, need: Need) -> None:
    """What the prompts' format asks for."""
    d = config.data
    try:
        datetime.date.fromisoformat(d.date)
    except ValueError:
        need(False, f"config.data.date={d.date!r} is not a date as YYYY-MM-DD, such as 2024-07-26.")
    for option in d.template_options:
        parse_option(option)
    need(
        d.stop is None or all(d.stop),
        f"config.data.stop={d.stop} must be texts, such as ('\\n\\nHuman:',), or None.",
    )


def check_read(config: ml_collections.ConfigDict, need: Need) -> None:
    """Refuses models, data and heads that the benchmark would pass over."""
    for name in UNREAD.get(config.task, ()):
        section, field = name.split(".")
        value = config[section][field]
        need(
            not value,
            f"config.{name}={value!r} is not read by the task {config.task}: leave it empty. For a model, prompts and "
            "rewards of your own begin with configs/own.py.",
        )


def check_storage(config: ml_collections.ConfigDict, need: Need) -> None:
    """What is trained is stored in float32: bfloat16 has no number near enough to hold most updates, which are lost."""
    p = config.policy
    need(
        p.lora_rank > 0 or p.param_dtype == "float32",
        f"config.policy.param_dtype={p.param_dtype!r} with config.policy.lora_rank=0, which trains all weights, would round "
        "most updates away: store them in float32 (config.policy.dtype may be bfloat16), or train adapters: they are float32.",
    )


def check_adapters(config: ml_collections.ConfigDict, need: Need) -> None:
    """Adapters have a layer to stand beside."""
    from meal_jax.models.lora import LAYERS, Lora

    p = config.policy
    field_types.need_pattern("config.policy.lora_targets", p.lora_targets)
    need(
        not p.lora_rank or any(map(Lora(targets=p.lora_targets).adapts, LAYERS)),
        f"config.policy.lora_targets={p.lora_targets!r} matches no layer, so nothing would be trained. The paths of layers "
        f"are {', '.join(LAYERS)}.",
    )


def check_conditioning(config: ml_collections.ConfigDict, need: Need) -> None:
    """Adapters that read a preference need a rank to split, and stay apart from the weights."""
    kind, rank, k = config.conditioning.kind, config.policy.lora_rank, max(len(config.objectives), 1)
    if config.stage != "align" or not kind.startswith("adapter"):
        return
    need(
        rank > 0,
        f"config.conditioning.kind={kind!r} scales adapters by the preference, and config.policy.lora_rank=0 has none: set "
        f"a rank that {k} objectives divide, such as {8 * k}.",
    )
    need(
        rank % k == 0,
        f"config.policy.lora_rank={rank} cannot be split evenly among {k} objectives, as config.conditioning.kind={kind!r} "
        f"does: take {rank // k * k or k} or {(rank // k + 1) * k}.",
    )
    need(
        config.rollout.weights != "merged",
        f"config.rollout.weights='merged' folds the adapters into weights that all candidates share, but under "
        f"config.conditioning.kind={kind!r} adapters differ from candidate to candidate: take 'same' or 'int8'.",
    )
