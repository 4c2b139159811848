#!/usr/bin/env bash
# optax 0.2.8: inject_hyperparams(adamw) with its default settings turns bfloat16 parameters to NaN at the first step. adamw alone
# trains them.
#
# inject_hyperparams, which one uses to log or to change the learning rate, takes every number among the arguments into its state, the
# defaults too, in the widest type among the parameters. If all are bfloat16, Adam's b2 of 0.999 is 1: the second moment stays
# 0, its bias correction is 0, and 0 / 0 is NaN. Nothing is raised or warned. One float32 leaf, such as the scale of a norm, hides it.
# Give hyperparam_dtype=jnp.float32, or name b2 among static_args.
#
# Output seen (jax 0.10.2, CPU, Python 3.11); first updates of a bfloat16 leaf for the gradients 1 and 2:
#   adamw: [-0.001, -0.001]
#   injected: [nan, nan], with b2 1.0
#   injected, b2 among static_args: [-0.001, -0.001]
#   injected, hyperparam_dtype float32: [-0.001, -0.001], with b2 0.999
#   injected, beside a float32 leaf: [-0.001, -0.001], with b2 0.999
set -euo pipefail
folder="$(mktemp -d)"
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check optax==0.2.8 jax==0.10.2 jaxlib==0.10.2 numpy==2.4.6
cat > "$folder/show.py" <<'PYTHON'
import warnings

import jax.numpy as jnp
import numpy as np
import optax

warnings.simplefilter("error")
weights, gradients, inject = jnp.ones(2, jnp.bfloat16), jnp.array([1, 2], jnp.bfloat16), optax.inject_hyperparams
cases = {
    "adamw": (optax.adamw(1e-3), {}),
    "injected": (inject(optax.adamw)(1e-3), {}),
    "injected, b2 among static_args": (inject(optax.adamw, static_args="b2")(1e-3), {}),
    "injected, hyperparam_dtype float32": (inject(optax.adamw, hyperparam_dtype=jnp.float32)(1e-3), {}),
    "injected, beside a float32 leaf": (inject(optax.adamw)(1e-3), {"scale": jnp.ones(1)}),
}
for name, (transformation, others) in cases.items():
    parameters = {"weights": weights, **others}
    updates, state = transformation.update({"weights": gradients, **others}, transformation.init(parameters), parameters)
    first = np.asarray(updates["weights"], np.float64)
    b2 = getattr(state, "hyperparams", {}).get("b2")
    print(f"{name}: {first.round(4).tolist()}" + ("" if b2 is None else f", with b2 {float(b2):.4}"))
    lost = name == "injected"
    assert np.isnan(first).all() if lost else np.allclose(first, -1e-3, rtol=0.01), "it behaves otherwise now"
    assert b2 is None or (float(b2) == 1) == lost, "it behaves otherwise now"
PYTHON
JAX_PLATFORMS=cpu "$folder/venv/bin/python" "$folder/show.py"
