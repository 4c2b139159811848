"""A user's parameters: called by name where names say another order than (prompts, responses), refused if they do not fit."""

import functools

import pytest

from meal_jax.rewards import python, signature

# Parameters and body of a function that returns the prompts and the responses it was given, and whether it stays as it is.
TAKEN = [
    ("prompts, responses", "prompts, responses", True),
    ("p, r", "p, r", True),
    ("questions, answers, scale=1.0", "questions, answers", True),
    ("*columns", "columns[0], columns[1]", True),
    ("prompts, *columns", "prompts, columns[0]", True),
    ("prompts, completions, **others", "prompts, completions", True),
    ("p, r, /", "p, r", True),
    ("responses, prompts", "prompts, responses", False),
    ("answers, questions", "questions, answers", False),
    ("texts, prompt", "prompt, texts", False),
    ("texts, scale=1.0, responses=None", "texts, responses", False),
    ("*, responses, prompts", "prompts, responses", False),
    ("prompts, *, responses", "prompts, responses", False),
]
REFUSED = [
    ("responses", r"f\(responses\) does not take the prompts\. .* write def f\(prompts, responses\)\."),
    ("", r"f\(\) does not take the prompts and responses\."),
    ("**given", "does not take the prompts and responses"),
    ("prompts, responses, model", r"asks for model too\. It is called with prompts and responses: write def f"),
    ("a, b, c, d", "asks for c and d too"),
    ("p, r, *, weight", "asks for weight too"),
    ("response, answer", "has response and answer for the responses"),
    ("responses, *prompts", "takes them in another order"),
    ("responses, prompts, /", "takes them in another order"),
]


def write(tmp_path, parameters, result="0"):
    (tmp_path / "mine.py").write_text(f"def f({parameters}):\n    return {result}\n")
    return f"{tmp_path / 'mine.py'}:f"


@pytest.mark.parametrize(("parameters", "result", "same"), TAKEN)
def test_each_argument_goes_where_its_name_says(parameters, result, same, tmp_path):
    name = write(tmp_path, parameters, result)
    reward = python.load_reward("python", name, "here")
    assert tuple(reward(["p"], ["r"])) == (["p"], ["r"])
    assert (reward is python.load(name, "here")) == same


@pytest.mark.parametrize(("parameters", "message"), REFUSED)
def test_what_does_not_fit_is_refused_before_anything_is_called(parameters, message, tmp_path):
    with pytest.raises(ValueError, match=f"^config.reward.sources python:mine.py:f: .*{message}"):
        python.load_reward("python", write(tmp_path, parameters), "config.reward.sources python:mine.py:f")


def test_a_function_of_tokens_has_four(tmp_path):
    swapped = python.load_reward(
        "jax", write(tmp_path, "prompt_tokens, prompt_mask, tokens, mask", "tokens, prompt_mask"), "x"
    )
    assert swapped("t", "m", "pt", "pm") == ("t", "pm")
    with pytest.raises(ValueError, match="does not take the prompt_tokens and prompt_mask"):
        python.load_reward("jax", write(tmp_path, "tokens, mask"), "x")


def test_callables_of_other_kinds():
    class Scorer:
        def __call__(self, responses, prompts):
            return prompts, responses

    names = ("prompts", "responses")
    assert signature.arranged(Scorer(), names, "here")(1, 2) == (1, 2)
    assert signature.arranged(functools.partial(lambda scale, p, r: (p, r), 3), names, "here")(1, 2) == (1, 2)
    assert signature.arranged(dict.update, names, "here") is dict.update  # its parameters are not told
