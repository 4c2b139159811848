"""Whether the parts of each model fit together: tensors, tokenizer, chat template, token ids. Headers only, nothing compiled.

The checks are those of `build.build_task`, which a run makes later. A finding per part; what is not on this machine, or is
not looked at, is unknown.

Letters: V rows of the embedding.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from meal_jax.classifiers import classifier
from meal_jax.data import chat as chats
from meal_jax.data import templates
from meal_jax.doctor import files
from meal_jax.doctor.finding import Finding, fail, ok, unknown, warn
from meal_jax.hf import families, pretrained
from meal_jax.models.policy import Conditioning
from meal_jax.rewards import formats, judge, linear_heads, sources
from meal_jax.tasks import language

REFUSALS = (OSError, ValueError, KeyError, ModuleNotFoundError)
LOOKED = 2000  # prompts that are encoded where the tokenizer's plain tokens are too many
WHOLE = "Fetch the directory again, or take the config.json that belongs to these weights."


class Model(NamedTuple):
    """A model of a run: its directory, file or hub id, and what looks at it on this machine (directory → findings)."""

    source: str
    look: Callable[[Path], Iterable[Finding]]


def models(config: Any) -> Iterator[Finding]:
    """`files.weights`, and for each model on this machine whether its parts fit together.

    A model's own line is left out where a part is at fault, whose line says more.
    """
    parts = parts_of(config)
    for finding in files.weights(config):
        part = parts.get(finding.name)
        if finding.status != "ok" or part is None:
            yield finding
            continue
        directory = directory_of(part.source)
        if directory is None:
            yield finding
            yield unknown(finding.name, "its tensors, tokenizer and template are looked at once it is on this machine")
            continue
        inside = list(part.look(directory))
        if all(f.status in ("ok", "unknown") for f in inside):
            yield finding
        yield from inside


def parts_of(config: Any) -> dict[str, Model]:
    """The models that a run reads, by the names of their lines."""
    out = {}
    if config.policy.source:
        out["policy"] = Model(str(config.policy.source), functools.partial(policy, config))
    if config.stage == "sft":
        return out
    for objective, source in zip(config.objectives, map(sources.parse, config.reward.sources), strict=False):
        name = f"reward {objective}"
        if source.kind == "model":
            preset = formats.PRESETS.get(source.value)
            out[name] = Model(source.directory or preset.source, functools.partial(reward_model, name, source))
        elif source.kind == "judge" and (asked := config.reward.judge or config.policy.source):
            out[name] = Model(str(asked), functools.partial(judged, name, source.value))
    return out


def directory_of(source: str) -> Path | None:
    """Where a model is on this machine; None if it is not."""
    path = Path(pretrained.location(source)).expanduser()
    return pretrained.resolve(path) if path.exists() else files.cached(source)


def policy(config: Any, directory: Path) -> Iterator[Finding]:
    """The policy's tensors, tokenizer, chat template and ids."""
    yield from tensors("policy", directory)
    vocabulary = pretrained.load_config(directory).vocab_size
    try:
        tokenizer = pretrained.load_tokenizer(directory)
    except REFUSALS as error:
        yield fail(
            "tokenizer", say(error), "Put the tokenizer's files beside the weights: those of the model's own release."
        )
        return
    yield ok(
        "tokenizer", f"{len(tokenizer)} tokens; {named(tokenizer, 'end', 'eos')}, {named(tokenizer, 'padding', 'pad')}"
    )
    if config.task not in templates.PLAIN:
        return
    try:
        chat = templates.chat_of(config, tokenizer)
        conditioning = Conditioning("none", tail=tuple(chats.tail_ids(chat)))
        if config.stage == "align":
            conditioning = language.make_conditioning(config.conditioning, chat, tuple(config.objectives))
    except REFUSALS as error:
        yield fail("chat template", say(error), "config.data.template=plain is for base models; or take another model.")
        yield unknown("token ids", "not looked at without a chat template")
        return
    yield ok("chat template", chats.describe(chat))
    yield from heads(config, chat)
    try:
        language.need_known_format(chat, vocabulary, conditioning)
    except ValueError as error:
        yield fail("token ids", say(error), "Nothing of a run can be written without that token.")
        return
    yield prompts(config, chat, vocabulary)


def tensors(name: str, directory: Path) -> Iterator[Finding]:
    """What is at fault with a decoder's tensors, by their names, shapes and types; nothing where all is well."""
    try:
        config = pretrained.load_config(directory)
        pretrained.check_weights(directory, config)
    except REFUSALS as error:
        yield fail(name, say(error), WHOLE)
        return
    path = directory / "config.json"
    if families.parse(pretrained.read_json(path), path).tied and not config.tied:
        yield warn(
            name,
            f"{path} says tie_word_embeddings, and the weights hold an lm_head.weight that is not the embedding",
            "The stored head is used, as transformers 5 does. If it was left behind by a mistake, take it out of the files.",
        )


def heads(config: Any, chat: chats.Chat) -> Iterator[Finding]:
    """Whether the reward heads were fitted on this format of conversations; nothing where it is, or no heads are read."""
    if config.stage == "sft" or language.counts(config) or not sources.own_objectives(config):
        return
    try:
        linear_heads.check_format(linear_heads.load(config.reward.heads), chats.describe(chat))
    except FileNotFoundError:  # `files.weights` has told
        return
    except ValueError as error:
        yield fail(
            "heads", say(error), "Or set config.data.template, template_options, system and date to those of the heads."
        )


def prompts(config: Any, chat: chats.Chat, vocabulary: int) -> Finding:
    """Whether a prompt has an id that the embedding has no row for."""
    name, tokenizer = "token ids", chat.tokenizer
    past = {i: token for token, i in tokenizer.get_vocab().items() if i >= vocabulary}
    if not past:
        return ok(name, f"all below V = {vocabulary}")
    names = pretrained.few(list(past.values()), 3)
    lacking = (
        f"the embedding's V = {vocabulary} rows are fewer than the tokenizer's ids ({len(past)} past them: {names})"
    )
    try:
        rows = files.read_rows(config) if Path(config.data.posts or config.data.path).expanduser().exists() else None
    except (*REFUSALS, ImportError):  # `prompts.prompts` tells
        rows = None
    if rows is None:
        return unknown(name, f"{lacking}, and no prompt was looked at")
    added = {i: token.content for i, token in tokenizer.added_tokens_decoder.items() if i in past}
    rows, count = [row for part in rows for row in part], sum(map(len, rows))
    if added.keys() == past.keys():  # in ids only if in the text
        rows = [row for row in rows if any(token in text for _, text in row.turns for token in added.values())]
    try:
        for row in rows[:LOOKED]:
            if len(ids := chats.prompt_ids(chat, row.turns)) <= config.data.prompt_length:
                chats.need_known(chat, vocabulary, [ids], f"The prompt {row.turns[-1][1][:40]!r} …")
    except ValueError as error:
        return fail(name, say(error), "Or leave the rows with that token out of the prompts.")
    if len(rows) > LOOKED:
        return unknown(name, f"{lacking}; none is in {LOOKED} of {count} prompts, the others were not looked at")
    return warn(
        name,
        f"{lacking}; none is in the {count} prompts",
        "They are never drawn, and the run starts. If they were meant, add rows: resize_token_embeddings of transformers.",
    )


def reward_model(name: str, source: sources.Source, directory: Path) -> Iterator[Finding]:
    """What is at fault with a classifier's tensors, label, tokenizer and ids; nothing where all is well."""
    try:
        config = classifier.check(directory)
        preset = formats.trained(directory) if source.value == sources.TRAINED else formats.PRESETS[source.value]
        tokenizer = pretrained.load_tokenizer(directory)
        where = f"{source.value}@{directory}"
        names = formats.label_names(directory)
        formats.need_fit(tokenizer, preset, config.labels, config.vocab_size, source.value, where, names)
    except REFUSALS as error:
        yield fail(name, say(error), "Take the model's own files, all of one release, or another model.")


def judged(name: str, question: str, directory: Path) -> Iterator[Finding]:
    """What is at fault with a judge's tensors, tokenizer, template or ids; nothing where all is well."""
    yield from tensors(name, directory)
    try:
        tokenizer = pretrained.load_tokenizer(directory)
        asked = judge.make_question(tokenizer, question)
        rows: Sequence[Sequence[int]] = [*asked.parts, asked.yes, asked.no]
        vocabulary = pretrained.load_config(directory).vocab_size
        chats.need_known(chats.make(tokenizer, None), vocabulary, rows, "The judge's question, in part")
        formats.need_rows(tokenizer, vocabulary, str(directory))
    except REFUSALS as error:
        yield fail(name, say(error), "Name an instruction-tuned model in config.reward.judge.")


def named(tokenizer: Any, role: str, name: str) -> str:
    """A token of a role, with its id."""
    return f"{role} {getattr(tokenizer, f'{name}_token')!r} ({getattr(tokenizer, f'{name}_token_id')})"


def say(error: BaseException) -> str:
    """A message on one line."""
    return " ".join(str(error).split())
