"""A checkpoint here against the same checkpoint in torch: largest difference of logits, and greedy continuations.

    python -m meal_jax.models.check --model=DIR [--prompts "What is rain?" "List three birds."] [--tokens=32]

Both compute in float32. Needs torch, which this package does not install by itself: pip install torch. It asks of every
model that transformers' class and ours read from the same directory or hub id; a GGUF file is converted first
(python -m meal_jax.models.gguf).
"""

from __future__ import annotations

import argparse
import functools
import sys
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from meal_jax.models import hf
from meal_jax.models.policy import Conditioning, Policy
from meal_jax.models.transformer import TransformerConfig
from meal_jax.rollout.decode import decode, sample_keys
from meal_jax.rollout.sampling import Sampling

PROMPTS = ("The capital of France is", "Once upon a time", "def add(a, b):", "1 + 1 =", "Dear Sir or Madam,")
TOLERANCE = 1e-3  # of a logit; float32 sums in another order differ by some 1e-4 in models of a billion parameters


class Comparison(NamedTuple):
    """What came of a comparison.

    Attributes:
      difference: largest absolute difference of a logit, over all prompts and all positions of torch's continuations.
      scale: largest absolute logit of torch.
      expected, got: for each prompt the ids of torch's greedy continuation, and of ours.
    """

    difference: float
    scale: float
    expected: list[list[int]]
    got: list[list[int]]


def compare(source: str, rows: Sequence[Sequence[int]], tokens: int) -> Comparison:
    """Runs both models in turn, so that one is in memory at a time.

    Args:
      source: directory or hub id.
      rows: token ids of each prompt, none empty.
      tokens: length of the continuations; an end token does not stop them.

    Raises:
      ModuleNotFoundError: torch is not installed.
      FileNotFoundError, ValueError: as `hf.load_config` and `hf.load_params`.
    """
    _import_torch()
    config = hf.load_config(source)  # what we do not read is named before torch begins
    expected, logits = _torch(source, rows, tokens)
    params = {"transformer": hf.load_params(source, config)}
    length = max(map(len, rows))
    ids = np.array([[0] * (length - len(row)) + list(row) for row in rows], np.int32)
    mask = np.array([[False] * (length - len(row)) + [True] * len(row) for row in rows])
    ours, got = _ours(config, tokens, params, ids, mask, np.array(expected, np.int32))
    difference = float(np.abs(np.asarray(ours) - logits).max())
    return Comparison(difference, float(np.abs(logits).max()), expected, np.asarray(got).tolist())


def _import_torch():
    try:
        import torch
    except ModuleNotFoundError:
        raise ModuleNotFoundError(
            "torch, which this command compares with, is not installed: pip install torch (nothing else needs it)."
        ) from None
    return torch


def _torch(source: str, rows, tokens: int) -> tuple[list[list[int]], np.ndarray]:
    """Greedy continuations, and the logits [B, T, V] that chose them; each prompt alone, without padding."""
    torch = _import_torch()
    from transformers import AutoModelForCausalLM

    directory = str(hf.resolve(source))
    model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32, attn_implementation="eager").eval()
    continuations, logits = [], []
    with torch.no_grad():
        for row in rows:
            ids, step, past, chosen = [], torch.tensor([list(row)]), None, []
            for _ in range(tokens):
                out = model(step, past_key_values=past, use_cache=True)
                chosen.append(out.logits[0, -1].numpy())
                ids.append(int(chosen[-1].argmax()))
                step, past = torch.tensor([ids[-1:]]), out.past_key_values
            continuations.append(ids)
            logits.append(np.stack(chosen))
    return continuations, np.stack(logits)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _ours(config: TransformerConfig, tokens: int, params, ids, mask, expected):
    """Logits [B, T, V] of left-padded prompts and torch's continuations, and our own greedy ones [B, T]."""
    policy = Policy(config, Conditioning(kind="none"))
    apply = lambda *args, method: policy.apply({"params": params}, *args, method=method)  # noqa: E731
    prompt = apply(ids, mask, method="prefill")
    w = jnp.zeros((ids.shape[0], 1, 2))
    logits = apply(apply(prompt, w, expected[:, None], method="respond"), method="unembed")[:, 0]
    keys = sample_keys(jax.random.key(0), jnp.arange(ids.shape[0]), 1)
    greedy = Sampling(temperature=0)
    out = decode(policy, params, prompt, w, keys, max_new=tokens, sampling=greedy, end=-1, pad=0)
    return logits, out.tokens[:, 0]


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m meal_jax.models.check", description=__doc__.splitlines()[0])
    parser.add_argument("--model", required=True, help="Hugging Face directory or hub id")
    parser.add_argument("--prompts", nargs="+", default=list(PROMPTS), help="texts to continue")
    parser.add_argument("--tokens", type=int, default=32, help="length of the continuations")
    parser.add_argument("--tolerance", type=float, default=TOLERANCE, help="largest difference that passes")
    options = parser.parse_args(arguments)
    try:
        _import_torch()
        tokenizer = hf.load_tokenizer(options.model)
        rows = [tokenizer(text)["input_ids"] for text in options.prompts]
        if not all(rows):
            raise ValueError("A prompt has no tokens; give each some text.")
        result = compare(options.model, rows, options.tokens)
    except (ModuleNotFoundError, OSError, ValueError) as error:
        sys.exit(f"error: {error}")
    same = [a == b for a, b in zip(result.expected, result.got, strict=True)]
    for text, agrees, a, b in zip(options.prompts, same, result.expected, result.got, strict=True):
        print(f"{'same' if agrees else 'DIFFERENT'}  {text!r}: {tokenizer.decode(a)!r}")
        if not agrees:
            at = next(i for i, (x, y) in enumerate(zip(a, b, strict=True)) if x != y)
            print(f"    from token {at} on, here: {tokenizer.decode(b[at:])!r}")
    print(f"largest difference of a logit: {result.difference:.2e} (logits reach {result.scale:.1f})")
    print(f"greedy continuations that agree: {sum(same)} of {len(same)}, {options.tokens} tokens each")
    if result.difference > options.tolerance or not all(same):
        sys.exit(f"error: the models differ (tolerance {options.tolerance:.0e})")


if __name__ == "__main__":
    main()
