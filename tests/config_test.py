"""Configurations: every shipped one loads and passes its checks; each mistake gets its message."""

import contextlib
import importlib.util
import itertools
from pathlib import Path

import ml_collections
import numpy as np
import pytest

from meal_jax import command, evaluate, field_types, methods
from meal_jax import config as base

CONFIGS = Path(__file__).parents[1] / "configs"


def load(name):
    spec = importlib.util.spec_from_file_location(name, CONFIGS / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("name", ["toy", "assistant_small", "reddit_small"])
def test_shipped_configs_pass_their_checks(name):
    config = load(name).get_config()
    base.check(config)
    for method in (config.method, *config.compare_with):
        base.check(methods.get(method).configure(config))


VARIANTS = [
    (name, ",".join(chosen))
    for name, rewards in (("reddit", "summary faithful deberta"), ("assistant", "harmless helpful humor"))
    for k in (2, 3)
    for chosen in itertools.combinations(rewards.split(), k)
]


@pytest.mark.parametrize(("name", "arg"), VARIANTS)
def test_every_variant_of_the_two_benchmarks_passes_its_checks(name, arg):
    config = load(name).get_config(arg)
    k = len(config.objectives)
    assert ",".join(config.objectives) == ",".join(config.reward.sources) == arg
    for method in (config.method, *config.compare_with):
        base.check(methods.get(method).configure(config))
    assert evaluate.grid(config).shape == ({2: 11, 3: 13}[k], k)
    config.eval.grid = "lattice"
    base.check(config)
    lattice = evaluate.grid(config)
    assert lattice.shape == ({2: 11, 3: 15}[k], k)
    assert {tuple(w) for w in lattice} == {p for w in lattice for p in itertools.permutations(w)}  # symmetric
    np.testing.assert_allclose(lattice.sum(axis=1), 1)


@pytest.mark.parametrize("name", ["reddit", "assistant"])
@pytest.mark.parametrize("arg", ["", "summary", "summary,helpful", "harmless,harmless", "faithful,deberta,faithful"])
def test_other_variants_are_refused_with_what_there_is(name, arg):
    with pytest.raises(
        ValueError, match=rf"configs/{name}\.py takes two or three of (summary|harmless),.*, not {arg!r}"
    ):
        load(name).get_config(arg)


def test_toy_takes_the_number_of_objectives_or_a_base():
    assert len(load("toy").get_config("k=3").objectives) == 3
    assert load("toy").get_config("base").policy.pretrain > 0 == load("toy").get_config().policy.pretrain
    with pytest.raises(ValueError, match="k=2, k=3, base or attainable"):
        load("toy").get_config("k=4")


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("stage", "pretrain", "align, sft"),
        ("meal.accept", "best", "soft, sample, top1"),
        ("meal.targets", "sobol", "stratified"),
        ("meal.meta", "reward", "utility, likelihood"),
        ("meal.hypergradient", "unrolled", "exact, first_order, none"),
        ("conditioning.kind", "soft", "prefix, text, adapter, adapter.prefix, adapter.text, none"),
        ("conditioning.kind", "adapter", "lora_rank=0 has none: set a rank that 2 objectives divide, such as 16"),
        ("conditioning.prompt", "both", "uniform, preference"),
        ("meal.baseline", "mean", "none, pool, leave_one_out"),
        ("meal.rejected", "neither", "adapted, proposed"),
        ("meal.reward_scale", "batch", "running, pool"),
        ("meal.passes", 0, "at least 1"),
        ("meal.pass_clip", 1.0, "between 0 and 1"),
        ("meal.accept_share", 0.1, "of 8 candidates must be at least one answer and less than all"),
        ("meal.accept_share", 1.0, "less than all"),
        (
            "meal.meta_fraction",
            0.3,
            "half of config.batch_size=16: 0.3 of 8 prompts is not a whole number",
        ),
        ("meal.meta_fraction", 0.05, "from 1 to 8"),
        ("meal.gap", (0.6, 0.4), "two numbers between 0 and 1, the smaller first"),
        ("meal.gap", (0, 1), "leave some of the 2 objectives' simplex"),
        ("meal.gap", (0.5,), "two numbers"),
        ("data.split", "types", "is for the task stories and its own prompts"),
        ("reward.copy_penalty", -1.0, r"config\.reward\.copy_penalty=-1\.0 must be"),
        ("sampling.compact", (1.5,), r"config\.sampling\.compact=\(1\.5,\) must be shares"),
        ("policy.dtype", "float16", "bfloat16"),
        ("batch_size", 7, "must be even"),
        ("meal.candidates", 0, "at least 1"),
        ("meal.tau", 0.0, "top1"),
        ("meal.lam", -1.0, "not be negative"),
        ("sampling.max_new", 0, "at least 1"),
        ("sampling.temperature", 0.0, "greedy"),
        ("sampling.top_k", 5, "likelihood"),
        ("sampling.top_p", 0.9, "likelihood"),
        ("optim.eps_root", 0.0, "eps_root"),
        ("objectives", (), "name the rewards"),
        ("profile_steps", (10,), "first and the last"),
        ("profile_steps", (13, 10), "first and the last"),
        ("profile_steps", (590, 600), "600 steps"),
        ("eval.grid", "paper13", "lattice, paper"),
        ("data.template", "alpaca", "chat, plain"),
        ("data.format", "csv", "published, own"),
        ("data.split", "random", "hash, published"),
        ("data.buckets", (64,), "prompt_length=0"),
        ("rollout.weights", "int4", "same, merged, int8"),
        ("rollout.attention", "paged", "plain, triton"),
        ("policy.attention", "flash", "plain, cudnn"),
        ("sampling.draw", "alias", "gumbel, inverse"),
        ("micro.rollout", 5, "do not divide 16 and 64 evenly"),
        ("micro.gradient", 3, "do not divide 8 evenly"),
        ("micro.gradient", 0, r"config\.micro\.gradient=0 must be a finite number at least 1"),
        ("policy.source", None, r"config\.policy\.source=None must be a text; the default is ''"),
        (
            "policy.source",
            "None",
            r"is a text of four letters: give an empty text, --config\.policy\.source=, for none",
        ),
        ("data.system", "None", "give None without quotes"),
        ("policy.lora_targets", None, "must be a text"),
        ("policy.lora_targets", "(q", "is not a regular expression: missing \\), .*at position 0"),
        ("meal.net", None, "must be True or False"),
        ("steps", None, "must be a whole number"),
        ("steps", True, "must be a whole number"),
        ("optim.lr", None, "must be a number"),
        ("eval.reference", None, r"must be a tuple; the default is \(\)"),
        ("eval.reference", (None,), r"must be \(\) or numbers, such as \(0\.5, 1\.0\)\."),
        ("meal.gap", ("a", "b"), "must be .* numbers, .* or None"),
        ("objectives", (0, 1), "must be names that differ"),
        ("compare_with", (None,), "must be .* texts"),
        ("reward.sources", (0, 1), r"config\.reward\.sources=\(0, 1\) must be \(\) or texts, such as \('a', 'b'\)\."),
        ("data.buckets", ("a",), "must be .* whole numbers"),
        ("data.date", None, "must be a text"),
        ("profile_steps", (1.5, 2.5), "must be .* whole numbers"),
    ],
)
def test_mistakes_are_named_with_what_would_do(field, value, message):
    config = base.default()
    with config.unlocked():
        config.update_from_flattened_dict({field: value})
    with pytest.raises(ValueError, match=message) as error:
        base.check(config)
    assert field.rpartition(".")[2] in str(error.value)


@pytest.mark.parametrize(
    ("task", "field"),
    [
        ("toy", "policy.source"),
        ("toy_attainable", "data.path"),
        ("synthetic", "reward.heads"),
        ("assistant", "data.posts"),
    ],
)
def test_files_that_a_benchmark_passes_over_are_refused(task, field):
    config = base.default()
    config.update_from_flattened_dict({"task": task, field: "mine"})
    with pytest.raises(ValueError, match=rf"config\.{field}='mine' is not read by the task {task}: leave it empty"):
        base.check(config)


def test_every_field_of_several_values_says_what_it_holds():
    several = {name for name, field in field_types._fields(base.default()) if field_types._kind(field)[0] is tuple}
    assert several == field_types.ITEMS.keys()


def test_a_configuration_that_does_not_begin_with_the_defaults_is_refused_with_what_it_lacks():
    with pytest.raises(
        ValueError, match=r"no field config\.batch_size: let get_config begin with meal_jax\.config\.default"
    ):
        base.check(ml_collections.ConfigDict({"policy": {}}))
    config = base.default()
    config.meal = None
    with pytest.raises(ValueError, match=r"no field config\.meal\."):
        base.check(config)


def test_no_value_of_a_wrong_kind_ends_the_checks_by_a_trace():
    """Every field with each value: checked, or refused by the field's name. ml_collections casts or refuses some before."""
    values = (None, "(", float("nan"), 0, (0, 1), (None,))
    for name, value in itertools.product(command.leaves(base.default()), values):
        config = base.default()
        try:
            config.update_from_flattened_dict({name: value})
        except (TypeError, ValueError):
            continue
        try:
            base.check(config)
        except ValueError as error:
            assert name.rpartition(".")[2] in str(error), (name, value)


def test_the_fused_attention_is_refused_where_it_cannot_compute():
    config = base.default()
    config.policy.attention = "cudnn"
    with pytest.raises(ValueError, match="computes in bfloat16"):
        base.check(config)
    config.policy.dtype = "bfloat16"
    with pytest.raises(ValueError, match="no forward-mode derivative.*'exact' needs: take 'none'"):
        base.check(config)
    config.meal.hypergradient = "none"
    base.check(config)
    config.meal.hypergradient, config.method = "exact", "static"
    base.check(config)
    config.method, config.stage = "meal", "sft"
    base.check(config)


def test_what_the_meta_objective_needs_is_asked_only_of_a_run_that_has_one():
    config = base.default()
    config.sampling.top_k, config.optim.eps_root = 5, 0.0
    for method, stage, net in (("static", "align", True), ("meal", "sft", True), ("meal", "align", False)):
        config.method, config.stage, config.meal.net = method, stage, net
        base.check(config)
    config.meal.net = True
    with pytest.raises(ValueError, match="needs them unfiltered"):
        base.check(config)
    config.sampling.top_k = 0
    with pytest.raises(ValueError, match="eps_root must be above 0"):
        base.check(config)


@pytest.mark.parametrize("method", ["meal", "static", "raft"])
def test_a_gap_is_for_the_methods_that_draw_targets(method):
    config = base.default()
    config.meal.gap = (0.4, 0.6)
    base.check(methods.configure(method, config))
    with pytest.raises(ValueError, match="'modpo' does not draw"):
        base.check(methods.configure("modpo", config))


def test_a_lattice_of_many_objectives_is_one_that_can_be_answered():
    config = base.default()
    config.objectives = tuple("abcdef")
    with pytest.raises(
        ValueError, match=r"divisions=10 makes 3,003 preferences of 6 .*: take at most 7 \(792 preferences\)"
    ):
        base.check(config)
    config.eval.divisions = 7
    base.check(config)
    config.objectives, config.eval.divisions = ("a", "b"), 1000
    with pytest.raises(ValueError, match="take at most 999"):
        base.check(config)


@pytest.mark.parametrize("stage", ["align", "sft"])
def test_what_is_trained_is_stored_in_float32(stage):
    config = base.default()
    config.stage, config.policy.dtype, config.policy.param_dtype = stage, "bfloat16", "bfloat16"
    with pytest.raises(ValueError, match=r"lora_rank=0, which trains all weights, would round most updates away"):
        base.check(config)
    config.policy.lora_rank = 8
    base.check(config)
    config.policy.lora_rank, config.policy.param_dtype = 0, "float32"
    base.check(config)


@pytest.mark.parametrize(
    ("targets", "fits"), [("nothing$", False), ("^layers", False), ("layers/mlp/up$", True), (".", True)]
)
def test_adapters_stand_beside_a_layer(targets, fits):
    config = base.default()
    config.policy.lora_targets = targets
    base.check(config)  # there are none
    config.policy.lora_rank = 4
    with (
        contextlib.nullcontext()
        if fits
        else pytest.raises(ValueError, match="matches no layer.*transformer/layers/mlp/up")
    ):
        base.check(config)


def test_adapters_that_read_a_preference_have_a_rank_to_split_and_stay_apart():
    config = base.default()
    config.conditioning.kind, config.policy.lora_rank = "adapter+text", 7
    with pytest.raises(ValueError, match="lora_rank=7 cannot be split evenly among 2 objectives.*take 6 or 8"):
        base.check(config)
    config.policy.lora_rank, config.rollout.weights = 8, "merged"
    with pytest.raises(ValueError, match="adapters differ from candidate to candidate: take 'same' or 'int8'"):
        base.check(config)
    config.rollout.weights = "int8"
    base.check(config)


def test_a_baseline_needs_a_pool():
    config = base.default()
    config.meal.baseline, config.meal.candidates = "pool", 1
    with pytest.raises(ValueError, match="config.meal.candidates must be above 1"):
        base.check(config)


def test_unknown_fields_are_refused_with_the_nearest_known_name():
    config = base.default()
    with pytest.raises(AttributeError, match="tau"):
        config.meal.tua = 1.0


def test_unknown_methods_and_tasks_are_named():
    from meal_jax.build import build_task

    with pytest.raises(ValueError, match="'ppo' is not one of meal, static"):
        methods.get("ppo")
    config = base.default()
    config.task = "redit"
    with pytest.raises(ValueError, match="'redit' is not one of assistant, reddit, stories, synthetic, toy"):
        build_task(config)


def test_configure_static_leaves_the_original_alone():
    config = base.default()
    static = methods.get("static").configure(config)
    assert config.meal.net and not static.meal.net and static.meal.lam == 0 and not static.meal.adapt
    config.meal.baseline = "accepted"
    assert methods.get("static").configure(config).meal.baseline == "pool"  # its preferences do not move


def test_every_field_can_be_set_on_the_command_line():
    """A field that is called as one of ConfigDict's methods cannot: the flag finds the method."""

    def names(config):
        for name, value in config.items():
            yield name
            if isinstance(value, ml_collections.ConfigDict):
                yield from names(value)

    reserved = set(dir(ml_collections.ConfigDict()))
    assert not reserved & set(names(base.default()))


@pytest.mark.parametrize("name", ["assistant", "reddit"])
def test_the_paper_configurations_have_the_originals_values(name):
    c = importlib.import_module(f"configs.{name}").get_config()
    for method in ("morlhf", "parm"):
        base.check(methods.configure(method, c))
    assert (c.ppo.kl, c.ppo.kl_target, c.ppo.kl_horizon, c.ppo.epochs) == (0.2, 3.0, 10_000.0, 4)
    assert (c.ppo.clip, c.ppo.value_clip, c.ppo.value_coef, c.ppo.gamma, c.ppo.gae_lambda) == (0.2, 0.2, 0.1, 1.0, 0.95)
    assert (c.parm.beta, c.parm.dirichlet, c.parm.r1, c.parm.r2, c.parm.alpha) == (0.01, 0.5, 4, 4, 8.0)
    assert c.ric.keep_quantile == 0.7 and c.ric.map == "l2" and c.dpo.beta == 0.1
