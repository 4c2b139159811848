#!/usr/bin/env bash
# qdax 0.5.0: compute_hypervolume counts points that do not reach the reference point: some lower the hypervolume, others raise it.
# A front without a point beyond the reference may have a negative one.
#
# The reference point's own row is sorted in with the others, and the signed areas between successive points are summed. A
# point that is worse than the reference in the second objective subtracts an area; of two that are worse in the first,
# one adds an area. moocore leaves all of these out, as the definition does. default_moqd_metrics measures every cell of a
# repertoire and its global front in this way. If a base model is the reference, early policies and the ends of a front miss
# it. Nothing is raised. First drop rows that are not above the reference in both objectives.
#
# Output seen (Python 3.11, jax 0.10.2 on a CPU, moocore 0.3.2), two objectives to be maximised, reference (0, 0); qdax / moocore:
#   [[1, 2], [2, 1]]: 3 / 3
#   [[1, 2], [2, 1], [3, -1]]: 2 / 3
#   [[-2, 5], [-1, 3], [1, 2], [2, 1]]: 6 / 3
#   [[-1, 3], [3, -1]]: -3 / 0
set -euo pipefail
folder="$(mktemp -d)"
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check chex==0.1.92 flax==0.12.8 jax==0.10.2 jaxlib==0.10.2 moocore==0.3.2 \
    "numpy<2.5"
# qdax's own requirements, robot simulators among them, are not needed here
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check --no-deps qdax==0.5.0
cat > "$folder/show.py" <<'PYTHON'
import jax.numpy as jnp
import moocore
import numpy as np
from qdax.utils.pareto_front import compute_hypervolume, compute_pareto_front

fronts = [[1, 2], [2, 1]], [[1, 2], [2, 1], [3, -1]], [[-2, 5], [-1, 3], [1, 2], [2, 1]], [[-1, 3], [3, -1]]
seen = []
for front in fronts:
    rows = np.array(front, float)
    assert compute_pareto_front(jnp.asarray(rows)).all(), "each of them is a front"
    found = float(compute_hypervolume(jnp.asarray(rows), jnp.zeros(2)))
    true = moocore.hypervolume(rows, ref=[0, 0], maximise=True)
    seen.append((found, true))
    print(f"{front}: {found:g} / {true:g}")
assert seen == [(3, 3), (2, 3), (6, 3), (-3, 0)], "it behaves otherwise now"
PYTHON
JAX_PLATFORMS=cpu "$folder/venv/bin/python" "$folder/show.py" 2> "$folder/log" || { cat "$folder/log"; exit 1; }
