"""Adapters: they start as nothing, act as merged weights would, sit where they are told, and drop in training alone."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util

from meal_jax.models.lora import Linear, Lora, bake, block_scale, fold, is_adapter, merge, split
from meal_jax.models.policy import Conditioning, Policy
from meal_jax.models.transformer import Transformer, TransformerConfig

SMALL = TransformerConfig(vocab_size=29, width=16, layers=2, heads=4, kv_heads=2, head_dim=6, hidden=20)
LINEAR = ["attention/k", "attention/o", "attention/q", "attention/v", "mlp/down", "mlp/gate", "mlp/up"]
TOKENS = np.random.default_rng(0).integers(0, 29, (2, 6))


def run(module, tokens, deterministic=True):
    length = tokens.shape[1]
    causal = jnp.tril(jnp.ones((length, length), bool))[None, None]
    hidden, _ = module(
        module.embed(tokens)[:, None], jnp.arange(length)[None, None], causal, deterministic=deterministic
    )
    return module.unembed(hidden[:, 0])


@functools.partial(jax.jit, static_argnums=0)
def logits(config, params, dropout_key=None):
    """Logits [B, T, V] of TOKENS; training, with dropout, where a key is given."""
    rngs = {} if dropout_key is None else {"dropout": dropout_key}
    module = Transformer(config)
    return module.apply({"params": params}, TOKENS, deterministic=dropout_key is None, method=run, rngs=rngs)


def adapted(config):
    """Paths of the layers that carry an adapter, without "transformer/layers/"."""
    args = jnp.zeros((1, 2), jnp.int32), jnp.ones((1, 2), bool), jnp.zeros((1, 1, 2)), jnp.zeros((1, 1, 2), jnp.int32)
    policy = Policy(config, Conditioning(kind="prefix"))
    shapes = jax.eval_shape(policy.init, jax.random.key(0), *args)["params"]
    paths = traverse_util.flatten_dict(shapes, sep="/")
    return sorted({p.removeprefix("transformer/layers/").rsplit("/", 1)[0] for p in paths if "lora_" in p})


@pytest.mark.parametrize(
    ("targets", "layers"),
    [
        (r"attention/(q|k|v|o)$", LINEAR[:4]),
        (r"(q|v)$", ["attention/q", "attention/v"]),
        (r"mlp/", LINEAR[4:]),
        (r"", LINEAR),
    ],
)
def test_targets_pick_the_layers(targets, layers):
    assert adapted(dataclasses.replace(SMALL, lora=Lora(rank=2, targets=targets))) == layers


def test_a_new_adapter_leaves_the_base_model_and_differs_by_layer():
    config = dataclasses.replace(SMALL, lora=Lora(rank=3, targets=""))
    params = jax.jit(functools.partial(Transformer(config).init, method=run))(jax.random.key(0), TOKENS)["params"]
    a = params["layers"]["attention"]["q"]["lora_a"]
    b = params["layers"]["attention"]["q"]["lora_b"]
    assert (a.shape, b.shape) == ((2, 16, 3), (2, 3, 24))
    assert float(jnp.abs(a[0] - a[1]).max()) > 0.01
    base = split(params, lambda path: not is_adapter(path))[0]
    np.testing.assert_array_equal(logits(config, params), logits(SMALL, base))


def test_an_adapter_equals_its_merged_kernel(random_params):
    config = dataclasses.replace(SMALL, lora=Lora(rank=3, alpha=6.0, targets=""))
    params = random_params(config)["transformer"]
    flat = traverse_util.flatten_dict(params, sep="/")
    merged = {path: leaf for path, leaf in flat.items() if "lora_" not in path}
    for name in LINEAR:
        a, b = flat[f"layers/{name}/lora_a"], flat[f"layers/{name}/lora_b"]
        merged[f"layers/{name}/kernel"] += 6.0 / 3 * jnp.einsum("ldr,lrf->ldf", a, b)
    base = split(params, lambda path: not is_adapter(path))[0]
    merged = traverse_util.unflatten_dict(merged, sep="/")
    jax.tree.map(functools.partial(np.testing.assert_allclose, atol=1e-6), fold(params, config.lora), merged)
    expected = logits(SMALL, merged)
    np.testing.assert_allclose(logits(config, params), expected, atol=1e-4)
    assert float(jnp.abs(expected - logits(SMALL, base)).max()) > 0.1


def test_a_bfloat16_kernel_is_folded_in_float32():
    rng = np.random.default_rng(0)
    kernel = jnp.asarray(rng.normal(size=(2, 5, 4)), jnp.bfloat16)
    a, b = rng.normal(size=(2, 5, 3)).astype(np.float32), rng.normal(size=(2, 3, 4)).astype(np.float32)
    params = {"q": {"kernel": kernel, "lora_a": a, "lora_b": b}, "norm": {"scale": jnp.ones(5)}}
    folded = fold(params, Lora(rank=3, alpha=6.0))
    exact = np.asarray(kernel, np.float64) + 2.0 * a.astype(np.float64) @ b
    assert folded["q"].keys() == {"kernel"} and folded["q"]["kernel"].dtype == jnp.bfloat16
    assert folded["norm"]["scale"] is params["norm"]["scale"]
    wrong = np.abs(np.asarray(folded["q"]["kernel"], np.float64) - exact)
    assert np.all(
        wrong <= 2**-8 * np.abs(exact) + 1e-5
    )  # half a unit in the last of bfloat16's 8 bits: one rounding alone


def test_dropout_acts_in_training_alone(random_params):
    without, with_ = (
        dataclasses.replace(SMALL, lora=Lora(rank=2, alpha=2.0, dropout=rate, targets="attention"))
        for rate in (0.0, 0.5)
    )
    params = random_params(with_)["transformer"]
    base = logits(without, params)
    np.testing.assert_array_equal(logits(with_, params), base)
    first, second = (logits(with_, params, jax.random.key(i)) for i in (1, 2))
    assert float(jnp.abs(first - base).max()) > 0.01
    assert float(jnp.abs(first - second).max()) > 0.01
    np.testing.assert_array_equal(first, logits(with_, params, jax.random.key(1)))


def test_dropout_keeps_the_adapters_mean_and_spares_the_kernel():
    """One linear layer, many draws: their mean is the output without dropout; with an adapter of 0 none varies."""
    layer = Linear(3, Lora(rank=2, alpha=2.0, dropout=0.25, targets=""))
    rng = np.random.default_rng(1)
    params = {"kernel": rng.normal(size=(5, 3)), "lora_a": rng.normal(size=(5, 2)), "lora_b": rng.normal(size=(2, 3))}
    x = jnp.asarray(rng.normal(size=5))

    def draw(params, key):
        return layer.apply({"params": params}, x, False, rngs={"dropout": key})

    draws = jax.jit(jax.vmap(draw, (None, 0)))(params, jax.random.split(jax.random.key(0), 20_000))
    exact = x @ params["kernel"] + (x @ params["lora_a"]) @ params["lora_b"]
    error = float(jnp.abs(draws.mean(0) - exact).max())
    assert error < 5 * float(draws.std(0).max()) / 20_000**0.5
    silent = params | {"lora_b": np.zeros((2, 3))}
    assert float(jnp.ptp(jax.vmap(draw, (None, 0))(silent, jax.random.split(jax.random.key(0), 9)), axis=0).max()) == 0


@pytest.mark.parametrize("objectives", [2, 3])
def test_blocks_scaled_by_preferences_equal_dense_matrices_of_each_example(objectives):
    """y = x (W + (alpha / R) Σ_k K w_k A_k B_k), the matrix made for each preference; and `bake` makes the same one."""
    rank, alpha, rng = 6, 9.0, np.random.default_rng(0)
    layer = Linear(4, Lora(rank, alpha, targets=""))
    shapes = {"kernel": (5, 4), "lora_a": (5, rank), "lora_b": (rank, 4)}
    params = {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}
    x = rng.normal(size=(2, 3, 7, 5)).astype(np.float32)
    w = rng.dirichlet(np.ones(objectives), (2, 3)).astype(np.float32)
    scale = block_scale(jnp.asarray(w), rank)
    y = layer.apply({"params": params}, x, scale=scale[:, :, None])
    width = rank // objectives
    for b, n in np.ndindex(2, 3):
        dense = params["kernel"].astype(np.float64)
        for k in range(objectives):
            block = slice(k * width, (k + 1) * width)
            dense = (
                dense + alpha / rank * objectives * w[b, n, k] * params["lora_a"][:, block] @ params["lora_b"][block]
            )
        np.testing.assert_allclose(y[b, n], x[b, n] @ dense, rtol=2e-5, atol=2e-5)
        baked = fold({"q": bake(params, w[b, n])}, layer.lora)["q"]["kernel"]
        np.testing.assert_allclose(baked, dense, rtol=2e-5, atol=2e-5)
    uniform = block_scale(jnp.full((1, 1, objectives), 1 / objectives), rank)[:, :, None]
    plain = layer.apply({"params": params}, x)
    np.testing.assert_allclose(layer.apply({"params": params}, x, scale=uniform), plain, rtol=1e-5, atol=1e-5)
    assert float(jnp.abs(y - plain).max()) > 0.1


def test_a_rank_that_objectives_do_not_divide_is_refused():
    with pytest.raises(ValueError, match="rank 4 cannot be split into 3 blocks"):
        block_scale(jnp.ones((1, 1, 3)), 4)


def test_linear_computes_in_its_type_and_adds_its_bias():
    layer = Linear(3, use_bias=True, dtype=jnp.bfloat16)
    params = layer.init(jax.random.key(0), jnp.ones((2, 5)))["params"]
    assert {name: (leaf.shape, leaf.dtype) for name, leaf in params.items()} == {
        "kernel": ((5, 3), jnp.float32),
        "bias": ((3,), jnp.float32),
    }
    params["bias"] += 4.0
    y = layer.apply({"params": params}, jnp.ones((2, 5)))
    assert y.dtype == jnp.bfloat16
    np.testing.assert_allclose(y.astype(jnp.float32), jnp.ones((2, 5)) @ params["kernel"] + 4.0, atol=0.05)


def test_split_and_merge_are_inverse(random_params):
    config = dataclasses.replace(SMALL, lora=Lora(rank=2))
    params = random_params(config, Conditioning(kind="prefix"))
    trainable, frozen = split(params, is_adapter)
    paths = traverse_util.flatten_dict(trainable, sep="/").keys()
    assert {path.split("/")[0] for path in paths} == {"transformer", "conditioner"}
    assert all(path.startswith("conditioner/") or path.endswith(("/lora_a", "/lora_b")) for path in paths)
    assert not any(is_adapter(path) for path in traverse_util.flatten_dict(frozen, sep="/"))
    assert len(paths) == 2 * 4 + 4
    assert jax.tree.all(jax.tree.map(lambda a, b: a is b, merge(trainable, frozen), params))
