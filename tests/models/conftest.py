"""Random parameters, and tiny random decoders in torch: the reference that ours is held against."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from meal_jax.models.policy import Conditioning, Policy

NONE = Conditioning(kind="none")


@pytest.fixture(scope="session")
def random_params():
    """Function of a TransformerConfig (and a Conditioning) that gives the policy's parameters, none of them 0 or 1.

    Only shapes come from `Policy.init`: compiling it takes seconds, and its ones and zeros would hide mistakes.
    """

    def make(config, conditioning=NONE, seed=0):
        w = jnp.zeros((1, 1, conditioning.objectives))
        args = jnp.zeros((1, 4), jnp.int32), jnp.ones((1, 4), bool), w, jnp.zeros((1, 1, 3), jnp.int32)
        shapes = jax.eval_shape(Policy(config, conditioning).init, jax.random.key(0), *args)["params"]
        rng = np.random.default_rng(seed)

        def draw(path, leaf):
            if "norm" in jax.tree_util.keystr(path):
                return jnp.asarray(rng.uniform(0.5, 1.5, leaf.shape), leaf.dtype)
            return jnp.asarray(rng.normal(0, leaf.shape[-1] ** -0.5, leaf.shape), leaf.dtype)

        return jax.tree_util.tree_map_with_path(draw, shapes)

    return make


SIZES = dict(
    vocab_size=61,
    hidden_size=24,
    num_hidden_layers=3,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=8,
    intermediate_size=40,
    rms_norm_eps=1e-2,
    initializer_range=0.3,
    max_position_embeddings=256,
    tie_word_embeddings=False,
    bos_token_id=None,
    eos_token_id=None,
    pad_token_id=None,
    attn_implementation="eager",
)
PLAIN = {"rope_type": "default", "rope_theta": 50.0}
MIXED = ["sliding_attention", "full_attention", "sliding_attention"]
# Name of a case to (class of transformers, entries). Windows are shorter than the tests' prompts, caps low enough to bite.
DECODERS = {
    "llama": ("Llama", dict(rope_parameters=PLAIN)),
    "llama, tied": ("Llama", dict(rope_parameters=PLAIN, tie_word_embeddings=True, num_key_value_heads=1)),
    "llama 3.1": (
        "Llama",
        dict(
            rope_parameters={
                "rope_type": "llama3",
                "rope_theta": 50.0,
                "factor": 4.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 24,
            },
            num_key_value_heads=4,
        ),
    ),
    "llama, linear": ("Llama", dict(rope_parameters=PLAIN | {"rope_type": "linear", "factor": 3.0})),
    "mistral": ("Mistral", dict(rope_parameters=PLAIN, sliding_window=6)),
    "qwen2": ("Qwen2", dict(rope_parameters=PLAIN)),
    "qwen2, windows": (
        "Qwen2",
        dict(rope_parameters=PLAIN, use_sliding_window=True, sliding_window=5, max_window_layers=1),
    ),
    "qwen3": ("Qwen3", dict(rope_parameters=PLAIN, tie_word_embeddings=True)),
    "gemma2": (
        "Gemma2",
        dict(
            rope_parameters=PLAIN,
            sliding_window=6,
            query_pre_attn_scalar=12,
            attn_logit_softcapping=4.0,
            final_logit_softcapping=9.0,
            tie_word_embeddings=True,
        ),
    ),
    "gemma3": (
        "Gemma3",
        dict(
            rope_parameters={
                "full_attention": PLAIN | {"rope_type": "linear", "factor": 4.0},
                "sliding_attention": {"rope_type": "default", "rope_theta": 20.0},
            },
            sliding_window=6,
            layer_types=MIXED,
            query_pre_attn_scalar=12,
            tie_word_embeddings=True,
        ),
    ),
    "smollm3": ("SmolLM3", dict(rope_parameters=PLAIN, no_rope_layers=[1, 0, 1], tie_word_embeddings=True)),
    "smollm3, windows": (
        "SmolLM3",
        dict(rope_parameters=PLAIN, no_rope_layer_interval=2, use_sliding_window=True, sliding_window=5),
    ),
    "olmo2": ("Olmo2", dict(rope_parameters=PLAIN)),
    "granite": (
        "Granite",
        dict(
            rope_parameters=PLAIN,
            attention_multiplier=0.22,
            embedding_multiplier=3.0,
            residual_multiplier=0.7,
            logits_scaling=0.4,
            tie_word_embeddings=True,
        ),
    ),
}


@pytest.fixture(params=DECODERS)
def case(request):
    """The name of each case in turn."""
    return request.param


@pytest.fixture(scope="session")
def torch_decoder(tmp_path_factory):
    """Function of a case's name and more entries that gives (torch model, directory); models are made once a session.

    The sizes and scales are chosen so that mistakes show: weights large enough for logits of several units, norms that
    are not ones, biases that are not zeros, an epsilon and a rotary base that are not the defaults, a head width that is
    not width / heads.
    """
    torch = pytest.importorskip("torch", reason="torch, the reference, is not installed")
    transformers = pytest.importorskip("transformers")
    torch.set_num_threads(1)  # waiting threads cost a hundred times the work of so small a model

    @functools.cache
    def make(case):
        name, entries = DECODERS[case]
        settings = getattr(transformers, f"{name}TextConfig" if name == "Gemma3" else f"{name}Config")
        torch.manual_seed(0)
        model = getattr(transformers, f"{name}ForCausalLM")(settings(**(SIZES | entries))).float().eval()
        with torch.no_grad():
            for path, parameter in model.named_parameters():
                if "norm" in path:
                    low = -0.5 if "Gemma" in name else 0.5
                    # After a layer's parts, large: else Gemma's scaled, tied embeddings repeat the last token.
                    low += 2.0 if re.search("post_(attention|feedforward)", path) and "Gemma" in name else 0.0
                    parameter.uniform_(low, low + 1.0)
                if path.endswith("bias"):
                    parameter.normal_(0, 0.5)
        directory = tmp_path_factory.mktemp("decoder")
        model.save_pretrained(directory)
        return model, directory

    return make
