"""Rows as TRL, OpenAI and ShareGPT have them: what prompts, pairs and answers they give."""

import pytest

from meal_jax.data import own


def said(*texts):
    return [{"role": role, "content": text} for role, text in zip(["user", "assistant"] * 2, texts, strict=False)]


def answer(text):
    return [{"role": "assistant", "content": text}]


def shared(*turns):
    return [{"from": role, "value": text} for role, text in turns]


ASKED, TALKED = (("user", "q"),), (("user", "q"), ("assistant", "a"), ("user", "more"))
PAIR, SAME = {"chosen": said("q", "good"), "rejected": said("q", "bad")}, {"chosen": "good", "rejected": "bad"}


@pytest.mark.parametrize(
    ("row", "turns", "response", "pair"),
    [
        ({"prompt": said("q")}, ASKED, None, None),
        ({"prompt": said("q", "a", "more"), "messages": None}, TALKED, None, None),
        ({"prompt": "q", "completion": " good "}, ASKED, "good", None),
        ({"prompt": said("q"), "completion": answer("good")}, ASKED, "good", None),
        ({"prompt": "q", "completion": "good", "label": True}, ASKED, "good", None),
        ({"prompt": "q", "completion": "bad", "label": False}, ASKED, None, None),
        ({"prompt": "q", "completion": "bad", "label": 0}, ASKED, None, None),
        ({"prompt": "q", "completion": "bad", "label": " False"}, ASKED, None, None),
        ({"prompt": "q", "completion": "good", "label": 1}, ASKED, "good", None),
        ({"prompt": "q", "completion": "good", "label": None}, ASKED, "good", None),
        ({"prompt": " q", "messages": said("q", "good")}, ASKED, "good", None),
        ({"prompt": "q", "messages": said("q", "a", "more", "good")}, TALKED, "good", None),
        ({"prompt": said("q"), "messages": said("q", "good")}, ASKED, "good", None),
        ({"prompt": "q", "conversations": shared(("human", "q"), ("gpt", "good"))}, ASKED, "good", None),
        ({"messages": said("q", "good")}, ASKED, "good", None),
        ({"messages": said("q", "a", "more", "good"), "prompt": None}, TALKED, "good", None),
        ({"messages": [{"role": "user", "content": [{"type": "text", "text": "q"}]}]}, ASKED, None, None),
        ({"prompt": said("q")} | {"chosen": answer("good"), "rejected": answer("bad")}, ASKED, "good", ("good", "bad")),
        ({"prompt": said("q", "a", "more")} | SAME, TALKED, "good", ("good", "bad")),
        (PAIR, ASKED, "good", ("good", "bad")),
        ({"prompt": "q "} | PAIR, ASKED, "good", ("good", "bad")),
        ({"prompt": "q", "messages": PAIR["chosen"], "score": 1.0} | PAIR, ASKED, "good", ("good", "bad")),
        ({"conversations": shared(("human", "q"), ("gpt", "good"))}, ASKED, "good", None),
        ({"conversations": shared(("user", "q"), ("assistant", "a"), ("human", "more"))}, TALKED, None, None),
    ],
)
def test_forms(write, tmp_path, row, turns, response, pair):
    path = write(tmp_path / "a.jsonl", [row])
    read = own.read_rows(path)
    assert read.prompts == [turns]
    assert [(p.turns, p.chosen, p.rejected) for p in read.pairs] == ([(turns, *pair)] if pair else [])
    assert own.read_answers(path) == ([(turns, response)] if response else [])


@pytest.mark.parametrize(
    ("row", "says"),
    [
        ({"chosen": said("q", "good"), "rejected": said("other", "bad")}, "rejected holds another conversation"),
        ({"prompt": "other"} | PAIR, "chosen holds another conversation"),
        ({"chosen": said("q"), "rejected": said("q", "bad")}, "chosen ends with a turn of 'user'"),
        ({"chosen": answer("good"), "rejected": answer("bad")}, "one of prompt and messages"),
        ({"conversations": shared(("system", "s"), ("human", "q"))}, "roles system, user; .*config.data.system"),
        ({"conversations": shared((["human"], "q"))}, "no text in role"),
        ({"prompt": "other", "messages": said("q", "good")}, "one of prompt and messages"),
        (
            {"prompt": "q", "messages": [{"role": "system", "content": "s"}, *said("q")]},
            "roles system, user; .*data.system",
        ),
        ({"prompt": said("q"), "completion": said("q", "good")}, "no text in response; an answer is text"),
    ],
)
def test_what_contradicts_itself_is_named_by_file_and_line(write, tmp_path, row, says):
    path = write(tmp_path / "a.jsonl", [{"prompt": "ok"}, row])
    with pytest.raises(ValueError, match=says) as error:
        own.read_rows(path)
        own.read_answers(path)
    assert f"{path}:2" in str(error.value)
