"""Prompts in memory.

Letters: R prompt rows, S prompt tokens.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np


class Prompts(NamedTuple):
    """Prompts in memory.

    Attributes:
      tokens: [R, S] int32, left-padded.
      mask: [R, S] bool, False at padding.
      id: [R] int32, names the row.
      text: each row as a reward that reads text sees it, R strings; () without such rewards.
    """

    tokens: np.ndarray
    mask: np.ndarray
    id: np.ndarray
    text: tuple[str, ...] = ()

    def rows(self, index: np.ndarray) -> Prompts:
        """The rows that `index` selects, numbers or [R] bool."""
        chosen = np.arange(len(self.id))[index]
        text = tuple(self.text[i] for i in chosen) if self.text else ()
        return Prompts(self.tokens[chosen], self.mask[chosen], self.id[chosen], text)
