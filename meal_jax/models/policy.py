"""The policy π_θ(y | x, w): a decoder conditioned on a preference, as a few pure functions of its parameters.

Letters: B prompts, N candidates, K objectives, S prompt tokens, P conditioning slots, T response tokens, V vocabulary,
D width, L layers, R rank of the adapters.

A sequence is [left padding][prompt, S][conditioning, P][response, T]. The conditioning stands after the prompt so that
one prefill serves all N candidates of a prompt, whatever preference each of them answers. It is one of
  prefix  embeddings computed from w by a small network, trained with the policy (differentiable in w);
  text    tokens that spell w in numerals, from a table made once with the tokenizer (w is rounded, no gradient in w);
  none    nothing, the policy does not see w (the reference model, and methods with a model for each preference);
and in all three then a fixed tail, the tokens that a chat template puts before an answer: with those between them and the
answer, conditioning that is not trained yet disturbs a pretrained model little.

Alone or beside prefix or text, "adapter" has every adapter scaled by w, per candidate (`lora.block_scale`): no new
parameters, no new tokens, differentiable in w. The prompt is read at the uniform preference, where the scales are 1, so one
prefill still serves all candidates; where nothing stands between it and the answer, each candidate reads its last token, which
predicts the answer's first, again. By choice (`Conditioning.prompt`) the prompt is read at the candidate's own preference:
that takes a prefill per candidate and makes the policy at one preference a plain model.
"""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from meal_jax.models.attention import MASKED, KeyValues
from meal_jax.models.lora import block_scale
from meal_jax.models.transformer import Prompt, Transformer, TransformerConfig, cache_length

PyTree = Any
CONDITIONING = ("prefix", "text", "adapter", "adapter+prefix", "adapter+text", "none")
PROMPT = ("uniform", "preference")


@dataclasses.dataclass(frozen=True)
class Conditioning:
    """How the policy reads a preference.

    Attributes:
      kind: one of `CONDITIONING`.
      objectives: K.
      slots: embeddings of "prefix".
      hidden: width of the prefix network's hidden layer.
      table: for "text", token ids as nested tuples [K][levels][width]: table[k][i] spells w_k = i / (levels - 1). All
        rows have one width.
      tail: token ids between the conditioning and the response.
      prompt: what adapters that read a preference are told in the prompt's pass: "uniform", or "preference", the candidate's.
    """

    kind: str = "prefix"
    objectives: int = 2
    slots: int = 2
    hidden: int = 64
    table: tuple = ()
    tail: tuple = ()
    prompt: str = "uniform"

    def __post_init__(self):
        if self.kind not in CONDITIONING:
            raise ValueError(f"conditioning.kind={self.kind!r} is not one of {', '.join(CONDITIONING)}.")
        if self.prompt not in PROMPT:
            raise ValueError(f"conditioning.prompt={self.prompt!r} is not one of {', '.join(PROMPT)}.")
        if self.inserted == "text" and len(self.table) != self.objectives:
            raise ValueError(f"conditioning.table spells {len(self.table)} objectives, there are {self.objectives}.")

    @property
    def scales_adapters(self) -> bool:
        """The adapters read the preference."""
        return self.kind.startswith("adapter")

    @property
    def inserted(self) -> str:
        """What stands between a prompt and the tail: "prefix", "text" or "none"."""
        return inserted(self.kind)

    @property
    def prompt_per_candidate(self) -> bool:
        """Each candidate's prompt is read at its own preference, so that none is shared."""
        return self.scales_adapters and self.prompt == "preference"

    @property
    def rereads(self) -> bool:
        """Candidates read the prompt's last token anew: nothing else that reads their preference stands before their first."""
        return self.scales_adapters and self.inserted == "none" and not self.tail and not self.prompt_per_candidate

    @property
    def length(self) -> int:
        """P, what a candidate reads before its first token."""
        widths = {
            "prefix": self.slots,
            "none": 0,
            "text": self.inserted == "text" and self.objectives * len(self.table[0][0]),
        }
        return widths[self.inserted] + len(self.tail) + self.rereads


def inserted(kind: str) -> str:
    """What a kind of conditioning puts between a prompt and the tail: "prefix", "text" or "none"."""
    return {"adapter": "none"}.get(kind, kind.removeprefix("adapter+"))


class Prefilled(NamedTuple):
    """A batch of prompts after one forward pass.

    Attributes:
      kv: KeyValues [L, B, S, G, C].
      mask: [B, S] bool, of the tokens that candidates see; the last is out where they read it anew.
      length: [B] int32, the number of those.
      token: [B] int32, the last.
      last: [B, D], last hidden state of the last token.
      pooled: [B, D], mean of the last hidden states of the real tokens, in float32.
    """

    kv: KeyValues
    mask: jax.Array
    length: jax.Array
    token: jax.Array
    last: jax.Array
    pooled: jax.Array


class Policy(nn.Module):
    """Linen module; use it as `policy.apply({"params": params}, ..., method="prefill")`."""

    config: TransformerConfig
    conditioning: Conditioning

    def setup(self):
        self.transformer = Transformer(self.config)
        if self.conditioning.scales_adapters and self.config.lora is None:
            raise ValueError(f"conditioning.kind={self.conditioning.kind!r} scales adapters, and this policy has none.")
        if self.conditioning.inserted == "prefix":
            self.conditioner = Conditioner(self.config, self.conditioning)

    def __call__(self, tokens: jax.Array, mask: jax.Array, w: jax.Array, response: jax.Array) -> jax.Array:
        """Touches every parameter: what `init` traces. Shapes as in `prefill` and `respond`."""
        return self.unembed(self.respond(self.prefill(tokens, mask), w, response))

    def prefill(
        self, tokens: jax.Array, mask: jax.Array, deterministic: bool = True, w: jax.Array | None = None
    ) -> Prefilled:
        """Runs left-padded prompts [B, S] once; positions count from each prompt's first real token.

        Adapters that read a preference are told w [B, 1, K], or the uniform one.
        """
        positions = jnp.maximum(jnp.cumsum(mask, axis=-1) - 1, 0)[:, None]  # [B, 1, S]
        causal = jnp.tril(jnp.ones((tokens.shape[1],) * 2, bool))
        hidden, kv = self.transformer(
            self.transformer.embed(tokens)[:, None],
            positions,
            causal & mask[:, None, None, :],
            keep_kv=True,
            deterministic=deterministic,
            scale=None if w is None else self.adapter_scale(w),
        )
        hidden = hidden[:, 0]  # [B, S, D]
        weight = mask[..., None].astype(jnp.float32)
        pooled = jnp.sum(hidden.astype(jnp.float32) * weight, axis=1) / jnp.maximum(jnp.sum(weight, axis=1), 1.0)
        kv = jax.tree.map(lambda a: a[:, :, 0], kv)
        seen = (
            jnp.asarray(mask).at[:, -1].set(False) if self.conditioning.rereads else mask
        )  # a caller's may be NumPy's
        return Prefilled(kv, seen, jnp.sum(seen, axis=-1, dtype=jnp.int32), tokens[:, -1], hidden[:, -1], pooled)

    def condition(self, w: jax.Array) -> jax.Array:
        """Preferences [B, N, K] to conditioning embeddings [B, N, P, D]."""
        c, lead = self.conditioning, w.shape[:-1]
        tail = jnp.broadcast_to(jnp.asarray(c.tail, jnp.int32), (*lead, len(c.tail)))
        if c.inserted == "text":
            table = jnp.asarray(c.table)  # [K, levels, width]
            level = jnp.round(w * (table.shape[1] - 1)).astype(jnp.int32)
            numerals = table[jnp.arange(c.objectives), level]  # [B, N, K, width]
            tail = jnp.concatenate([numerals.reshape(*lead, -1), tail], axis=-1)
        embedded = self.transformer.embed(tail)
        return jnp.concatenate([self.conditioner(w), embedded], axis=-2) if c.inserted == "prefix" else embedded

    def _before_answer(self, prompt: Prefilled, w: jax.Array) -> jax.Array:
        """Embeddings [B, N, P, D] of what a candidate reads between the shared prompt and its answer."""
        if not self.conditioning.rereads:
            return self.condition(w)
        return jnp.broadcast_to(
            self.transformer.embed(prompt.token)[:, None, None], (*w.shape[:2], 1, self.config.width)
        )

    def adapter_scale(self, w: jax.Array) -> jax.Array | None:
        """What adapters are scaled by at preferences [B, N, K]: [B, N, 1, R], or None where they do not read them."""
        return block_scale(w, self.config.lora.rank)[:, :, None] if self.conditioning.scales_adapters else None

    def respond(self, prompt: Prefilled, w: jax.Array, tokens: jax.Array, deterministic: bool = True) -> jax.Array:
        """Teacher-forced pass over responses.

        Args:
          prompt: B prefilled prompts.
          w: [B, N, K] preferences to condition on.
          tokens: [B, N, T] response tokens; padding after the end is harmless (attention is causal).
          deterministic: see Transformer.

        Returns:
          [B, N, T, D]: position t predicts tokens[..., t].
        """
        slots = self._before_answer(prompt, w)
        x = jnp.concatenate([slots, self.transformer.embed(tokens[..., :-1])], axis=2)
        steps = x.shape[2]
        hidden = jnp.zeros((*tokens.shape[:2], 0, self.config.width), x.dtype)
        if steps:
            hidden, _ = self.transformer(
                x,
                (prompt.length[:, None] + jnp.arange(steps))[:, None],
                jnp.tril(jnp.ones((steps, steps), bool))[None, None],
                prompt=Prompt(prompt.kv, prompt.mask),
                deterministic=deterministic,
                scale=self.adapter_scale(w),
            )
        if slots.shape[2]:
            return hidden[:, :, slots.shape[2] - 1 :]
        first = jnp.broadcast_to(prompt.last[:, None, None], (*tokens.shape[:2], 1, self.config.width))
        return jnp.concatenate([first.astype(x.dtype), hidden], axis=2)

    def start(self, prompt: Prefilled, w: jax.Array, cache: KeyValues) -> tuple[jax.Array, KeyValues]:
        """Reads the conditioning into an empty cache [L, B, N, S, G, C]; returns [B, N, D], which predicts the first token."""
        slots = self._before_answer(prompt, w)
        if not slots.shape[2]:
            return jnp.broadcast_to(prompt.last[:, None], (*w.shape[:2], self.config.width)), cache
        return self._extend(prompt, w, slots, cache, 0)

    def step(
        self, prompt: Prefilled, w: jax.Array, token: jax.Array, cache: KeyValues, write_at: jax.Array
    ) -> tuple[jax.Array, KeyValues]:
        """Feeds one token [B, N] at cache index `at`; returns [B, N, D], which predicts the next."""
        return self._extend(prompt, w, self.transformer.embed(token)[:, :, None], cache, write_at)

    def _extend(self, prompt, w, x, cache, index):
        steps = x.shape[2]
        query, key = index + jnp.arange(steps), jnp.arange(cache_length(cache))
        hidden, cache = self.transformer(
            x,
            (prompt.length[:, None] + query)[:, None],
            (key <= query[:, None])[None, None],
            prompt=Prompt(prompt.kv, prompt.mask),
            cache=cache,
            write_at=index,
            scale=self.adapter_scale(w),
        )
        return hidden[:, :, -1], cache

    def unembed(self, hidden: jax.Array) -> jax.Array:
        """[..., D] to float32 logits [..., V]."""
        return self.transformer.unembed(hidden)


def one_per_candidate(prompts: PyTree, candidates: PyTree) -> tuple[PyTree, PyTree]:
    """Rows of prompts [B, ...] and of candidates [B, N, ...], as [B · N, ...] and [B · N, 1, ...]: no two share a prompt."""
    count = jax.tree.leaves(candidates)[0].shape[1]
    return (
        jax.tree.map(lambda x: jnp.repeat(x, count, axis=0), prompts),
        jax.tree.map(lambda x: x.reshape(-1, 1, *x.shape[2:]), candidates),
    )


def init_params(policy: Policy, key: jax.Array) -> PyTree:
    """The policy's parameters, drawn at random. Pure and traceable."""
    k = policy.conditioning.objectives
    tokens, w = jnp.zeros((1, 2), jnp.int32), jnp.full((1, 1, k), 1.0 / k)
    return policy.init(key, tokens, jnp.ones((1, 2), bool), w, tokens[None])["params"]


class Conditioner(nn.Module):
    """The prefix network: w [..., K] to P embeddings [..., P, D], at the scale of token embeddings."""

    config: TransformerConfig
    conditioning: Conditioning

    @nn.compact
    def __call__(self, w: jax.Array) -> jax.Array:
        c = self.conditioning
        x = nn.Dense(c.hidden, name="hidden")(2.0 * c.objectives * w - 2.0)  # centred: the uniform preference maps to 0
        x = nn.Dense(c.slots * self.config.width, name="slots")(nn.gelu(x))
        x = x * (self.config.width**-0.5 * self.config.embedding_scale)
        return x.reshape(*w.shape[:-1], c.slots, self.config.width).astype(self.config.dtype)


def empty_cache(config: TransformerConfig, batch: int, candidates: int, length: int) -> KeyValues:
    """Zeroed keys and values [L, B, N, length, G, C]; if `config.unstack_layers`, a tuple of L with one layer each."""
    shape = (batch, candidates, length, config.kv_heads, config.head_dim)

    def blank(layers):
        return jnp.zeros((layers, *shape), config.dtype)

    if config.unstack_layers:
        return tuple(KeyValues(blank(1), blank(1)) for _ in range(config.layers))
    return KeyValues(blank(config.layers), blank(config.layers))


class TokenStats(NamedTuple):
    """Per response token, [B, N, T] in float32: log π(y_t | …), and KL(π(· | …) ‖ π_ref(· | …)) or None."""

    logp: jax.Array
    kl: jax.Array | None


def token_stats(
    unembed, hidden, tokens, *, forbidden=None, temperature=1.0, reference=None, chunk: int | None = None
) -> TokenStats:
    """Log-probabilities of response tokens without ever holding [B, N, T, V] whole.

    The sequence is cut into chunks of `chunk` positions; each is projected, reduced and, in the backward pass,
    projected again (`jax.checkpoint`), so memory is that of one chunk of logits.

    Args:
      unembed: function from [..., D] to float32 logits [..., V].
      hidden: [B, N, T, D], position t predicts tokens[..., t].
      tokens: [B, N, T] int.
      forbidden: [V] bool, tokens that the sampler never draws; they have probability 0 here too.
      temperature: of the sampler.
      reference: None, or (unembed, hidden [B, N, T, D]) of π_ref; the KL is exact over the vocabulary at each position.
      chunk: positions at a time; None takes all T at once.

    Returns:
      TokenStats.
    """

    def scores(unembed_, h):
        logits = unembed_(h) / temperature
        return logits if forbidden is None else jnp.where(forbidden, MASKED, logits)

    def read_chunk(xs):
        h, y, h_ref = xs
        logits = scores(unembed, h)
        # A sum under a comparison, not a gather: its gradient is elementwise, where a gather's scatters into zeros [..., V].

        def at_y(x):
            return jnp.sum(jnp.where(jnp.arange(x.shape[-1]) == y[..., None], x, 0.0), axis=-1)

        if reference is None:
            return TokenStats(at_y(logits) - jax.nn.logsumexp(logits, axis=-1), None)
        log_pi, log_ref = jax.nn.log_softmax(logits), jax.nn.log_softmax(scores(reference[0], h_ref))
        return TokenStats(at_y(log_pi), jnp.sum(jnp.exp(log_pi) * (log_pi - log_ref), axis=-1))

    xs = (hidden, tokens, None if reference is None else reference[1])
    length = tokens.shape[-1]
    if not chunk or chunk >= length:
        return read_chunk(xs)
    pieces = -(-length // chunk)

    def cut(a):  # [B, N, T, ...] to [pieces, B, N, chunk, ...], padded at the end
        a = jnp.pad(a, [(0, 0), (0, 0), (0, pieces * chunk - length)] + [(0, 0)] * (a.ndim - 3))
        return jnp.moveaxis(a.reshape(*a.shape[:2], pieces, chunk, *a.shape[3:]), 2, 0)

    out = jax.lax.map(jax.checkpoint(read_chunk), jax.tree.map(cut, xs))

    def glue(a):
        return jnp.moveaxis(a, 0, 2).reshape(*tokens.shape[:2], -1)[..., :length]

    return jax.tree.map(glue, out)
