#!/usr/bin/env bash
# qwix 0.1.8: the dropout of LoRA adapters stays on after model.eval(), while the model's own is off.
#
# LoraProvider(dropout=…) makes a new Dropout that is never deterministic at each call. With the random state that training
# needs, a flax.nnx model in evaluation draws new masks each time: two calls on one input differ, sampling reads another policy
# than the one whose log-probabilities are taken, and nothing says so. A provider with dropout=0 for evaluation mends it.
#
# Output seen (Python 3.11, flax 0.12.8, jax 0.10.2 on a CPU; largest difference of two calls on one input):
#   adapters' dropout 0.0: training 13; evaluation 0, the model's own dropout off
#   adapters' dropout 0.5: training 13; evaluation 0.36, the model's own dropout off
set -euo pipefail
folder="$(mktemp -d)"
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check qwix==0.1.8 flax==0.12.8 jax==0.10.2 jaxlib==0.10.2 "numpy<2.5"
cat > "$folder/show.py" <<'PYTHON'
import jax.numpy as jnp
import qwix
from flax import nnx


class Model(nnx.Module):
    def __init__(self, rngs):
        self.dropout, self.dense = nnx.Dropout(0.5, rngs=rngs), nnx.Linear(16, 16, rngs=rngs)

    def __call__(self, x):
        return self.dense(self.dropout(x))


def gap(model) -> float:
    return float(jnp.abs(model(x) - model(x)).max())


x, seen = jnp.ones((1, 16)), {}
for rate in (0.0, 0.5):
    provider = qwix.LoraProvider(module_path=".*", rank=4, alpha=8.0, dropout=rate)
    model = qwix.apply_lora_to_model(Model(nnx.Rngs(0)), provider, x, rngs=nnx.Rngs(1))
    model.dense.kernel_lora_b[...] = jnp.ones_like(model.dense.kernel_lora_b[...])  # as after training
    model.set_attributes(qwix_rngs=nnx.Rngs(2))
    model.train()
    training = gap(model)
    model.eval()
    seen[rate] = gap(model)
    off = "off" if model.dropout.deterministic else "on"
    print(f"adapters' dropout {rate}: training {training:.2g}; evaluation {seen[rate]:.2g}, the model's own dropout {off}")
assert seen[0.0] == 0 and seen[0.5] > 0.01, "it behaves otherwise now"
PYTHON
JAX_PLATFORMS=cpu "$folder/venv/bin/python" "$folder/show.py" 2> "$folder/log" || { cat "$folder/log"; exit 1; }
