#!/usr/bin/env bash
# ml_dtypes 0.6.0 with NumPy 2.4.6: sum, mean, var and cumsum of a bfloat16 array run in bfloat16, one element after the other,
# so a sum of ones stops at 256 and the mean of 1000 ones is 0.256. NumPy's own float16, with more digits, has them right.
#
# NumPy sums float16 in pairs and takes means in float32; types of others get neither. Weights, hidden states and rewards come
# out of JAX as such arrays by np.asarray, and statistics taken then are wrong by a factor that grows with their number, not by
# rounding: the variance of 10000 standard normal draws is 0.25. jnp.mean, x.astype(np.float32) first, or dtype=np.float32 are
# right. So are a dot product and np.linalg.norm.
#
# Output seen (CPU, Python 3.11):
#   float16: sum 1000, mean 1.000, variance of standard normal draws 0.996
#   bfloat16: sum 256, mean 0.256, variance of standard normal draws 0.252
#   bfloat16, dtype=np.float32: sum 1000, mean 1.000, variance of standard normal draws 0.996
set -euo pipefail
folder="$(mktemp -d)"
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check ml_dtypes==0.6.0 numpy==2.4.6
cat > "$folder/show.py" <<'PYTHON'
import ml_dtypes
import numpy as np

draws = np.random.default_rng(0).normal(size=10_000)
for name, dtype, how in (
    ("float16", np.float16, {}),
    ("bfloat16", ml_dtypes.bfloat16, {}),
    ("bfloat16, dtype=np.float32", ml_dtypes.bfloat16, {"dtype": np.float32}),
):
    ones = np.ones(1000, dtype)
    total, mean, variance = (float(x) for x in (ones.sum(**how), ones.mean(**how), draws.astype(dtype).var(**how)))
    print(f"{name}: sum {total:.0f}, mean {mean:.3f}, variance of standard normal draws {variance:.3f}")
    right = (1000, 1, 1) if name != "bfloat16" else (256, 0.256, 0.252)
    assert np.allclose((total, mean, variance), right, rtol=0.02), "the behaviour has changed"
assert float(np.ones(1000, ml_dtypes.bfloat16) @ np.ones(1000, ml_dtypes.bfloat16)) == 1000
PYTHON
"$folder/venv/bin/python" "$folder/show.py"
