"""A chip's memory by arithmetic, for chips without a compiler here.

Letters: B prompts, N candidates, S prompt tokens, P conditioning slots, T response tokens, L layers.
"""

from __future__ import annotations

from collections.abc import Mapping

from meal_jax import cost, roofline

# What an update holds of all layers, by `model.remat`, in times of what their linear maps and attention take and give.
#   MIXED: a half at once with a hypergradient, whose mixed derivative keeps the first gradient's passes whatever `remat` is.
#   WHOLE: a half at once without one. PARTS: in parts, between which nothing is kept.
# Read off the compiler's workspace. SmolLM2-135M on a CPU (docs/performance.md): MIXED 13, 7.7 and 2.9, WHOLE 7.4 ("none") and
# 0.7 ("full"), PARTS 2.8 and 0.6. Llama-2-7b on TPUs under "full" (docs/devices.md): MIXED 2.4 to 4.5, PARTS 0.9 to 1.6. The
# other two of "dots" are interpolated.
MIXED = {"none": 13.0, "dots": 8.0, "full": 3.5}
WHOLE = {"none": 7.5, "dots": 4.5, "full": 1.2}
PARTS = {"none": 2.8, "dots": 2.0, "full": 1.2}


def estimate(run: cost.Run, mesh: Mapping[str, int] | None = None, base_copies: int = 1) -> dict[str, float]:
    """Bytes that a chip holds at once, by kind: an estimate, as XLA reuses and pads.

    Args:
      run: the step.
      mesh: axis → size.
      base_copies: number of copies of the base weights.

    Returns:
      weights: the decoder's. trained: adapters (or all weights) in float32 with their gradient, the virtual policy and
      the direction of the hypergradient. optimizer: two moments, and those of the virtual update. cache: keys and values of
      the rollout. rollout weights: its own copy of the weights, if it gathers, merges, quantizes or unstacks them.
      activations: what the gradients of an update, or of one part of it, hold under `model.remat`. logits: of one chunk.
      Memory of the rollout and of the update is not held at the same time; see `peak`.
    """
    mesh = mesh or {}
    c, (batch, tensor) = run.model, roofline.pieces(mesh)
    split = mesh.get("fsdp", 1) * tensor
    act, base = cost.BYTES[c.dtype], cost.base_parameters(c)
    # Of what is trained, gradient, virtual policy and direction beside the parameters; moments, and those of the virtual step.
    trained = 4 * cost.adapter_parameters(c) if c.lora else cost.BYTES[c.param_dtype] * base
    half = run.prompts / 2 / batch / run.parts[2]
    length = run.slots + run.max_new - 1
    copies = cost.prompt_copies(run)
    tokens = half * (copies * run.prompt_length + run.candidates * length)
    keys = run.prompts / batch / run.parts[0] * (copies * run.prompt_length + run.candidates * length)
    rows = sum(b for _, b in cost.linears(c).values())
    scores = half * (copies * run.prompt_length**2 + run.candidates * length * (length + run.prompt_length)) * c.heads
    layer = tokens * (2 * c.width + rows / tensor) * act + scores / tensor * (4 + 2 * act)
    whole = MIXED if run.net and run.hypergradient != "none" else WHOLE
    held = (whole if run.parts[2] == 1 else PARTS)[c.remat]
    how = run.rollout_weights
    gathers = how.gather and mesh.get("fsdp", 1) > 1
    copies = gathers or how.unstack_layers or how.weights != "same"
    copied = base * cost.BYTES["int8" if how.weights == "int8" else c.param_dtype]
    positions = half * run.candidates * (run.chunk or run.max_new)
    return {
        "weights": base_copies * base * cost.BYTES[c.param_dtype] / split,
        "trained": (4 if c.lora else 3) * trained / split,
        "optimizer": 4 * trained / split,
        "cache": 2 * c.layers * keys * c.kv_heads * c.head_dim * act / tensor,
        "rollout weights": copies * copied / (tensor if gathers else split),
        "activations": held * c.layers * layer,
        "logits": positions * c.vocab_size / tensor * 4 * 3,
    }


def peak(parts: Mapping[str, float]) -> float:
    """The peak of the memory of `estimate`, and of reward models where they are among the parts."""
    rollout, backward = parts["cache"] + parts["rollout weights"], parts["activations"] + parts["logits"]
    always = sum(parts.get(name, 0.0) for name in ("weights", "trained", "optimizer", "reward models"))
    return always + max(rollout, backward)
