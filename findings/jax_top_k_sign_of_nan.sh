#!/usr/bin/env bash
# jax 0.10.2: jax.lax.top_k ranks a NaN by its sign bit: jnp.nan comes first, the NaN of 0/0 or inf - inf comes last.
#
# A division 0/0 on an x86 CPU gives a NaN whose sign bit is set; jnp.nan has none. jnp.argmax, jnp.max and jnp.argsort do
# not tell them apart: NaN is the largest, or last when ascending. top_k (and approx_max_k) order by bits. So a ranking of
# candidates by a reward with a broken mean hides the NaN at the end, a test with jnp.nan sees it at the front, and the two
# ways to take the best, top_k(x, 1) and argmax, disagree. 0.0 and -0.0 are ordered too: top_k puts all 0.0 first, where a
# stable descending argsort keeps them as they stand. Check that scores are finite before they are ranked.
#
# Output seen (jaxlib 0.10.2 on an x86 CPU, Python 3.11), scores 1, 3, NaN, 2:
#   jnp.nan: top_k [2, 1, 3, 0], argmax 2, argsort descending [2, 1, 3, 0]
#   0 / 0: top_k [1, 3, 0, 2], argmax 2, argsort descending [2, 1, 3, 0]
#   inf - inf: top_k [1, 3, 0, 2], argmax 2, argsort descending [2, 1, 3, 0]
#   scores 0, -0, 0, -0: top_k [0, 2, 1, 3], argsort descending [0, 1, 2, 3]
set -euo pipefail
folder="$(mktemp -d)"
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check jax==0.10.2 jaxlib==0.10.2 numpy
cat > "$folder/show.py" <<'PYTHON'
import jax
import jax.numpy as jnp

zero, infinity = jnp.zeros(1), jnp.full(1, jnp.inf)
sources = {"jnp.nan": jnp.full(1, jnp.nan), "0 / 0": zero / zero, "inf - inf": infinity - infinity}
seen = {}
for name, nan in sources.items():
    scores = jnp.concatenate([jnp.array([1.0, 3.0]), nan, jnp.array([2.0])])
    ranked, ordered = jax.lax.top_k(scores, 4)[1].tolist(), jnp.argsort(scores, descending=True).tolist()
    print(f"{name}: top_k {ranked}, argmax {int(jnp.argmax(scores))}, argsort descending {ordered}")
    assert int(jnp.argmax(scores)) == 2 and ordered == [2, 1, 3, 0], "argmax or argsort have changed"
    seen[name] = ranked
zeros = jnp.array([0.0, -0.0, 0.0, -0.0])
ranked, ordered = jax.lax.top_k(zeros, 4)[1].tolist(), jnp.argsort(zeros, descending=True).tolist()
print(f"scores 0, -0, 0, -0: top_k {ranked}, argsort descending {ordered}")
assert seen["jnp.nan"] == [2, 1, 3, 0] and seen["0 / 0"] == seen["inf - inf"] == [1, 3, 0, 2], "top_k has changed"
assert ranked == [0, 2, 1, 3] and ordered == [0, 1, 2, 3], "the order of zeros has changed"
PYTHON
"$folder/venv/bin/python" "$folder/show.py"
