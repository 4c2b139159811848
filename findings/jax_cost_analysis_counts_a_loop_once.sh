#!/usr/bin/env bash
# jax 0.10.2: Compiled.cost_analysis() counts a loop's body once, whatever its trip count, known or not.
#
# A model whose layers are scanned, a decoding loop or accumulated gradients are loops, so an MFU worked out from these "flops"
# is too small by the number of layers, tokens or pieces. Unrolled, the same program has the right count: so unrolling seems to
# multiply the work. Two programs can only be compared if their loops are the same. memory_analysis() is not affected.
#
# Output seen (jaxlib 0.10.2 on a CPU, Python 3.11), products of 64 × 64 matrices, 524288 operations each:
#   one product: 1 × 524288
#   100 in a scan: 1 × 524288
#   100 in an unrolled scan: 100 × 524288
#   100 in a fori_loop: 1 × 524288
set -euo pipefail
folder="$(mktemp -d)"
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check jax==0.10.2 jaxlib==0.10.2 numpy
cat > "$folder/show.py" <<'PYTHON'
import jax
import jax.numpy as jnp

ONE = 2 * 64**3


def scanned(unroll):
    return lambda x: jax.lax.scan(lambda carry, _: (carry @ x, None), x, None, length=100, unroll=unroll)[0]


programs = {
    "one product": (lambda x: x @ x, 1),
    "100 in a scan": (scanned(1), 1),
    "100 in an unrolled scan": (scanned(True), 100),
    "100 in a fori_loop": (lambda x: jax.lax.fori_loop(0, 100, lambda _, carry: carry @ x, x), 1),
}
for name, (program, expected) in programs.items():
    flops = jax.jit(program).lower(jnp.ones((64, 64))).compile().cost_analysis()["flops"]
    print(f"{name}: {round(flops / ONE)} × {ONE}")
    assert round(flops / ONE) == expected, "the behaviour has changed"
PYTHON
JAX_PLATFORMS=cpu "$folder/venv/bin/python" "$folder/show.py"
