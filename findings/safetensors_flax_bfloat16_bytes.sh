#!/usr/bin/env bash
# safetensors 0.8.0, safetensors.flax: `load` cannot read the bytes that `save` made of bfloat16 arrays, though `load_file` reads
# the same bytes from a file; float8 arrays are saved by both and read by neither.
#
# `load` goes through safetensors.numpy, whose table of types has neither bfloat16 nor float8: a KeyError with the bare type's
# name. `load_file` asks NumPy for the float8 type by name, which NumPy does not have, though ml_dtypes does: an AttributeError.
# So who keeps weights in bytes, for a bucket or a message, has to go through a file, and quantised ones come back by other means
# (safetensors.deserialize and ml_dtypes). 0.7.0 does the same.
#
# Output seen (jax 0.10.2, NumPy 2.4.6, CPU, Python 3.11):
#   float32: load reads it, load_file reads it
#   bfloat16: load raises KeyError, load_file reads it
#   float8_e4m3fn: load raises KeyError, load_file raises AttributeError
#   float8_e5m2: load raises KeyError, load_file raises AttributeError
set -euo pipefail
folder="$(mktemp -d)"
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check \
    safetensors==0.8.0 jax==0.10.2 jaxlib==0.10.2 flax==0.12.7 numpy==2.4.6
cat > "$folder/show.py" <<'PYTHON'
import sys

import jax.numpy as jnp
from safetensors.flax import load, load_file, save

path = sys.argv[1]
expected = {
    "float32": ("reads it", "reads it"), "bfloat16": ("raises KeyError", "reads it"),
    "float8_e4m3fn": ("raises KeyError", "raises AttributeError"), "float8_e5m2": ("raises KeyError", "raises AttributeError"),
}


def how(read, source, x):
    try:
        back = read(source)["x"]
    except Exception as error:
        return f"raises {type(error).__name__}"
    assert back.dtype == x.dtype and (back == x).all()
    return "reads it"


for name, right in expected.items():
    x = jnp.arange(4).astype(name)
    data = save({"x": x})
    with open(path, "wb") as file:
        file.write(data)
    seen = how(load, data, x), how(load_file, path, x)
    print(f"{name}: load {seen[0]}, load_file {seen[1]}")
    assert seen == right, "the behaviour has changed"
PYTHON
JAX_PLATFORMS=cpu "$folder/venv/bin/python" "$folder/show.py" "$folder/x.safetensors"
