"""What a run reads besides its configuration: rewards, training prompts, weights, tokenizer; compared by their bytes.

A run's `inputs.json` has the SHA-256 of each, and the changes that were accepted, with the step that each came before. A run
that has saved a state resumes with the same inputs. Of a file above WHOLE bytes, which can only be weights, it is the SHA-256
of the size and of samples: the file's first bytes, with safetensors' names and shapes, its last, and BLOCK bytes of every
STRIDE. Training all of a tensor that is larger than STRIDE shows in them; a change of fewer bytes may not.

Test prompts are compared by `saved_run.need_same_prompts`. Data files that a reward's code opens are not known here.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import ml_collections
import numpy as np
from absl import logging

from meal_jax.data import templates
from meal_jax.hf import pretrained, shapes
from meal_jax.rewards import formats, linear_heads, sources
from meal_jax.rewards.code_files import code_files
from meal_jax.runtime import distributed, identity
from meal_jax.saved_run import read_json, steps_done, write_json
from meal_jax.tasks import language

NAME = "inputs.json"
WHOLE, STRIDE, BLOCK = 2**25, 2**22, 2**16  # bytes
TOKENIZER = (
    "tokenizer*", "*.model", "vocab.*", "merges.txt", "added_tokens.json", "special_tokens_map.json", "*.jinja",
)  # fmt: skip
CODE = "code of reward"

# Input, such as "policy weights" → its parts, such as files → SHA-256.
Digests = dict[str, dict[str, str]]


def digests(config: ml_collections.ConfigDict, rows: Mapping[str, Any]) -> Digests:
    """The inputs of a run as they are now.

    Args:
      config: of the run.
      rows: what it trains on by name: tuples of arrays and texts.
    """
    out = {name: {"token ids and texts": of_rows(columns)} for name, columns in rows.items()}
    source = str(config.policy.source)
    if source and not source.startswith(shapes.RANDOM):
        out["policy weights"], out["policy tokenizer"] = of_model(source)
    if config.stage == "sft":
        return out
    named = config.reward.sources or ("heads",) * len(config.objectives)
    for objective, reward in zip(config.objectives, map(sources.parse, named), strict=True):
        out |= of_reward(reward, objective, config)
    return out


def of_reward(reward: sources.Source, objective: str, config: ml_collections.ConfigDict) -> Digests:
    """The files that one reward is computed with; {} where there are none but the policy's and meal_jax's own."""
    if reward.kind == "heads" and config.task in templates.PLAIN and not language.counts(config):
        path = linear_heads.locate(config.reward.heads)
        return {f"heads of reward {objective}": {path.name: of_file(path)}}
    place = config.reward.judge if reward.kind == "judge" else reward.directory  # of a model
    if reward.kind == "model" and not place:
        place = formats.PRESETS[reward.value].source
    if place:
        weights, tokenizer = of_model(place)
        return {f"{reward.kind} of reward {objective}": weights | tokenizer}
    if reward.kind in sources.CALLS and sources.CALLS[reward.kind].value == "function":
        return {f"{CODE} {objective}": {name: of_file(path) for name, path in code_files(reward.value).items()}}
    return {}


def of_model(source: str) -> tuple[dict[str, str], dict[str, str]]:
    """Digests of a model's settings and weights, and of its tokenizer, by file; a GGUF file holds both."""
    path = Path(source).expanduser()
    if path.is_file():
        return {path.name: of_file(path)}, {}
    directory = pretrained.resolve_weights(source)
    weights = ["config.json", *pretrained.weight_files(directory)]
    tokenizer = sorted({path.name for pattern in TOKENIZER for path in directory.glob(pattern)})
    return tuple({name: of_file(directory / name) for name in names} for names in (weights, tokenizer))


def of_file(path: Path) -> str:
    """SHA-256 of a file; "sampled …" of a large one, see above."""
    with path.open("rb") as file:
        size = path.stat().st_size
        if size <= WHOLE:
            return hashlib.file_digest(file, "sha256").hexdigest()
        sha = hashlib.sha256(str(size).encode())
        for position in (*range(0, size, STRIDE), size - BLOCK):
            file.seek(position)
            sha.update(file.read(BLOCK))
    return f"sampled {sha.hexdigest()}"


def of_rows(columns: tuple[Any, ...]) -> str:
    """SHA-256 of columns: arrays, and tuples of texts."""
    sha = hashlib.sha256()
    for column in columns:
        is_array = isinstance(column, np.ndarray)
        sha.update(f"{column.dtype}{column.shape}".encode() if is_array else json.dumps(column).encode())
        sha.update(np.ascontiguousarray(column) if is_array else b"")
    return sha.hexdigest()


def differences(before: Digests, now: Digests) -> dict[str, dict[str, list[str | None]]]:
    """Input → part → [digest before, digest now], of the parts that differ; None where there is no such part.

    An input that only one of the two knows is of another version of meal_jax and is not compared.
    """
    out = {}
    for name in before.keys() & now.keys():
        parts = sorted(before[name].keys() | now[name].keys())
        pairs = {part: [before[name].get(part), now[name].get(part)] for part in parts}
        out |= {name: changed} if (changed := {p: pair for p, pair in pairs.items() if pair[0] != pair[1]}) else {}
    return dict(sorted(out.items()))


def need_same(workdir: Path, now: Digests, config: ml_collections.ConfigDict) -> dict[str, Any]:
    """Refuses inputs that have changed since a workdir's run read them, unless `config.checkpoint.accept_inputs` accepts it.

    The code of rewards may be mended after an error ended the run. A run without a checkpoint begins anew.

    Returns:
      What `recorded` writes: the inputs, and the changes that are accepted.

    Raises:
      AnotherRunError: names each input and part that differs, and the code that accepts this very change.
      ValueError: inputs.json is damaged.
    """
    path = workdir / NAME
    found = {"inputs": now, "changed": {}}
    if not path.exists() or not steps_done(workdir):
        return found
    record = read_json(path)
    if not isinstance(record, dict) or "inputs" not in record:
        raise ValueError(
            f"{path} is damaged: bring it back, or delete it to resume without comparing the run's inputs."
        )
    changed = differences(record["inputs"], now)
    refused = {name: parts for name, parts in changed.items() if not ("failed" in record and name.startswith(CODE))}
    code = hashlib.sha256(json.dumps(refused).encode()).hexdigest()[:12]
    lines = "\n".join(f"  {name}: {_say(*item)}" for name, parts in changed.items() for item in parts.items())
    if refused and config.checkpoint.accept_inputs != code:
        raise identity.AnotherRunError(
            f"{workdir} holds a run that read other inputs (SHA-256 then → now):\n{lines}\n"
            "Nothing there was changed. Bring the former ones back, or give this run a --workdir of its own. To resume with "
            f"the new ones all the same, add --config.checkpoint.accept_inputs={code}: {NAME} will record the change."
        )
    if changed:
        logging.warning("%s resumes with other inputs, as %s records:\n%s", workdir, NAME, lines)
    return {"inputs": record["inputs"] | now, "changed": changed}


@contextlib.contextmanager
def recorded(workdir: Path, start: int, found: Mapping[str, Any]) -> Iterator[None]:
    """Context of a run's training: writes inputs.json, and notes an error that ends it; process 0 only.

    Args:
      workdir: of the run.
      start: steps done.
      found: as `need_same` returned it.
    """
    path = workdir / NAME
    new = {"since_step": start, "accepted": []}  # above 0 for a run of an older version
    before = (read_json(path) if start else None) or new
    accepted = [{"before_step": start, "after_error": before.get("failed"), "changed": found["changed"]}]
    record = {
        "since_step": before["since_step"],
        "inputs": found["inputs"],
        "accepted": before["accepted"] + (accepted if found["changed"] else []),
    }
    if distributed.is_first():
        write_json(path, record)
    try:
        yield
    except (ValueError, FloatingPointError, distributed.ElsewhereError) as error:
        if distributed.is_first():
            write_json(path, record | {"failed": str(error)})
        raise


def _say(part: str, digests: list[str | None]) -> str:
    before, now = (digest and digest.removeprefix("sampled ")[:12] + "…" for digest in digests)
    if before is None or now is None:
        return f"{part} is {'new' if before is None else 'gone'}"
    return f"{part} changed ({before} → {now})"
