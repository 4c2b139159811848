"""Fluency against a token-by-token computation, and where it is measured at all."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import stories
from meal_jax import build, fluency
from meal_jax.meal.step import Batch
from meal_jax.rollout.decode import Responses
from meal_jax.runtime import sharding


@pytest.fixture(scope="module")
def run():
    config = stories.get_config()
    config.policy.lora_rank = 2
    task = build.build_task(config)
    setup = build.build_setup(config, task)
    theta, frozen = build.make_policy(setup, task, jax.random.key(0), sharding.make_mesh(1, devices=jax.devices()[:1]))
    return task, setup, theta, frozen


def test_log_likelihood_is_that_of_the_frozen_base(run):
    import torch
    import transformers

    from meal_jax.hf import pretrained

    task, setup, _, frozen = run
    batch = Batch(*(jnp.asarray(field[:2]) for field in task.train[:3]))
    rng = np.random.default_rng(0)
    tokens = rng.integers(3, 512, (2, 2, 5)).astype(np.int32)
    mask = np.arange(5) < np.array([[[5], [2]], [[0], [4]]])
    tokens[~mask] = task.pad
    responses = Responses(tokens, mask, np.zeros(tokens.shape, np.float32), np.ones((2, 2), bool))
    result = jax.jit(lambda *args: fluency.log_likelihood(setup, *args))(frozen, batch, responses)
    model = transformers.LlamaForCausalLM.from_pretrained(pretrained.SHIPPED / "stories260k", dtype=torch.float32)
    for b, n in np.ndindex(2, 2):
        answer = tokens[b, n][mask[b, n]].tolist()
        whole = [*task.train.tokens[b][task.train.mask[b]].tolist(), *task.conditioning.tail, *answer]
        with torch.no_grad():
            logits = model(torch.tensor([whole])).logits[0]
        logits[:, torch.tensor(np.flatnonzero(task.forbidden))] = -torch.inf
        logp = torch.log_softmax(logits, -1)
        start = len(whole) - len(answer)
        want = np.mean([float(logp[start + t - 1, token]) for t, token in enumerate(answer)]) if answer else 0.0
        assert result[b, n] == pytest.approx(want, abs=1e-3)


def test_a_policy_from_random_weights_has_no_base_to_be_judged_by():
    from configs import toy

    config = toy.get_config()
    config.meal.beta = 0.1  # a reference is kept, and it speaks no language
    setup = build.build_setup(config, build.build_task(config))
    assert setup.base is not None and setup.judge_of_fluency is None


def test_distinct_pairs_by_hand():
    tokens = np.array([[[1, 2, 1, 2], [5, 6, 7, 8]], [[1, 2, 9, 9], [5, 5, 5, 5]]])
    mask = np.ones(tokens.shape, bool)
    mask[1, 0, 2:] = False
    # First preference: 12 21 12, and 12: two different of four. Second: 56 67 78, and 55 three times: four of six.
    np.testing.assert_allclose(fluency.distinct(tokens, mask), [2 / 4, 4 / 6])
    np.testing.assert_allclose(fluency.distinct(tokens, np.zeros(tokens.shape, bool)), [0.0, 0.0])
