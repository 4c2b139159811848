"""The cost model of a step of Meal: operations and memory traffic. (roofline.py: lower bounds of the time on a chip.)

Nothing is compiled or run. Conventions:
- A product of [m, k] and [k, n] is 2·m·n·k operations. Only matrix products count; the rest is about 1 % of a step.
- Attention is counted as `models.attention.attend` computes it: every query with every key, masked or not (no causal half).
- The teacher-forced passes read all T positions of a response, whatever its length, and the rollout is counted for the
  longest response, T tokens: a batch that ends early costs less.
- Traffic is each product's operands read and its result written once. Elementwise operations are assumed to be fused into
  neighbouring products, so bytes are a lower bound. Weights count in their storage type, activations in the compute type,
  scores and logits in float32.
- The weight-net, the conditioning, the optimizers and reward models are left out (for the last see `encoder`).

Letters: B prompts, N candidates, K objectives, S prompt tokens, P conditioning slots, T response tokens, V vocabulary,
D width, H heads, G key-value heads, C head width, L layers, R rank.
"""

from __future__ import annotations

import dataclasses
import math
import re
from typing import NamedTuple

from meal_jax.models.decode_attention import BLOCK
from meal_jax.models.transformer import TransformerConfig
from meal_jax.rollout.weights import AS_STORED, RolloutWeights

BYTES = {"float32": 4, "bfloat16": 2, "float16": 2, "int8": 1}


@dataclasses.dataclass(frozen=True)
class Cost:
    """The cost of a part of a step, summed over all chips.

    Attributes:
      flops: operations of matrix products.
      weights: bytes of weights read (and of their gradients written); every chip of a mesh that splits the batch moves them.
      activations: bytes of everything else that the products read and write.
      repeated: the part of `flops` that a backward pass recomputes; MFU leaves it out.
    """

    flops: float = 0.0
    weights: float = 0.0
    activations: float = 0.0
    repeated: float = 0.0

    def __add__(self, other: Cost) -> Cost:
        return Cost(*(a + b for a, b in zip(dataclasses.astuple(self), dataclasses.astuple(other), strict=True)))

    def __mul__(self, times: float) -> Cost:
        return Cost(*(times * a for a in dataclasses.astuple(self)))

    __rmul__ = __mul__

    @property
    def bytes(self) -> float:
        """Traffic on a single chip."""
        return self.weights + self.activations

    def in_parts(self, parts: int) -> Cost:
        """The same work in several parts, each of which reads the weights."""
        return dataclasses.replace(self, weights=parts * self.weights)

    def again(self) -> Cost:
        """The same cost as recomputation."""
        return dataclasses.replace(self, repeated=self.flops)


@dataclasses.dataclass(frozen=True)
class Run:
    """The sizes and settings that decide a step's cost.

    Attributes:
      model: the policy's decoder, with its adapters, types and remat.
      prompts, candidates: B, N.
      prompt_length, max_new: S, T.
      slots: P of the policy.
      tail: P of the base.
      prompt_per_candidate: each candidate's prompt is read at its own preference (`conditioning.prompt`).
      objectives: K.
      reads_base: scoring runs a pass of the base.
      kl: the base loss has a divergence from the base.
      net: the weight-net is trained; False is a plain step (static targets).
      hypergradient: exact, first_order or none.
      reuse_virtual: the virtual update is the first update.
      meta_fraction: share of a half's prompts that the meta-objective and the mixed derivative read.
      passes: how often a pool serves.
      chunk: response positions per projection to logits, None for all.
      rollout_weights: how the rollout holds the weights and attends, see `rollout.weights`.
      parts: numbers of parts of a rollout, of scoring and of each pass of an update; each part reads the weights.
    """

    model: TransformerConfig
    prompts: int
    candidates: int
    prompt_length: int
    max_new: int
    slots: int = 4
    tail: int = 0
    prompt_per_candidate: bool = False
    objectives: int = 2
    reads_base: bool = True
    kl: bool = True
    net: bool = True
    hypergradient: str = "exact"
    reuse_virtual: bool = True
    meta_fraction: float = 1.0
    passes: int = 1
    chunk: int | None = None
    rollout_weights: RolloutWeights = AS_STORED
    parts: tuple[int, int, int] = (1, 1, 1)


def of_setup(setup, prompts: int, prompt_length: int, max_new: int | None = None) -> Run:
    """The Run of a `meal.step.Setup` on batches of B prompts of S tokens; T may be less than the longest allowed."""
    m = setup.meal
    return Run(
        setup.policy.config,
        prompts,
        m.candidates,
        prompt_length,
        setup.max_new if max_new is None else max_new,
        slots=setup.policy.conditioning.length,
        tail=setup.base.conditioning.length if setup.base is not None else 0,
        prompt_per_candidate=setup.policy.conditioning.prompt_per_candidate,
        objectives=len(setup.objectives),
        reads_base=setup.reward_reads_base or setup.keep_reference,
        kl=setup.keep_reference,
        net=m.net,
        hypergradient=m.hypergradient,
        reuse_virtual=m.reuse_virtual,
        meta_fraction=m.meta_fraction,
        passes=m.passes,
        chunk=setup.chunk,
        rollout_weights=setup.rollout_weights,
        parts=step_parts(setup.micro, prompts),
    )


def prompt_copies(run: Run) -> int:
    """How often the policy reads a prompt: once, or once per candidate."""
    return run.candidates if run.prompt_per_candidate else 1


def step_parts(micro, prompts: int) -> tuple[int, int, int]:
    """`Run.parts` of B prompts; `micro` gives the prompts per chunk, and an update pass covers half of the batch."""
    return parts_of(prompts, micro.rollout), parts_of(prompts, micro.score), parts_of(prompts // 2, micro.gradient)


def parts_of(prompts: int, chunk: int | None) -> int:
    """Number of parts of `chunk` prompts each; None is all prompts."""
    return prompts // chunk if chunk and chunk < prompts else 1


# ------------------------------------------------------------------------------------------------- parameters


def linears(c: TransformerConfig) -> dict[str, tuple[int, int]]:
    """Input and output width of a layer's linear maps, by path."""
    q, kv = c.heads * c.head_dim, c.kv_heads * c.head_dim
    return {
        "attention/q": (c.width, q),
        "attention/k": (c.width, kv),
        "attention/v": (c.width, kv),
        "attention/o": (q, c.width),
        "mlp/gate": (c.width, c.hidden),
        "mlp/up": (c.width, c.hidden),
        "mlp/down": (c.hidden, c.width),
    }


def adapted(c: TransformerConfig) -> dict[str, tuple[int, int]]:
    """The maps of `linears` with an adapter."""
    if c.lora is None:
        return {}
    return {path: shape for path, shape in linears(c).items() if re.search(c.lora.targets, path)}


def base_parameters(c: TransformerConfig) -> int:
    """Number of the decoder's parameters without adapters."""
    biases = (c.heads + 2 * c.kv_heads) * c.head_dim if c.qkv_bias else 0
    heads = (c.heads + c.kv_heads if c.qk_norm_joint else 2) if c.qk_norm else 0
    norms = 2 * (c.pre_norms + c.post_norms) * c.width + heads * c.head_dim
    layer = sum(math.prod(shape) for shape in linears(c).values()) + biases + norms
    return c.layers * layer + (1 if c.tied else 2) * c.vocab_size * c.width + c.width


def adapter_parameters(c: TransformerConfig) -> int:
    """Number of the adapters' parameters."""
    rank = c.lora.rank if c.lora else 0
    return c.layers * rank * sum(a + b for a, b in adapted(c).values())


# ------------------------------------------------------------------------------------------------- passes


class Parts(NamedTuple):
    """A decoder's products by their differentiation: frozen maps, trained maps, attention to own keys, to a prompt's keys."""

    frozen: Cost
    trained: Cost
    own: Cost
    prompt: Cost

    def times(self, frozen: float, trained: float, own: float, prompt: float) -> Cost:
        """The sum with one factor per part."""
        return frozen * self.frozen + trained * self.trained + own * self.own + prompt * self.prompt


# Number of products per entry of Parts. y = x W is one product forward; backward, the gradients of x and W are one each. A
# tangent takes one product if one factor varies with θ and two if both do; so does the tangent of each product of a backward
# pass to the preferences. A prompt's keys vary with θ, not with the preferences.
FORWARD = (1, 1, 1, 1)
BACKWARD = (1, 2, 2, 2)
BACKWARD_INPUTS = (1, 1, 2, 1)
TANGENT = (1, 2, 2, 2)
TANGENT_OF_BACKWARD = (1, 2, 4, 2)


def matmul(rows: float, inner: int, columns: int, weight: int, activation: int, out: int | None = None) -> Cost:
    """[rows, inner] times a weight [inner, columns]; the others are bytes per element, `out` is `activation` by default."""
    moved = rows * (inner * activation + columns * (activation if out is None else out))
    return Cost(2.0 * rows * inner * columns, inner * columns * weight, moved)


def maps(c: TransformerConfig, tokens: float, dtype: str = "") -> tuple[Cost, Cost]:
    """All layers' linear maps of `tokens` tokens: (base, adapters). `dtype` is the storage type, "" for the model's."""
    act, weight = BYTES[c.dtype], BYTES[dtype or c.param_dtype]
    base = sum((matmul(tokens, a, b, weight, act) for a, b in linears(c).values()), Cost())
    extra = Cost()
    for a, b in adapted(c).values():
        extra += matmul(tokens, a, c.lora.rank, 4, act) + matmul(tokens, c.lora.rank, b, 4, act)
    return c.layers * base, c.layers * extra


def attention(c: TransformerConfig, sets: float, queries: float, keys: float, fused: bool = False) -> Cost:
    """All layers' scores and sums: `sets` sets of keys, each read by `queries` queries. If fused, scores stay on the chip."""
    act = BYTES[c.dtype]
    scores = sets * queries * keys * c.heads
    ends = 2 * sets * (queries * c.heads + keys * c.kv_heads) * c.head_dim * act  # q, k; v, output
    return c.layers * Cost(4.0 * scores * c.head_dim, 0.0, (0 if fused else scores * (4 + act)) + ends)


def parts(c: TransformerConfig, tokens: float, own: Cost, prompt: Cost, dtype: str = "") -> Parts:
    """The Parts of a pass over `tokens` tokens with the given attention costs."""
    base, extra = maps(c, tokens, dtype)
    return Parts(base, extra, own, prompt) if c.lora else Parts(Cost(), base, own, prompt)


def prompt_parts(run: Run, prompts: float, dtype: str = "") -> Parts:
    """The pass over `prompts` prompts."""
    s, prompts = run.prompt_length, prompts * prompt_copies(run)
    own = attention(run.model, prompts, s, s, run.model.attention == "cudnn")
    return parts(run.model, prompts * s, own, Cost(), dtype)


def response_parts(run: Run, prompts: float, length: int) -> Parts:
    """The teacher-forced pass over the candidates of `prompts` prompts, `length` positions each."""
    c, n, copies = run.model, run.candidates, prompt_copies(run)
    fused = c.attention == "cudnn"
    own = attention(c, prompts * n, length, length, fused)
    prompt = attention(c, prompts * copies, n // copies * length, run.prompt_length, fused)
    if run.prompt_per_candidate:  # the prompt's keys vary with the preferences, as its own do
        own, prompt = own + prompt, Cost()
    return parts(c, prompts * n * length, own, prompt)


def unembed(c: TransformerConfig, positions: float) -> Cost:
    """Logits of `positions` positions."""
    return matmul(positions, c.width, c.vocab_size, BYTES[c.param_dtype], BYTES[c.dtype], 4)


def recompute(c: TransformerConfig, p: Parts, tokens: float) -> Cost:
    """The products that a backward pass recomputes under `c.remat`.

    "full" recomputes a layer except its last product, whose result no gradient needs. "dots" recomputes attention, since
    products with a weight are kept.
    """
    if c.remat == "none":
        return Cost()
    if c.remat == "dots":
        sums = "attention/o" in adapted(c) or c.lora is None  # the weighted sums too, if the map after them is trained
        return (p.times(0, 0, 1, 1) * (1.0 if sums else 0.5)).again()
    return (p.times(*FORWARD) + products(c, tokens, "down$") * (0 if c.post_norms else -1)).again()


def products(c: TransformerConfig, tokens: float, pattern: str) -> Cost:
    """All layers' maps whose path matches the pattern."""
    matching = [
        matmul(tokens, *shape, BYTES[c.param_dtype], BYTES[c.dtype])
        for path, shape in linears(c).items()
        if re.search(pattern, path)
    ]
    return c.layers * sum(matching, Cost())


# ------------------------------------------------------------------------------------------------- phases


def rollout(run: Run) -> dict[str, Cost]:
    """Prefill and decode: T tokens of every candidate."""
    choices = run.rollout_weights
    if choices.weights == "merged":
        run = dataclasses.replace(run, model=dataclasses.replace(run.model, lora=None))
    c, rows, dtype = run.model, run.prompts * run.candidates, "int8" if choices.weights == "int8" else ""
    cache = max(run.slots + run.max_new - 1, 1)
    fused = choices.attention == "triton"

    def extend(length: int, keys: float, fused: bool) -> Cost:
        own = attention(c, rows, length, keys, fused)
        copies = prompt_copies(run)
        prompt = attention(c, run.prompts * copies, run.candidates // copies * length, run.prompt_length, fused)
        return parts(c, rows * length, own, prompt, dtype).times(*FORWARD) + unembed(c, rows)

    steps, keys = run.max_new - 1, float(cache)
    if fused and steps:  # averaged over steps: it reads whole blocks of keys up to the last written one
        keys = sum(min(-(-(run.slots + t) // BLOCK) * BLOCK, cache) for t in range(1, run.max_new)) / steps
    first = extend(run.slots, cache, False) if run.slots else unembed(c, rows)
    prefill = prompt_parts(run, run.prompts, dtype).times(*FORWARD)
    if run.prompt_per_candidate:  # and once at the uniform preference, for the weight-net
        prefill += prompt_parts(dataclasses.replace(run, prompt_per_candidate=False), run.prompts, dtype).times(
            *FORWARD
        )
    return {
        "prefill": prefill.in_parts(run.parts[0]),
        "decode": (first + steps * extend(1, keys, fused)).in_parts(run.parts[0]),
    }


def score(run: Run) -> Cost:
    """The pass of the base for heads and the divergence; nothing without these (text rewards: `encoder`)."""
    if not run.reads_base:
        return Cost()
    plain = dataclasses.replace(run, model=dataclasses.replace(run.model, lora=None), prompt_per_candidate=False)
    length = run.tail + run.max_new  # up to the state after the last token
    responses = response_parts(plain, run.prompts, length) if length else Parts(*[Cost()] * 4)
    return (prompt_parts(plain, run.prompts).times(*FORWARD) + responses.times(*FORWARD)).in_parts(run.parts[1])


def update(run: Run) -> dict[str, Cost]:
    """Each pass of `meal.step.update`, over a half of the prompts: virtual, meta, mixed, descend (one or two updates).

    Where meta and mixed read a part of their half, virtual reads its own half in two parts at least.
    """
    out, parts = {}, {}
    if run.net:
        # A loss that is not reported needs only the logits of its gradient and of the start of a mixed derivative.
        unread = 0 if run.reuse_virtual else run.kl + (run.hypergradient == "none")
        out["virtual"] = gradient(run, kl=run.kl, unread=unread)
        some = dataclasses.replace(run, prompts=run.prompts * run.meta_fraction)
        out["meta"] = gradient(some, kl=False, theta=run.hypergradient != "none")
        parts["meta"] = parts["mixed"] = max(1, round(run.parts[2] * run.meta_fraction))
        if run.hypergradient != "none":
            out["mixed"] = mixed(some, through_network=run.hypergradient == "exact")
            parts["virtual"] = max(run.parts[2], 2) if run.meta_fraction < 1 else run.parts[2]
    out["descend"] = (1 if run.net and run.reuse_virtual else 2) * gradient(run, kl=run.kl)
    if run.passes > 1:
        out["serve again"] = 2 * (run.passes - 1) * gradient(run, kl=run.kl) + 2 * forward(run)
    return {name: cost.in_parts(parts.get(name, run.parts[2])) for name, cost in out.items()}


def forward(run: Run) -> Cost:
    """The log-probabilities of half a batch's responses, without a gradient."""
    prompt = prompt_parts(run, run.prompts / 2)
    response = response_parts(run, run.prompts / 2, run.slots + run.max_new - 1)
    return prompt.times(*FORWARD) + response.times(*FORWARD) + _logits(run, 1, 0, kl=False)


def gradient(run: Run, kl: bool, theta: bool = True, unread: int = 0) -> Cost:
    """A loss of log-probabilities on half a batch and its gradient, in θ or only in the preferences."""
    c, prompts = run.model, run.prompts / 2
    length = run.slots + run.max_new - 1
    tokens = prompts * run.candidates * length
    prompt, response = prompt_parts(run, prompts), response_parts(run, prompts, length)
    out = prompt.times(*FORWARD) + response.times(*FORWARD)
    out += response.times(*(BACKWARD if theta else BACKWARD_INPUTS)) + recompute(c, response, tokens)
    read = prompts * prompt_copies(run) * run.prompt_length
    if theta or run.prompt_per_candidate:
        out += prompt.times(*(BACKWARD if theta else BACKWARD_INPUTS)) + recompute(c, prompt, read)
    table = 1 if c.lora or not theta else 2
    return out + _logits(run, 1, table, kl, unread)


def mixed(run: Run, through_network: bool) -> Cost:
    """The mixed derivative of the base loss on half a batch: what `bilevel.value_and_mixed` adds to the first gradient.

    It is the tangent, in θ's direction, of the gradient in the preferences. With one part it reuses the passes of the virtual
    update; with several parts, and under remat, these passes are recomputed.
    """
    c, prompts = run.model, run.prompts / 2
    length = run.slots + run.max_new - 1
    tokens = prompts * run.candidates * length
    prompt, response = prompt_parts(run, prompts), response_parts(run, prompts, length)
    logits = unembed(c, prompts * run.candidates * run.max_new)
    read = prompts * prompt_copies(run) * run.prompt_length
    table = 1 if c.lora else 2
    out = prompt.times(*TANGENT) + response.times(*TANGENT) + table * logits
    if not through_network:
        return out
    out += response.times(*TANGENT_OF_BACKWARD) + table * logits
    out += 2 * recompute(c, response, tokens)
    out += (1 + run.prompt_per_candidate) * recompute(c, prompt, read)
    if run.prompt_per_candidate:  # its keys vary with the preferences, as a response's do
        out += prompt.times(*TANGENT_OF_BACKWARD)
    for part, rows in ((response, tokens), (prompt, read)) if run.prompt_per_candidate else ((response, tokens),):
        if c.remat == "dots":
            out += part.times(0, 0, *BACKWARD_INPUTS[2:]).again()
        elif c.remat == "full":  # but for a layer's last gradient, of q's, k's and v's input
            out += (part.times(*BACKWARD_INPUTS) + products(c, rows, "(q|k|v)$") * -1).again()
    if run.chunk and run.chunk < run.max_new:
        out += ((2 + run.kl) * logits).again()
    if run.parts[2] > 1:
        out += gradient(run, run.kl, theta=False, unread=1 + run.kl).again()
    return out


def _logits(run: Run, forward: int, backward: int, kl: bool, unread: int = 0) -> Cost:
    """Logits of half a batch's responses: `forward` and `backward` products, and the base's if there is a divergence.

    Chunks of logits are not kept but recomputed for the gradient; then `unread` of the forward products are not needed.
    """
    logits = unembed(run.model, run.prompts / 2 * run.candidates * run.max_new)
    first = (forward + kl) * logits
    if not (backward and run.chunk and run.chunk < run.max_new):
        return first + backward * logits
    return first + backward * logits + (first.again() if not unread else first + unread * logits * -1)


def step(run: Run) -> dict[str, Cost]:
    """Every part of a step, by "phase/part"; phases are rollout, score and update."""
    return (
        {f"rollout/{name}": cost for name, cost in rollout(run).items()}
        | {"score/base": score(run)}
        | {f"update/{name}": cost for name, cost in update(run).items()}
    )


def phases(run: Run) -> dict[str, Cost]:
    """A step's cost by phase."""
    out = dict.fromkeys(("rollout", "score", "update"), Cost())
    for name, cost in step(run).items():
        phase = name.partition("/")[0]
        out[phase] += cost
    return out


def encoder(parameters: float, rows: float, tokens: float, dtype: str = "bfloat16") -> Cost:
    """A reward model's pass over rows of `tokens` tokens: 2 operations per parameter and token."""
    return Cost(2.0 * parameters * rows * tokens, parameters * BYTES[dtype], 0.0)
