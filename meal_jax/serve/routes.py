"""The application: the page, what it shows of the run, and OpenAI's chat interface.

    GET  /                      the page: a prompt, the preference, the answer as it grows
    GET  /run.json              objectives, step, limits and a prompt of the run
    GET  /v1/models             the run, as the only model
    POST /v1/chat/completions   see `requests`; `stream` sends tokens as they are drawn

Requests are answered one after another. Only this machine is answered: a host name other than 127.0.0.1 or localhost, and a
body that is not declared as JSON, are refused, so that no site in a browser can use the server.
"""

from __future__ import annotations

import asyncio
import json
import math
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from meal_jax import evaluate
from meal_jax.report import page
from meal_jax.serve import requests
from meal_jax.serve.live import Answer, Live

HERE = Path(__file__).parent
PAGE = {
    "/": (HERE / "page.html", "text/html"),
    "/page.css": (HERE / "page.css", "text/css"),
    "/triangle.js": (page.HERE / "triangle.js", "text/javascript"),
    "/page.js": (HERE / "page.js", "text/javascript"),
}
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; style-src 'self'; script-src 'self'; connect-src 'self'",
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-store",
}


def application(live: Live) -> Starlette:
    """The application that serves `live`."""
    turn = asyncio.Lock()  # one answer at a time
    model = live.run.workdir.resolve().name

    def file(path: Path, kind: str):
        text = path.read_text()

        async def send(request: Request) -> Response:
            return Response(text, media_type=kind, headers=HEADERS)

        return send

    async def run(request: Request) -> Response:
        return JSONResponse(describe(live, model), headers=HEADERS)

    async def models(request: Request) -> Response:
        entry = {"id": model, "object": "model", "created": 0, "owned_by": "meal_jax"}
        return JSONResponse({"object": "list", "data": [entry]})

    async def chat(request: Request) -> Response:
        if request.headers.get("content-type", "").partition(";")[0].strip() != "application/json":
            return _refuse(415, "The content type must be application/json.")
        try:
            asked = requests.read(requests.parse(await request.body()), live.objectives)
        except requests.BadRequestError as error:
            return _refuse(400, str(error), error.field)
        pieces: asyncio.Queue[Any] = asyncio.Queue()
        work = asyncio.create_task(_answer(live, turn, asked, pieces, request.is_disconnected))
        first = await pieces.get()  # a refusal has a status of its own, before anything is streamed
        if isinstance(first, ValueError):
            return _refuse(400, str(first), "messages")
        if isinstance(first, Exception):
            return _refuse(500, f"{type(first).__name__}: {first}", kind="server_error")
        if asked.stream:
            events = _events(first, pieces, requests.Chunks(model, asked.usage))
            return StreamingResponse(events, media_type="text/event-stream", headers={"Cache-Control": "no-store"})
        await work
        return JSONResponse(_finite(requests.completion(first, model)))

    routes = [Route(path, file(*entry)) for path, entry in PAGE.items()]
    routes += [
        Route("/run.json", run),
        Route("/v1/models", models),
        Route("/v1/chat/completions", chat, methods=["POST"]),
    ]
    hosts = Middleware(TrustedHostMiddleware, allowed_hosts=["127.0.0.1", "localhost"])
    return Starlette(routes=routes, middleware=[hosts], exception_handlers={404: _absent, 405: _absent})


def describe(live: Live, model: str) -> dict[str, Any]:
    """What the page shows of a run."""
    task = live.run.task
    return {
        "model": model, "step": live.run.step, "task": task.name, "objectives": list(live.objectives),
        "preference": [float(v) for v in live.preference], "max_new": live.max_new,
        "temperature": live.run.config.eval.temperature, "prompt": evaluate.readable_prompt(task, task.test, 0),
    }  # fmt: skip


async def _answer(
    live: Live, turn: asyncio.Lock, asked: requests.Asked, pieces: asyncio.Queue, is_gone: Callable[[], Awaitable[bool]]
) -> None:
    """Answers in a thread, when it is this request's turn: puts each text so far if streamed, then Answer or an error."""
    loop = asyncio.get_running_loop()

    def tell(text: str) -> None:
        loop.call_soon_threadsafe(pieces.put_nowait, text)

    def work() -> Answer:
        return live.answer(
            asked.turns, asked.preference, seed=asked.seed, max_tokens=asked.max_tokens, temperature=asked.temperature,
            top_p=asked.top_p, top_k=asked.top_k, watch=tell if asked.stream else None,
        )  # fmt: skip

    async with turn:
        if await is_gone():  # it did not wait for its turn: nothing is sampled for nobody
            pieces.put_nowait(ConnectionError("The client has gone."))
            return
        try:
            result = await asyncio.to_thread(work)
        except Exception as error:
            result = error
        pieces.put_nowait(result)  # after the texts: those came through the loop before the thread ended


async def _events(first: Any, pieces: asyncio.Queue, chunks: requests.Chunks) -> AsyncIterator[str]:
    """Server-sent events of a streamed answer: what each text adds to the one before."""
    piece, text, sent = first, "", ""
    while isinstance(piece, str):
        added = _added(text, piece)
        yield _event(chunks.piece(added, not sent))
        text, sent, piece = piece, sent + added, await pieces.get()
    if isinstance(piece, Exception):
        yield _event(requests.error(f"{type(piece).__name__}: {piece}", kind="server_error"))
        return
    added = _added(text, piece.text)
    if added or not sent:
        yield _event(chunks.piece(added, not sent))
    for body in chunks.last(piece, sent + added):
        yield _event(body)
    yield "data: [DONE]\n\n"


def _added(before: str, text: str) -> str:
    """What a text has behind all that it shares with the one before; what that had besides cannot be taken back."""
    pairs = enumerate(zip(before, text, strict=False))
    return text[next((i for i, (a, b) in pairs if a != b), len(before)) :]


def _event(body: dict[str, Any]) -> str:
    return f"data: {json.dumps(_finite(body))}\n\n"


def _finite(value: Any) -> Any:
    """JSON values with null in place of numbers that JSON has not."""
    if isinstance(value, dict):
        return {name: _finite(v) for name, v in value.items()}
    if isinstance(value, list):
        return [_finite(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _refuse(status: int, message: str, field: str | None = None, kind: str = "invalid_request_error") -> Response:
    return JSONResponse(requests.error(message, field, kind), status_code=status)


async def _absent(request: Request, error: Exception) -> Response:
    return _refuse(error.status_code, f"There is no {request.method} {request.url.path} here.")
