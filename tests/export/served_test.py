"""The card's section on other programs says how a preference gets in, for each route."""

import importlib.metadata

import pytest

from meal_jax.export import served
from meal_jax.models.policy import Conditioning

TABLE = tuple(tuple((3, 2) for _ in range(11)) for _ in range(2))


def section(reads, kind="merged", slots=()):
    return served.section(Conditioning(reads, table=TABLE if "text" in reads else ()), kind, slots)


def test_a_preference_in_the_template_is_a_variable_of_each_program():
    text = section("text")
    assert served.SAME in text
    for name, _, how in served.MERGED:
        assert f"| {name} |" in text and f"| {how} |" in text
    assert '"chat_template_kwargs": {"preference": […]}' in text and "extra_context" in text


@pytest.mark.parametrize(
    ("reads", "slots", "says"),
    [
        ("prefix", (5, 6), "the chat template writes it"),
        ("adapter+text", (), "the chat template writes it"),
        ("adapter", (), "it is in the weights"),
        ("none", (), "none is read"),
    ],
)
def test_where_no_request_names_one_it_says_where_it_is(reads, slots, says):
    text = section(reads, slots=slots)
    assert text.count(f"| {says} |") == len(served.MERGED) and "preference=[…]" not in text


@pytest.mark.parametrize("kind", ["merged", "adapter"])
def test_a_prompt_read_at_another_preference_than_in_training_is_not_called_the_same(kind):
    own = served.section(Conditioning("adapter", prompt="preference"), kind, ())
    assert served.SAME in own and served.ALIKE not in own
    assert served.ALIKE in section("adapter", kind) and served.SAME not in section("adapter", kind)


def test_embeddings_and_adapters_are_for_the_programs_that_were_run():
    assert f"{served.TRANSFORMERS}, {served.MLX} and {served.VLLM}, which take embeddings" in section("prefix")
    assert f"{served.TRANSFORMERS}, {served.PEFT} and {served.VLLM}, which" in section("prefix", "adapter")
    assert "llama.cpp's server, openvino-genai and ctranslate2 take none" in section("prefix")
    assert "no preference is written" in section("text", "adapter") and served.PEFT in section("text", "adapter")
    assert "no preference is written" in section("adapter+text", "adapter")
    assert "no preference is written" not in section("adapter", "adapter")


def test_the_versions_are_those_that_the_tests_run():
    """A new version here is tried by matrix.py, and then named in runtimes.py."""
    for package, named in (("transformers", served.TRANSFORMERS), ("peft", served.PEFT)):
        pytest.importorskip(package)
        installed = importlib.metadata.version(package)
        assert named.split()[1].rpartition(".")[0] == installed.rpartition(".")[0], "minor versions differ"
