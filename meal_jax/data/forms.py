"""Rows as other tools have them, as rows of one's own (`data.own`).

    {"messages": [{"role": "user", …}, {"role": "assistant", …}]}      OpenAI and TRL: ends with the answer to learn from
    {"prompt": text or messages, "completion": text or messages}       TRL
    {"prompt": text or messages, "chosen": messages, "rejected": messages}      TRL; both answers may hold the conversation,
                                                                       beside the prompt or without it
    {"prompt": text, "messages": […]}                                  ultrachat, no_robots: the prompt repeats the beginning
    {"conversations": [{"from": "human", "value": …}, {"from": "gpt", "value": …}]}      ShareGPT

TRL's are described in https://huggingface.co/docs/trl/dataset_formats.
"""

from __future__ import annotations

from typing import Any

Messages = list[dict[str, Any]]

ROLES = {"human": "user", "gpt": "assistant"}  # of ShareGPT; others are spelled as ours
ANSWERS = ("chosen", "rejected")
NOT_GOOD = ("false", "0", "0.0")  # texts of TRL's `label` that mark a completion as one not to learn from


def messages(value: Any) -> Messages | None:
    """A list of messages by role and content, from either spelling; None where `value` is no such list."""
    if not isinstance(value, list) or not value or not all(isinstance(turn, dict) for turn in value):
        return None
    if all({"role", "content"} <= turn.keys() for turn in value):
        return [{"role": turn["role"], "content": joined(turn["content"])} for turn in value]
    if all({"from", "value"} <= turn.keys() for turn in value):
        return [{"role": ROLES.get(str(turn["from"]), turn["from"]), "content": turn["value"]} for turn in value]
    return None


def joined(content: Any) -> Any:
    """The text of a message's parts, where it is given in parts of text, as OpenAI's interface has them; else as it is."""
    if isinstance(content, list) and all(isinstance(p, dict) and isinstance(p.get("text"), str) for p in content):
        return "".join(part["text"] for part in content)
    return content


def as_own(row: dict[str, Any], source: str) -> dict[str, Any]:
    """The row with its conversation in `messages` and its answers as texts; a row that is in none of these forms as it is.

    Args:
      row: fields as in the file; a table's empty cells are None.
      source: where it stands, which error messages begin with.

    Raises:
      ValueError: the answers of a pair do not end with an answer, or belong to different conversations.
    """
    row = dict(row)
    if messages(row.get("messages")) and row["messages"] == row.get("chosen"):
        del row["messages"]  # UltraFeedback repeats the better answer there, for fine-tuning
    turns = None
    for name in ("messages",) if row.get("messages") is not None else ("prompt", "conversations"):
        if turns := messages(row.get(name)):
            del row[name]
            row["messages"] = turns
            break
    answers = {name: messages(row.get(name)) for name in ANSWERS}
    if all(answers.values()):
        _split_pair(row, answers, source)
    if turns and row.get("prompt") is not None and _begins(turns, row["prompt"]):
        del row["prompt"]
    completion = None if _not_good(row.get("label")) else row.get("completion")
    if row.get("response") is None and completion is not None:
        told = messages(completion)
        row["response"] = told[0]["content"] if told and len(told) == 1 else completion
    answered = any(row.get(name) is not None for name in ("response", *ANSWERS))
    if turns and len(turns) > 1 and turns[-1]["role"] == "assistant" and not answered:
        row["messages"], row["response"] = turns[:-1], turns[-1]["content"]
    return row


def _split_pair(row: dict[str, Any], answers: dict[str, Messages], source: str) -> None:
    """Leaves the last turns of both answers as texts, and the conversation before them in `messages` if no prompt is given."""
    before = {}
    for name, turns in answers.items():
        *before[name], last = turns
        if last["role"] != "assistant":
            raise ValueError(f"{source}: {name} ends with a turn of {last['role']!r}; an answer is of 'assistant'.")
        row[name] = last["content"]
    given = row.get("messages")
    if given is None and isinstance(row.get("prompt"), str):
        given = [{"role": "user", "content": row["prompt"]}]
    if given is None and before["chosen"]:
        given = row["messages"] = before["chosen"]
    for name in ANSWERS:
        if before[name] != [] and _plain(before[name]) != _plain(given or []):
            raise ValueError(
                f"{source}: {name} holds another conversation before its answer than the row's prompt or the other answer; "
                "the two of a pair answer the same."
            )


def _begins(turns: Messages, prompt: Any) -> bool:
    """Whether a conversation begins with a prompt, a text or messages; system messages do not count."""
    given = messages(prompt) or [{"role": "user", "content": prompt}]
    spoken, given = ([turn for turn in part if turn["role"] != "system"] for part in (turns, given))
    return _plain(spoken[: len(given)]) == _plain(given)


def _not_good(label: Any) -> bool:
    """Whether TRL's label says that a completion is not to be learned: false, 0, or a text of these. None says nothing."""
    if isinstance(label, str):
        return label.strip().casefold() in NOT_GOOD
    return isinstance(label, bool | int | float) and label == 0


def _plain(turns: Messages) -> list[tuple[Any, str]]:
    return [(turn["role"], str(turn["content"]).strip()) for turn in turns]
