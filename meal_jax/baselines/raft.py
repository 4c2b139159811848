"""RAFT (arXiv 2304.06767): fine-tuning on the best of N answers.

Static targets with hard acceptance: an answer is learned if it is the best of its prompt's pool
under its own preference. With one objective and no conditioning it is RAFT's "local" variant.
"""

from __future__ import annotations

import ml_collections

from meal_jax.baselines import static


def configure(config: ml_collections.ConfigDict) -> ml_collections.ConfigDict:
    """RAFT's version of a configuration."""
    c = static.configure(config)
    c.meal.accept = "top1"
    return c
