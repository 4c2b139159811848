#!/usr/bin/env bash
# optax 0.2.8: projection_simplex gives points outside of the simplex for large float32 values, and for bfloat16 ones.
#
# It sorts, sums up and subtracts a threshold that is of the inputs' size: what the sum has lost to rounding, the result has too
# much or too little. Inputs that differ by a constant have the same projection, so subtracting the largest first mends it.
# Weights that are used as a distribution over objectives then do not sum to one, and nothing says so.
#
# Output seen (Python 3.11, jax 0.10.2 on a CPU; the sum of the projection, which is to be 1, as it is and less the largest):
#   1e6 and 1e6 + 0.5: 1, 1
#   1e8 and 1e8 + 8: 9, 1
#   300 of 0 to 1, bfloat16: 1.111, 1
#   1,000,000 of 0 to 1: 0.9999, 1
set -euo pipefail
folder="$(mktemp -d)"
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check optax==0.2.8 jax==0.10.2 jaxlib==0.10.2 "numpy<2.5"
cat > "$folder/show.py" <<'PYTHON'
import jax.numpy as jnp
import numpy as np
from optax.projections import projection_simplex

cases = {
    "1e6 and 1e6 + 0.5": jnp.array([1e6, 1e6 + 0.5, 0.0]),
    "1e8 and 1e8 + 8": jnp.array([1e8, 1e8 + 8, 0.0]),
    "300 of 0 to 1, bfloat16": jnp.linspace(0, 1, 300).astype(jnp.bfloat16),
    "1,000,000 of 0 to 1": jnp.asarray(np.linspace(0, 1, 1_000_000, dtype=np.float32)),
}
off = []
for name, values in cases.items():
    sums = [float(np.asarray(projection_simplex(v), np.float64).sum()) for v in (values, values - jnp.max(values))]
    print(f"{name}: {sums[0]:.4g}, {sums[1]:.4g}")
    off.append(abs(sums[0] - 1))
assert off[1] > 1 and off[2] > 0.05, "it is on the simplex now"
PYTHON
JAX_PLATFORMS=cpu "$folder/venv/bin/python" "$folder/show.py"
