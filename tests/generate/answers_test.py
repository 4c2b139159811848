"""The command line that answers a prompt: under one preference, under a grid, on text and on the toy; and what it refuses."""

import json
import types

import numpy as np
import pytest

from meal_jax import evaluate
from meal_jax.data.prompts import Prompts
from meal_jax.generate import __main__ as command_line
from meal_jax.generate import answers as generate
from meal_jax.reward_training import ranked_answers
from meal_jax.saved_run import open_run


def call(capsys, *argv):
    command_line.main(list(map(str, argv)))
    return capsys.readouterr().out


def refusal(*argv):
    with pytest.raises(SystemExit) as error:
        command_line.main(list(map(str, argv)))
    return str(error.value)


@pytest.fixture(autouse=True)
def no_cache(monkeypatch):
    monkeypatch.setenv("MEAL_CACHE", "0")
    monkeypatch.setenv("COLUMNS", "140")


def test_a_grid_shows_what_the_evaluation_of_the_same_prompt_gives(capsys, toy_run):
    run = open_run(toy_run)
    out = call(capsys, f"--checkpoint={toy_run}", "--prompt_row=3", "--grid", "--temperature=0")
    grid = np.array([[0, 1], [0.5, 0.5], [1, 0]])
    sampling = generate.Sampling(temperature=0.0)
    result = generate.answers(run, run.task.test.rows(np.array([3])), grid, sampling=sampling, max_new=4)
    assert run.task.show(run.task.test.tokens[3][run.task.test.mask[3]]) in out
    for m, w in enumerate(grid):
        cells = [f"{w[0]:.2f} {w[1]:.2f}", " ".join(f"{v:.2f}" for v in result.proposals[0, m])]
        cells += [run.task.show(result.tokens[0, m][result.mask[0, m]]), *(f"{v:.2f}" for v in result.scores[0, m])]
        assert any([c.strip() for c in line.split("│")[1:-1]] == cells for line in out.splitlines()), (cells, out)


def test_a_prompt_of_toy_tokens_is_the_row_it_spells(toy_run):
    task = open_run(toy_run).task
    for row in (0, 5):
        spelled = generate.read_prompt(task, task.show(task.test.tokens[row][task.test.mask[row]]))
        np.testing.assert_array_equal(spelled.tokens[0], task.test.tokens[row])
        np.testing.assert_array_equal(spelled.mask[0], task.test.mask[row])
    with pytest.raises(ValueError, match=r"has x, 64: tokens here are written \. < > 3 4 .* 63\."):
        generate.read_prompt(task, "< x 64")
    with pytest.raises(ValueError, match="has 7 tokens, there is room for 1 to 6"):
        generate.read_prompt(task, "< 3 7 11 11 11 11")


def test_text_in_text_out_and_a_preference_changes_the_text(capsys, assistant_run, monkeypatch):
    opened = open_run(assistant_run("prefix"))
    monkeypatch.setattr(generate, "open_run", lambda *args: opened)  # once for both calls
    command = [f"--checkpoint={assistant_run('prefix')}", "--prompt=Is it late?", "--temperature=0", "--max_new=4"]
    alone = call(capsys, *command, "--preference=1,0")
    assert alone.strip() and "│" not in alone
    both = call(capsys, *command, "--preference=0,1", "--preference=1,0")
    rows = [[c.strip() for c in line.split("│")[1:-1]] for line in both.splitlines() if line.startswith("│")]
    assert "Is it late?" in both and "harmless helpful" in both
    assert [row[0] for row in rows] == ["0.00 1.00", "1.00 0.00"]
    assert rows[1][2] == alone.strip() != rows[0][2] and len(rows[0]) == 5


REWARDS = """
def length(prompts, responses):
    return [len(r.split()) for r in responses]

def same(prompts, responses):
    return [len(set(p.split()) & set(r.split())) for p, r in zip(prompts, responses)]
"""


def own_rewards(directory):
    (directory / "mine.py").write_text(REWARDS)
    sources = tuple(f"python:{directory}/mine.py:{name}" for name in ("length", "same"))
    return f"--set=reward.sources={sources}"


def test_a_grid_has_rewards_that_read_text(capsys, toy_run, tmp_path):
    out = call(capsys, f"--checkpoint={toy_run}", "--prompt=< 3 7", "--grid", own_rewards(tmp_path))
    rows = [[cell.strip() for cell in line.split("│")[1:-1]] for line in out.splitlines() if line.startswith("│")]
    assert out.startswith("< 3 7\n") and len(rows) == 3
    for _, _, answer, length, same in rows:
        assert float(length) == len(answer.split()) and float(same) == len({"<", "3", "7"} & set(answer.split()))


def test_a_file_of_prompts_is_answered_in_batches_as_each_alone(capsys, toy_run, tmp_path):
    source, out = tmp_path / "prompts.jsonl", tmp_path / "answers.jsonl"
    prompts = ["< 3 7", "< 4 8", "< 3 7"]
    source.write_text("".join(json.dumps({"prompt": prompt}) + "\n" for prompt in prompts))
    command = [
        f"--checkpoint={toy_run}",
        f"--prompts={source}",
        f"--out={out}",
        "--temperature=0",
        "--preference=0.2,0.8",
    ]
    printed = call(capsys, *command, "--preference=1,0", "--set=eval.batch_size=2", own_rewards(tmp_path))
    lines = [json.loads(line) for line in out.read_text().splitlines()]
    assert [(line["row"], line["prompt"], line["preference"]["first"]) for line in lines] == [
        (row, prompt, weight) for row, prompt in enumerate(prompts) for weight in (0.2, 1.0)
    ]
    for line in lines:
        assert line["rewards"]["first"] == len(line["answer"].split()) and line["ended"] == (
            "> " in line["answer"] + " "
        )
        assert sum(line["proposed"].values()) == pytest.approx(1, abs=1e-3)
    assert [dict(line, row=0) for line in lines[:2]] == [dict(line, row=0) for line in lines[4:]]
    alone = call(capsys, f"--checkpoint={toy_run}", "--prompt=< 4 8", "--temperature=0", "--preference=1,0")
    assert alone.strip() == lines[3]["answer"] and "6 answers (prompts: 3, preferences: 2)" in printed
    assert "is there already" in refusal(*command)


def test_a_file_of_answers_has_the_text_that_the_rewards_read(tmp_path):
    """Plain templates: a base model writes on into the next turn, which no reward saw and no head is to be fitted on."""
    text, out = "Yes.\n\nHuman: and more?", tmp_path / "answers.jsonl"
    tokens = np.frombuffer(text.encode(), np.uint8)[None, None]
    task = types.SimpleNamespace(objectives=("a",), show=lambda ids: bytes(ids.tolist()).decode(), stop=("\nHuman:",))
    sizes = types.SimpleNamespace(batch_size=1, rollout=None, score=None)
    run = types.SimpleNamespace(task=task, config=types.SimpleNamespace(eval=sizes, micro=sizes))
    prompts = Prompts(*[np.ones((1, 1), int)] * 3, text=("hello",))
    one = np.ones((1, 1, 1))
    answered = evaluate.Answers(one, tokens, tokens > 0, np.ones((1, 1), bool), one)
    assert generate.write(out, run, prompts, one[0], lambda _: answered) == 1
    line = json.loads(out.read_text())
    assert (line["answer"], line["whole"]) == ("Yes.", text)
    assert ranked_answers.read(str(out), [((("user", "hello"),), "")]) == [[("Yes.", {"a": 1.0})]]
    shown = generate.table(task, one[0], answered).columns[2]._cells
    assert shown == ["Yes."]


def test_conversations_of_a_file_keep_their_turns(assistant_run):
    task = open_run(assistant_run("text")).task
    turns = (("user", "yes"), ("assistant", "no"), ("user", "please"))
    prompts = generate.read_prompts(task, [turns, (("user", "thank you"),)])
    assert [evaluate.readable_prompt(task, prompts, row) for row in (0, 1)] == [
        "Human: yes\n\nAssistant: no\n\nHuman: please", "thank you",
    ]  # fmt: skip
    shown = task.show(prompts.tokens[0][prompts.mask[0]])
    assert shown.count("please") == 1 and "assistant\nno" in shown


def test_what_is_wrong_is_said_before_the_run_is_opened(monkeypatch, toy_run, tmp_path):
    monkeypatch.setattr(generate, "open_run", lambda *args: pytest.fail("opened"))
    row = [f"--checkpoint={toy_run}", "--prompt_row=0"]
    assert "first, second" in refusal(*row, "--preference=0.2,0.3,0.5")
    assert "0.4286,0.5714 would do" in refusal(*row, "--preference=0.3,0.4")
    assert "negative" in refusal(*row, "--preference=-0.3,1.3")
    assert "not numbers" in refusal(*row, "--preference=first")
    assert "--preference=0.3,0.7 (one weight an objective), or --grid" in refusal(*row)
    assert "room for 1 token" in refusal(*row, "--grid", "--max_new=0")
    assert "between 0 and 4294967295" in refusal(*row, "--grid", f"--seed={2**70}")
    assert "belong together" in refusal(row[0], "--prompts=a.jsonl", "--grid")
    assert "no a.jsonl" in refusal(row[0], f"--prompts={tmp_path}/a.jsonl", f"--out={tmp_path}/b", "--grid").replace(
        f"{tmp_path}/", ""
    )
    (tmp_path / "a.jsonl").write_text('{"prompt": "< 3 7"}\n')
    nowhere = refusal(row[0], f"--prompts={tmp_path}/a.jsonl", f"--out={tmp_path}/none/b.jsonl", "--grid")
    assert f"there is no directory {tmp_path}/none. Make it" in nowhere
    assert "temperature >= 0" in refusal(*row, "--grid", "--temperature=-1")
    assert "has no config.json" in refusal(f"--checkpoint={tmp_path}", "--prompt_row=0", "--grid")


def test_prompts_that_do_not_fit_are_refused(toy_run, assistant_run):
    row = [f"--checkpoint={toy_run}", "--grid"]
    assert "rows 0 to 15" in refusal(*row, "--prompt_row=16")
    message = refusal(f"--checkpoint={assistant_run('text')}", "--grid", f"--prompt={'long ' * 99}")
    assert "there is room for 48" in message and "config.data.prompt_length" in message
    with pytest.raises(ValueError, match="of 3 prompts 2 are too long, leave out or shorten 0, 2"):
        turns = [(("user", text),) for text in ("Why? " * 40, "Why?", "How? " * 40)]
        generate.read_prompts(open_run(assistant_run("prefix")).task, turns)
