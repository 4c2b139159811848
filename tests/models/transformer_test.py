"""Every family of decoders against transformers' torch class, and itself under padding, sharing, remat, low precision."""

import dataclasses
import functools
import os
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util

from meal_jax.hf import pretrained
from meal_jax.models.lora import Lora
from meal_jax.models.policy import Conditioning, Policy
from meal_jax.models.transformer import Transformer, TransformerConfig
from meal_jax.rollout.decode import decode, sample_keys
from meal_jax.rollout.sampling import Sampling
from meal_jax.runtime import sharding

SMALL = TransformerConfig(vocab_size=29, width=16, layers=3, heads=4, kv_heads=2, head_dim=6, hidden=20)
NONE = Conditioning(kind="none")
SMOLLM2 = Path(
    os.environ.get("MEAL_SMOLLM2") or Path(__file__).resolve().parents[2] / "weights" / "SmolLM2-135M-Instruct"
)


@functools.partial(jax.jit, static_argnums=0)
def full_logits(config, params, tokens):
    """Logits [B, T, V] of unpadded tokens [B, T]: one pass of the transformer, no cache, no prompt."""
    length = tokens.shape[1]

    def run(module, tokens):
        x = module.embed(tokens)[:, None]
        causal = jnp.tril(jnp.ones((length, length), bool))[None, None]
        hidden, _ = module(x, jnp.arange(length)[None, None], causal)
        return module.unembed(hidden[:, 0])

    return Transformer(config).apply({"params": params}, tokens, method=run)


def left_pad(rows, pad=0):
    """Lists of ids to (tokens [B, S], mask [B, S])."""
    length = max(map(len, rows))
    tokens = np.array([[pad] * (length - len(row)) + list(row) for row in rows])
    mask = np.array([[False] * (length - len(row)) + [True] * len(row) for row in rows])
    return jnp.asarray(tokens), jnp.asarray(mask)


@functools.partial(jax.jit, static_argnums=0)
def prefill_and_respond(config, params, tokens, mask, response):
    """(Prefilled, hidden states of the response [B, N, T, D]), compiled at once (a compile a shape costs seconds)."""

    def apply(*args, **kw):
        return Policy(config, NONE).apply({"params": params}, *args, **kw)

    prompt = apply(tokens, mask, method="prefill")
    return prompt, apply(prompt, jnp.zeros((*response.shape[:2], 2)), response, method="respond")


@functools.partial(jax.jit, static_argnames=("config", "max_new"))
def greedy(config, params, tokens, mask, end, pad, max_new):
    """Greedy answers [B, max_new] to left-padded prompts, one candidate each."""
    policy = Policy(config, NONE)
    prompt = policy.apply({"params": params}, tokens, mask, method="prefill")
    w = jnp.zeros((tokens.shape[0], 1, 2))
    keys = sample_keys(jax.random.key(0), jnp.arange(tokens.shape[0]), 1)
    options = dict(max_new=max_new, sampling=Sampling(temperature=0), end=end, pad=pad)
    return decode(policy, params, prompt, w, keys, **options).tokens[:, 0]


def torch_logits(model, rows):
    """Logits of torch's model for each row alone, without padding."""
    import torch

    with torch.no_grad():
        return [model(torch.tensor([row])).logits[0].numpy() for row in rows]


def policy_logits(config, params, prompts, response):
    """Logits [B, T, V] by prefill and teacher forcing of responses [B, T] to left-padded prompts, lists of ids."""
    _, hidden = prefill_and_respond(config, params, *left_pad(prompts), response[:, None])
    return Policy(config, NONE).apply({"params": params}, hidden, method="unembed")[:, 0]


def test_logits_equal_torch(torch_decoder, case):
    """Prompts shorter and longer than the windows, padded and not, cut into prompt and response: two sets of keys."""
    model, directory = torch_decoder(case)
    config = pretrained.load_config(directory)
    params = {"transformer": pretrained.load_params(directory, config)}
    rng = np.random.default_rng(0)
    response = rng.integers(0, config.vocab_size, (4, 12))
    for lengths in ((15, 4, 9, 1), (15, 15, 15, 15)):
        prompts = [rng.integers(0, config.vocab_size, n).tolist() for n in lengths]
        rows = [prompt + tail.tolist() for prompt, tail in zip(prompts, response, strict=True)]
        expected = np.stack([row[-13:-1] for row in torch_logits(model, rows)])
        assert np.abs(expected).max() > 3  # else a tolerance of 1e-4 would forgive much
        logits = policy_logits(config, params, prompts, response)
        np.testing.assert_allclose(logits, expected, atol=1e-4, rtol=0)


def test_shards_compute_what_one_device_does(torch_decoder):
    """The family with the most switches, on a mesh that splits prompts, width, heads and hidden units."""
    _, directory = torch_decoder("gemma3")
    config = pretrained.load_config(directory)
    mesh = sharding.make_mesh(data=2, fsdp=2, tensor=2)
    shapes = {"transformer": traverse_util.unflatten_dict(pretrained.param_shapes(config), sep="/")}
    rules = [("embedding$", jax.P(None, "fsdp")), *sharding.RULES]  # 61 tokens do not divide
    places = sharding.shardings(shapes, mesh, rules)
    rng = np.random.default_rng(2)
    prompts = [rng.integers(0, config.vocab_size, n).tolist() for n in (15, 4, 9, 1)]
    response = rng.integers(0, config.vocab_size, (4, 1, 12))
    batch = jax.device_put((*left_pad(prompts), response), sharding.batch_sharding(mesh))
    params = {"transformer": pretrained.load_params(directory, config, places["transformer"])}
    with jax.set_mesh(mesh):
        _, hidden = prefill_and_respond(config, params, *batch)
    params = {"transformer": pretrained.load_params(directory, config)}
    _, expected = prefill_and_respond(config, params, *left_pad(prompts), response)
    np.testing.assert_allclose(hidden, expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("case", ["llama", "gemma3"])
def test_a_pass_without_prompt_or_cache_equals_torch(torch_decoder, case):
    model, directory = torch_decoder(case)
    config = pretrained.load_config(directory)
    tokens = np.random.default_rng(0).integers(0, config.vocab_size, (3, 27))
    logits = full_logits(config, pretrained.load_params(directory, config), tokens)
    np.testing.assert_allclose(logits, np.stack(torch_logits(model, tokens.tolist())), atol=1e-4, rtol=0)


def test_greedy_decoding_equals_torch_token_for_token(torch_decoder, case):
    import torch

    model, directory = torch_decoder(case)
    config = pretrained.load_config(directory)
    params = {"transformer": pretrained.load_params(directory, config)}
    rng = np.random.default_rng(1)
    rows = [rng.integers(0, config.vocab_size, n).tolist() for n in (3, 11, 7, 1)]
    tokens, mask = left_pad(rows)

    def reference(**options):
        with torch.no_grad():
            out = model.generate(
                torch.tensor(np.asarray(tokens)),
                attention_mask=torch.tensor(np.asarray(mask)).long(),
                max_new_tokens=32,
                min_new_tokens=None,
                do_sample=False,
                pad_token_id=0,
                **options,
            )
        out = out[:, tokens.shape[1] :].numpy()
        return np.pad(out, ((0, 0), (0, 32 - out.shape[1])))

    free = reference()
    assert len(np.unique(free)) > 8
    np.testing.assert_array_equal(greedy(config, params, tokens, mask, -1, 0, max_new=32), free)
    end = int(free[0, 9])  # a token that the first answer says, so that answers end at different lengths
    ended = reference(eos_token_id=end)
    assert (ended[0, 10:] == 0).all()
    np.testing.assert_array_equal(greedy(config, params, tokens, mask, end, 0, max_new=32), ended)


def test_left_padded_batch_equals_unbatched(random_params):
    params = random_params(SMALL)
    rng = np.random.default_rng(2)
    rows = [rng.integers(0, SMALL.vocab_size, n).tolist() for n in (2, 9)]
    response = rng.integers(0, SMALL.vocab_size, (2, 2, 6))
    prompt, hidden = prefill_and_respond(SMALL, params, *left_pad(rows, pad=7), response)
    for i, row in enumerate(rows):
        alone, alone_hidden = prefill_and_respond(SMALL, params, *left_pad([row]), response[i : i + 1])
        assert int(alone.length[0]) == int(prompt.length[i]) == len(row)
        np.testing.assert_allclose(prompt.last[i], alone.last[0], atol=5e-6)
        np.testing.assert_allclose(prompt.pooled[i], alone.pooled[0], atol=5e-6)
        np.testing.assert_allclose(hidden[i], alone_hidden[0], atol=5e-6)


def test_candidates_share_a_prompt_without_seeing_each_other(random_params):
    params = random_params(SMALL)
    tokens, mask = left_pad([[3, 1, 4, 1, 5]])
    response = np.random.default_rng(3).integers(0, SMALL.vocab_size, (1, 3, 6))
    _, together = prefill_and_respond(SMALL, params, tokens, mask, response)
    others = response.copy()
    others[:, 1:] = (others[:, 1:] + 1) % SMALL.vocab_size
    _, changed = prefill_and_respond(SMALL, params, tokens, mask, others)
    np.testing.assert_array_equal(together[:, 0], changed[:, 0])
    assert float(jnp.abs(together[:, 1:, 1:] - changed[:, 1:, 1:]).max()) > 0.1
    _, alone = prefill_and_respond(SMALL, params, tokens, mask, response[:, 1:2])
    np.testing.assert_allclose(together[:, 1:2], alone, atol=5e-6)


def test_a_row_that_is_all_padding_is_finite(random_params):
    mask = jnp.asarray([[False] * 4, [True] * 4])
    response = jnp.zeros((2, 1, 3), jnp.int32)
    prompt, hidden = prefill_and_respond(SMALL, random_params(SMALL), jnp.zeros((2, 4), jnp.int32), mask, response)
    assert all(bool(jnp.isfinite(x).all()) for x in (prompt.last, prompt.pooled, hidden))


def training_loss(config):
    """A loss of the transformer's parameters, with dropout drawn."""
    tokens = np.random.default_rng(4).integers(0, 29, (3, 7))
    causal = jnp.tril(jnp.ones((6, 6), bool))[None, None]

    def run(module, tokens):
        hidden, _ = module(module.embed(tokens)[:, None], jnp.arange(6)[None, None], causal, deterministic=False)
        return jax.nn.log_softmax(module.unembed(hidden[:, 0]))

    def loss(params):
        rngs = {"dropout": jax.random.key(5, impl="unsafe_rbg")}  # compiles in half the time
        log_pi = Transformer(config).apply({"params": params}, tokens[:, :-1], method=run, rngs=rngs)
        return -jnp.mean(jnp.take_along_axis(log_pi, tokens[:, 1:, None], axis=-1))

    return loss


def test_remat_keeps_less_and_changes_nothing_else(random_params):
    config = dataclasses.replace(SMALL, layers=2, lora=Lora(rank=2, alpha=4.0, dropout=0.3, targets="(q|down)$"))
    params = random_params(config)["transformer"]
    losses = {remat: training_loss(dataclasses.replace(config, remat=remat)) for remat in ("none", "dots", "full")}

    def remaining(loss):  # numbers that the forward pass leaves for the backward pass
        backward = jax.eval_shape(lambda p: jax.vjp(loss, p)[1], params)
        return sum(leaf.size for leaf in jax.tree.leaves(backward))

    assert remaining(losses["full"]) < 0.8 * remaining(losses["dots"]) < 0.8**2 * remaining(losses["none"])
    value, grads = jax.jit(jax.value_and_grad(losses["none"]))(params)
    assert float(jnp.abs(grads["layers"]["attention"]["q"]["lora_a"]).max()) > 1e-3
    for remat in ("dots", "full"):
        value_, grads_ = jax.jit(jax.value_and_grad(losses[remat]))(params)
        np.testing.assert_allclose(value, value_, rtol=1e-6)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), grads, grads_)


def test_unrolling_the_scan_changes_nothing(random_params):
    params = random_params(SMALL)
    tokens = np.random.default_rng(6).integers(0, 29, (2, 7))
    assert SMALL.unroll == 1
    a = full_logits(SMALL, params["transformer"], tokens)
    b = full_logits(dataclasses.replace(SMALL, unroll=3), params["transformer"], tokens)
    np.testing.assert_allclose(a, b, atol=1e-6)


def test_bfloat16_compute_gives_float32_logits_near_float32_compute(random_params):
    params = random_params(SMALL)
    tokens = np.random.default_rng(7).integers(0, 29, (2, 7))
    exact = full_logits(SMALL, params["transformer"], tokens)
    rough = full_logits(dataclasses.replace(SMALL, dtype="bfloat16"), params["transformer"], tokens)
    assert rough.dtype == jnp.float32
    error = float(jnp.abs(rough - exact).max())
    assert 0 < error < 0.1 * float(jnp.abs(exact).max())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(kv_heads=3), "heads=4 is not a multiple of kv_heads=3"),
        (dict(head_dim=7), "head_dim=7 must be even"),
        (dict(remat="some"), "remat='some' is not one of"),
    ],
)
def test_bad_sizes_are_named(change, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(SMALL, **change)


PROMPTS = (
    "What is the capital of France?",
    "Write a haiku about rain.",
    "Why is the sky blue?",
    "List three uses for a paperclip.",
    "Translate 'good morning' into Spanish.",
    "What is 17 + 25?",
    "Explain photosynthesis to a child.",
    "Give me a recipe for pancakes.",
    "Who wrote Pride and Prejudice?",
    "How do I politely decline an invitation?",
    "Name a few animals that live in the desert.",
    "What is the difference between weather and climate?",
    "Suggest a name for a bakery.",
    "How many days are there in a leap year?",
    "Describe the sea in one sentence.",
    "What should I pack for a hike in the mountains?",
    "Correct the grammar: she go to school yesterday.",
    "Tell me a short story about a lost key.",
    "What does a compiler do?",
    "How can I fall asleep faster?",
)


@pytest.mark.slow
def test_smollm2_answers_as_torch_does_on_20_prompts():
    torch = pytest.importorskip("torch", reason="torch, the reference, is not installed")
    transformers = pytest.importorskip("transformers")
    if not SMOLLM2.is_dir():
        pytest.skip(f"no weights at {SMOLLM2}: run launch/fetch_smollm2.sh, or set MEAL_SMOLLM2 to their directory")
    tokenizer = pretrained.load_tokenizer(SMOLLM2)
    rows = [
        tokenizer.apply_chat_template(
            [{"role": "user", "content": text}], add_generation_prompt=True, return_dict=False
        )
        for text in PROMPTS
    ]
    end, pad = tokenizer.eos_token_id, tokenizer.pad_token_id
    model = transformers.AutoModelForCausalLM.from_pretrained(SMOLLM2, dtype=torch.float32)
    expected = []
    for row in rows:
        ids = torch.tensor([row])
        with torch.no_grad():
            out = model.generate(ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=32)
        expected.append(out[0, len(row) :].tolist())
    del model
    config = pretrained.load_config(SMOLLM2)
    params = {"transformer": pretrained.load_params(SMOLLM2, config)}
    answers = np.asarray(greedy(config, params, *left_pad(rows, pad), end, pad, max_new=32))
    actual = [row[: len(other)].tolist() for row, other in zip(answers, expected, strict=True)]
    assert actual == expected
    assert all((row[len(other) :] == pad).all() for row, other in zip(answers, expected, strict=True))
