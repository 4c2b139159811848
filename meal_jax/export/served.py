"""The card's section on other programs: which were run on exports like this one, and how each is given a preference.

What is said to have been run is run by tests/export (engines_test.py names the wheels), on small random Llamas.
"""

from __future__ import annotations

from collections.abc import Sequence

from meal_jax.models.policy import Conditioning

TRANSFORMERS, PEFT = "transformers 5.24.0", "PEFT 0.21.2"
LLAMA_CPP, OPENVINO = "llama.cpp b11549", "openvino-genai 2026.4.1"
CTRANSLATE2, MLX = "ctranslate2 4.8.5", "mlx-lm 0.32.2"
SAME = "same greedy tokens as the trained policy"
# Programs that run merged weights: name, what was run, how a chat template's variable is given.
MERGED = (
    (TRANSFORMERS, f"chat template, weights: {SAME}", "`apply_chat_template(…, preference=[…])`"),
    (
        LLAMA_CPP,
        f"chat template, weights as GGUF: {SAME}",
        '`"chat_template_kwargs": {"preference": […]}` in a request to its server',
    ),
    (OPENVINO, "chat template: same text", '`apply_chat_template(…, extra_context={"preference": […]})`'),
    (MLX, f"weights, prompt as token ids: {SAME}", "`tokenizer.apply_chat_template(…, preference=[…])`"),
    (
        CTRANSLATE2,
        f"weights, prompt as token ids: {SAME}, up to one that must not be drawn",
        "in the prompt's token ids, which it is given",
    ),
)


def section(conditioning: Conditioning, kind: str, slots: Sequence[int]) -> str:
    """The section.

    Args:
      conditioning: of the policy.
      kind: "merged" or "adapter".
      slots: ids of the baked tokens, or ().
    """
    names = conditioning.inserted == "text" and not conditioning.scales_adapters  # a request names a preference
    if conditioning.inserted == "prefix" and not slots:
        return _embeddings(kind)
    if kind == "adapter":
        return _adapter(conditioning, names)
    given = "the chat template writes it" if slots or conditioning.inserted == "text" else "it is in the weights"
    given = "none is read" if conditioning.kind == "none" else given
    rows = [f"| {name} | {run} | {how if names else given} |" for name, run, how in MERGED]
    return "\n".join(
        [
            "## Other programs\n\nTried on exports of this kind from small random Llamas, at one preference:",
            "",
            "| program | run | how the preference gets in |",
            "|---|---|---|",
            *rows,
            "",
            "Other programs were not tried. One that does not apply this directory's chat template is to be given its text or "
            "token ids."
            + (' vLLM documents `"chat_template_kwargs"` in a request as llama.cpp does.' if names else ""),
        ]
    )


def _embeddings(kind: str) -> str:
    run = f"{TRANSFORMERS} and {PEFT}" if kind == "adapter" else TRANSFORMERS
    return (
        f"## Other programs\n\nTried with {run} alone, through `inputs_embeds`: {SAME}. vLLM documents prompts as embeddings "
        "(`--enable-prompt-embeds`, the completions API), not tried."
    )


def _adapter(conditioning: Conditioning, names: bool) -> str:
    lost = (
        "so **no preference is written**, and it answers otherwise without an error"
        if conditioning.inserted == "text"
        else "so the system message of training is not written, if the policy has one"
    )
    how = f" The preference: {MERGED[0][2]}." if names else ""
    return (
        f"## Other programs\n\nTried with {TRANSFORMERS} and {PEFT}: {SAME}.{how} llama.cpp serves the adapter after "
        f"`convert_lora_to_gguf.py --base BASE`, but with the base's chat template, {lost}. Give its server the entry "
        "`chat_template` of this directory's tokenizer_config.json as a file: `--jinja --chat-template-file FILE`."
    )
