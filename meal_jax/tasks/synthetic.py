"""Work without meaning, to be measured: prompts of random tokens, all of one length, and a linear reward of random weights.

The policy is real (`config.policy.source`: a directory or hub id) or has real shapes and random weights ("random:NAME", see
`models.shapes`). A response never ends before T tokens, so that every step does the same work whatever the policy says.
The reward reads the frozen base's hidden states, as trained reward heads do, and costs what these cost.

Letters: B prompts, N candidates, K objectives, S prompt tokens, V vocabulary, D width.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np

from meal_jax.data.prompts import Prompts
from meal_jax.data.templates import evaluation_set
from meal_jax.hf import pretrained, shapes
from meal_jax.models.policy import Conditioning
from meal_jax.models.transformer import TransformerConfig
from meal_jax.rewards import linear_heads
from meal_jax.tasks.language import need_weights
from meal_jax.tasks.task import Task

PAD = END = 2  # the end token is forbidden, and no row is padded
FIRST_ID = 3  # of the tokens that prompts are made of
BATCHES = 4  # of training prompts, in turn


def make_prompts(rows: int, length: int, vocabulary: int, seed: int, first_id: int) -> Prompts:
    """`rows` prompts of exactly `length` tokens, drawn by `seed`."""
    rng = np.random.default_rng(seed)
    tokens = rng.integers(FIRST_ID, vocabulary, (rows, length)).astype(np.int32)
    text = tuple(" ".join(map(str, row)) for row in tokens)
    return Prompts(tokens, np.ones_like(tokens, bool), np.arange(first_id, first_id + rows, dtype=np.int32), text)


def load_policy(config) -> tuple[TransformerConfig, Callable[[Any], Any] | None]:
    """The decoder, and what reads its weights (see `Task.weights`), None where they are to be drawn.

    Raises:
      FileNotFoundError: no weights, or no shapes of that name; says what to do.
    """
    p = config.policy
    overrides = {"dtype": p.dtype, "param_dtype": p.param_dtype, "remat": p.remat}
    if str(p.source).startswith(shapes.RANDOM):
        return shapes.load_config(p.source.removeprefix(shapes.RANDOM), **overrides), None
    if not p.source:
        sizes = {"width": p.width, "layers": p.layers, "heads": p.heads, "kv_heads": p.kv_heads, "hidden": p.hidden}
        return TransformerConfig(vocab_size=64, head_dim=p.width // p.heads, **sizes, **overrides), None
    need_weights(p.source)
    transformer = pretrained.load_config(p.source, **overrides)
    return transformer, lambda placed: pretrained.load_params(p.source, transformer, placed)


def build(config) -> Task:
    """The task for `config` (prompt length, batch size, objectives, policy)."""
    objectives = tuple(config.objectives)
    length = config.data.prompt_length
    if length < 1:
        raise ValueError(f"config.data.prompt_length={length}: synthetic prompts need a length.")
    transformer, weights = load_policy(config)
    train = make_prompts(BATCHES * config.batch_size, length, transformer.vocab_size, seed=1, first_id=0)
    test = make_prompts(config.eval.prompts, length, transformer.vocab_size, seed=2, first_id=1_000_000)
    forbidden = np.zeros(transformer.vocab_size, bool)
    forbidden[END] = True
    heads = np.random.default_rng(3).normal(size=(len(objectives), transformer.width)).astype(np.float32)
    c = config.conditioning
    return Task(
        objectives=objectives,
        transformer=transformer,
        conditioning=Conditioning(
            kind=c.kind,
            objectives=len(objectives),
            slots=c.slots,
            hidden=c.hidden,
            table=tuple(tuple((FIRST_ID + i,) for i in range(11)) for _ in objectives),
            prompt=c.prompt,
        ),
        weights=weights,
        train=train,
        test=test,
        pad=PAD,
        end=END,
        forbidden=forbidden,
        reward=functools.partial(linear_heads.reward, kind="mean"),
        reward_params={"w": jnp.asarray(heads), "b": jnp.zeros(len(objectives))},
        reward_reads_base=True,
        reference=np.full(len(objectives), -3.0),
        truth=None,
        show=lambda tokens: " ".join(str(int(t)) for t in tokens),
        name="synthetic",
        evaluation_set=evaluation_set("synthetic", test.id, test.text),
    )
