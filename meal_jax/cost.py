"""What a step of Meal costs, by arithmetic: operations and memory traffic. (roofline.py: the least time on a chip.)

Nothing is compiled or run. Conventions:
- A product of [m, k] and [k, n] is 2·m·n·k operations. Only matrix products count; they are all but about 1 % of a step.
- Attention is counted as `models.attention.attend` computes it: every query with every key, masked or not (no causal half).
- The teacher-forced passes read all T positions of a response, whatever its length, and the rollout is counted for the
  longest response, T tokens: a batch that ends early costs less.
- Traffic is each product's operands read and its result written once. What is elementwise is taken to be fused into
  the products beside it, so bytes are a lower bound. Weights count in their storage type, activations in the compute type,
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
    """Of some part of a step, over all chips together.

    Attributes:
      flops: operations of matrix products.
      weights: bytes of weights read (and of their gradients written). A mesh that splits the batch moves them on every chip.
      activations: bytes of everything else that the products read and write.
      repeated: the part of `flops` that a backward pass does again instead of keeping it; MFU leaves it out.
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
        """Traffic on one chip that does it all."""
        return self.weights + self.activations

    def in_parts(self, parts: int) -> Cost:
        """The same work done a part at a time: weights are read for each."""
        return dataclasses.replace(self, weights=parts * self.weights)

    def again(self) -> Cost:
        """The same, done a second time because it was not kept."""
        return dataclasses.replace(self, repeated=self.flops)


@dataclasses.dataclass(frozen=True)
class Run:
    """What decides a step's cost.

    Attributes:
      model: the policy's decoder, with its adapters, types and remat.
      prompts, candidates: B, N.
      prompt_length, max_new: S, T.
      slots: P of the policy.
      tail: P of the base.
      prompt_per_candidate: each candidate's prompt is read at its own preference (`conditioning.prompt`).
      objectives: K.
      reads_base: score makes a pass of the base.
      kl: the base loss has a divergence from the base.
      net: the weight-net is trained; False is a plain step (static targets).
      hypergradient: exact, first_order or none.
      reuse_virtual: the virtual update is the first update.
      passes: how often a pool serves.
      chunk: response positions projected at a time, 0 for all.
      rollout_weights: how the rollout holds the weights and attends, see `rollout.weights`.
      parts: of a rollout, of scoring and of each pass of an update, one after another; each part reads the weights anew.
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
    passes: int = 1
    chunk: int = 0
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
        reads_base=setup.reward_reads_base or m.beta > 0,
        kl=m.beta > 0,
        net=m.net,
        hypergradient=m.hypergradient,
        reuse_virtual=m.reuse_virtual,
        passes=m.passes,
        chunk=setup.chunk,
        rollout_weights=setup.rollout_weights,
        parts=step_parts(setup.micro, prompts),
    )


def prompt_copies(run: Run) -> int:
    """How often the policy reads a prompt: once, or once per candidate."""
    return run.candidates if run.prompt_per_candidate else 1


def step_parts(micro, prompts: int) -> tuple[int, int, int]:
    """`Run.parts` of B prompts: micro has the prompts at a time of rollout, score and update (half of B is one's pass)."""
    return parts_of(prompts, micro.rollout), parts_of(prompts, micro.score), parts_of(prompts // 2, micro.gradient)


def parts_of(prompts: int, at_a_time: int) -> int:
    """Into how many parts prompts are taken, 0 at a time being all."""
    return prompts // at_a_time if 0 < at_a_time < prompts else 1


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
    """Those of `linears` that carry an adapter."""
    if c.lora is None:
        return {}
    return {path: shape for path, shape in linears(c).items() if re.search(c.lora.targets, path)}


def base_parameters(c: TransformerConfig) -> int:
    """Number of the decoder's parameters, adapters left out."""
    biases = (c.heads + 2 * c.kv_heads) * c.head_dim if c.qkv_bias else 0
    norms = (4 if c.post_norms else 2) * c.width + (2 * c.head_dim if c.qk_norm else 0)
    layer = sum(math.prod(shape) for shape in linears(c).values()) + biases + norms
    return c.layers * layer + (1 if c.tied else 2) * c.vocab_size * c.width + c.width


def adapter_parameters(c: TransformerConfig) -> int:
    """Number of the adapters' parameters."""
    rank = c.lora.rank if c.lora else 0
    return c.layers * rank * sum(a + b for a, b in adapted(c).values())


# ------------------------------------------------------------------------------------------------- passes


class Parts(NamedTuple):
    """A decoder's products by how they are differentiated: frozen maps, trained maps, attention to own keys, to a prompt's."""

    frozen: Cost
    trained: Cost
    own: Cost
    prompt: Cost

    def times(self, frozen: float, trained: float, own: float, prompt: float) -> Cost:
        """The sum with a factor each."""
        return frozen * self.frozen + trained * self.trained + own * self.own + prompt * self.prompt


# How often each of Parts is done. y = x W forward is one product; backward, x's gradient is one and W's another. A tangent
# takes one product where one factor varies with θ and two where both do; so does the tangent of each product of a backward
# pass to the preferences. A prompt's keys vary with θ, not with the preferences.
FORWARD = (1, 1, 1, 1)
BACKWARD = (1, 2, 2, 2)
BACKWARD_INPUTS = (1, 1, 2, 1)
TANGENT = (1, 2, 2, 2)
TANGENT_OF_BACKWARD = (1, 2, 4, 2)


def matmul(rows: float, inner: int, columns: int, weight: int, activation: int, out: int | None = None) -> Cost:
    """[rows, inner] by a weight [inner, columns]; the rest are bytes of an element of each, `out` as `activation`."""
    moved = rows * (inner * activation + columns * (activation if out is None else out))
    return Cost(2.0 * rows * inner * columns, inner * columns * weight, moved)


def maps(c: TransformerConfig, tokens: float, dtype: str = "") -> tuple[Cost, Cost]:
    """All layers' linear maps of so many tokens: (base, adapters). `dtype` is the storage type, "" for the model's."""
    act, weight = BYTES[c.dtype], BYTES[dtype or c.param_dtype]
    base = sum((matmul(tokens, a, b, weight, act) for a, b in linears(c).values()), Cost())
    extra = Cost()
    for a, b in adapted(c).values():
        extra += matmul(tokens, a, c.lora.rank, 4, act) + matmul(tokens, c.lora.rank, b, 4, act)
    return c.layers * base, c.layers * extra


def attention(c: TransformerConfig, sets: float, queries: float, keys: float, fused: bool = False) -> Cost:
    """All layers' scores and sums: `sets` sets of keys, each read by `queries` queries. Fused, no score goes to memory."""
    act = BYTES[c.dtype]
    scores = sets * queries * keys * c.heads
    ends = 2 * sets * (queries * c.heads + keys * c.kv_heads) * c.head_dim * act  # q, k; v, output
    return c.layers * Cost(4.0 * scores * c.head_dim, 0.0, (0 if fused else scores * (4 + act)) + ends)


def parts(c: TransformerConfig, tokens: float, own: Cost, prompt: Cost, dtype: str = "") -> Parts:
    """Of a pass over so many tokens with these attentions."""
    base, extra = maps(c, tokens, dtype)
    return Parts(base, extra, own, prompt) if c.lora else Parts(Cost(), base, own, prompt)


def prompt_parts(run: Run, prompts: float, dtype: str = "") -> Parts:
    """The pass over so many prompts."""
    s, prompts = run.prompt_length, prompts * prompt_copies(run)
    own = attention(run.model, prompts, s, s, run.model.attention == "cudnn")
    return parts(run.model, prompts * s, own, Cost(), dtype)


def response_parts(run: Run, prompts: float, length: int) -> Parts:
    """The teacher-forced pass over so many prompts' candidates, `length` positions each."""
    c, n, copies = run.model, run.candidates, prompt_copies(run)
    fused = c.attention == "cudnn"
    own = attention(c, prompts * n, length, length, fused)
    prompt = attention(c, prompts * copies, n // copies * length, run.prompt_length, fused)
    if run.prompt_per_candidate:  # the prompt's keys vary with the preferences, as its own do
        own, prompt = own + prompt, Cost()
    return parts(c, prompts * n * length, own, prompt)


def unembed(c: TransformerConfig, positions: float) -> Cost:
    """Logits of so many positions."""
    return matmul(positions, c.width, c.vocab_size, BYTES[c.param_dtype], BYTES[c.dtype], 4)


def recompute(c: TransformerConfig, p: Parts, tokens: float) -> Cost:
    """What a backward pass computes again under `c.remat`.

    Of a whole layer all but its last product, whose result no gradient needs; of "dots" the attention's scores, since
    products with a weight are kept.
    """
    if c.remat == "none":
        return Cost()
    if c.remat == "dots":
        sums = "attention/o" in adapted(c) or c.lora is None  # the weighted sums, where the map behind them is trained
        return (p.times(0, 0, 1, 1) * (1.0 if sums else 0.5)).again()
    return (p.times(*FORWARD) + products(c, tokens, "down$") * (0 if c.post_norms else -1)).again()


def products(c: TransformerConfig, tokens: float, pattern: str) -> Cost:
    """All layers' maps whose path matches."""
    found = [
        matmul(tokens, *shape, BYTES[c.param_dtype], BYTES[c.dtype])
        for path, shape in linears(c).items()
        if re.search(pattern, path)
    ]
    return c.layers * sum(found, Cost())


# ------------------------------------------------------------------------------------------------- phases


def rollout(run: Run) -> dict[str, Cost]:
    """Prefill and decode: T tokens of every candidate."""
    how = run.rollout_weights
    if how.weights == "merged":
        run = dataclasses.replace(run, model=dataclasses.replace(run.model, lora=None))
    c, rows, dtype = run.model, run.prompts * run.candidates, "int8" if how.weights == "int8" else ""
    cache = max(run.slots + run.max_new - 1, 1)
    fused = how.attention == "triton"

    def extend(length: int, keys: float, fused: bool) -> Cost:
        own = attention(c, rows, length, keys, fused)
        copies = prompt_copies(run)
        prompt = attention(c, run.prompts * copies, run.candidates // copies * length, run.prompt_length, fused)
        return parts(c, rows * length, own, prompt, dtype).times(*FORWARD) + unembed(c, rows)

    steps, keys = run.max_new - 1, float(cache)
    if fused and steps:  # on average: it reads blocks of keys up to the last that is written
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
    """The pass of the base that heads and the divergence read; without either, nothing (text rewards: `encoder`)."""
    if not run.reads_base:
        return Cost()
    plain = dataclasses.replace(run, model=dataclasses.replace(run.model, lora=None), prompt_per_candidate=False)
    length = run.tail + run.max_new  # up to the state after the last token
    responses = response_parts(plain, run.prompts, length) if length else Parts(*[Cost()] * 4)
    return (prompt_parts(plain, run.prompts).times(*FORWARD) + responses.times(*FORWARD)).in_parts(run.parts[1])


def update(run: Run) -> dict[str, Cost]:
    """Each pass of `meal.step.update`, over a half of the prompts: virtual, meta, mixed, descend (one or two updates)."""
    out = {}
    if run.net:
        # A loss that is not reported needs no logits but the gradient's, and those that a mixed derivative starts from.
        unread = 0 if run.reuse_virtual else run.kl + (run.hypergradient == "none")
        out["virtual"] = gradient(run, kl=run.kl, unread=unread)
        out["meta"] = gradient(run, kl=False, theta=run.hypergradient != "none")
        if run.hypergradient != "none":
            out["mixed"] = mixed(run, through_network=run.hypergradient == "exact")
    out["descend"] = (1 if run.net and run.reuse_virtual else 2) * gradient(run, kl=run.kl)
    if run.passes > 1:
        out["serve again"] = 2 * (run.passes - 1) * gradient(run, kl=run.kl) + 2 * forward(run)
    return {name: cost.in_parts(run.parts[2]) for name, cost in out.items()}


def forward(run: Run) -> Cost:
    """The log-probabilities of half a batch's responses, without a gradient."""
    prompt, response = (
        prompt_parts(run, run.prompts / 2),
        response_parts(run, run.prompts / 2, run.slots + run.max_new - 1),
    )
    return prompt.times(*FORWARD) + response.times(*FORWARD) + _logits(run, 1, 0, kl=False)


def gradient(run: Run, kl: bool, theta: bool = True, unread: int = 0) -> Cost:
    """The gradient of a loss of log-probabilities on half a batch, in θ or in the preferences alone; and the loss's value."""
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

    It is the tangent, in θ's direction, of the gradient in the preferences. In one piece the passes that it is the tangent of
    are the virtual update's; in pieces, and under remat, they are made again.
    """
    c, prompts = run.model, run.prompts / 2
    length = run.slots + run.max_new - 1
    tokens = prompts * run.candidates * length
    prompt, response = prompt_parts(run, prompts), response_parts(run, prompts, length)
    one = unembed(c, prompts * run.candidates * run.max_new)
    read = prompts * prompt_copies(run) * run.prompt_length
    table = 1 if c.lora else 2
    out = prompt.times(*TANGENT) + response.times(*TANGENT) + table * one
    if not through_network:
        return out
    out += response.times(*TANGENT_OF_BACKWARD) + table * one
    out += 2 * recompute(c, response, tokens)
    out += (1 + run.prompt_per_candidate) * recompute(c, prompt, read)
    if run.prompt_per_candidate:  # its keys vary with the preferences, as a response's do
        out += prompt.times(*TANGENT_OF_BACKWARD)
    for part, rows in ((response, tokens), (prompt, read)) if run.prompt_per_candidate else ((response, tokens),):
        if c.remat == "dots":
            out += part.times(0, 0, *BACKWARD_INPUTS[2:]).again()
        elif c.remat == "full":  # but for a layer's last gradient, of q's, k's and v's input
            out += (part.times(*BACKWARD_INPUTS) + products(c, rows, "(q|k|v)$") * -1).again()
    if 0 < run.chunk < run.max_new:
        out += ((2 + run.kl) * one).again()
    if run.parts[2] > 1:
        out += gradient(run, run.kl, theta=False, unread=1 + run.kl).again()
    return out


def _logits(run: Run, forward: int, backward: int, kl: bool, unread: int = 0) -> Cost:
    """Of half a batch's responses: so many products forward and backward, and the base's where there is a divergence.

    Chunks of logits are not kept, but computed again for the gradient; `unread` of the first ones are then for nothing.
    """
    one = unembed(run.model, run.prompts / 2 * run.candidates * run.max_new)
    first = (forward + kl) * one
    if not (backward and 0 < run.chunk < run.max_new):
        return first + backward * one
    return first + backward * one + (first.again() if not unread else first + unread * one * -1)


def step(run: Run) -> dict[str, Cost]:
    """Every part of a step, "phase/part", phases being rollout, score and update."""
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
    """A reward model's pass over rows of so many tokens, from its number of parameters: 2 operations each and token."""
    return Cost(2.0 * parameters * rows * tokens, parameters * BYTES[dtype], 0.0)
