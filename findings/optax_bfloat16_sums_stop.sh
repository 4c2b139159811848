#!/usr/bin/env bash
# optax 0.2.8 in bfloat16: sums stop growing, and nothing tells. The global norm of many leaves is too small, so the clip
# lets updates through that are longer than allowed; Adam's second moment never reaches its gradients' square.
#
# Both are sums kept in the updates' own type, whose 8 bits lose whatever is smaller than a 256th of the sum. The norm adds
# leaves' squares one leaf after the other: 1000 leaves of norm 1 have a norm of 16 in place of 31.6, and clipped to norm 1
# they have one of 2. With b2 = 0.999 the moment moves by a thousandth of what is missing, which rounds to nothing from half
# way on: after 5000 gradients of 1 it is 0.5, so steps are 1.36 times as long as in float32. Keep what is trained, its
# gradients and moments in float32; weights that are only read may be bfloat16. (mu_dtype is about the first moment alone.)
#
# Output seen (jax 0.10.2, CPU, Python 3.11):
#   norm of 1000 leaves of norm 1: float32 31.6, bfloat16 16.0; clipped to 1: float32 1.00, bfloat16 1.98
#   Adam after 5000 gradients of 1: second moment float32 0.993, bfloat16 0.500; step of lr 1: float32 -1.00, bfloat16 -1.36
set -euo pipefail
folder="$(mktemp -d)"
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check optax==0.2.8 jax==0.10.2 jaxlib==0.10.2 numpy
cat > "$folder/show.py" <<'PYTHON'
import jax
import jax.numpy as jnp
import numpy as np
import optax

clip, adam = optax.clip_by_global_norm(1.0), optax.adam(1.0, b2=0.999)
norms, clipped, moments, steps = {}, {}, {}, {}
for dtype in ("float32", "bfloat16"):
    updates = [jnp.full(4, 0.5, dtype) for _ in range(1000)]
    norms[dtype] = float(optax.global_norm(updates))
    clipped[dtype] = float(np.sqrt(sum(float((x.astype("float32") ** 2).sum()) for x in clip.update(updates, ())[0])))

    weight = {"w": jnp.ones((), dtype)}
    train = jax.jit(lambda _, carry: adam.update(weight, carry[1]))
    step, state = jax.lax.fori_loop(0, 5000, train, adam.update(weight, adam.init(weight)))
    moments[dtype], steps[dtype] = float(state[0].nu["w"]), float(step["w"])
show = lambda values, digits: ", ".join(f"{name} {value:.{digits}f}" for name, value in values.items())
print(f"norm of 1000 leaves of norm 1: {show(norms, 1)}; clipped to 1: {show(clipped, 2)}")
print(f"Adam after 5000 gradients of 1: second moment {show(moments, 3)}; step of lr 1: {show(steps, 2)}")
assert norms["bfloat16"] == 16 and norms["float32"] > 31 and clipped["bfloat16"] > 1.9, "the norm has changed"
assert moments["bfloat16"] == 0.5 and moments["float32"] > 0.99 and steps["bfloat16"] < -1.3, "Adam has changed"
PYTHON
JAX_PLATFORMS=cpu "$folder/venv/bin/python" "$folder/show.py"
