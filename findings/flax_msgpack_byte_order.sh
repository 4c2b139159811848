#!/usr/bin/env bash
# flax 0.12.8: serialization.to_bytes writes a big-endian NumPy array's bytes as they lie and its type's name without the order,
# so it comes back as other numbers. Nothing is raised.
#
# `np.dtype(">f4").name` is "float32". Arrays of that order come from files of other formats: HDF5, FITS, .npy and .npz of other
# machines. NumPy computes with them as with any, and jax refuses them, so they are met where host-side statistics or weights
# are packed without passing through jax. Convert with x.astype(x.dtype.newbyteorder("=")). safetensors and Orbax keep the
# numbers.
#
# Output seen (NumPy 2.4.6, CPU, Python 3.11):
#   >f4: [1, 2, 3] -> [4.6006e-41, 8.96831e-44, 2.30486e-41]
#   <f4: [1, 2, 3] -> [1, 2, 3]
#   >i4: [1, 2, 3] -> [16777216, 33554432, 50331648]
set -euo pipefail
folder="$(mktemp -d)"
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check flax==0.12.8 jax==0.10.2 jaxlib==0.10.2 numpy==2.4.6
cat > "$folder/show.py" <<'PYTHON'
import numpy as np
from flax import serialization

for dtype in (">f4", "<f4", ">i4"):
    x = np.array([1, 2, 3], dtype)
    back = serialization.msgpack_restore(serialization.to_bytes({"x": x}))["x"]
    print(f"{dtype}: [1, 2, 3] -> [{', '.join(f'{value:.10g}' if value >= 1 else f'{value:.6g}' for value in back)}]")
    assert np.array_equal(back, x) == (dtype == "<f4"), "the behaviour has changed"
PYTHON
JAX_PLATFORMS=cpu "$folder/venv/bin/python" "$folder/show.py"
