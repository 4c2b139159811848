"""The parameters of a user's reward function: found by name where names tell, by their order elsewhere, or refused.

A function written as (responses, prompts) and called as (prompts, responses) would score the prompts, and nothing would fail.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Sequence

Parameter = inspect.Parameter
# Other names of an argument, by which it is known. A name that is in no list says nothing, so that its place decides.
SYNONYMS: dict[str, tuple[str, ...]] = {
    "prompts": ("prompt",),
    "responses": ("response", "answers", "answer", "completions", "completion", "outputs", "replies"),
    "tokens": ("response_tokens",),
    "mask": ("response_mask",),
}


def arranged(function: Callable, names: Sequence[str], where: str) -> Callable:
    """The function, to be called by position with the arguments `names`; itself where its own order is that.

    Args:
      function: the user's.
      names: of the arguments, "prompts", "responses".
      where: what to call it in messages.

    Raises:
      ValueError: it takes fewer or more arguments, or two of its parameters name the same one.
    """
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):  # of a builtin
        return function
    parameters = list(signature.parameters.values())
    wanted = f"It is called with {_listed(names)}: write def {_name(function)}({', '.join(names)})."
    says = f"{where}: {_name(function)}{signature}"
    positional = [p for p in parameters if p.kind in (Parameter.POSITIONAL_ONLY, Parameter.POSITIONAL_OR_KEYWORD)]
    open_ended = any(p.kind is Parameter.VAR_POSITIONAL for p in parameters)
    named = [p for p in parameters if p.kind not in (Parameter.VAR_POSITIONAL, Parameter.VAR_KEYWORD)]

    roles = {p.name: role for p in named if (role := _role(p.name, names)) is not None}
    double = sorted({role for role in roles.values() if list(roles.values()).count(role) > 1})
    if double:
        both = _listed([name for name, role in roles.items() if role == double[0]])
        raise ValueError(f"{says} has {both} for the {double[0]}. {wanted}")
    rest = [name for name in names if name not in roles.values()]
    unnamed = [p for p in positional if p.name not in roles]
    roles |= {p.name: role for p, role in zip(unnamed, rest, strict=False)}
    lacking = [name for name in names if name not in roles.values()]
    if lacking and not open_ended:
        raise ValueError(f"{says} does not take the {_listed(lacking)}. {wanted}")
    spare = [p.name for p in named if p.default is Parameter.empty and p.name not in roles]
    if spare:
        raise ValueError(f"{says} asks for {_listed(spare)} too. {wanted}")

    first = [roles.get(p.name) for p in positional][: len(names)]
    if first == list(names)[: len(first)] and (len(first) == len(names) or open_ended):
        return function
    if lacking or any(p.kind is Parameter.POSITIONAL_ONLY for p in positional):
        raise ValueError(f"{says} takes them in another order. {wanted}")

    @functools.wraps(function)
    def by_name(*arguments):
        given = dict(zip(names, arguments, strict=True))
        return function(**{parameter: given[role] for parameter, role in roles.items()})

    return by_name


def _role(name: str, names: Sequence[str]) -> str | None:
    """The argument that a parameter's name tells, of `names`; None where it tells none."""
    return next((role for role in names if name == role or name in SYNONYMS.get(role, ())), None)


def _name(function: Callable) -> str:
    return getattr(function, "__name__", type(function).__name__)


def _listed(names: Sequence[str]) -> str:
    *first, last = names
    return f"{', '.join(first)} and {last}" if first else last
