#!/usr/bin/env bash
# jax 0.10.2: random.choice without replacement draws entries of probability zero when the others are used up, and a NaN among the
# probabilities is always drawn with replacement and never without.
#
# NumPy refuses to draw three of two possible entries, and a NaN. jax sorts entries by noise and p: impossible ones come last, in their
# order. With replacement it searches the sums of p, which are NaN from there on. So a sampler that filters by setting
# probabilities to zero gives filtered entries once fewer are left than are drawn.
#
# Output seen (Python 3.11, numpy 2.4.6, on a CPU):
#   numpy: Fewer non-zero entries in p than size
#   the third of three, over 100 keys: {2: 100}
#   with a NaN third, without replacement: {0: 54, 1: 46}
#   with a NaN third, with replacement: {2: 100}
set -euo pipefail
folder="$(mktemp -d)"
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check jax==0.10.2 jaxlib==0.10.2 numpy==2.4.6
cat > "$folder/show.py" <<'PYTHON'
import jax
import jax.numpy as jnp
import numpy as np

few = [0.5, 0.5, 0.0, 0.0]
try:
    np.random.default_rng(0).choice(4, 3, replace=False, p=few)
    raise SystemExit("NumPy takes it now")
except ValueError as error:
    print(f"numpy: {error}")
third = [int(jax.random.choice(jax.random.key(i), 4, (3,), replace=False, p=jnp.array(few))[2]) for i in range(100)]
print("the third of three, over 100 keys:", {entry: third.count(entry) for entry in sorted(set(third))})
unknown = jnp.array([0.5, 0.5, jnp.nan, 0.0])
first = [int(jax.random.choice(jax.random.key(i), 4, (1,), replace=False, p=unknown)[0]) for i in range(100)]
again = [int(jax.random.choice(jax.random.key(i), 4, (), p=unknown)) for i in range(100)]
print("with a NaN third, without replacement:", {entry: first.count(entry) for entry in sorted(set(first))})
print("with a NaN third, with replacement:", {entry: again.count(entry) for entry in sorted(set(again))})
assert set(third) == {2} and set(first) == {0, 1} and set(again) == {2}, "it draws otherwise now"
PYTHON
JAX_PLATFORMS=cpu "$folder/venv/bin/python" "$folder/show.py"
