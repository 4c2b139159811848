#!/usr/bin/env bash
# google-metrax 0.2.4: Perplexity merges batches by their number of sequences, not of tokens, so it depends on the batching. A batch
# of padding lowers it to its square root, and a label that is no token counts as a perfect prediction.
#
# The docstring divides the sum over all tokens by the sum of their weights. One batch does that. Merged batches average
# the batches' means, weighted by their rows. In evaluation responses differ in length, and the last batch is often
# filled with padding. A label of -100, which marks a token that does not count, has an all-zero one-hot row and so a loss
# of 0. Without sample_weights such labels lower the perplexity, to 1.0 if all are -100. Nothing is raised. Sum losses and
# weights yourself, and give a weight of 0 to each label that is no token.
#
# Output seen (Python 3.11, flax 0.12.8, jax 0.10.2 on a CPU); four sequences of 8, 8, 1 and 1 tokens:
#   all tokens, by hand: 239.3
#   one batch: 239.3
#   two batches of two: 304.4
#   one batch, and one of padding: 15.5
#   the first sequence: 147.8; half of its labels -100: 11.0; all of them: 1.0
set -euo pipefail
folder="$(mktemp -d)"
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check google-metrax==0.2.4 clu==0.0.12 flax==0.12.8 jax==0.10.2 \
    jaxlib==0.10.2 "numpy<2.5"
cat > "$folder/show.py" <<'PYTHON'
import jax
import jax.numpy as jnp
import numpy as np
from metrax import Perplexity

rng = np.random.default_rng(0)
logits = jnp.asarray(2 * rng.normal(size=(4, 8, 16)), jnp.float32)
labels = jnp.asarray(rng.integers(0, 16, (4, 8)))
weights = jnp.asarray(np.arange(8) < np.array([8, 8, 1, 1])[:, None], jnp.float32)


def batch(rows, of_weights=weights):
    return Perplexity.from_model_output(logits[rows], labels[rows], of_weights[rows], from_logits=True)


losses = -jnp.take_along_axis(jax.nn.log_softmax(logits), labels[..., None], axis=-1)[..., 0]
true = float(jnp.exp((losses * weights).sum() / weights.sum()))
one = float(batch(slice(0, 4)).compute())
two = float(batch(slice(0, 2)).merge(batch(slice(2, 4))).compute())
padded = float(batch(slice(0, 4)).merge(batch(slice(0, 4), jnp.zeros_like(weights))).compute())
print(f"all tokens, by hand: {true:.1f}\none batch: {one:.1f}\ntwo batches of two: {two:.1f}")
print(f"one batch, and one of padding: {padded:.1f}")
marked = []
for share in (0, 4, 8):
    some = jnp.where(jnp.arange(8) < share, -100, labels[:1])
    marked.append(float(Perplexity.from_model_output(logits[:1], some, from_logits=True).compute()))
print(f"the first sequence: {marked[0]:.1f}; half of its labels -100: {marked[1]:.1f}; all of them: {marked[2]:.1f}")
assert abs(one - true) < 0.01 and two > 1.1 * true and abs(padded - true**0.5) < 0.01, "it behaves otherwise now"
assert marked[1] < marked[0] / 2 and marked[2] == 1, "it behaves otherwise now"
PYTHON
JAX_PLATFORMS=cpu "$folder/venv/bin/python" "$folder/show.py" 2> "$folder/log" || { cat "$folder/log"; exit 1; }
