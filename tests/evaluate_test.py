"""Evaluation: batches that do not divide the prompts, and the columns that the host adds."""

import types

import numpy as np
import pytest
from tokenizers import decoders

from meal_jax import evaluate, fluency
from meal_jax.data.prompts import Prompts
from meal_jax.pareto import front
from meal_jax.rewards.text import TextScorer

ROWS, PREFERENCES = 5, np.array([[0.0, 1.0], [1.0, 0.0], [0.5, 0.5]])
PROMPTS = Prompts(
    np.arange(ROWS, dtype=np.int32)[:, None],
    np.ones((ROWS, 1), bool),
    np.arange(ROWS, dtype=np.int32) + 10,
    tuple("abcde"),
)


def answer(state, frozen, batch, w, key):
    """Response [prompt's token, number of the preference]; the device's column is their sum."""
    tokens = np.stack(np.broadcast_arrays(batch.tokens, np.arange(3)), axis=-1)
    return evaluate.Answers(
        scores=tokens.sum(-1, keepdims=True).astype(np.float32),
        tokens=tokens,
        mask=np.ones(tokens.shape, bool),
        ended=np.ones(tokens.shape[:2], bool),
        proposals=w,
    )


@pytest.mark.parametrize("batch_size", [2, 5, 8])
def test_every_prompt_is_answered_once_in_order_and_scored_with_its_own_text(batch_size):
    asked = []

    def reward(prompts, responses):
        asked.extend(zip(prompts, responses, strict=True))
        return [float(r.replace(" ", "")) for r in responses]

    scorer = TextScorer(("host", "device"), (reward, None), {}, lambda row: " ".join(map(str, row)))
    result = evaluate.evaluate(
        answer, None, None, PROMPTS, PREFERENCES, batch_size=batch_size, seed=0, place=lambda x: x, scorer=scorer
    )
    assert asked == [
        ("abcde"[e], f"{e} {m}") for e in range(ROWS) for m in range(3)
    ]  # repeats that fill up are not scored
    expected = [[[10 * e + m, e + m] for m in range(3)] for e in range(ROWS)]
    np.testing.assert_array_equal(result.scores, expected)
    np.testing.assert_array_equal(result.tokens[..., 0], np.arange(ROWS)[:, None].repeat(3, 1))
    np.testing.assert_allclose(result.proposals, np.broadcast_to(PREFERENCES, (ROWS, 3, 2)))


def test_a_score_that_is_not_a_finite_number_is_named_before_anything_is_made_of_it():
    scores = np.zeros((2, 3, 2))
    tokens = np.arange(6)[:, None].reshape(2, 3, 1)
    answers = evaluate.Answers(scores, tokens, tokens >= 0, scores[..., 0] == 0, scores)
    task = types.SimpleNamespace(objectives=("a", "b"), token_functions=("", "jax:mine.py:f"), show=str)
    evaluate.need_finite(answers, task)
    scores[1, 1, 1] = np.nan
    with pytest.raises(
        FloatingPointError, match=r"'b' \(jax:mine\.py:f\) .* 1 of 6 responses; the first is row 4, nan for '\[4\]'"
    ):
        evaluate.need_finite(answers, task)
    with pytest.raises(FloatingPointError, match="objective 'b' is not a finite number"):
        evaluate.need_finite(answers, types.SimpleNamespace(objectives=("a", "b"), token_functions=(), show=str))


PREFERENCES = np.array([[0.0, 1.0], [0.5, 0.5], [1.0, 0.0]])


@pytest.fixture(scope="module")
def summarised():
    """40 prompts' drawn answers at three preferences, the benchmark, and what `summarise` makes of them."""
    rng = np.random.default_rng(0)
    scores = np.array([[0.0, 1.0], [0.7, 0.7], [1.0, 0.0]]) + 0.1 * rng.normal(size=(40, 3, 2))
    tokens = rng.permuted(np.tile(np.arange(8), (40, 3, 1)), axis=-1)
    tokens[:10, 0] = [5, 6, 5, 6, 5, 6, 5, 6]  # loops: 10 of 120
    ended = np.ones((40, 3), bool)
    ended[:, 1] = False
    likely = rng.normal(-2, 1, (40, 3))
    answers = evaluate.Answers(scores, tokens, np.ones(tokens.shape, bool), ended, scores, likely)
    task = types.SimpleNamespace(
        reference=np.array([-1.0, -1.0]), evaluation_set="", truth=lambda w: np.array([[1.0, 1.0]])
    )
    task.objectives = ("a", "b")
    return answers, task, evaluate.summarise(answers, PREFERENCES, task, bootstrap=500)


def test_every_measure_has_an_interval_over_prompts(summarised):
    answers, task, out = summarised
    points = np.mean(answers.scores, axis=0)
    for name, value in front.measures(points, PREFERENCES, task.reference).items():
        np.testing.assert_allclose(out[name], value)
        low, high = np.array(out[f"{name}_interval"])
        assert low.shape == np.shape(value) and np.all(low <= high)
    np.testing.assert_allclose(out["points"], points)
    assert np.all(np.array(out["points_low"]) < points) and np.all(points < np.array(out["points_high"]))


def test_collapse_is_counted(summarised):
    out = summarised[2]
    assert out["truncated"] == pytest.approx(1 / 3) and out["truncated_interval"] == pytest.approx([1 / 3, 1 / 3])
    assert out["repetitive"] == pytest.approx(10 / 120)
    # A prompt loops in one of its three answers or in none.
    share = np.random.default_rng(1).binomial(40, 10 / 40, size=20_000) / 120
    np.testing.assert_allclose(out["repetitive_interval"], np.quantile(share, [0.025, 0.975]), atol=0.01)


def test_the_likelihood_under_the_base_has_an_interval(summarised):
    answers, _, out = summarised
    assert out["log_likelihood"] == pytest.approx(answers.log_likelihood.mean())
    low, high = out["log_likelihood_interval"]
    assert low < out["log_likelihood"] < high


def test_fluency_is_told_for_each_preference(summarised):
    answers, _, out = summarised
    by_preference = out["fluency"]
    np.testing.assert_allclose(by_preference["log_likelihood"], answers.log_likelihood.mean(axis=0))
    np.testing.assert_allclose(by_preference["repetitive"], [10 / 40, 0.0, 0.0])
    np.testing.assert_allclose(by_preference["distinct_2"], fluency.distinct(answers.tokens, answers.mask))
    assert by_preference["truncated"] == [0.0, 1.0, 0.0]
    assert out["distinct_2"] == pytest.approx(np.mean(by_preference["distinct_2"]))


def test_the_share_of_the_true_hypervolume_follows_its_interval(summarised):
    out = summarised[2]
    low, high = out["hypervolume_interval"]
    assert low < out["hypervolume"] < high
    assert out["share_of_true_hypervolume_interval"] == pytest.approx([low / 4, high / 4])


def test_without_a_base_or_a_true_front_neither_is_spoken_of(summarised):
    answers, task, _ = summarised
    answers = answers._replace(log_likelihood=None)
    behind = types.SimpleNamespace(**vars(task) | {"truth": lambda w: np.array([[1.0, -1.0]])})  # dominates nothing
    out = evaluate.summarise(answers, PREFERENCES, behind, bootstrap=2)
    assert out["true_hypervolume"] == 0 and "share_of_true_hypervolume" not in out
    assert "log_likelihood" not in out and "log_likelihood" not in out["fluency"]


@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e6])
def test_an_unknown_reference_lies_behind_every_point_of_the_first_evaluation(scale):
    """Rewards of means −19 and 3, one of them constant, of any scale: the hypervolume is above 0."""
    rng = np.random.default_rng(0)
    scores = np.stack([scale * (rng.normal(size=(8, 3)) - 19), np.full((8, 3), 3.0), rng.normal(size=(8, 3))], -1)
    answers = evaluate.Answers(scores, None, None, None, None)
    fixed = evaluate.fix_reference(np.array([np.nan, np.nan, -9.0]), answers)
    points = scores.mean(axis=0)
    assert fixed[1:].tolist() == [0.0, -9.0]  # a constant counts as of deviation 1: 3 − 3
    assert (points > fixed).all() and front.hypervolume(points, fixed) > 0
    assert fixed[0] == pytest.approx(scores[..., 0].mean() - 3 * scores[..., 0].std(), rel=0.1)
    np.testing.assert_array_equal(evaluate.fix_reference(fixed, answers), fixed)


def test_samples_show_the_text_that_their_rewards_read():
    def show(tokens):
        return bytes(tokens.tolist()).decode()

    task = types.SimpleNamespace(
        show=show, stop=("\nHuman:",), objectives=("a",), test=Prompts(*[np.ones((1, 1), int)] * 3, text=("hello",))
    )
    texts = ("Yes.\n\nHuman: more?", "No.")
    size = max(map(len, texts))
    tokens = np.array([[list(text.encode().ljust(size)) for text in texts]], np.uint8)
    mask = np.array([[np.arange(size) < len(text) for text in texts]])
    answers = evaluate.Answers(np.ones((1, 2, 1)), tokens, mask, np.ones((1, 2), bool), None)
    (sample,) = evaluate.sample_answers(answers, np.array([[0.5], [1.0]]), task, 1)
    assert [answer["response"] for answer in sample["answers"]] == ["Yes.", "No."]
    assert evaluate.whole_answer(task, tokens[0, 0], mask[0, 0], True) == texts[0]
    plain = types.SimpleNamespace(show=show, stop=())
    assert evaluate.readable_answer(plain, tokens[0, 0], mask[0, 0], True) == texts[0]


def test_half_a_character_at_a_cut_is_left_out():
    """Tokens of a byte each, as byte-level tokenizers have them."""
    task = types.SimpleNamespace(show=lambda tokens: bytes(tokens.tolist()).decode(errors="replace").strip(), stop=())

    def read(text, count, ended):
        data = np.frombuffer(text.encode(), np.uint8)
        return evaluate.readable_answer(task, data, np.arange(len(data)) < count, ended)

    assert read("so é", 4, False) == "so" and read("so é", 5, False) == "so é"
    assert read("日本", 4, False) == "日" and read("日本", 5, False) == "日"
    assert read("so é", 4, True) == "so \ufffd"  # the policy ended there itself


def test_half_a_character_takes_no_whole_ones_with_it():
    """Tokens of a byte each, as of Llama 2: their decoder marks every byte of a run that has half a character in it."""
    decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Fuse()])
    task = types.SimpleNamespace(show=lambda tokens: decoder.decode([f"<0x{b:02X}>" for b in tokens]).strip(), stop=())
    data = np.frombuffer("the é🙂".encode(), np.uint8)

    def read(count, ended=False):
        return evaluate.readable_answer(task, data, np.arange(len(data)) < count, ended)

    assert [read(count) for count in (4, 5, 6, 7, 8, 9)] == ["the", "the", "the é", "the é", "the é", "the é"]
    assert read(10) == "the é🙂" and read(7, ended=True).endswith("\ufffd")
