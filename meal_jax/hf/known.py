"""Sizes of published models, as entries of their config.json, for work that needs no weights: plans, estimates, compilation.

Training always reads a model's own files. `families.FAMILIES` has what a family's files leave out.
"""

from __future__ import annotations

from typing import Any

LLAMA2 = {"architectures": ["LlamaForCausalLM"], "vocab_size": 32_000, "rms_norm_eps": 1e-5, "rope_theta": 1e4}
LLAMA31 = {
    "architectures": ["LlamaForCausalLM"],
    "vocab_size": 128_256,
    "rms_norm_eps": 1e-5,
    "rope_theta": 5e5,
    "rope_scaling": {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    },
}
QWEN3 = {"architectures": ["Qwen3ForCausalLM"], "vocab_size": 151_936, "rms_norm_eps": 1e-6, "rope_theta": 1e6}
SMOLLM2 = {
    "architectures": ["LlamaForCausalLM"],
    "vocab_size": 49_152,
    "rms_norm_eps": 1e-5,
    "rope_theta": 1e5,
    "tie_word_embeddings": True,
}


def _decoder(family: dict, width: int, hidden: int, layers: int, heads: int, kv_heads: int, **others) -> dict[str, Any]:
    sizes = {
        "hidden_size": width,
        "intermediate_size": hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
    }
    return family | sizes | others


def _gpt2(width: int, layers: int, heads: int) -> dict[str, Any]:
    return {
        "architectures": ["GPT2ForSequenceClassification"],
        "model_type": "gpt2",
        "vocab_size": 50_257,
        "n_embd": width,
        "n_layer": layers,
        "n_head": heads,
        "n_positions": 1024,
        "layer_norm_epsilon": 1e-5,
        "activation_function": "gelu_new",
        "pad_token_id": 50_256,
        "id2label": {"0": "LABEL_0"},
    }


DECODERS = {
    "meta-llama/Llama-2-7b-hf": _decoder(LLAMA2, 4096, 11_008, 32, 32, 32),
    "meta-llama/Llama-2-13b-hf": _decoder(LLAMA2, 5120, 13_824, 40, 40, 40),
    "meta-llama/Llama-3.1-8B": _decoder(LLAMA31, 4096, 14_336, 32, 32, 8),
    "Qwen/Qwen3-8B": _decoder(QWEN3, 4096, 12_288, 36, 32, 8, head_dim=128),
    "HuggingFaceTB/SmolLM2-135M-Instruct": _decoder(SMOLLM2, 576, 1536, 30, 9, 3),
    "HuggingFaceTB/SmolLM2-1.7B-Instruct": _decoder(SMOLLM2 | {"rope_theta": 1.3e5}, 2048, 8192, 24, 32, 32),
}
# The reward models of rewards.formats.PRESETS.
CLASSIFIERS = {
    "Ray2333/gpt2-large-harmless-reward_model": _gpt2(1280, 36, 20),
    "Ray2333/gpt2-large-helpful-reward_model": _gpt2(1280, 36, 20),
    "Tristan/gpt2_reward_summarization": _gpt2(768, 12, 12),
    "mohameddhiab/humor-no-humor": {
        "architectures": ["DistilBertForSequenceClassification"],
        "model_type": "distilbert",
        "vocab_size": 30_522,
        "dim": 768,
        "n_layers": 6,
        "n_heads": 12,
        "hidden_dim": 3072,
        "max_position_embeddings": 512,
        "activation": "gelu",
        "pad_token_id": 0,
    },
    "CogComp/bart-faithful-summary-detector": {
        "architectures": ["BartForSequenceClassification"],
        "model_type": "bart",
        "vocab_size": 50_265,
        "d_model": 768,
        "encoder_layers": 6,
        "decoder_layers": 6,
        "encoder_attention_heads": 12,
        "decoder_attention_heads": 12,
        "encoder_ffn_dim": 3072,
        "decoder_ffn_dim": 3072,
        "max_position_embeddings": 1024,
        "activation_function": "gelu",
        "scale_embedding": False,
        "decoder_start_token_id": 2,
        "eos_token_id": 2,
        "pad_token_id": 1,
        "id2label": {"0": "HALLUCINATED", "1": "FAITHFUL"},
    },
    "OpenAssistant/reward-model-deberta-v3-large-v2": {
        "architectures": ["DebertaV2ForSequenceClassification"],
        "model_type": "deberta-v2",
        "vocab_size": 128_100,
        "hidden_size": 1024,
        "num_hidden_layers": 24,
        "num_attention_heads": 16,
        "intermediate_size": 4096,
        "max_position_embeddings": 512,
        "hidden_act": "gelu",
        "layer_norm_eps": 1e-7,
        "relative_attention": True,
        "position_buckets": 256,
        "norm_rel_ebd": "layer_norm",
        "share_att_key": True,
        "pos_att_type": "p2c|c2p",
        "position_biased_input": False,
        "max_relative_positions": -1,
        "pooler_hidden_act": "gelu",
        "pooler_hidden_size": 1024,
        "type_vocab_size": 0,
        "pad_token_id": 0,
        "id2label": {"0": "LABEL_0"},
    },
}
