"""The four additions that CONTRIBUTING.md describes, each built here as small as it can be and removed after its test."""

import functools
import sys
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util

from configs import toy
from meal_jax import build, methods, train
from meal_jax import config as base
from meal_jax.baselines import family, static
from meal_jax.data.prompts import Prompts
from meal_jax.hf import families, pretrained
from meal_jax.meal import step as meal
from meal_jax.meal.bilevel import token_loss
from meal_jax.meal.normalise import absorb
from meal_jax.meal.step import Batch
from meal_jax.models.policy import Conditioning
from meal_jax.models.transformer import TransformerConfig
from meal_jax.rewards import sources
from meal_jax.rollout.decode import Responses
from meal_jax.runtime import sharding
from meal_jax.tasks import attach_rewards
from meal_jax.tasks.task import Task

# ------------------------------------------------------------------------------------------------ a method


def imitate(setup, state, frozen, batch, rolled, scores):
    """One step of plain fine-tuning on every response alike."""

    def loss(theta):
        token, _ = meal.read(setup, theta, frozen, batch, rolled.w_hat, rolled.responses.tokens)
        return token_loss(token.logp, rolled.responses.mask)

    theta, opt, value, norm = family.descend(setup, loss, state.policy, state.policy_opt)
    stats = absorb(state.rewards, scores.rewards, setup.meal.stats_window)
    new = state.replace(step=state.step + 1, policy=theta, policy_opt=opt, rewards=stats)
    return new, {"loss/base": value, "grad_norm/policy": norm} | meal.describe(setup, rolled, scores.rewards)


IMITATION = methods.Method(
    "imitation",
    static.configure,
    cost=lambda c: methods.Cost(c.meal.candidates, updates=1, backward=1.0),
    update=imitate,
)


def test_a_method_is_a_row_of_METHODS(tmp_path, monkeypatch):
    monkeypatch.setitem(methods.METHODS, "imitate", IMITATION)
    c = toy.get_config()
    c.method, c.compare_with, c.steps, c.batch_size, c.meal.candidates = "imitate", (), 2, 16, 2
    c.policy.width = c.policy.hidden = 16
    c.policy.heads = c.policy.kv_heads = c.policy.layers = 1
    c.sampling.max_new, c.optim.warmup = 5, 0
    c.eval.prompts, c.eval.divisions, c.eval.bootstrap, c.tensorboard = 16, 1, 10, False

    result = train.run(c, tmp_path)["imitate"]

    assert result["method"] == "imitation" and result["step"] == 2 and result["compiled"] == 1
    assert result["budget"]["updates"] == 2 and result["budget"]["reward_calls"] == 2 * 16 * 2 * 2
    assert np.shape(result["points"]) == (2, 2) and result["points"] != result["before"]["points"]
    assert (tmp_path / "pareto.png").exists()


# ------------------------------------------------------------------------------------------------ a benchmark

PAD, END, FIRST, VOCABULARY = 0, 1, 2, 8


def echo_reward(params, batch: Batch, responses: Responses, hidden=None) -> jax.Array:
    """[B, N, 2]: how many response tokens repeat the prompt's last token, and how many do not."""
    same = responses.tokens == batch.tokens[:, -1, None, None]
    return jnp.stack([jnp.sum(hit & responses.mask, axis=-1) for hit in (same, ~same)], axis=-1)


def build_echo(config) -> Task:
    """What the module's `build` returns: prompts of one token, and a policy drawn at random."""

    def prompts(ids):
        tokens = FIRST + ids[:, None] % (VOCABULARY - FIRST)
        return Prompts(tokens.astype(np.int32), np.ones_like(tokens, bool), ids.astype(np.int32))

    width = config.policy.width
    c = config.conditioning
    return Task(
        objectives=tuple(config.objectives),
        transformer=TransformerConfig(
            vocab_size=VOCABULARY, width=width, layers=1, heads=1, kv_heads=1, head_dim=width, hidden=width
        ),
        conditioning=Conditioning(c.kind, len(config.objectives), c.slots, c.hidden),
        weights=None,
        train=prompts(np.arange(32)),
        test=prompts(np.arange(1000, 1000 + config.eval.prompts)),
        pad=PAD,
        end=END,
        forbidden=np.arange(VOCABULARY) == PAD,
        reward=echo_reward,
        reward_params={},
        reward_reads_base=False,
        reference=np.zeros(len(config.objectives)),
        truth=None,
        show=lambda tokens: " ".join(map(str, np.asarray(tokens).tolist())),
        name="echo",
    )


def test_a_benchmark_is_a_module_with_build(monkeypatch):
    monkeypatch.setitem(sys.modules, "meal_jax.tasks.echo", types.SimpleNamespace(build=build_echo))
    monkeypatch.setattr(build, "BENCHMARKS", (*build.BENCHMARKS, "echo"))
    c = base.default()
    c.task, c.policy.width, c.sampling.max_new, c.meal.candidates, c.batch_size = "echo", 8, 3, 4, 2
    base.check(c)
    task = build.build_task(c)
    assert not set(task.train.id.tolist()) & set(task.test.id.tolist())

    # The whole step, traced: every field of the Task has the shape and type that the step wants of it.
    setup, method = build.build_setup(c, task), methods.get("meal")
    mesh = sharding.make_mesh(1, 1, 1, jax.devices()[:1])
    state, frozen = build.abstract_state(setup, task, method.init, mesh)
    batch = Batch(*task.train.rows(np.arange(c.batch_size))[:3])
    new, metrics = jax.eval_shape(functools.partial(method.step, setup), state, frozen, batch)
    assert jax.tree.map(jnp.shape, new) == jax.tree.map(jnp.shape, state)
    assert {"reward/first/mean", "reward/second/mean"} <= metrics.keys()

    tokens = jnp.array([[[2, 2, 1], [5, 1, 0]]])
    answers = Responses(tokens, tokens != PAD, jnp.zeros(tokens.shape), jnp.ones((1, 2), bool))
    result = task.reward(task.reward_params, Batch(*task.train.rows([0])[:3]), answers, None)  # prompt 0 is the token 2
    np.testing.assert_array_equal(result, [[[2, 1], [0, 2]]])


# ------------------------------------------------------------------------------------------------ a model family

TINY = families.Family("TinyForCausalLM", "tiny", {"qk_norm": True}, families.BASE | {"rope_theta": 5e5}, windows="all")
ENTRIES = {
    "architectures": ["TinyForCausalLM"], "vocab_size": 12, "hidden_size": 8, "num_hidden_layers": 2,
    "num_attention_heads": 2, "num_key_value_heads": 1, "intermediate_size": 12, "sliding_window": 4,
}  # fmt: skip


def test_a_model_family_is_a_row_of_FAMILIES(tmp_path, monkeypatch):
    monkeypatch.setitem(families.FAMILIES, "tiny", TINY)
    config = families.parse(ENTRIES, "config.json")
    assert (config.family, config.qk_norm, config.head_dim, config.rope_base) == ("tiny", True, 4, 5e5)
    assert (config.window, config.local) == (4, (True, True))
    assert families.parse(families.entries(config), "config.json") == config

    rng = np.random.default_rng(0)
    shapes = pretrained.param_shapes(config)
    flat = {path: rng.normal(size=leaf.shape).astype(np.float32) for path, leaf in shapes.items()}
    pretrained.save(tmp_path, config, traverse_util.unflatten_dict(flat, sep="/"))
    read = traverse_util.flatten_dict(pretrained.load_params(tmp_path, pretrained.load_config(tmp_path)), sep="/")
    assert read.keys() == flat.keys() and "layers/attention/q_norm" in read
    for path in flat:
        np.testing.assert_array_equal(read[path], flat[path])


# ------------------------------------------------------------------------------------------------ a kind of reward


def make_words(source, config, task, objective):
    """`words:NUMBER` is minus the distance between a response's number of words and NUMBER."""
    expected = int(source.value)

    def reward(prompts, responses):
        return [-abs(len(response.split()) - expected) for response in responses]

    return lambda mesh, frozen: reward


def test_a_kind_of_reward_is_a_row_of_CALLS_and_its_maker(monkeypatch):
    monkeypatch.setitem(sources.CALLS, "words", sources.Call("number", "NUMBER", reads_text=True))
    monkeypatch.setitem(attach_rewards.MAKERS, "words", make_words)
    c = base.default()
    c.reward.sources = ("heads", "words:2")
    base.check(c)
    assert sources.describe(c) == ("first reward", "second reward (words: 2)") and sources.own_objectives(c) == (0,)
    task = build.build_task(c)
    scorer = attach_rewards.scorer(task, None, None)
    tokens = np.array([[[30, 31, 32], [30, 1, 0]]])
    device = np.array([[[0.5], [0.25]]], np.float32)  # of the benchmark's own objective
    scores, _ = scorer.complete(task.train.text[:1], tokens, tokens != 0, device)
    np.testing.assert_array_equal(scores, [[[0.5, -1.0], [0.25, 0.0]]])
    with pytest.raises(ValueError, match="'words:' names no number"):
        sources.parse("words:")
    with pytest.raises(ValueError, match=r"judge:QUESTION; words:NUMBER\."):
        sources.parse("no such kind")
