#!/usr/bin/env bash
# optax 0.2.8: contrib.prodigy and contrib.dadapt_adamw turn all parameters to NaN if the first gradient is zero, or if the
# learning rate's schedule begins at zero, as linear warmups do. (prodigy's docstring recommends a warmup.)
#
# Both estimate the step size by dividing one sum over the steps by another. At such a first step both sums are zero. The
# estimate becomes the maximum of the old one and 0/0, so it stays NaN whatever gradients follow. In policy-gradient
# training (GRPO, RLOO) a batch whose answers all have the same reward has a gradient of exactly zero. A zero gradient
# later on does no harm. safeguard_warmup=True, an option of prodigy alone, prevents it for the warmup, not for the zero
# gradient. Nothing is raised. Begin the schedule above zero, and skip updates until a gradient is nonzero.
#
# Output seen (Python 3.11, jax 0.10.2 on a CPU); x² is minimised from x = 1; x after 20 steps:
#   prodigy: 0.998; first gradient zero: nan; fifth: 0.999
#   prodigy, warmup from 0: nan; first gradient zero: nan; fifth: nan
#   prodigy, warmup from 0, safeguard_warmup: 1; first gradient zero: nan; fifth: 1
#   dadapt_adamw: 0.985; first gradient zero: nan; fifth: 0.99
#   dadapt_adamw, warmup from 0: nan; first gradient zero: nan; fifth: nan
set -euo pipefail
folder="$(mktemp -d)"
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check optax==0.2.8 jax==0.10.2 jaxlib==0.10.2 "numpy<2.5"
cat > "$folder/show.py" <<'PYTHON'
from math import isnan

import jax
import jax.numpy as jnp
import optax
from optax import contrib

warmup = optax.linear_schedule(0.0, 1.0, 10)
optimizers = {
    "prodigy": contrib.prodigy(),
    "prodigy, warmup from 0": contrib.prodigy(warmup),
    "prodigy, warmup from 0, safeguard_warmup": contrib.prodigy(warmup, safeguard_warmup=True),
    "dadapt_adamw": contrib.dadapt_adamw(),
    "dadapt_adamw, warmup from 0": contrib.dadapt_adamw(warmup),
}


def train(optimizer, zero_at: int) -> float:
    """x after 20 steps from 1, whose gradient is zero at one step (at none, if that is -1)."""

    def step(carry, number):
        params, state = carry
        gradient = jnp.where(number == zero_at, 0.0, 2 * params)
        update, state = optimizer.update(gradient, state, params)
        return (optax.apply_updates(params, update), state), None

    start = jnp.ones(1)
    (params, _), _ = jax.lax.scan(step, (start, optimizer.init(start)), jnp.arange(20))
    return float(params[0])


seen = {}
for name, optimizer in optimizers.items():
    plain, first, fifth = (train(optimizer, zero_at) for zero_at in (-1, 0, 4))
    print(f"{name}: {plain:.3g}; first gradient zero: {first:.3g}; fifth: {fifth:.3g}")
    seen[name] = (isnan(plain), isnan(first), isnan(fifth))
always = {name for name, found in seen.items() if all(found)}
assert always == {"prodigy, warmup from 0", "dadapt_adamw, warmup from 0"}, "it behaves otherwise now"
assert all(found == (False, True, False) for name, found in seen.items() if name not in always), "it behaves otherwise now"
PYTHON
JAX_PLATFORMS=cpu "$folder/venv/bin/python" "$folder/show.py" 2> "$folder/log" || { cat "$folder/log"; exit 1; }
