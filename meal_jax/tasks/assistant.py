"""A real instruction-tuned model on real prompts: harmless and helpful, by reward heads on the model's own frozen base.

Prompts are the conversations of hh-rlhf, half from harmless-base and half from helpful-base. Those whose first human
turn falls into the split `policy` are trained on, those of `eval` are tested on, and the heads were fitted on those of
`reward` (see `meal_jax.data.chat.split_of`): what is evaluated was seen by neither.

Letters: K objectives, S prompt tokens, V vocabulary.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from meal_jax.data import chat as chats
from meal_jax.data import hh_rlhf
from meal_jax.models import hf
from meal_jax.models.lora import Lora
from meal_jax.models.policy import Conditioning
from meal_jax.rewards import linear_heads
from meal_jax.tasks.task import Prompts, Task

FOLDERS = ("harmless-base", "helpful-base")
LEVELS = 11  # weights that numerals can spell: 0.0, 0.1 … 1.0
# Head scores have mean 0 and standard deviation 1 over people's pairs of answers. Before training the model averages
# about -1 (harmless) and 0 to 1 (helpful), and may lose another 1 of an objective that it gives up. -2.5 lies behind
# all that, so that no point of a front falls out of the hypervolume. Every method is measured from it.
REFERENCE = -2.5


def build(config) -> Task:
    """The benchmark for `config`.

    Raises:
      FileNotFoundError: weights, data or heads are not there; says how to get them.
      ValueError: they do not fit together, or too few prompts are short enough.
    """
    objectives, p = tuple(config.objectives), config.policy
    need_weights(p.source)
    heads = linear_heads.load(config.reward.heads).pick(objectives)
    chat = chats.make(hf.load_tokenizer(p.source))
    linear_heads.check_format(heads, chats.describe(chat))
    train, test = load_prompts(chat, config.data.path, config.data.prompt_length, config.eval.prompts)
    lora = Lora(p.lora_rank, p.lora_alpha, p.lora_dropout, p.lora_targets) if p.lora_rank else None
    transformer = hf.load_config(p.source, dtype=p.dtype, param_dtype=p.param_dtype, remat=p.remat, lora=lora)
    weights = hf.load_params(p.source, transformer)
    linear_heads.check_base(heads, weights, str(p.source))
    return Task(
        objectives=objectives,
        transformer=transformer,
        conditioning=make_conditioning(config.conditioning, chat, objectives),
        weights=weights,
        train=train,
        test=test,
        pad=chat.pad,
        end=chat.end,
        forbidden=forbidden_tokens(chat, transformer.vocab_size),
        reward=heads.reward,
        reward_params=heads.params,
        reward_reads_base=True,
        reference=np.full(len(objectives), REFERENCE),
        truth=None,
        show=lambda tokens: chat.tokenizer.decode(tokens, skip_special_tokens=True).strip(),
        name="assistant",
    )


def need_weights(source: str) -> None:
    """Refuses a path that is not there before anybody takes it for a hub id.

    Raises:
      FileNotFoundError: says how to get the weights.
    """
    source = str(source)
    local = source.startswith((".", "/", "~", "weights/")) or source.count("/") > 1
    if not source or (local and not Path(source).expanduser().exists()):
        raise FileNotFoundError(
            f"There are no weights at {source!r}. Fetch them with `bash launch/fetch_smollm2.sh` (540 MB, written to "
            "weights/SmolLM2-135M-Instruct), or give a Hugging Face directory or a hub id such as "
            "HuggingFaceTB/SmolLM2-135M-Instruct."
        )


def load_prompts(chat: chats.Chat, path: str, length: int, tests: int) -> tuple[Prompts, Prompts]:
    """Training prompts, and `tests` test prompts, half from each folder of `path`.

    Rows are ordered by their id, a hash of the text, so the choice does not hang on the order of files.

    Raises:
      FileNotFoundError: `path` has not both folders.
      ValueError: too few prompts fit `length` tokens.
    """
    parts: dict[str, list[Prompts]] = {"policy": [], "eval": []}
    for folder in FOLDERS:
        at = Path(path).expanduser() / folder
        if not at.is_dir():
            raise FileNotFoundError(
                f"There is no {at}. The prompts are hh-rlhf's (MIT): put its directories {' and '.join(FOLDERS)} from "
                "https://huggingface.co/datasets/Anthropic/hh-rlhf in one directory and name that in config.data.path."
            )
        conversations = hh_rlhf.read(at).prompts
        for split, found in parts.items():
            prompts, too_long = chats.encode_prompts(
                chat, [turns for turns in conversations if chats.split_of(turns) == split], length
            )
            order = np.argsort(prompts.id)
            found.append(Prompts(*(field[order] for field in prompts)))
            wanted = (tests + 1) // 2 if split == "eval" else 1
            if len(order) < wanted:
                raise ValueError(
                    f"{at} has {len(order)} prompts of at most {length} tokens for {split}, {wanted} are needed "
                    f"({too_long} are longer): raise config.data.prompt_length or lower config.eval.prompts."
                )
    train = min(len(prompts.id) for prompts in parts["policy"])
    return _interleave(parts["policy"], 2 * train), _interleave(parts["eval"], tests)


def _interleave(parts: list[Prompts], rows: int) -> Prompts:
    """The parts' rows in turn, `rows` of them. A row in both folders stays in twice; hh-rlhf has next to none."""
    most = -(-rows // len(parts))
    stacked = (np.stack([field[:most] for field in fields], axis=1) for fields in zip(*parts, strict=True))
    return Prompts(*(field.reshape(-1, *field.shape[2:])[:rows] for field in stacked))


def make_conditioning(config, chat: chats.Chat, objectives: tuple[str, ...]) -> Conditioning:
    """How the policy reads a preference.

    It stands between the conversation and the generation prompt, as embeddings or as " harmless: 0.3 helpful: 0.7".
    """
    table = ()
    if config.kind == "text":
        encode = lambda text: chat.tokenizer(text, add_special_tokens=False)["input_ids"]  # noqa: E731
        rows = [[encode(f" {name}: {i / (LEVELS - 1):.1f}") for i in range(LEVELS)] for name in objectives]
        width, space = max(len(row) for spelled in rows for row in spelled), encode(" ")[:1]
        table = tuple(tuple(tuple(space * (width - len(row)) + row) for row in spelled) for spelled in rows)
    return Conditioning(
        kind=config.kind,
        objectives=len(objectives),
        slots=config.slots,
        hidden=config.hidden,
        table=table,
        tail=tuple(chats.tail_ids(chat)),
    )


def forbidden_tokens(chat: chats.Chat, vocabulary: int) -> np.ndarray:
    """[V] bool: special tokens but the end token, and ids that the tokenizer does not know."""
    forbidden = np.arange(vocabulary) >= len(chat.tokenizer)
    special = {i for i, token in chat.tokenizer.added_tokens_decoder.items() if token.special}
    forbidden[sorted(special | set(chat.tokenizer.all_special_ids))] = True
    forbidden[chat.end] = False
    return forbidden
