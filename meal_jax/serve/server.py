"""Opens a run and serves its page and routes on 127.0.0.1 until Ctrl-C."""

from __future__ import annotations

import argparse
import socket

from meal_jax import console
from meal_jax.saved_run import open_run, read_config
from meal_jax.serve.live import Live

HOST = "127.0.0.1"


def serve(args: argparse.Namespace) -> None:
    """Serves the run of --checkpoint.

    Raises:
      ImportError: the extra `serve` is not installed.
      OSError: the port is in use.
      ValueError, FileNotFoundError: as `saved_run.open_run`; or a preference or length that cannot be.
    """
    try:
        import uvicorn

        from meal_jax.serve import routes
    except ImportError as error:
        raise ImportError(f"{error.name} is missing, which serves the page: pip install 'meal_jax[serve]'.") from None
    listening = listen(args.port)  # before the run is opened, which may take minutes
    config = read_config(args.checkpoint, args.set)
    live = Live(open_run(args.checkpoint, config, args.devices), args.preference, args.max_new, args.rewards)
    console.say(f"{args.checkpoint}, step {live.run.step}: http://{HOST}:{listening.getsockname()[1]} (Ctrl-C ends it)")
    console.say("The first answer compiles and takes longer.")
    server = uvicorn.Server(uvicorn.Config(routes.application(live), log_level="warning", lifespan="off"))
    server.run(sockets=[listening])


def listen(port: int) -> socket.socket:
    """A socket on HOST.

    Raises:
      OSError: the port is in use.
    """
    out = socket.socket()
    out.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        out.bind((HOST, port))
        out.listen()
    except (OSError, OverflowError) as error:
        out.close()
        raise OSError(
            f"Port {port} cannot be listened on ({error}): name another, --port=0 takes a free one."
        ) from None
    return out
