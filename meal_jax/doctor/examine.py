"""All checks, on all processes alike, and what all of them found."""

from __future__ import annotations

import collections
import functools
import json
import os
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from meal_jax.doctor import devices, files, models, prompts, software
from meal_jax.doctor.finding import Finding, fail, report, unknown

DEVICE_SECONDS = 180.0  # that a program on all devices may take, once it is compiled


def examine(config: Any, workdir: str) -> list[Finding]:
    """Makes all checks; every process calls it, and all return the same: what any of them found.

    Raises:
      SystemExit: the devices cannot be used at all; the report is printed.
    """
    findings = [*software.versions(), software.settings(config)]
    sound = findings[-1].status == "ok"  # else the fields cannot be relied on
    if sound:
        inputs = [*models.models(config), *files.data(config), *prompts.prompts(config)]
        findings += [*inputs, *files.workdir(config, workdir)]
    lacking = sound and any(finding.status == "fail" for finding in inputs)
    try:
        jax.devices()
    except RuntimeError as error:
        advice = "Is another program on them, a run that has not ended? Does the driver work? `pip list` shows JAX's plugins."
        report([*findings, fail("devices", f"{error}".partition("\n")[0], advice)])
        raise SystemExit(1) from None
    # Past here every process goes, whatever it found: the others wait for it.
    findings += devices.present()
    layout, mesh = devices.laid_out(config)
    findings += layout
    if sound and mesh is not None:
        findings += devices.memory(config, mesh, files.decoder(config))
    if lacking_somewhere(lacking):  # the run cannot start anyway: the answer is there in seconds
        why = "not tried, since weights or data are missing"
        findings += [unknown("collective", why), unknown("step", why)]
        return gathered([*findings, *files.shared(workdir)])
    programs = {"collective": devices.compile_collective}
    if mesh is not None:
        programs["step"] = functools.partial(devices.compile_small_step, mesh)
    for name, compile_program in programs.items():
        program = compile_program()  # outside of the limit: a loaded machine compiles slowly
        try:
            findings += within(DEVICE_SECONDS, program)
        except TimeoutError:
            report([*findings, silent(name)])
            os._exit(1)  # a thread waits for the devices, and would keep this process
    return gathered([*findings, *files.shared(workdir)])


def lacking_somewhere(lacking: bool) -> bool:
    """Whether any process lacks what the run reads; the same on all."""
    if jax.process_count() == 1:
        return lacking
    return bool(np.any(multihost_utils.process_allgather(np.array(lacking))))


def silent(name: str) -> Finding:
    """The finding of a compiled program that did not end in time."""
    count, processes = jax.device_count(), jax.process_count()
    advice = "Is another program on the device? Does its driver run?"
    if count > 1:
        advice = "Some device does not take part. Is another program on one of them?"
    if processes > 1:
        advice += " Was the command started on every host, and are the ports between hosts open?"
    if count > 1 and jax.default_backend() == "gpu":
        advice += " NCCL_DEBUG=INFO says more."
    of = "the device" if count == 1 else f"all {count} devices"
    return fail(name, f"no answer from {of} in {DEVICE_SECONDS:.0f} s, the program being compiled", advice)


def within(seconds: float, function: Callable[[], list[Finding]]) -> list[Finding]:
    """What the function returns or raises; TimeoutError if that takes longer, while it goes on in a thread."""
    result: Future = Future()

    def work() -> None:
        try:
            result.set_result(function())
        except BaseException as error:
            result.set_exception(error)

    threading.Thread(target=work, daemon=True).start()
    return result.result(timeout=seconds)


def gathered(findings: list[Finding]) -> list[Finding]:
    """The findings of all processes, on all: process 0's, and what others found that it did not."""
    if jax.process_count() == 1:
        return findings
    encoded = json.dumps(findings).encode()
    sizes = np.ravel(multihost_utils.process_allgather(np.int32(len(encoded))))
    padded = np.zeros(1 << int(max(sizes)).bit_length(), np.uint8)
    padded[: len(encoded)] = np.frombuffer(encoded, np.uint8)
    rows = multihost_utils.process_allgather(padded)
    first, *others = ([Finding(*f) for f in json.loads(row[:n].tobytes())] for row, n in zip(rows, sizes, strict=True))
    elsewhere: dict[Finding, list[int]] = collections.defaultdict(list)
    for number, their_findings in enumerate(others, 1):
        for finding in their_findings:
            if finding.status != "ok" and finding not in first:
                elsewhere[finding].append(number)
    return first + [f._replace(detail=f"{f.detail} (processes {numbers})") for f, numbers in elsewhere.items()]
