"""The doctor's report, and a line of it."""

from __future__ import annotations

import collections
import functools
from typing import NamedTuple

from rich.console import Console
from rich.text import Text

GIB = 2**30


class Finding(NamedTuple):
    """One line of the report: ok, warn, fail, or unknown where nobody looked; of what; what was found; what to do."""

    status: str
    name: str
    detail: str
    advice: str = ""


ok = functools.partial(Finding, "ok")
warn = functools.partial(Finding, "warn")
fail = functools.partial(Finding, "fail")
unknown = functools.partial(Finding, "unknown")


def report(findings: list[Finding]) -> None:
    """Prints the list."""
    console, styles = Console(soft_wrap=True), {"ok": "green", "warn": "yellow", "fail": "bold red", "unknown": "cyan"}
    width = max(len(finding.name) for finding in findings)
    column = max(4, *(len(finding.status) for finding in findings))
    for status, name, detail, advice in findings:
        console.print(Text.assemble((f"{status:{column}}", styles[status]), f"  {name:{width}}  {detail}"))
        if advice:
            console.print(Text.assemble(" " * (width + column + 4), ("→ ", styles[status]), advice))
    count = collections.Counter(finding.status for finding in findings)
    rest = f", {count['unknown']} unknown" if count["unknown"] else ""
    console.print(f"\n{count['fail']} failed, {count['warn']} to look at, {count['ok']} fine{rest}")
