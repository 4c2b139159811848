"""The assistant benchmark: conversations of hh-rlhf, or of one's own, that the policy continues.

How its prompts are divided, `config.data.split`:

    hash        half from harmless-base and half from helpful-base. Those whose first human turn falls into the split
                `policy` (see `meal_jax.data.chat.split_of`) are trained on, those of `eval` are tested on, and the shipped
                reward heads were fitted on those of `reward`: what is evaluated was seen by neither.
    published   trained on every subset's `train`, tested on every fourth row of the subsets' `test` one after the other, as
                in the published evaluation (RiC, arXiv 2402.10207); prompts of 8 to 512 tokens under every tokenizer.

`config.data.format=own` reads JSON lines of one's own (`meal_jax.data.own`) instead. Rows that give their split, by a field or
their file's name, keep it, whatever `config.data.split` says; `hash` divides the others. `config.data.prompt_length` alone
bounds their length. Rewards are the heads on the model's own frozen base, or `config.reward.sources`.

Letters: S prompt tokens.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from absl import logging

from meal_jax.data import chat as chats
from meal_jax.data import hh_rlhf, own, templates
from meal_jax.data.prompts import Prompts
from meal_jax.tasks import language
from meal_jax.tasks.task import Task

FOLDERS = ("harmless-base", "helpful-base")
EVERY = 4  # of the published test rows, every EVERY-th is evaluated
# Head scores have mean 0 and standard deviation 1 over people's pairs of answers. Before training the model averages
# about -1 (harmless) and 0 to 1 (helpful), and may lose another 1 of an objective that it gives up. -2.5 lies behind
# all that, so that no point of a front falls out of the hypervolume. Every method is measured from it.
REFERENCE = -2.5


def build(config) -> Task:
    """The benchmark for `config`; errors as of `language.build`."""
    return language.build(config, "assistant", load, REFERENCE)


def load(config, chat: chats.Chat, tokenizers: dict[str, Any]) -> tuple[Prompts, Prompts, str]:
    """Training prompts, test prompts and the name of the evaluation set.

    Raises:
      FileNotFoundError: `config.data.path` has not what the split needs.
      ValueError: a row that cannot be read, or too few prompts.
    """
    path, split = Path(config.data.path).expanduser(), config.data.split
    if config.data.format == "own":
        train, test, name = own_rows(config, path)
    elif split == "hash":
        return (
            *load_prompts(
                chat, config.data.path, config.data.prompt_length, config.eval.prompts, as_written=as_written(config)
            ),
            f"hh-rlhf {' and '.join(FOLDERS)}, hash split",
        )
    else:
        train, test = _published_rows(path, as_written(config))
        name = f"hh-rlhf test, every {EVERY}th row"
    if config.data.format != "own":  # the published evaluation's bounds
        train, test = (templates.within(rows, lambda row: row.text, tokenizers)[0] for rows in (train, test))
    return *language.encode_splits(chat, train, test, config, str(path)), name


def read_rows(config) -> tuple[list[templates.Row], list[templates.Row]]:
    """Rows to train on and to evaluate on, before limits of length; what `load` is made of. Errors as of `load`."""
    path = Path(config.data.path).expanduser()
    if config.data.format == "own":
        return own_rows(config, path)[:2]
    if config.data.split == "published":
        return _published_rows(path, as_written(config))
    raw = as_written(config)
    turns = [turns for folder in FOLDERS for turns in hh_rlhf.read_pairs(path / folder, as_written=raw).prompts]
    parts = ([t for t in turns if chats.split_of(t) == split] for split in ("policy", "eval"))
    return tuple(templates.assistant_rows(part) for part in parts)


def as_written(config) -> bool:
    """Whether turns of one speaker in a row keep their labels, as the published code gives them to base models."""
    return config.data.template == "plain"


def _published_rows(path: Path, raw: bool) -> tuple[list[templates.Row], list[templates.Row]]:
    subsets = [path / name for name in hh_rlhf.SUBSETS if (path / name).is_dir()]
    if not subsets:
        raise FileNotFoundError(f"{path} has none of the directories {', '.join(hh_rlhf.SUBSETS)}. {hh_rlhf.HINT}")
    try:
        train, test = (
            [turns for subset in subsets for turns in hh_rlhf.read_pairs(subset, part, as_written=raw).prompts]
            for part in ("train", "test")
        )
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{error} Or set config.data.split=hash, which divides the rows at hand.") from None
    return templates.assistant_rows(train), templates.assistant_rows(test[::EVERY])


def own_rows(config, path: Path) -> tuple[list[templates.Row], list[templates.Row], str]:
    """Rows of one's own to train on and to evaluate on, repeated ones too, and the evaluation set's name.

    Rows that give their split keep it: `train` is trained on, `test` evaluated on, or `validation` where there is no test
    split. A split of the data alone (only train, or rows without any) is divided by hash, see `language.training_splits`.

    Raises:
      FileNotFoundError: no rows; or `config.data.split=published` and one of the splits is not there.
      ValueError: a row's split contradicts its file's name; or there is nothing to train on.
    """
    parts = {split: pairs.prompts for split, pairs in own.read_by_split(path).items()}
    held = "test" if "test" in parts else "validation"
    if config.data.split == "published":
        for split in ("train", held if held in parts else "test"):
            if split not in parts:
                raise FileNotFoundError(f"{path} has no row of split {split!r}. {own.HINT}")
        train, test = parts["train"], parts[held]
        return templates.conversation_rows(train), templates.conversation_rows(test), "own prompts, published split"
    if held not in parts:  # nothing is kept from training: all of it is divided
        free, train, test, kind = [turns for part in parts.values() for turns in part], [], [], "hash split"
    else:
        free, train, test = parts.get("", []), parts.get("train", []), parts[held]
        kind = f"their own {held} split" + (" and a hash of the rows without one" if free else "")
    train = train + [t for t in free if chats.split_of(t) in language.training_splits(config)]
    test = test + [t for t in free if chats.split_of(t) == "eval"]
    if not train:
        raise ValueError(
            f"{path} gives {len(test)} rows to evaluate on and none to train on: all are of the split {held!r}, by a field "
            "or their file's name. Add rows of split train, or leave the split away to divide these by hash."
        )
    return templates.conversation_rows(train), templates.conversation_rows(test), f"own prompts, {kind}"


def answers(config) -> dict[int, list[str]]:
    """What fine-tuning learns, by the id of its prompt: the preferred answers of pairs, and "response" of own rows."""
    path = Path(config.data.path).expanduser()
    if config.data.format == "own":
        answered = own.read_answers(path)
    else:
        folders = FOLDERS if config.data.split == "hash" else [n for n in hh_rlhf.SUBSETS if (path / n).is_dir()]
        every_part = [hh_rlhf.read_pairs(path / folder, as_written=as_written(config)) for folder in folders]
        answered = [(pair.turns, pair.chosen) for part in every_part for pair in part.pairs]
    out: dict[int, list[str]] = {}
    for turns, text in answered:
        out.setdefault(chats.hash_of(chats.name_of(turns)), []).append(text)
    return out


def load_prompts(
    chat: chats.Chat, path: str, length: int, tests: int, *, as_written: bool = False
) -> tuple[Prompts, Prompts]:
    """Training prompts, and `tests` test prompts, half from each folder of `path`.

    Rows are ordered by their id, a hash of the text, so the choice does not depend on the order of files. `as_written` is as
    in `hh_rlhf.split_transcript`.

    Raises:
      FileNotFoundError: `path` has not both folders.
      ValueError: too few prompts fit `length` tokens.
    """
    parts: dict[str, list[Prompts]] = {"policy": [], "eval": []}
    longer = 0
    for folder in FOLDERS:
        source = Path(path).expanduser() / folder
        if not source.is_dir():
            raise FileNotFoundError(
                f"There is no {source}. The prompts are hh-rlhf's (MIT): put its directories {' and '.join(FOLDERS)} from "
                "https://huggingface.co/datasets/Anthropic/hh-rlhf in one directory and name that in config.data.path."
            )
        conversations = hh_rlhf.read_pairs(source, as_written=as_written).prompts
        for split, split_rows in parts.items():
            prompts, too_long = chats.encode_prompts(
                chat, [turns for turns in conversations if chats.split_of(turns) == split], length
            )
            longer += too_long
            order = np.argsort(prompts.id)
            split_rows.append(prompts.rows(order))
            quota = (tests + 1) // 2 if split == "eval" else 1
            if len(order) < quota:
                raise ValueError(
                    f"{source} has {len(order)} prompts of at most {length} tokens for {split}, {quota} are needed "
                    f"({too_long} are longer): raise config.data.prompt_length or lower config.eval.prompts."
                )
    if longer:
        logging.warning("%s: %d rows over config.data.prompt_length=%d tokens are not used", path, longer, length)
    train = min(len(prompts.id) for prompts in parts["policy"])
    return _interleave(parts["policy"], 2 * train), _interleave(parts["eval"], tests)


def _interleave(parts: list[Prompts], rows: int) -> Prompts:
    """The parts' rows in turn, `rows` of them. A row in both folders stays in twice; hh-rlhf has next to none."""
    first = np.cumsum([0, *(len(part.id) for part in parts)])[:-1]
    order = (np.arange(-(-rows // len(parts)))[:, None] + first).reshape(-1)[:rows]
    arrays = (np.concatenate(fields) for fields in zip(*(part[:3] for part in parts), strict=True))
    return Prompts(*arrays, sum((part.text for part in parts), ())).rows(order)
