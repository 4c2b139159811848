#!/usr/bin/env bash
# jax 0.10.2: jax.random.categorical draws wrongly from logits in bfloat16 or float16: early tokens are preferred, late ones
# hardly or never drawn. Nothing is raised, nothing warned.
#
# The Gumbel noise is made in the logits' type. In its default mode, "low", bfloat16 noise takes 128 values and never exceeds
# 4.85, so many tokens tie for the largest sum, and argmax takes the first of them. Of 1,000 equal logits 98 % of the draws fall
# on the first half; of a vocabulary's 32,000 all do, on a fiftieth of the tokens. float16 is wrong in the same way. A language
# model that computes in bfloat16 hands over such logits. Cast them to float32 first, or pass mode="high".
#
# Output seen (jaxlib 0.10.2 on a CPU, Python 3.11):
#   1,000 equal logits, 100,000 draws: share of the first half, tokens drawn
#     float32: 0.498, 1000
#     bfloat16: 0.981, 887
#     float16: 0.619, 1000
#     bfloat16, mode="high": 0.509, 1000
#   32,000 equal logits in bfloat16, 10,000 draws: the first half has 1.000 of them, 625 tokens were drawn (float32: 0.508, 8600)
set -euo pipefail
folder="$(mktemp -d)"
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check jax==0.10.2 jaxlib==0.10.2 numpy
cat > "$folder/show.py" <<'PYTHON'
import functools

import jax
import jax.numpy as jnp
import numpy as np


@functools.partial(jax.jit, static_argnames=("tokens", "draws", "dtype", "mode"))
def draw(key, tokens, draws, dtype, mode=None):
    logits = jnp.zeros(tokens, dtype)
    return jax.lax.map(lambda key: jax.random.categorical(key, logits, mode=mode), jax.random.split(key, draws))


def spread(tokens, draws, dtype, mode=None):
    drawn = np.asarray(draw(jax.random.key(0), tokens, draws, dtype, mode))
    return float(np.mean(drawn < tokens // 2)), len(np.unique(drawn))


print("1,000 equal logits, 100,000 draws: share of the first half, tokens drawn")
small = {
    "float32": spread(1000, 100_000, jnp.float32),
    "bfloat16": spread(1000, 100_000, jnp.bfloat16),
    "float16": spread(1000, 100_000, jnp.float16),
    'bfloat16, mode="high"': spread(1000, 100_000, jnp.bfloat16, "high"),
}
for name, (half, tokens) in small.items():
    print(f"  {name}: {half:.3f}, {tokens}")
large = {dtype: spread(32_000, 10_000, dtype) for dtype in (jnp.bfloat16, jnp.float32)}
(half, tokens), (half32, tokens32) = large.values()
print(
    f"32,000 equal logits in bfloat16, 10,000 draws: the first half has {half:.3f} of them, {tokens} tokens were drawn "
    f"(float32: {half32:.3f}, {tokens32})"
)
assert abs(small["float32"][0] - 0.5) < 0.01, "float32 draws are not even"
assert small["bfloat16"][0] > 0.95 and small["float16"][0] > 0.6, "the behaviour has changed"
assert abs(small['bfloat16, mode="high"'][0] - 0.5) < 0.02 and half == 1.0 and tokens < 1000, "the behaviour has changed"
PYTHON
"$folder/venv/bin/python" "$folder/show.py"
