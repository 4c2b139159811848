"""A GGUF file as a source: its settings, tokenizer and weights. `convert_gguf` turns one into a Hugging Face directory.

Configs take the file itself. `unpack` writes settings and tokenizer to a directory; the weights stay in the file and are read
tensor by tensor. Supported are Llama (including Mistral), Qwen 2 and 3, and Gemma 3. It needs the gguf package (pip install
"meal_jax[gguf]") but not torch. Quantized weights are expanded; what quantization lost stays lost.

llama.cpp stores some things differently from Hugging Face: the rows of query and key matrices of "llama" in another order,
Gemma's norms as w + 1, and Llama 3.1's rotary scaling as divisors. It does not store Gemma 3's pattern of local layers and
their rotary base, nor Mistral's sliding window: a file of Mistral 7B v0.1 attends beyond it, here as there.
"""

from __future__ import annotations

import functools
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from meal_jax.hf import gguf_tokenizer
from meal_jax.hf.families import FAMILIES
from meal_jax.hf.families import entries as config_entries
from meal_jax.hf.gguf_tokenizer import get_entry
from meal_jax.hf.storage import GGUF, Tensor, write_json
from meal_jax.hf.weight_names import weights
from meal_jax.models.rotary import RopeScaling, rope_divisors
from meal_jax.models.transformer import TransformerConfig

# Parameter path → name of the GGUF tensor.
NAMES = {
    "embedding": "token_embd.weight",
    "layers/attention_norm": "blk.{}.attn_norm.weight",
    "layers/attention/q/kernel": "blk.{}.attn_q.weight",
    "layers/attention/k/kernel": "blk.{}.attn_k.weight",
    "layers/attention/v/kernel": "blk.{}.attn_v.weight",
    "layers/attention/q/bias": "blk.{}.attn_q.bias",
    "layers/attention/k/bias": "blk.{}.attn_k.bias",
    "layers/attention/v/bias": "blk.{}.attn_v.bias",
    "layers/attention/q_norm": "blk.{}.attn_q_norm.weight",
    "layers/attention/k_norm": "blk.{}.attn_k_norm.weight",
    "layers/attention/o/kernel": "blk.{}.attn_output.weight",
    "layers/attention_post_norm": "blk.{}.post_attention_norm.weight",
    "layers/mlp_norm": "blk.{}.ffn_norm.weight",
    "layers/mlp/gate/kernel": "blk.{}.ffn_gate.weight",
    "layers/mlp/up/kernel": "blk.{}.ffn_up.weight",
    "layers/mlp/down/kernel": "blk.{}.ffn_down.weight",
    "layers/mlp_post_norm": "blk.{}.post_ffw_norm.weight",
    "final_norm": "output_norm.weight",
    "output": "output.weight",
}
DIVISORS = "rope_freqs.weight"
ARCHITECTURES = {"llama": "llama", "qwen2": "qwen2", "qwen3": "qwen3", "gemma3": "gemma3_text"}  # GGUF's name → ours
GEMMA3_27B = 62  # layers of the one size whose query scale is not that of its head width, as in llama.cpp


def unpack(source: Path) -> Path:
    """A directory with the file's settings, its tokenizer and a link to the file; removed when this process ends.

    Raises:
      as `convert`.
    """
    state = source.stat()
    return Path(_unpacked(source, state.st_mtime_ns, state.st_size).name)


@functools.cache
def _unpacked(source: Path, _modified: int, _size: int) -> tempfile.TemporaryDirectory:
    reader, meta, config = open_file(source, "float32")
    tokenizer, settings = gguf_tokenizer.read_tokenizer(meta)
    hugging_face_tensors(reader, config)  # checks the tensors
    directory = tempfile.TemporaryDirectory(prefix="meal_jax_gguf_")
    out = Path(directory.name)
    ids = write_tokenizer(out, meta, tokenizer, settings)
    write_json(out / "config.json", config_entries(config) | ids)
    (out / GGUF).symlink_to(source)
    return directory


def open_tensors(source: Path) -> dict[str, Tensor]:
    """Hugging Face name → tensor, expanded when it is read."""
    reader, _, config = open_file(source, "float32")
    return hugging_face_tensors(reader, config)


def write_tokenizer(out: Path, meta: Mapping[str, Any], tokenizer, settings: dict[str, Any]) -> dict[str, Any]:
    """Writes the tokenizer's files; returns entries of config.json that do not follow from the weights."""
    context = get_entry(meta, f"{meta['general.architecture']}.context_length")
    tokenizer.save(str(out / "tokenizer.json"))
    write_json(out / "tokenizer_config.json", settings | {"model_max_length": context})
    ids = {
        f"{name}_token_id": meta[f"tokenizer.ggml.{gguf_name}_token_id"]
        for name, gguf_name in (("bos", "bos"), ("eos", "eos"), ("pad", "padding"))
        if f"tokenizer.ggml.{gguf_name}_token_id" in meta
    }
    write_json(out / "generation_config.json", ids)
    return ids | {"max_position_embeddings": context}


def open_file(source: Path, dtype: str):
    """The open file, its metadata and the configuration of its decoder."""
    try:
        import gguf
    except ModuleNotFoundError:
        raise ModuleNotFoundError('Reading GGUF files needs the gguf package: pip install "meal_jax[gguf]".') from None
    if not source.is_file():
        raise FileNotFoundError(f"There is no file {source}.")
    try:
        reader = gguf.GGUFReader(source)
    except (ValueError, IndexError, KeyError) as error:
        raise ValueError(f"{source} is not a GGUF file, or is cut short ({error}); fetch it again.") from error
    meta = {key: field.contents() for key, field in reader.fields.items()}
    parts = int(meta.get("split.count", 1))
    if parts > 1:
        raise ValueError(
            f"{source} is part {int(meta.get('split.no', 0)) + 1} of {parts} of a GGUF file that was split. Join the parts, "
            "all in one directory: `llama-gguf-split --merge FIRST_PART OUT.gguf` (of llama.cpp), and name OUT.gguf."
        )
    tensors = {tensor.name: tensor for tensor in reader.tensors}
    divisors = np.array(tensors[DIVISORS].data, np.float32) if DIVISORS in tensors else None
    return reader, meta, read_config(meta, tensors.keys(), dtype, divisors)


def read_config(meta: Mapping[str, Any], names, dtype: str, divisors: np.ndarray | None = None) -> TransformerConfig:
    """The decoder that a GGUF file describes; refuses features that are not implemented.

    Args:
      meta: the file's metadata.
      names: names of its tensors.
      dtype: storage type of the weights.
      divisors: of the rotary frequencies [C/2], or None.
    """
    architecture = meta.get("general.architecture")
    if architecture not in ARCHITECTURES:
        known = ", ".join(ARCHITECTURES)
        raise ValueError(f"The GGUF architecture {architecture!r} is not implemented ({known} are). Use another file.")
    family = FAMILIES[ARCHITECTURES[architecture]]

    def own(key: str, *default: Any) -> Any:
        return get_entry(meta, f"{architecture}.{key}", *default)

    unimplemented = []
    if own("expert_count", 0):
        unimplemented.append(f"experts ({architecture}.expert_count)")
    heads, width = own("attention.head_count"), own("embedding_length")
    head_dim = own("attention.key_length", width // heads)
    if own("rope.dimension_count", head_dim) != head_dim or own("attention.value_length", head_dim) != head_dim:
        unimplemented.append("heads that are rotated in part or whose values differ in width from their keys")
    base = float(own("rope.freq_base", 10_000.0))
    kind = own("rope.scaling.type", "none")
    scaling = RopeScaling("linear", float(own("rope.scaling.factor"))) if kind == "linear" else None
    if divisors is not None:
        kind, scaling = "as in Llama 3.1", _scaling(divisors, base, head_dim)
    if scaling is None and kind != "none":
        unimplemented.append(f"rotary scaling ({kind}), other than linear or Llama 3.1's")
    if unimplemented:
        raise ValueError(f"The GGUF file holds what is not implemented: {'; '.join(unimplemented)}. Use another file.")
    return TransformerConfig(
        vocab_size=own("vocab_size", len(get_entry(meta, "tokenizer.ggml.tokens"))),
        width=width,
        layers=own("block_count"),
        heads=heads,
        kv_heads=own("attention.head_count_kv", heads),
        head_dim=head_dim,
        hidden=own("feed_forward_length"),
        rope_base=base,
        rope_scaling=scaling,
        # Stored as float32; the shortest decimal of the same float32 is the original value (1e-05).
        norm_eps=float(str(np.float32(own("attention.layer_norm_rms_epsilon")))),
        tied=NAMES["output"] not in names,
        param_dtype=dtype,
        family=family.model_type,
        **family.fixed,
        **(_gemma3(own, heads, width, head_dim) if architecture == "gemma3" else {}),
    )


def _scaling(divisors: np.ndarray, base: float, head_dim: int) -> RopeScaling | None:
    """Llama 3.1's scaling with these divisors [C/2]; None if none with its other constants has them."""
    scaling = RopeScaling("llama3", float(divisors.max()))
    frequency = base ** (-np.arange(0, head_dim, 2, dtype=np.float32) / head_dim)
    expected = rope_divisors(frequency, scaling)
    return scaling if divisors.shape == expected.shape and np.allclose(divisors, expected, rtol=1e-3) else None


def _gemma3(own, heads: int, width: int, head_dim: int) -> dict[str, Any]:
    """Fields that only Gemma 3 has; its files leave out the constants, which are from llama.cpp's code."""
    layers, window = own("block_count"), own("attention.sliding_window", 0)
    pattern = own("attention.sliding_window_pattern", 6)
    is_local = list(pattern) if isinstance(pattern, list) else [(i + 1) % pattern != 0 for i in range(layers)]
    local = tuple(map(bool, is_local)) if window else ()
    return {
        "window": window if any(local) else 0,
        "local": local if any(local) else (),
        "local_rope_base": float(own("rope.freq_base_swa", 10_000.0)),
        "query_scale": float(width // heads if layers == GEMMA3_27B else head_dim) ** -0.5,
        "logit_softcap": own("final_logit_softcapping", None),
        "activation": "gelu_tanh",
    }


def hugging_face_tensors(reader, config: TransformerConfig) -> dict[str, Tensor]:
    """Hugging Face name → tensor in torch's layout, expanded when it is read; every tensor is used once, none is left out."""
    from gguf.quants import dequantize

    expected = {}  # GGUF name → (path, Hugging Face name)
    for weight in weights(config):
        for i, name in enumerate(weight.names(config.layers)):
            expected[NAMES[weight.path].format(i)] = weight.path, name
    stored = {tensor.name for tensor in reader.tensors} - ({DIVISORS} if config.rope_scaling else set())
    if expected.keys() != stored:
        raise ValueError(
            f"The GGUF file's tensors are not those of a {FAMILIES[config.family].architecture}: "
            f"missing {sorted(expected.keys() - stored) or 'none'}, left over {sorted(stored - expected.keys()) or 'none'}."
        )
    for kind, tensor in {tensor.tensor_type: tensor for tensor in reader.tensors}.items():
        try:
            dequantize(tensor.data[:1], kind)
        except NotImplementedError:
            raise ValueError(
                f"The GGUF file's quantization {kind.name} is not implemented. Use another file."
            ) from None
    heads = {"layers/attention/q/kernel": config.heads, "layers/attention/k/kernel": config.kv_heads}

    def expand(tensor, path, index):
        value = dequantize(tensor.data, tensor.tensor_type)
        if config.family == "llama" and path in heads:
            value = unpermute(value, heads[path])
        return (value - 1.0 if config.norm_plus_one and path.endswith("_norm") else value)[index]

    return {
        expected[tensor.name][1]: Tensor(
            tuple(int(n) for n in reversed(tensor.shape)),
            "F32",
            functools.partial(expand, tensor, expected[tensor.name][0]),
        )
        for tensor in reader.tensors
        if tensor.name in expected
    }


def unpermute(rows: np.ndarray, heads: int) -> np.ndarray:
    """Puts the rows of a query or key matrix back in Hugging Face's order.

    Rotary positions rotate pairs of a head's features. llama.cpp stores the two of a pair next to each other; Hugging Face
    stores first all first ones of a head, then all second ones.

    Args:
      rows: [heads · C, D].
      heads: number of heads in the rows.

    Returns:
      [heads · C, D].
    """
    pairs = rows.reshape(heads, -1, 2, rows.shape[-1])  # [heads, C/2, 2, D]
    return pairs.swapaxes(1, 2).reshape(rows.shape)
