#!/usr/bin/env bash
# jax 0.10.2: jax.nn.dot_product_attention counts is_causal and local_window_size from the first key, and lets a query that may
# see nothing see everything.
#
# Decoding with a cache has one query and all keys so far. is_causal=True then leaves the query the first key alone, the oldest
# token, and so does a window: both take the first query to stand beside the first key. Nothing is raised; the docstring says
# nothing of it. (PyTorch aligns is_causal in the same way, and says so. Other implementations align with the last key.)
# A row of the mask without a true entry, such as that of a left-padded position, is no row of zeros or NaN: it is the mean of
# all values. With is_causal and a padding mask together that mean runs over what both masks forbid, later tokens too, and
# key_value_seq_lengths=0 gives the mean of an empty cache's contents. (PyTorch 2.13 gives zeros.) Whoever averages over
# positions, or reads a state of padding, mixes in what was masked.
#
# Output seen (jaxlib 0.10.2 on a CPU, Python 3.11); the values of the four keys are 0, 1, 2, 3:
#   one query, four keys alike: 1.50, with is_causal 0.00, with a window of two 0.00
#   four queries, is_causal, keys 0 and 1 masked: 1.50, 1.50, 2.00, 2.50
#   a mask without a true entry: 1.50; no key by key_value_seq_lengths: 1.50
set -euo pipefail
folder="$(mktemp -d)"
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check jax==0.10.2 jaxlib==0.10.2 numpy
cat > "$folder/show.py" <<'PYTHON'
import jax
import jax.numpy as jnp

keys = jnp.ones((1, 4, 1, 8))  # [batch, keys, heads, width], alike: attention is an even mean over what may be seen
values = keys * jnp.arange(4.0)[None, :, None, None]


def attend(queries, **options):
    out = jax.nn.dot_product_attention(jnp.ones((1, queries, 1, 8)), keys, values, **options)
    return [float(x) for x in out[0, :, 0, 0]]


plain, causal, window = attend(1), attend(1, is_causal=True), attend(1, local_window_size=(1, 0))
padded = attend(4, is_causal=True, mask=jnp.array([False, False, True, True])[None, None, None])
masked = attend(1, mask=jnp.zeros((1, 1, 1, 4), bool))
empty = attend(1, key_value_seq_lengths=jnp.array([0]))
print(f"one query, four keys alike: {plain[0]:.2f}, with is_causal {causal[0]:.2f}, with a window of two {window[0]:.2f}")
print(f"four queries, is_causal, keys 0 and 1 masked: {', '.join(f'{x:.2f}' for x in padded)}")
print(f"a mask without a true entry: {masked[0]:.2f}; no key by key_value_seq_lengths: {empty[0]:.2f}")
assert plain == [1.5] and causal == window == [0.0], "the alignment has changed"
assert padded == [1.5, 1.5, 2.0, 2.5] and masked == empty == [1.5], "rows that see nothing have changed"
PYTHON
"$folder/venv/bin/python" "$folder/show.py"
