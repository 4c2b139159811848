"""The prompts that a run would use of its data, and the user's functions tried on them, as `build.build_task` does it later.

The policy's tokenizer tells which prompts fit; no weights are read.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from meal_jax.data import chat as chats
from meal_jax.data import overlap, templates
from meal_jax.doctor import files, models
from meal_jax.doctor.finding import Finding, fail, ok, unknown, warn
from meal_jax.hf import pretrained
from meal_jax.rewards import sources
from meal_jax.tasks import attach_rewards, language

COUNTED = 20_000  # rows of a split that are tokenised
ADVICE = "Raise config.data.prompt_length, or shorten the prompts; a longer prompt takes more memory and time."


def prompts(config: Any) -> Iterator[Finding]:
    """How many rows are trained and evaluated on and what the two share, of data that is there; and the functions' trial."""
    place = config.data.posts or config.data.path
    if not files.local(place) and (place or config.task != "stories"):  # `files.data` has told
        return
    try:
        rows = files.read_rows(config)
    except (OSError, ValueError, ImportError) as error:
        yield fail("splits", f"{error}", "Correct the data, or config.data.")
        return
    if rows is None:
        size = files.READ_BYTES / 2**20
        yield unknown("splits", f"rows of more than {size:.0f} MiB, or of a benchmark's own, were not read")
        return
    finding, texts = splits(config, *rows)
    yield finding
    if finding.status != "fail" and config.stage != "sft":
        yield from functions(config, texts)


def splits(config: Any, train: Sequence[templates.Row], test: Sequence[templates.Row]) -> tuple[Finding, Sequence[str]]:
    """The line on the rows, and the texts of those that are trained on."""
    name = "splits"
    texts = [[row.text for row in language.distinct(rows)] for rows in (train, test)]
    counts = overlap.say(overlap.between(*texts))
    if (chat := chat_of(config)) is None:
        return ok(name, f"{counts}; before limits of length"), texts[0]
    cut = max(len(train), len(test)) > COUNTED
    trains, _, uses = language.choose(chat, train[:COUNTED], test[:COUNTED], config)
    of = f" of the first {COUNTED} rows of each split" if cut else ""
    try:
        language.need_some(uses, config, str(config.data.posts or config.data.path))
    except ValueError as error:
        return (unknown if cut else fail)(name, f"{error}{of}", ADVICE), texts[0]
    said = language.say(uses, config)
    if len(trains.id) < config.batch_size and not cut:
        few = f"{len(trains.id)} prompts to train on are fewer than config.batch_size={config.batch_size}"
        why = f"{counts}; {few}" + f"; {said}" * bool(said)
        return fail(name, why, f"Give more, or lower that. {ADVICE}"), texts[0]
    if any(use.too_long for use in uses):
        return warn(name, f"{counts}; {said}{of}", ADVICE), trains.text
    return ok(name, f"{counts}; {said or 'all are short enough'}{of}"), trains.text


def chat_of(config: Any) -> chats.Chat | None:
    """The policy's prompt format; None where its tokenizer is not on this machine or does not do, as `models.policy` tells."""
    if not config.policy.source or config.task not in templates.PLAIN:
        return None
    try:
        directory = models.directory_of(str(config.policy.source))
        if directory is None:
            return None
        return templates.chat_of(config, pretrained.load_tokenizer(directory))
    except models.REFUSALS:
        return None


def functions(config: Any, texts: Sequence[str]) -> Iterator[Finding]:
    """The user's functions: of texts called on two prompts, of tokens traced on shapes, as a run does before it begins."""
    name, tried = "trial", []
    for objective, source in zip(config.objectives, map(sources.parse, config.reward.sources), strict=False):
        try:
            if source.kind == "python":
                attach_rewards.text_function(source, config, objective, texts)
            elif source.kind == "jax":
                attach_rewards.token_function(source, config, objective, config.data.prompt_length)
            else:
                continue
        except (OSError, ValueError, ImportError, FloatingPointError) as error:
            yield fail(name, models.say(error), "Correct the function.")
        else:
            tried.append(objective)
    if tried:
        yield ok(name, f"the functions of {', '.join(tried)} return one number for each answer")
