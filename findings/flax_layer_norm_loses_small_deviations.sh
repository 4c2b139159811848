#!/usr/bin/env bash
# flax 0.12.8: LayerNorm's output is some 1000 times too large where a row's mean is 3000 times its deviation, in float32.
#
# The default, use_fast_variance=True, takes the variance as E[x²] − E[x]² and cuts it at 0. At a mean of 3000 deviations the
# difference is below what float32 holds of the squares: a row's variance may come out as 0, and epsilon alone is left to
# divide by. Nothing is raised. The reference of most ported models subtracts the mean first, as flax does with
# use_fast_variance=False, and gets 1.00. nnx.LayerNorm does the same as linen's. Weights that were trained elsewhere, on
# inputs with a few large features alike in all rows, are where one meets it.
#
# Output seen (flax 0.12.8, jax 0.10.2, CPU, Python 3.11): largest deviation of a normalised row, which should be 1.00
#   mean   100 deviations: default 1, without fast variance 1.00
#   mean  3000 deviations: default 1.11e+03, without fast variance 1.00
#   mean 10000 deviations: default 1.22e+03, without fast variance 1.00
set -euo pipefail
folder="$(mktemp -d)"
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check flax==0.12.8 jax==0.10.2
cat > "$folder/show.py" <<'PYTHON'
import flax.linen as nn
import numpy as np
from flax import nnx

noise = np.random.default_rng(0).standard_normal((64, 64))
for mean, wrong in ((100, False), (3000, True), (10000, True)):
    x = (mean + noise).astype(np.float32)
    plain = {"use_bias": False, "use_scale": False}
    default, slow = (
        float(np.std(nn.LayerNorm(**plain, use_fast_variance=fast).apply({}, x), axis=-1).max()) for fast in (True, False)
    )
    assert float(np.std(nn.LayerNorm(**plain).apply({}, x), axis=-1).max()) == default, "fast is no longer the default"
    other = float(np.std(nnx.LayerNorm(64, **plain, rngs=nnx.Rngs(0))(x), axis=-1).max())
    print(f"mean {mean:5} deviations: default {default:.3g}, without fast variance {slow:.2f}")
    assert abs(slow - 1) < 0.01 and (abs(default - 1) > 0.1) == wrong == (abs(other - 1) > 0.1), "the behaviour has changed"
assert default > 100, "the behaviour has changed"
PYTHON
"$folder/venv/bin/python" "$folder/show.py"
