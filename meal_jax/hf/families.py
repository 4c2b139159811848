"""Hugging Face's config.json of each family of decoders, both ways.

`FAMILIES` holds what a family's config.json leaves out. `parse` turns the entries into a TransformerConfig and refuses, by
name, what the decoder would compute wrongly. `entries` writes them back. Tensor names are in weight_names.py.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, NamedTuple

from meal_jax.models.rotary import RopeScaling
from meal_jax.models.transformer import TransformerConfig

# Fields of TransformerConfig that do not come from a file.
RUNTIME = ("dtype", "param_dtype", "attention", "remat", "unroll", "unstack_layers", "decoding", "lora")
ACTIVATIONS = {"silu": "silu", "gelu_pytorch_tanh": "gelu_tanh"}  # Hugging Face's name → ours


# Which layers slide: none; all, if there is a size; those from `max_window_layers` on, if switched on; by a period; those
# without rotation, if switched on.
WINDOWS = ("none", "all", "switched", "period", "unrotated")
# Granite's entries → fields of TransformerConfig.
MULTIPLIERS = {
    "attention_multiplier": "query_scale",
    "embedding_multiplier": "embedding_multiplier",
    "residual_multiplier": "residual_multiplier",
    "logits_scaling": "logit_divisor",
}


class Family(NamedTuple):
    """Models that one class of transformers serves.

    Attributes:
      architecture: that class.
      model_type: its name in config.json.
      fixed: fields of TransformerConfig with one value for the whole family.
      defaults: entries of config.json and the values that transformers takes if they are absent.
      activation: the entry that names the gate's activation.
      windows: which layers slide where `layer_types` does not say: one of WINDOWS.
      softcaps: config.json has the query's scale and the softcaps of attention and logits.
      local_rope: sliding layers have a rotary base of their own.
      multipliers: config.json has the entries MULTIPLIERS.
    """

    architecture: str
    model_type: str
    fixed: Mapping[str, Any]
    defaults: Mapping[str, Any]
    activation: str = "hidden_act"
    windows: str = "none"
    softcaps: bool = False
    local_rope: bool = False
    multipliers: bool = False


BASE = {"rms_norm_eps": 1e-6, "tie_word_embeddings": False, "hidden_act": "silu"}
QWEN = BASE | {
    "num_key_value_heads": 32,
    "use_sliding_window": False,
    "sliding_window": 4096,
    "max_window_layers": 28,
}
GEMMA = {
    "rms_norm_eps": 1e-6,
    "tie_word_embeddings": True,
    "hidden_activation": "gelu_pytorch_tanh",
    "hidden_size": 2304,
    "intermediate_size": 9216,
    "num_hidden_layers": 26,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 256,
    "query_pre_attn_scalar": 256,
    "sliding_window": 4096,
}
SANDWICH = {"norm_plus_one": True, "post_norms": True, "scaled_embedding": True}
FAMILIES = {
    family.model_type: family
    for family in (
        Family("LlamaForCausalLM", "llama", {}, BASE),
        Family(
            "MistralForCausalLM",
            "mistral",
            {},
            BASE | {"num_key_value_heads": 8, "sliding_window": 4096},
            windows="all",
        ),
        Family("Qwen2ForCausalLM", "qwen2", {"qkv_bias": True}, QWEN, windows="switched"),
        Family("Qwen3ForCausalLM", "qwen3", {"qk_norm": True}, QWEN | {"head_dim": 128}, windows="switched"),
        Family(
            "Gemma2ForCausalLM",
            "gemma2",
            SANDWICH,
            GEMMA
            | {
                "vocab_size": 256_000,
                "sliding_window_pattern": 2,
                "attn_logit_softcapping": 50.0,
                "final_logit_softcapping": 30.0,
            },
            "hidden_activation",
            windows="period",
            softcaps=True,
        ),
        Family(
            "Gemma3ForCausalLM",
            "gemma3_text",
            SANDWICH | {"qk_norm": True},
            GEMMA
            | {
                "vocab_size": 262_208,
                "sliding_window_pattern": 6,
                "rope_theta": 1_000_000.0,
                "rope_local_base_freq": 10_000.0,
            },
            "hidden_activation",
            windows="period",
            softcaps=True,
            local_rope=True,
        ),
        Family(
            "SmolLM3ForCausalLM",
            "smollm3",
            {},
            BASE
            | {
                "num_key_value_heads": 4,
                "tie_word_embeddings": True,
                "rope_theta": 2_000_000.0,
                "no_rope_layers": None,
                "no_rope_layer_interval": 4,
                "use_sliding_window": False,
            },
            windows="unrotated",
        ),
        Family(
            "Olmo2ForCausalLM",
            "olmo2",
            {"pre_norms": False, "post_norms": True, "qk_norm": True, "qk_norm_joint": True},
            BASE | {"rms_norm_eps": 1e-5},
        ),
        Family("GraniteForCausalLM", "granite", {}, BASE | dict.fromkeys(MULTIPLIERS, 1.0), multipliers=True),
    )
}
# Phi 3 and 4 compute what Mistral does, from fused tensors (`FUSED`); they are read, and written back, as Mistral.
PHI3 = {"sliding_window": None, "rms_norm_eps": 1e-5, "num_key_value_heads": None}
# Entries that change the computation and are not implemented; any value that is not in OFF is refused.
UNIMPLEMENTED = ("attention_bias", "mlp_bias", "rope_interleaved", "quantization_config", "use_bidirectional_attention")
OFF = (None, False, {})


def parse(c: Mapping[str, Any], where: Any) -> TransformerConfig:
    """The decoder that config.json's entries describe.

    Args:
      c: the entries.
      where: the file, for messages.

    Raises:
      ValueError: they ask for a feature that is not implemented, named in the message; or an entry is missing.
    """
    family, c = _family(c, where)
    c = {**family.defaults, **c}
    try:
        fields, bad = _fields(family, c)
        bad += [name for name in UNIMPLEMENTED if c.get(name) not in OFF]
        if not bad:
            return TransformerConfig(**fields, **family.fixed, family=family.model_type)
    except KeyError as error:
        raise ValueError(f"{where} has no entry {error}: it does not describe a {family.architecture}.") from None
    except (ValueError, TypeError) as error:
        raise ValueError(f"{where} does not describe a {family.architecture}: {error}") from None
    raise ValueError(f"{where} asks for what is not implemented: {'; '.join(bad)}. Use another model.")


def _fields(family: Family, c: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """Fields of TransformerConfig, and the features that the entries ask for and that are not implemented."""
    rope, bad = _rope(family, c)
    rotated = _rotated(family, c)
    windows, window_bad = _windows(family, c, rotated)
    bad += window_bad
    if c[family.activation] not in ACTIVATIONS:
        bad.append(f"{family.activation} {c[family.activation]} ({', '.join(ACTIVATIONS)} are)")
    if family.model_type == "gemma3_text" and c.get("attn_logit_softcapping") is not None:
        bad.append("attn_logit_softcapping in Gemma 3 (transformers passes it over)")

    def number(key: str) -> float | None:
        return float(c[key]) if family.softcaps and c.get(key) is not None else None

    fields = {
        "vocab_size": c["vocab_size"],
        "width": c["hidden_size"],
        "layers": c["num_hidden_layers"],
        "heads": c["num_attention_heads"],
        "kv_heads": c.get("num_key_value_heads") or c["num_attention_heads"],
        "head_dim": c.get("head_dim") or c["hidden_size"] // c["num_attention_heads"],
        "hidden": c["intermediate_size"],
        "norm_eps": float(c["rms_norm_eps"]),
        "rotated": rotated,
        "attention_softcap": number("attn_logit_softcapping"),
        "logit_softcap": number("final_logit_softcapping"),
        "activation": ACTIVATIONS.get(c[family.activation]),
        "tied": bool(c["tie_word_embeddings"]),
    }
    if family.softcaps and c.get("query_pre_attn_scalar") is not None:
        fields["query_scale"] = float(c["query_pre_attn_scalar"]) ** -0.5
    if family.multipliers:
        fields |= {field: float(c[entry]) for entry, field in MULTIPLIERS.items()}
    return fields | rope | windows, bad


def _family(c: Mapping[str, Any], where: Any) -> tuple[Family, Mapping[str, Any]]:
    """The family that config.json names, and the decoder's entries; for Gemma 3 with vision those of its text part."""
    architectures = _architectures(c)
    if has_vision(c) and isinstance(c.get("text_config"), Mapping):
        tied = c.get("tie_word_embeddings", True)  # the text part's own entry counts for nothing, as in transformers
        return FAMILIES["gemma3_text"], {**c["text_config"], "tie_word_embeddings": tied}
    if is_fused(c):
        return FAMILIES["mistral"], {**PHI3, **c}
    for family in FAMILIES.values():
        # transformers' class without a head writes its own name; AutoModelForCausalLM reads it.
        headless = "Gemma3TextModel" if family.local_rope else family.architecture.replace("ForCausalLM", "Model")
        if architectures in ([family.architecture], [headless]):
            return family, c
    llama, *others = (family.architecture for family in FAMILIES.values())
    known = ", ".join([llama, "Phi3ForCausalLM", *others])
    raise ValueError(
        f"{where} asks for what is not implemented: architecture {', '.join(architectures)} ({known} are). Use another model."
    )


def has_vision(c: Mapping[str, Any]) -> bool:
    """Whether config.json's entries are those of Gemma 3 with a vision tower, of which only the text part is read."""
    return _architectures(c) == ["Gemma3ForConditionalGeneration"]


def is_fused(c: Mapping[str, Any]) -> bool:
    """Whether config.json's entries are those of Phi 3 or 4, whose files hold fused tensors."""
    return _architectures(c) in (["Phi3ForCausalLM"], ["Phi3Model"])


def _architectures(c: Mapping[str, Any]) -> list[str]:
    """What config.json names. Where model_type is another decoder than architectures, it is the former, as in transformers."""
    named, of_type = c.get("architectures"), _by_model_type(c)
    decoders = [["Phi3ForCausalLM"], *([family.architecture] for family in FAMILIES.values())]
    return of_type if not named or (named in decoders and of_type in decoders) else named


def _by_model_type(c: Mapping[str, Any]) -> list[str]:
    """The decoder of the entry model_type."""
    kind = c.get("model_type")
    if kind in ("gemma3", "phi3"):
        return ["Gemma3ForConditionalGeneration" if kind == "gemma3" else "Phi3ForCausalLM"]
    return [FAMILIES[kind].architecture if kind in FAMILIES else f"model_type {kind}"]


def _rope(family: Family, c: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """Fields of rotary positions, and their unimplemented features; reads the old spelling and the new one."""
    settings = c.get("rope_scaling") or c.get("rope_parameters") or {}
    if not family.local_rope:
        base = settings.get("rope_theta") or c.get("rope_theta") or 10_000.0
        scaling, bad = _scaling(settings, c)
        return {"rope_base": float(base), "rope_scaling": scaling}, bad
    old = bool(c.get("rope_scaling")) or not settings
    everywhere = settings if old else settings.get("full_attention") or {}
    local = {} if old else settings.get("sliding_attention") or {}
    scaling, bad = _scaling(everywhere, c)
    if not old and settings.keys() - {"full_attention", "sliding_attention"}:
        bad.append("rope_parameters that are not split into full_attention and sliding_attention")
    if _scaling(local, c) != (None, []):
        bad.append("rotary scaling of sliding layers")
    return {
        "rope_base": float(everywhere.get("rope_theta") or c["rope_theta"]),
        "rope_scaling": scaling,
        "local_rope_base": float(local.get("rope_theta") or c["rope_local_base_freq"]),
    }, bad


def _scaling(settings: Mapping[str, Any], c: Mapping[str, Any]) -> tuple[RopeScaling | None, list[str]]:
    kind = settings.get("rope_type") or settings.get("type") or "default"
    bad = []
    if settings.get("partial_rotary_factor", c.get("partial_rotary_factor")) not in (None, 1.0):
        bad.append("partial_rotary_factor other than 1")
    if kind == "default":
        return None, bad
    if kind == "linear":
        return RopeScaling("linear", float(settings["factor"])), bad
    if kind != "llama3":
        return None, [*bad, f"rotary scaling of type {kind} (linear and llama3 are)"]
    factor, low, high = (float(settings[key]) for key in ("factor", "low_freq_factor", "high_freq_factor"))
    # transformers prefers the entry outside of the settings, where both are there.
    context = c.get("original_max_position_embeddings") or settings.get("original_max_position_embeddings")
    context = context or c["max_position_embeddings"]
    return RopeScaling("llama3", factor, low, high, int(context)), bad


def _rotated(family: Family, c: Mapping[str, Any]) -> tuple[bool, ...]:
    """For each layer whether it rotates queries and keys; () where all do.

    Raises:
      ValueError: config.json lists fewer layers than it has.
    """
    layers = c["num_hidden_layers"]
    if family.windows != "unrotated":
        return ()
    listed = c["no_rope_layers"]  # 1 where a layer rotates
    if listed is None:
        listed = [(i + 1) % c["no_rope_layer_interval"] for i in range(layers)]
    if len(listed) < layers:
        raise ValueError(f"no_rope_layers lists {len(listed)} of {layers} layers.")
    rotated = tuple(map(bool, listed[:layers]))
    return () if all(rotated) else rotated


def _windows(family: Family, c: Mapping[str, Any], rotated: tuple[bool, ...]) -> tuple[dict[str, Any], list[str]]:
    """Fields of sliding windows, and their unimplemented features."""
    layers, size = c["num_hidden_layers"], c.get("sliding_window")
    if family.windows == "all":
        local = (size is not None,) * layers
    elif family.windows == "switched":
        size = size if c["use_sliding_window"] else None
        local = tuple(size is not None and i >= c["max_window_layers"] for i in range(layers))
    elif family.windows == "unrotated":
        size = size if c["use_sliding_window"] else None
        local = tuple(size is not None and not rotates for rotates in rotated or (True,) * layers)
    elif "sliding_window_pattern" in c:
        period = c.get("_sliding_window_pattern") or c["sliding_window_pattern"]
        local = tuple((i + 1) % period != 0 for i in range(layers))
    else:
        local = (False,) * layers
    bad = []
    if c.get("layer_types"):
        listed = tuple(kind == "sliding_attention" for kind in c["layer_types"])
        others = sorted(set(c["layer_types"]) - {"sliding_attention", "full_attention"})
        if others:
            bad.append(f"layer_types {', '.join(others)}")
        elif len(listed) != layers:
            bad.append(f"layer_types of {len(listed)} layers where num_hidden_layers is {layers}")
        elif family.windows in ("none", "all") and listed != local:
            bad.append(f"layer_types in {family.architecture}")
        local = listed
    if any(local) and not size:
        bad.append("layers of sliding attention without a size, sliding_window")
    if bad or not any(local):
        return {}, bad
    return {"window": int(size), "local": local}, bad


def entries(config: TransformerConfig) -> dict[str, Any]:
    """The entries of config.json for a decoder: the inverse of `parse`.

    Raises:
      ValueError: the decoder does not belong to the family that it names.
    """
    family = FAMILIES[config.family]
    activation = {value: key for key, value in ACTIVATIONS.items()}[config.activation]
    out = {
        "architectures": [family.architecture],
        "model_type": family.model_type,
        "vocab_size": config.vocab_size,
        "hidden_size": config.width,
        "num_hidden_layers": config.layers,
        "num_attention_heads": config.heads,
        "num_key_value_heads": config.kv_heads,
        "head_dim": config.head_dim,
        "intermediate_size": config.hidden,
        family.activation: activation,
        "rms_norm_eps": config.norm_eps,
        "attention_bias": False,
        "mlp_bias": False,
        "tie_word_embeddings": config.tied,
        "torch_dtype": config.param_dtype,
        **_rope_entries(family, config),
        **_window_entries(family, config),
    }
    if family.softcaps:
        scalar = config.head_dim if config.query_scale is None else round(config.query_scale**-2)
        out["query_pre_attn_scalar"] = scalar  # transformers takes whole numbers
        out["attn_logit_softcapping"] = config.attention_softcap
        out["final_logit_softcapping"] = config.logit_softcap
    if family.multipliers:
        default = {"query_scale": config.head_dim**-0.5}
        out |= {entry: getattr(config, field) or default[field] for entry, field in MULTIPLIERS.items()}
    if family.windows == "unrotated":
        out["pad_token_id"] = None  # absent, transformers takes the published model's, a row that others may not have
        out["no_rope_layers"] = [int(rotates) for rotates in config.rotated or (True,) * config.layers]
    parsed = parse(out, "config.json")
    lost = [
        field.name
        for field in dataclasses.fields(config)
        if field.name not in RUNTIME and getattr(parsed, field.name) != getattr(config, field.name)
    ]
    if lost:
        raise ValueError(
            f"A {family.architecture} cannot be written with these fields of TransformerConfig as they are: "
            f"{', '.join(lost)}. Set `family` to the one that has them: {', '.join(FAMILIES)}."
        )
    return out


def _rope_entries(family: Family, config: TransformerConfig) -> dict[str, Any]:
    """Rotary entries, in the spelling of transformers 4 and most servers and in that of transformers 5."""
    scaling = {}
    if config.rope_scaling is not None:
        s = config.rope_scaling
        scaling = {"rope_type": s.kind, "factor": s.factor}
        if s.kind == "llama3":
            scaling |= {
                "low_freq_factor": s.low,
                "high_freq_factor": s.high,
                "original_max_position_embeddings": s.context,
            }
    new = {"rope_type": "default", "rope_theta": config.rope_base} | scaling
    out = {"rope_theta": config.rope_base, "rope_parameters": new}
    if family.local_rope:
        out["rope_local_base_freq"] = config.local_rope_base
        out["rope_parameters"] = {
            "full_attention": new,
            "sliding_attention": {"rope_type": "default", "rope_theta": config.local_rope_base},
        }
    return out | ({"rope_scaling": scaling} if scaling else {})


def _window_entries(family: Family, config: TransformerConfig) -> dict[str, Any]:
    size = config.window or None
    types = ["sliding_attention" if local else "full_attention" for local in config.local or (False,) * config.layers]
    if family.windows == "all":
        return {"sliding_window": size}
    if family.windows == "switched":
        first = types.index("sliding_attention") if size else config.layers
        switches = {"use_sliding_window": size is not None, "max_window_layers": first}
        return {"sliding_window": size, "layer_types": types} | switches
    if family.windows == "unrotated":
        return {"sliding_window": size, "layer_types": types, "use_sliding_window": size is not None}
    if family.windows == "period":
        return {"sliding_window": size or family.defaults["sliding_window"], "layer_types": types}
    return {}
