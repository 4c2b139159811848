"""Exported chat templates, and answers, in other programs than transformers: llama.cpp, and openvino-genai with its minja.

The engines are the wheels that meal_jax/export/runtimes.py pins: xllamacpp, openvino-genai, ctranslate2 (with torch) and
mlx-lm (with mlx[cpu]), all with transformers, best in a virtual environment of their own: MEAL_JAX_ENGINES names its Python.
"""

import copy
import dataclasses
import functools
import json
import os
import subprocess
import sys
import types
from pathlib import Path

import numpy as np
import pytest
from flax import traverse_util

from meal_jax.data import chat as chats
from meal_jax.data import template_text
from meal_jax.export import chat_template, model_directory, runtimes
from meal_jax.hf import pretrained
from meal_jax.models.policy import Conditioning
from meal_jax.models.transformer import TransformerConfig
from tests.data.published_chat_test import DATED, FOLDS, PHI_3, REFUSES, TURNS

PYTHON = os.environ.get("MEAL_JAX_ENGINES", sys.executable)
PACKAGES = {
    "llama.cpp": "xllamacpp",
    "openvino-genai": "openvino_genai",
    "ctranslate2": "ctranslate2",
    "mlx-lm": "mlx_lm",
}
LEVELS = [0.0, 0.05, 0.15, 0.25, 0.3, 0.45, 0.5, 0.7, 1.0]
GEMMA_2 = (
    "{{ bos_token }}{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    "{% for message in messages %}{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{% endif %}"
    "{% if (message['role'] == 'assistant') %}{% set role = 'model' %}{% else %}{% set role = message['role'] %}{% endif %}"
    "{{ '<|im_start|>' + role + '\n' + message['content'] | trim + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{'<|im_start|>model\n'}}{% endif %}"
)
SPACE = (  # a byte-level tokenizer joins the space with what follows
    "{% for m in messages %}{{ m['role'] + ': ' + m['content'] }}{% if m['role'] == 'assistant' %}{{ eos_token }}"
    "{% else %}{{ ' ' }}{% endif %}{% endfor %}{% if add_generation_prompt %}{{ 'assistant:' }}{% endif %}"
)
BASES = {"turns": TURNS, "folds": FOLDS, "refuses": REFUSES, "dated": DATED, "gemma 2": GEMMA_2, "space": SPACE}
BASES["phi 3"] = PHI_3.replace("</s>", "<|im_end|>")
READS = ("text", "prefix", "adapter+text", "adapter", "none")


@functools.cache
def has(engine):
    return subprocess.run([PYTHON, "-c", f"import {PACKAGES[engine]}"], capture_output=True).returncode == 0


def need(engine):
    if not has(engine):
        pytest.skip(f"{engine} is not installed in {PYTHON}: see this file's docstring")


def write_gguf(path, directory, params, config):
    """A GGUF file of a Llama and of the directory's tokenizer."""
    gguf_test = pytest.importorskip("tests.hf.gguf_test", reason="the gguf package is not installed")
    entries = json.loads((Path(directory) / "tokenizer.json").read_text())
    names = {i: name for name, i in entries["model"]["vocab"].items()}
    special = {token["id"]: token["content"] for token in entries["added_tokens"]}
    names |= special
    ids = range(config.vocab_size)
    gguf_test.write(
        path,
        params,
        config,
        tokenizer__ggml__tokens=[names.get(i, f"[PAD{i}]") for i in ids],
        tokenizer__ggml__token_type=[3 if i in special else 1 if i in names else 5 for i in ids],
        tokenizer__ggml__merges=[m if isinstance(m, str) else " ".join(m) for m in entries["model"]["merges"]],
        tokenizer__ggml__bos_token_id=1,
        tokenizer__ggml__eos_token_id=2,
        tokenizer__ggml__add_bos_token=False,
        tokenizer__chat_template=TURNS,
    )
    return path


def exported(tokenizer, base, reads):
    """A base's chat template as `export` writes it for a kind of conditioning."""
    tokenizer = template_text.with_one_template(tokenizer)
    tokenizer.chat_template = base
    chat = chats.make(tokenizer)
    encode = functools.partial(tokenizer, add_special_tokens=False)
    table = [
        tuple(tuple(encode(f" {name}: {i / 10:.1f}")["input_ids"]) for i in range(11))
        for name in ("harmless", "helpful")
    ]
    conditioning = Conditioning(reads, 2, slots=2, table=tuple(table) if "text" in reads else ())
    task = types.SimpleNamespace(chat=chat, conditioning=conditioning, objectives=("harmless", "helpful"))
    slots = [5, 6] if reads == "prefix" else []
    return model_directory.make_template(types.SimpleNamespace(task=task), tokenizer, slots, np.array([0.3, 0.7]))[0]


def requests_of(reads):
    """Conversations with and without a generation prompt, and preferences on and between the numerals' levels."""
    messages = [{"role": role, "content": text} for role, text in chat_template.EXAMPLE]
    plain = [
        {"messages": part, "opened": opened, "variables": {}}
        for part in (messages[:1], messages)
        for opened in (True, False)
    ]
    if reads != "text":
        return plain
    weights = [{"preference": [w, round(1 - w, 2)]} for w in LEVELS]
    return [*plain, *({"messages": messages[:1], "opened": True, "variables": variables} for variables in weights)]


@pytest.mark.parametrize("engine", ["llama.cpp", "openvino-genai"])
@pytest.mark.parametrize("reads", READS)
def test_other_engines_render_an_exported_template_as_jinja2_does(engine, reads, chat_tokenizer, tmp_path):
    need(engine)
    task = {"requests": requests_of(reads), "tokenizer": str(tmp_path / "tokenizer")}
    task["templates"] = [exported(copy.copy(chat_tokenizer), base, reads) for base in BASES.values()]
    chat_tokenizer.save_pretrained(task["tokenizer"])
    if engine == "llama.cpp":
        config = TransformerConfig(
            vocab_size=320, width=16, layers=1, heads=2, kv_heads=1, head_dim=8, hidden=24, tied=True
        )
        flat = {path: np.zeros(leaf.shape, np.float32) for path, leaf in pretrained.param_shapes(config).items()}
        params = traverse_util.unflatten_dict(flat, sep="/")
        task["gguf"] = str(write_gguf(tmp_path / "model.gguf", task["tokenizer"], params, config))
    (texts,), status, said = runtimes.work(PYTHON, "render", engine, task)
    assert status == 0, said
    for name, template, rendered in zip(BASES, task["templates"], texts, strict=True):
        for request, text in zip(task["requests"], rendered, strict=True):
            expected = chat_tokenizer.apply_chat_template(
                request["messages"],
                chat_template=template,
                tokenize=False,
                add_generation_prompt=request["opened"],
                **request["variables"],
            )
            assert text == expected, (name, request)


@pytest.mark.slow
@pytest.mark.parametrize("reads", READS)
def test_other_engines_answer_as_the_run_does(reads, assistant_run, tmp_path):
    """Merged weights, the same preference and forbidden tokens: the same greedy tokens.

    llama.cpp is given messages and the exported template, the others the prompt's ids.
    """
    from meal_jax.generate import answers
    from meal_jax.rollout.sampling import Sampling
    from meal_jax.saved_run import open_run

    engines = [engine for engine in ("llama.cpp", "ctranslate2", "mlx-lm") if has(engine)]
    if not engines:
        need("llama.cpp")
    w = np.array([0.3, 0.7])
    run = open_run(assistant_run(reads, prompt="preference" if reads.startswith("adapter") else "uniform"))
    run = run._replace(setup=dataclasses.replace(run.setup, meal=dataclasses.replace(run.setup.meal, net=False)))
    out = tmp_path / "out"
    model_directory.export(run, out, preference=None if reads == "none" else w)
    prompts = chats.encode_explicit(run.task.chat, ["Is it late?"], 48)
    answer = answers.answers(run, prompts, w[None], sampling=Sampling(temperature=0.0), max_new=10, rewards=False)
    expected = answer.tokens[0, 0][answer.mask[0, 0]].tolist()
    assert len(expected) > 3
    tokenizer, messages = pretrained.load_tokenizer(out), [{"role": "user", "content": "Is it late?"}]
    ids = tokenizer.apply_chat_template(messages, add_generation_prompt=True)["input_ids"]
    config = pretrained.load_config(out)
    gguf = write_gguf(tmp_path / "model.gguf", out, pretrained.load_params(out, config), config)
    suppressed = json.loads((out / "generation_config.json").read_text())["suppress_tokens"]
    request = {"messages": messages, "ids": ids, "variables": {}, "suppress": suppressed}
    cell = {"name": "out", "kind": "merged", "directory": str(out), "gguf": str(gguf), "requests": [request]}
    cell["template"] = tokenizer.chat_template
    for engine in engines:
        route = "chat" if engine == "llama.cpp" else "ids"
        answered = runtimes.ask(PYTHON, engine, [cell | {"routes": [route]}], tmp_path, 10)
        (tokens,), length = answered.routes["out"][route], len(expected)
        if engine == "ctranslate2":  # it suppresses no id that has no text
            length = next((i for i, token in enumerate(tokens) if token in suppressed), length)
        assert tokens[:length] == expected[:length] and length > 0, engine
