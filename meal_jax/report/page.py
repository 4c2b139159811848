"""The report's page: one HTML file that holds its data, script and plotting library and needs no network."""

from __future__ import annotations

import html
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
PARTS = {
    "UPLOT_STYLE": "uplot/uPlot.min.css",
    "UPLOT": "uplot/uPlot.iife.min.js",
    "STYLE": "page.css",
    "TRIANGLE": "triangle.js",
    "SCRIPT": "page.js",
}


def render(content: Mapping[str, Any]) -> str:
    """The page that shows `content` (see `content.gather`); the same content gives the same bytes.

    Texts in it come from models and data files and are not trusted: they stand in a JSON block in which no tag can begin or
    end, and the script writes them by textContent alone. The page's policy forbids it to load or to send anything.
    """
    # In JSON, < > & occur in strings alone, where these escapes mean the same.
    text = json.dumps(content, ensure_ascii=True, separators=(",", ":"), allow_nan=False)
    for character in "<>&":
        text = text.replace(character, f"\\u{ord(character):04x}")
    page = (HERE / "page.html").read_text()
    # The parts come first and the data last, so that nothing in the data is taken for a place.
    for name, file in PARTS.items():
        page = page.replace(f"@@{name}@@", (HERE / file).read_text())
    return page.replace("@@TITLE@@", html.escape(str(content["title"])), 1).replace("@@DATA@@", text, 1)
