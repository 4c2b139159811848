"""Compares a checkpoint here with the same checkpoint in torch: largest difference of logits, and greedy continuations.

    python -m meal_jax.parity --model=DIR [--prompts "What is rain?" "List three birds."] [--tokens=32]

Both compute in float32. It needs torch, which this package does not install: pip install torch. It works for every model that
transformers and this package read from the same directory, hub id or GGUF file. A GGUF file is read by each one's own reader.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from meal_jax.hf import pretrained
from meal_jax.models.policy import Conditioning, Policy
from meal_jax.models.transformer import TransformerConfig
from meal_jax.rollout.decode import decode, sample_keys
from meal_jax.rollout.sampling import Sampling

NO_TOKEN = -1  # as the end token: no id equals it, so nothing ends a continuation


class Comparison(NamedTuple):
    """The result of a comparison.

    Attributes:
      difference: largest absolute difference of a logit, over all prompts and all positions of torch's continuations.
      scale: largest absolute logit of torch.
      expected, greedy: per prompt the ids of the greedy continuation, by torch and by this package.
    """

    difference: float
    scale: float
    expected: list[list[int]]
    greedy: list[list[int]]


def compare(source: str, rows: Sequence[Sequence[int]], tokens: int) -> Comparison:
    """Runs the models one after the other, so that only one is in memory.

    Args:
      source: directory, hub id or GGUF file.
      rows: token ids of each prompt, none empty.
      tokens: length of the continuations; an end token does not stop them.

    Raises:
      ModuleNotFoundError: torch is not installed.
      FileNotFoundError, ValueError: as `pretrained.load_config` and `pretrained.load_params`.
    """
    _import_torch()
    config = pretrained.load_config(source)  # raises for unsupported models before torch starts
    expected, logits = _torch(source, rows, tokens)
    params = {"transformer": pretrained.load_params(source, config)}
    length = max(map(len, rows))
    ids = np.array([[0] * (length - len(row)) + list(row) for row in rows], np.int32)
    mask = np.array([[False] * (length - len(row)) + [True] * len(row) for row in rows])
    logits_here, greedy = _logits_and_greedy(config, tokens, params, ids, mask, np.array(expected, np.int32))
    difference = float(np.abs(np.asarray(logits_here) - logits).max())
    return Comparison(difference, float(np.abs(logits).max()), expected, np.asarray(greedy).tolist())


def _import_torch():
    try:
        import torch
    except ModuleNotFoundError:
        raise ModuleNotFoundError(
            "torch, which this command compares with, is not installed: pip install torch (nothing else needs it)."
        ) from None
    return torch


def _torch(source: str, rows, tokens: int) -> tuple[list[list[int]], np.ndarray]:
    """Greedy continuations and their logits [B, T, V] by torch; each prompt alone, without padding.

    Its cache keeps all keys, and the model's own mask says which are read. By itself transformers drops keys beyond
    config.json's sliding_window for models that do not slide, such as Llama; their answers then are not their own.
    """
    torch = _import_torch()
    from transformers import AutoModelForCausalLM, DynamicCache

    place, more = str(pretrained.resolve(source)), {}
    if source.endswith(".gguf"):
        place, more = str(Path(source).expanduser().parent), {"gguf_file": Path(source).name}
    settings = {"dtype": torch.float32, "attn_implementation": "eager"}
    model = AutoModelForCausalLM.from_pretrained(place, **settings, **more).eval()
    continuations, logits = [], []
    with torch.no_grad():
        for row in rows:
            ids, step, past, chosen = [], torch.tensor([list(row)]), DynamicCache(), []
            for _ in range(tokens):
                out = model(step, past_key_values=past, use_cache=True)
                chosen.append(out.logits[0, -1].numpy())
                ids.append(int(chosen[-1].argmax()))
                step, past = torch.tensor([ids[-1:]]), out.past_key_values
            continuations.append(ids)
            logits.append(np.stack(chosen))
    return continuations, np.stack(logits)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _logits_and_greedy(config: TransformerConfig, tokens: int, params, ids, mask, expected):
    """Logits [B, T, V] of left-padded prompts and torch's continuations, and the greedy continuations [B, T] here."""
    policy = Policy(config, Conditioning(kind="none"))

    def apply(*args, method):
        return policy.apply({"params": params}, *args, method=method)

    prompt = apply(ids, mask, method="prefill")
    w = jnp.zeros((ids.shape[0], 1, 2))
    logits = apply(apply(prompt, w, expected[:, None], method="respond"), method="unembed")[:, 0]
    keys = sample_keys(jax.random.key(0), jnp.arange(ids.shape[0]), 1)
    greedy = Sampling(temperature=0)
    out = decode(policy, params, prompt, w, keys, max_new=tokens, sampling=greedy, end=NO_TOKEN, pad=0)
    return logits, out.tokens[:, 0]


def report(source: str, prompts: Sequence[str], tokens: int, tolerance: float) -> None:
    """Prints the result of `compare` for texts.

    Raises:
      ModuleNotFoundError, FileNotFoundError, ValueError: as `compare`; a prompt without tokens; or the models differ.
    """
    _import_torch()
    tokenizer = pretrained.load_tokenizer(source)
    rows = [tokenizer(text)["input_ids"] for text in prompts]
    if not all(rows):
        raise ValueError("A prompt has no tokens; give each some text.")
    result = compare(source, rows, tokens)
    same = [a == b for a, b in zip(result.expected, result.greedy, strict=True)]
    for text, agrees, a, b in zip(prompts, same, result.expected, result.greedy, strict=True):
        print(f"{'same' if agrees else 'DIFFERENT'}  {text!r}: {tokenizer.decode(a)!r}")
        if not agrees:
            position = next(i for i, (x, y) in enumerate(zip(a, b, strict=True)) if x != y)
            print(f"    from token {position} on, here: {tokenizer.decode(b[position:])!r}")
    print(f"largest difference of a logit: {result.difference:.2e} (logits reach {result.scale:.1f})")
    print(f"greedy continuations that agree: {sum(same)} of {len(same)}, {tokens} tokens each")
    if result.difference > tolerance or not all(same):
        raise ValueError(f"the models differ (tolerance {tolerance:.0e})")
