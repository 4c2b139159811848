"""Tests run on the CPU, as eight devices, so that meshes can be tried. This is read before anything imports jax."""

import os
import sys

os.environ["JAX_PLATFORMS"] = "cpu"
_flags = [os.environ.get("XLA_FLAGS", "")]
if "xla_force_host_platform_device_count" not in _flags[0]:
    _flags.append("--xla_force_host_platform_device_count=8")
if "slow" not in sys.argv:
    # Tiny models spend their time in the compiler, not in the program: half of it goes without these passes.
    _flags.append("--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true")
os.environ["XLA_FLAGS"] = " ".join(_flags).strip()

import pytest  # noqa: E402

TEMPLATE = (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\nYou are a long system text that nobody asked for<|im_end|>\n' }}{% endif %}"
    "{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)  # SmolLM2's, but for the text


@pytest.fixture(scope="session")
def chat_tokenizer():
    """A byte-level BPE tokenizer with a chat template of SmolLM2's form, trained here on a few invented words."""
    import tokenizers
    import transformers
    from tokenizers import decoders, models, pre_tokenizers, trainers

    tokenizer = tokenizers.Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        show_progress=False,
        special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<repo_name>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    tokenizer.train_from_iterator(["user assistant system harmless helpful please thank you yes no"] * 4, trainer)
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<|im_start|>",
        eos_token="<|im_end|>",
        unk_token="<|endoftext|>",
        pad_token="<|im_end|>",
        chat_template=TEMPLATE,
    )


@pytest.fixture(scope="session")
def chat_model(chat_tokenizer, tmp_path_factory):
    """Hugging Face directory of a tiny random decoder with `chat_tokenizer`; its vocabulary is larger than that."""
    import jax
    import numpy as np
    from flax import traverse_util

    from meal_jax.models import hf
    from meal_jax.models.transformer import TransformerConfig

    config = TransformerConfig(vocab_size=320, width=16, layers=2, heads=2, kv_heads=1, head_dim=8, hidden=24)
    rng = np.random.default_rng(0)
    flat = {
        path: (rng.uniform(0.5, 1.5, leaf.shape) if path.endswith("norm") else 0.3 * rng.normal(size=leaf.shape))
        for path, leaf in hf.param_shapes(config).items()
    }
    directory = tmp_path_factory.mktemp("chat_model")
    hf.save(directory, config, jax.tree.map(np.float32, traverse_util.unflatten_dict(flat, sep="/")))
    chat_tokenizer.save_pretrained(directory)
    return directory
