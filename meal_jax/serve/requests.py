"""Bodies of OpenAI's chat interface, in and out: what a request asks for, and the form of answers and errors.

A request may have `preference`, a list of a weight per objective or a table of weights by objective, which the openai client
sends by `extra_body`. Answers have the field `meal`: the preference, what the method proposed for it, and rewards. A streamed
answer's has `text` too, where bytes that had been sent as a character turned out to spell none: it is the whole answer.

Letters: K objectives.
"""

from __future__ import annotations

import json
import math
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from meal_jax.data import chat as chats
from meal_jax.data import forms, own
from meal_jax.limits import SEED
from meal_jax.saved_run import read_preference
from meal_jax.serve.live import Answer

# Fields that say what this server cannot do, and the values under which there is nothing to do.
UNSUPPORTED = {
    "n": (1,), "tools": ([],), "functions": ([],), "logprobs": (False,), "stop": ([], ""), "frequency_penalty": (0,),
    "presence_penalty": (0,), "logit_bias": ({},),
    "response_format": ({"type": "text"},),
    "min_p": (0,), "repetition_penalty": (1,), "stop_token_ids": ([],), "min_tokens": (0,), "ignore_eos": (False,),
}  # fmt: skip
MESSAGE = 'a message is {"role": "user" or "assistant", "content": text or [{"type": "text", "text": text}, …]}.'


class BadRequestError(ValueError):
    """A request that cannot be answered; `field` names what is wrong in it."""

    def __init__(self, message: str, field: str | None = None):
        super().__init__(message)
        self.field = field


class Asked(NamedTuple):
    """A request: arguments of `Live.answer`, and whether the answer is streamed."""

    turns: chats.Turns
    preference: np.ndarray | None
    seed: int
    max_tokens: int | None
    temperature: float | None
    top_p: float | None
    top_k: int | None
    stream: bool
    usage: bool


def parse(body: bytes) -> Any:
    """The JSON value of a request's body.

    Raises:
      BadRequestError: it is none, or a text in it is not Unicode: JSON can write half of a surrogate pair, "\\ud83d", which
        no tokenizer reads and no answer can repeat.
    """
    try:
        value = json.loads(body)
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        half = error.object[error.start : error.end]
        raise BadRequestError(f"The body has half of a surrogate pair, {half!r}, which is no character.") from None
    except (ValueError, RecursionError) as error:
        raise BadRequestError(f"The body is not JSON ({error}).") from None
    return value


def read(body: Any, objectives: Sequence[str]) -> Asked:
    """What the body of a request asks for.

    Raises:
      BadRequestError: names the field.
    """
    if not isinstance(body, dict):
        raise BadRequestError("The body must be a JSON object.")
    for name, harmless in UNSUPPORTED.items():
        if body.get(name) is not None and body[name] not in harmless:
            raise BadRequestError(f"{name}={body[name]!r} is not supported here: leave it out.", name)
    limit = "max_completion_tokens" if body.get("max_completion_tokens") is not None else "max_tokens"
    options, stream, top_k = body.get("stream_options"), body.get("stream"), _number(body, "top_k", int, -1)
    if not isinstance(stream, bool | None):
        raise BadRequestError(f"stream={stream!r} must be true or false.", "stream")
    return Asked(
        turns=_turns(body.get("messages")),
        preference=_preference(body.get("preference"), objectives),
        seed=_number(body, "seed", int, SEED.lowest, SEED.highest) or 0,
        max_tokens=_number(body, limit, int, 1),
        temperature=_number(body, "temperature", float, 0, 2),
        top_p=_number(body, "top_p", float, 1e-6, 1),
        top_k=top_k and max(top_k, 0),  # other servers take -1 for all tokens
        stream=bool(stream),
        usage=isinstance(options, dict) and bool(options.get("include_usage")),
    )


def _turns(messages: Any) -> chats.Turns:
    if not isinstance(messages, list) or not messages:
        raise BadRequestError("messages must be a list that ends with a message of the role user.", "messages")
    plain = [dict(m, content=forms.joined(m.get("content"))) if isinstance(m, dict) else m for m in messages]
    if any(isinstance(m, dict) and m.get("role") in ("system", "developer") for m in plain):
        raise BadRequestError(
            "messages has a system message; it is this run's configuration (config.data.system), the same for every "
            "prompt. Leave it out.",
            "messages",
        )
    try:
        return own.read_turns({"messages": plain}, "The request", MESSAGE)
    except ValueError as error:
        raise BadRequestError(str(error), "messages") from None


def _preference(value: Any, objectives: Sequence[str]) -> np.ndarray | None:
    if value is None:
        return None
    if isinstance(value, dict):
        if set(value) != set(objectives):
            raise BadRequestError(f"preference must have a weight for each of {', '.join(objectives)}.", "preference")
        value = [value[name] for name in objectives]
    if not isinstance(value, list) or not all(isinstance(v, int | float) and not isinstance(v, bool) for v in value):
        raise BadRequestError(
            f"preference must be a list of weights, of {', '.join(objectives)}, or a table of them.", "preference"
        )
    try:
        return read_preference(",".join(map(repr, value)), objectives)
    except ValueError as error:
        raise BadRequestError(str(error), "preference") from None


def _number(body: Mapping[str, Any], name: str, kind: type, low: float, high: float = float("inf")) -> Any:
    value = body.get(name)
    if value is None:
        return None
    right = isinstance(value, int) and not isinstance(value, bool)  # of any size: no float can hold some
    right = right or (isinstance(value, float) and math.isfinite(value))
    right = right and (kind is float or value == int(value))
    if not right or not low <= value <= high:
        bounds = f"{low:g} or more" if high == float("inf") else f"{low:g} to {high:g}"
        raise BadRequestError(
            f"{name}={value!r:.40} must be {'a number' if kind is float else 'a whole number'}, {bounds}.", name
        )
    return kind(value)


def error(message: str, field: str | None = None, kind: str = "invalid_request_error") -> dict[str, Any]:
    """An error's body."""
    return {"error": {"message": message, "type": kind, "param": field, "code": None}}


def completion(answer: Answer, model: str) -> dict[str, Any]:
    """The body of a whole answer."""
    message = {"role": "assistant", "content": answer.text, "refusal": None}
    choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": _reason(answer)}
    return _head("chat.completion", model) | {
        "choices": [choice], "usage": _usage(answer), "meal": _details(answer),
    }  # fmt: skip


class Chunks:
    """The bodies of a streamed answer, all of one id."""

    def __init__(self, model: str, usage: bool):
        self.head, self.usage = _head("chat.completion.chunk", model), usage

    def piece(self, text: str, first: bool) -> dict[str, Any]:
        """Of a text to append."""
        return self._body(({"role": "assistant"} if first else {}) | {"content": text}, None)

    def last(self, answer: Answer, sent: str) -> Iterator[dict[str, Any]]:
        """After the answer's last piece: why it ended and its details, with its text where the pieces sent are another;
        then, if asked for, its counts."""
        corrected = {} if sent == answer.text else {"text": answer.text}
        yield self._body({}, _reason(answer)) | {"meal": _details(answer) | corrected}
        if self.usage:
            yield self.head | {"choices": [], "usage": _usage(answer)}

    def _body(self, delta: dict[str, Any], reason: str | None) -> dict[str, Any]:
        return self.head | {"choices": [{"index": 0, "delta": delta, "logprobs": None, "finish_reason": reason}]}


def _head(kind: str, model: str) -> dict[str, Any]:
    return {"id": f"chatcmpl-{uuid.uuid4().hex}", "object": kind, "created": int(time.time()), "model": model}


def _reason(answer: Answer) -> str:
    return "stop" if answer.ended else "length"


def _usage(answer: Answer) -> dict[str, int]:
    total = answer.prompt_tokens + answer.tokens
    return {"prompt_tokens": answer.prompt_tokens, "completion_tokens": answer.tokens, "total_tokens": total}


def _details(answer: Answer) -> dict[str, Any]:
    return {"preference": answer.preference, "proposed": answer.proposed, "rewards": answer.rewards}
