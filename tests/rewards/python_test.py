"""Rewards that users write, named by file and by module; the two examples of the documentation run here."""

import jax.numpy as jnp
import numpy as np
import pytest

from meal_jax.data import chat as chats
from meal_jax.meal.step import Batch
from meal_jax.rewards import python
from meal_jax.rollout.decode import Responses

TEXTS = '''
def short(prompts: list[str], responses: list[str]) -> list[float]:
    """More for fewer words."""
    return [-len(response.split()) for response in responses]
'''
TOKENS = '''
import jax.numpy as jnp

def varied(tokens, mask, prompt_tokens, prompt_mask):   # [B, N, T], [B, N, T], [B, S], [B, S] -> [B, N]
    """The share of a response's tokens that its prompt does not hold."""
    held = (tokens[..., None] == prompt_tokens[:, None, None]) & prompt_mask[:, None, None]   # [B, N, T, S]
    return jnp.sum(mask & ~held.any(-1), -1) / jnp.maximum(mask.sum(-1), 1)
'''


def write(path, source):
    path.write_text(source)
    return path


def test_a_function_of_texts_by_file(tmp_path, monkeypatch):
    path = write(tmp_path / "mine.py", TEXTS)
    short = python.load(f"{path}:short", "here")
    assert short(["p", "p"], ["a b c", "a"]) == [-3, -1]
    monkeypatch.chdir(tmp_path)
    assert python.load("mine.py:short", "here") is short  # the file is executed once …
    path.write_text(TEXTS.replace("-len", "len") + "# changed\n")
    import os

    os.utime(path, ns=(1, 1))
    assert python.load("mine.py:short", "here")(["p"], ["a b"]) == [2]  # … until it changes


def test_a_function_of_texts_by_module(tmp_path, monkeypatch):
    (tmp_path / "rewards_of_mine").mkdir()
    write(tmp_path / "rewards_of_mine" / "__init__.py", "")
    write(tmp_path / "rewards_of_mine" / "short.py", TEXTS)
    monkeypatch.syspath_prepend(tmp_path)
    assert python.load("rewards_of_mine.short:short", "here")([""], ["a b"]) == [-2]


def inputs():
    tokens = jnp.array([[[5, 6, 7], [5, 5, 0]], [[8, 9, 1], [1, 0, 0]]])
    mask = jnp.array([[[1, 1, 1], [1, 1, 0]], [[1, 1, 1], [1, 0, 0]]], bool)
    prompts = Batch(jnp.array([[0, 5], [9, 8]]), jnp.array([[0, 1], [1, 1]], bool), jnp.array([3, 4]))
    return prompts, Responses(tokens, mask, jnp.zeros(tokens.shape), jnp.ones((2, 2), bool))


def test_a_function_of_tokens(tmp_path):
    varied = python.load(f"{write(tmp_path / 'mine.py', TOKENS)}:varied", "here")
    column = python.token_column(varied, "varied", *inputs())
    np.testing.assert_allclose(column, [[2 / 3, 0.0], [1 / 3, 1.0]], rtol=1e-6)
    count = python.token_column(lambda tokens, mask, prompts, prompt_mask: mask.sum(-1), "count", *inputs())
    assert count.dtype == jnp.float32 and count.tolist() == [[3.0, 2.0], [3.0, 1.0]]


@pytest.mark.parametrize(
    "wrong", [lambda t, m, p, pm: m * 1.0, lambda t, m, p, pm: 0.0, lambda t, m, p, pm: m.sum((1, 2))]
)
def test_a_function_of_tokens_with_another_shape_is_named(wrong):
    with pytest.raises(ValueError, match=r"objective 'mine' returned .* shape \[2, 2\]|objective 'mine'.*\(2, 2\)"):
        python.token_column(wrong, "mine", *inputs())


def test_what_is_missing_is_named(tmp_path):
    path = write(tmp_path / "mine.py", TEXTS)
    for name, error, message in (
        (f"{tmp_path}/none.py:short", FileNotFoundError, r"field: there is no file .*none\.py"),
        (f"{path}:long", ValueError, r"field: .*mine\.py has no function long; it defines short"),
        ("no_such_package.at_all:f", ValueError, "field: there is no module no_such_package.at_all"),
        ("meal_jax.rewards.python:nothing", ValueError, "has no function nothing; it defines load"),
        ("mine.py", ValueError, "must end in path/to/file.py:function"),
        ("mine.py:not a name", ValueError, "must end in"),
    ):
        with pytest.raises(error, match=message):
            python.load(name, "field")


def test_a_fault_inside_the_users_file_keeps_its_own_message(tmp_path):
    path = write(tmp_path / "broken.py", "import no_such_library_of_mine\n")
    with pytest.raises(ModuleNotFoundError, match="no_such_library_of_mine"):
        python.load(f"{path}:f", "field")


RAISING = """
def divide(prompts, responses):
    return [1 / (len(r) - len(r)) for r in responses]
"""


def test_a_function_that_raises_is_named_with_its_line_and_the_first_row(tmp_path):
    path = write(tmp_path / "mine.py", RAISING)
    reward = python.TextFunction(python.load(f"{path}:divide", "here"), f"python:{path}:divide", "ratio")
    with pytest.raises(
        ValueError, match=r"'ratio' \(python:.*mine\.py:divide\) raised ZeroDivisionError at .*mine\.py:3:"
    ) as e:
        reward(["a prompt"] * 2, ["a response", "b"])
    assert "called with 2 rows; the first response is 'a response' to 'a prompt'" in str(e.value)
    assert isinstance(e.value.__cause__, ZeroDivisionError)


@pytest.mark.parametrize(
    ("function", "says"),
    [
        (lambda t, m, p, pm: None, "returned NoneType None"),
        (lambda t, m, p, pm: {"a": 1}, "returned dict {'a': 1}"),
        (lambda t, m, p, pm: 1 / 0, "raised ZeroDivisionError at .*python_test.py"),
        (lambda t, m, p, pm: m.nothing, "raised AttributeError"),
    ],
)
def test_a_function_of_tokens_that_gives_no_numbers_is_named(function, says):
    with pytest.raises(ValueError, match=says) as error:
        python.token_column(function, "mine", *inputs(), source="jax:mine.py:f")
    assert "'mine' (jax:mine.py:f)" in str(error.value)


def test_a_function_of_tokens_may_give_numpy_and_integers():
    column = python.token_column(lambda t, m, p, pm: np.ones((2, 2), np.int64), "mine", *inputs())
    assert column.dtype == jnp.float32 and column.tolist() == [[1.0, 1.0], [1.0, 1.0]]


def test_a_function_reads_what_the_row_says_where_it_is_to():
    seen = []
    function = python.TextFunction(lambda prompts, responses: seen.extend(prompts) or [0.0] * 2, "python:f", "mine")
    several = chats.transcript((("user", "a"), ("assistant", "b"), ("user", "c")))
    texts = [chats.transcript((("user", "Which tea?"),)), several]
    function(texts, ["x", "y"])
    function._replace(show=chats.spoken)(texts, ["x", "y"])
    assert seen == [*texts, "Which tea?", "Human: a\n\nAssistant: b\n\nHuman: c"]
