"""Text rewards on a stand-in model whose scores are known: batching, buckets, cache, mesh, and what is refused."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from meal_jax.classifiers.classifier import Classifier
from meal_jax.rewards import text
from meal_jax.rewards.formats import Encoded
from meal_jax.runtime import sharding

TABLE = np.random.default_rng(0).normal(size=(128, 2)).astype(np.float32)


def apply(params, tokens, mask, types):
    """Logits [R, 2]: the sum of the tokens' rows of a table, weighed by place and kind."""
    place = jnp.cumsum(mask, axis=-1) * (1 + types)
    return jnp.sum(jnp.where(mask[..., None], params[tokens] * place[..., None], 0.0), axis=1)


class Characters:
    """A tokenizer of characters."""

    model_max_length = 100

    def __call__(self, first, second=None, truncation=False, max_length=None, **_):
        ids = [ord(c) % 128 for c in first + (second or "")][:max_length]
        return {"input_ids": ids, "token_type_ids": [int(i >= len(first)) for i in range(len(ids))]}


def one_device():
    return sharding.make_mesh(1, 1, 1, jax.devices()[:1])


def make(mesh=None, label=1, **options):
    from meal_jax.rewards.formats import prompt_pair

    model = Classifier(apply, jnp.asarray(TABLE), 2, 90, 3, "fake", None)
    return text.classifier_reward(model, Characters(), prompt_pair, label, mesh or one_device(), **options)


def by_hand(prompt, response, label=1):
    both = (prompt + response)[:90]
    ids = np.array([ord(c) % 128 for c in both])
    weight = np.arange(1, len(ids) + 1) * np.where(np.arange(len(ids)) >= len(prompt), 2, 1)
    return np.sum(TABLE[ids, label].astype(np.float64) * weight)


def pairs(count, seed=0, longest=120):
    rng = np.random.default_rng(seed)

    def word():
        return "".join(map(chr, rng.integers(97, 123, rng.integers(1, longest // 2))))

    return [word() for _ in range(count)], [word() for _ in range(count)]


@pytest.mark.parametrize("label", [0, 1])
def test_scores_are_the_models_own_whatever_the_batch(label):
    prompts, responses = pairs(23)
    reward = make(label=label, batch_size=4)
    scores = reward(prompts, responses)
    assert scores.dtype == np.float32 and scores.shape == (23,)
    expected = [by_hand(p, r, label) for p, r in zip(prompts, responses, strict=True)]
    np.testing.assert_allclose(scores, expected, rtol=1e-5, atol=1e-3)
    alone = make(label=label, batch_size=1)  # to the bit: nothing is rounded, and neighbours do not matter
    np.testing.assert_array_equal([alone([p], [r])[0] for p, r in zip(prompts, responses, strict=True)], scores)


def test_buckets_are_few_and_bound_the_programs():
    assert [text.bucket(n, 1024) for n in (1, 32, 33, 64, 65, 513, 1024)] == [32, 32, 64, 64, 128, 1024, 1024]
    assert [text.bucket(n, 90) for n in (1, 33, 65, 90)] == [32, 64, 90, 90] and text.bucket(5, 20) == 20
    reward = make(batch_size=3)
    for seed in range(4):
        reward(*pairs(5 + 4 * seed, seed))
    assert reward.compiled._cache_size() == 3  # 32, 64 and 90 tokens, always 3 rows


def test_a_pair_is_scored_once_and_the_oldest_is_forgotten_first():
    reward = make(batch_size=4, cache_size=3)
    first = reward(["p", "p", "q"], ["x", "x", "x"])
    assert reward.scored == 2 and first[0] == first[1] != first[2]
    np.testing.assert_array_equal(reward(["q", "p"], ["x", "x"]), first[[2, 0]])
    assert reward.scored == 2
    reward(["px", "r"], ["", "x"])  # another pair with the same joined text; now 4 are known, ("q", "x") is the oldest
    assert reward.scored == 4
    reward(["p", "r"], ["x", "x"])
    assert reward.scored == 4
    reward(["q"], ["x"])
    assert reward.scored == 5
    several = reward(*pairs(9))  # more than are kept
    np.testing.assert_array_equal(several, make(batch_size=4)(*pairs(9)))


def test_rows_are_split_over_the_mesh_and_score_the_same():
    if jax.device_count() < 8:
        pytest.skip("needs 8 devices: XLA_FLAGS=--xla_force_host_platform_device_count=8")
    mesh = sharding.make_mesh(2, 2, 2, jax.devices()[:8])
    reward, visited = make(mesh, batch_size=6), []
    compiled = reward.compiled
    reward.compiled = lambda params, *rows: (visited.append((params, rows)), compiled(params, *rows))[1]
    np.testing.assert_allclose(reward(*pairs(10)), make()(*pairs(10)), rtol=1e-6)
    for params, rows in visited:
        assert params.sharding.is_fully_replicated and len(params.sharding.device_set) == 8
        assert all(a.shape[0] == 8 and a.sharding.shard_shape(a.shape)[0] == 2 for a in rows)


def test_rows_are_padded_on_the_side_asked_for():
    row = Encoded([5, 6], [0, 1])
    tokens, mask, types = text.pad([row, Encoded([7], [0])], 3, 4, pad=9)
    assert tokens.tolist() == [[5, 6, 9, 9], [7, 9, 9, 9], [5, 6, 9, 9]]  # the last repeats the first
    assert mask.tolist() == [[True, True, False, False], [True, False, False, False], [True, True, False, False]]
    assert types.tolist()[0] == [0, 1, 0, 0] and tokens.dtype == types.dtype == np.int32
    tokens, mask, types = text.pad([row], 1, 4, pad=9, left=True)
    assert (tokens.tolist(), types.tolist()) == ([[9, 9, 5, 6]], [[0, 0, 0, 1]]) and mask.tolist()[0][:2] == [False] * 2
    with pytest.raises(ValueError, match="empty prompt with an empty response"):
        text.pad([Encoded([], [])], 1, 4, 0)


@pytest.mark.parametrize(
    ("values", "error", "message"),
    [
        ([0.5, float("nan")], FloatingPointError, r"'polite' is not a finite number for 1 of 2 .* nan for 'second'"),
        ([float("-inf"), 0.0], FloatingPointError, "'polite'.*-inf for 'first'"),
        ([0.5], ValueError, r"'polite' returned shape \[1\] for 2 responses"),
        ([[0.5], [0.5]], ValueError, r"'polite' returned shape \[2, 1\]"),
        (0.5, ValueError, r"'polite' returned shape \[\]"),
        (["a", "b"], ValueError, "'polite'.*sequence of numbers"),
        ([[1.0], [1.0, 2.0]], ValueError, "'polite'.*sequence of numbers"),
    ],
)
def test_what_a_reward_must_not_return_is_named(values, error, message):
    with pytest.raises(error, match=message):
        text.check("polite", values, ["first", "second"])


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"first": 1.0, "second": 2.0}, r"\(python:mine\.py:f\) returned dict \{'first': 1\.0"),
        (None, "returned NoneType None, not a sequence"),
        ("12", "returned str 12"),
        ([0.5, None], "row 1 is None, a NoneType, for 'second'"),
        (["1.5", 2], "row 0 is '1.5', a str, for 'first'"),
        ([1, 2j], r"row 1 is 2j, a complex"),
        ([1.0, np.str_("good")], "row 1 is np.str_\\('good'\\), a str_, for 'second'"),
        ([np.complex64(1), 2.0], "row 0 is .*, a complex64"),
        ([1.0, np.datetime64("2020-01-01")], "row 1 is .*, a datetime64"),
        (np.array(["1", "2"]), "returned ndarray of <U1"),
        (iter([1.0, 2.0]), "not a sequence of numbers"),
        ([0.1] * 3, r"returned shape \[3\] for 2 responses"),
    ],
)
def test_the_function_the_row_and_the_value_are_named(values, says):
    with pytest.raises(ValueError, match=says) as error:
        text.check("polite", values, ["first", "second"], "python:mine.py:f")
    assert "python:mine.py:f" in str(error.value) and "'polite'" in str(error.value)


@pytest.mark.parametrize(
    "values",
    [
        [1, 2], (1.0, 2), [True, 2.0], np.array([1, 2]), np.array([1.0, 2.0]), jnp.array([1, 2]),
        jnp.array([1, 2], jnp.bfloat16),
        [np.float64(1), jnp.float32(2)], [np.array(1), jnp.bfloat16(2)], [np.bool_(True), np.uint8(2)],
    ],
)  # fmt: skip
def test_numbers_of_every_kind_are_taken(values):
    result = text.check("polite", values, ["first", "second"])
    assert result.dtype == np.float32 and result.tolist() == [1.0, 2.0]


def test_what_float32_cannot_hold_is_infinite_by_name():
    with pytest.raises(FloatingPointError, match="the first is row 1, inf for 'second'"):
        text.check("polite", [1.0, 1e300], ["first", "second"])


def test_columns_stand_in_the_order_of_the_objectives():
    """Two rewards of texts around one of the device, the prompts' candidates in their places."""
    tokens = np.arange(12).reshape(2, 3, 2)
    mask = np.ones((2, 3, 2), bool)
    mask[1, 2, 1] = False
    device = np.arange(6, dtype=np.float32).reshape(2, 3, 1) + 100
    asked = []

    def length(prompts, responses):
        asked.extend(zip(prompts, responses, strict=True))
        return [len(r.split()) for r in responses]

    def show(row):
        return " ".join(map(str, row))

    scorer = text.TextScorer(("a", "b", "c"), (length, None, lambda p, r: [ord(x) for x in p]), {}, show)
    rewards, cost = scorer.complete(["P", "Q"], tokens, mask, device)
    assert asked == [("P", "0 1"), ("P", "2 3"), ("P", "4 5"), ("Q", "6 7"), ("Q", "8 9"), ("Q", "10")]
    assert rewards.dtype == np.float32
    np.testing.assert_array_equal(rewards[..., 0], [[2, 2, 2], [2, 2, 1]])
    np.testing.assert_array_equal(rewards[..., 1], device[..., 0])
    np.testing.assert_array_equal(rewards[..., 2], [[80] * 3, [81] * 3])
    assert cost["score/known"] == 0 and cost["time/text_rewards"] > 0
    with pytest.raises(FloatingPointError, match="objective 'c'"):
        scorer._replace(rewards=(length, None, lambda p, r: [np.inf] * 6)).complete(["P", "Q"], tokens, mask, device)
    device[1, 0, 0] = np.nan  # a column of the device is looked at before the update too
    named = scorer._replace(functions=("", "jax:mine.py:f", ""))
    with pytest.raises(FloatingPointError, match=r"objective 'b' \(jax:mine\.py:f\) .* row 3, nan for '6 7'"):
        named.complete(["P", "Q"], tokens, mask, device)


def test_the_share_of_known_rows_is_told():
    scorer = text.TextScorer(("a", "b"), (make(batch_size=4), lambda p, r: [0.0] * len(r)), {}, lambda row: str(row[0]))
    tokens, mask, none = np.array([[[1], [2], [1], [3]]]), np.ones((1, 4, 1), bool), np.zeros((1, 4, 0))
    assert scorer.complete(["p"], tokens, mask, none)[1]["score/known"] == 0.25
    tokens[0, 3, 0] = 4
    assert scorer.complete(["p"], tokens, mask, none)[1]["score/known"] == 0.75


def test_scalars_of_torch_are_numbers():
    torch = pytest.importorskip("torch")
    values = [torch.tensor(1.0, dtype=torch.bfloat16), torch.tensor(2, requires_grad=False)]
    assert text.check("polite", values, ["first", "second"]).tolist() == [1.0, 2.0]
    with pytest.raises(ValueError, match="row 0 is"):
        text.check("polite", [torch.tensor(1j), 2.0], ["first", "second"])
