"""The methods a run can train, each as the same few functions, so that training and evaluation know none by name."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import ml_collections

from meal_jax.baselines import cpo, modpo, morlhf, parm, raft, rewarded_soups, ric, static
from meal_jax.baselines.dpo import DpoConfig
from meal_jax.baselines.parm import ParmConfig
from meal_jax.baselines.ppo import PpoConfig
from meal_jax.baselines.ric import RicConfig
from meal_jax.meal import step as meal
from meal_jax.runtime.profiling import scoped


class Cost(NamedTuple):
    """What a method spends, as a function of its configuration; the budget of a results file is made of it.

    Attributes:
      answers: fresh responses a prompt and step, of all its models together.
      updates: optimizer steps a step, of each model that is trained.
      backward: backward passes that a fresh response token goes through, on average.
      models: policies (or adapters) to keep for answering every preference.
      forwards: forward passes for each token of an answer.
      frozen: how many of the models are not trained.
    """

    answers: int
    updates: int
    backward: float
    models: int = 1
    forwards: int = 1
    frozen: int = 0


class Method(NamedTuple):
    """A method.

    Attributes:
      label: for figures and tables.
      configure: the method's version of a run's configuration.
      cost: configuration (the method's version) → Cost.
      init: (setup, θ, key) → state, a pytree with `step`, `rewards` and `key`.
      rollout, score, update: the three parts of a step; signatures as in `meal.step`.
      answer: (setup, state, frozen, batch, w [B, M, K], key, sampling) → Rollout: answers preferences, at evaluation. The
        preferences are the same for every prompt.
      section: of the configuration that holds the method's own choices, and the dataclass that they fill.
      reads_base: the starting policy is needed beside the one that is trained.
      keeps_reference: scoring keeps the starting policy's hidden states, whatever config.meal.beta is.
    """

    label: str
    configure: Callable[[ml_collections.ConfigDict], ml_collections.ConfigDict]
    cost: Callable[[ml_collections.ConfigDict], Cost]
    init: Callable = meal.init_state
    rollout: Callable = meal.rollout
    score: Callable = meal.score
    update: Callable = meal.update
    answer: Callable = meal.answer
    section: tuple[str, type] | None = None
    reads_base: bool = False
    keeps_reference: bool = False

    def step(self, setup, state, frozen, batch):
        """A whole step, for rewards that are all computed on the device; where some read text, the host adds them between
        score and update."""
        rolled = scoped("rollout", self.rollout)(setup, state, frozen, batch)
        scores = scoped("score", self.score)(setup, frozen, batch, rolled.responses)
        return scoped("update", self.update)(setup, state, frozen, batch, rolled, scores)

    def options(self, config: ml_collections.ConfigDict) -> Any:
        """The method's own choices; None if it has none."""
        if self.section is None:
            return None
        name, kind = self.section
        return kind(**config[name])


def _meal_cost(config: ml_collections.ConfigDict) -> Cost:
    m = config.meal
    # Halves of the pool: the policy's two updates, the virtual one, the meta-objective, and the mixed derivative.
    virtual = 0.0 if m.reuse_virtual else 0.5
    mixed = 0.5 if m.hypergradient == "exact" else 0.0
    return Cost(m.candidates, 2 * m.passes, m.passes + (virtual + m.meta_fraction * (0.5 + mixed) if m.net else 0.0))


def _ppo_cost(config: ml_collections.ConfigDict, members: int, mixes: bool = False) -> Cost:
    o = config.ppo
    return Cost(members * o.candidates, o.epochs * o.minibatches, o.epochs, members, members if mixes else 1)


def _modpo_cost(config: ml_collections.ConfigDict) -> Cost:
    o, members = config.dpo, modpo.grid_size(config)
    return Cost(members * o.candidates, o.epochs, 2 * o.epochs / o.candidates, members)


def _parm_cost(config: ml_collections.ConfigDict) -> Cost:
    n = config.meal.candidates
    return Cost(n, 2, 2 * config.parm.pairs * len(config.objectives) / n, 2, 2, frozen=1)


_ppo = functools.partial(
    Method,
    rollout=morlhf.rollout,
    update=morlhf.update,
    section=("ppo", PpoConfig),
    reads_base=True,
    keeps_reference=True,
)
_soups = functools.partial(_ppo, configure=rewarded_soups.configure, init=rewarded_soups.init)

METHODS: dict[str, Method] = {
    "meal": Method("Meal", lambda config: config.copy_and_resolve_references(), _meal_cost),
    "static": Method("static targets", static.configure, _meal_cost),
    "raft": Method("RAFT", raft.configure, _meal_cost),
    "morlhf": _ppo(
        "MORLHF", configure=morlhf.configure, cost=lambda c: _ppo_cost(c, morlhf.grid_size(c)), init=morlhf.init,
        answer=morlhf.answer,
    ),
    "soups": _soups(
        "Rewarded Soups", cost=lambda c: _ppo_cost(c, len(c.objectives)), answer=rewarded_soups.answer
    ),
    "mod": _soups("MOD", cost=lambda c: _ppo_cost(c, len(c.objectives), mixes=True), answer=rewarded_soups.answer_mixed),
    "ric": Method(
        "RiC", ric.configure, lambda c: Cost(c.meal.candidates, 2, 1.0), ric.init, ric.rollout, update=ric.update,
        answer=ric.answer, section=("ric", RicConfig), reads_base=True,
    ),
    "parm": Method(
        "PARM", parm.configure, _parm_cost, parm.init, parm.rollout, update=parm.update, answer=parm.answer,
        section=("parm", ParmConfig), reads_base=True,
    ),
    "modpo": Method(
        "MODPO", modpo.configure, _modpo_cost, modpo.init, modpo.rollout, update=modpo.update, answer=modpo.answer,
        section=("dpo", DpoConfig), reads_base=True, keeps_reference=True,
    ),
    "cpo": Method(
        "CPO", cpo.configure, lambda c: Cost(c.meal.candidates, c.dpo.epochs, c.dpo.epochs), cpo.init, cpo.rollout,
        update=cpo.update, answer=cpo.answer, section=("dpo", DpoConfig), reads_base=True,
    ),
}  # fmt: skip


def get(name: str) -> Method:
    """The method called `name`.

    Raises:
      ValueError: there is none; lists those there are.
    """
    if name not in METHODS:
        raise ValueError(f"config.method={name!r} is not one of {', '.join(METHODS)}.")
    return METHODS[name]


def configure(name: str, config: ml_collections.ConfigDict) -> ml_collections.ConfigDict:
    """The version of a configuration that trains the method `name`.

    Raises:
      ValueError: as `get`; or the method cannot run with the configuration's choices.
    """
    method = get(name)
    out = method.configure(config)
    out.method = name
    method.options(out)
    return out
