"""Static targets: every response is judged under the preference that it was sampled for, without adaptation.

Meal with λ = 0 and no weight-net: same rollouts, same number of policy updates. With one objective it is RAFT
(arXiv 2304.06767) with soft acceptance.
"""

from __future__ import annotations

import ml_collections


def configure(config: ml_collections.ConfigDict) -> ml_collections.ConfigDict:
    """The static method's version of a configuration."""
    c = config.copy_and_resolve_references()
    c.meal.net = False
    c.meal.adapt = False
    c.meal.lam = 0.0
    # For preferences that move; of fixed ones 1/N has the same mean and less variance
    if c.meal.baseline == "accepted":
        c.meal.baseline = "pool"
    return c
