#!/usr/bin/env bash
# optax 0.2.8: softmax_cross_entropy_with_integer_labels takes negative labels from the end, so -100, which Hugging Face's
# collators write where no label is to count, trains towards token V - 100. Nothing is raised.
#
# torch's cross_entropy leaves -100 out (ignore_index). Rows prepared for it have a finite loss and a gradient here, so training
# runs and learns to say one certain token after every prompt and padding. Only a vocabulary of fewer than 100 shows it: beyond
# the first entry the loss is NaN. Labels have to be masked with `where=` (and replaced, or the NaN stays in the gradient).
#
# Output seen (jax 0.10.2, CPU, Python 3.11), logits 0 but for one token of logit 5, V = 32000:
#   label -100: 5.378 where token V - 100 has the logit, 10.378 where token 0 has it
#   label -100, V = 64: nan
set -euo pipefail
folder="$(mktemp -d)"
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check optax==0.2.8 jax==0.10.2 jaxlib==0.10.2 numpy
cat > "$folder/show.py" <<'PYTHON'
import jax.numpy as jnp
import numpy as np
import optax


def loss(vocabulary, raised):
    logits = jnp.zeros((1, vocabulary)).at[0, raised].set(5.0)
    return float(optax.softmax_cross_entropy_with_integer_labels(logits, jnp.array([-100]))[0])


at_end, at_start, small = loss(32000, 31900), loss(32000, 0), loss(64, 0)
print(f"label -100: {at_end:.3f} where token V - 100 has the logit, {at_start:.3f} where token 0 has it")
print(f"label -100, V = 64: {small}")
assert abs(at_start - at_end - 5) < 1e-3 and np.isnan(small), "the behaviour has changed"
PYTHON
JAX_PLATFORMS=cpu "$folder/venv/bin/python" "$folder/show.py"
