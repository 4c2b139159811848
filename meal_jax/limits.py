"""The numbers that a run's configuration may hold, field by field; `config.check` asks, with what hangs together."""

from __future__ import annotations

import math
from typing import Any, NamedTuple


class Limit(NamedTuple):
    """Numbers that a field may have: at least `lowest`, more than `above`, at most `highest`, less than `below`; or `also`."""

    lowest: float | None = None
    above: float | None = None
    highest: float | None = None
    below: float | None = None
    also: tuple[Any, ...] = ()

    def holds(self, value: Any) -> bool:
        """Whether a value is one of them. Not-a-number never is."""
        if value in self.also or (value is None and None in self.also):
            return True
        return (
            isinstance(value, int | float)
            and math.isfinite(value)
            and (self.lowest is None or value >= self.lowest)
            and (self.above is None or value > self.above)
            and (self.highest is None or value <= self.highest)
            and (self.below is None or value < self.below)
        )

    def say(self) -> str:
        """What would do, in words."""
        words = {"at least": self.lowest, "above": self.above, "at most": self.highest, "below": self.below}
        range_ = " and ".join(f"{word} {value:g}" for word, value in words.items() if value is not None)
        return f"a finite number {range_}" + "".join(f", or {value}" for value in self.also)


def is_interval(ends: Any) -> bool:
    """Whether these are two numbers between 0 and 1, the smaller first."""
    return len(ends) == 2 and 0 <= ends[0] < ends[1] <= 1


COUNT, SIZE, SHARE, POSITIVE = Limit(lowest=0), Limit(lowest=1), Limit(lowest=0, highest=1), Limit(above=0)
SEED = Limit(lowest=0, highest=2**32 - 1)  # a key has no more
KEPT, AUTO = Limit(above=0, highest=1), Limit(lowest=1, also=(None,))
# Every number of a configuration; what depends on several fields is in `config.check`.
LIMITS: dict[str, dict[str, Limit]] = {
    "": {"seed": SEED, "steps": SIZE, "batch_size": SIZE},
    "policy": {
        "width": SIZE, "layers": SIZE, "heads": SIZE, "kv_heads": SIZE, "hidden": SIZE, "pretrain": COUNT, "lora_rank": COUNT,
        "lora_alpha": POSITIVE, "lora_dropout": Limit(lowest=0, below=1), "chunk": AUTO,
    },
    "conditioning": {"slots": SIZE, "hidden": SIZE},
    "meal": {
        "candidates": SIZE, "tau": POSITIVE, "lam": COUNT, "rho": COUNT, "beta": COUNT, "ratio_clip": POSITIVE,
        "stats_window": SIZE, "net_hidden": SIZE, "net_epsilon": POSITIVE, "passes": SIZE,
        "pass_clip": Limit(above=0, below=1), "accept_share": Limit(above=0, below=1, also=(None,)),
        "meta_fraction": KEPT,
    },
    "ppo": {
        "divisions": AUTO, "candidates": AUTO, "epochs": SIZE, "minibatches": SIZE, "clip": POSITIVE, "value_coef": COUNT,
        "gamma": SHARE, "gae_lambda": SHARE, "kl": COUNT, "kl_target": Limit(above=0, also=(None,)),
        "kl_horizon": POSITIVE, "value_clip": POSITIVE,
    },
    "ric": {
        "offline_steps": Limit(lowest=0, also=(None,)), "buffer": SIZE, "keep_quantile": Limit(lowest=0, below=1),
        "low_quantile": SHARE, "high_quantile": SHARE,
    },
    "dpo": {
        "beta": POSITIVE, "divisions": AUTO, "candidates": AUTO, "epochs": SIZE, "lam": COUNT,
        "sft_steps": Limit(lowest=0, also=(None,)),
    },
    "parm": {
        "r1": SIZE, "r2": SIZE, "alpha": POSITIVE, "beta": POSITIVE, "decode_beta": POSITIVE, "pairs": SIZE,
        "dirichlet": POSITIVE,
    },
    "sampling": {"max_new": SIZE, "temperature": POSITIVE, "top_k": COUNT, "top_p": KEPT},
    "micro": {"rollout": AUTO, "score": AUTO, "gradient": AUTO},
    "optim": {
        "lr": POSITIVE, "warmup": COUNT, "final_lr_fraction": SHARE, "weight_decay": COUNT, "clip": POSITIVE,
        "b1": Limit(lowest=0, below=1), "b2": Limit(lowest=0, below=1), "eps": POSITIVE, "eps_root": COUNT, "net_lr": POSITIVE,
    },
    "eval": {
        "prompts": SIZE, "batch_size": SIZE, "every": SIZE, "divisions": SIZE, "temperature": COUNT, "top_k": COUNT,
        "top_p": KEPT, "samples": COUNT, "bootstrap": SIZE,
    },
    "mesh": {"data": AUTO, "fsdp": AUTO, "tensor": AUTO, "slices": AUTO},
    "checkpoint": {"every": SIZE, "keep": SIZE},
    "data": {"prompt_length": COUNT},
    "reward": {"batch_size": SIZE, "copy_penalty": COUNT, "copy_free": COUNT, "missing_eos_penalty": COUNT},
}  # fmt: skip
