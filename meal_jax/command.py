"""What all commands share: flags before jax, stray arguments refused, a message where a person can act, else a trace.

A command is a module that imports quickly. It declares its flags, and `main` parses them before it calls the command's own
function, in which jax is imported: a typing error does not wait for a device.
"""

from __future__ import annotations

import argparse
import difflib
import os
import re
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from absl import app, flags, logging
from ml_collections import config_dict, config_flags

from meal_jax import console
from meal_jax.config_file import read_config_file
from meal_jax.former_names import RENAMED

# A configuration file's kind: a field that no other kind has, what it configures, and whose it is.
KINDS = {
    "study": ("variants", "a study", "meal_jax.study"),
    "heads": ("features", "the fitting of reward heads", "meal_jax.reward_training.heads"),
    "model": ("layout", "the fine-tuning of a reward model", "meal_jax.reward_training.model"),
    "run": ("policy", "a run", "meal_jax.main"),
}
# Errors that name what is wrong and what to do; others are faults of the program and keep their trace.
ERRORS = (ValueError, OSError, FloatingPointError, ImportError)
CACHE = "~/.cache/meal_jax/xla"
OPTION = re.compile(r"--?config\.([\w.]+)")


def define_config(required: bool = True) -> flags.FlagHolder:
    """Declares --config, a file of configs/ whose fields are set by --config.name=value."""
    holder = config_flags.DEFINE_config_file("config", None, "A file of configs/; fields by --config.name=value.")
    if required:
        flags.mark_flag_as_required("config")
    return holder


def main(
    run: Callable[[], int | None], errors: tuple[type[BaseException], ...] = ERRORS, kind: str | None = "run"
) -> None:
    """Parses absl's flags and calls `run`, whose result is the exit status; does not return.

    `kind` is that of the command's --config, of KINDS; None for any.
    """
    app.run(lambda argv: _start(argv, run, errors, kind), flags_parser=parse)


def main_with(
    run: Callable[[argparse.Namespace], int | None],
    parser: argparse.ArgumentParser,
    arguments: Sequence[str] | None = None,
    errors: tuple[type[BaseException], ...] = ERRORS,
) -> None:
    """The same for a command without --config: parses `arguments` by `parser` and calls `run` with what it found.

    Raises:
      SystemExit: a message, or the status that is not 0.
    """
    given = parser.parse_args(arguments)
    _prepare()
    status = attempt(run, given, errors=errors)
    if status:
        raise SystemExit(status)


def _start(
    argv: Sequence[str], run: Callable[[], int | None], errors: tuple[type[BaseException], ...], kind: str | None
) -> None:
    if len(argv) > 1:
        raise app.UsageError(f"unknown arguments: {' '.join(argv[1:])}. Fields are set by --config.name=value.")
    if not flags.FLAGS["verbosity"].present:
        logging.set_verbosity(logging.WARNING)
    _prepare()

    def checked() -> int | None:
        if kind is not None and "config" in flags.FLAGS:
            need_kind(flags.FLAGS.config, kind, config_flags.get_config_filename(flags.FLAGS["config"]))
        if "workdir" in flags.FLAGS:
            need_directory(flags.FLAGS.workdir)
        return run()

    sys.exit(attempt(checked if kind is not None else run, errors=errors))


def need_kind(config: Any, kind: str, name: str) -> None:
    """Refuses a configuration file that is another command's.

    Raises:
      ValueError: says which.
    """
    found = next((k for k, (field, _, _) in KINDS.items() if config is not None and field in config), None)
    if found not in (kind, None):
        _, what, module = KINDS[found]
        raise ValueError(f"{name} configures {what}: python -m {module} --config={name}")


def need_directory(workdir: str | None) -> None:
    """Refuses a bucket's URL, which would become a directory of that name here.

    Raises:
      ValueError: says what to do.
    """
    if workdir and "://" in workdir:
        raise ValueError(
            f"--workdir={workdir} is a URL, and a run writes to a directory: mount the bucket (gcsfuse BUCKET DIRECTORY, "
            "mount-s3 BUCKET DIRECTORY) and name the directory."
        )


def attempt(run: Callable, *args: Any, errors: tuple[type[BaseException], ...] = ERRORS) -> Any:
    """run(*args), with an error that a person can act on as a message. --verbosity=1 shows where it arose instead.

    Raises:
      SystemExit: the message.
    """
    try:
        return run(*args)
    except errors as error:
        if logging.get_verbosity() > logging.INFO:
            raise
        raise SystemExit(console.wrap(f"error: {error}", sys.stderr)) from None


def _prepare() -> None:
    """What must be decided before jax is imported."""
    console.start()
    if logging.get_verbosity() <= logging.WARNING:
        console.hide_banners()
    keep_compiled()


def keep_compiled() -> None:
    """Lets jax, not yet imported, keep compiled programs from one command to the next. MEAL_CACHE=0 switches that off."""
    if os.environ.get("MEAL_CACHE", "1") != "0":
        os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", os.path.expanduser(CACHE))


def parse(argv: Sequence[str]) -> list[str]:
    """absl's parser, with a message in place of a trace for a field or a file that is not there.

    Fields that may be None take "None" too, which ml_collections reads as a text, or refuses as no number.

    Raises:
      SystemExit: the message.
    """
    try:
        argv = _joined(argv)
        to_none = _set_to_none(argv, read_config(argv))
        rest = app.parse_flags_with_usage([argument for argument in argv if argument not in to_none])
        if to_none:
            flags.FLAGS.config.update_from_flattened_dict(dict.fromkeys(to_none.values()))
        return rest
    # From ml_collections, or from a configuration file's own code
    except (AttributeError, KeyError, TypeError) as error:
        message = wrong_field(argv)
        if message is None:
            raise
        raise SystemExit(console.wrap(f"error: {message}", sys.stderr)) from error
    except (FileNotFoundError, ValueError) as error:  # the configuration file refuses its argument
        raise SystemExit(console.wrap(f"error: {error}", sys.stderr)) from None


def read_config(argv: Sequence[str]) -> Mapping[str, Any] | None:
    """The configuration that --config names, as its file gives it; None where there is no such flag.

    Raises:
      FileNotFoundError: no such file; names one that is spelled alike.
      ValueError: as `config_file.read_config_file`.
    """
    name = _config_name(argv)
    path = (name or "").partition(":")[0]
    if name and not os.path.isfile(path):
        folder = os.path.dirname(path)
        others = (
            [os.path.join(folder, file) for file in os.listdir(folder or ".")] if os.path.isdir(folder or ".") else []
        )
        near = difflib.get_close_matches(path, [file for file in others if file.endswith(".py")], n=1)
        hint = f" Did you mean {near[0]}?" if near else ""
        raise FileNotFoundError(f"--config names a file that is not there: {path}.{hint}")
    return read_config_file(name) if name else None


def workdir() -> str:
    """--workdir, or runs/NAME by default: the name of --config's file, its argument after the colon, and the stage."""
    f = flags.FLAGS
    if f.workdir:
        return f.workdir
    path, _, argument = config_flags.get_config_filename(f["config"]).partition(":")
    parts = [os.path.splitext(os.path.basename(path))[0], re.sub(r"[^\w.=-]+", "_", argument)]
    parts += ["sft"] if f.config.get("stage") == "sft" else []
    return os.path.join("runs", "_".join(filter(None, parts)))


def wrong_field(argv: Sequence[str]) -> str | None:
    """What to say of the first --config.NAME in `argv` that the configuration does not have; None if it has them all."""
    config = read_config(argv)
    if config is None:
        return None
    known = list(leaves(config))
    for argument in argv[1:]:
        option = OPTION.match(argument)
        if option and not has_field(config, option[1]):
            return f"config.{option[1]} is not a field. {_hint(option[1], known)}"
    return None


def _hint(name: str, known: Sequence[str]) -> str:
    if RENAMED.get(name) in known:
        return f"It is called config.{RENAMED[name]} now."
    section, _, leaf = name.rpartition(".")
    ends = {field: field.rpartition(".") for field in known}
    siblings = [field for field, (home, _, end) in ends.items() if home == section and _alike(leaf, end)]
    namesakes = [field for field, (_, _, end) in ends.items() if end == leaf]
    others = [field for field, (_, _, end) in ends.items() if _alike(leaf, end)]
    near = (siblings or namesakes or others)[:3]
    if not near:
        return "All fields and what they mean are in meal_jax/config.py."
    return f"Did you mean {' or '.join(f'config.{field}' for field in near)}?"


def _alike(a: str, b: str) -> bool:
    return difflib.SequenceMatcher(None, a, b).ratio() >= 0.75


def _set_to_none(argv: Sequence[str], config: Mapping[str, Any] | None) -> dict[str, str]:
    """Arguments that set a field to None which may be None, and that field's name."""
    options = {argument: OPTION.match(argument) for argument in argv[1:] if argument.endswith("=None")}
    optional = _optional(config or {}) if options else ()
    return {argument: option[1] for argument, option in options.items() if option and option[1] in optional}


def _joined(argv: Sequence[str]) -> list[str]:
    """argv with "--config.NAME None", which absl takes too, as "--config.NAME=None"."""
    out: list[str] = []
    for argument in argv:
        if argument == "None" and out and OPTION.fullmatch(out[-1]):
            out[-1] += "=None"
        else:
            out.append(argument)
    return out


def _optional(config: Mapping[str, Any], prefix: str = "") -> set[str]:
    """Names of the fields that may be None: those that `config.number` and its like make."""
    names = set()
    if isinstance(config, config_dict.ConfigDict):
        for name, value in config.items(preserve_field_references=True):
            whole = f"{prefix}{name}"
            names |= _optional(value, f"{whole}.")
            names |= {whole} if isinstance(value, config_dict.FieldReference) else set()
    return names


def _config_name(argv: Sequence[str]) -> str | None:
    paths = re.findall(r"(?:^|\n)--?config[= \n]([^\n]+)", "\n".join(argv))
    return paths[-1] if paths else None


def leaves(config: Mapping[str, Any], prefix: str = "") -> Iterable[str]:
    """Names of all fields, "meal.tau"."""
    for name, value in config.items():
        if isinstance(value, Mapping) or hasattr(value, "items"):
            yield from leaves(value, f"{prefix}{name}.")
        else:
            yield prefix + name


def has_field(config: Any, name: str) -> bool:
    """Whether a configuration has a field of that dotted name."""
    for part in name.split("."):
        if not hasattr(config, "items") or part not in config:
            return False
        config = config[part]
    return True
