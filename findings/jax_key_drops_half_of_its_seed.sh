#!/usr/bin/env bash
# jax 0.10.2: random.key keeps the lower 32 bits of a seed and drops the others without a word: key(2**32) is key(0). fold_in
# raises for the same number.
#
# The documentation takes "a 64- or 32-bit integer". The key has 64 bits, and its upper 32 stay zero unless jax_enable_x64 is
# set; with it the same seed gives another key. Seeds that pack two numbers, such as run * 2**32 + rank, repeat from run to
# run. Hashes and times in nanoseconds map to 2**32 keys, of which 77,000 have an even chance of a repeat. Use
# fold_in(key(run), rank), or check that seeds are below 2**32.
#
# Output seen (Python 3.11, on a CPU):
#   seeds 0, 4294967296, 8589934592: key data [0, 0], [0, 0], [0, 0]
#   with jax_enable_x64: [0, 0], [1, 0], [2, 0]
#   fold_in(key, 4294967296): OverflowError
set -euo pipefail
folder="$(mktemp -d)"
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check jax==0.10.2 jaxlib==0.10.2 "numpy<2.5"
cat > "$folder/show.py" <<'PYTHON'
import warnings

import jax

warnings.simplefilter("error")
seeds = [0, 2**32, 2 * 2**32]


def data() -> list:
    return [jax.random.key_data(jax.random.key(seed)).tolist() for seed in seeds]


narrow = data()
with jax.enable_x64(True):
    wide = data()
print(f"seeds {', '.join(map(str, seeds))}: key data {', '.join(map(str, narrow))}")
print(f"with jax_enable_x64: {', '.join(map(str, wide))}")
try:
    jax.random.fold_in(jax.random.key(0), 2**32)
    folded = "no error"
except OverflowError as error:
    folded = type(error).__name__
print(f"fold_in(key, {2**32}): {folded}")
assert narrow == [[0, 0]] * 3 and wide == [[0, 0], [1, 0], [2, 0]], "it behaves otherwise now"
assert folded == "OverflowError", "fold_in behaves otherwise now"
PYTHON
JAX_PLATFORMS=cpu "$folder/venv/bin/python" "$folder/show.py" 2> "$folder/log" || { cat "$folder/log"; exit 1; }
