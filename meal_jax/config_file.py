"""A file of configs/, executed: what its get_config returns, or what is wrong with it, where, and what to do."""

from __future__ import annotations

import importlib.util
import inspect
import os
import re
import sys
import traceback
from collections.abc import Callable
from types import ModuleType
from typing import Any

import ml_collections

LENGTH = 300  # characters of a foreign message: ml_collections lists every field there is


def read_config_file(name: str) -> Any:
    """What get_config of a file of configs/ returns, by "PATH" or "PATH:ARGUMENT"; None where there is no such file.

    Raises:
      ValueError: the file refuses its argument, raises, or is no configuration file; names the file and the line.
    """
    path, _, argument = name.partition(":")
    if not os.path.isfile(path):
        return None
    sys.path.insert(0, os.getcwd())
    try:
        module = _executed(lambda: _module_of(path), path)
        arguments = (argument,) if argument else ()
        _need_get_config(module, path, arguments)
        config = _executed(lambda: module.get_config(*arguments), path)
    finally:
        sys.path.pop(0)
    if not isinstance(config, ml_collections.ConfigDict):
        raise ValueError(
            f"{path}: get_config returns {type(config).__name__}, not a configuration: let it begin with "
            "c = meal_jax.config.default() and end with return c."
        )
    return config


def _module_of(path: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location("_meal_jax_config", path)
    if spec is None:
        raise ValueError(f"{path} is not a Python file: a configuration's name ends in .py.")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _need_get_config(module: ModuleType, path: str, arguments: tuple[str, ...]) -> None:
    """Refuses a file without get_config, or whose get_config cannot be called with these."""
    get_config = getattr(module, "get_config", None)
    if not callable(get_config):
        raise ValueError(
            f"{path} has no function get_config, which returns the configuration: see configs/toy.py for one."
        )
    try:
        inspect.signature(get_config).bind(*arguments)
    except TypeError:
        advice = f"leave :{arguments[0]} out" if arguments else f"give it after a colon, --config={path}:ARGUMENT"
        line = f", line {get_config.__code__.co_firstlineno}" if inspect.isfunction(get_config) else ""
        raise ValueError(
            f"{path}{line}: get_config{inspect.signature(get_config)} cannot be called with "
            f"{len(arguments)} argument(s): {advice}."
        ) from None


def _executed(execute: Callable[[], Any], path: str) -> Any:
    """execute(), with any error of the file's code as a ValueError that names file and line."""
    try:
        return execute()
    except (Exception, SystemExit) as error:  # of any type: it is a user's code
        if isinstance(error, ValueError) and os.path.basename(path) in str(error):
            raise  # the file's own refusal, which names the file
        raise ValueError(_fault(error, path)) from error


def _fault(error: BaseException, path: str) -> str:
    """A sentence on an error of a configuration file's code, which begins with the file and the line."""
    if isinstance(error, SyntaxError):
        imported = error.filename and not _is_file(error.filename, path)
        file = error.filename if imported else path
        return f"{file}, line {error.lineno}: {error.msg}. Python cannot read the file: mend that line."
    lines = [f.lineno for f in traceback.extract_tb(error.__traceback__) if _is_file(f.filename, path)]
    where = f"{path}, line {lines[-1]}" if lines else path
    if isinstance(error, ModuleNotFoundError):
        return (
            f"{where}: there is no module {error.name} to import. Install its package into {sys.prefix}, or start the command "
            "where the module is."
        )
    return f"{where}: {type(error).__name__}: {_shortened(error)}"


def _is_file(name: str, path: str) -> bool:
    return os.path.abspath(name) == os.path.abspath(path)


def _shortened(error: BaseException) -> str:
    """An error's message without ml_collections' list of all fields, and not longer than can be read."""
    inner = error.args[0] if error.args else ""
    if isinstance(inner, BaseException):  # ml_collections' AttributeError of a KeyError
        return _shortened(inner)
    text = str(inner) if isinstance(error, KeyError) else str(error)  # a KeyError's own text is quoted
    text = re.sub(r" Other fields present: .*?(?=\nDid you mean|$)", "", text, flags=re.DOTALL)
    text = " ".join(text.split()) or "no message"
    return text if len(text) <= LENGTH else text[:LENGTH] + " …"
