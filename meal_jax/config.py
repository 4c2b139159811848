"""Every field of a run's configuration, its default, and the checks that need no data and no device.

A benchmark's file under `configs/` starts from `default()` and changes what it must; the command line changes single
fields (`--config.meal.tau=0.5`). Unknown fields are refused by ml_collections with the nearest known name.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import ml_collections
from ml_collections import config_dict

from meal_jax import combinations, field_types
from meal_jax.limits import LIMITS, Limit


def number(value: int | None = None) -> config_dict.FieldReference:
    """An integer field that may be None: decided by other fields."""
    field = config_dict.placeholder(int)
    field.set(value)
    return field


def amount(value: float | None = None) -> config_dict.FieldReference:
    """A number field that may be None: switched off."""
    field = config_dict.placeholder(float)
    field.set(value)
    return field


def text(value: str | None) -> config_dict.FieldReference:
    """A text field that may be None."""
    field = config_dict.placeholder(str)
    field.set(value)
    return field


def several(value: tuple | None = None) -> config_dict.FieldReference:
    """A field of several texts or numbers that may be None."""
    field = config_dict.placeholder(tuple)
    field.set(value)
    return field


def default() -> ml_collections.ConfigDict:
    """The defaults, every field commented."""
    c = ml_collections.ConfigDict()
    c.stage = "align"  # align = train the policy on its rewards; sft = fine-tune it on preferred responses first
    c.task = "toy"  # benchmark: a module of meal_jax/tasks
    c.method = "meal"  # method to train: a key of meal_jax.methods.METHODS
    c.compare_with = ("static",)  # other methods to train in the same run and plot in the same figure
    c.seed = 0  # of everything random: initial weights, order of prompts, targets, samples
    c.steps = 600  # steps; each makes batch_size × candidates responses and two policy updates
    c.batch_size = 16  # B, prompts per step; even (half for the policy, half for the meta-objective)
    c.objectives = ("first", "second")  # names of the K rewards, in the order of a preference's weights

    # Policy π_θ
    c.policy = p = ml_collections.ConfigDict()
    p.source = ""  # Hugging Face directory or hub id; "" draws weights at random in the sizes below
    p.width, p.layers, p.heads, p.kv_heads, p.hidden = 64, 2, 4, 2, 128  # sizes, where source is ""
    p.pretrain = 0  # toy: steps in which the base first learns the language (tasks/toy_base.py); 0 = random weights
    p.lora_rank = 0  # rank of the adapters; 0 trains all weights
    p.lora_alpha = 32.0  # adapters are scaled by lora_alpha / lora_rank
    p.lora_dropout = 0.0  # on the adapters' input, where the policy learns; in no ratio of probabilities: L_meta, PPO
    p.lora_targets = r"attention/(q|k|v|o)$"  # regular expression on layer paths: attention/q … mlp/down
    p.dtype = "float32"  # compute type: float32 or bfloat16 (softmax, norms, logits and losses stay float32)
    p.param_dtype = "float32"  # storage of base weights; float32 where all are trained (lora_rank=0)
    p.attention = "plain"  # over many tokens: plain; cudnn = NVIDIA's fused kernel, in bfloat16 (models/attention.py)
    p.remat = "none"  # kept for the backward pass: none = everything, dots = matrix products, full = layer inputs
    p.chunk = number()  # response positions to project to the vocabulary at a time; None = all

    # How the policy reads a preference
    c.conditioning = d = ml_collections.ConfigDict()
    # prefix = embeddings computed from w; text = numerals; adapter = blocks of the adapters' rank scaled by w;
    # adapter+prefix, adapter+text = both; none = it does not
    d.kind = "prefix"
    # What adapter kinds read in the prompt: uniform = one prefill per prompt; preference = one per candidate
    d.prompt = "uniform"
    d.slots = 2  # embeddings of the prefix
    d.hidden = 64  # hidden width of the prefix network

    # The method (symbols as in docs/method.md)
    c.meal = m = ml_collections.ConfigDict()
    m.candidates = 8  # N, responses per prompt
    m.targets = "stratified"  # how a prompt's N targets w are drawn: stratified, edges, dirichlet, shared
    # (low, high): no target in training has its first weight between them, to see how a policy generalises; None = all
    m.gap = several()
    m.tau = 0.1  # τ, temperature of acceptance, in standard deviations of the reward; → 0 best-of-N, → ∞ plain SFT
    m.lam = 0.1  # λ, pull of the responses on the preferences; λ/τ sets how far one moves; 0 = none
    m.accept = "soft"  # weight of a response: soft = P(n|p), sample = a draw of it, top1 = best of its pool or nothing
    # τ per prompt, so that acceptance is spread over this share of N (tau then sets λ/τ); None = off
    m.accept_share = amount()
    # Subtracted from acceptance: none; pool = 1/N; leave_one_out = mean chance of the other candidates under this one's
    # preference; accepted = the pool's mean acceptance, each candidate under its own adapted preference
    m.baseline = "none"
    m.reward_scale = "running"  # rewards in standard deviations: running, or pool = each prompt's own candidates'
    m.passes = 1  # policy updates per half of a pool; after the first with probability ratios
    m.pass_clip = 0.2  # those ratios are clipped to 1 ± this
    m.adapt = True  # preferences follow the responses (step 5)
    # A response that is accepted less than the baseline counts against a preference: adapted = the one that it embodies,
    # proposed = the one that was asked for
    m.rejected = "adapted"
    m.net = True  # the weight-net proposes (steps 2, 7–9); False: ŵ = w
    m.meta = "utility"  # meta-objective: utility (importance-weighted REINFORCE) or likelihood
    m.hypergradient = "exact"  # exact; first_order = φ acts through acceptance only; none = direct term only
    # Meta-objective and mixed derivative on a random part of each half's prompts, scaled: an unbiased estimate; 1 = exact
    m.meta_fraction = 1.0
    m.reuse_virtual = False  # take θ' as the first policy update, saving a gradient, instead of redoing it under new φ
    m.rho = 0.1  # ρ, weight of KL(ŵ ‖ w)
    m.beta = 0.0  # β, weight of KL(π_θ ‖ π_ref), π_ref being the policy at the start, unconditioned
    m.ratio_clip = 0.2  # importance ratios of the meta-objective are clipped to 1 ± this
    m.length_norm = "response"  # log π(y) is divided by |y| (response) or T (constant, which has no pull to brevity)
    m.stats_window = 10_000.0  # the running mean and variance average over about this many rewards
    m.net_hidden = 64  # hidden width of the weight-net
    # How it reads a prompt's mean hidden state: layer = as it is, scaled; standard = each feature in its standard deviations
    # over the prompts seen so far, by which it tells prompts apart far sooner
    m.net_features = "layer"
    m.net_epsilon = 1e-4  # ε in log(w + ε): lets a proposal leave a weight of 0

    # The methods it is compared with (meal_jax/baselines)
    c.ppo = b = ml_collections.ConfigDict()  # MORLHF, Rewarded Soups, MOD
    b.divisions = number()  # MORLHF trains a policy for each preference of this lattice; None = eval.divisions
    b.estimator = "gae"  # of advantages: gae, with a value head, or rloo, against a prompt's other candidates
    # Responses of each policy to a prompt; None = as many in all as meal.candidates, or a few more
    b.candidates = number()
    b.epochs = 2  # passes over a step's responses
    b.minibatches = 1  # optimizer steps per pass; divides batch_size
    b.clip = 0.2  # probability ratios are clipped to 1 ± this
    b.value_clip = 0.2  # a value may move by so much between passes before its loss turns pessimistic
    b.value_coef = 0.1  # weight of the value loss
    b.gamma = 1.0  # discount
    b.gae_lambda = 0.95  # λ of GAE
    b.kl = 0.05  # κ, weight of the divergence from the starting policy
    b.kl_target = amount()  # divergence per response that κ is steered to; None = κ stays
    b.kl_horizon = 10_000.0  # responses in which κ can double or so
    b.soup = "merged"  # what Soups average: merged = the weights' changes, factor = the adapters' factors
    c.ric = b = ml_collections.ConfigDict()  # Rewards-in-Context
    b.offline_steps = number()  # steps of the offline stage; None = half of the run
    b.buffer = 4096  # answers kept to learn from; at least those of one step
    b.keep_quantile = 0.7  # online, an answer is kept if one of its rewards is not below this quantile
    b.low_quantile, b.high_quantile = 0.01, 0.99  # scores are asked for between these quantiles of the rewards seen
    b.map = "l2"  # preference to scores: l2, linf, linear
    c.dpo = b = ml_collections.ConfigDict()  # MODPO, CPO
    b.beta = 0.1  # β of DPO
    b.divisions = number()  # MODPO trains a policy for each preference of this lattice; None = eval.divisions
    # MODPO: responses of each policy, of which best and worst pair up; None as above, at least 2
    b.candidates = number()
    b.epochs = 2  # updates on a step's pairs
    b.sft_steps = number()  # CPO: steps of its first stage; None = half of the run
    b.lam = 1.0  # CPO: weight of the distance from a controlled score
    c.parm = b = ml_collections.ConfigDict()  # PARM
    b.r1, b.r2 = 4, 4  # ranks of the adapter's plain part and of the part that reads the preference
    b.alpha = 8.0  # the adapter is scaled by alpha / r2
    b.beta = 0.1  # β of its pair loss
    b.decode_beta = 1.0  # answers follow log π_base + log π_arm / this
    b.pairs = 1  # pairs per prompt and objective: best with worst, then inwards; at most half of meal.candidates
    b.dirichlet = 1.0  # preferences in training are drawn from Dirichlet(this)

    # Sampling in training rollouts
    c.sampling = s = ml_collections.ConfigDict()
    s.max_new = 12  # T, maximum tokens of a response
    s.temperature = 1.0
    s.top_k = 0  # 0 = all; must be 0 under meta="utility", whose ratio needs the unfiltered policy, and for PPO
    s.top_p = 1.0  # 1 = all; likewise
    s.draw = "gumbel"  # gumbel, or inverse: less work where the vocabulary is large, other samples; evaluation too
    s.compact = ()  # shares of rows, e.g. (0.75, 0.5, 0.25), at which ended rows leave the batch; () = never; evaluation too

    # What a rollout reads for each token, and how much is done at a time
    c.rollout = q = ml_collections.ConfigDict()
    q.weights = "same"  # same; merged = adapters folded into kernels; int8 = kernels in eight bits (rollout/weights.py)
    q.gather = False  # gather weights split over mesh.fsdp once per rollout instead of at every token, if they fit
    q.unstack_layers = False  # unstack the scanned layers' weights once per rollout, not at every token
    q.attention = "plain"  # of a decoded token: plain; triton = a kernel for GPUs (models/decode_attention.py)
    # Prompts at a time, to save memory; None = all. Results are the same but for rounding, without dropout.
    c.micro = u = ml_collections.ConfigDict()
    u.rollout = number()  # of a rollout and of an evaluation's answers; divides batch_size and eval.batch_size
    u.score = number()  # of scoring; likewise
    u.gradient = number()  # of each gradient of an update of meal, static and raft; divides half of batch_size

    # Optimizers (AdamW)
    c.optim = o = ml_collections.ConfigDict()
    o.lr = 1e-3  # peak learning rate of the policy
    o.warmup = 20  # policy updates to reach it
    o.final_lr_fraction = 0.05  # fraction of it left at the end of the cosine decay
    o.weight_decay = 0.0
    o.clip = 1.0  # global norm the gradient is clipped to
    o.b1, o.b2, o.eps = 0.9, 0.999, 1e-8
    o.eps_root = 1e-12  # > 0: inside Adam's root, else the exact hypergradient is infinite where a gradient is zero
    o.net_lr = 1e-3  # learning rate of the weight-net (Adam, constant)

    # Evaluation: every preference of a grid answers every test prompt
    c.eval = e = ml_collections.ConfigDict()
    e.prompts = 64  # test prompts
    e.batch_size = 64  # prompts at a time
    e.every = 100  # steps between evaluations; there is always one before the first step and one after the last
    e.grid = "lattice"  # lattice = all weights 0, 1/divisions … 1; paper = the published 11 (K = 2) or 13 (K = 3)
    e.divisions = 10  # of the lattice; fewer with many objectives, 5 has 252 preferences of six
    e.temperature, e.top_k, e.top_p = 1.0, 0, 1.0  # sampling; temperature 0 is greedy
    e.samples = 3  # test prompts whose answers are written out at each preference
    e.reference = ()  # point the hypervolume is measured from, a number an objective; () = the benchmark's
    e.bootstrap = 1000  # resamples of the prompts for 95 % intervals

    # Where it runs and what it keeps
    c.mesh = h = ml_collections.ConfigDict()
    h.data, h.fsdp, h.tensor = number(), number(1), number(1)  # devices per axis; None = the remaining ones
    h.slices = number(1)  # TPU slices joined by a slower network; data is split over them first; None = as devices say
    c.checkpoint = k = ml_collections.ConfigDict()
    k.every = 100  # steps between checkpoints
    k.keep = 2  # newest checkpoints kept
    # Resume although a reward, the training prompts, weights or a tokenizer changed: the code that the refusal names
    k.accept_inputs = ""
    c.tensorboard = True  # also write TensorBoard events
    c.track = (
        ""  # also give each row to wandb, trackio or mlflow (extras), or to a function of one's own, "mine.py:log"
    )
    c.profile_steps = ()  # first and last step of a profiler's trace, e.g. (10, 13), written to WORKDIR/profile; () = none
    # The step as three programs, so that the metrics tell the time of rollout, score and update (where rewards read text it
    # always is); costs a little speed and memory at their borders. The results are the same but for rounding.
    c.timed = False

    # Fields of single benchmarks
    c.data = ml_collections.ConfigDict()
    # Prompts, where the benchmark reads any: a directory; with format=own also a file, PATH:COLUMN or OWNER/NAME:COLUMN for a
    # column of a file or of a data set on the hub, and hub:OWNER/NAME for that data set's whole rows
    c.data.path = ""
    c.data.posts = ""  # reddit: posts with their authors' own summaries (data/tldr.py), in place of those at path
    c.data.prompt_length = 0  # S, tokens a prompt may have (longer prompts are an error or skipped, see the benchmark)
    c.data.buckets = ()  # shorter lengths that a batch may be padded to; each that occurs compiles the step once more
    c.data.template = "chat"  # prompt format: chat = the model's own template, plain = the benchmark's, for base models
    c.data.system = text("")  # system message: a text; "" = an empty one where the template would insert its own; None
    c.data.date = "2024-07-26"  # that a chat template writes for today's, YYYY-MM-DD
    # Variables that a chat template reads, NAME=VALUE as in JSON: ("enable_thinking=false",) has Qwen 3 answer at once
    c.data.template_options = ()
    # Texts that end an answer before it is scored; None = the published evaluation's under template=plain, else none
    c.data.stop = several()
    # Of the files at path: published = the benchmark's data set, own = one's own prompts (data/own.py)
    c.data.format = "published"
    # hash = by the first human turn or post id; published = the files' own train and evaluation split; types (task
    # stories) = evaluation prompts are of types that no training prompt has
    c.data.split = "hash"

    # Rewards
    c.reward = r = ml_collections.ConfigDict()
    r.sources = ()  # one string per objective, forms in meal_jax/rewards/sources.py; () = the benchmark's own rewards
    # Reward heads: a file, or the name of shipped ones (meal_jax/rewards/heads); "" = the benchmark's
    r.heads = ""
    r.judge = ""  # decoder that answers judge:… sources, a directory or hub id; "" = the policy's own frozen base
    r.batch_size = 32  # rows that a reward model or judge reads at a time
    r.dtype = "float32"  # compute type of reward models and of config.reward.judge: float32 or bfloat16
    # Taken from every reward for each token above copy_free of the longest run that an answer copies from its prompt; 0 = off
    r.copy_penalty = 0.0
    r.copy_free = 8
    r.missing_eos_penalty = 0.0  # taken from every reward of an answer that is cut at sampling.max_new tokens; 0 = off
    return c.lock()


def check(config: ml_collections.ConfigDict) -> None:
    """Refuses what cannot run, before anything is loaded or compiled.

    Raises:
      ValueError: names the field, its value and what would do.
      FileNotFoundError: a file or directory that config.reward.sources names is not there.
    """

    # Here, since these bring jax: a command's flags, and with them a file of configs/, are read before it is imported.
    from meal_jax import methods, track
    from meal_jax.meal.bilevel import HYPERGRADIENT, LENGTH_NORM, META
    from meal_jax.meal.normalise import SCALE
    from meal_jax.meal.preference import ACCEPT, BASELINE, REJECTED, TARGETS
    from meal_jax.meal.weight_net import FEATURES
    from meal_jax.models.attention import ATTENTION
    from meal_jax.models.policy import CONDITIONING, PROMPT
    from meal_jax.rewards import sources
    from meal_jax.rollout.sampling import DRAWS, Sampling
    from meal_jax.rollout.weights import DECODING, KINDS

    def need(ok: bool, message: str):
        if not ok:
            raise ValueError(message)

    field_types.check_types(config, default())  # before any is computed with
    m, s = config.meal, config.sampling
    for name, value, known in (
        ("stage", config.stage, ("align", "sft")),
        ("method", config.method, tuple(methods.METHODS)),
        *(("compare_with", name, tuple(methods.METHODS)) for name in config.compare_with),
        ("meal.accept", m.accept, ACCEPT),
        ("meal.baseline", m.baseline, BASELINE),
        ("meal.rejected", m.rejected, REJECTED),
        ("meal.reward_scale", m.reward_scale, SCALE),
        ("meal.targets", m.targets, TARGETS),
        ("meal.meta", m.meta, META),
        ("meal.hypergradient", m.hypergradient, HYPERGRADIENT),
        ("meal.length_norm", m.length_norm, LENGTH_NORM),
        ("meal.net_features", m.net_features, FEATURES),
        ("rollout.weights", config.rollout.weights, KINDS),
        ("rollout.attention", config.rollout.attention, DECODING),
        ("sampling.draw", s.draw, DRAWS),
        ("conditioning.kind", config.conditioning.kind, CONDITIONING),
        ("conditioning.prompt", config.conditioning.prompt, PROMPT),
        ("policy.attention", config.policy.attention, ATTENTION),
        ("policy.dtype", config.policy.dtype, ("float32", "bfloat16")),
        ("policy.param_dtype", config.policy.param_dtype, ("float32", "bfloat16")),
        ("policy.remat", config.policy.remat, ("none", "dots", "full")),
        ("eval.grid", config.eval.grid, ("lattice", "paper")),
        ("data.template", config.data.template, ("chat", "plain")),
        ("data.format", config.data.format, ("published", "own")),
        ("data.split", config.data.split, ("hash", "published", "types")),
        ("reward.dtype", config.reward.dtype, ("float32", "bfloat16")),
    ):
        need(value in known, f"config.{name}={value!r} is not one of {', '.join(known)}.")
    for field, limit, value in _numbers(config):  # before anything is computed from them
        number = isinstance(value, int | float) and math.isfinite(value)
        need(number or limit.holds(value), f"{field}={value} must be {limit.say()}.")
    need(
        config.batch_size > 0 and config.batch_size % 2 == 0,
        f"config.batch_size={config.batch_size} must be even and above 0: one half of the prompts updates the policy, the "
        "other half judges the update.",
    )
    both = (config.batch_size, config.eval.batch_size)
    for name, sizes in (("rollout", both), ("score", both), ("gradient", (config.batch_size // 2,))):
        micro = config.micro[name]
        need(
            not micro or all(size <= micro or size % micro == 0 for size in sizes),
            f"config.micro.{name}={micro} prompts at a time do not divide {' and '.join(map(str, sizes))} evenly; None = all.",
        )
    need(
        config.policy.attention == "plain" or config.policy.dtype == "bfloat16",
        f"config.policy.attention={config.policy.attention!r} computes in bfloat16: set config.policy.dtype=bfloat16.",
    )
    judged = config.stage == "align" and config.method == "meal" and m.net  # by the meta-objective
    through_update = judged and m.hypergradient != "none"
    need(
        config.policy.attention == "plain" or not through_update,
        f"config.policy.attention={config.policy.attention!r} has no forward-mode derivative, which "
        f"config.meal.hypergradient={m.hypergradient!r} needs: take 'none', or config.policy.attention=plain.",
    )
    combinations.check_adapters(config, need)
    combinations.check_storage(config, need)
    combinations.check_conditioning(config, need)
    need(m.candidates >= 1, f"config.meal.candidates={m.candidates} must be at least 1.")
    need(m.tau > 0, f"config.meal.tau={m.tau} must be above 0; for best-of-N use config.meal.accept=top1.")
    need(m.lam >= 0, f"config.meal.lam={m.lam} must not be negative; 0 keeps preferences where they are.")
    need(
        m.baseline == "none" or m.candidates > 1,
        f"config.meal.baseline={m.baseline!r} compares a candidate with its pool: config.meal.candidates must be above 1.",
    )
    need(m.passes >= 1, f"config.meal.passes={m.passes} must be at least 1.")
    need(0 < m.pass_clip < 1, f"config.meal.pass_clip={m.pass_clip} must lie between 0 and 1.")
    need(
        m.accept_share is None or 1 <= m.accept_share * m.candidates < m.candidates,
        f"config.meal.accept_share={m.accept_share} of {m.candidates} candidates must be at least one answer and less than "
        "all; None switches it off.",
    )
    combinations.check_meta_fraction(config, need)
    combinations.check_targets(config, need)
    Sampling(draw=s.draw, compact=s.compact)  # refuses shares that are none
    need(s.max_new >= 1, f"config.sampling.max_new={s.max_new} must be at least 1.")
    need(
        s.temperature > 0,
        f"config.sampling.temperature={s.temperature} must be above 0 in training: greedy candidates are all alike.",
    )
    need(
        not (judged and m.meta == "utility" and (s.top_k or s.top_p < 1)),
        "config.meal.meta=utility weighs responses by the ratio of two policies and needs them unfiltered: set "
        "config.sampling.top_k=0 and top_p=1, or use meta=likelihood.",
    )
    filtered = sorted({"morlhf", "soups", "mod"} & {config.method, *config.compare_with})
    need(
        not filtered or not (s.top_k or s.top_p < 1),
        f"{', '.join(filtered)} learn by PPO, whose ratio and KL need an unfiltered policy: set config.sampling.top_k=0 and "
        "top_p=1.",
    )
    need(
        not through_update or config.optim.eps_root > 0,
        "config.optim.eps_root must be above 0 (1e-12 will do): Adam's derivative is infinite at a zero gradient.",
    )
    need(
        not config.policy.pretrain or config.task == "toy",
        f"config.policy.pretrain={config.policy.pretrain} makes a base for the task toy; for {config.task!r} name one in "
        "config.policy.source.",
    )
    track.check(config.track)
    combinations.check_texts(config, need)
    combinations.check_read(config, need)
    k, names = len(config.objectives), config.objectives
    need(k >= 1, "config.objectives is empty: name the rewards.")
    need(
        len(set(names)) == k and all(isinstance(n, str) and n and n == n.strip() and n.isprintable() for n in names),
        f"config.objectives={names} must be names that differ, with no space around them: metrics and axes have these names.",
    )
    need(
        not any("," in name for name in names),
        f"config.objectives={names} has a comma in a name: names are given as --config.objectives=\"('short', 'polite')\".",
    )
    sources.check(config.reward.sources, config.objectives)
    need(
        len(config.profile_steps) in (0, 2)
        and all(isinstance(step, int) for step in config.profile_steps)
        and (not config.profile_steps or 0 <= config.profile_steps[0] <= config.profile_steps[1] < config.steps),
        f"config.profile_steps={config.profile_steps} must be () or the first and the last step to trace, such as (10, 13), "
        f"of the {config.steps} steps from 0 on.",
    )
    combinations.check_grid(config, need)
    need(
        all(0 < length < config.data.prompt_length for length in config.data.buckets),
        f"config.data.buckets={config.data.buckets} must lie between 0 and config.data.prompt_length="
        f"{config.data.prompt_length}, which is a bucket already.",
    )
    reference = config.eval.reference
    need(
        not reference or (len(reference) == k and all(Limit().holds(value) for value in reference)),
        f"config.eval.reference={reference} must be () or {k} finite numbers, a point of {k} objectives, not a point of "
        f"{len(reference)}.",
    )
    p = config.policy
    need(
        p.source or p.width % max(p.heads, 1) == 0 == p.heads % max(p.kv_heads, 1),
        f"config.policy.heads={p.heads} must divide config.policy.width={p.width}, and config.policy.kv_heads="
        f"{p.kv_heads} the heads.",
    )
    q = config.ric
    need(
        q.low_quantile < q.high_quantile,
        f"config.ric.low_quantile={q.low_quantile} must be below config.ric.high_quantile={q.high_quantile}.",
    )
    for field, limit, value in _numbers(config):
        need(limit.holds(value), f"{field}={value} must be {limit.say()}.")


def _numbers(config: ml_collections.ConfigDict) -> Iterator[tuple[str, Limit, Any]]:
    """Every number of a configuration: the field's whole name, what it may be, what it is."""
    for section, limits in LIMITS.items():
        values = config[section] if section else config
        for name, limit in limits.items():
            yield f"config.{section}.{name}" if section else f"config.{name}", limit, values[name]
