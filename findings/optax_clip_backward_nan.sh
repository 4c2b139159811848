#!/usr/bin/env bash
# optax 0.2.8: the clips by norm have a finite forward derivative and a NaN backward one where the gradient is zero.
#
# clip_by_global_norm and adaptive_grad_clip leave a zero gradient as it is, so their derivative there is the identity.
# Forward mode (jax.jvp) says so. Reverse mode (jax.vjp) gives NaN, since the norm's square root has an infinite derivative
# at 0 behind a jnp.where. It also does for gradients so small that their squares underflow (1e-30 in float32). Who
# differentiates through an optimizer (meta-learning, hypergradients) meets it where a batch has no signal; Adam's eps_root
# does not help. A clip whose norm is guarded inside the where has the same values and the right derivative both ways.
#
# Output seen (optax 0.2.8, jax 0.10.2, CPU):
#   clip_by_global_norm zero   jvp [1. 1. 1.] vjp [nan nan nan]
#   clip_by_global_norm 1e-30  jvp [1. 1. 1.] vjp [nan nan nan]
#   adaptive_grad_clip  zero   jvp [1. 1. 1.] vjp [nan nan nan]
set -euo pipefail
folder="$(mktemp -d)"
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check optax==0.2.8 jax==0.10.2 jaxlib==0.10.2 numpy
cat > "$folder/show.py" <<'PYTHON'
import jax
import jax.numpy as jnp
import optax

params, ones = jnp.ones(3), jnp.ones(3)
lines = []
for name, tx, size in (
    ("clip_by_global_norm", optax.clip_by_global_norm(1.0), 0.0),
    ("clip_by_global_norm", optax.clip_by_global_norm(1.0), 1e-30),
    ("adaptive_grad_clip", optax.adaptive_grad_clip(0.1), 0.0),
):
    state, gradient = tx.init(params), jnp.full(3, size)

    def update(g):
        return tx.update(g, state, params)[0]

    forward = jax.jvp(update, (gradient,), (ones,))[1]
    backward = jax.vjp(update, gradient)[1](ones)[0]
    assert jnp.array_equal(update(gradient), gradient)
    print(f"{name:19} {'zero' if not size else size:6} jvp {forward} vjp {backward}")
    assert jnp.allclose(forward, 1.0) and jnp.isnan(backward).all(), "the behaviour has changed"
PYTHON
JAX_PLATFORMS=cpu "$folder/venv/bin/python" "$folder/show.py"
