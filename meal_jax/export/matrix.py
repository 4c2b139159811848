"""The command `python -m meal_jax.export.matrix`: every kind of export in every program that serves it, as one table.

    python -m meal_jax.export.matrix --out=docs/exports.md
    python -m meal_jax.export.matrix --runtimes=llama.cpp,vLLM        # those again, the others from before
    python -m meal_jax.export.matrix --base=DIR --rows=text-merged    # a model of your own in place of the tiny one

A small policy is trained two steps under each conditioning and exported in every kind (matrix_policy.py). Each program runs
in a venv of its own with pinned packages (runtimes.py). It answers greedily, given the prompt's token ids and through its own
chat route; the table says whether its tokens are those of `meal_jax.generate`. Venvs, runs and results are kept in --workdir.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from meal_jax import command
from meal_jax.export import runtimes

WORKDIR = "~/.cache/meal_jax/matrix"
HEAD = """\
# Exports in other programs

Made by `{command}`. {base} was trained two steps under each
conditioning and exported. Each program answered {count} questions greedily, up to {max_new} tokens, in float32 on a CPU.

A cell has two results: with the prompt as token ids, then through the program's own chat route. Where an export reads a prefix
that is not baked, the first is with the prompt as embeddings.

- **same**: the tokens that `meal_jax.generate` writes.
- **k of n**: that many of the answers are the same; *as transformers*: all are those that transformers gives.
- **no route**: the program has no such way in; **—**: there is no adapter for PEFT.
- **refused**, **not run**: the note has the program's message.
"""
WHY = """\
Where answers differ, the reason is the same in every program:

- Through the chat route, an unbaked prefix gets no preference: no text stands for one. The card says so.
- With `prompt=uniform` the trained policy reads the prompt at the uniform preference and answers under another. An export has
  one set of weights for both. The card gives the measured difference.

Programs also round differently: of two tokens that are nearly tied one may take the other.

How the programs were set up: llama.cpp has GGUF files from its own converters, and for adapters the export's chat template.
openvino-genai has OpenVINO files from optimum-intel, and for adapters the export's tokenizer and alpha = `lora_alpha` / `r`.
vLLM has `enable_prompt_embeds=True`, and for adapters the export's tokenizer. mlx-lm, PEFT and transformers read the directory
itself; ctranslate2 converts it.
"""


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m meal_jax.export.matrix", description=__doc__.splitlines()[0])
    parser.add_argument("--workdir", default=WORKDIR, metavar="DIR", help=f"venvs, runs, results; {WORKDIR} by default")
    parser.add_argument("--out", metavar="FILE", help="where to write the table; standard output by default")
    parser.add_argument("--runtimes", metavar="NAME,NAME", help=f"of {', '.join(runtimes.RUNTIMES)}; all by default")
    parser.add_argument("--rows", metavar="NAME,NAME", help="exports by name; all by default")
    parser.add_argument("--base", metavar="DIR", help="a model directory in place of the tiny random one")
    parser.add_argument("--anew", action="store_true", help="train and export again")
    os.environ["JAX_PLATFORMS"] = "cpu"  # as the programs, and a batch of two prompts does not divide over many devices
    command.main_with(run, parser, arguments, (*command.ERRORS, RuntimeError))


def run(args: argparse.Namespace) -> None:
    """Trains and exports, asks the programs, writes the table.

    Raises:
      ValueError: an unknown program or row.
    """
    folder = Path(args.workdir).expanduser().absolute()
    names = _chosen(args.runtimes, list(runtimes.RUNTIMES), "--runtimes")
    home = folder / (Path(args.base).name if args.base else "tiny")
    cells = read_cells(home, args.base, args.rows, args.anew)
    record = home / "results.json"
    results = json.loads(record.read_text(encoding="utf-8")) if record.exists() and not args.anew else {}
    for name in names:
        print(f"{name} …", file=sys.stderr, flush=True)
        result = ask(runtimes.RUNTIMES[name], cells, folder / "venvs", home)
        if "routes" in result and results.get(name, {}).get("versions") == result["versions"]:
            result["routes"] = results[name]["routes"] | result["routes"]  # other rows, of an earlier call
        results[name] = result
        record.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    text = write(results, cells, Path(args.base).name if args.base else "")
    if args.out:
        Path(args.out).write_text(text, encoding="utf-8")
    else:
        print(text)


def read_cells(home: Path, base: str | None, chosen: str | None, anew: bool) -> list[dict[str, Any]]:
    """The exports as {"row", "task", "expected", "end"}, made if `home` does not have them.

    Raises:
      ValueError: an unknown row.
    """
    from meal_jax.export import matrix_policy as policy

    record = home / "cells.json"
    if anew:
        shutil.rmtree(home, ignore_errors=True)
    made = json.loads(record.read_text(encoding="utf-8")) if record.exists() else []
    names = _chosen(chosen, [row.name for row in policy.ROWS], "--rows")
    missing = [row for row in policy.ROWS if row.name in set(names) - {cell["task"]["name"] for cell in made}]
    if missing:
        home.mkdir(parents=True, exist_ok=True)
        directory = Path(base).expanduser().absolute() if base else home / "base"
        if not base and not directory.exists():
            policy.write_base(directory)
        for row, cell in policy.make_cells(home, directory, missing).items():
            if not base:
                cell.task["splits"] = "smollm"
            made.append({"row": row._asdict(), **cell._asdict()})
        record.write_text(json.dumps(made) + "\n", encoding="utf-8")
    order = [row.name for row in policy.ROWS]
    return sorted((c for c in made if c["task"]["name"] in names), key=lambda c: order.index(c["task"]["name"]))


def ask(runtime: runtimes.Runtime, cells: Sequence[Mapping[str, Any]], venvs: Path, home: Path) -> dict[str, Any]:
    """{"versions": …, "routes": …} as of `runtimes.Answered`, or {"not run": why}."""
    from meal_jax.export.matrix_policy import MAX_NEW

    scratch = home / f"scratch-{runtime.name}"
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir(parents=True)
    try:
        python = runtimes.python_of(runtime, venvs)
        return runtimes.ask(python, runtime.name, [cell["task"] for cell in cells], scratch, MAX_NEW)._asdict()
    except runtimes.NotRun as why:
        return {"not run": str(why)}
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def verdict(result: Any, expected: Sequence[Sequence[int]], end: int) -> tuple[str, str]:
    """A result in words, and the message that goes into a note, or ""."""
    if isinstance(result, Mapping):
        if "none" in result:
            return ("—", "") if result["none"] == "no adapter" else ("no route", "")
        return "refused", result["refused"]
    same = sum(_open(tokens, end) == _open(answer, end) for tokens, answer in zip(result, expected, strict=True))
    return ("same" if same == len(expected) else f"{same} of {len(expected)}"), ""


def write(results: Mapping[str, Any], cells: Sequence[Mapping[str, Any]], base: str = "") -> str:
    """The page: the table, its notes, the versions."""
    from meal_jax.export import differences
    from meal_jax.export.matrix_policy import MAX_NEW

    notes: list[str] = []
    results = {name: results[name] for name in runtimes.RUNTIMES if name in results}

    def noted(words: str, message: str) -> str:
        if not message:
            return words
        if message not in notes:
            notes.append(message)
        return f"{words} [{notes.index(message) + 1}]"

    lines = [f"| export | {' | '.join(results)} |", "|---|" + "---|" * len(results)]
    for cell in cells:
        entries = []
        for result in results.values():
            if "not run" in result:
                entries.append(noted("not run", result["not run"]))
                continue
            routes = result["routes"].get(cell["task"]["name"])
            if routes is None:
                entries.append("not asked")
                continue
            words = []
            for route in cell["task"]["routes"]:
                said, message = verdict(routes[route], cell["expected"], cell["end"])
                if said.endswith(f" of {len(cell['expected'])}") and result is not results.get("transformers"):
                    said += " (as transformers)" if _agrees(results, cell, route, routes[route]) else ""
                words.append(noted(said, message.replace(cell["task"].get("directory", "EXPORT"), "EXPORT")))
            entries.append(words[0] if len(set(words)) == 1 and words[0] != "same" else ", ".join(words))
        lines.append(f"| {label(cell['row'])} | {' | '.join(entries)} |")
    command_line = "python -m meal_jax.export.matrix" + (f" --base={base}" if base else " --out=docs/exports.md")
    parts = [
        HEAD.format(
            command=command_line, base=base or "A small random Llama", count=len(cells[0]["expected"]), max_new=MAX_NEW
        ),
        "\n".join(lines),
        WHY,
        "\n".join(f"{i}. {_inline(note)}" for i, note in enumerate(notes, 1)),
        differences.table(),
        "## Versions\n\n| program | packages |\n|---|---|\n"
        + "\n".join(f"| {name} | {versions(runtimes.RUNTIMES[name], result)} |" for name, result in results.items()),
    ]
    return "\n\n".join(part.strip() for part in parts if part) + "\n"


def _agrees(results: Mapping[str, Any], cell: Mapping[str, Any], route: str, answers: Sequence[Sequence[int]]) -> bool:
    """Whether transformers gave the same answers."""
    reference = results.get("transformers", {}).get("routes", {}).get(cell["task"]["name"], {}).get(route)
    return isinstance(reference, list) and verdict(answers, reference, cell["end"])[0] == "same"


def label(row: Mapping[str, Any]) -> str:
    """A row's first cell."""
    kind = "PEFT adapter" if row["kind"] == "adapter" else "merged"
    read = (
        f"{row['conditioning']}, `prompt={row['prompt']}`" if row["conditioning"] == "adapter" else row["conditioning"]
    )
    baked = ", prefix baked" if row["conditioning"] == "prefix" and row["baked"] else ""
    return f"{read}: {kind}{baked}"


def versions(runtime: runtimes.Runtime, result: Mapping[str, Any]) -> str:
    """Names and versions of the packages that matter."""
    if "not run" in result:
        return f"{', '.join(runtime.packages)}: not run"
    return ", ".join(f"{name} {result['versions'].get(name, '?')}" for name in runtime.shown)


def _open(tokens: Sequence[int], end: int) -> list[int]:
    """An answer without its end token, which some programs leave out."""
    tokens = list(tokens)
    return tokens[:-1] if tokens and tokens[-1] == end else tokens


def _inline(message: str) -> str:
    return "`" + message.replace("`", "'") + "`"


def _chosen(text: str | None, known: Sequence[str], flag: str) -> list[str]:
    """Names of a comma-separated list, all where there is none.

    Raises:
      ValueError: a name that is not known.
    """
    names = list(known) if text is None else text.split(",")
    unknown = [name for name in names if name not in known]
    if unknown:
        raise ValueError(f"{flag}={text}: {', '.join(unknown)} is not one of {', '.join(known)}.")
    return names


if __name__ == "__main__":
    main()
