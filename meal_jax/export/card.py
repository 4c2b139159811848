"""README.md of an exported model: what it is, how it is given a preference, and by which servers."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from meal_jax import config as defaults
from meal_jax.export import served
from meal_jax.export.chat_template import text_of
from meal_jax.export.prompt_gap import Gap
from meal_jax.export.rounding import Rounding
from meal_jax.hf import pretrained
from meal_jax.saved_run import Run

LOAD = """\
from transformers import AutoModelForCausalLM, AutoTokenizer

directory = "."
tokenizer = AutoTokenizer.from_pretrained(directory)
model = AutoModelForCausalLM.from_pretrained(directory)
"""
LOAD_ADAPTER = """\
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

directory, base = ".", {base}
tokenizer = AutoTokenizer.from_pretrained(directory)
model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), directory)
"""
MESSAGES = """\
messages = [{{"role": "user", "content": {content}}}]
"""
PROPOSE = """\
import sys

sys.path.insert(0, directory)
import weight_net

prompt = tokenizer.apply_chat_template(messages, return_tensors="pt", return_dict=True)
hidden = model(**prompt, output_hidden_states=True).hidden_states[-1][0]
pooled = hidden.float().mean(dim=0).detach().numpy()
preference = weight_net.propose(weight_net.load(), pooled, preference).tolist()
"""
ANSWER = """\
prompt = tokenizer.apply_chat_template(
    messages, add_generation_prompt=True, {variable}return_tensors="pt", return_dict=True
)
answer = model.generate(**prompt, max_new_tokens={max_new}, do_sample=False)[0, prompt["input_ids"].shape[1] :]
print(tokenizer.decode(answer, skip_special_tokens=True))
"""
ANSWER_PREFIX = """\
import sys

import torch

sys.path.insert(0, directory)
import prefix

ids = lambda opened: tokenizer.apply_chat_template(
    messages, add_generation_prompt=opened, return_tensors="pt", return_dict=True
)["input_ids"]
said, opened = ids(False), ids(True)
embed = model.get_input_embeddings()
slots = torch.tensor(prefix.slots(prefix.load(), preference))[None].to(model.dtype)
inputs = torch.cat([embed(said), slots, embed(opened[:, said.shape[1] :])], dim=1)
mask = torch.ones(inputs.shape[:2], dtype=torch.long)
answer = model.generate(inputs_embeds=inputs, attention_mask=mask, max_new_tokens={max_new}, do_sample=False)[0]
print(tokenizer.decode(answer, skip_special_tokens=True))
"""


def write(
    run: Run,
    kind: str,
    preference: list[float] | None,
    slots: Sequence[int],
    exact: bool,
    networks: Sequence[str],
    gap: Gap | None = None,
    dtype: str = "float32",
    lost: Rounding | None = None,
) -> str:
    """The card.

    Args:
      run: what was exported.
      kind: "merged" or "adapter".
      preference: the one that is baked or assumed, or None.
      slots: ids of the baked tokens, or ().
      exact: the chat template's text gives exactly training's tokens.
      networks: of "weight_net" and "prefix", those that were written.
      gap: what the prompt's pass differs by from training's, where adapters read the preference; None where it does not.
      dtype: storage type of merged weights.
      lost: what merging into it lost; None where nothing was merged.
    """
    parts = [
        _head(run, kind, dtype, lost),
        _giving(run, kind, preference, slots, exact, networks, gap),
        served.section(run.task.conditioning, kind, slots, run.task.transformer) if run.task.chat is not None else "",
        _weight_net(run) if "weight_net" in networks else "",
        _tokens(run, slots),
        _rewards(run),
        _training(run),
        "## Licence\n\nAs the base model: look there. What was trained on top adds no terms of its own.",
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def base_name(run: Run) -> tuple[str, bool]:
    """The base model's name, and whether it is a hub id; of a directory its last part, since a path is this machine's."""
    source = run.config.policy.source
    if not source:
        return "none: weights drawn at random", False
    local = Path(source).expanduser()
    if pretrained.is_shipped(source):
        return f"{source}, shipped with meal_jax", False
    return (local.name, False) if local.is_dir() else (source, True)


def _head(run: Run, kind: str, dtype: str, lost: Rounding | None) -> str:
    (base, on_hub), c = base_name(run), run.config
    meta = {
        "library_name": "peft" if kind == "adapter" else "transformers",
        "pipeline_tag": "text-generation",
        "license": "other",
        "license_name": "as-the-base-model",
        "tags": ["multi-objective-alignment", "meal_jax"],
    } | ({"base_model": base} if on_hub else {})
    lora = run.task.transformer.lora
    trained = "all weights"
    if lora is not None:
        where = "kept apart in PEFT's format" if kind == "adapter" else "added to the weights in float32, then stored"
        trained = f"LoRA of rank {lora.rank}, alpha {lora.alpha:g}, on `{lora.targets}`, {where}"
    rows = {
        "Base": base,
        "Benchmark": run.task.name,
        "Method": f"{run.method.label} (`{c.method}`), step {run.step} of {c.steps}",
        "Objectives, in a preference's order": ", ".join(run.task.objectives),
        "Trained": trained,
        "Stored as": "float32" if kind == "adapter" else dtype,
        **({} if lost is None else {"Lost by merging": lost.say()}),
        "Answers": f"of up to {c.sampling.max_new} tokens in training",
    }
    table = "\n".join(["| | |", "|---|---|", *(f"| {name} | {_cell(value)} |" for name, value in rows.items())])
    front = "\n".join(f"{name}: {json.dumps(value, ensure_ascii=False)}" for name, value in meta.items())
    return (
        f"---\n{front}\n---\n\n# {run.task.name}: {', '.join(run.task.objectives)}, by preference\n\n"
        "A language model that weighs several objectives as a preference asks: weights, one for each objective, that are not "
        "negative and sum to 1. Trained and exported by meal_jax; Meal is the method of Meta-Aligner (arXiv 2604.24178).\n\n"
        f"{table}"
    )


def _giving(
    run: Run,
    kind: str,
    preference: list[float] | None,
    slots: Sequence[int],
    exact: bool,
    networks: Sequence[str],
    gap: Gap | None,
) -> str:
    """How a preference is given, code that does it, and which servers can."""
    c, chat = run.task.conditioning, run.task.chat
    reads = c.inserted if not c.scales_adapters or c.inserted == "prefix" else "adapter"
    text = {
        "adapter": (),
        "text": _text(run, preference, exact),
        "prefix": _baked(preference, slots, exact) if slots else _prefix(),
        "none": ["This policy reads no preference: it is served as any other model."],
    }[reads]
    folded = _folded(run, preference, exact, gap) if c.scales_adapters else ()
    parts = ["## Giving a preference", *folded, *text]
    if chat is None:
        parts.append(
            "There is no tokenizer: the benchmark is not of text. A prompt is its token ids, then the preference's, then "
            "`tail`; `preference.json` has all of them."
        )
    else:
        parts.append(
            "With transformers, in this directory:\n\n```python\n" + example(run, kind, slots, networks) + "```"
        )
        parts += _format(run)
    return "\n\n".join(parts)


def _format(run: Run) -> Iterator[str]:
    """What of the prompts' format a request can change: system message, date, where answers end."""
    chat = run.task.chat
    ((_, asked),), _ = run.task.ask((("user", "…"),))
    if asked != "…":
        yield (
            f"In training a message was {json.dumps(asked, ensure_ascii=False)}, … being the prompt in one line. The chat "
            "template does not write these words: a message must hold them, as in the code above."
        )
    if chat.system is not None:
        yield (
            f"The policy was trained under the system message {chat.system!r} (`data.system`), which the chat template puts "
            "in front of a conversation that has none. Under another it is off what it was trained on."
        )
    if run.config.data.template_options:
        yield (
            f"Training set {', '.join(run.config.data.template_options)} (`data.template_options`). The exported "
            "chat template sets this itself, whatever a request gives."
        )
    if "strftime_now" in chat.tokenizer.chat_template:
        yield (
            f"The base's chat template writes today's date. In training it wrote {chat.date} (`data.date`), and the exported "
            "template writes that date too."
        )
    if run.task.stop:
        marks = ", ".join(json.dumps(mark) for mark in run.task.stop)
        yield (
            f"Before its rewards an answer was cut at {marks} (`data.stop`). Give a server these as stop strings: the policy "
            "may write on after them."
        )


def _text(run: Run, preference: list[float] | None, exact: bool) -> Iterator[str]:
    c, chat = run.task.conditioning, run.task.chat
    if chat is None:
        return
    levels = len(c.table[0])
    rows = [rows[round((levels - 1) / c.objectives)] for rows in c.table]
    spelled = "".join(text_of(chat, row) for row in rows)
    assumed = _numbers(preference or [1 / c.objectives] * c.objectives)
    yield (
        "By text alone. Between the conversation and the generation prompt stands, in numerals of "
        f"{levels} levels from 0.0 to 1.0, text like\n\n    {spelled!r}\n\n"
        "The chat template in tokenizer_config.json writes it: pass the variable `preference`, a list of weights; below it "
        f"says how in which program. Where a request names none, {assumed} is taken."
    )
    if not exact:
        yield (
            "**Read as text, some numerals do not become the tokens they were in training**: this tokenizer joins them "
            "with what stands before. The answers are then somewhat off. Exact are the token ids in `preference.json`: a "
            "prompt is the conversation's ids, then those of table[k][round(w_k × (levels − 1))] for each objective k, then "
            "`tail`."
        )


def _baked(preference: list[float] | None, slots: Sequence[int], exact: bool) -> Iterator[str]:
    yield (
        f"It is baked in: this model answers under {_numbers(preference)} and no other. The embeddings that tell the policy "
        f"so are the rows {slots[0]} to {slots[-1]} of the embedding, tokens that the chat template writes between the "
        "conversation and the generation prompt. So a program must apply this directory's chat template. The preference is "
        "what the policy was given, as it is; a weight-net, which would shift it from prompt to prompt, has no part in it."
    )
    if not exact:
        yield (
            "**Read as text, the template's tokens are not quite those of training** around these tokens. Exact are the ids "
            "in `preference.json`: the conversation's, then `slots`, then `tail`."
        )


def _folded(run: Run, preference: list[float], exact: bool, gap: Gap | None) -> Iterator[str]:
    yield (
        f"It is in the weights: this model answers under {_numbers(preference)} and no other. In training each objective has "
        "a block of every adapter's rank, scaled by its weight; here the scales are multiplied in, and the adapters are plain "
        "ones. The preference is what the policy was given, as it is; a weight-net, "
        "which would shift it from prompt to prompt, has no part in it."
    )
    if gap is not None:
        yield (
            "**The prompt is read slightly differently than in training.** There it is read at the uniform preference, here "
            f"at the one that is answered under. On {gap.tokens} tokens of the trained policy's own answers to {gap.prompts} "
            f"test prompts this changes a token's log-probability by {gap.shift:.2g} on average and by {gap.largest:.2g} at "
            f"most; the mean divergence KL(trained ‖ this model) is {gap.kl:.2g} nats per token. "
            "`config.conditioning.prompt=preference` trains a policy that is exported exactly, at the cost of one pass over "
            "the prompt per candidate."
        )
    if run.task.conditioning.inserted == "text":
        yield "The chat template writes the preference's numerals too, as in training; a request does not name one."
        if not exact:
            yield (
                "**Read as text, they do not become the tokens they were in training**: this tokenizer joins them with what "
                "stands before. Exact are the token ids in `preference.json`."
            )


def _prefix() -> Iterator[str]:
    yield (
        "The policy reads a preference as a few embeddings between the conversation and the generation prompt. `prefix.py` "
        "(NumPy) computes them from `prefix.safetensors`. So a program must take embeddings. For those that take text or "
        "token ids only, export again with `--preference=…`, which bakes one preference in. **By text alone "
        "this model is given no preference at all**, a state that it was not trained in."
    )


def example(run: Run, kind: str, slots: Sequence[int], networks: Sequence[str]) -> str:
    """Code that answers one message under one preference, greedily."""
    k, reads = len(run.task.objectives), run.task.conditioning.kind
    load = (
        LOAD_ADAPTER.format(base=json.dumps(pretrained.location(run.config.policy.source)))
        if kind == "adapter"
        else LOAD
    )
    ((_, question),), _ = run.task.ask((("user", "How do I keep bread fresh?"),))
    parts = [load, MESSAGES.format(content=json.dumps(question, ensure_ascii=False))]
    if reads in ("text", "prefix") and not slots:
        example = [0.3, 0.7] if k == 2 else [round(1 / k, 4)] * k
        parts[-1] += f"preference = {example}  # {', '.join(run.task.objectives)}\n"
    if "weight_net" in networks:
        parts.append(PROPOSE)
    if "prefix" in networks:
        parts.append(ANSWER_PREFIX.format(max_new=run.config.sampling.max_new))
    else:
        variable = "preference=preference, " if reads == "text" else ""
        parts.append(ANSWER.format(variable=variable, max_new=run.config.sampling.max_new))
    return "\n".join(parts)


def _weight_net(run: Run) -> str:
    rho = run.config.meal.rho
    return (
        "## The weight-net\n\nIn training the policy was not given the user's preference itself but what a small network "
        "proposed for it and the prompt, and it is evaluated so. `weight_net.py` (NumPy) applies that network: "
        "`propose(load(), pooled, preference)`. `pooled` is the mean of the last hidden states, after the final norm, over "
        "the tokens of the conversation without preference and generation prompt: in transformers `hidden_states[-1]` "
        "under `output_hidden_states=True`. A server that does not give out hidden states cannot use it. The preference "
        "may then be given as it is, at some loss: the two differ by what the network learned"
        + (f", held close by a penalty of {rho:g} times their divergence." if rho else ".")
    )


def _tokens(run: Run, slots: Sequence[int]) -> str:
    lines = [
        f"## Tokens that must not be drawn\n\nAn answer ends with token {run.task.end}. Training never drew other special "
        "tokens or ids that the tokenizer does not know; `suppress_tokens` in generation_config.json lists them."
    ]
    if slots:
        tied = "they share their rows with the embedding, so they do have probability"
        rows = tied if run.task.transformer.tied else "their rows are zeros"
        lines.append(f"The baked tokens are among them, and need it most: in the output {rows}.")
    lines.append(
        "Of the programs above transformers alone reads that list. Give the others those ids as `logit_bias` (llama.cpp: "
        "`[[ID, false], …]`), or accept that one may be drawn now and then."
    )
    return " ".join(lines)


def _rewards(run: Run) -> str:
    stats = run.state.rewards
    rows = [
        f"| {name} | {float(m):.4g} | {float(np.sqrt(v)):.4g} |"
        for name, m, v in zip(run.task.objectives, np.asarray(stats.mean), np.asarray(stats.var), strict=True)
    ]
    return "\n".join(
        [
            "## Rewards\n\nWeights weigh rewards that are shifted and scaled to mean 0 and standard deviation 1, by running",
            f"statistics of the raw rewards of training ({float(stats.count):.0f} responses by now):",
            "",
            "| objective | mean | standard deviation |",
            "|---|---|---|",
            *rows,
        ]
    )


def _training(run: Run) -> str:
    changed = "\n".join(
        f"{name} = {value!r}" for name, value in sorted(_differences(run.config, defaults.default()).items())
    )
    return (
        "## Training\n\n`python -m meal_jax.main --config=… --workdir=…`, with a configuration file that sets, over the "
        f"defaults of `meal_jax/config.py`:\n\n```\n{changed}\n```\n\nAll of it is in `meal_config.json`."
    )


def _differences(config: Any, default: Any, prefix: str = "") -> dict[str, Any]:
    out = {}
    for name, value in config.items():
        if hasattr(value, "items"):
            out |= _differences(value, default.get(name, {}), f"{prefix}{name}.")
        elif default.get(name) != value:
            out[prefix + name] = value
    return out


def _numbers(values: Sequence[float]) -> str:
    return "[" + ", ".join(f"{v:.4g}" for v in values) + "]"


def _cell(text: str) -> str:
    return text.replace("|", "\\|")
