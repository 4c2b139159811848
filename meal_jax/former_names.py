"""Fields of a run's configuration that older versions called otherwise, or gave numbers that stood for a choice.

Saved configurations are read under both names; on the command line a former name is refused with the new one.
"""

from typing import Any

RENAMED = {
    "beside": "compare_with",
    "dpo.sft": "dpo.sft_steps",
    "meal.horizon": "meal.stats_window",
    "optim.final": "optim.final_lr_fraction",
    "ric.high": "ric.high_quantile",
    "ric.low": "ric.low_quantile",
    "ric.offline": "ric.offline_steps",
    "rollout.apart": "rollout.unstack_layers",
}
# Numbers that stood for "decided by other fields", "all" or "off", which is None now.
NUMBERS = {
    "dpo.candidates": -1,
    "dpo.divisions": -1,
    "dpo.sft_steps": -1,
    "meal.accept_share": 0,
    "mesh.data": -1,
    "mesh.fsdp": -1,
    "mesh.slices": -1,
    "mesh.tensor": -1,
    "micro.gradient": 0,
    "micro.rollout": 0,
    "micro.score": 0,
    "policy.chunk": 0,
    "ppo.candidates": -1,
    "ppo.divisions": -1,
    "ppo.kl_target": 0,
    "ric.offline_steps": -1,
}
# Methods that set meal.beta to this field's value to have the reference kept (`Setup.keep_reference` now); they read no β.
SWITCHED = {"mod": "ppo.kl", "modpo": "dpo.beta", "morlhf": "ppo.kl", "soups": "ppo.kl"}


def upgrade(values: dict[str, Any]) -> dict[str, Any]:
    """A saved configuration, as JSON gives it, under today's names. The argument is left as it is."""
    values = {name: dict(value) if isinstance(value, dict) else value for name, value in values.items()}

    def home(name: str) -> tuple[dict[str, Any], str]:
        section, _, leaf = name.rpartition(".")
        return (values.get(section, {}) if section else values), leaf

    for old, new in RENAMED.items():
        fields, leaf = home(old)
        if leaf in fields:
            fields[new.rpartition(".")[2]] = fields.pop(leaf)
    for name, number in NUMBERS.items():
        fields, leaf = home(name)
        if fields.get(leaf) == number:
            fields[leaf] = None
    switch = SWITCHED.get(values.get("method"))
    if switch and values["meal"]["beta"] == home(switch)[0].get(home(switch)[1]):
        values["meal"]["beta"] = 0.0
    return values
