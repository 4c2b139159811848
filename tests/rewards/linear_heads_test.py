"""Reward heads: what they read of a response, their file, and the refusal of a base they do not know."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util

from meal_jax.hf import pretrained
from meal_jax.models.policy import Conditioning, Policy
from meal_jax.rewards import linear_heads
from meal_jax.rollout.decode import Responses

B, N, T, D = 2, 3, 5, 4


def responses(lengths):
    mask = np.arange(T) < np.asarray(lengths)[..., None]
    return Responses(
        jnp.zeros(mask.shape, jnp.int32), jnp.asarray(mask), jnp.zeros(mask.shape), jnp.ones(mask.shape[:2])
    )


@pytest.fixture
def base(chat_model):
    return pretrained.load_params(chat_model, pretrained.load_config(chat_model))


@pytest.fixture
def heads(base):
    rng = np.random.default_rng(0)
    return linear_heads.Heads(
        w=rng.normal(size=(2, 16)).astype(np.float32),
        b=np.array([0.5, -0.5], np.float32),
        temperature=np.array([1.0, 2.0], np.float32),
        objectives=("harmless", "helpful"),
        features="last",
        base=linear_heads.fingerprint(base),
        base_name="tiny",
        format="some format",
        facts={"command": "train", "pairs": 3},
    )


@pytest.mark.parametrize("kind", linear_heads.FEATURES)
def test_features_are_of_the_response_and_nothing_after_it(kind):
    hidden = np.random.default_rng(1).normal(size=(B, N, T + 1, D)).astype(np.float32)
    lengths = np.array([[1, 5, 3], [2, 4, 1]])
    for b in range(B):
        for n in range(N):
            hidden[b, n, lengths[b, n] + 1 :] = np.nan
    actual = linear_heads.features_of(jnp.asarray(hidden), responses(lengths).mask, kind)
    for b in range(B):
        for n in range(N):
            states = hidden[b, n, 1 : lengths[b, n] + 1]  # after each response token
            last, mean = states[-1], states.mean(axis=0)
            want = {"last": last, "mean": mean, "last+mean": np.concatenate([last, mean])}[kind]
            np.testing.assert_allclose(actual[b, n], want, rtol=1e-5)


@pytest.mark.parametrize("kind", linear_heads.FEATURES)
def test_the_reward_is_linear_in_the_features(heads, kind):
    rng = np.random.default_rng(2)
    hidden = jnp.asarray(rng.normal(size=(B, N, T + 1, D)), jnp.float32)
    answers = responses(rng.integers(1, T + 1, (B, N)))
    features = linear_heads.features_of(hidden, answers.mask, kind)
    heads = heads._replace(w=rng.normal(size=(2, features.shape[-1])).astype(np.float32), features=kind)
    want = np.einsum("bnf,kf->bnk", features, heads.w) + heads.b
    np.testing.assert_allclose(heads.reward(heads.params, None, answers, hidden), want, rtol=1e-4, atol=1e-5)


def test_a_decoder_reads_a_response_alike_whatever_pads_it(chat_model, base):
    policy = Policy(pretrained.load_config(chat_model), Conditioning(kind="none"))
    variables = {"params": {"transformer": base}}
    prefill = jax.jit(lambda tokens: policy.apply(variables, tokens, jnp.ones(tokens.shape, bool), method="prefill"))
    prompt = prefill(jnp.array([[1, 7, 8]]))

    @jax.jit
    def features(tokens):
        hidden = policy.apply(variables, prompt, jnp.zeros((1, 1, 2)), tokens[None, None], method="respond")
        return linear_heads.features_of(hidden, jnp.array([[[True, True, False, False]]]), "last+mean")

    first, same, other = (
        np.asarray(features(jnp.array([20, *rest]))) for rest in ((21, 2, 2, 0), (21, 9, 9, 0), (22, 2, 2, 0))
    )
    np.testing.assert_allclose(first, same, rtol=1e-5, atol=1e-6)
    assert np.abs(first - other).max() > 1e-3


def test_a_file_gives_back_what_was_saved(tmp_path, heads):
    path = tmp_path / "new" / "heads.safetensors"
    heads = heads._replace(w=np.asfortranarray(heads.w))  # as a transposed array lies in memory
    linear_heads.save(heads, path)
    again = linear_heads.load(path)
    for name in ("w", "b", "temperature"):
        np.testing.assert_array_equal(getattr(again, name), getattr(heads, name))
    assert again.base.keys() == heads.base.keys()
    for name in ("objectives", "features", "base_name", "format", "facts"):
        assert getattr(again, name) == getattr(heads, name)
    assert [file.name for file in path.parent.iterdir()] == ["heads.safetensors"]


def test_picking_follows_the_order_asked_for(heads):
    picked = heads.select(("helpful", "harmless"))
    np.testing.assert_array_equal(picked.w, heads.w[::-1])
    np.testing.assert_array_equal(picked.b, heads.b[::-1])
    assert picked.objectives == ("helpful", "harmless") and len(heads.select(("helpful",)).w) == 1
    with pytest.raises(ValueError, match=r"no reward head for funny; the file has harmless, helpful"):
        heads.select(("helpful", "funny"))


def test_files_that_are_no_heads_are_refused(tmp_path, heads, chat_model):
    with pytest.raises(FileNotFoundError, match=r"meal_jax\.reward_training\.heads"):
        linear_heads.load(tmp_path / "none.safetensors")
    with pytest.raises(ValueError, match="not a file of reward heads"):
        linear_heads.load(chat_model / "model.safetensors")
    path = tmp_path / "heads.safetensors"
    linear_heads.save(heads, path)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ValueError, match="damaged"):
        linear_heads.load(path)
    linear_heads.save(heads._replace(w=heads.w[:1]), path)
    with pytest.raises(ValueError, match="does not fit together"):
        linear_heads.load(path)


def perturbed(params, select, noise):
    rng = np.random.default_rng(0)
    flat = {path: np.asarray(leaf) for path, leaf in traverse_util.flatten_dict(params, sep="/").items()}
    flat |= {path: leaf * (1 + noise * rng.normal(size=leaf.shape)) for path, leaf in flat.items() if select(path)}
    return traverse_util.unflatten_dict(flat, sep="/")


def test_the_base_is_known_in_other_storage(heads, base):
    linear_heads.check_base(heads, base, "here")
    linear_heads.check_base(heads, jax.tree.map(lambda a: np.asarray(a).astype(jnp.bfloat16), base), "here")
    quantized = perturbed(base, lambda path: not path.endswith("norm"), 0.08)  # the size of 4-bit quantization's error
    linear_heads.check_base(heads, quantized, "here")


@pytest.mark.parametrize(
    "select, noise",
    [
        (lambda path: path == "final_norm", 0.05),  # a fine-tune moves norms
        (lambda path: path == "layers/mlp/down/kernel", 1.0),
        (lambda path: path == "embedding", 1.0),
    ],
)
def test_another_base_is_refused(heads, base, select, noise):
    with pytest.raises(ValueError, match=r"elsewhere is another model than the reward heads'.*hidden states of tiny"):
        linear_heads.check_base(heads, perturbed(base, select, noise), "elsewhere")


def test_a_base_of_another_size_is_refused(heads, base):
    narrow = base | {"final_norm": base["final_norm"][:8]}
    with pytest.raises(ValueError, match="final_norm differs in size"):
        linear_heads.check_base(heads, narrow, "elsewhere")
    with pytest.raises(ValueError, match="output differs in size"):
        linear_heads.check_base(heads, base | {"output": base["embedding"]}, "elsewhere")


def test_another_format_is_refused(heads):
    linear_heads.check_format(heads, "some format")
    with pytest.raises(ValueError, match=r"\[some format\], here it is \[another\]"):
        linear_heads.check_format(heads, "another")


@pytest.mark.parametrize(
    ("name", "objectives"),
    [
        ("", ("harmless", "helpful")),
        ("stories", ("cheerful", "dialogue")),
        ("reddit_small", ("faithful", "summary")),
    ],
)
def test_the_shipped_heads_load(name, objectives):
    heads = linear_heads.load(name)
    assert heads.objectives == objectives
    assert np.isfinite(heads.w).all() and (heads.temperature > 0).all() and heads.w.any(axis=1).all()
    file = linear_heads.SHIPPED / f"{name or linear_heads.DEFAULT}.safetensors"
    assert file.stat().st_size < 2**20
    assert '"/' not in json.dumps(heads.facts)  # no path of the machine that fitted them
    text = file.with_suffix(".md").read_text(encoding="utf-8")
    for name, report in heads.facts["reports"].items():
        assert f"| {name} | {report['fitted']} | {report['tested']} | {report['accuracy']:.3f} |" in text
        assert report["interval"][0] > 0.5
