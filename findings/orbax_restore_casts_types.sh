#!/usr/bin/env bash
# orbax-checkpoint 0.12.8, v1 interface: restoring onto other types casts, without a word and with loss; other shapes raise.
#
# A checkpoint restored onto an abstract tree is the usual way to check that it fits. Shapes are checked: (5,) in place of
# (3,) raises ValueError. Types are not: float32 comes back as bfloat16 (0.123456789 as 0.123535), and int32 as float16
# (100001 as inf). A run whose configuration changed its parameter type resumes from rounded weights and optimizer state.
# A restore that must be exact has to compare the types of the metadata with those asked for itself.
#
# Output seen (orbax-checkpoint 0.12.8, jax 0.10.2, CPU):
#   float32 0.12345679 -> bfloat16 0.123535
#   int32 100001 -> float16 inf
#   other shape: ValueError
set -euo pipefail
folder="$(mktemp -d)"
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check orbax-checkpoint==0.12.8 jax==0.10.2 jaxlib==0.10.2
cat > "$folder/show.py" <<'PYTHON'
import sys
import warnings

import jax
import jax.numpy as jnp
from orbax.checkpoint import v1 as ocp

saved = {"weight": jnp.array([0.123456789, 1.0, 2.0]), "step": jnp.array([100001], jnp.int32)}
path = sys.argv[1]
ocp.save_pytree(path, saved)
device = jax.sharding.SingleDeviceSharding(jax.devices()[0])


def like(shape, weight, step):
    make = lambda s, d: jax.ShapeDtypeStruct(s, d, sharding=device)
    return {"weight": make(shape, weight), "step": make((1,), step)}


with warnings.catch_warnings(record=True) as told:
    warnings.simplefilter("always")
    back = ocp.load_pytree(path, like((3,), jnp.bfloat16, jnp.float16))
assert not [w for w in told if "cast" in str(w.message).lower() or "dtype" in str(w.message).lower()], "it warns now"
print("float32 0.12345679 ->", back["weight"].dtype, back["weight"][0])
print("int32 100001 ->", back["step"].dtype, back["step"][0])
assert back["weight"].dtype == jnp.bfloat16 and back["step"].dtype == jnp.float16 and jnp.isinf(back["step"][0])
try:
    ocp.load_pytree(path, like((5,), jnp.float32, jnp.int32))
except ValueError:
    print("other shape: ValueError")
else:
    raise SystemExit("another shape is accepted: the behaviour has changed")
PYTHON
JAX_PLATFORMS=cpu "$folder/venv/bin/python" "$folder/show.py" "$folder/checkpoint" 2> "$folder/log" || { cat "$folder/log"; exit 1; }
