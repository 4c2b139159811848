#!/usr/bin/env bash
# rlax 0.1.9: popart adds up the steps of all targets of an index. With 64 targets, a step size of 0.05 is one of 3.2, and the
# mean and the scale run away.
#
# PopArt keeps a running mean and spread of the rewards of each task or objective. Its update is s + step (target − s), but all
# targets of a call that share an index are measured from the same s and their updates are summed, over devices too. N targets
# take a step of N × step_size: from 1 on the mean jumps past that of the batch, from 2 on it diverges. A step size that works
# for 16 answers fails for 64, or on four devices. The second moment becomes negative, the scale is clipped to its lower bound,
# and pop rescales the value head by it. Nothing is raised. Divide the step size by the number of targets of an index.
#
# Output seen (Python 3.11, jax 0.10.2 on a CPU); targets of mean 5 and deviation 1, 20 updates with a step size of 0.05:
#   1 target each: mean 3.1, scale 2.5
#   16 targets each: mean 4.9, scale 0.8
#   64 targets each: mean -3.5e+07, scale 0.0001
set -euo pipefail
folder="$(mktemp -d)"
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check rlax==0.1.9 chex==0.1.92 distrax==0.1.9 jax==0.10.2 \
    jaxlib==0.10.2 "numpy<2.5"
cat > "$folder/show.py" <<'PYTHON'
import jax.numpy as jnp
import numpy as np
import rlax


def run(count: int, step: float = 0.05):
    drawn = np.random.default_rng(0)
    start, update = rlax.popart(1, step_size=step, scale_lb=1e-4, scale_ub=1e4)
    head, state = {"w": jnp.ones((3, 1)), "b": jnp.zeros(1)}, start()
    for _ in range(20):
        targets = jnp.asarray(drawn.normal(5.0, 1.0, count), jnp.float32)
        head, state = update(head, state, targets, jnp.zeros(count, jnp.int32))
    return float(state.shift[0]), float(state.scale[0])


found = {count: run(count) for count in (1, 16, 64)}
for count, (mean, scale) in found.items():
    print(f"{count} target{'s' * (count > 1)} each: mean {mean:.2g}, scale {scale:.2g}")
assert abs(found[16][0] - 5) < 0.5 and found[16][1] < 2, "16 targets behave otherwise now"
assert abs(found[64][0]) > 1e6 and np.isclose(found[64][1], 1e-4), "it behaves otherwise now"
assert abs(run(64, 0.05 / 64)[0] - run(1)[0]) < 0.5, "the divided step is another"
PYTHON
JAX_PLATFORMS=cpu "$folder/venv/bin/python" "$folder/show.py" 2> "$folder/log" || { cat "$folder/log"; exit 1; }
