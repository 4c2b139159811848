"""The small policy whose exports matrix.py runs elsewhere: a random Llama, its tokenizer and chat template as SmolLM2's.

It is trained two steps under each kind of conditioning, then exported in every kind. The requests are what a program is
given: messages and variables for its chat route, the policy's own token ids, or embeddings where a prefix is not baked.

Letters: K objectives, S prompt tokens, D width.
"""

from __future__ import annotations

import importlib.util
import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import jax
import ml_collections
import numpy as np
from flax import traverse_util
from safetensors.numpy import load_file

from meal_jax import config as defaults
from meal_jax import train
from meal_jax.data import chat as chats
from meal_jax.export import model_directory
from meal_jax.generate import answers
from meal_jax.hf import pretrained
from meal_jax.hf.storage import SINGLE
from meal_jax.models.transformer import TransformerConfig
from meal_jax.rollout.sampling import Sampling
from meal_jax.saved_run import Run, open_run

PREFERENCE = (0.3, 0.7)
QUESTIONS = ("How do I keep bread fresh?", "Is it late?")
MAX_NEW = 12
SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
TEMPLATE = (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\nYou are a small model.<|im_end|>\n' }}{% endif %}"
    "{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
REWARDS = """\
def early(tokens, mask, prompt_tokens, prompt_mask):
    return ((tokens % 7 < 3) & mask).sum(-1) / mask.sum(-1).clip(1)


def late(tokens, mask, prompt_tokens, prompt_mask):
    return ((tokens % 5 > 2) & mask).sum(-1) / mask.sum(-1).clip(1)
"""


class Row(NamedTuple):
    """A row of the table: an export.

    Attributes:
      conditioning: config.conditioning.kind.
      prompt: config.conditioning.prompt.
      kind: of `model_directory.KINDS`.
      baked: with --preference.
    """

    conditioning: str
    prompt: str
    kind: str
    baked: bool

    @property
    def name(self) -> str:
        """A file's name."""
        parts = [self.conditioning, *(["own-prompt"] if self.prompt == "preference" else []), self.kind]
        return "-".join([*parts, *(["baked"] if self.baked else [])])

    @property
    def embeds(self) -> bool:
        """Whether a program must take embeddings."""
        return self.conditioning == "prefix" and not self.baked


ROWS = (
    Row("text", "uniform", "merged", False),
    Row("text", "uniform", "adapter", False),
    Row("prefix", "uniform", "merged", True),
    Row("prefix", "uniform", "merged", False),
    Row("prefix", "uniform", "adapter", False),
    Row("adapter", "preference", "merged", True),
    Row("adapter", "preference", "adapter", True),
    Row("adapter", "uniform", "merged", True),
    Row("adapter", "uniform", "adapter", True),
)


class Cell(NamedTuple):
    """An export, what programs are asked, and what the trained policy answers.

    Attributes:
      task: the entry of runtime_worker.py's task.
      expected: token ids of each request's answer, as `meal_jax.generate` writes them.
      end: the token that ends an answer.
    """

    task: dict[str, Any]
    expected: list[list[int]]
    end: int


def write_base(directory: Path) -> None:
    """A random Llama of width 64 and its tokenizer.

    Tokens other than printable ASCII and the end have an output row of zeros, so their logit is never the largest. Programs
    differ in whether they can be told to draw no special token, and llama.cpp's chat route leaves out parts of characters;
    the table is about neither.
    """
    import tokenizers
    import transformers
    from tokenizers import decoders, models, pre_tokenizers, trainers

    tokenizer = tokenizers.Tokenizer(models.BPE())
    digits = pre_tokenizers.Digits(individual_digits=True)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([digits, pre_tokenizers.ByteLevel(add_prefix_space=False)])
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=320, show_progress=False, special_tokens=list(SPECIAL), initial_alphabet=sorted(alphabet)
    )
    tokenizer.train_from_iterator(["user assistant system harmless helpful bread fresh late question"] * 4, trainer)
    made = transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<|im_start|>",
        eos_token="<|im_end|>",
        unk_token="<|endoftext|>",
        pad_token="<|endoftext|>",
        chat_template=TEMPLATE,
    )
    config = TransformerConfig(
        vocab_size=tokenizer.get_vocab_size(), width=64, layers=2, heads=2, kv_heads=1, head_dim=32, hidden=96, tied=False
    )  # fmt: skip
    rng = np.random.default_rng(0)
    flat = {
        path: rng.uniform(0.5, 1.5, leaf.shape) if path.endswith("norm") else 0.2 * rng.normal(size=leaf.shape)
        for path, leaf in pretrained.param_shapes(config).items()
    }
    printable = [
        i for i, name in enumerate(made.convert_ids_to_tokens(range(config.vocab_size))) if _is_printable(name)
    ]
    flat["output"][np.setdiff1d(np.arange(config.vocab_size), [*printable, made.eos_token_id])] = 0.0
    params = jax.tree.map(np.float32, traverse_util.unflatten_dict(flat, sep="/"))
    pretrained.save(directory, config, params, settings={"max_position_embeddings": 512})
    made.save_pretrained(directory)


def _is_printable(token: str) -> bool:
    """Whether a byte-level BPE token, in which "Ġ" stands for a space, is printable ASCII."""
    return token not in SPECIAL and all(" " <= c <= "~" for c in token.replace("Ġ", " "))


def make_config(folder: Path, base: Path, conditioning: str, prompt: str) -> ml_collections.ConfigDict:
    """A run of two steps on invented prompts; writes what it reads to `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "rewards.py").write_text(REWARDS)
    rows = [{"prompt": f"question {i}?", "split": "train" if i % 2 else "test"} for i in range(16)]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    c = defaults.default()
    changes = {
        "task": "assistant", "objectives": ("harmless", "helpful"), "method": "static", "compare_with": (), "steps": 2,
        "reward.sources": tuple(f"jax:{folder / 'rewards.py'}:{name}" for name in ("early", "late")), "batch_size": 2,
        "meal.candidates": 2, "sampling.max_new": 4, "policy.source": str(base), "policy.lora_rank": 2,
        "conditioning.kind": conditioning, "conditioning.prompt": prompt, "conditioning.slots": 3,
        "data.path": str(folder / "rows.jsonl"), "data.format": "own", "data.prompt_length": 128, "eval.prompts": 2,
        "eval.batch_size": 2, "eval.divisions": 1, "eval.bootstrap": 10, "eval.samples": 1, "optim.lr": 0.1,
        "optim.warmup": 1, "tensorboard": False,
    }  # fmt: skip
    c.update_from_flattened_dict(changes)
    return c


def make_cells(folder: Path, base: Path, rows: Sequence[Row]) -> dict[Row, Cell]:
    """Trains, exports and answers; a run that is finished is not trained again."""
    cells, opened = {}, {}
    for row in rows:
        pair = (row.conditioning, row.prompt)
        workdir = folder / f"run-{'-'.join(pair)}"
        if pair not in opened:
            train.run(make_config(folder, base, *pair), str(workdir))
            opened[pair] = open_run(workdir)
        out = folder / row.name
        shutil.rmtree(out, ignore_errors=True)
        preference = np.array(PREFERENCE) if row.baked else None
        model_directory.export(opened[pair], out, kind=row.kind, preference=preference)
        cells[row] = make_cell(opened[pair], row, out, base)
    return cells


def make_cell(run: Run, row: Row, out: Path, base: Path) -> Cell:
    """The requests for an export, and the run's own answers."""
    chat = run.task.chat
    prompts = chats.encode_explicit(chat, QUESTIONS, run.config.data.prompt_length)
    greedy = Sampling(temperature=0.0)
    said = answers.answers(run, prompts, np.array([PREFERENCE]), sampling=greedy, max_new=MAX_NEW, rewards=False)
    expected = [tokens[mask].tolist() for tokens, mask in zip(said.tokens[:, 0], said.mask[:, 0], strict=True)]
    about = json.loads((out / "preference.json").read_text(encoding="utf-8"))
    given = list(about["slots"])
    if "text" in row.conditioning:
        given = [i for entries, w in zip(about["table"], PREFERENCE, strict=True) for i in entries[round(w * 10)]]
    requests = []
    for question in QUESTIONS:
        before = chats.prompt_ids(chat, (("user", question),))
        request = {
            "messages": [{"role": "user", "content": question}],
            "variables": {"preference": list(PREFERENCE)} if row.conditioning == "text" else {},
        }
        if row.embeds:
            request["embeddings"] = embeddings(out if row.kind == "merged" else base, out, before, about["tail"])
        else:
            request["ids"] = [*before, *given, *about["tail"]]
        requests.append(request)
    task = {
        "name": row.name, "kind": row.kind, "directory": str(out), "base": str(base), "requests": requests,
        "routes": ["embeddings" if row.embeds else "ids", "chat"],
    }  # fmt: skip
    return Cell(task, expected, run.task.end)


def embeddings(weights: Path, out: Path, before: Sequence[int], tail: Sequence[int]) -> list[list[float]]:
    """A prompt's embeddings [S, D]: conversation, prefix, generation prompt, the prefix by the export's own prefix.py."""
    table = load_file(weights / SINGLE)["model.embed_tokens.weight"]
    prefix = _exported_module(out / "prefix.py")
    slots = prefix.slots(prefix.load(), PREFERENCE)
    return np.concatenate([table[list(before)], slots, table[list(tail)]]).astype(np.float64).tolist()


def _exported_module(file: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(file.stem, file)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
