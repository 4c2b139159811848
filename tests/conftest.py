"""Tests run on the CPU, as eight devices, so that meshes can be tried. This is read before anything imports jax."""

import atexit
import gc
import os
import shutil
import sys
import tempfile
from pathlib import Path

from tests import xla

os.environ["JAX_PLATFORMS"] = "cpu"
if "PYTEST_XDIST_WORKER" not in os.environ:  # workers inherit what is set here
    _flags = [os.environ.get("XLA_FLAGS", "")]
    if "xla_force_host_platform_device_count" not in _flags[0]:
        _flags.append(xla.devices(8))
    if "slow" not in sys.argv:
        _flags.append(xla.QUICK)
    os.environ["XLA_FLAGS"] = " ".join(_flags).strip()
    # What two tests, workers or commands compile alike is compiled once. Each run of the tests begins with nothing kept.
    os.environ["JAX_COMPILATION_CACHE_DIR"] = _kept = tempfile.mkdtemp(prefix="meal_jax_tests_")
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
    atexit.register(shutil.rmtree, _kept, ignore_errors=True)
    os.environ.update(xla.MALLOC)

import pytest

gc.set_threshold(xla.GARBAGE)

TEMPLATE = (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\nYou are a long system text that nobody asked for<|im_end|>\n' }}{% endif %}"
    "{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)  # SmolLM2's, but for the text


# Files of a minute or more. launch/test.sh hands files to its workers in the order of collection: a long one that is begun
# last leaves the others idle.
LONG = (
    "train_test.py", "meal/step_test.py", "runtime/distributed_test.py", "export/model_directory_test.py", "methods_test.py",
    "aot/report_test.py", "hf/families_test.py", "meal/halt_test.py",
)  # fmt: skip


def pytest_collection_modifyitems(items):
    here = Path(__file__).parent
    items.sort(key=lambda item: item.path.relative_to(here).as_posix() not in LONG)


@pytest.fixture(autouse=True)
def same_verbosity():
    """Commands set what absl logs, as long as their process lives; the next test is to hear warnings again."""
    from absl import logging

    before = logging.get_verbosity()
    yield
    logging.set_verbosity(before)


@pytest.fixture(scope="session")
def documented():
    """Function: names of objectives to all names of metrics that docs/metrics.md lists, by their section's title."""
    import re
    from pathlib import Path

    page = (Path(__file__).parents[1] / "docs" / "metrics.md").read_text()

    def names(objectives):
        sections = {}
        for section in page.split("\n## ")[1:]:
            listed = sections.setdefault(section.splitlines()[0], set())
            for line in section.splitlines():
                cells = line.split("|")
                for name in re.findall(r"`([^`]+)`", cells[1]) if line.startswith("| `") else ():
                    listed |= {name.replace("OBJECTIVE", objective) for objective in objectives or ("",)}
                    assert len(cells) == 5 and cells[2].strip() and cells[3].strip(), f"{name}: no meaning or no unit"
        return sections

    return names


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

    from meal_jax.hf import pretrained
    from meal_jax.models.transformer import TransformerConfig

    config = TransformerConfig(vocab_size=320, width=16, layers=2, heads=2, kv_heads=1, head_dim=8, hidden=24)
    rng = np.random.default_rng(0)
    flat = {
        path: (rng.uniform(0.5, 1.5, leaf.shape) if path.endswith("norm") else 0.3 * rng.normal(size=leaf.shape))
        for path, leaf in pretrained.param_shapes(config).items()
    }
    directory = tmp_path_factory.mktemp("chat_model")
    pretrained.save(directory, config, jax.tree.map(np.float32, traverse_util.unflatten_dict(flat, sep="/")))
    chat_tokenizer.save_pretrained(directory)
    return directory


def save_run(workdir, config):
    """Writes what a run leaves behind: its configuration, and a checkpoint at step 3.

    Nothing was trained. What training would change is random, and large enough to change every answer.
    """
    import jax
    import jax.numpy as jnp
    import numpy as np

    from meal_jax import build, methods
    from meal_jax.meal.normalise import RunningStats
    from meal_jax.runtime import checkpoint

    (workdir / "config.json").write_text(config.to_json_best_effort(indent=2))
    rng, key = np.random.default_rng(0), jax.random.key(0)
    task = build.build_task(config)
    setup = build.build_setup(config, task)
    theta, _ = jax.eval_shape(lambda key: build.init_policy(setup, task, key), key)
    state = jax.eval_shape(lambda theta, key: methods.get(config.method).init(setup, theta, key), theta, key)

    def draw(path, leaf):
        path = jax.tree_util.keystr(path, simple=True, separator="/")
        if leaf.dtype == key.dtype:
            return key
        if jnp.issubdtype(leaf.dtype, jnp.integer):
            return jnp.full(leaf.shape, 3, leaf.dtype)
        scale = 0.2 if path.startswith("net/") else 0.4  # proposals that are not all at a corner
        values = rng.uniform(0.5, 1.5, leaf.shape) if "norm" in path else scale * rng.normal(size=leaf.shape)
        return jnp.asarray(values, leaf.dtype)

    state = jax.tree_util.tree_map_with_path(draw, state)
    k = len(config.objectives)
    state = state.replace(
        rewards=RunningStats(*(jnp.asarray(v, jnp.float32) for v in (0.5 + np.arange(k), 4.0 + np.arange(k), 96)))
    )
    opened = checkpoint.open_checkpoints(workdir / "checkpoints", keep=1)
    checkpoint.save(opened, 3, state, {})
    checkpoint.close(opened)


@pytest.fixture(scope="session")
def toy_run(tmp_path_factory):
    """Workdir of an untrained toy run, all of whose weights would be trained; see `save_run`."""
    from meal_jax import config

    c = config.default()
    changes = {
        "sampling.max_new": 4, "policy.width": 16, "policy.hidden": 16, "policy.layers": 1, "conditioning.slots": 3,
        "eval.prompts": 16, "eval.divisions": 2,
    }  # fmt: skip
    c.update_from_flattened_dict(changes)
    workdir = tmp_path_factory.mktemp("toy_run")
    save_run(workdir, c)
    return workdir


@pytest.fixture(scope="session")
def assistant_run(chat_model, tmp_path_factory):
    """Function (conditioning kind, objectives, conditioning.prompt) to an untrained assistant run's workdir.

    The run has LoRA on `chat_model`.
    """
    import functools
    import json

    import numpy as np

    from meal_jax import config
    from meal_jax.data import chat as chats
    from meal_jax.hf import pretrained
    from meal_jax.rewards import linear_heads
    from meal_jax.tasks import assistant

    @functools.cache
    def make(kind, objectives=("harmless", "helpful"), prompt="uniform"):
        workdir, rng = tmp_path_factory.mktemp(f"assistant_{kind}"), np.random.default_rng(0)
        rows = [{"chosen": f"\n\nHuman: {i}\n\nAssistant: a"} for i in range(60)]
        text = "".join(json.dumps(row | {"rejected": row["chosen"] + "b"}) + "\n" for row in rows)
        for folder in assistant.FOLDERS:
            (workdir / "data" / folder).mkdir(parents=True)
            (workdir / "data" / folder / "test.jsonl").write_text(text)
        heads = linear_heads.Heads(
            w=rng.normal(size=(len(objectives), 32)).astype(np.float32),
            b=np.zeros(len(objectives), np.float32),
            temperature=np.ones(len(objectives), np.float32),
            objectives=objectives,
            features="last+mean",
            base=linear_heads.fingerprint(pretrained.load_params(chat_model, pretrained.load_config(chat_model))),
            base_name="tiny",
            format=chats.describe(chats.make(pretrained.load_tokenizer(chat_model))),
            facts={},
        )
        linear_heads.save(heads, workdir / "heads.safetensors")
        c = config.default()
        changes = {
            "task": "assistant", "objectives": objectives, "conditioning.kind": kind, "conditioning.slots": 3,
            "conditioning.prompt": prompt, "policy.source": str(chat_model), "policy.lora_rank": 2, "policy.lora_alpha": 6.0,
            "sampling.max_new": 10,
            "data.path": str(workdir / "data"), "data.prompt_length": 48, "batch_size": 4, "eval.prompts": 8,
            "eval.divisions": 2, "reward.heads": str(workdir / "heads.safetensors"),
        }  # fmt: skip
        c.update_from_flattened_dict(changes)
        save_run(workdir, c)
        return workdir

    return make
