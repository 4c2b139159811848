"""The other side of the comparison: benchmarks/peer_hf.py in its own process, and the check that it does the same work.

Letters: B prompts, N candidates, S prompt tokens, T response tokens, L layers.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import importlib.util
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from meal_jax import build, cost, methods, train
from meal_jax.bench.phases import Opened, Side
from meal_jax.hf import families, pretrained, shapes
from meal_jax.meal.step import Rollout, Scores
from meal_jax.rollout.decode import Responses

PEER = Path(__file__).resolve().parents[2] / "benchmarks" / "peer_hf.py"
NEEDED = ("torch", "transformers", "peft")
MAX_COPIED = 4e9  # bytes of random weights that are passed in a file; for larger models each side draws its own
LOSS, NORM = {"float32": 1e-4, "bfloat16": 5e-2}, {"float32": 1e-3, "bfloat16": 1e-1}  # largest relative difference


def need_peer(config) -> None:
    """Refuses configurations that the peer cannot run, before anything is loaded.

    Raises:
      ValueError: names what is missing or does not fit.
    """
    missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        raise ValueError(f"--vs=hf needs {', '.join(missing)}: pip install -e '.[bench]'.")
    if not PEER.exists():
        raise ValueError(f"--vs=hf needs {PEER.name}, which is in the repository's benchmarks/, not in the package.")
    if config.task != "synthetic":
        raise ValueError(
            f"--vs=hf compares on the task 'synthetic' (configs/bench_smollm2.py), not on {config.task!r}."
        )
    if not config.policy.lora_rank:
        raise ValueError("--vs=hf: the peer trains LoRA adapters; set config.policy.lora_rank.")
    if methods.get(config.method).update is not methods.METHODS["meal"].update:
        raise ValueError(f"--vs=hf: the peer does the policy updates of meal, static and raft, not of {config.method}.")


class Sampler(NamedTuple):
    """How the peer samples.

    Attributes:
      merged: with its adapters folded into the weights.
      cache: of generate: dynamic, static, or compiled, see peer_hf.py.
    """

    merged: bool = False
    cache: str = "dynamic"


PLAIN = Sampler()


class Peer:
    """A running peer; answers `ask`."""

    def __init__(self, process: subprocess.Popen, facts: dict[str, Any]):
        self._process, self.facts = process, facts

    def ask(self, do: str, **fields: Any) -> dict[str, Any]:
        """Sends a request and waits for the answer.

        Raises:
          RuntimeError: the peer failed; holds its message.
        """
        return _ask(self._process, do, **fields)


def _ask(process: subprocess.Popen, do: str, **fields: Any) -> dict[str, Any]:
    with contextlib.suppress(BrokenPipeError):  # a dead peer gives the empty answer below
        process.stdin.write(json.dumps({"do": do} | fields) + "\n")
        process.stdin.flush()
    line = process.stdout.readline()
    answer = json.loads(line) if line else {"error": f"it ended with exit status {process.wait()}"}
    if "error" in answer:
        raise RuntimeError(f"The peer ({PEER.name}) failed: {answer['error']}. See its output above.")
    return answer


@contextlib.contextmanager
def start(opened: Opened, side: Side, folder: Path, sampler: Sampler = PLAIN) -> Iterator[Peer]:
    """Runs the peer on the work of a side: same weights, prompts, lengths, candidates, adapter sizes, types and threads.

    Args:
      opened: the run.
      side: of a method with Meal's update.
      folder: for the files that pass weights and inputs.
      sampler: how the peer samples.
    """
    config, model = side.config, side.setup.policy.config
    folder.mkdir(parents=True, exist_ok=True)
    inputs = folder / "inputs.npz"
    np.savez(inputs, prompts=np.asarray(side.batch.tokens), heads=np.asarray(opened.task.reward_params["w"]))
    source, described = str(config.policy.source), {}
    if not source or source.startswith(shapes.RANDOM):
        described = families.entries(model) | {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 2}
        source = ""
        if cost.base_parameters(model) * cost.BYTES[model.param_dtype] <= MAX_COPIED:
            source = str(folder / "weights")
            pretrained.save(source, model, side.frozen.policy["transformer"])
    job = {
        "source": source, "shapes": described, "batch": config.batch_size, "candidates": config.meal.candidates,
        "prompt": config.data.prompt_length, "new": config.sampling.max_new, "objectives": len(config.objectives),
        "updates": side.method.cost(config).updates, "rank": config.policy.lora_rank, "alpha": config.policy.lora_alpha,
        "targets": list(cost.adapted(model)), "dtype": model.dtype, "param_dtype": model.param_dtype,
        "lr": config.optim.lr, "clip": config.optim.clip, "checkpointing": model.remat == "full", **sampler._asdict(),
        "threads": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "device": "cuda" if jax.default_backend() == "gpu" else "cpu", "inputs": str(inputs),
    }  # fmt: skip
    process = subprocess.Popen(
        [sys.executable, str(PEER), "--serve"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        yield Peer(
            process, _ask(process, "open", **job) | sampler._asdict() | {"weights": source or "its own random ones"}
        )
    finally:
        process.stdin.close()
        try:
            process.wait(timeout=30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def check(opened: Opened, side: Side, peer: Peer, folder: Path) -> dict[str, float] | None:
    """Runs both sides' policy updates on the same responses and adapters; losses and the second gradient must agree.

    Neither policy reads a preference. All rewards are equal, so acceptance is the same. The second update starts from the
    result of the first, so its loss and gradient also test the first update's gradient, clipping and AdamW.

    Returns:
      Relative differences "loss" and "grad_norm"; None if the sides have different weights.

    Raises:
      ValueError: they differ by more than the compute type allows, so the two do not do the same work.
    """
    if not Path(peer.facts["weights"]).exists():
        return None
    config = side.config.copy_and_resolve_references()
    config.conditioning.kind, config.optim.warmup = "none", 0
    config = methods.configure("static", config)
    task = build.for_method(opened.task, config)
    # The peer's loss has the whole vocabulary.
    setup = dataclasses.replace(build.build_setup(config, task), forbidden=None)
    method = methods.get("static")
    _, state, _, placement, _ = train.begin(config, setup, task, method.init, opened.mesh, None)
    theta = {
        path: 0.02 * jax.random.normal(jax.random.key(i), leaf.shape)
        for i, (path, leaf) in enumerate(traverse_util.flatten_dict(state.policy, sep="/").items())
    }
    state = state.replace(policy=jax.device_put(traverse_util.unflatten_dict(theta, sep="/"), placement.policy))
    batch, n, t = side.batch, config.meal.candidates, config.sampling.max_new
    shape = (config.batch_size, n, t)
    tokens = jax.random.randint(jax.random.key(99), shape, 3, task.transformer.vocab_size)
    w = jnp.full((*shape[:2], len(config.objectives)), 1.0 / len(config.objectives))
    responses = Responses(tokens, jnp.ones(shape, bool), jnp.zeros(shape), jnp.zeros(shape[:2], bool))
    rolled = Rollout(w, w, jnp.zeros((shape[0], task.transformer.width)), responses)
    path = folder / "check.npz"
    factors = {re.sub("^transformer/layers/", "", name): np.asarray(value) for name, value in theta.items()}
    np.savez(path, tokens=np.asarray(tokens), **factors)
    update = jax.jit(functools.partial(method.update, setup))
    _, metrics = update(state, side.frozen, batch, rolled, Scores(jnp.zeros(w.shape), None))
    answer = peer.ask("check", path=str(path))
    pairs = {
        "loss": (float(metrics["loss/base"]), float(np.mean(answer["loss"])), LOSS),
        "grad_norm": (float(metrics["grad_norm/policy"]), answer["grad_norm"][-1], NORM),
    }
    difference = {name: abs(a - b) / abs(b) for name, (a, b, _) in pairs.items()}
    for name, (a, b, tolerance) in pairs.items():
        if not difference[name] <= tolerance[config.policy.dtype]:
            raise ValueError(
                f"The two sides do not do the same work: {name} of the policy updates on the same responses is {a:.6g} here "
                f"and {b:.6g} in the peer."
            )
    return difference
