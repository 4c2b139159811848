#!/usr/bin/env bash
# jax 0.10.2: lax.cumlogsumexp of logits that begin with -inf, as masked or padded ones do, has the right value and a derivative of
# NaN at those entries. jax.nn.logsumexp of the same logits has the derivative 0 there.
#
# One -inf is not harmed, nor one between finite numbers: two partial sums that are both -inf are subtracted. Padding on the left is
# where it occurs. A finite floor, such as -1e30, in place of -inf gives the right derivative.
#
# Output seen (CPU, Python 3.11), the last sum's derivative:
#   logits -inf, -inf, 0, 1: last sum 1.3133
#   cumlogsumexp: [nan, nan, 0.2689, 0.7311]
#   logsumexp:    [0.0, 0.0, 0.2689, 0.7311]
#   cumlogsumexp with -1e30 for -inf: [0.0, 0.0, 0.2689, 0.7311]
set -euo pipefail
folder="$(mktemp -d)"
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check jax==0.10.2 jaxlib==0.10.2
cat > "$folder/show.py" <<'PYTHON'
import jax
import jax.numpy as jnp
import numpy as np


def last(x):
    return jax.lax.cumlogsumexp(x)[-1]


def shown(x):
    return [round(float(v), 4) for v in x]


masked = jnp.array([-jnp.inf, -jnp.inf, 0.0, 1.0])
print(f"logits -inf, -inf, 0, 1: last sum {last(masked):.4f}")
running, whole = jax.grad(last)(masked), jax.grad(jax.nn.logsumexp)(masked)
floored = jax.grad(last)(jnp.maximum(masked, -1e30))
print(f"cumlogsumexp: {shown(running)}")
print(f"logsumexp:    {shown(whole)}")
print(f"cumlogsumexp with -1e30 for -inf: {shown(floored)}")
for other in ([-jnp.inf, 0.0, 1.0, 2.0], [0.0, -jnp.inf, -jnp.inf, 1.0]):
    assert np.isfinite(jax.grad(last)(jnp.array(other))).all()
assert np.isnan(running[:2]).all() and np.isfinite(whole).all() and np.isfinite(floored).all(), "the derivative has changed"
PYTHON
JAX_PLATFORMS=cpu "$folder/venv/bin/python" "$folder/show.py"
