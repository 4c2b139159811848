"""A Llama-architecture GGUF file turned into a Hugging Face directory: weights, settings, tokenizer, chat template.

    python -m meal_jax.models.gguf --source=FILE.gguf --out=DIR [--dtype=bfloat16]

It needs the gguf package (pip install "meal_jax[gguf]"), and no torch. Quantized weights are expanded to what they
stand for; nothing brings back what quantizing lost.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import tokenizers
from rich.progress import track
from tokenizers import decoders, models, pre_tokenizers, processors

from meal_jax.models import hf
from meal_jax.models.transformer import TransformerConfig

# Our parameter's path to the GGUF tensor's name.
NAMES = {
    "embedding": "token_embd.weight",
    "layers/attention_norm": "blk.{}.attn_norm.weight",
    "layers/attention/q/kernel": "blk.{}.attn_q.weight",
    "layers/attention/k/kernel": "blk.{}.attn_k.weight",
    "layers/attention/v/kernel": "blk.{}.attn_v.weight",
    "layers/attention/o/kernel": "blk.{}.attn_output.weight",
    "layers/mlp_norm": "blk.{}.ffn_norm.weight",
    "layers/mlp/gate/kernel": "blk.{}.ffn_gate.weight",
    "layers/mlp/up/kernel": "blk.{}.ffn_up.weight",
    "layers/mlp/down/kernel": "blk.{}.ffn_down.weight",
    "final_norm": "output_norm.weight",
    "output": "output.weight",
}
# What GGUF calls a pre-tokenizer to how it splits text before the merges.
PRE_TOKENIZERS = {
    "smollm": lambda: [
        pre_tokenizers.Digits(individual_digits=True),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
    ],
}
CONTROL, USER_DEFINED = 3, 4  # GGUF's token types: read as one piece wherever they stand; the former are special


def convert(source: str | Path, out: str | Path, dtype: str = "float32", progress: bool = False) -> None:
    """Writes the Hugging Face directory `out`; model.safetensors comes last, so its presence means completeness.

    Args:
      source: GGUF file.
      out: directory, made if it is not there.
      dtype: of the stored weights, "float32" or "bfloat16".
      progress: draws a bar on the terminal.

    Raises:
      ModuleNotFoundError: the gguf package is not installed.
      FileNotFoundError, ValueError: no such file; not a GGUF file; or it holds what is not implemented, named.
    """
    reader = _open(Path(source))
    meta = {key: field.contents() for key, field in reader.fields.items()}
    config = read_config(meta, {tensor.name for tensor in reader.tensors}, dtype)
    tokenizer, settings = read_tokenizer(meta)
    tensors = _read_tensors(reader.tensors, config, progress)

    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(out / "tokenizer.json"))
    settings["model_max_length"] = meta["llama.context_length"]
    _write_json(out / "tokenizer_config.json", settings)
    ids = {
        f"{ours}_token_id": meta[f"tokenizer.ggml.{theirs}_token_id"]
        for ours, theirs in (("bos", "bos"), ("eos", "eos"), ("pad", "padding"))
        if f"tokenizer.ggml.{theirs}_token_id" in meta
    }
    _write_json(out / "generation_config.json", ids)
    hf.write(out, config, tensors, ids | {"max_position_embeddings": meta["llama.context_length"]})


def _open(source: Path):
    try:
        import gguf
    except ModuleNotFoundError:
        raise ModuleNotFoundError('Reading GGUF files needs the gguf package: pip install "meal_jax[gguf]".') from None
    if not source.is_file():
        raise FileNotFoundError(f"There is no file {source}.")
    try:
        return gguf.GGUFReader(source)
    except (ValueError, IndexError, KeyError) as error:
        raise ValueError(f"{source} is not a GGUF file, or is cut short ({error}); fetch it again.") from error


def read_config(meta: Mapping[str, Any], names: set[str], dtype: str) -> TransformerConfig:
    """The decoder that a GGUF file's metadata and tensor names describe, refusing what is not implemented."""
    architecture = meta.get("general.architecture")
    if architecture != "llama":
        raise ValueError(f"The GGUF architecture {architecture!r} is not implemented ('llama' is). Use another file.")
    get = lambda key, *default: _get(meta, f"llama.{key}", *default)  # noqa: E731
    bad = []
    if get("expert_count", 0):
        bad.append("experts (llama.expert_count)")
    if get("rope.scaling.type", "none") != "none" or "rope_freqs.weight" in names:
        bad.append(f"rotary scaling ({get('rope.scaling.type', 'rope_freqs.weight')})")
    heads, width = get("attention.head_count"), get("embedding_length")
    head_dim = get("attention.key_length", width // heads)
    if get("rope.dimension_count", head_dim) != head_dim or get("attention.value_length", head_dim) != head_dim:
        bad.append("heads that are rotated in part or whose values differ in width from their keys")
    if bad:
        raise ValueError(f"The GGUF file holds what is not implemented: {'; '.join(bad)}. Use another file.")
    return TransformerConfig(
        vocab_size=get("vocab_size", len(_get(meta, "tokenizer.ggml.tokens"))),
        width=width,
        layers=get("block_count"),
        heads=heads,
        kv_heads=get("attention.head_count_kv", heads),
        head_dim=head_dim,
        hidden=get("feed_forward_length"),
        rope_base=float(get("rope.freq_base", 10_000.0)),
        # Stored as float32: the shortest decimal that means the same float32 is what was written (1e-05).
        norm_eps=float(str(np.float32(get("attention.layer_norm_rms_epsilon")))),
        tied=NAMES["output"] not in names,
        param_dtype=dtype,
    )


def _get(meta: Mapping[str, Any], key: str, *default):
    if key in meta:
        return meta[key]
    if default:
        return default[0]
    raise ValueError(f"The GGUF file has no entry {key}; it is incomplete.")


def _read_tensors(tensors, config: TransformerConfig, progress: bool) -> dict[str, np.ndarray]:
    """Hugging Face name to value, in torch's layout and the config's type; every tensor used once, none left out."""
    from gguf.quants import dequantize

    shapes = hf.param_shapes(config)
    wanted = {}  # GGUF name to (path, Hugging Face name)
    for weight in hf.WEIGHTS:
        if weight.path in shapes:
            theirs = NAMES[weight.path]
            for i, name in enumerate(weight.names(config.layers)):
                wanted[theirs.format(i)] = weight.path, name
    found = {tensor.name for tensor in tensors}
    if wanted.keys() != found:
        raise ValueError(
            "The GGUF file's tensors are not those of a Llama model: "
            f"missing {sorted(wanted.keys() - found) or 'none'}, left over {sorted(found - wanted.keys()) or 'none'}."
        )
    heads = {"layers/attention/q/kernel": config.heads, "layers/attention/k/kernel": config.kv_heads}
    out = {}
    for tensor in track(tensors, "Expanding weights", disable=not progress):
        path, name = wanted[tensor.name]
        value = dequantize(tensor.data, tensor.tensor_type)
        if path in heads:
            value = unpermute(value, heads[path])
        out[name] = value.astype(jnp.dtype(config.param_dtype))
    return out


def unpermute(rows: np.ndarray, heads: int) -> np.ndarray:
    """Puts the rows of a query or key matrix back in Hugging Face's order.

    Rotary positions turn pairs of a head's features. llama.cpp keeps the two of a pair side by side; Hugging Face keeps
    all firsts of a head, then all seconds.

    Args:
      rows: [heads · C, D].
      heads: how many heads the rows make.

    Returns:
      [heads · C, D].
    """
    pairs = rows.reshape(heads, -1, 2, rows.shape[-1])  # [heads, C/2, 2, D]
    return pairs.swapaxes(1, 2).reshape(rows.shape)


def read_tokenizer(meta: Mapping[str, Any]) -> tuple[tokenizers.Tokenizer, dict[str, Any]]:
    """The byte-level BPE tokenizer in a GGUF file's metadata, and the entries of its tokenizer_config.json."""
    model, pre = meta.get("tokenizer.ggml.model"), meta.get("tokenizer.ggml.pre")
    if model != "gpt2":
        raise ValueError(f"The GGUF tokenizer model {model!r} is not implemented ('gpt2', byte-level BPE, is).")
    if pre not in PRE_TOKENIZERS:
        raise ValueError(f"The GGUF pre-tokenizer {pre!r} is not implemented ({', '.join(PRE_TOKENIZERS)} is).")
    tokens = _get(meta, "tokenizer.ggml.tokens")
    types = _get(meta, "tokenizer.ggml.token_type")
    vocabulary = {token: i for i, token in enumerate(tokens)}
    if len(vocabulary) != len(tokens):
        raise ValueError("The GGUF file's vocabulary holds a token twice: an id would be lost.")
    merges = [tuple(merge.split(" ")) for merge in _get(meta, "tokenizer.ggml.merges")]
    tokenizer = tokenizers.Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(PRE_TOKENIZERS[pre]())
    tokenizer.decoder = decoders.ByteLevel()
    of_type = lambda wanted: [  # noqa: E731
        tokenizers.AddedToken(token, normalized=False)
        for token, type_ in zip(tokens, types, strict=True)
        if type_ == wanted
    ]
    tokenizer.add_special_tokens(of_type(CONTROL))
    tokenizer.add_tokens(of_type(USER_DEFINED))
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",  # takes tokenizer.json as it is
        "clean_up_tokenization_spaces": False,
    }
    for ours, theirs in (("bos", "bos"), ("eos", "eos"), ("unk", "unknown"), ("pad", "padding")):
        key = f"tokenizer.ggml.{theirs}_token_id"
        if key in meta:
            settings[f"{ours}_token"] = tokens[meta[key]]
    if "tokenizer.chat_template" in meta:
        settings["chat_template"] = meta["tokenizer.chat_template"]
    _add_ends(tokenizer, meta, settings)
    return tokenizer, settings


def _add_ends(tokenizer: tokenizers.Tokenizer, meta: Mapping[str, Any], settings: Mapping[str, str]) -> None:
    """Makes the tokenizer put its begin and end tokens around a text, where the file says that it does."""
    added = lambda end: [settings[f"{end}_token"]] if meta.get(f"tokenizer.ggml.add_{end}_token") else []  # noqa: E731
    before, after = added("bos"), added("eos")
    if before or after:
        tokenizer.post_processor = processors.TemplateProcessing(
            single=[*before, "$A", *after],
            special_tokens=[(token, tokenizer.token_to_id(token)) for token in dict.fromkeys(before + after)],
        )


def _write_json(path: Path, entries: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(entries, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m meal_jax.models.gguf", description=__doc__.splitlines()[0])
    parser.add_argument("--source", required=True, help="GGUF file")
    parser.add_argument("--out", required=True, help="directory to write")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32", help="of the stored weights")
    options = parser.parse_args(arguments)
    try:
        convert(options.source, options.out, options.dtype, progress=True)
    except (ModuleNotFoundError, OSError, ValueError) as error:
        sys.exit(f"error: {error}")
    print(f"Wrote {options.out}")


if __name__ == "__main__":
    main()
