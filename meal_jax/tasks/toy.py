"""The embedded benchmark: a small language whose Pareto front is known exactly.

Letters: B prompts, N candidates, K objectives, T response tokens, V vocabulary, Y prompt types, M preferences.

A prompt is [begin, marker, marker, fillers]; its two markers name one of 16 types. For each type and objective, SET
content tokens serve that objective; all other tokens serve none. What a token is worth thus depends on the prompt, and a
policy must read it. With f_k the number of a response's tokens that serve objective k, over the most that fit before the
end token,
    r_k = f_k ^ γ,   halved for every objective if the response has not ended in time.
γ differs by type: below 1 it gives a strictly concave trade-off (a balanced response serves all objectives well), at 1 a
linear one (every mixture is as good as any other). A perfect response fills all but the last position with serving
tokens, in the proportion that the preference asks of this γ, and then ends.

The truth needs no search: a response matters only through how many of its tokens serve each objective, so enumerating
those counts gives a type's best response for any preference, and the mean over the test prompts' types is the front.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from meal_jax.data.prompts import Prompts
from meal_jax.data.templates import evaluation_set
from meal_jax.meal.step import Batch
from meal_jax.models.policy import Conditioning
from meal_jax.models.transformer import TransformerConfig
from meal_jax.rewards import sources
from meal_jax.rollout.decode import Responses
from meal_jax.tasks.task import Task
from meal_jax.tasks.toy_base import pretrain

PAD, BEGIN, END = 0, 1, 2
MARKERS = 4  # values of each of the two markers
TYPES = MARKERS * MARKERS
FIRST, SECOND, FILLER, CONTENT = 3, 3 + MARKERS, 3 + 2 * MARKERS, 11 + 8  # first id of each class of tokens
VOCABULARY = 64
FILLERS = 3  # at most; prompts differ in length, so padding is exercised
SET = 3
OBJECTIVES = 10  # at most: the exact front weighs 352,716 answers of ten; the vocabulary has tokens for 15
GAMMAS = (0.4, 0.5, 0.6, 1.0)
PROMPT_LENGTH = 3 + FILLERS


def values(objectives: int) -> np.ndarray:
    """1 where a token serves an objective, by prompt type: [Y, V, K]. Fixed: the benchmark is the same for every seed."""
    rng = np.random.default_rng(2604_24178)
    out = np.zeros((TYPES, VOCABULARY, objectives), np.float32)
    for kind in range(TYPES):
        content = CONTENT + rng.permutation(VOCABULARY - CONTENT)
        for k in range(objectives):
            out[kind, content[k * SET : (k + 1) * SET], k] = 1.0
    return out


def gammas() -> np.ndarray:
    """γ [Y]; every value of the first marker meets every γ."""
    return np.array([GAMMAS[(kind + kind // MARKERS) % len(GAMMAS)] for kind in range(TYPES)], np.float32)


def prompt_types(tokens, xp=jnp):
    """The type [...] of prompts [..., S]: markers have ids of their own, so position and padding do not matter."""
    first = xp.sum(xp.where((tokens >= FIRST) & (tokens < SECOND), tokens - FIRST, 0), axis=-1)
    second = xp.sum(xp.where((tokens >= SECOND) & (tokens < FILLER), tokens - SECOND, 0), axis=-1)
    return first * MARKERS + second


def reward(params: dict, batch: Batch, responses: Responses, hidden: None = None) -> jax.Array:
    """r [B, N, K] of responses; `params` holds "values" [Y, V, K] and "gammas" [Y]."""
    kind = prompt_types(batch.tokens)
    table = params["values"][kind]  # [B, V, K]
    content = responses.mask & (responses.tokens != END)
    given = jax.vmap(lambda rows, tokens: rows[tokens])(table, responses.tokens)  # [B, N, T, K]
    longest = responses.tokens.shape[-1] - 1
    share = jnp.minimum(jnp.sum(given * content[..., None], axis=2) / longest, 1.0)
    shaped = share ** params["gammas"][kind][:, None, None]
    return shaped * jnp.where(responses.ended, 1.0, 0.5)[..., None]


def show(tokens) -> str:
    """Token ids as words: "<" begins, ">" ends, "." pads, all others are their numbers."""
    names = {PAD: ".", BEGIN: "<", END: ">"}
    return " ".join(names.get(int(t), str(int(t))) for t in tokens)


def make_prompts(per_type: int, seed: int, first_id: int) -> Prompts:
    """`per_type` prompts of every type, fillers drawn by `seed`."""
    rng = np.random.default_rng(seed)
    rows = TYPES * per_type
    tokens = np.full((rows, PROMPT_LENGTH), PAD, np.int32)
    for i in range(rows):
        kind, fillers = i % TYPES, rng.integers(1, FILLERS + 1)
        row = [BEGIN, FIRST + kind // MARKERS, SECOND + kind % MARKERS]
        row += rng.integers(FILLER, CONTENT, fillers).tolist()
        tokens[i, PROMPT_LENGTH - len(row) :] = row
    text = tuple(show(row[row != PAD]) for row in tokens)
    return Prompts(tokens, tokens != PAD, np.arange(first_id, first_id + rows, dtype=np.int32), text)


def counts(objectives: int, longest: int) -> np.ndarray:
    """Every way to have up to `longest` tokens serve the objectives, [C, K] float64 in lexical order."""
    if objectives == 0:
        return np.zeros((1, 0))
    rest = [(n, counts(objectives - 1, longest - n)) for n in range(longest + 1)]
    return np.concatenate([np.insert(rows, 0, n, axis=1) for n, rows in rest])


def best_points(prompts: Prompts, preferences: np.ndarray, max_new: int) -> np.ndarray:
    """Average rewards [M, K] of an exact maximiser of each preference [M, K], by enumeration of counts.

    Responses that do not end are left out: ending doubles every reward, and at most one more token fits without it.
    """
    objectives, longest = preferences.shape[1], max_new - 1
    share = counts(objectives, longest) / longest
    kinds = prompt_types(prompts.tokens, np)
    total = np.zeros((len(preferences), objectives))
    for gamma, rows in zip(*np.unique(gammas()[kinds], return_counts=True), strict=True):
        r = share**gamma
        # Of equally good responses (a linear trade-off met by its own slope) take the most even one.
        even = -r.std(axis=1)
        total += rows * r[np.argmax(np.round(preferences @ r.T, 9) + 1e-12 * even, axis=1)]
    return total / len(prompts.tokens)


def build(config) -> Task:
    """The toy benchmark for `config` (objectives, sizes of the policy, response length).

    Raises:
      ValueError: too few test prompts, too many objectives, or answers too short to serve one.
    """
    c, objectives = config.policy, len(config.objectives)
    if config.eval.prompts < TYPES:
        raise ValueError(
            f"config.eval.prompts={config.eval.prompts}: the toy evaluates as many prompts of each of its {TYPES} types, so "
            f"take a multiple of {TYPES}."
        )
    if config.sampling.max_new < 2:
        raise ValueError(
            f"config.sampling.max_new={config.sampling.max_new} leaves the toy's answers no token beside their end: take 2 or "
            "more."
        )
    if objectives > OBJECTIVES:
        raise ValueError(f"config.objectives names {objectives} rewards: the toy has {OBJECTIVES} at most.")
    transformer = TransformerConfig(
        vocab_size=VOCABULARY,
        width=c.width,
        layers=c.layers,
        heads=c.heads,
        kv_heads=c.kv_heads,
        head_dim=c.width // c.heads,
        hidden=c.hidden,
        dtype=c.dtype,
        remat=c.remat,
        unroll=c.layers,  # so few and small layers lose more to slicing stacked parameters than unrolling costs
    )
    test = make_prompts(config.eval.prompts // TYPES, seed=1, first_id=1_000_000)
    train = make_prompts(64, seed=2, first_id=0)
    test_tokens = {row.tobytes() for row in test.tokens}
    fresh = np.array([row.tobytes() not in test_tokens for row in train.tokens])
    forbidden = np.zeros(VOCABULARY, bool)
    forbidden[[PAD, BEGIN]] = True
    table = values(objectives)

    def read_base(placed):
        base = pretrain(
            transformer,
            (train.tokens, train.mask),
            table[prompt_types(train.tokens, np)],
            (np.arange(VOCABULARY) >= CONTENT).astype(np.float32),
            steps=c.pretrain,
            length=config.sampling.max_new,
            end=END,
            pad=PAD,
        )
        return base if placed is None else jax.device_put(jax.device_get(base), placed)

    own_columns = list(sources.own_objectives(config))  # objectives that no other reward replaces
    return Task(
        objectives=tuple(config.objectives),
        transformer=transformer,
        conditioning=Conditioning(
            kind=config.conditioning.kind,
            objectives=objectives,
            slots=config.conditioning.slots,
            hidden=config.conditioning.hidden,
            # The numeral i of "text" is content token i: the policy learns what it means.
            table=tuple(tuple((CONTENT + i,) for i in range(11)) for _ in range(objectives)),
            prompt=config.conditioning.prompt,
        ),
        weights=read_base if c.pretrain else None,
        train=train.rows(fresh),
        test=test,
        pad=PAD,
        end=END,
        forbidden=forbidden,
        reward=reward,
        reward_params={"values": jnp.asarray(table[..., own_columns]), "gammas": jnp.asarray(gammas())},
        reward_reads_base=False,
        reference=np.zeros(objectives),
        truth=lambda preferences: best_points(test, preferences, config.sampling.max_new),
        show=show,
        name="toy",
        evaluation_set=evaluation_set("toy", test.id, test.text),
    )
