#!/usr/bin/env bash
# optax 0.2.8: contrib.reduce_on_plateau never lowers the learning rate on a plateau of negative values: a constant -10 counts as an
# improvement at each step, and so does a value that slowly gets worse.
#
# It asks for less than (1 - rtol) times the best value. Below zero that bound is above the best value, so "best" follows the
# value upwards. Negative rewards, surrogate losses of a policy, log-likelihoods and ELBOs are negative. With rtol=0 and a
# positive atol the same values lower the rate as they should. Nothing is raised, and the docstring does not restrict the
# sign. (A change to the bound was proposed in optax's pull request 1767 and is not in this version.)
#
# Output seen (Python 3.11, jax 0.10.2 on a CPU); patience 3, factor ½, 20 steps:
#   constant 10: scale 0.0156, best 10
#   constant -10: scale 1, best -10
#   constant -10, rtol 0, atol 0.001: scale 0.0156, best -10
#   from -10 up by 0.05 % of itself at each step, rtol 0.001: scale 1, best -9.91
set -euo pipefail
folder="$(mktemp -d)"
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check optax==0.2.8 jax==0.10.2 jaxlib==0.10.2 "numpy<2.5"
cat > "$folder/show.py" <<'PYTHON'
import jax.numpy as jnp
from optax.contrib import reduce_on_plateau


def run(name: str, values: list, **options) -> float:
    transform = reduce_on_plateau(factor=0.5, patience=3, **options)
    state = transform.init(jnp.zeros(2))
    for value in values:
        _, state = transform.update(jnp.ones(2), state, value=value)
    print(f"{name}: scale {float(state.scale):.3g}, best {float(state.best_value):.3g}")
    return float(state.scale)


positive = run("constant 10", [10.0] * 20)
negative = run("constant -10", [-10.0] * 20)
absolute = run("constant -10, rtol 0, atol 0.001", [-10.0] * 20, rtol=0.0, atol=0.001)
worse = [-10 * 0.9995**step for step in range(20)]
rising = run("from -10 up by 0.05 % of itself at each step, rtol 0.001", worse, rtol=0.001)
assert positive == absolute == 0.5**6 and negative == rising == 1, "it behaves otherwise now"
PYTHON
JAX_PLATFORMS=cpu "$folder/venv/bin/python" "$folder/show.py" 2> "$folder/log" || { cat "$folder/log"; exit 1; }
