"""A run's policy that answers one request after another, and tells its tokens as they are drawn.

An answer is that of `python -m meal_jax.generate` for the same prompt, preference, seed and sampling: both call
`generate.answers`. A program is compiled for each prompt length of `config.data.buckets` and for each sampling.

Letters: K objectives, T response tokens.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import numpy as np

from meal_jax import evaluate
from meal_jax.data import chat as chats
from meal_jax.data import pipeline
from meal_jax.generate import answers
from meal_jax.rollout.sampling import Sampling
from meal_jax.saved_run import Run, read_preference

PROGRAMS = 8  # samplings whose programs are kept
Watch = Callable[[str], None]


class Answer(NamedTuple):
    """What a request is answered.

    Attributes:
      text: of the answer.
      ended: the policy ended it; else it was cut.
      preference, proposed: as asked for, and what the method gave the policy in its place, by objective.
      rewards: by objective; {} where they were not computed.
      prompt_tokens, tokens: counts.
    """

    text: str
    ended: bool
    preference: dict[str, float]
    proposed: dict[str, float]
    rewards: dict[str, float]
    prompt_tokens: int
    tokens: int


class Live:
    """A run and its compiled programs. Not for several threads: one call of `answer` at a time.

    Args:
      run: as from `saved_run.open_run`.
      preference: of requests that name none, "0.3,0.7"; None for equal weights.
      max_new: most tokens of an answer; None as trained.
      rewards: also compute them.

    Raises:
      ValueError: a preference that is none, or no room for an answer.
    """

    def __init__(self, run: Run, preference: str | None = None, max_new: int | None = None, rewards: bool = False):
        self.run, self.rewards = run, rewards
        self.objectives = tuple(run.task.objectives)
        k = len(self.objectives)
        self.preference = np.full(k, 1 / k) if preference is None else read_preference(preference, self.objectives)
        self.max_new = run.config.sampling.max_new if max_new is None else max_new
        if self.max_new < 1:
            raise ValueError(f"--max_new={max_new}: an answer needs room for 1 token or more.")
        self._watch: Callable[[int, np.ndarray], None] | None = None
        self._program = functools.lru_cache(PROGRAMS)(self._compile)

    def _compile(self, sampling: Sampling) -> Callable:
        """(prompts, w [1, K], seed) → Answers."""
        return answers.reusable(self.run, sampling=sampling, max_new=self.max_new, rewards=self.rewards)

    def _tell(self, t: int, tokens: np.ndarray) -> None:
        if self._watch is not None:
            self._watch(int(t), np.asarray(tokens))

    def answer(
        self,
        turns: chats.Turns,
        preference: Sequence[float] | None = None,
        *,
        seed: int = 0,
        max_tokens: int | None = None,
        temperature: float | None = None,
        top_p: float | None = None,
        top_k: int | None = None,
        watch: Watch | None = None,
    ) -> Answer:
        """Answers a conversation.

        Args:
          turns: (role, text) that end with the user's.
          preference: [K], not negative, of sum 1; None for the default.
          seed: of the draws.
          max_tokens: the answer is cut there; at most `max_new`.
          temperature, top_p, top_k: None as the run was evaluated.
          watch: called with the text so far, each time that it has grown, from another thread. A text may change what an
            earlier one ended with: bytes that spelt a character may turn out to spell none.

        Raises:
          ValueError: the prompt does not fit, or sampling cannot be so.
          RuntimeError: a reward refuses the answer.
        """
        e, task = self.run.config.eval, self.run.task
        sampling = Sampling(
            e.temperature if temperature is None else temperature, e.top_k if top_k is None else top_k,
            e.top_p if top_p is None else top_p, watch=self._tell,
        )  # fmt: skip
        prompts = answers.read_prompts(task, [turns])
        length = int(pipeline.bucketed(prompts.mask, self.run.config.data.buckets)[0])
        shorter = prompts._replace(tokens=prompts.tokens[:, -length:], mask=prompts.mask[:, -length:])
        limit = self.max_new if max_tokens is None else min(max_tokens, self.max_new)
        w = self.preference if preference is None else np.asarray(preference, float)
        self._watch = None if watch is None else _Growing(task, limit, watch)
        try:
            answered = self._program(sampling)(shorter, w[None], seed)
            jax.effects_barrier()  # every token has been told
        except ValueError as error:  # of a reward: the prompt was read, and is not at fault
            raise RuntimeError(str(error)) from error
        finally:
            self._watch = None
        tokens, mask = answered.tokens[0, 0][:limit], answered.mask[0, 0][:limit]
        ended = bool(answered.ended[0, 0]) and int(answered.mask[0, 0].sum()) <= limit
        scores = answered.scores[0, 0] if self.rewards and limit == self.max_new else ()
        whole = evaluate.whole_answer(task, tokens, mask, ended)
        text = evaluate.cut_answer(task, whole)
        ended = ended or text != whole  # at a stop text
        return Answer(
            text, ended, self._named(w),
            self._named(answered.proposals[0, 0]), self._named(scores), int(prompts.mask.sum()), int(mask.sum()),
        )  # fmt: skip

    def _named(self, values: Sequence[float]) -> dict[str, float]:
        return {name: round(float(v), 4) for name, v in zip(self.objectives, values, strict=False)}


class _Growing:
    """Turns the tokens of an answer, in any order, into its text so far, without what may become a stop text."""

    def __init__(self, task, limit: int, watch: Watch):
        self.task, self.limit, self.watch = task, limit, watch
        self.tokens: dict[int, int] = {}
        self.count, self.text, self.ended = 0, "", False

    def __call__(self, t: int, tokens: np.ndarray) -> None:
        self.tokens[t] = int(tokens.reshape(-1)[0])
        while self.count in self.tokens and self.count < self.limit and not self.ended:
            self.ended = self.tokens[self.count] == self.task.end
            self.count += 1
        ids = np.array([self.tokens[i] for i in range(self.count)], np.int32)
        text = evaluate.readable_answer(self.task, ids, np.ones(len(ids), bool), ended=False)
        text = text.removesuffix(_begun(text, self.task.stop)).rstrip()
        if len(text) > len(self.text):  # it is shorter where bytes still wait for the rest of their character
            self.text = text
            self.watch(text)


def _begun(text: str, stop: Sequence[str]) -> str:
    """The longest end of a text that begins a stop text; white space before one does not tell, since it is cut too."""
    marks = [mark.lstrip() for mark in stop]
    longest = max(map(len, marks), default=0)
    return next((text[-n:] for n in range(longest, 0, -1) if any(mark.startswith(text[-n:]) for mark in marks)), "")
