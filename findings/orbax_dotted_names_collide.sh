#!/usr/bin/env bash
# orbax-checkpoint 0.12.8: a leaf called "layer.bias" and the leaf "bias" in "layer" are one array on disk. Both are saved
# without an error, both are restored, and one of them comes back with the other's numbers.
#
# An array's name on disk is its path joined by dots, and dots within keys are not escaped. Trees with dotted keys are what one
# gets from PyTorch's and Hugging Face's names, and half-converted ones hold both forms. Which of the two survives differs
# from run to run. If the shapes differ, the save raises a tensorstore error about a shape. A slash in a key does no harm.
#
# Output seen (jax 0.10.2, CPU, Python 3.11), saved as 7 ("bias" in "layer") and 1 ("layer.bias"); another run had 7 and 1 the
# other way round:
#   v1 save_pytree:     restored 1 and 1
#   PyTreeCheckpointer: restored 7 and 7
set -euo pipefail
folder="$(mktemp -d)"
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check orbax-checkpoint==0.12.8 jax==0.10.2 jaxlib==0.10.2
cat > "$folder/show.py" <<'PYTHON'
import sys
from pathlib import Path

import numpy as np
import orbax.checkpoint
from orbax.checkpoint import v1

folder = Path(sys.argv[1])
tree = {"layer": {"bias": np.full(2, 7.0)}, "layer.bias": np.full(2, 1.0)}
slash = {"layer": {"bias": np.full(2, 7.0)}, "layer/bias": np.full(2, 1.0)}
both = lambda back, name: (int(back["layer"]["bias"][0]), int(back[name][0]))

v1.save_pytree(folder / "v1", tree)
newer = both(v1.load_pytree(folder / "v1"), "layer.bias")
print(f"v1 save_pytree:     restored {newer[0]} and {newer[1]}")
with orbax.checkpoint.PyTreeCheckpointer() as checkpointer:
    checkpointer.save(folder / "old", tree)
    older = both(checkpointer.restore(folder / "old"), "layer.bias")
print(f"PyTreeCheckpointer: restored {older[0]} and {older[1]}")
v1.save_pytree(folder / "slash", slash)
assert both(v1.load_pytree(folder / "slash"), "layer/bias") == (7, 1)
assert newer[0] == newer[1] and older[0] == older[1], "the behaviour has changed"
PYTHON
JAX_PLATFORMS=cpu "$folder/venv/bin/python" "$folder/show.py" "$folder" 2> "$folder/log" || { cat "$folder/log"; exit 1; }
