#!/usr/bin/env bash
# clu 0.0.12: metrics.LastValue of a column (n, 1) is n times its mean, and of a square matrix the mean of its rows' sums.
#
# LastValue counts the rows and lays a mask of shape (n,) over the values by broadcasting, from the last axis. A column, such as
# a value head's or a reward model's output, becomes an n × n matrix: its sum is n times too large. A loss per token of n
# answers of n tokens is divided by n instead of n². A mask given per answer then hides positions instead of answers. Other
# shapes raise an error. Average broadcasts along the first axis, counts all elements, and is right.
#
# Output seen (Python 3.11, jax 0.10.2 on a CPU), LastValue / Average:
#   [1, 2, 3, 4]: 2.5 / 2.5
#   the same as a column: 10 / 2.5
#   rows [1 1], [3 3]: 4 / 2
#   the same, masked by [True, False]: 4 / 1
set -euo pipefail
folder="$(mktemp -d)"
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check clu==0.0.12 flax==0.12.8 jax==0.10.2 jaxlib==0.10.2 \
    "numpy<2.5"
cat > "$folder/show.py" <<'PYTHON'
import warnings

import jax.numpy as jnp
from clu import metrics

warnings.simplefilter("error")
row = jnp.array([1.0, 2.0, 3.0, 4.0])
square = jnp.array([[1.0, 1.0], [3.0, 3.0]])
cases = {
    "[1, 2, 3, 4]": (row, None),
    "the same as a column": (row[:, None], None),
    "rows [1 1], [3 3]": (square, None),
    "the same, masked by [True, False]": (square, jnp.array([True, False])),
}
seen = []
for name, (values, mask) in cases.items():
    seen.append(tuple(float(kind.from_model_output(values, mask).compute()) for kind in (metrics.LastValue, metrics.Average)))
    print(f"{name}: {seen[-1][0]:g} / {seen[-1][1]:g}")
assert seen == [(2.5, 2.5), (10, 2.5), (4, 2), (4, 1)], "it behaves otherwise now"
PYTHON
JAX_PLATFORMS=cpu "$folder/venv/bin/python" "$folder/show.py" 2> "$folder/log" || { cat "$folder/log"; exit 1; }
