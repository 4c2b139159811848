#!/usr/bin/env bash
# jax 0.10.2: random.bernoulli with a bfloat16 probability draws True with the next multiple of 1/128 above it: 0.0005 becomes
# 0.0078. Mixed-precision code whose rates or probabilities are bfloat16 drops, masks or explores up to 16 times too often.
#
# It compares p with uniform noise of p's type, and uniform noise in bfloat16 has 128 values. float16 has 1024: 0.0003 becomes
# 0.001. A Python float, or p in float32, is drawn right. jax.nn.softmax of bfloat16 logits gives such probabilities.
#
# Output seen (CPU, Python 3.11), share of True in four million draws:
#   p = 0.0005: bfloat16 0.0078, float32 0.0005
#   p = 0.003: bfloat16 0.0078, float32 0.0030
#   p = 0.05: bfloat16 0.0547, float32 0.0500
#   different values of uniform noise in bfloat16: 128, mean 0.496
set -euo pipefail
folder="$(mktemp -d)"
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check jax==0.10.2 jaxlib==0.10.2
cat > "$folder/show.py" <<'PYTHON'
import jax
import jax.numpy as jnp
import numpy as np

key, draws = jax.random.key(0), (4_000_000,)
share = {}
for p in (0.0005, 0.003, 0.05):
    low, high = (float(jnp.mean(jax.random.bernoulli(key, t(p), draws), dtype=jnp.float32)) for t in (jnp.bfloat16, jnp.float32))
    share[p] = low
    print(f"p = {p}: bfloat16 {low:.4f}, float32 {high:.4f}")
    assert abs(high - p) < 3e-4
noise = np.asarray(jax.random.uniform(key, draws, jnp.bfloat16), np.float32)
print(f"different values of uniform noise in bfloat16: {len(np.unique(noise))}, mean {noise.mean():.3f}")
assert abs(share[0.0005] - 1 / 128) < 3e-4 and abs(share[0.003] - 1 / 128) < 3e-4, "it draws otherwise now"
assert abs(share[0.05] - 7 / 128) < 6e-4 and len(np.unique(noise)) == 128, "it draws otherwise now"
PYTHON
JAX_PLATFORMS=cpu "$folder/venv/bin/python" "$folder/show.py"
