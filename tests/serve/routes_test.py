"""The served run: answers are those of generate, whole and streamed; refusals; the openai client; the page in a browser."""

import asyncio
import html
import json
import re
import shutil
import subprocess
import threading
import types

import numpy as np
import pytest

from meal_jax import evaluate
from meal_jax.generate import answers as generate
from meal_jax.saved_run import open_run
from meal_jax.serve import __main__ as command_line
from meal_jax.serve import live as lives

pytest.importorskip("starlette", reason="needs the extra serve")
pytest.importorskip("httpx", reason="starlette's TestClient needs httpx")
from starlette.testclient import TestClient

from meal_jax.serve import requests, routes, server

CHAT = "/v1/chat/completions"
# Appended to the page's script: asks for the first objective alone and leaves in the document whether the page is too wide.
DRIVE = """
addEventListener("load", async () => {
  while (!document.body.dataset.ready) await new Promise((r) => setTimeout(r, 20));
  const slider = document.getElementById("slider");
  slider.value = 1; slider.dispatchEvent(new Event("input"));
  document.getElementById("prompt").value = "< 3 7";
  document.getElementById("send").click();
  // The browser's clock waits for requests alone, not for an answer that streams.
  while (!document.querySelector(".facts")?.textContent) await fetch("/run.json");
  document.body.dataset.overflow = document.documentElement.scrollWidth > innerWidth ? "yes" : "no";
});"""
CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")


@pytest.fixture(scope="module")
def run(toy_run):
    return open_run(toy_run)


@pytest.fixture(scope="module")
def live(run):
    return lives.Live(run, rewards=True)


@pytest.fixture(scope="module")
def client(live):
    return TestClient(routes.application(live), base_url="http://127.0.0.1", raise_server_exceptions=False)


def asked(text, **fields):
    return {"model": "any", "messages": [{"role": "user", "content": text}]} | fields


def generated(run, text, w, seed):
    """What `generate` answers, (text, proposals [K], rewards [K])."""
    e = run.config.eval
    sampling = generate.Sampling(e.temperature, e.top_k, e.top_p)
    out = generate.answers(
        run, generate.read_prompt(run.task, text), np.array([w]), sampling=sampling, max_new=4, seed=seed
    )
    answer = evaluate.readable_answer(run.task, out.tokens[0, 0], out.mask[0, 0], out.ended[0, 0])
    return answer, out.proposals[0, 0], out.scores[0, 0], bool(out.ended[0, 0])


def events(response):
    lines = [line.removeprefix("data: ") for line in response.text.split("\n\n") if line]
    assert lines.pop() == "[DONE]" and response.headers["content-type"].startswith("text/event-stream")
    return [json.loads(line) for line in lines]


@pytest.mark.parametrize(("w", "seed"), [([1.0, 0.0], 0), ([0.25, 0.75], 5)])
def test_an_answer_is_that_of_generate_whole_and_streamed(client, run, w, seed):
    text, proposed, rewards, ended = generated(run, "< 3 7", w, seed)
    whole = client.post(CHAT, json=asked("< 3 7", preference=w, seed=seed)).json()
    [choice] = whole["choices"]
    assert choice["message"] == {"role": "assistant", "content": text, "refusal": None} and text
    assert choice["finish_reason"] == ("stop" if ended else "length")
    assert whole["meal"]["preference"] == {"first": w[0], "second": w[1]}
    np.testing.assert_allclose(list(whole["meal"]["proposed"].values()), proposed, atol=1e-4)
    np.testing.assert_allclose(list(whole["meal"]["rewards"].values()), rewards, atol=1e-4)
    assert whole["usage"]["prompt_tokens"] == 3 and whole["usage"]["completion_tokens"] == len(text.split())

    body = asked("< 3 7", preference=dict(zip(run.task.objectives, w, strict=True)), seed=seed, stream=True)
    chunks = events(client.post(CHAT, json=body | {"stream_options": {"include_usage": True}}))
    pieces = [c["choices"][0]["delta"].get("content", "") for c in chunks if c["choices"]]
    assert "".join(pieces) == text and len([piece for piece in pieces if piece]) == len(text.split())  # token by token
    assert chunks[0]["choices"][0]["delta"]["role"] == "assistant" and len({c["id"] for c in chunks}) == 1
    assert chunks[-2]["choices"][0]["finish_reason"] == choice["finish_reason"]
    assert chunks[-2]["meal"] == whole["meal"] and chunks[-1]["usage"] == whole["usage"]


def test_max_tokens_cuts_the_same_answer_and_the_default_is_equal_weights(client, live):
    whole = client.post(CHAT, json=asked("< 4 8", seed=1)).json()
    assert whole["meal"]["preference"] == {"first": 0.5, "second": 0.5}
    cut = client.post(CHAT, json=asked("< 4 8", seed=1, max_completion_tokens=2)).json()
    words = whole["choices"][0]["message"]["content"].split()
    assert cut["choices"][0]["message"]["content"].split() == words[:2] and len(words) > 2
    assert cut["choices"][0]["finish_reason"] == "length" and cut["usage"]["completion_tokens"] == 2
    assert cut["meal"]["rewards"] == {}  # those of the whole answer are not its own
    assert live._program.cache_info().currsize == 1  # one program for all of these requests


@pytest.mark.parametrize(
    ("body", "field", "says"),
    [
        ([], None, "must be a JSON object"),
        (asked("< 3 7", preference=[1]), "preference", "has 1 weight"),
        (asked("< 3 7", preference=[0.9, 0.9]), "preference", "0.5,0.5 would do"),
        (asked("< 3 7", preference={"first": 1}), "preference", "each of first, second"),
        (asked("< 3 7", preference="1,0"), "preference", "a list of weights"),
        (asked("< 3 7", preference=[True, 0]), "preference", "a list of weights"),
        (asked("< 3 7", n=2), "n", "n=2 is not supported"),
        (asked("< 3 7", temperature=-1), "temperature", "a number, 0 to 2"),
        (asked("< 3 7", seed=0.5), "seed", "a whole number"),
        (asked("< 3 7", max_tokens=0), "max_tokens", "1 or more"),
        (asked("< 3 7", seed=10**400), "seed", "a whole number, 0 to 4.29497e+09"),
        (asked("< 3 7", temperature=10**400), "temperature", "a number, 0 to 2"),
        (asked("< 3 7", top_k=0.5), "top_k", "a whole number, -1 or more"),
        (asked("< 3 7", min_p=0.5), "min_p", "min_p=0.5 is not supported"),
        (asked("< 3 7", repetition_penalty=1.2), "repetition_penalty", "is not supported"),
        (asked("< 3 7", stop_token_ids=[1]), "stop_token_ids", "is not supported"),
        (asked("< 3 7", stream="false"), "stream", "must be true or false"),
        (asked("< 3 7", top_p=0), "top_p", "a number, 1e-06 to 1"),
        (asked("< 3 99"), "messages", "99: tokens here are written"),
        (asked("< 3 99", stream=True), "messages", "99: tokens here are written"),
        (asked(""), "messages", "an empty prompt"),
        ({"messages": []}, "messages", "ends with a message of the role user"),
        ({"messages": [{"role": "system", "content": "x"}]}, "messages", "config.data.system"),
        ({"messages": ["x"]}, "messages", "no list of objects"),
        (asked(""), "messages", 'The request has an empty prompt; a message is {"role": "user" or "assistant"'),
        (asked([{"type": "image_url"}]), "messages", "The request: messages[0] has no text in content; a message is"),
        (asked(None), "messages", '"text": text}, …]}. (Its fields: role, content.)'),
    ],
)
def test_a_bad_request_is_refused_in_openais_shape(client, body, field, says):
    response = client.post(CHAT, json=body)
    error = response.json()["error"]
    assert response.status_code == 400 and error["type"] == "invalid_request_error"
    assert error["param"] == field and says in error["message"], error


def test_what_is_not_json_not_local_or_not_there_is_refused(client):
    text = {"content-type": "text/plain"}
    assert client.post(CHAT, content=json.dumps(asked("< 3 7")), headers=text).status_code == 415
    assert (
        "not JSON"
        in client.post(CHAT, content="{", headers={"content-type": "application/json"}).json()["error"]["message"]
    )
    headers = {"content-type": "application/json"}
    for body, says in (
        ("[" * 100_000, "not JSON"),
        (json.dumps(asked("< 3 \ud83d")), r"'\ud83d', which is no character"),
    ):
        response = client.post(CHAT, content=body, headers=headers)
        assert response.status_code == 400 and says in response.json()["error"]["message"]
    assert client.get("/", headers={"host": "example.org"}).status_code == 400
    assert client.get("/v1/none").json()["error"]["type"] == "invalid_request_error"
    assert client.get(CHAT).status_code == 405


def test_a_fault_is_an_error_of_the_server_and_the_next_request_is_answered(client, live, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(live, "answer", lambda *_, **__: 1 / 0)
        response = client.post(CHAT, json=asked("< 3 7"))
    assert response.status_code == 500 and response.json()["error"]["type"] == "server_error"
    assert client.post(CHAT, json=asked("< 3 7")).status_code == 200


def test_nothing_is_sampled_for_a_client_that_left_before_its_turn(live, monkeypatch):
    monkeypatch.setattr(live, "answer", lambda *_, **__: pytest.fail("sampled"))
    received = iter([{"type": "http.request", "body": json.dumps(asked("< 3")).encode()}, {"type": "http.disconnect"}])
    sent = []

    async def receive():
        return next(received)

    async def send(message):
        sent.append(message)

    headers = [(b"host", b"127.0.0.1"), (b"content-type", b"application/json")]
    scope = {"type": "http", "method": "POST", "path": CHAT, "headers": headers, "query_string": b"", "root_path": ""}
    asyncio.run(routes.application(live)(scope, receive, send))
    assert b"The client has gone" in sent[-1]["body"]


def test_a_reward_that_is_no_number_or_that_fails_is_not_the_requests_fault(client, live, monkeypatch):
    program = live._program

    def with_nan(sampling):
        return lambda *given: program(sampling)(*given)._replace(scores=np.full((1, 1, 2), np.nan))

    def failing(sampling):
        def call(*given):
            raise ValueError("python:mine.py:short returned NaN")

        return call

    with monkeypatch.context() as patch:
        patch.setattr(live, "_program", with_nan)
        response = client.post(CHAT, json=asked("< 3 7"))
        assert response.status_code == 200 and response.json()["meal"]["rewards"] == {"first": None, "second": None}
        patch.setattr(live, "_program", failing)
        response = client.post(CHAT, json=asked("< 3 7"))
    error = response.json()["error"]
    assert response.status_code == 500 and error["type"] == "server_error" and "mine.py:short" in error["message"]


@pytest.mark.parametrize("number", ["1e999", "NaN", "-Infinity"])
@pytest.mark.parametrize("field", ["seed", "max_tokens", "temperature"])
def test_numbers_that_are_none_are_refused_by_field(client, field, number):
    body = json.dumps(asked("< 3 7"))[:-1] + f', "{field}": {number}' + "}"
    response = client.post(CHAT, content=body, headers={"content-type": "application/json"})
    assert response.status_code == 400 and response.json()["error"]["param"] == field


def test_values_under_which_there_is_nothing_to_do_are_taken():
    neutral = {"min_p": 0, "repetition_penalty": 1.0, "stop_token_ids": [], "min_tokens": None, "stream": None}
    read = requests.read(asked("< 3 7", top_k=-1, max_tokens=10**400, **neutral), ("first", "second"))
    assert read.top_k == 0 and read.stream is False and read.max_tokens == 10**400
    assert requests.read(asked("< 3 7"), ("first", "second")).top_k is None


def test_top_k_reaches_the_sampling(client, live, run):
    seen = []

    def watched(sampling):
        seen.append(sampling.top_k)
        raise RuntimeError("seen")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(live, "_program", watched)
        client.post(CHAT, json=asked("< 3 7", top_k=3))
        client.post(CHAT, json=asked("< 3 7"))
    assert seen == [3, run.config.eval.top_k]


def test_the_page_and_the_model_list(client, toy_run):
    page = client.get("/")
    assert "script-src 'self'" in page.headers["content-security-policy"]
    for name in re.findall(r'(?:src|href)="([^"]+)"', page.text):
        assert client.get(name).status_code == 200
    run = client.get("/run.json").json()
    assert run["objectives"] == ["first", "second"] and run["step"] == 3 and run["prompt"].startswith("<")
    assert client.get("/v1/models").json()["data"][0]["id"] == run["model"] == toy_run.name


def test_text_grows_in_order_and_half_a_character_waits():
    task = types.SimpleNamespace(end=9, stop=(), show=lambda ids: bytes(ids.tolist()).decode(errors="replace").strip())
    seen = []
    grow = lives._Growing(task, 6, seen.append)
    for t, token in [(0, 0x61), (2, 0xA9), (1, 0xC3), (3, 0x62), (4, 9), (5, 0x63)]:
        grow(t, np.array([[token]]))
    assert seen == ["a", "aé", "aéb"]


def test_a_text_that_changes_what_was_sent_goes_on_and_the_whole_answer_comes_last(client, live, monkeypatch):
    """Llama 2's tokenizer shows a run of bytes that are not UTF-8 as a mark for each, those of a whole character too."""

    shown = ["a", "a\ufffd", "aé", "a\ufffd\ufffd\ufffd", "a\ufffd\ufffd\ufffdb", "a\ufffd\ufffd\ufffdbc"]
    task, texts = types.SimpleNamespace(end=0, stop=(), show=lambda ids: shown[len(ids) - 1]), []
    grow = lives._Growing(task, 99, texts.append)
    for t in range(len(shown)):
        grow(t, np.array([[1]]))
    assert texts == [shown[0], shown[2], *shown[4:]]

    def answer(*_, watch=None, **__):
        for text in texts if watch else ():
            watch(text)
        return lives.Answer(texts[-1], True, {}, {}, {}, 3, 6)

    monkeypatch.setattr(live, "answer", answer)
    chunks = events(client.post(CHAT, json=asked("< 3 7", stream=True)))
    pieces = [c["choices"][0]["delta"].get("content", "") for c in chunks]
    assert "".join(pieces) == "aé\ufffd\ufffd\ufffdbc" and chunks[-1]["meal"]["text"] == texts[-1]


def test_no_part_of_a_stop_text_is_streamed_and_what_only_began_one_comes_with_the_next_token():
    task = types.SimpleNamespace(
        end=0, stop=("\nHuman:", "\nAssistant:"), show=lambda ids: bytes(ids.tolist()).decode().strip()
    )
    seen = []
    grow = lives._Growing(task, 99, seen.append)
    for t, token in enumerate(b"He said Hum.\n\nHuman: more"):
        grow(t, np.array([[token]]))
    assert seen[-1] == "He said Hum." and "He said" in seen and "He said H" not in seen
    assert all("He said Hum.".startswith(text) for text in seen)


def test_an_answer_ends_where_its_rewards_stop_reading(run):
    first = lives.Live(run).answer((("user", "< 3 7"),), [1, 0])
    mark = f" {first.text.split()[1]}"
    cut = lives.Live(run._replace(task=run.task._replace(stop=(mark,)))).answer((("user", "< 3 7"),), [1, 0])
    assert cut.text == first.text.split(mark)[0] and cut.ended and len(cut.text) < len(first.text)


def test_a_short_prompt_is_padded_to_its_bucket_and_answered_alike(run):
    config = run.config.copy_and_resolve_references()
    config.data.buckets = (3,)
    short = lives.Live(run._replace(config=config))
    widths, compiled = [], short._compile

    def compile_and_note(sampling):
        program = compiled(sampling)
        return lambda prompts, *rest: widths.append(prompts.tokens.shape[1]) or program(prompts, *rest)

    short._program = compile_and_note
    for text in ("< 3 7", "< 3 7 11"):
        assert short.answer((("user", text),), [1, 0]).text == generated(run, text, [1, 0], 0)[0]
    assert widths == [3, 6]


def test_nothing_is_written_into_the_workdir(toy_run, client):
    before = {path: path.stat().st_mtime_ns for path in toy_run.rglob("*")}
    client.post(CHAT, json=asked("< 3 7"))
    assert {path: path.stat().st_mtime_ns for path in toy_run.rglob("*")} == before
    assert not (toy_run / ".lock").exists()


def test_a_port_in_use_and_a_preference_that_is_none_are_said(toy_run, run):
    with server.listen(0) as first:
        assert first.getsockname()[0] == "127.0.0.1"
        with pytest.raises(OSError, match="--port=0 takes a free one"):
            server.listen(first.getsockname()[1])
    with pytest.raises(ValueError, match="first, second"):
        lives.Live(run, preference="1")
    with pytest.raises(ValueError, match="room for 1 token"):
        lives.Live(run, max_new=0)
    with pytest.raises(SystemExit, match=r"config\.json"):
        command_line.main([f"--checkpoint={toy_run / 'checkpoints'}", "--port=0"])


@pytest.fixture
def address(live):
    """Of a real server in a thread."""
    uvicorn = pytest.importorskip("uvicorn")
    with server.listen(0) as listening:
        serving = uvicorn.Server(uvicorn.Config(routes.application(live), log_level="warning", lifespan="off"))
        thread = threading.Thread(target=serving.run, kwargs={"sockets": [listening]})
        thread.start()
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"
        serving.should_exit = True
        thread.join(30)
        assert not thread.is_alive()


def test_the_openai_client(address, run):
    openai = pytest.importorskip("openai")
    text, proposed, *_ = generated(run, "< 3 7", [1.0, 0.0], 0)
    with openai.OpenAI(base_url=f"{address}/v1", api_key="none", max_retries=0) as user:
        arguments = {"model": user.models.list().data[0].id, "messages": asked("< 3 7")["messages"], "seed": 0}
        extra = {"preference": [1, 0]}
        whole = user.chat.completions.create(**arguments, extra_body=extra)
        assert whole.choices[0].message.content == text
        np.testing.assert_allclose(whole.meal["proposed"]["first"], proposed[0], atol=1e-4)
        stream = user.chat.completions.create(**arguments, extra_body=extra, stream=True)
        assert "".join(chunk.choices[0].delta.content or "" for chunk in stream) == text
        with pytest.raises(openai.BadRequestError, match="would do") as error:
            user.chat.completions.create(**arguments, extra_body={"preference": [1, 1]})
        assert error.value.param == "preference"


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="needs chromium (Debian's package of that name)")
@pytest.mark.parametrize("width", [400, 1200])
def test_the_page_answers_in_a_browser(request, run, monkeypatch, tmp_path, width):
    source, kind = routes.PAGE["/page.js"]
    driven = tmp_path / "page.js"
    driven.write_text(source.read_text() + DRIVE)
    monkeypatch.setitem(routes.PAGE, "/page.js", (driven, kind))
    address = request.getfixturevalue("address")
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr", f"--window-size={width},900"]
    flags += [f"--user-data-dir={tmp_path / 'profile'}", "--virtual-time-budget=20000", "--dump-dom"]
    out = subprocess.run([CHROMIUM, *flags, address], capture_output=True, text=True, timeout=120)
    text, proposed, *_ = generated(run, "< 3 7", [1.0, 0.0], 0)
    assert "CONSOLE" not in out.stderr, out.stderr
    [article] = re.findall(r"<article>(.*?)</article>", out.stdout, re.DOTALL)
    asked_for, answer, facts = (html.unescape(p) for p in re.findall(r"<p[^>]*>(.*?)</p>", article, re.DOTALL))
    assert asked_for == "first 1.00   second 0.00 — < 3 7" and answer == text
    assert f"proposed: first {proposed[0]:.2f}" in facts and "rewards: first" in facts and "tokens in" in facts
    assert re.search(r'<body[^>]*data-overflow="no"', out.stdout)
