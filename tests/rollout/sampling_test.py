"""What is kept, how often it is drawn, and with which log-probability: against plain numpy."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from meal_jax.models.attention import MASKED
from meal_jax.rollout.sampling import Sampling, filter_logits, least_kept, look_up, sample

FORBIDDEN = jnp.arange(12) % 5 == 2
SETTINGS = [
    Sampling(),
    Sampling(temperature=0.7),
    Sampling(top_k=1),
    Sampling(top_k=4),
    Sampling(top_k=99),
    Sampling(top_p=0.05),
    Sampling(top_p=0.6),
    Sampling(top_p=0.95),
    Sampling(temperature=1.6, top_k=5, top_p=0.8),
    Sampling(top_p=0.9, draw="inverse"),
]


def distribution(logits, sampling, forbidden):
    """Probabilities [V] of one row, token by token in float64."""
    allowed = [i for i in range(len(logits)) if not (forbidden is not None and forbidden[i])]
    scaled = {i: float(logits[i]) / sampling.temperature for i in allowed}
    order = sorted(allowed, key=lambda i: -scaled[i])
    if sampling.top_k:
        order = order[: sampling.top_k]
    total = sum(np.exp(scaled[i]) for i in order)
    remaining, mass = [], 0.0
    for i in order:
        remaining.append(i)
        mass += np.exp(scaled[i]) / total
        if mass >= sampling.top_p:
            break
    p = np.zeros(len(logits))
    p[remaining] = [np.exp(scaled[i]) for i in remaining]
    return p / p.sum()


@pytest.mark.parametrize("forbidden", [None, FORBIDDEN], ids=["all", "forbidden"])
@pytest.mark.parametrize("sampling", SETTINGS, ids=str)
def test_filtered_distribution_is_the_naive_one(sampling, forbidden):
    logits = jnp.asarray(np.random.default_rng(0).normal(0, 2, (40, 12)), jnp.float32)
    actual = jax.nn.softmax(filter_logits(logits, sampling, forbidden))
    expected = np.stack([distribution(row, sampling, forbidden) for row in np.asarray(logits)])
    np.testing.assert_array_equal(actual > 0, expected > 0)
    np.testing.assert_allclose(actual, expected, atol=1e-6)


def test_ties_with_the_kth_are_kept():
    remaining = filter_logits(jnp.asarray([1.0, 3.0, 2.0, 2.0, 0.0]), Sampling(top_k=2)) > MASKED / 2
    assert remaining.tolist() == [False, True, True, True, False]


@functools.partial(jax.jit, static_argnums=(2,))
def draw(keys, logits, sampling, forbidden=None):
    return sample(keys, logits, sampling, forbidden)


@pytest.mark.parametrize(
    "sampling",
    [
        Sampling(),
        Sampling(0.5),
        Sampling(top_k=3),
        Sampling(1.5, top_k=6, top_p=0.7),
        Sampling(draw="inverse"),
        Sampling(1.5, top_k=6, top_p=0.7, draw="inverse"),
    ],
    ids=str,
)
def test_tokens_come_as_often_as_they_should(sampling):
    draws = 20_000
    logits = np.random.default_rng(1).normal(size=12).astype(np.float32)
    keys = jax.random.split(jax.random.key(0), (draws, 1))
    token, logp = draw(keys, jnp.broadcast_to(logits, (draws, 1, 12)), sampling, FORBIDDEN)
    p = distribution(logits, sampling, FORBIDDEN)
    count = np.bincount(token[:, 0], minlength=12)
    assert (count[p == 0] == 0).all()
    deviation = (count - draws * p)[p > 0] / np.sqrt(draws * p * (1 - p))[p > 0]
    assert np.abs(deviation).max() < 4.5
    np.testing.assert_allclose(logp[:, 0], np.log(p[token[:, 0]]), atol=1e-5)


@pytest.mark.parametrize("size", [12, 300, 1000])
def test_looking_up_is_the_inverse_of_the_cumulative_distribution(size):
    """Against a plain search in float64, at numbers in the middle of each token's interval and at both ends of [0, 1)."""
    rng = np.random.default_rng(size)
    logits = rng.normal(0, 2, size).astype(np.float32)
    logits[rng.random(size) < 0.3] = MASKED
    logits[-1] = MASKED
    p = np.exp(logits.astype(np.float64) - logits.max())
    above = np.cumsum(p / p.sum())
    middle = (above - p / p.sum() / 2).astype(np.float32)
    likely = p / p.sum() > 1e-5  # float32 cannot find the middle of less
    u = np.concatenate([middle[likely], np.float32([0.0, 1.0 - 2.0**-24])])
    token = np.asarray(look_up(jnp.asarray(u)[None], jnp.broadcast_to(logits, (1, len(u), size))))[0]
    np.testing.assert_array_equal(token[:-2], np.flatnonzero(likely))
    assert p[token[-2]] > 0 and p[token[-1]] > 0 and token[-2] == np.flatnonzero(p)[0]


def test_the_least_that_is_kept_is_found_to_the_bit():
    p = jax.nn.softmax(jnp.asarray(np.random.default_rng(5).normal(0, 3, (50, 700)), jnp.float32))
    for top_p in (0.05, 0.5, 0.9, 0.999):
        ordered = np.sort(np.asarray(p), axis=-1)[:, ::-1]
        first = np.argmax(np.cumsum(ordered.astype(np.float64), axis=-1) >= top_p, axis=-1)
        actual = np.asarray(least_kept(p, top_p))[:, 0]
        np.testing.assert_array_equal(actual, np.take_along_axis(ordered, first[:, None], -1)[:, 0])


def test_temperature_0_takes_the_likeliest_and_tells_the_policys_probability():
    logits = jnp.asarray(np.random.default_rng(2).normal(0, 2, (4, 3, 12)), jnp.float32)
    keys = jax.random.split(jax.random.key(0), (4, 3))
    token, logp = draw(keys, logits, Sampling(temperature=0), FORBIDDEN)
    allowed = jnp.where(FORBIDDEN, -jnp.inf, logits)
    assert (jnp.argmax(logits, -1) != jnp.argmax(allowed, -1)).any()  # or forbidding would go untested
    np.testing.assert_array_equal(token, jnp.argmax(allowed, -1))
    np.testing.assert_allclose(logp, jnp.max(jax.nn.log_softmax(allowed), -1), atol=1e-6)
    assert token.dtype == jnp.int32


def test_a_row_is_drawn_by_its_own_key_alone():
    logits = jnp.asarray(np.random.default_rng(3).normal(size=(4, 3, 12)), jnp.float32)
    keys = jax.random.split(jax.random.key(0), (4, 3))
    sampling = Sampling(top_p=0.9)
    token, logp = draw(keys, logits, sampling)
    for b in range(4):
        for n in range(3):
            first, one_logp = draw(keys[b : b + 1, n : n + 1], logits[b : b + 1, n : n + 1], sampling)
            assert int(first[0, 0]) == int(token[b, n])
            np.testing.assert_allclose(one_logp[0, 0], logp[b, n], atol=1e-6)
    other, _ = draw(jax.random.split(jax.random.key(1), (4, 3)), logits, sampling)
    assert (other != token).any()


@pytest.mark.parametrize(
    ("sampling", "filters"),
    [
        (Sampling(), False),
        (Sampling(temperature=0.3), False),
        (Sampling(temperature=0), True),
        (Sampling(top_k=5), True),
        (Sampling(top_p=0.9), True),
    ],
    ids=str,
)
def test_filters_tells_whether_tokens_are_cut(sampling, filters):
    assert sampling.filters is filters


@pytest.mark.parametrize("entries", [dict(temperature=-0.1), dict(top_k=-1), dict(top_p=0.0), dict(top_p=1.1)], ids=str)
def test_bad_settings_are_named(entries):
    with pytest.raises(ValueError, match="temperature >= 0, top_k >= 0 and 0 < top_p <= 1 are needed"):
        Sampling(**entries)
