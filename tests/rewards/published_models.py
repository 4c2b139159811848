"""The table of docs/models_and_rewards.md: each preset beside the published evaluation, on a tiny model of its architecture.

    python -m tests.rewards.published_models [PYTHON ...]

Every PYTHON has torch and a transformers of its own (the installed one is always compared with). A model has the settings of
the published config.json and the real tokenizer, but few and narrow layers and random weights. Rows are real ones, and
invented ones at the edges: cut, empty, spaces, other scripts. Needs the published tokenizers and rows at ../shared/data.
"""

import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
from flax import traverse_util

from meal_jax.classifiers import classifier
from meal_jax.data import chat as chats
from meal_jax.data import hh_rlhf, templates
from meal_jax.data import summarize_from_feedback as sff
from meal_jax.hf import pretrained
from meal_jax.hf.known import CLASSIFIERS
from meal_jax.rewards import formats, text
from meal_jax.runtime import sharding

WORKER = Path(__file__).with_name("score_elsewhere.py")
DATA = Path(__file__).resolve().parents[3] / "shared" / "data"
TOKENIZERS = {
    "harmless": "gpt2",
    "helpful": "gpt2",
    "humor": "bert-base-uncased",
    "summary": "gpt2",
    "faithful": "bart-roberta-derived",
    "deberta": "deberta-v3",
}
ON_POSTS = ("summary", "faithful", "deberta")
TOLERANCE = 1e-4
ROWS = 24  # real ones per preset
NARROW = {
    "gpt2": {"n_embd": 16, "n_layer": 2, "n_head": 2},
    "distilbert": {"dim": 16, "hidden_dim": 24, "n_layers": 2, "n_heads": 2},
    "bart": {"d_model": 16}
    | dict.fromkeys(("encoder_layers", "decoder_layers", "encoder_attention_heads", "decoder_attention_heads"), 2)
    | dict.fromkeys(("encoder_ffn_dim", "decoder_ffn_dim"), 24),
    "deberta-v2": {
        "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2, "pooler_hidden_size": 16,
    },
}  # fmt: skip


class Outcome(NamedTuple):
    """A preset beside one version of transformers.

    Attributes:
      preset, version: names.
      rows: number of rows.
      ids: rows with equal token ids.
      scores: rows whose raw scores agree to TOLERANCE.
      difference: largest difference of raw scores.
    """

    preset: str
    version: str
    rows: int
    ids: int
    scores: int
    difference: float


def write_model(preset: str, directory: Path) -> None:
    """A tiny random model with the preset's published settings and tokenizer."""
    published = CLASSIFIERS[formats.PRESETS[preset].source]
    entries = published | NARROW[published["model_type"]]
    config = classifier.parse(entries, directory / "config.json")
    rng = np.random.default_rng(0)
    flat = {}
    for path, leaf in classifier.param_shapes(config).items():
        scale = 1.0 if path.startswith(("classifier", "pooler")) else 0.4  # of a head: so that scores differ by units
        flat[path] = (float("norm" in path) + scale * rng.normal(size=leaf.shape)).astype(leaf.dtype)
    directory.mkdir(parents=True)
    classifier.save(directory, config, traverse_util.unflatten_dict(flat, sep="/"), settings=entries)
    for file in (DATA / "tokenizers" / TOKENIZERS[preset]).iterdir():
        shutil.copyfile(file, directory / file.name)


def invented_rows(prompt: str, response: str) -> list[tuple[str, str]]:
    """A row, and rows at the edges of what a tokenizer is given."""
    long = "A post of many words, and then some. " * 200
    return [
        (prompt, response), (long, response), (prompt, long), (long, long), (prompt, ""),
        (prompt, "  two  spaces \n\n and lines  "), (prompt, "naïve café, 茶はいかが? 🍵"), (prompt, "x"),
        (prompt, "well\u2026 a\u00a0half is \u00bd"),
    ]  # fmt: skip


def rows_of(preset: str, count: int) -> list[tuple[str, str]]:
    """Prompts and responses as rewards read them: `count` real rows of the preset's benchmark and the invented ones."""
    if preset in ON_POSTS:
        comparisons = sff.read_comparisons(DATA / "summarize_from_feedback")[:count]
        rows = [(templates.one_line(row.post), row.answers[0]) for row in comparisons if row.post]
        return rows + invented_rows("My cat sleeps on the router, and it is warm.", "Cat likes the router.")
    folder = DATA / "hh_rlhf" / "harmless-base"
    rows = [
        (chats.transcript(turns), answer)
        for source, row in list(hh_rlhf.rows(folder))[:count]
        for turns, answer in [hh_rlhf.split_transcript(row["chosen"], source, as_written=True)]
    ]
    return rows + invented_rows(chats.transcript((("user", "Which tea?"),)), "Sencha  then, no?")


def ours(preset: str, directory: Path, rows: list[tuple[str, str]]) -> tuple[list[list[int]], np.ndarray]:
    """Token ids and raw scores of rows as a run makes them."""
    layout, label = formats.PRESETS[preset].layout, formats.PRESETS[preset].label
    model, tokenizer = classifier.load(directory), pretrained.load_tokenizer(directory)
    mesh = sharding.make_mesh(1, 1, 1, jax.devices()[:1])
    reward = text.classifier_reward(model, tokenizer, layout, label, mesh, batch_size=8)
    maximum = formats.limit(tokenizer, model.max_length)
    prompts, responses = zip(*rows, strict=True)
    return [layout(tokenizer, *row, maximum).ids for row in rows], reward(prompts, responses)


def scored(python: str, task: dict) -> tuple[str, dict]:
    """The version of a Python's transformers, and what score_elsewhere.py prints with it."""
    show = "import transformers; print(transformers.__version__)"
    version = subprocess.run([python, "-c", show], capture_output=True, text=True, check=True).stdout.strip()
    run = subprocess.run([python, str(WORKER)], input=json.dumps(task), capture_output=True, text=True)
    if run.returncode:
        raise RuntimeError(f"{python} with transformers {version}: {run.stderr[-2000:]}")
    return version, json.loads(run.stdout.strip().splitlines()[-1])


def compare(presets: list[str], pythons: list[str], folder: Path, count: int) -> list[Outcome]:
    """An Outcome of each preset and version."""
    task = {}
    for preset in presets:
        write_model(preset, folder / preset)
        task[preset] = {"directory": str(folder / preset), "rows": rows_of(preset, count)}
    own = {preset: ours(preset, folder / preset, part["rows"]) for preset, part in task.items()}
    outcomes = []
    for python in pythons:
        version, theirs = scored(python, task)
        for preset in presets:
            ids, scores = own[preset]
            reference = np.array([logits[formats.PRESETS[preset].label] for _, logits in theirs[preset]])
            assert reference.std() > 100 * TOLERANCE, f"the random {preset} hardly tells texts apart: {reference}"
            gap = np.abs(scores - reference)
            equal = sum(a == b for a, (b, _) in zip(ids, theirs[preset], strict=True))
            outcomes.append(Outcome(preset, version, len(ids), equal, int((gap <= TOLERANCE).sum()), float(gap.max())))
    return outcomes


def main(pythons: list[str]) -> None:
    print("| preset | transformers | rows | ids equal | score equal | largest difference |\n|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        for o in sorted(compare(list(TOKENIZERS), [sys.executable, *pythons], Path(folder), ROWS)):
            print(f"| `{o.preset}` | {o.version} | {o.rows} | {o.ids} | {o.scores} | {o.difference:.1e} |")


if __name__ == "__main__":
    main(sys.argv[1:])
