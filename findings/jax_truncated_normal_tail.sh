#!/usr/bin/env bash
# jax 0.10.2: random.truncated_normal without an upper bound draws 3.4e38, the largest float32, among its numbers: now and then above
# 3 (once in 400,000 draws), and always above 6. Between -8 and -7 it draws -8 each time.
#
# It maps both bounds through erf, draws between them, and maps back. In float32 erf reaches ±1 at 5.6 deviations, and before
# that a draw next to 1 is rounded to it: what comes back is infinite and is clipped to the nearest number inside of the bounds. With one
# bound infinite a single draw spoils every mean; with both finite the numbers look plausible: between 5 and 6 there are
# 10 different ones. Such tails are what one asks for to sample scores above a threshold or values that improve on the best.
# Nothing is raised, and the docstring has no such limit. SciPy's truncnorm is exact in both tails.
#
# Output seen (Python 3.11, SciPy 1.17.1, on a CPU), 400,000 draws each:
#   3.0 to inf: true mean 3.283; 1 draws of 3.4e38, mean of the others 3.283; 45286 different draws
#   6.0 to inf: true mean 6.158; 400000 draws of 3.4e38, no others; 1 different draws
#   5.0 to 6.0: true mean 5.183; 0 draws of 3.4e38, mean of the others 5.213; 10 different draws
#   -8.0 to -7.0: true mean -7.137; 0 draws of 3.4e38, mean of the others -8.000; 1 different draws
set -euo pipefail
folder="$(mktemp -d)"
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check jax==0.10.2 jaxlib==0.10.2 numpy==2.4.6 scipy==1.17.1
cat > "$folder/show.py" <<'PYTHON'
import jax
import numpy as np
from scipy import stats

key, largest, lost, different = jax.random.key(0), float(np.finfo(np.float32).max), {}, {}
for low, high in ((3.0, np.inf), (6.0, np.inf), (5.0, 6.0), (-8.0, -7.0)):
    drawn = np.asarray(jax.random.truncated_normal(key, low, high, (400_000,)), np.float64)
    lost[low], different[low] = int((drawn == largest).sum()), len(np.unique(drawn))
    mean, rest = float(stats.truncnorm(low, high).mean()), drawn[drawn < largest]
    others = f"mean of the others {rest.mean():.3f}" if len(rest) else "no others"
    print(f"{low} to {high}: true mean {mean:.3f}; {lost[low]} draws of 3.4e38, {others}; {different[low]} different draws")
assert 0 < lost[3.0] < 100 and lost[6.0] == 400_000, "it draws otherwise now"
assert different[5.0] < 20 and different[-8.0] == 1, "it draws otherwise now"
PYTHON
JAX_PLATFORMS=cpu "$folder/venv/bin/python" "$folder/show.py"
