#!/usr/bin/env bash
# safetensors 0.8.0: safetensors.numpy writes a transposed or strided array's memory as it lies, so other numbers come back.
# Up to 0.7.0 they came back right.
#
# A weight is transposed between frameworks' conventions (`kernel.T`), which NumPy does without moving anything, and saved.
# 0.7.0 copied the array in C's order first. 0.8.0 hands over the address of its memory with the transposed shape. The file
# is valid and has the right shapes and types; its numbers are in another order, or, of a slice with a stride, others. The
# docstring asks for contiguous arrays, and nothing checks it. Who upgrades saves np.ascontiguousarray(x).
#
# Output seen (NumPy 2.4.6, Python 3.11):
#   safetensors 0.7.0: [[0, 3], [1, 4], [2, 5]] -> [[0, 3], [1, 4], [2, 5]]; [0, 2, 4] -> [0, 2, 4]
#   safetensors 0.8.0: [[0, 3], [1, 4], [2, 5]] -> [[0, 1], [2, 3], [4, 5]]; [0, 2, 4] -> [0, 1, 2]
set -euo pipefail
folder="$(mktemp -d)"
trap 'rm -rf "$folder"' EXIT
cat > "$folder/show.py" <<'PYTHON'
import sys

import numpy as np
import safetensors
from safetensors.numpy import load, save

transposed, strided = np.arange(6, dtype=np.float32).reshape(2, 3).T, np.arange(6, dtype=np.float32)[::2]
back = load(save({"transposed": transposed, "strided": strided}))
shown = [f"{x.astype(int).tolist()} -> {back[name].astype(int).tolist()}" for name, x in (
    ("transposed", transposed), ("strided", strided))]
print(f"safetensors {safetensors.__version__}: {'; '.join(shown)}")
kept = np.array_equal(back["transposed"], transposed), np.array_equal(back["strided"], strided)
assert kept == ((True, True) if sys.argv[1] == "kept" else (False, False)), "the behaviour has changed"
contiguous = np.ascontiguousarray(transposed)
assert np.array_equal(load(save({"x": contiguous}))["x"], transposed)
PYTHON
for version in 0.7.0 0.8.0; do
    python3 -m venv "$folder/$version"
    "$folder/$version/bin/pip" install --quiet --disable-pip-version-check "safetensors==$version" numpy==2.4.6
    "$folder/$version/bin/python" "$folder/show.py" "$([ $version = 0.7.0 ] && echo kept || echo lost)"
done
