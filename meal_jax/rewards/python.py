"""Rewards that users write: a Python function of texts, or a JAX function of tokens.

A reward of texts is named `python:path/to/file.py:function` or `python:package.module:function`:

    def short(prompts: list[str], responses: list[str]) -> list[float]:
        return [-len(response.split()) for response in responses]

Parameters that are named in another order, `(responses, prompts)`, are given by name; fewer or more are refused. It is called
once a step with all rows, one number a row is its answer, and it should not depend on the other rows. It is tried on two rows
before a run begins. A prompt is

    a row of the user's own     the text of its one turn; of a conversation "Human: …\n\nAssistant: …\n\nHuman: …", in the
                                benchmark stories the turns' texts joined by spaces. A turn that itself has
                                "\n\nAssistant: " in it comes as a conversation, with "Human: " before it
    assistant, published data   hh-rlhf's transcript, "\n\nHuman: … \n\nAssistant:"
    reddit                      the post on one line

A reward of tokens is named `jax:…` in the same two ways, and runs inside the jitted
step:

    def short(tokens, mask, prompt_tokens, prompt_mask):   # [B, N, T], [B, N, T], [B, S], [B, S] → [B, N]
        return -mask.sum(-1)

Letters: B prompts, N candidates, T response tokens, S prompt tokens.
"""

from __future__ import annotations

import functools
import hashlib
import importlib
import importlib.util
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from meal_jax.meal.step import Batch
from meal_jax.rewards import signature
from meal_jax.rollout.decode import Responses

# What a user's function of each kind is called with.
ARGUMENTS: dict[str, tuple[str, ...]] = {
    "python": ("prompts", "responses"),
    "jax": ("tokens", "mask", "prompt_tokens", "prompt_mask"),
}


def load(name: str, where: str) -> Callable:
    """The function that `path/to/file.py:function` or `package.module:function` names.

    Args:
      name: as above; a path is relative to the working directory.
      where: what to call it in messages.

    Raises:
      FileNotFoundError: no such file.
      ModuleNotFoundError: what it imports is not there.
      ValueError: no such module or function, not of that form, or its code raises when it is executed.
    """
    place, colon, function = name.rpartition(":")
    if not colon or not place or not function.isidentifier():
        raise ValueError(f"{where} must end in path/to/file.py:function or package.module:function, not {name!r}.")
    if place.endswith(".py"):
        path = Path(place).expanduser().resolve()
        if not path.is_file():
            raise FileNotFoundError(f"{where}: there is no file {path}.")
        module = _executed(functools.partial(_module_of, path, path.stat().st_mtime_ns), where, str(path))
    else:
        module = _executed(functools.partial(importlib.import_module, place), where, place)
    attribute = getattr(module, function, None)
    if not callable(attribute):
        defined = [
            n for n, v in vars(module).items() if callable(v) and getattr(v, "__module__", "") == module.__name__
        ]
        raise ValueError(f"{where}: {place} has no function {function}; it defines {', '.join(defined) or 'none'}.")
    return attribute


def load_reward(kind: str, name: str, where: str) -> Callable:
    """The reward that `name` names, to be called by position with ARGUMENTS[kind], in whatever order it has them.

    Raises:
      FileNotFoundError, ModuleNotFoundError, ValueError: as `load` and `signature.arranged`.
    """
    return signature.arranged(load(name, where), ARGUMENTS[kind], where)


def _executed(execute: Callable[[], ModuleType], where: str, place: str) -> ModuleType:
    """The module that `execute` returns; its errors begin with the field and the file or module."""
    try:
        return execute()
    except ModuleNotFoundError as error:
        if error.name is not None and f"{place}.".startswith(f"{error.name}."):
            raise ValueError(
                f"{where}: there is no module {place}; a file is named by its path, ending in .py."
            ) from None
        raise ModuleNotFoundError(f"{where}: {place} cannot be imported: {error}.", name=error.name) from error
    except (Exception, SystemExit) as error:  # of any type: it is a user's code
        line = f" at line {error.lineno}" if isinstance(error, SyntaxError) else ""
        raise ValueError(
            f"{where}: {place} cannot be imported: it raised {type(error).__name__}{line}: {error}."
        ) from error


@functools.lru_cache(maxsize=64)
def _module_of(path: Path, modified: int) -> ModuleType:
    """The file as a module, executed once as long as it stays the same."""
    name = f"meal_jax_user_{path.stem}_{hashlib.sha256(str(path).encode()).hexdigest()[:8]}"
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses and pickles of the file look their module up
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


class TextFunction(NamedTuple):
    """A user's function of texts, (prompts, responses) → one number a response.

    Attributes:
      function: the user's.
      source: its place, for messages.
      objective: that it is the reward of.
      show: makes what the function reads of a prompt's text; None where it reads the text itself.
    """

    function: Callable[[list[str], list[str]], Any]
    source: str
    objective: str
    show: Callable[[str], str] | None = None

    def __call__(self, prompts: list[str], responses: list[str]) -> Any:
        """What the function returns.

        Raises:
          ValueError: it raised; says what, where in its file, and on which rows.
        """
        prompts = list(map(self.show, prompts)) if self.show else list(prompts)
        try:
            return self.function(list(prompts), list(responses))  # its own lists: others read them after it
        except (Exception, SystemExit) as error:  # of any type: it is a user's code
            raise ValueError(
                f"{_raised(self.objective, self.source, error)} It was called with {len(responses)} rows; the first response "
                f"is {responses[0][:80]!r} to {prompts[0][:80]!r}."
            ) from error


def token_column(function: Callable, objective: str, batch: Batch, responses: Responses, source: str = "") -> jax.Array:
    """The column [B, N] float32 of a reward of tokens.

    Raises:
      ValueError: it raises, returns another shape, or no numbers.
    """
    of = f"The reward of objective {objective!r}" + (f" ({source})" if source else "")
    expected = responses.tokens.shape[:2]
    needed = f"it must return one number for each response, shape {list(expected)}."
    try:
        column = function(responses.tokens, responses.mask, batch.tokens, batch.mask)
    except (Exception, SystemExit) as error:  # of any type: it is a user's code
        raise ValueError(
            f"{_raised(objective, source, error)} It was traced with tokens {list(responses.tokens.shape)}, so it can use "
            "jax.numpy alone, and jnp.where in place of if."
        ) from error
    try:
        column = jnp.asarray(column)
    except (TypeError, ValueError):
        raise ValueError(f"{of} returned {type(column).__name__} {str(column)[:80]}; {needed}") from None
    if column.shape != expected or jnp.issubdtype(column.dtype, jnp.complexfloating):
        raise ValueError(
            f"The reward of objective {objective!r} returned {column.dtype}{list(column.shape)} for tokens "
            f"{list(responses.tokens.shape)}; {needed}" + (f" ({source})" if source else "")
        )
    return column.astype(jnp.float32)


def _raised(objective: str, source: str, error: BaseException) -> str:
    """A sentence on an error of a user's function: which, where in the user's own file, what."""
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if frame.filename != __file__]
    file = source.partition(":")[2].rpartition(":")[0]
    own_frames = [frame for frame in frames if file and frame.filename.endswith(Path(file).name)] or frames
    where = f" at {own_frames[-1].filename}:{own_frames[-1].lineno}" if own_frames else ""
    of = f"The reward of objective {objective!r}" + (f" ({source})" if source else "")
    what, *_ = str(error).splitlines() or [""]  # jax's errors go on for a page
    return f"{of} raised {type(error).__name__}{where}: {what.rstrip('.') or 'without a message'}."
