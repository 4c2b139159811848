"""Random parameters, and a tiny random Llama in torch: the reference that our decoder is held against."""

import functools

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


@pytest.fixture(scope="session")
def torch_llama(tmp_path_factory):
    """Function of LlamaConfig entries that gives (torch model, directory); torch models are made once a session.

    The sizes and scales are chosen so that mistakes show: weights large enough for logits of several units, norms that
    are not ones, an epsilon and a rotary base that are not the defaults, a head width that is not width / heads.
    """
    torch = pytest.importorskip("torch", reason="torch, the reference, is not installed")
    transformers = pytest.importorskip("transformers")
    torch.set_num_threads(1)  # waiting threads cost a hundred times the work of so small a model

    @functools.cache
    def make(tied=True, **entries):
        sizes = dict(
            vocab_size=61,
            hidden_size=24,
            num_hidden_layers=3,
            num_attention_heads=4,
            num_key_value_heads=2,
            head_dim=8,
            intermediate_size=40,
            rms_norm_eps=1e-2,
            rope_parameters={"rope_type": "default", "rope_theta": 50.0},
            initializer_range=0.3,
            max_position_embeddings=256,
            tie_word_embeddings=tied,
            bos_token_id=None,
            eos_token_id=None,
            attn_implementation="eager",
        )
        torch.manual_seed(0)
        model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**(sizes | entries))).float().eval()
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if "norm" in name:
                    parameter.uniform_(0.5, 1.5)
        directory = tmp_path_factory.mktemp("llama")
        model.save_pretrained(directory)
        return model, directory

    return make
