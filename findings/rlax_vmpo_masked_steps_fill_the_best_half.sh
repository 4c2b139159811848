#!/usr/bin/env bash
# rlax 0.1.9: vmpo_loss takes the best half of all steps, masked ones counted. With half of a batch masked, none is left out.
#
# V-MPO learns from the better half of the samples only (top_k_fraction). restarting_weights of 0 take steps out of the loss, and
# their advantages are sorted to the end, but the number to keep is the fraction of the whole array. So padding fills places of
# the better half: if as much is masked as not, all the rest are kept, the worst included, and their log probabilities are
# raised too. The more padding, the weaker the selection, and so it differs from batch to batch. Nothing is raised. Scale
# top_k_fraction by the share of the steps that are not masked.
#
# Output seen (Python 3.11, jax 0.10.2 on a CPU), advantages 0.2, 0.1, -0.1, -0.2 at a temperature of 1; their weights:
#   alone: 0.52 0.48 0 0
#   and 4 masked: 0.30 0.27 0.22 0.20
#   and 4 masked, top_k_fraction 0.25: 0.52 0.48 0 0
set -euo pipefail
folder="$(mktemp -d)"
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check rlax==0.1.9 chex==0.1.92 distrax==0.1.9 jax==0.10.2 \
    jaxlib==0.10.2 "numpy<2.5"
cat > "$folder/show.py" <<'PYTHON'
import jax.numpy as jnp
import rlax

ADVANTAGES = 0.2, 0.1, -0.1, -0.2


def weights(masked: int, fraction: float = 0.5) -> list[float]:
    advantages = jnp.array([*ADVANTAGES, *[0.0] * masked])
    told = jnp.array([1.0] * 4 + [0.0] * masked)
    temperature = rlax.LagrangePenalty(alpha=jnp.array(1.0), epsilon=jnp.array(0.1))
    likelihood = rlax.LagrangePenalty(alpha=jnp.array(1.0), epsilon=jnp.array(0.1))
    nothing = jnp.zeros_like(advantages)
    _, outputs = rlax.vmpo_loss(nothing, advantages, temperature, [(nothing, likelihood)], restarting_weights=told,
                                top_k_fraction=fraction)
    return [float(weight) for weight in outputs.normalized_weights[:4]]


def text(found: list[float]) -> str:
    return " ".join(f"{weight:.2f}" if weight else "0" for weight in found)


alone, padded, scaled = weights(0), weights(4), weights(4, 0.25)
print(f"alone: {text(alone)}")
print(f"and 4 masked: {text(padded)}")
print(f"and 4 masked, top_k_fraction 0.25: {text(scaled)}")
assert alone[2:] == scaled[2:] == [0, 0] and abs(alone[0] - scaled[0]) < 1e-5, "the selection behaves otherwise now"
assert min(padded) > 0.1, "it behaves otherwise now"
PYTHON
JAX_PLATFORMS=cpu "$folder/venv/bin/python" "$folder/show.py" 2> "$folder/log" || { cat "$folder/log"; exit 1; }
