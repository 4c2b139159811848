"""A reward model of one's own: a whole classifier fitted on pairs of responses, GPT-2 with adapters unless told otherwise.

    python -m meal_jax.reward_training.model --config=configs/reward_model.py --config.source=openai-community/gpt2 \
        --config.data.kind=jsonl --config.data.path=PAIRS.jsonl --config.out=runs/my_reward

Pairs are JSON lines {"prompt": …, "chosen": …, "rejected": …} (or "messages" for "prompt"), hh-rlhf, or
summarize_from_feedback. The result is a Hugging Face directory; a policy is trained on it by
--config.reward.sources="('model@runs/my_reward', …)". Any size runs on a CPU that can wait; GPT-2 small and longer pairs
want a GPU or TPU. For small heads on a frozen decoder, in minutes on a CPU, see configs/reward_small.py.
"""

import ml_collections

from meal_jax.config import number


def get_config() -> ml_collections.ConfigDict:
    c = ml_collections.ConfigDict()
    c.source = "openai-community/gpt2"  # Hugging Face directory or hub id of the model to begin with
    c.base_name = ""  # what the card calls it; "" = the hub id, or a directory's last part
    c.out = "runs/reward_model"  # directory to write; it must be empty or not there
    c.layout = "plain"  # plain, response_only, response_bos_post, response_pair or prompt_pair: see rewards/formats.py
    c.fresh_head = False  # begin with a new head even where the model has one; a base model always gets one
    c.label = 0  # which logit is the reward, where the model's own head has several
    c.seed = 0  # of what is drawn (a new head, adapters) and of the pairs' order

    c.train = "lora"  # what is fitted: head (the rest is frozen), lora (head and adapters) or all
    c.lora = r = ml_collections.ConfigDict()
    r.rank = 16  # width of the adapters' bottleneck
    r.alpha = 32.0  # adapters' output is scaled by alpha / rank
    r.targets = r"(q|k|v|qkv|o)$"  # pattern, searched in the paths of linear layers; attention's, in every family

    c.epochs = 1  # times that every pair is seen
    c.batch_size = 16  # pairs a step; the mesh's data × fsdp must divide it
    c.lr = 1e-4  # peak learning rate; near 1e-5 for all weights, 1e-3 for the head alone
    c.warmup = 0.05  # share of the steps in which it is reached; then it falls to 0 along a cosine
    c.weight_decay = 0.0  # of matrices, decoupled (AdamW)
    c.clip = 1.0  # largest norm of a step's gradient
    c.dtype = "float32"  # compute type: float32 or bfloat16
    c.param_dtype = "float32"  # storage type of the model's matrices; float32 where all weights are fitted
    c.remat = "none"  # what the backward pass keeps, see models/transformer.py; less memory for more work

    c.data = d = ml_collections.ConfigDict()
    d.kind = "jsonl"  # jsonl, hh_rlhf or summarize_from_feedback; the last two published or prepared
    d.path = "data/pairs.jsonl"  # file or directory; of jsonl also hub:OWNER/NAME, a data set on the hub
    d.split = ""  # rows of this split of the data alone (train, test; train, validation for summaries); "" = all
    d.prompt = (
        "transcript"  # of conversations: transcript, as the benchmark assistant shows them, or last, the last turn
    )
    d.pairs = number()  # max pairs, the first; None = all
    d.held_out = 0.3  # share of the prompts, by hash, that nothing is fitted on; at 0.3 the rest is the split `reward`
    # Max tokens per row, longer ones are cut as the layout says; None = what model and tokenizer allow
    d.length = number()

    c.mesh = h = ml_collections.ConfigDict()  # product = number of devices; None = those left
    h.data = number()  # splits the batch
    h.fsdp = number(1)  # splits the batch and, along their width, the weights

    c.command = "python -m meal_jax.reward_training.model --config=configs/reward_model.py"  # for the card
    return c
