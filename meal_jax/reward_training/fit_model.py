"""Trains a reward model, a whole classifier, on pairs of responses.

    python -m meal_jax.reward_training.model --config=configs/reward_model.py --config.source=DIR --config.data.path=PAIRS

It loads any model of classifiers/classifier.py, with a new head if the model has none. It fits the head, adapters or all
weights to −log σ(score(chosen) − score(rejected)) and tests the model on held-out prompts. It writes a Hugging Face
directory: model, tokenizer, report and card. `model@DIRECTORY` in config.reward.sources trains a policy on it.
(`reward_training.heads` trains small heads on a frozen decoder.)

It runs in one process, and a run that is stopped saves nothing.

Letters: M pairs, B pairs of a batch, S tokens of a row.
"""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import optax

from meal_jax.classifiers import classifier
from meal_jax.field_types import need_pattern
from meal_jax.hf import families, pretrained, rules, storage
from meal_jax.models import lora
from meal_jax.reward_training import calibration, card, pairs
from meal_jax.reward_training.bradley_terry import accuracy
from meal_jax.rewards import formats, text
from meal_jax.runtime import compiler, distributed, identity, metrics, sharding

PyTree = Any
HEAD = ("classifier/", "pooler/")
TRAINED: dict[str, Callable[[str], bool]] = {  # config.train to a test of a parameter's path
    "head": lambda path: path.startswith(HEAD),
    "lora": lambda path: path.startswith(HEAD) or path.endswith(lora.ADAPTER_LEAVES),
    "all": lambda path: True,
}
HARMLESS = ("out", "command", "mesh", "remat")  # fields that may differ from those of a finished model
MIN_HELD_OUT = 10  # held-out pairs; with fewer, the figures mean nothing
REPORT, FIGURE = "reward_report.json", "reliability.png"


class Report(NamedTuple):
    """Figures of a trained reward model, measured on held-out pairs with the weights as they are written.

    Attributes:
      fitted, tested, prompts: numbers of fitted pairs, of held-out pairs, and of distinct held-out prompts.
      left_out: number of pairs that were not used, per reason.
      steps, loss: updates, and the mean loss of each epoch.
      before, after: share of pairs in the right order before and after, a tie counting half.
      interval_before, interval: their 95 % intervals.
      nll: mean −log σ(margin / T), T fitted without the pair's prompt; 0.693 is that of a coin.
      temperature: fitted on all held-out pairs: log-odds = difference of scores / temperature.
      error_raw, error: expected calibration error of σ(margin), and under the cross-fitted temperatures.
      bins: reliability under the cross-fitted temperatures.
      mean, std: of the scores of held-out responses.
      held_out: what decided which pairs are held out, for the card; "" in a report from before this field.
    """

    fitted: int
    tested: int
    prompts: int
    left_out: dict[str, int]
    steps: int
    loss: list[float]
    before: float
    interval_before: tuple[float, float]
    after: float
    interval: tuple[float, float]
    nll: float
    temperature: float
    error_raw: float
    error: float
    bins: list[calibration.Bin]
    mean: float
    std: float
    held_out: str = ""


def check(config) -> Callable[..., formats.Encoded]:
    """Checks a config before model and data are read; returns the layout.

    Raises:
      ValueError: names the field.
    """
    layout = formats.layout_of(config.layout, "config.layout")
    if config.train not in TRAINED:
        raise ValueError(f"config.train={config.train!r} is not one of {', '.join(TRAINED)}.")
    if config.train == "all" and config.param_dtype != "float32":
        raise ValueError(
            f"config.train=all with config.param_dtype={config.param_dtype} would round small updates away; store the "
            "weights in float32 (config.dtype may be bfloat16)."
        )
    need_pattern("config.lora.targets", config.lora.targets)
    for name in ("epochs", "batch_size", "lr", "clip"):
        if not config[name] > 0:
            raise ValueError(f"config.{name}={config[name]} must be above 0.")
    if not 0 < config.data.held_out < 1:
        raise ValueError(f"config.data.held_out={config.data.held_out} must lie between 0 and 1.")
    out = Path(config.out).expanduser()
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ValueError(f"config.out={config.out} is not an empty directory. Name another, or remove what is there.")
    return layout


def finished(config) -> Report | None:
    """The Report of the model in config.out if this configuration has already made it; None if there is none.

    Raises:
      ValueError: config.out holds the model of another configuration; names the fields.
    """
    out = Path(config.out).expanduser()
    try:
        record = json.loads((out / REPORT).read_text())
        saved = record["config"]
    except (OSError, ValueError, KeyError):
        return None
    identity.need_same(out, saved, json.loads(config.to_json_best_effort()), HARMLESS)
    if not storage.weight_files(out):  # written last: without them it is incomplete, and `check` refuses the directory
        return None
    values = {field: record[field] for field in Report._fields if field in record or field != "held_out"}
    values |= {"bins": [calibration.Bin(**values) for values in record["bins"]]}
    values |= {name: tuple(record[name]) for name in ("interval", "interval_before")}
    return Report(**values | {"temperature": np.inf if record["temperature"] is None else record["temperature"]})


def load(config, mesh: jax.sharding.Mesh) -> classifier.Classifier:
    """The initial model, its weights on the mesh, with adapters if these are to be fitted.

    Raises:
      FileNotFoundError, ValueError: as `classifier.load`; or the model has no such label, or no layer for an adapter.
    """
    architectures = pretrained.read_json(pretrained.resolve(config.source) / "config.json").get("architectures") or []
    has_head = not architectures or any(name.endswith(classifier.CLASSIFIER) for name in architectures)
    adapters = lora.Lora(**config.lora) if config.train == "lora" else None
    model = classifier.load(
        config.source,
        fresh_head=None if has_head and not config.fresh_head else 1,
        seed=config.seed,
        dtype=config.dtype,
        param_dtype=config.param_dtype,
        remat=config.remat,
        lora=adapters,
        sharding=lambda tree: sharding.shardings({"reward_models": tree}, mesh)["reward_models"],
    )
    if not 0 <= config.label < model.labels:
        raise ValueError(f"config.label={config.label}, but the model has {model.labels} labels, the first being 0.")
    if adapters and not jax.tree.leaves(lora.split(model.params, lambda p: p.endswith(lora.ADAPTER_LEAVES))[0]):
        raise ValueError(
            f"config.lora.targets={adapters.targets!r} is in the path of no linear layer of {config.source}."
        )
    return model


def loss_of(
    trainable: PyTree, frozen: PyTree, apply: Callable, label: int, tokens, mask, types
) -> tuple[jax.Array, jax.Array]:
    """The Bradley–Terry loss, mean −log σ(score(chosen) − score(rejected)), and the share of pairs in the right order.

    Args:
      trainable, frozen: the two parts of the classifier's parameters.
      apply: `Classifier.apply`.
      label: the logit that is the score.
      tokens, mask, types: [B, 2, S], the chosen response first.
    """
    flat = (array.reshape(-1, array.shape[-1]) for array in (tokens, mask, types))
    scores = apply(lora.merge(trainable, frozen), *flat)[:, label].reshape(-1, 2)
    margin = scores[:, 0] - scores[:, 1]
    return jnp.mean(jax.nn.softplus(-margin)), jnp.mean(margin > 0)


def make_tx(config, steps: int) -> optax.GradientTransformation:
    """AdamW with a warm-up and a cosine decay to 0; weight decay applies to matrices only."""
    warmup = min(round(config.warmup * steps), steps - 1)
    schedule = optax.warmup_cosine_decay_schedule(0.0 if warmup else config.lr, config.lr, warmup, steps)

    def matrices(tree: PyTree) -> PyTree:
        return jax.tree_util.tree_map_with_path(lambda path, _: path[-1].key in ("kernel", *lora.ADAPTER_LEAVES), tree)

    return optax.chain(
        optax.clip_by_global_norm(config.clip),
        optax.adamw(schedule, weight_decay=config.weight_decay, mask=matrices),
    )  # fmt: skip


def make_step(
    apply: Callable, label: int, tx: optax.GradientTransformation, trainable: PyTree, opt: PyTree
) -> Callable:
    """The jitted update (trainable, opt, frozen, tokens, mask, types) → (trainable, opt, loss, right).

    The first two are donated and keep the shardings of those given here. One program per S is compiled.
    """

    def step(trainable, opt, frozen, *rows):
        (loss, right), gradient = jax.value_and_grad(loss_of, has_aux=True)(trainable, frozen, apply, label, *rows)
        updates, opt = tx.update(gradient, opt, trainable)
        return optax.apply_updates(trainable, updates), opt, loss, right

    places = jax.tree.map(lambda leaf: leaf.sharding, (trainable, opt))
    options = compiler.options(jax.tree.leaves(places)[0])
    return jax.jit(step, donate_argnums=(0, 1), out_shardings=(*places, None, None), compiler_options=options)


def fit(
    model: classifier.Classifier, rows: list[pairs.EncodedPair], config, limit: int, mesh: jax.sharding.Mesh
) -> tuple[PyTree, list[float]]:
    """Fits the model to pairs.

    Args:
      model: as `load` gives it; the fitted parameters are donated, the others stay.
      rows: M pairs, at least one batch.
      config: of the run.
      limit: max tokens of a row.
      mesh: rows are split over its data axes.

    Returns:
      All parameters, adapters not folded; and the mean loss of each epoch.

    Raises:
      FloatingPointError: the loss is not a finite number.
    """
    lengths = pairs.lengths_of(rows, limit)
    per_epoch = len(rows) // config.batch_size
    total, placement = config.epochs * per_epoch, sharding.batch_sharding(mesh)
    trainable, frozen = lora.split(model.params, TRAINED[config.train])
    tx = make_tx(config, total)
    # Moments are sharded as their parameters. Counters need a sharding, or the second step is compiled again.
    opt = jax.tree.map(lambda a: a if a.ndim else jax.device_put(a, sharding.replicated(mesh)), tx.init(trainable))
    step = make_step(model.apply, config.label, tx, trainable, opt)
    losses: list[float] = []
    done = 0
    with metrics.progress(total, start=0, description="reward model") as meter:
        for epoch in range(config.epochs):
            for length, index in pairs.batches(lengths, config.batch_size, config.seed, epoch):
                batch = pairs.collate([rows[i] for i in index], length, model.pad)
                trainable, opt, loss, right = step(trainable, opt, frozen, *jax.device_put(batch, placement))
                # Waits for the step, so that a loss that is not finite stops the run at once
                losses.append(float(loss))
                done += 1
                if not np.isfinite(losses[-1]):
                    raise FloatingPointError(
                        f"The loss is {losses[-1]} at step {done} of {total}: training stopped and nothing was written. "
                        f"Lower config.lr={config.lr}, or compute in float32 if config.dtype={config.dtype} is not that."
                    )
                meter.update(done, epoch=epoch + 1, loss=losses[-1], right=float(right))
    return lora.merge(trainable, frozen), np.reshape(losses, (config.epochs, per_epoch)).mean(axis=1).tolist()


def score(reward: text.ModelReward, held: list[pairs.EncodedPair]) -> np.ndarray:
    """Scores [M, 2] of the pairs' responses, the chosen one first.

    Raises:
      FloatingPointError: one is not finite.
    """
    prompts = [row.pair.prompt for row in held for _ in range(2)]
    scores = reward(prompts, [response for row in held for response in (row.pair.chosen, row.pair.rejected)])
    if not np.isfinite(scores).all():
        raise FloatingPointError(f"{(~np.isfinite(scores)).sum()} of {scores.size} held-out scores are not finite.")
    return scores.reshape(-1, 2)


def report_of(before: np.ndarray, after: np.ndarray, held: list[pairs.EncodedPair], **facts) -> tuple[Report, list]:
    """The Report of scores [M, 2] before and after training, and the bins of the uncalibrated probabilities.

    `facts` are the other fields of the Report.
    """
    margins = after[:, 0] - after[:, 1]
    groups = [row.pair.group for row in held]
    wins = calibration.cross_fitted(margins, groups)
    raw, bins = calibration.reliability(calibration.probability(margins)), calibration.reliability(wins)
    (share_before, interval_before), (share, interval) = accuracy(before[:, 0] - before[:, 1]), accuracy(margins)
    return Report(
        tested=len(held),
        prompts=len({row.pair.prompt for row in held}),
        before=share_before,
        interval_before=interval_before,
        after=share,
        interval=interval,
        nll=float(-np.mean(np.log(np.maximum(wins, 1e-12)))),
        temperature=calibration.temperature(margins),
        error_raw=calibration.calibration_error(raw),
        error=calibration.calibration_error(bins),
        bins=bins,
        mean=float(after.mean()),
        std=float(after.std()),
        **facts,
    ), raw


def read_encoded(
    config, layout: Callable[[str, str], formats.Encoded]
) -> tuple[list[pairs.EncodedPair], list[pairs.EncodedPair], dict]:
    """Fitted and held-out pairs in token ids, and how many were left out, per reason.

    Raises:
      FileNotFoundError, ValueError: as `pairs.read_pairs`; or there are too few.
    """
    d = config.data
    every, left_out = pairs.read_pairs(d.kind, d.path, d.split or None, d.prompt)
    parts = pairs.divide(every, d.held_out)
    if shared := len(every) - sum(map(len, parts)):
        left_out["a fitted prompt that is also held out"] = shared
    # Divided before it is cut: the first rows of a directory may all be of its test file.
    parts = [part[:most] for part, most in zip(parts, pairs.quotas(*map(len, parts), d.pairs), strict=True)]
    fitted, held = (pairs.encode_pairs(part, layout, left_out) for part in parts)
    prompts = len({row.pair.group for row in held})
    if len(fitted) < config.batch_size or len(held) < MIN_HELD_OUT or prompts < 2:
        raise ValueError(
            f"{d.path} gives {len(fitted)} pairs to fit and {len(held)}, of {prompts} prompts, to test on; it takes at least "
            f"{config.batch_size} (config.batch_size), {MIN_HELD_OUT} and 2. Give more pairs, or change config.data.held_out="
            f"{d.held_out}, which divides the pairs that name no split. Left out: {dict(left_out) or 'none'}."
        )
    return fitted, held, dict(left_out)


def need_ids(rows: list[pairs.EncodedPair], model: classifier.Classifier, source: str) -> None:
    """Raises ValueError if the tokenizer gives ids that the model's embedding does not have."""
    largest = max(max(encoded.ids) for row in rows for encoded in (row.chosen, row.rejected))
    if largest >= model.config.vocab_size:
        raise ValueError(
            f"The tokenizer of {source} gives the id {largest}, and the model has {model.config.vocab_size} embeddings: they "
            "do not belong together."
        )


def save(config, model: classifier.Classifier, params: PyTree, tokenizer, report: Report, raw: list, seconds: float):
    """Writes the directory; the weights come last, so that their presence means completeness."""
    out = Path(config.out).expanduser()
    out.mkdir(parents=True, exist_ok=True)
    tokenizer.save_pretrained(out)
    rules.keep(tokenizer, out)
    calibration.draw(out / FIGURE, {"as trained": raw, "with the temperature": report.bins})
    facts = {"config": json.loads(config.to_json_best_effort())} | report._asdict()
    facts["bins"] = [b._asdict() for b in report.bins]
    facts |= {"seconds": round(seconds, 1), "machine": card.machine()}
    finite = facts if np.isfinite(report.temperature) else facts | {"temperature": None}
    (out / REPORT).write_text(json.dumps(finite, indent=2) + "\n", encoding="utf-8")
    text_of_card = card.render(config, model, report, seconds, FIGURE)
    (out / "README.md").write_text(text_of_card, encoding="utf-8")
    settings: dict[str, Any] = {formats.ENTRY: {"layout": config.layout, "label": config.label}}
    if model.family == "gpt2" or model.family in families.FAMILIES:
        # torch finds a row's last token by this id, so it must be the one that its tokenizer pads with.
        settings["pad_token_id"] = tokenizer.pad_token_id
    classifier.save(out, model.config, params, settings=settings)


def run(config: ml_collections.ConfigDict) -> Report:
    """The whole command; writes config.out.

    Raises:
      FileNotFoundError, ValueError: the config, the model or the data are wrong; nothing is written.
      FloatingPointError: training diverged; nothing is written.
    """
    start = time.monotonic()
    distributed.refuse_several("python -m meal_jax.reward_training.model")
    if (report := finished(config)) is not None:
        print(f"{config.out} holds the model of this configuration already.\n{card.summarise(report)}")
        return report
    layout = check(config)
    out = Path(config.out).expanduser()
    with identity.hold(out.parent, f".{out.name}{identity.LOCK}"):
        return _run(config, layout, start)


def _run(config: ml_collections.ConfigDict, layout: Callable[..., formats.Encoded], start: float) -> Report:
    mesh = sharding.make_mesh(config.mesh.data, config.mesh.fsdp)
    sharding.check_batch(mesh, config.batch_size, "config.batch_size")
    tokenizer = pretrained.load_tokenizer(config.source)
    formats.need_begin(tokenizer, layout, f"config.layout={config.layout}")
    positions = classifier.load_config(config.source, fresh_head=1).positions
    limit = min(formats.limit(tokenizer, positions), config.data.length or positions)
    tokenizer.model_max_length = limit  # saved with the model, so that every reader cuts rows at the same length

    def encode(prompt: str, response: str) -> formats.Encoded:
        return layout(tokenizer, prompt, response, limit)

    fitted, held, left_out = read_encoded(config, encode)
    model = load(config, mesh)
    need_ids(fitted + held, model, config.source)
    print(f"{len(fitted)} pairs to fit, {len(held)} held out; left out: {left_out or 'none'}.", flush=True)

    adapters = model.config.lora
    # Figures are those of the model as it is written
    plain = classifier.make_classifier(without_adapters(model.config), None)
    reward = text.ModelReward(
        encode,
        lambda params, *rows: plain.apply(params, *rows)[:, config.label],
        lora.fold(model.params, adapters),
        mesh,
        limit=limit,
        pad=model.pad,
        batch_size=2 * config.batch_size,
        cache_size=0,
    )
    before = score(reward, held)
    reward.params = None  # the weights that are fitted are donated
    params, losses = fit(model, fitted, config, limit, mesh)
    reward.params = lora.fold(params, adapters)
    after = score(reward, held)
    steps = config.epochs * (len(fitted) // config.batch_size)
    facts = {"fitted": len(fitted), "left_out": left_out, "steps": steps, "loss": losses}
    report, raw = report_of(before, after, held, **facts, held_out=card.held_out(config, fitted + held))
    save(config, model, reward.params, tokenizer, report, raw, time.monotonic() - start)
    print(card.summarise(report))
    print(f"Wrote {config.out} in {time.monotonic() - start:.0f} s.")
    return report


def without_adapters(config):
    """A classifier's configuration without LoRA."""
    if hasattr(config, "decoder"):
        return dataclasses.replace(config, decoder=dataclasses.replace(config.decoder, lora=None))
    return dataclasses.replace(config, lora=None)
