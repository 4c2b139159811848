"""Where other programs compute an exported model otherwise than transformers, by what the model has.

Seen on small random models of each family in float32, logit by logit; without a message from the program unless it refuses.
Programs that are not named, llama.cpp, openvino-genai and vLLM, were compared on Llamas alone (matrix.py).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from meal_jax.export.runtimes import pinned
from meal_jax.models.transformer import TransformerConfig

CTRANSLATE2, MLX = pinned("ctranslate2"), pinned("mlx-lm")
UNKNOWN = ("olmo2", "smollm3", "granite")  # families without a conversion
WIDE = ("llama", "mistral")  # families whose head size is not read


class Difference(NamedTuple):
    """Something that a program does otherwise.

    Attributes:
      program: with its version.
      has: what a model has that meets it.
      does: what the program does then.
      meets: whether a model has it.
    """

    program: str
    has: str
    does: str
    meets: Callable[[TransformerConfig], bool]


def _own_scale(c: TransformerConfig) -> bool:
    return c.query_scale is not None and abs(c.query_scale - c.head_dim**-0.5) > 1e-6


DIFFERENCES = (
    Difference(
        CTRANSLATE2,
        "Llama 3.1's rotary scaling",
        "computes as without it: further off with each position",
        lambda c: c.rope_scaling is not None and c.rope_scaling.kind == "llama3",
    ),
    Difference(
        CTRANSLATE2,
        "soft caps (Gemma 2)",
        "leaves them out",
        lambda c: c.attention_softcap is not None or c.logit_softcap is not None,
    ),
    Difference(
        CTRANSLATE2,
        "a `query_pre_attn_scalar` that is not the head's size (27B of Gemma 2 and 3)",
        "takes the head's size",
        lambda c: c.family.startswith("gemma") and _own_scale(c),
    ),
    Difference(
        CTRANSLATE2,
        "scaled rotation in Gemma 3's global layers (4B and larger)",
        "leaves the scaling out",
        lambda c: c.local_rope_base is not None and c.rope_scaling is not None,
    ),
    Difference(
        CTRANSLATE2,
        "sliding windows of Gemma 2, Qwen 2 or Qwen 3",
        "attends beyond the window",
        lambda c: c.window > 0 and c.family in ("gemma2", "qwen2", "qwen3"),
    ),
    Difference(
        CTRANSLATE2,
        "the family OLMo 2, SmolLM 3 or Granite",
        "refused: no conversion",
        lambda c: c.family in UNKNOWN,
    ),
    Difference(
        CTRANSLATE2,
        "a Llama's or Mistral's heads of another size than width / heads",
        "refused: an error of shapes",
        lambda c: c.family in WIDE and c.head_dim * c.heads != c.width,
    ),
    Difference(
        MLX,
        "sliding windows of Mistral, Phi 3, Gemma 2, Qwen 2 or Qwen 3",
        "attends beyond the window",
        lambda c: c.window > 0 and c.family in ("mistral", "gemma2", "qwen2", "qwen3"),
    ),
)


def of(config: TransformerConfig) -> list[Difference]:
    """Those that a model meets."""
    return [difference for difference in DIFFERENCES if difference.meets(config)]


def table() -> str:
    """All of them, as a section of docs/exports.md."""
    rows = [f"| {d.program} | {d.has} | {d.does} |" for d in DIFFERENCES]
    return "\n".join(
        [
            "## Models of other families",
            "",
            "Without `--base` the table above is of Llamas. Logits of small random models of all families, in float32,",
            "were compared with transformers' in ctranslate2 and mlx-lm alone. Where a program reads a model they agree",
            "but for these, of which it says nothing unless it refuses. Cards name those that their model meets. Soft",
            "caps, query scale and scalings, Gemma 2's windows and mlx-lm's but Qwen 3's have a script each in",
            "`findings/`; the rest was seen by one that is not kept. ctranslate2's `forward_batch` is an error beyond a",
            "window of Mistral or Gemma 3.",
            "",
            "| program | a model with | what it does |",
            "|---|---|---|",
            *rows,
        ]
    )
