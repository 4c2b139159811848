"""Where each objective's reward comes from: `config.reward.sources`, one string per objective.

    heads                        the benchmark's own reward of that objective, computed on the device
    harmless                     a published reward model, see `rewards.formats.PRESETS`, from the hub
    harmless@DIRECTORY           a model of that kind in a Hugging Face directory
    model@DIRECTORY              a model that `reward_training.model` trained; its config.json has layout and label
    python:FILE.py:FUNCTION      a user's function of texts (or python:package.module:function)
    jax:FILE.py:FUNCTION         a user's function of tokens, run inside the jitted step
    judge:QUESTION               log-odds that a language model answers the question about a response with yes

If empty, every objective has `heads`. Kinds can be mixed.

Letters: B prompts, N candidates, K objectives, S prompt tokens, T response tokens.
"""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from meal_jax.rewards import formats, python

FIELD = "config.reward.sources"
TRAINED = "model"  # in place of a preset's name


class Call(NamedTuple):
    """A kind of reward that is written NAME:VALUE.

    Attributes:
      value: what VALUE is: "function" (loaded to check it) or another noun for messages.
      form: the form of VALUE.
      reads_text: the host computes the reward from texts; False: the device computes it inside the jitted step.
    """

    value: str
    form: str
    reads_text: bool


# A kind of a name of its own is a row here and its maker in `tasks.attach_rewards.MAKERS`.
CALLS: dict[str, Call] = {
    "python": Call("function", "FILE.py:FUNCTION", reads_text=True),
    "jax": Call("function", "FILE.py:FUNCTION", reads_text=False),
    "judge": Call("question", "QUESTION", reads_text=True),
}


class Source(NamedTuple):
    """A parsed string of `config.reward.sources`: kind ("heads", "model" or a key of CALLS) and the rest.

    Attributes:
      kind: as above.
      value: the function's place, the question, the preset's name, or TRAINED.
      directory: of the model; "" for the preset's hub id.
    """

    kind: str
    value: str = ""
    directory: str = ""


def parse(source: str) -> Source:
    """Takes one string apart.

    Raises:
      ValueError: it has none of the forms above.
    """
    kind, colon, value = source.partition(":")
    if colon and kind in CALLS:
        if not value.strip():
            raise ValueError(f"{FIELD}: {source!r} names no {CALLS[kind].value}.")
        return Source(kind, value.strip())
    if source == "heads":
        return Source("heads")
    name, separator, directory = source.partition("@")
    if (name not in formats.PRESETS and not (name == TRAINED and separator)) or (separator and not directory):
        similar = difflib.get_close_matches(name, [*formats.PRESETS, "heads", *CALLS], n=1)
        hint = f" Did you mean {similar[0]!r}?" if similar else ""
        calls = "; ".join(f"{name}:{call.form}" for name, call in CALLS.items())
        raise ValueError(
            f"{FIELD}: {source!r} is none of: heads; {', '.join(formats.PRESETS)}, each alone or with "
            f"@DIRECTORY; {TRAINED}@DIRECTORY; {calls}.{hint}"
        )
    return Source("model", name, directory)


def check(sources: Sequence[str], objectives: Sequence[str]) -> None:
    """Checks sources without loading models: number, form, and whether directories and functions exist.

    A user's file is executed for that.

    Raises:
      ValueError, FileNotFoundError: names the source.
    """
    if sources and len(sources) != len(objectives):
        raise ValueError(
            f"{FIELD} names {len(sources)} rewards {tuple(sources)} for the {len(objectives)} of "
            f"config.objectives {tuple(objectives)}: give one each, in that order ('heads' for the benchmark's own), or "
            "none for the benchmark's own."
        )
    for source in map(parse, sources):
        if source.kind in CALLS and CALLS[source.kind].value == "function":
            python.load_reward(source.kind, source.value, f"{FIELD} {source.kind}:{source.value}")
        if source.directory and not Path(source.directory).expanduser().is_dir():
            raise FileNotFoundError(
                f"{FIELD} {source.value}@{source.directory}: there is no such directory; it must hold a "
                "reward model in Hugging Face's form."
            )
        if source.value == TRAINED and source.kind == "model":
            formats.trained(source.directory)


def reads_text(source: Source) -> bool:
    """Whether the host computes the reward from texts."""
    return source.kind == "model" or (source.kind in CALLS and CALLS[source.kind].reads_text)


def own_objectives(config) -> tuple[int, ...]:
    """Indices of the objectives whose rewards are the benchmark's own: `tasks.*.build` must provide these."""
    sources = config.reward.sources or ("heads",) * len(config.objectives)
    return tuple(k for k, source in enumerate(sources) if parse(source).kind == "heads")


def describe(config) -> tuple[str, ...]:
    """Axis labels of the objectives: the name, and the model, function or question that computes the reward."""
    sources = map(parse, config.reward.sources or ("heads",) * len(config.objectives))
    out = []
    for objective, source in zip(config.objectives, sources, strict=True):
        if source.kind == "model":
            origin = Path(source.directory).name or formats.PRESETS[source.value].source
        elif source.kind == "heads":
            origin = ""
        elif CALLS[source.kind].value == "function":
            origin = source.value.rpartition(":")[2]
        else:
            origin = f"{source.kind}: {source.value}"
        out.append(f"{objective} reward" + (f" ({origin})" if origin else ""))
    return tuple(out)
