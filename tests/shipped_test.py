"""The models that the package holds: what they say, torch's logits on the same files, their size and their licence."""

import configparser
import fnmatch
import types
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from meal_jax.export import card
from meal_jax.hf import pretrained
from meal_jax.models.policy import Conditioning, Policy

STORIES = pretrained.SHIPPED / "stories260k"
ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def greedy():
    """Greedy tokens from <s>, and our logits at each of them."""
    config = pretrained.load_config("stories260k")
    policy, params = (
        Policy(config, Conditioning("none")),
        {"transformer": pretrained.load_params("stories260k", config)},
    )

    @jax.jit
    def logits(tokens):  # [T], <s> first
        first = tokens[None]
        prompt = policy.apply({"params": params}, first[:, :1], jnp.ones((1, 1), bool), method="prefill")
        answer = jnp.pad(first[:, None, 1:], ((0, 0), (0, 0), (0, 1)))
        hidden = policy.apply({"params": params}, prompt, jnp.zeros((1, 1, 2)), answer, method="respond")
        return policy.apply({"params": params}, hidden, method="unembed")[0, 0]

    tokens = np.zeros(48, np.int32)
    tokens[0] = 1
    for index in range(47):
        tokens[index + 1] = np.argmax(logits(tokens)[index])
    return tokens, np.asarray(logits(tokens))


def test_the_story_model_tells_its_story(greedy):
    text = pretrained.load_tokenizer("stories260k").decode(greedy[0], skip_special_tokens=True)
    assert text.startswith(
        "Once upon a time, there was a little girl named Lily. She loved to play outside in the park."
    )


def test_torch_has_the_same_logits(greedy):
    import torch
    import transformers

    model = transformers.LlamaForCausalLM.from_pretrained(STORIES, dtype=torch.float32)
    with torch.no_grad():
        reference = model(torch.tensor(greedy[0][None].astype(np.int64))).logits[0].numpy()
    np.testing.assert_allclose(greedy[1], reference, atol=1e-4, rtol=0)


def test_it_is_small_licensed_and_packed():
    files = {path.name: path.stat().st_size for path in STORIES.iterdir()}
    assert sum(files.values()) <= 600_000 and {"LICENSE", "README.md"} <= files.keys()
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    patterns = setup["options.package_data"]["meal_jax"].split()
    for name in files:
        assert any(fnmatch.fnmatch(f"shipped/stories260k/{name}", pattern) for pattern in patterns), name


def test_a_shipped_name_is_resolved_unless_a_directory_has_it(tmp_path, monkeypatch):
    assert pretrained.resolve("stories260k") == STORIES and not pretrained.is_shipped("../shipped/stories260k")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "stories260k").mkdir()
    assert pretrained.resolve("stories260k") == Path("stories260k")


def test_exports_name_a_shipped_base_so_that_others_find_it():
    assert pretrained.location("stories260k") == str(STORIES) and pretrained.location("some/model") == "some/model"
    run = types.SimpleNamespace(config=types.SimpleNamespace(policy=types.SimpleNamespace(source="stories260k")))
    assert card.base_name(run) == ("stories260k, shipped with meal_jax", False)  # and no hub id
