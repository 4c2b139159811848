"""What the benchmarks on pretrained language models share: the policy, its prompt format, its prompts and its rewards.

A benchmark's module gives `build` a loader of its prompts and the reference point of its own rewards.

Letters: K objectives, S prompt tokens, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from absl import logging

from meal_jax.data import chat as chats
from meal_jax.data import overlap, templates
from meal_jax.data.prompts import Prompts
from meal_jax.hf import pretrained
from meal_jax.models.lora import Lora
from meal_jax.models.policy import Conditioning, inserted
from meal_jax.rewards import formats, linear_heads, sources
from meal_jax.tasks.task import Task

TUNED = "sft.json"  # in the directory of a model that `config.stage=sft` wrote
LEVELS = 11  # weights that numerals can spell: 0.0, 0.1 … 1.0
# Load = (config, chat, tokenizers in play by name) → training prompts, test prompts, name of the evaluation set.
Load = Callable[[Any, chats.Chat, dict[str, Any]], tuple[Prompts, Prompts, str]]


class Counted(NamedTuple):
    """A benchmark's own rewards that need no model: `Setup.reward` and its parameters."""

    reward: Callable[..., Any]
    params: dict[str, Any]


def build(config, name: str, load: Load, reference: float, counted: Callable[..., Counted] | None = None) -> Task:
    """The benchmark `name` for `config`.

    Args:
      config: of the run.
      name: of the benchmark and of its plain template.
      load: reads its prompts.
      reference: of the hypervolume, in every objective, where rewards are the benchmark's own.
      counted: (names of objectives, chat, V) → Counted, where the benchmark's own rewards are not heads.

    Raises:
      FileNotFoundError: weights, data or heads are not there; says how to get them.
      ValueError: they do not fit together, or too few prompts are short enough. That the heads are another model's shows
        when the weights are read (`Task.weights`).
    """
    objectives, p = tuple(config.objectives), config.policy
    need_weights(p.source)
    # The heads' objectives are those that no other reward replaces; fine-tuning needs none.
    own_names = () if config.stage == "sft" else tuple(objectives[k] for k in sources.own_objectives(config))
    heads = linear_heads.load(config.reward.heads).select(own_names) if own_names and not counted else None
    chat = templates.chat_of(config, pretrained.load_tokenizer(p.source))
    if heads:
        linear_heads.check_format(heads, chats.describe(chat))
    train, test, evaluated = load(config, chat, tokenizers_in_play(config, chat))
    lora = Lora(p.lora_rank, p.lora_alpha, p.lora_dropout, p.lora_targets) if p.lora_rank else None
    transformer = pretrained.load_config(p.source, dtype=p.dtype, param_dtype=p.param_dtype, remat=p.remat, lora=lora)
    conditioning = make_conditioning(config.conditioning, chat, objectives)
    need_known(chat, transformer.vocab_size, train, test, conditioning)

    own = Counted(heads.reward, heads.params) if heads else Counted(None, {})
    if own_names and counted:
        own = counted(own_names, chat, transformer.vocab_size)

    def weights(placed):
        params = pretrained.load_params(p.source, transformer, placed)
        if heads:
            tuned = (pretrained.resolve(p.source) / TUNED).exists()
            linear_heads.check_base(heads, params, str(p.source), tuned=tuned)
        return params

    return Task(
        objectives=objectives,
        transformer=transformer,
        conditioning=conditioning,
        weights=weights,
        train=train,
        test=test,
        pad=chat.pad,
        end=chat.end,
        forbidden=forbidden_tokens(chat, transformer.vocab_size),
        reward=own.reward,
        reward_params=own.params,
        reward_reads_base=heads is not None,
        reference=np.full(len(objectives), reference),
        truth=None,
        show=lambda tokens: chat.tokenizer.decode(tokens, skip_special_tokens=True).strip(),
        name=name,
        evaluation_set=templates.evaluation_set(evaluated, test.id, test.text, rows_of(test)),
        chat=chat,
        stop=templates.stop_of(config, name),
    )


def rows_of(prompts: Prompts) -> list[np.ndarray]:
    """Token ids of each prompt, without padding."""
    return [row[real] for row, real in zip(prompts.tokens, prompts.mask, strict=True)]


def need_known(chat: chats.Chat, vocabulary: int, train: Prompts, test: Prompts, conditioning: Conditioning) -> None:
    """Refuses ids past the embedding that this run would read: of prompts, preferences, ends or padding.

    Ids that a tokenizer has and the embedding does not are no matter otherwise: they are never drawn.

    Raises:
      ValueError: as `chat.need_known`.
    """
    need_known_format(chat, vocabulary, conditioning)
    chats.need_known(chat, vocabulary, rows_of(train), "The training prompt, in row")
    chats.need_known(chat, vocabulary, rows_of(test), "The test prompt, in row")


def need_known_format(chat: chats.Chat, vocabulary: int, conditioning: Conditioning) -> None:
    """`need_known` of what stands around every prompt: ends, padding, generation prompt and preferences."""
    table = [row for rows in conditioning.table for row in rows]
    for what, rows in (
        ("The end of a turn", [[chat.end]]),
        ("The padding", [[chat.pad]]),
        ("The generation prompt", [conditioning.tail]),
        ("The spelling of preferences, in row", table),
    ):
        chats.need_known(chat, vocabulary, rows, what)


def need_weights(source: str) -> None:
    """Refuses a path that is not there before anybody takes it for a hub id.

    Raises:
      FileNotFoundError: says how to get the weights.
    """
    source = str(source)
    local = source.startswith((".", "/", "~", "weights/")) or source.count("/") > 1
    if not source or (local and not Path(source).expanduser().exists()):
        raise FileNotFoundError(
            f"There are no weights at {source!r}. Fetch them with `bash launch/fetch_smollm2.sh` (540 MB, written to "
            "weights/SmolLM2-135M-Instruct), or give a Hugging Face directory or a hub id such as "
            "HuggingFaceTB/SmolLM2-135M-Instruct."
        )


def tokenizers_in_play(config, chat: chats.Chat) -> dict[str, Any]:
    """The policy's tokenizer and those of the reward models of `config.reward.sources`, by directory or hub id."""
    out = {str(config.policy.source): chat.tokenizer}
    for source in map(sources.parse, config.reward.sources):
        if source.kind == "model":
            place = source.directory or formats.PRESETS[source.value].source
            out[place] = pretrained.load_tokenizer(place)
    return out


def training_splits(config) -> tuple[str, ...]:
    """Keys of `chat.SPLITS` that a policy is trained on where rows are split by hash.

    The share of the reward heads is theirs alone where fitted heads give a reward; else nothing was fitted on it.
    """
    return ("policy",) if _reads_heads(config) else ("policy", "reward")


def counts(config) -> bool:
    """Whether the benchmark's own rewards are counts, for which nothing is fitted: stories without heads of the user's own."""
    return config.task == "stories" and not config.reward.heads


def _reads_heads(config) -> bool:
    """Whether a run reads fitted heads; fine-tuning on rows of one's own, if the configuration names some."""
    if not sources.own_objectives(config) or counts(config):
        return False
    if config.stage == "sft" and config.data.format == "own":
        return bool(config.reward.heads or config.reward.sources)
    return True


class Use(NamedTuple):
    """What becomes of a split's rows.

    Attributes:
      split: "training" or "evaluation".
      rows: that were chosen for it.
      repeated: rows whose prompt stands in the split before.
      shared: training rows whose prompt is in the evaluation split.
      too_long: prompts over `config.data.prompt_length` tokens.
      fitting: prompts that can be used.
      used: prompts that are; fewer in an evaluation of `config.eval.prompts`.
    """

    split: str
    rows: int
    repeated: int
    shared: int
    too_long: int
    fitting: int
    used: int


def encode_splits(
    chat: chats.Chat, train: Sequence[templates.Row], test: Sequence[templates.Row], config, where: str
) -> tuple[Prompts, Prompts]:
    """Rows as training and test prompts, as of `choose`; warns where rows are not used.

    Raises:
      ValueError: none are left of either; `where` says of what.
    """
    trains, tests, uses = choose(chat, train, test, config)
    need_some(uses, config, where)
    if said := say(uses, config):
        logging.warning("%s: %s", where, said)
    return trains, tests


def choose(
    chat: chats.Chat, train: Sequence[templates.Row], test: Sequence[templates.Row], config
) -> tuple[Prompts, Prompts, tuple[Use, Use]]:
    """Training and test prompts of rows, and what became of the others.

    Repeated rows and rows that are too long are left out, and training rows whose text or id is in the evaluation split. Of
    more test rows than `config.eval.prompts`, as many are taken, evenly spaced.
    """
    # Rows of one's own may be written twice with other spaces; published ones are compared as their publishers do.
    same, length = overlap.plain if config.data.format == "own" else str, config.data.prompt_length
    once, tests_once = distinct(train), distinct(test)
    tests, _ = templates.encode_rows(chat, tests_once, length)
    test_texts, ids = {same(row.text) for row in tests_once}, set(tests.id.tolist())
    new = [row for row in once if same(row.text) not in test_texts and chats.hash_of(row.name) not in ids]
    trains, _ = templates.encode_rows(chat, new, length)
    fitting = len(tests.id)
    needed = min(config.eval.prompts, fitting)
    if needed:
        tests = tests.rows(np.arange(needed) * fitting // needed)
    uses = (
        Use(
            "training", len(train), len(train) - len(once), len(once) - len(new), len(new) - len(trains.id),
            len(trains.id), len(trains.id),
        ),
        Use("evaluation", len(test), len(test) - len(tests_once), 0, len(tests_once) - fitting, fitting, needed),
    )  # fmt: skip
    return trains, tests, uses


def distinct(rows: Sequence[templates.Row]) -> list[templates.Row]:
    """The rows without those whose prompt's id stands before them."""
    out: dict[int, templates.Row] = {}
    for row in rows:
        out.setdefault(chats.hash_of(row.name), row)
    return list(out.values())


def need_some(uses: Sequence[Use], config, where: str) -> None:
    """Raises ValueError where nothing is left of a split; `where` says of what."""
    for use in uses:
        if not use.fitting:
            raise ValueError(
                f"{where} has no prompt for {use.split} that can be used: of {use.rows} rows chosen for it, none has at most "
                f"config.data.prompt_length={config.data.prompt_length} tokens and is new"
                + (f" ({_reasons(use, config)})." if use.rows else ".")
                + (" Raise config.data.prompt_length." if use.too_long else "")
                + ("" if use.rows else " Give more rows, or rows that say their split (docs/own.md).")
            )


def say(uses: Sequence[Use], config) -> str:
    """How many rows of each split are used, and why the others are not; "" where all are."""
    if not any(use.too_long or use.repeated or use.shared for use in uses):  # the rest is as config.eval.prompts asks
        return ""
    parts = [
        f"{use.used} of {use.rows} rows for {use.split} are used"
        + f" ({_reasons(use, config)})" * (use.used < use.rows)
        for use in uses
    ]
    return "; ".join(parts)


def _reasons(use: Use, config) -> str:
    """Why rows are not used, with counts."""
    reasons = (
        (use.too_long, f"over config.data.prompt_length={config.data.prompt_length} tokens"),
        (use.repeated, "repeated"),
        (use.shared, "also in the evaluation"),
        (use.fitting - use.used, f"more than config.eval.prompts={config.eval.prompts}"),
    )
    return ", ".join(f"{count} {reason}" for count, reason in reasons if count)


def make_conditioning(config, chat: chats.Chat, objectives: tuple[str, ...]) -> Conditioning:
    """How the policy reads a preference.

    It stands between the conversation and the generation prompt, as embeddings or as " harmless: 0.3 helpful: 0.7".
    """
    table = ()
    if inserted(config.kind) == "text":

        def encode(text: str) -> list[int]:
            return chat.tokenizer(text, add_special_tokens=False)["input_ids"]

        rows = [[encode(f" {name}: {i / (LEVELS - 1):.1f}") for i in range(LEVELS)] for name in objectives]
        width, space = max(len(row) for spelled in rows for row in spelled), encode(" ")[:1]
        table = tuple(tuple(tuple(space * (width - len(row)) + row) for row in spelled) for spelled in rows)
    return Conditioning(
        kind=config.kind,
        objectives=len(objectives),
        slots=config.slots,
        hidden=config.hidden,
        table=table,
        tail=tuple(chats.tail_ids(chat)),
        prompt=config.prompt,
    )


def forbidden_tokens(chat: chats.Chat, vocabulary: int) -> np.ndarray:
    """[V] bool: special tokens but the end token, and ids that the tokenizer does not know."""
    forbidden = np.ones(vocabulary, bool)
    forbidden[[i for i in chat.tokenizer.get_vocab().values() if i < vocabulary]] = False
    special = {i for i, token in chat.tokenizer.added_tokens_decoder.items() if token.special}
    forbidden[[i for i in special | set(chat.tokenizer.all_special_ids) if i < vocabulary]] = True
    forbidden[chat.end] = False
    return forbidden
