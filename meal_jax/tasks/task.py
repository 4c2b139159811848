"""What a benchmark gives to a run: prompts, a policy to start from, rewards, and, where it is known, the truth.

Letters: K objectives, V vocabulary, M preferences.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from meal_jax.data.prompts import Prompts
from meal_jax.models.policy import Conditioning
from meal_jax.models.transformer import TransformerConfig

PyTree = Any


def as_written(turns: Any) -> tuple[Any, str]:
    """A conversation itself, and its turns' texts; see `Task.ask`."""
    return turns, " ".join(text for _, text in turns)


class Task(NamedTuple):
    """A benchmark, ready to run.

    Attributes:
      objectives: K names.
      transformer: the policy's architecture, adapters included.
      conditioning: how the policy reads a preference.
      weights: reads the transformer's parameters to start from: (a tree like them with a sharding for each leaf, or None for
        the default device) → parameters. None to draw them at random.
      train: prompts to train on.
      test: prompts to evaluate on; no row of `train` is among them.
      pad, end: token ids.
      forbidden: [V] bool, tokens that a response never holds; None if all may.
      reward: see `meal.step.Setup.reward`; None if `config.reward.sources` replaces all of the benchmark's own.
      reward_params: the reward's parameters, a pytree of arrays.
      reward_reads_base: the reward reads the base model's hidden states.
      reference: [K] reference point of the hypervolume, shared by every method; NaN where the first evaluation fixes it.
      truth: None, or the exact best average rewards [M, K] on `test` for preferences [M, K].
      show: token ids of one response, or of one prompt, to text.
      name: of the benchmark, for titles.
      text_rewards: for each objective, (mesh, Frozen) → a reward of texts (see `rewards/text.py`), or None where `reward`
        has its column; () if it has all of them. `tasks.attach_rewards.attach` fills it in.
      token_functions: for each objective the name of the user's function of tokens that rewards it, "" where another kind
        of reward does; () as above.
      charged: `reward` gives one more column, what `rewards.charges` takes from the rewards of texts.
      judged_by_base: one of `text_rewards` reads the frozen base.
      evaluation_set: name, sha256 and number of the prompts of `test`, see `data.templates.evaluation_set`.
      chat: a `data.chat.Chat`, how conversations become prompts; None for a benchmark that is not of text.
      ask: a conversation as a person writes it → it as this benchmark asks it of the policy, and its text as rewards read it.
      stop: texts at which an answer is cut before a reward reads it, see `data.templates.stop_of` and `rewards.stop`.
    """

    objectives: tuple[str, ...]
    transformer: TransformerConfig
    conditioning: Conditioning
    weights: Callable[[PyTree | None], PyTree] | None
    train: Prompts
    test: Prompts
    pad: int
    end: int
    forbidden: np.ndarray | None
    reward: Callable[..., Any] | None
    reward_params: PyTree
    reward_reads_base: bool
    reference: np.ndarray
    truth: Callable[[np.ndarray], np.ndarray] | None
    show: Callable[[np.ndarray], str]
    name: str
    text_rewards: tuple[Callable[..., Any] | None, ...] = ()
    token_functions: tuple[str, ...] = ()
    charged: bool = False
    judged_by_base: bool = False
    evaluation_set: dict[str, Any] | None = None
    chat: Any = None
    ask: Callable[[Any], tuple[Any, str]] = as_written
    stop: tuple[str, ...] = ()
