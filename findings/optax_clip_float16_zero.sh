#!/usr/bin/env bash
# optax 0.2.8: clip_by_global_norm turns float16 updates into zeros as soon as their norm passes 256. Nothing is raised.
#
# The norm is summed in the updates' own type. Squares of a norm of 256 and more are beyond float16's largest number, so the
# norm is infinite and every update is divided by it: all zeros, where each entry is far within the type. The step is lost, the
# moments behind the clip decay, and losses look as if learning had stalled. Gradients of a scaled loss, the reason to compute
# in float16, have such norms easily. bfloat16 reaches as far as float32 and is clipped. Cast to float32 before clipping.
#
# Output seen (jaxlib 0.10.2 on a CPU, Python 3.11), four entries of the same size, clipped to norm 1:
#   float16: 100 -> 0.5, 120 -> 0.5, 140 -> 0.0, 300 -> 0.0
#   bfloat16: 100 -> 0.5, 120 -> 0.5, 140 -> 0.5, 300 -> 0.5
set -euo pipefail
folder="$(mktemp -d)"
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check optax==0.2.8 jax==0.10.2 jaxlib==0.10.2 numpy
cat > "$folder/show.py" <<'PYTHON'
import jax.numpy as jnp
import optax

sizes = (100, 120, 140, 300)
clip = optax.clip_by_global_norm(1.0)
for dtype, expected in ((jnp.float16, [0.5, 0.5, 0, 0]), (jnp.bfloat16, [0.5] * 4)):
    updates = [jnp.full(4, size, dtype) for size in sizes]
    clipped = [float(clip.update({"weight": x}, clip.init(None))[0]["weight"][0]) for x in updates]
    print(f"{dtype.__name__}: {', '.join(f'{size} -> {value:.1f}' for size, value in zip(sizes, clipped))}")
    assert all(abs(value - right) < 0.01 for value, right in zip(clipped, expected)), "the behaviour has changed"
PYTHON
"$folder/venv/bin/python" "$folder/show.py"
