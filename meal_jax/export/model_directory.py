"""A trained policy as a directory that servers of Hugging Face models read: merged weights, or a PEFT adapter.

    python -m meal_jax.export --checkpoint=WORKDIR --out=DIR [--kind=merged|adapter] [--preference=0.3,0.7] [--dtype=float32]

How a server then gives a preference depends on how the policy reads one (`config.conditioning.kind`):
  text    by the chat template's variable `preference`; --preference sets what it is where a request names none;
  prefix  with --preference, that one is baked in: its embeddings become tokens that the chat template writes; without, the
          prefix network goes along in NumPy, for servers that take embeddings;
  adapter with --preference, which must be given: the adapters become plain ones at that preference, and so can be merged;
  none    not at all.
Kinds of two parts are both. The weight-net goes along in NumPy wherever a request can name a preference. README.md in the
directory says all of this of that model. `preference.json` says it to programs, in token ids.

Letters: K objectives, P slots of a prefix, V vocabulary, D width, L layers, R rank.
"""

from __future__ import annotations

import copy
import dataclasses
import json
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import ml_collections
import numpy as np
from flax import traverse_util
from safetensors import safe_open
from safetensors.numpy import save_file

from meal_jax import methods
from meal_jax.export import card, chat_template, prompt_gap, rounding
from meal_jax.hf import families, pretrained, rules
from meal_jax.hf.storage import SINGLE, dense, write_index, write_json
from meal_jax.hf.weight_names import weights
from meal_jax.meal import step as meal
from meal_jax.models import lora
from meal_jax.models.policy import Conditioner, inserted
from meal_jax.models.transformer import TransformerConfig
from meal_jax.saved_run import Run

PyTree = Any
KINDS = ("merged", "adapter")
EXPORTED = Path(card.__file__).parent


def export(
    run: Run,
    out: str | os.PathLike,
    *,
    kind: str = "merged",
    preference: np.ndarray | None = None,
    dtype: str | None = None,
) -> rounding.Rounding | None:
    """Writes the directory `out`, whole or not at all.

    Args:
      run: as from `open_run`.
      out: a directory that is not there yet, or is empty.
      kind: "merged" (adapters added to the weights) or "adapter" (PEFT's LoRA format, beside the base model).
      preference: [K] to bake in, or for "text" to assume where a request names none.
      dtype: storage type of merged weights, one of `rounding.DTYPES`; None for the run's, config.policy.param_dtype.

    Returns:
      What merging adapters into that type lost; None where nothing was merged.

    Raises:
      ValueError: see `check`.
    """
    out, task = Path(out).expanduser(), run.task
    check(run.config, out, kind, preference, dtype)
    c, gap = task.conditioning, None
    baked = c.inserted == "prefix" and preference is not None
    tokenizer, slots = add_slots(run, task.conditioning.slots if baked else 0)
    template, exact = make_template(run, tokenizer, slots, preference)
    partial = out.with_name(out.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    params = lora.merge(run.state.policy, run.frozen.policy)
    if c.scales_adapters:
        params = lora.bake(params, preference)
        gap = None if c.prompt_per_candidate else prompt_gap.measure(run, preference)
    flat = traverse_util.flatten_dict(params, sep="/")
    lost, dtype = None, dtype or task.transformer.param_dtype
    if kind == "merged":
        lost = rounding.measure(flat, task.transformer, dtype)
        save_merged(partial, run, flat, slots, preference, dtype)
    else:
        save_adapter(partial, run, flat)
    suppressed = sorted({*(() if task.forbidden is None else np.flatnonzero(task.forbidden).tolist()), *slots})
    special = special_ids(run)
    write_json(partial / "generation_config.json", special | {"suppress_tokens": suppressed})
    if tokenizer is not None:
        save_tokenizer(partial, tokenizer, template, run.config.policy.source)
    extras = save_networks(partial, run, flat, baked or c.scales_adapters)
    if extras and (partial / SINGLE).exists():
        name_weights(partial)
    given = None if preference is None else [float(v) for v in preference]
    write_json(partial / "preference.json", describe(run, slots, given))
    write_json(partial / "meal_config.json", json.loads(run.config.to_json_best_effort()))
    (partial / "README.md").write_text(
        card.write(run, kind, given, slots, exact, extras, gap, dtype, lost), encoding="utf-8"
    )
    for path in partial.iterdir():  # safetensors' writer makes files that only their owner can read
        shutil.copymode(partial / "preference.json", path)
    if out.exists():  # empty
        out.rmdir()
    partial.rename(out)
    return lost


def check(
    config: ml_collections.ConfigDict, out: Path, kind: str, preference: np.ndarray | None, dtype: str | None = None
) -> None:
    """Refuses what cannot be exported, before anything is loaded.

    Raises:
      ValueError: names what is asked for, and what would do; or the run's method answers otherwise than by one policy.
    """
    method = methods.get(config.method)
    if method.answer is not meal.answer:
        raise ValueError(
            f"{method.label} answers a preference by more than telling one policy of it, and an export is one policy: ask it "
            "by `python -m meal_jax.generate` or `python -m meal_jax.serve`."
        )
    reads = config.conditioning.kind
    scaled, needs_tokens = reads.startswith("adapter"), inserted(reads) == "prefix"
    if kind not in KINDS:
        raise ValueError(f"--kind={kind} is not one of {', '.join(KINDS)}.")
    if dtype is not None and dtype not in rounding.DTYPES:
        raise ValueError(f"--dtype={dtype} is not one of {', '.join(rounding.DTYPES)}.")
    if dtype is not None and kind == "adapter":
        raise ValueError("--dtype is the storage type of merged weights; adapters are stored in float32: leave it out.")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ValueError(f"--out={out} is there and not empty: name another directory, or remove it.")
    if kind == "adapter" and not config.policy.lora_rank:
        raise ValueError("This run trained all weights (config.policy.lora_rank=0), it has no adapter: --kind=merged.")
    if kind == "adapter" and not config.policy.source:
        raise ValueError("This run's base was drawn at random (config.policy.source is empty): --kind=merged.")
    if kind == "adapter" and str(config.policy.source).endswith(".gguf"):
        raise ValueError(
            f"This run's base is a GGUF file, which PEFT cannot load ({config.policy.source}): --kind=merged, or train on the "
            "directory that `python -m meal_jax.hf.convert_gguf` makes of it."
        )
    if kind == "adapter" and needs_tokens and (preference is not None or scaled):
        raise ValueError(
            "A preference is baked as embeddings of new tokens, which an adapter does not hold: --kind=merged"
            + ("." if scaled else ", or leave out --preference to take the prefix network along.")
        )
    base = pretrained.read_json(pretrained.resolve(config.policy.source) / "config.json") if kind == "adapter" else {}
    if needs_tokens and base and families.has_vision(base):
        raise ValueError(
            "The base is Gemma 3 with vision, whose class in transformers does not generate from embeddings: a prefix could "
            "not be given to it under an adapter: --kind=merged, which is the text part alone."
        )
    if base and families.is_fused(base):
        raise ValueError(
            "The base's files fuse matrices that this run's adapters take apart (Phi 3), so PEFT would find no place for "
            "them: --kind=merged."
        )
    if scaled and preference is None:
        raise ValueError(
            f"This run's adapters read the preference (config.conditioning.kind={reads!r}), so an exported model answers "
            f"under one preference: give it, a weight for each of {', '.join(config.objectives)}, as --preference=0.3,0.7."
        )
    if reads == "none" and preference is not None:
        raise ValueError(
            "This run's policy reads no preference (config.conditioning.kind=none): leave out --preference."
        )


def add_slots(run: Run, slots: int) -> tuple[Any, list[int]]:
    """A tokenizer (None where the benchmark has none) with `slots` new special tokens, and their ids.

    Ids that the embedding has and the tokenizer does not are used up first: many models round V up.
    """
    if run.task.chat is None:
        return None, list(range(run.task.transformer.vocab_size, run.task.transformer.vocab_size + slots))
    tokenizer, names = copy.deepcopy(run.task.chat.tokenizer), slot_names(slots)
    tokenizer.add_tokens(names, special_tokens=True)
    return tokenizer, tokenizer.convert_tokens_to_ids(names)


def slot_names(slots: int) -> list[str]:
    """The tokens that stand for a baked prefix."""
    return [f"<|preference_{i}|>" for i in range(slots)]


def make_template(
    run: Run, tokenizer: Any, slots: Sequence[int], preference: np.ndarray | None
) -> tuple[str | None, bool]:
    """The exported chat template (None without a tokenizer), and whether its text gives exactly training's tokens."""
    if tokenizer is None:
        return None, False
    chat, conditioning = run.task.chat._replace(tokenizer=tokenizer), run.task.conditioning
    if conditioning.inserted == "text" and conditioning.scales_adapters:  # as the weights: that preference and no other
        table, levels = conditioning.table, len(conditioning.table[0]) - 1
        ids = [i for rows, weight in zip(table, preference, strict=True) for i in rows[round(weight * levels)]]
        template = chat_template.wrap(chat, f"{{{{- {chat_template.quote(chat_template.text_of(chat, ids))} -}}}}\n")
        return template, chat_template.spells(chat, template, ids)
    if conditioning.inserted == "text":
        template = chat_template.wrap(chat, chat_template.numerals(chat, conditioning, run.task.objectives, preference))
        exact = True
        for level in range(len(conditioning.table[0])):  # each numeral of every objective, though not in all mixtures
            weights = [level / (len(conditioning.table[0]) - 1)] * conditioning.objectives
            ids = [i for rows in conditioning.table for i in rows[level]]
            exact = exact and chat_template.spells(chat, template, ids, preference=weights)
        return template, exact
    template = chat_template.wrap(chat, f"{{{{- {chat_template.quote(''.join(slot_names(len(slots))))} -}}}}\n")
    return template, chat_template.spells(chat, template, slots)


def save_merged(
    directory: Path,
    run: Run,
    flat: Mapping[str, Any],
    slots: Sequence[int],
    preference: np.ndarray | None,
    dtype: str,
) -> None:
    """The decoder with its adapters added, and a row of the embedding for each baked slot; stored in `dtype`."""
    transformer = traverse_util.unflatten_dict(flat, sep="/")["transformer"]
    params = lora.fold(transformer, run.task.transformer.lora, dtype)
    config = dataclasses.replace(run.task.transformer, lora=None, param_dtype=dtype)
    if slots:
        params, config = bake(params, config, slots, prefix_of(run, flat, preference))
    source = {}
    if run.config.policy.source:
        source = json.loads((pretrained.resolve(run.config.policy.source) / "config.json").read_text(encoding="utf-8"))
    length = {name: source[name] for name in ("max_position_embeddings",) if name in source}
    pretrained.save(directory, config, params, settings=special_ids(run) | length)


def prefix_of(run: Run, flat: Mapping[str, Any], preference: np.ndarray) -> np.ndarray:
    """The prefix [P, D] of a preference [K], before the tokens' own scaling (Gemma's)."""
    network = {
        path.removeprefix("conditioner/"): leaf for path, leaf in flat.items() if path.startswith("conditioner/")
    }
    slots = Conditioner(run.task.transformer, run.task.conditioning).apply(
        {"params": traverse_util.unflatten_dict(network, sep="/")}, np.asarray(preference, np.float32)
    )
    return np.asarray(slots, np.float32) / run.task.transformer.embedding_scale


def bake(
    params: PyTree, config: TransformerConfig, ids: Sequence[int], rows: np.ndarray
) -> tuple[PyTree, TransformerConfig]:
    """Writes rows [P, D] into the embedding at `ids`, which makes room for them; the output's new rows are zeros."""
    size = max(config.vocab_size, max(ids) + 1)
    grown = {}
    for name in ("embedding", "output") if "output" in params else ("embedding",):
        table = np.asarray(params[name])
        grown[name] = np.concatenate([table, np.zeros((size - len(table), table.shape[1]), table.dtype)])
    grown["embedding"][list(ids)] = rows
    return {**params, **grown}, dataclasses.replace(config, vocab_size=size)


def save_adapter(directory: Path, run: Run, flat: Mapping[str, Any]) -> None:
    """PEFT's files: A [R, in] and B [out, R] of every adapted layer, float32; the base is left where it is."""
    config, tensors, modules = run.task.transformer, {}, set()
    entries = pretrained.read_json(pretrained.resolve(run.config.policy.source) / "config.json")
    vision = families.has_vision(entries)
    for weight in weights(config):
        layer = f"transformer/{weight.path.removesuffix('/kernel')}"
        if f"{layer}/lora_a" not in flat:
            continue
        factors = zip(weight.names(config.layers), *(np.asarray(flat[f"{layer}/lora_{f}"]) for f in "ab"), strict=True)
        for name, a, b in factors:
            module = name.removesuffix(".weight")
            if vision:  # the text part's place there; by its last name alone PEFT would adapt the vision tower too
                module = module.replace("model.layers.", "model.language_model.layers.", 1)
            modules.add(module if vision else module.rpartition(".")[2])
            tensors[f"base_model.model.{module}.lora_A.weight"] = dense(a.T, np.float32)
            tensors[f"base_model.model.{module}.lora_B.weight"] = dense(b.T, np.float32)
    save_file(tensors, directory / "adapter_model.safetensors", metadata={"format": "pt"})
    entries = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": pretrained.location(run.config.policy.source),
        "r": config.lora.rank,
        "lora_alpha": config.lora.alpha,  # PEFT scales by lora_alpha / r, as we do
        "lora_dropout": config.lora.dropout,
        "target_modules": sorted(modules),
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
    }
    write_json(directory / "adapter_config.json", entries)


def save_tokenizer(directory: Path, tokenizer: Any, template: str, source: str) -> None:
    """The tokenizer's files, the template inside tokenizer_config.json, where every reader looks.

    The class is the source's, unless transformers would replace rules of tokenizer.json under it, see `rules.keep`.
    """
    tokenizer.chat_template = template
    tokenizer.save_pretrained(directory, save_jinja_files=False)
    path = directory / "tokenizer_config.json"
    entries = json.loads(path.read_text(encoding="utf-8"))
    base = pretrained.resolve(source) / path.name
    before = json.loads(base.read_text(encoding="utf-8")) if base.exists() else {}
    # transformers 5 writes a class that servers on transformers 4 do not have, and facts of this machine.
    entries["tokenizer_class"] = before.get("tokenizer_class", entries["tokenizer_class"])
    if entries["tokenizer_class"] == "TokenizersBackend":
        entries["tokenizer_class"] = "PreTrainedTokenizerFast"
    write_json(path, {k: v for k, v in entries.items() if k not in ("backend", "is_local", "local_files_only")})
    rules.keep(tokenizer, directory)


def save_networks(directory: Path, run: Run, flat: Mapping[str, Any], baked: bool) -> tuple[str, ...]:
    """The small networks that a request's preference passes through, each with the NumPy file that applies it.

    Returns:
      Names of those written, of "weight_net" and "prefix".
    """
    kind, networks = run.task.conditioning.inserted, {}
    if run.setup.meal.net and not baked and kind != "none":
        tensors = traverse_util.flatten_dict(run.state.net, sep="/")
        networks["weight_net"] = {**tensors, "epsilon": np.float32(run.setup.net.epsilon)}
    if kind == "prefix" and not baked:
        width = run.task.transformer.width
        tensors = {path.removeprefix("conditioner/"): v for path, v in flat.items() if path.startswith("conditioner/")}
        decoder = run.task.transformer  # a multiplier of Granite's kind is applied to given embeddings too
        scale = np.float32(width**-0.5 * decoder.embedding_scale / decoder.embedding_multiplier)
        networks["prefix"] = {**tensors, "width": np.int32(width), "scale": scale}
    for name, tensors in networks.items():
        save_file({path: dense(v) for path, v in tensors.items()}, directory / f"{name}.safetensors")
        shutil.copyfile(EXPORTED / f"{name}.py", directory / f"{name}.py")
    return tuple(networks)


def name_weights(directory: Path) -> None:
    """An index of the one file of weights: vLLM reads every safetensors file beside it unless an index leaves it out."""
    with safe_open(directory / SINGLE, framework="numpy") as file:
        names = list(file.keys())
    with open(directory / SINGLE, "rb") as file:
        head = 8 + int.from_bytes(file.read(8), "little")
    write_index(directory, dict.fromkeys(names, SINGLE), (directory / SINGLE).stat().st_size - head)


def special_ids(run: Run) -> dict[str, int]:
    """Entries of config.json and generation_config.json: what ends an answer, and what fills rows."""
    bos = getattr(run.task.chat and run.task.chat.tokenizer, "bos_token_id", None)
    return {"eos_token_id": run.task.end, "pad_token_id": run.task.pad} | ({} if bos is None else {"bos_token_id": bos})


def describe(run: Run, slots: Sequence[int], preference: list[float] | None) -> dict[str, Any]:
    """preference.json: the conditioning in token ids. A prompt is a conversation's, then the preference's, then `tail`.

    The preference's are `slots` where one is baked, and under "text" those of table[k][round(w_k (levels - 1))] for each k.
    """
    c = run.task.conditioning
    return {
        "objectives": list(run.task.objectives),
        "kind": c.kind,
        "preference": preference,
        "slots": list(slots),
        "table": c.table,
        "tail": c.tail,
        "system": getattr(run.task.chat, "system", None),
    }
