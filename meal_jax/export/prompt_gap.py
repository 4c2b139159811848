"""How far a served model is from the trained policy where adapters read the preference.

In training the prompt is read at the uniform preference, so that all candidates share its pass, and the answer at its own
(`config.conditioning.prompt=uniform`). A plain model has one set of weights and reads both at the preference it answers under.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from meal_jax.meal.state import Batch
from meal_jax.meal.step import respond
from meal_jax.models.lora import merge
from meal_jax.models.policy import token_stats
from meal_jax.rollout.sampling import Sampling
from meal_jax.saved_run import Run

PROMPTS = 16


class Gap(NamedTuple):
    """Over the tokens of answers that the trained policy drew at a temperature of 1.

    Attributes:
      prompts, tokens: how many.
      kl: mean of KL(trained ‖ served) over tokens, nats.
      shift, largest: mean and largest |log π_trained − log π_served| of the tokens drawn.
    """

    prompts: int
    tokens: int
    kl: float
    shift: float
    largest: float


def measure(run: Run, preference: np.ndarray, prompts: int = PROMPTS) -> Gap:
    """The gap at the preference [K], on the first test prompts."""
    rows = run.task.test.rows(np.arange(min(prompts, len(run.task.test.id))))
    # Without the net: an exported model answers under the preference as it is given.
    setup = dataclasses.replace(run.setup, meal=dataclasses.replace(run.setup.meal, net=False))
    w = jnp.broadcast_to(jnp.asarray(preference, jnp.float32), (len(rows.id), 1, len(preference)))
    batch = Batch(*rows[:3])

    @jax.jit
    def compare(theta, frozen):
        drawn = respond(setup, theta, None, frozen, batch, w, jax.random.key(0), Sampling()).responses
        apply = functools.partial(setup.policy.apply, {"params": merge(theta, frozen.policy)})
        trained, served = (
            apply(apply(batch.tokens, batch.mask, w=preference, method="prefill"), w, drawn.tokens, method="respond")
            for preference in (None, w)
        )
        unembed = functools.partial(apply, method="unembed")
        read = functools.partial(token_stats, unembed, forbidden=setup.forbidden, chunk=setup.chunk)
        trained_stats = read(hidden=trained, tokens=drawn.tokens, reference=(unembed, served))
        return trained_stats.kl, trained_stats.logp - read(hidden=served, tokens=drawn.tokens).logp, drawn.mask

    kl, shift, mask = jax.device_get(compare(run.state.policy, run.frozen))
    shift = np.abs(shift[mask])
    return Gap(len(rows.id), int(mask.sum()), float(kl[mask].mean()), float(shift.mean()), float(shift.max()))
