"""The doctor's report, and a line of it."""

from __future__ import annotations

import collections
import functools
from typing import NamedTuple

from rich.console import Console
from rich.text import Text

GIB = 2**30


class Finding(NamedTuple):
    """One line of the report: ok, warn or fail; of what; what was found; what to do."""

    status: str
    name: str
    found: str
    advice: str = ""


ok = functools.partial(Finding, "ok")
warn = functools.partial(Finding, "warn")
fail = functools.partial(Finding, "fail")


def report(findings: list[Finding]) -> None:
    """Prints the list."""
    console, styles = Console(soft_wrap=True), {"ok": "green", "warn": "yellow", "fail": "bold red"}
    width = max(len(finding.name) for finding in findings)
    for status, name, found, advice in findings:
        console.print(Text.assemble((f"{status:4}", styles[status]), f"  {name:{width}}  {found}"))
        if advice:
            console.print(Text.assemble(" " * (width + 8), ("→ ", styles[status]), advice))
    count = collections.Counter(finding.status for finding in findings)
    console.print(f"\n{count['fail']} failed, {count['warn']} to look at, {count['ok']} fine")
