"""A base model for the embedded benchmark: one that speaks the language and has learned no preference.

Alignment begins with a model that answers. The random weights that the benchmark starts from otherwise leave out what
methods make of that: weights of models fine-tuned from one base can be averaged, a frozen base can be guided, its answers are
worth imitating. This base is made on the spot, by fitting answers drawn at random:

    length uniform from 1 to T tokens with the end; a share u of the content serves an objective, the rest is any content
    token; of what serves, each objective has its share s_k; u is uniform in [0, 1] and s on the simplex, for each answer.

So its answers are of any length, half of them to the point, and favour nothing. It depends on nothing but the sizes: every
method and every seed starts from the same, as from a published checkpoint.

Letters: R rows, B rows of a batch, S prompt tokens, K objectives, T response tokens, V vocabulary.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from meal_jax.meal.bilevel import token_loss
from meal_jax.models.policy import Conditioning, Policy, init_params, token_stats
from meal_jax.models.transformer import TransformerConfig

PyTree = Any
BATCH = 64


def draw_answers(key: jax.Array, serves: jax.Array, content: jax.Array, length: int, end: int, pad: int):
    """Random answers, as the module describes.

    Args:
      key: typed.
      serves: [B, V, K], 1 where a token serves an objective of the prompt.
      content: [V], 1 for content tokens.
      length: T.
      end, pad: ids.

    Returns:
      tokens [B, T] int32 and mask [B, T] bool, True up to and including the end token.
    """
    batch, _, objectives = serves.shape
    lengths, useful, shares, tokens = jax.random.split(key, 4)
    u = jax.random.uniform(useful, (batch, 1))
    s = jax.random.dirichlet(shares, jnp.ones(objectives), (batch,))
    serving = serves / jnp.sum(serves, axis=1, keepdims=True)  # each objective's tokens alike
    p = u * jnp.einsum("bvk,bk->bv", serving, s) + (1 - u) * content / jnp.sum(content)
    drawn = jax.random.categorical(tokens, jnp.log(p)[:, None], shape=(batch, length))
    last = jax.random.randint(lengths, (batch, 1), 0, length)  # where the end token stands
    positions = jnp.arange(length)
    return jnp.where(positions < last, drawn, jnp.where(positions == last, end, pad)).astype(
        jnp.int32
    ), positions <= last


def pretrain(
    config: TransformerConfig,
    prompts: tuple[np.ndarray, np.ndarray],
    serves: np.ndarray,
    content: np.ndarray,
    *,
    steps: int,
    length: int,
    end: int,
    pad: int,
    learning_rate: float = 1e-2,
) -> PyTree:
    """The transformer's parameters after `steps` steps of Adam on BATCH random answers each.

    Args:
      config: of the decoder, without adapters.
      prompts: tokens and mask [R, S].
      serves: [R, V, K], by prompt.
      content: [V].
      steps: of training.
      length, end, pad: as in `draw_answers`.
      learning_rate: at the start; it falls to 0 by a cosine.
    """
    policy = Policy(config, Conditioning(kind="none", objectives=serves.shape[-1]))
    tokens, mask, serves, content = map(jnp.asarray, (*prompts, serves, content))
    tx = optax.adam(optax.cosine_decay_schedule(learning_rate, steps))
    nothing = jnp.zeros((BATCH, 1, serves.shape[-1]))  # this policy reads no preference

    def loss(params, rows, answer, answer_mask):

        def apply(method, *args):
            return policy.apply({"params": params}, *args, method=method)

        hidden = apply("respond", apply("prefill", tokens[rows], mask[rows]), nothing, answer[:, None])
        logp = token_stats(lambda h: apply("unembed", h), hidden, answer[:, None]).logp
        return token_loss(logp, answer_mask[:, None])

    @jax.jit
    def run(key):
        start, key = jax.random.split(key)
        params = init_params(policy, start)

        def step(index, carry):
            params, moments = carry
            pick, draw = jax.random.split(jax.random.fold_in(key, index))
            rows = jax.random.randint(pick, (BATCH,), 0, len(tokens))
            gradient = jax.grad(loss)(params, rows, *draw_answers(draw, serves[rows], content, length, end, pad))
            change, moments = tx.update(gradient, moments)
            return optax.apply_updates(params, change), moments

        return jax.lax.fori_loop(0, steps, step, (params, tx.init(params)))[0]

    return run(jax.random.key(0))["transformer"]
