"""README.md of a trained reward model: what it was fitted on, how good it is, how to use it."""

from __future__ import annotations

import json
import math
from pathlib import Path

import jax

from meal_jax.reward_training import pairs

LOAD = """\
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained(".")
model = AutoModelForSequenceClassification.from_pretrained(".").eval()
inputs = tokenizer({texts}, truncation=True, return_tensors="pt")
with torch.no_grad():
    score = model(**inputs).logits[0, {label}].item()
"""
TEXTS = {  # per layout: the tokenizer's arguments; response_bos_post joins token ids, which takes more than one call
    "plain": "prompt, response, add_special_tokens=False",
    "response_only": "response",
    "response_pair": "response, prompt",
    "prompt_pair": "prompt, response",
}
TYPED = ("bert", "deberta-v2")  # families with token types
PROMPT = {
    "transcript": 'a conversation as hh-rlhf writes it, "\\n\\nHuman: … \\n\\nAssistant:"',
    "last": "the text of the last human turn alone",
}


def machine() -> str:
    """The devices that a model was trained on, for cards."""
    return f"{jax.device_count()} × {jax.devices()[0].device_kind}, jax {jax.__version__}"


def summarise(report) -> str:
    """The figures in one sentence."""
    (low, high), (low0, high0) = report.interval, report.interval_before
    return (
        f"{report.after:.3f} of {report.tested} held-out pairs in order (95 % {low:.3f} … {high:.3f}; before "
        f"{report.before:.3f}, {low0:.3f} … {high0:.3f}); temperature {_number(report.temperature)}, calibration error "
        f"{report.error:.3f} ({report.error_raw:.3f} without it); scores {report.mean:.3g} ± {report.std:.3g}."
    )


def render(config, model, report, seconds: float, figure: str) -> str:
    """The card of a `fit_model.Report` in Markdown."""
    base, on_hub = base_name(config)
    front = {"library_name": "transformers", "pipeline_tag": "text-classification", "license": "other"}
    front |= {"license_name": "as-the-base-model", "tags": ["reward-model", "meal_jax"]}
    front |= {"base_model": base} if on_hub else {}
    d, bins = config.data, report.bins
    prompt = "a post on one line" if d.kind == "summarize_from_feedback" else PROMPT[d.prompt]
    trained = {"head": "the head alone", "all": "all weights"}.get(
        config.train,
        f"the head, and LoRA of rank {config.lora.rank}, alpha {config.lora.alpha:g}, on `{config.lora.targets}`, added to "
        "the weights",
    )
    left_out = "; ".join(f"{count} × {reason}" for reason, count in report.left_out.items()) or "none"
    (low0, high0), (low, high) = report.interval_before, report.interval
    lines = [
        "---",
        *(f"{name}: {json.dumps(value, ensure_ascii=False)}" for name, value in front.items()),
        "---",
        "",
        f"# A reward model on {base}",
        "",
        f"A {model.family} that scores a response to a prompt, fitted to people's choices between two (Bradley–Terry), made",
        f"by `{config.command}` in {seconds / 60:.1f} minutes ({machine()}).",
        "",
        f"| held-out pairs | {report.tested}, of {report.prompts} prompts |",
        "|---|---|",
        f"| in the right order | **{report.after:.3f}** (95 % {low:.3f} … {high:.3f}) |",
        f"| before training | {report.before:.3f} (95 % {low0:.3f} … {high0:.3f}) |",
        f"| negative log-likelihood | {report.nll:.3f} (a coin's: 0.693) |",
        f"| expected calibration error | {report.error:.3f}, without the temperature {report.error_raw:.3f} |",
        f"| temperature | {_number(report.temperature)}: log-odds = difference of scores / temperature |",
        f"| scores | mean {report.mean:.4g}, standard deviation {report.std:.4g} |",
        "",
        f"- Data: {d.kind}, `{Path(d.path).name}`{f', split {d.split}' if d.split else ''}; {report.fitted} pairs fitted. "
        f"Left out: {left_out}.",
        f"- Held out: {report.held_out}; no prompt is in both parts. Intervals are Wilson's and take pairs as "
        "independent: with several pairs per prompt they are too narrow.",
        "- The table's likelihood and calibration error use temperatures fitted without the prompt that they are applied "
        "to (five folds); the temperature itself is fitted on all held-out pairs.",
        f"- Trained: {trained}; {report.steps} steps of {config.batch_size} pairs, {config.epochs} epoch(s), learning rate "
        f"{config.lr:g}, loss by epoch {', '.join(f'{loss:.3f}' for loss in report.loss)}.",
        "",
        f"![reliability]({figure})",
        "",
        "| confidence | pairs | mean confidence | in the right order |",
        "|---|---|---|---|",
        *(f"| {b.low:.2f} … {b.high:.2f} | {b.pairs} | {b.confidence:.3f} | {b.right:.3f} |" for b in bins),
        "",
        "## Use",
        "",
        f"Prompt: {prompt}. Response: its text, stripped. Layout `{config.layout}`, reward: logit {config.label}, raw. In "
        "meal_jax: `model@DIRECTORY` in config.reward.sources. In torch:",
        "",
        "```python",
        _code(config.layout, config.label, model.family),
        "```",
        "",
        "## Licence",
        "",
        "As the base model and the data: look there.",
        "",
    ]  # fmt: skip
    return "\n".join(lines)


def held_out(config, rows) -> str:
    """What decided which of the pairs, `pairs.EncodedPair`s, are held out."""
    d = config.data
    hashed = "post's id" if d.kind == "summarize_from_feedback" else "first human turn"
    return pairs.decided((row.pair for row in rows), f"{d.held_out:g} of the prompts, by a hash of the {hashed}")


def _code(layout: str, label: int, family: str) -> str:
    """Python that scores a prompt and a response in the model's directory."""
    if layout not in TEXTS:
        return '# A row is the ids of response + " ", the begin token, and the ids of " " + post.'
    texts = TEXTS[layout] + (", return_token_type_ids=True" if family in TYPED else "")
    return LOAD.format(texts=texts, label=label).rstrip()


def base_name(config) -> tuple[str, bool]:
    """The base model's name, and whether it is a hub id. A directory is named by its last part, not by its whole path."""
    local = Path(config.source).expanduser()
    name = config.base_name or (local.name if local.exists() else str(config.source))
    return name, not config.base_name and not local.exists()


def _number(value: float) -> str:
    return f"{value:.3g}" if math.isfinite(value) else "none (scores point the wrong way)"
