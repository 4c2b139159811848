"""Reddit Summary at the published comparisons' scale: Llama-2-7b, LoRA, posts of summarize-from-feedback.

    python -m meal_jax.data.prepare --dataset=summarize_from_feedback
    python -m meal_jax.main --config=configs/reddit.py:summary,faithful --workdir=runs/reddit

After the colon any two or all three of summary, faithful, deberta (meal_jax/rewards/formats.py says which models); the
evaluation grid is the published one, 11 preferences for two and 13 for three; --config.eval.grid=lattice is symmetric
between objectives. Settings follow the papers on this benchmark (RiC, arXiv 2402.10207) where it fixes them: model, adapters,
lengths, prompts, evaluation sampling; PPO and PARM follow their own code. The rest is ours and has not been tuned at this
scale. docs/methods.md lists what differs from the originals.

The published comparisons start from a model fine-tuned on the chosen summaries: give its directory in
--config.policy.source. The weights of Llama-2 need their licence accepted on the hub. Hypervolumes are measured from
-2.5 in every raw reward, an arbitrary point, until --config.eval.reference names one.

Not run at this scale yet. It fits 16 chips of v5e, by the TPU's compiler (under 15 GB of a chip's 16), which finds so in two
minutes without a TPU, after pip install -e '.[aot]'; train with the same fields. Other slices: docs/devices.md.

    python -m meal_jax.aot --quick --config=configs/reddit.py --topology=v5e:4x4 --config.mesh.fsdp=8 --config.mesh.tensor=2

Half of the batch, 8 prompts, must divide over data × fsdp: with more chips raise batch_size or tensor. Estimates for GPUs, by
arithmetic: weights 13.5 GB in bfloat16, adapters with their optimizer 0.5 GB, reward models 1 GB, key-value cache 7 GB,
activations 15 GB; so one device of 80 GB, or several with less through --config.mesh.fsdp. About 15 seconds a step on one
A100-80GB, 8 hours a method; an hour an evaluation.
"""

from meal_jax import config as base

REWARDS = ("summary", "faithful", "deberta")


def get_config(arg: str = "summary,faithful"):
    """`arg`: two or three of REWARDS, separated by commas."""
    objectives = tuple(arg.split(","))
    if not set(objectives) <= set(REWARDS) or len(set(objectives)) != len(objectives) or len(objectives) < 2:
        raise ValueError(f"configs/reddit.py takes two or three of {','.join(REWARDS)} after the colon, not {arg!r}.")
    c = base.default()
    c.task = "reddit"
    c.objectives = objectives
    c.reward.sources = objectives  # the published model of each
    c.reward.dtype = "bfloat16"
    c.steps = 2000
    c.batch_size = 16
    c.meal.candidates = 8
    c.meal.beta = 0.02
    c.meal.reuse_virtual = True
    c.conditioning.slots = 4
    # The other methods as their originals set them. RiC's ppo/morlhf.py: KL 0.2, target 3, horizon 10,000, 4 epochs.
    c.ppo.kl, c.ppo.kl_target, c.ppo.kl_horizon = 0.2, 3.0, 10_000.0
    c.ppo.epochs = 4
    # PARM's run.sh (of its safety task; its code for this one is not published): β 0.01, Dirichlet 0.5.
    c.parm.beta, c.parm.dirichlet = 0.01, 0.5
    c.rollout.gather = True  # else decoding gathers the split weights at every token
    c.sampling.max_new = 48
    c.policy.source = "meta-llama/Llama-2-7b-hf"
    c.policy.lora_rank = 64
    c.policy.lora_alpha = 128.0
    c.policy.lora_dropout = 0.05
    c.policy.lora_targets = r"attention/(q|v)$"
    c.policy.dtype = c.policy.param_dtype = "bfloat16"
    c.policy.remat = "full"
    c.policy.chunk = 16
    c.optim.lr = 1.4e-4
    c.optim.warmup = 20
    c.data.path = "data/summarize_from_feedback"
    c.data.split = "published"
    c.data.template = "plain"  # Llama-2-7b is a base model
    c.data.prompt_length = 512
    c.data.buckets = (320,)  # most posts; one more program
    c.eval.prompts = 2000
    c.eval.batch_size = 16
    c.eval.every = 1000
    c.eval.grid = "paper"
    c.eval.divisions = 10 if len(objectives) == 2 else 4  # of the lattice: 11 or 15 preferences
    c.eval.top_p = 0.9
    c.checkpoint.every = 50
    c.mesh.data, c.mesh.fsdp = 1, None  # weights are split over all devices
    return c
