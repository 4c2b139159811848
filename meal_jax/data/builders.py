"""TFDS builders of the two benchmarks' data. They write array_record and never import TensorFlow.

Rows keep the order of the published files. Text is as published, so readers parse the same as in the files.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from meal_jax.data import files, hh_rlhf
from meal_jax.data import summarize_from_feedback as sff

Rows = dict[str, list[dict[str, Any]]]  # split → records


class _Builder(tfds.core.GeneratorBasedBuilder):
    """A builder with source files.

    Args:
      sources: the published files of this config.
      tick: called with (rows written, total rows), for progress.
      **kwargs: as of `tfds.core.GeneratorBasedBuilder`.
    """

    VERSION = tfds.core.Version("1.0.0")
    url_infos = None  # TFDS's own downloads, which are not used; loading their table would need importlib_resources
    TEXTS: Sequence[str] = ()  # features that are texts
    NUMBERS: Sequence[str] = ()  # features that are int32

    def __init__(self, *, sources: Sequence[Path] = (), tick: Callable[[int, int], None] = lambda *_: None, **kwargs):
        self._sources, self._tick = sources, tick
        super().__init__(file_format="array_record", **kwargs)

    def _info(self) -> tfds.core.DatasetInfo:
        features = {name: tfds.features.Text() for name in self.TEXTS}
        features |= {name: tfds.features.Scalar(dtype=np.int32) for name in self.NUMBERS}
        return tfds.core.DatasetInfo(
            builder=self,
            description=self.__class__.__doc__,
            homepage=self.HOMEPAGE,
            features=tfds.features.FeaturesDict(features),
            disable_shuffling=True,  # keeps the order of the files; the pipeline shuffles, by key and epoch
        )

    def _split_generators(self, dl_manager) -> dict[str, Iterable]:
        rows = self.read(self._sources)  # all rows are parsed before any is written: a bad row leaves nothing behind
        total, done = sum(map(len, rows.values())), 0

        def generate(split: str, before: int) -> Iterator[tuple[int, dict[str, Any]]]:
            for i, record in enumerate(rows[split]):
                yield i, record
                self._tick(before + i + 1, total)

        out = {}
        for split in rows:
            out[split] = generate(split, done)
            done += len(rows[split])
        return out

    def _generate_examples(self):
        raise NotImplementedError("each split's generator is made by _split_generators")

    def read(self, sources: Sequence[Path]) -> Rows:
        """Parses the source files.

        Raises:
          ValueError: names file and line.
        """
        raise NotImplementedError


class HhRlhf(_Builder):
    """Human preference pairs of Anthropic's hh-rlhf: whole transcripts, their last answers, and why a row is no pair."""

    HOMEPAGE = "https://huggingface.co/datasets/Anthropic/hh-rlhf"
    BUILDER_CONFIGS = [tfds.core.BuilderConfig(name=name, version="1.0.0") for name in hh_rlhf.SUBSETS]  # noqa: RUF012
    TEXTS = ("chosen", "rejected", "chosen_answer", "rejected_answer", "no_pair")

    def read(self, sources: Sequence[Path]) -> Rows:
        out: Rows = {}
        for file in sources:
            split = files.split_of(file)
            if split not in ("train", "test"):
                raise ValueError(f"{file} begins with neither train nor test, so the split of its rows is not known.")
            for source, row in files.rows(file):
                pair, reason = hh_rlhf.parse(row, source)
                texts = (row["chosen"], row["rejected"], pair.chosen, pair.rejected, reason)
                out.setdefault(split, []).append(dict(zip(self.TEXTS, texts, strict=True)))
        return out


class SummarizeFromFeedback(_Builder):
    """Human comparisons of two summaries of a Reddit post or a news article, OpenAI's summarize-from-feedback."""

    HOMEPAGE = "https://huggingface.co/datasets/openai/summarize_from_feedback"
    BUILDER_CONFIGS = [tfds.core.BuilderConfig(name="comparisons", version="1.0.0")]  # noqa: RUF012
    TEXTS = ("id", *sff.INFO, "summary_0", "summary_1", "policy_0", "policy_1", "split", "batch")
    NUMBERS = ("choice", "confidence")

    def read(self, sources: Sequence[Path]) -> Rows:
        out: Rows = {}
        for file in sources:
            for source, row in files.rows(file):
                comparison = sff.parse(row, source)
                out.setdefault(comparison.split, []).append(sff.to_record(comparison))
        return out


BUILDERS = {"hh_rlhf": HhRlhf, "summarize_from_feedback": SummarizeFromFeedback}
