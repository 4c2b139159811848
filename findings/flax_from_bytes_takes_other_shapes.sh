#!/usr/bin/env bash
# flax 0.12.8: serialization.from_bytes and from_state_dict fill a target with arrays of other shapes and types than its own.
#
# The target says what is expected, and names that differ are refused. But an array of another shape, rank or type takes the
# place of the target's, without a word: a model of another width loads, and fails, broadcasts or trains in another type later.
#
# Output seen (Python 3.11, jax 0.10.2 on a CPU):
#   float32 (2, 2) was asked for, float16 (3,) came
#   a name that differs: ValueError
set -euo pipefail
folder="$(mktemp -d)"
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check flax==0.12.8 jax==0.10.2 jaxlib==0.10.2 "numpy<2.5"
cat > "$folder/show.py" <<'PYTHON'
import jax.numpy as jnp
from flax import serialization

target = {"kernel": jnp.zeros((2, 2))}
came = serialization.from_bytes(target, serialization.to_bytes({"kernel": jnp.ones(3, jnp.float16)}))["kernel"]
print(f"{target['kernel'].dtype} {target['kernel'].shape} was asked for, {came.dtype} {came.shape} came")
assert came.shape == (3,) and came.dtype == jnp.float16, "it is checked now"
assert serialization.from_state_dict(target, {"kernel": jnp.ones(3)})["kernel"].shape == (3,), "it is checked now"
try:
    serialization.from_bytes(target, serialization.to_bytes({"bias": jnp.ones(3)}))
except ValueError:
    print("a name that differs: ValueError")
PYTHON
JAX_PLATFORMS=cpu "$folder/venv/bin/python" "$folder/show.py"
