"""Hugging Face's tensor names: each parameter of the decoder and its tensor, the one table for reading and writing.

Letters: L layers.
"""

from __future__ import annotations

from typing import NamedTuple

from meal_jax.models.transformer import TransformerConfig

# Fused tensor's last name → the names of its parts, from its first row on.
FUSED = {
    "self_attn.qkv_proj": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "mlp.gate_up_proj": ("mlp.gate_proj", "mlp.up_proj"),
}


class Weight(NamedTuple):
    """One parameter and its tensor.

    Attributes:
      path: the parameter's path; "layers/..." is stacked [L, ...].
      name: the tensor's name; "{}" stands for the layer's index.
      transposed: the tensor is a linear layer's matrix: torch stores [out, in], the parameter is [in, out].
    """

    path: str
    name: str
    transposed: bool = False

    def names(self, layers: int) -> list[str]:
        """Names of the parameter's tensors: one per layer, or one."""
        return [self.name.format(i) for i in range(layers)] if "{}" in self.name else [self.name]


LINEAR = {
    "attention/q": "self_attn.q_proj",
    "attention/k": "self_attn.k_proj",
    "attention/v": "self_attn.v_proj",
    "attention/o": "self_attn.o_proj",
    "mlp/gate": "mlp.gate_proj",
    "mlp/up": "mlp.up_proj",
    "mlp/down": "mlp.down_proj",
}
NORMS = {"attention_norm": "input_layernorm", "mlp_norm": "post_attention_layernorm"}
# With norms after a layer's parts: Hugging Face's "post_attention_layernorm" is then another norm.
POST_NORMS = {"attention_post_norm": "post_attention_layernorm", "mlp_post_norm": "post_feedforward_layernorm"}
FOUR_NORMS = {"attention_norm": "input_layernorm", "mlp_norm": "pre_feedforward_layernorm"} | POST_NORMS
QK_NORMS = {"attention/q_norm": "self_attn.q_norm", "attention/k_norm": "self_attn.k_norm"}


def weights(config: TransformerConfig) -> tuple[Weight, ...]:
    """The decoder's parameters without adapters, and their tensors: the one table for reading and writing."""

    def layer(path: str, name: str, leaf: str, transposed: bool = False) -> Weight:
        return Weight(f"layers/{path}", f"model.layers.{{}}.{name}.{leaf}", transposed)

    norms = NORMS
    if config.post_norms:
        norms = FOUR_NORMS if config.pre_norms else POST_NORMS
    norms = norms | (QK_NORMS if config.qk_norm else {})
    biased = list(LINEAR)[:3] if config.qkv_bias else []
    return (
        Weight("embedding", "model.embed_tokens.weight"),
        *(layer(f"{path}/kernel", name, "weight", transposed=True) for path, name in LINEAR.items()),
        *(layer(f"{path}/bias", LINEAR[path], "bias") for path in biased),
        *(layer(path, name, "weight") for path, name in norms.items()),
        Weight("final_norm", "model.norm.weight"),
        *(() if config.tied else (Weight("output", "lm_head.weight"),)),
    )
