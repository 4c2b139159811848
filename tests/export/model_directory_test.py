"""Exported models answer as the run does, token for token, in transformers' torch: by the code that their cards show.

Also: the NumPy networks against Flax, the chat template against the base's, what the card says, and what is refused.
"""

import dataclasses
import json
import re
import subprocess
import sys

import jax
import numpy as np
import pytest
import safetensors
from safetensors.numpy import load_file

from meal_jax.data import chat as chats
from meal_jax.export import __main__ as command_line
from meal_jax.export import card, chat_template, model_directory, prefix, prompt_gap, weight_net
from meal_jax.generate import answers
from meal_jax.hf import pretrained
from meal_jax.hf.storage import INDEX, SINGLE
from meal_jax.models.policy import Conditioner
from meal_jax.rollout.sampling import Sampling
from meal_jax.saved_run import open_run

torch = pytest.importorskip("torch", reason="torch, the reference, is not installed")
transformers = pytest.importorskip("transformers")
torch.set_num_threads(1)
PROMPT, OTHER = "How do I keep bread fresh?", "Is it late?"  # the first is the card's
W = np.array([0.3, 0.7])
GREEDY = Sampling(temperature=0.0)


@pytest.fixture(scope="module")
def run(assistant_run):
    """Function of the conditioning's kind that opens its run, once a kind."""
    opened = {}
    return lambda kind: opened.setdefault(kind, open_run(assistant_run(kind)))


@pytest.fixture(scope="module")
def directory(run, tmp_path_factory):
    """Function of a kind and `export`'s options that gives an exported directory, made once."""
    made = {}

    def make(reads, **options):
        key = (reads, *sorted((name, str(value)) for name, value in options.items()))
        if key not in made:
            made[key] = tmp_path_factory.mktemp(f"export_{reads}") / "out"
            model_directory.export(run(reads), made[key], **options)
        return made[key]

    return make


@pytest.fixture(scope="module")
def answer_run(run):
    """Function (kind, preference, prompt, net) to the run's own greedy answer, up to its end, and what its net proposed."""
    texts, preferences, made = (PROMPT, OTHER), np.array([W, [1, 0], [0, 1], [0.62, 0.38]]), {}

    def answer(reads, w, text=PROMPT, net=True):
        if (reads, net) not in made:  # one compilation for all that is asked
            opened = run(reads)
            meal = dataclasses.replace(opened.setup.meal, net=net)
            opened = opened._replace(setup=dataclasses.replace(opened.setup, meal=meal))
            prompts = chats.encode_explicit(opened.task.chat, texts, 48)
            made[reads, net] = answers.answers(opened, prompts, preferences, sampling=GREEDY, max_new=10, rewards=False)
        result, place = made[reads, net], (texts.index(text), np.abs(preferences - w).sum(axis=1).argmin())
        return result.tokens[place][result.mask[place]].tolist(), result.proposals[place]

    return answer


def load(directory):
    return transformers.AutoModelForCausalLM.from_pretrained(directory).eval()


def greedy(model, ids, max_new=10):
    """transformers' answer to token ids, under the model's own generation_config."""
    ids = torch.tensor([ids])
    out = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=max_new, do_sample=False)
    return out[0, ids.shape[1] :].tolist()


def code(directory):
    """The example in a directory's card, ready to run from anywhere."""
    text = (directory / "README.md").read_text()
    (block,) = re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)
    assert 'directory = "."' in block or 'directory, base = "."' in block
    return block.replace('"."', repr(str(directory)), 1)


def run_card(directory, monkeypatch):
    """Runs the example; returns its variables."""
    for module in ("weight_net", "prefix"):
        monkeypatch.delitem(sys.modules, module, raising=False)
    monkeypatch.setattr(sys, "path", list(sys.path))
    variables = {}
    exec(code(directory), variables)
    return variables


@pytest.mark.parametrize("reads", ["text", "prefix"])
def test_the_cards_example_answers_as_the_run_does_weight_net_and_all(
    reads, run, answer_run, directory, monkeypatch, capsys
):
    variables = run_card(directory(reads), monkeypatch)
    expected, proposed = answer_run(reads, W)
    assert variables["answer"].tolist() == expected and len(expected) > 3
    np.testing.assert_allclose(variables["preference"], proposed, atol=1e-4)
    assert np.abs(proposed - W).max() > 0.05  # or the weight-net would not be tested
    assert capsys.readouterr().out.strip() == run(reads).task.show(np.array(expected))


def test_merged_text_model_reads_preferences_from_its_chat_template(answer_run, directory):
    model, tokenizer = load(directory("text")), transformers.AutoTokenizer.from_pretrained(directory("text"))
    answers = []
    for text, w in ((OTHER, [1.0, 0.0]), (OTHER, [0.0, 1.0]), (PROMPT, [0.62, 0.38])):
        messages = [{"role": "user", "content": text}]
        ids = tokenizer.apply_chat_template(messages, add_generation_prompt=True, preference=w)["input_ids"]
        answers.append(greedy(model, ids))
        assert answers[-1] == answer_run("text", w, text, net=False)[0]
    assert answers[0] != answers[1]


def test_a_baked_prefix_answers_under_its_preference_alone(answer_run, directory, monkeypatch):
    for w in (W, np.array([1.0, 0.0])):
        baked = directory("prefix", preference=w)
        variables = run_card(baked, monkeypatch)
        expected = answer_run("prefix", w, net=False)[0]
        assert variables["answer"].tolist() == expected
        slots = json.loads((baked / "preference.json").read_text())["slots"]
        names = [f"<|preference_{i}|>" for i in range(3)]
        assert variables["tokenizer"].convert_ids_to_tokens(slots) == names
        assert variables["model"].config.vocab_size == 320  # there was room for them
        assert set(slots) <= set(variables["model"].generation_config.suppress_tokens)
        assert not (baked / "prefix.py").exists() and not (baked / "weight_net.py").exists()
    assert expected != answer_run("prefix", W, net=False)[0]


def test_an_adapter_added_by_hand_answers_as_the_run_does(answer_run, directory, chat_model):
    made = directory("text", kind="adapter")
    entries = json.loads((made / "adapter_config.json").read_text())
    assert (entries["peft_type"], entries["r"], entries["lora_alpha"]) == ("LORA", 2, 6.0)
    assert entries["target_modules"] == ["k_proj", "o_proj", "q_proj", "v_proj"]
    assert entries["base_model_name_or_path"] == str(chat_model) and not (made / "model.safetensors").exists()
    tensors = load_file(made / "adapter_model.safetensors")
    model = load(chat_model)
    model.generation_config = transformers.GenerationConfig.from_pretrained(made)
    added = set()
    with torch.no_grad():
        for name, module in model.named_modules():
            if name.rpartition(".")[2] in entries["target_modules"]:
                a, b = (torch.tensor(tensors[f"base_model.model.{name}.lora_{f}.weight"]) for f in "AB")
                module.weight += entries["lora_alpha"] / entries["r"] * b @ a
                added |= {f"base_model.model.{name}.lora_{f}.weight" for f in "AB"}
    assert added == tensors.keys() and len(added) == 2 * 4 * 2
    tokenizer = transformers.AutoTokenizer.from_pretrained(made)
    messages = [{"role": "user", "content": PROMPT}]
    ids = tokenizer.apply_chat_template(messages, add_generation_prompt=True, preference=[0.3, 0.7])["input_ids"]
    assert greedy(model, ids) == answer_run("text", W, net=False)[0]


def test_an_adapters_card_works_where_peft_is_installed(answer_run, directory, monkeypatch):
    pytest.importorskip("peft", reason="peft is not installed")
    for reads in ("text", "prefix"):
        assert run_card(directory(reads, kind="adapter"), monkeypatch)["answer"].tolist() == answer_run(reads, W)[0]


@pytest.mark.parametrize("reads", ["adapter", "adapter+text", "adapter+prefix"])
def test_adapters_that_read_a_preference_are_exported_at_one(reads, assistant_run, tmp_path, monkeypatch):
    """Exactly as the run answers, where it reads the prompt at the preference too: by the card's code, merged or not."""
    run = open_run(assistant_run(reads, prompt="preference"))
    run = run._replace(setup=dataclasses.replace(run.setup, meal=dataclasses.replace(run.setup.meal, net=False)))
    prompts, w = chats.encode_explicit(run.task.chat, [PROMPT], 48), np.array([W, [1.0, 0.0]])
    result = answers.answers(run, prompts, w, sampling=GREEDY, max_new=10, rewards=False)
    expected = [tokens[mask].tolist() for tokens, mask in zip(result.tokens[0], result.mask[0], strict=True)]
    assert expected[0] != expected[1]
    for i in (0, 1) if reads == "adapter" else (0,):
        model_directory.export(run, tmp_path / f"{i}", preference=w[i])
        assert run_card(tmp_path / f"{i}", monkeypatch)["answer"].tolist() == expected[i]
        assert not (tmp_path / f"{i}" / "weight_net.py").exists()
    card = (tmp_path / "0" / "README.md").read_text()
    assert "under [0.3, 0.7] and no other" in card and "differently than in training" not in card
    if reads == "adapter":
        model_directory.export(run, tmp_path / "plain", kind="adapter", preference=W)
        tensors = load_file(tmp_path / "plain" / "adapter_model.safetensors")
        name = "base_model.model.model.layers.0.self_attn.q_proj.lora_B.weight"
        block = run.state.policy["transformer"]["layers"]["attention"]["q"]["lora_b"][0]
        np.testing.assert_allclose(tensors[name], (block * np.array([[0.6], [1.4]])).T, rtol=1e-6)


def test_the_card_measures_what_the_prompts_pass_differs_by(assistant_run, tmp_path, monkeypatch):
    """At the uniform preference, which training reads the prompt at, by nothing."""
    run = open_run(assistant_run("adapter"))
    none = prompt_gap.measure(run, np.array([0.5, 0.5]), prompts=4)
    assert none.kl < 1e-6 and none.largest < 1e-4
    gap = prompt_gap.measure(run, W, prompts=4)
    assert gap.kl > 1e-6 and gap.largest > gap.shift > 1e-4
    conditioning = dataclasses.replace(run.setup.policy.conditioning, tail=())  # of a template that opens no answer
    bare = dataclasses.replace(run.setup, policy=run.setup.policy.clone(conditioning=conditioning))
    assert conditioning.rereads and prompt_gap.measure(run._replace(setup=bare), W, prompts=4).kl > 1e-6
    monkeypatch.setattr(prompt_gap, "measure", lambda *args: gap)
    model_directory.export(run, tmp_path / "out", preference=W)
    card = (tmp_path / "out" / "README.md").read_text()
    assert f"is {gap.kl:.2g} nats per token" in card and f"On {gap.tokens} tokens" in card


def test_a_run_without_a_tokenizer_is_exported_too(toy_run, tmp_path):
    run = open_run(toy_run)
    model_directory.export(run, tmp_path / "toy", preference=W)
    given = json.loads((tmp_path / "toy" / "preference.json").read_text())
    assert given["slots"] == [64, 65, 66]  # the vocabulary grew
    suppressed = json.loads((tmp_path / "toy" / "generation_config.json").read_text())["suppress_tokens"]
    assert suppressed == [*np.flatnonzero(run.task.forbidden), *given["slots"]]
    model, row = load(tmp_path / "toy"), run.task.test.rows(np.array([5]))
    unproposed = dataclasses.replace(run.setup, meal=dataclasses.replace(run.setup.meal, net=False))
    result = answers.answers(run._replace(setup=unproposed), row, W[None], sampling=GREEDY, max_new=4, rewards=False)
    expected = result.tokens[0, 0][result.mask[0, 0]].tolist()
    assert greedy(model, [*row.tokens[row.mask], *given["slots"], *given["tail"]], 4) == expected
    assert "There is no tokenizer" in (tmp_path / "toy" / "README.md").read_text()
    assert not list((tmp_path / "toy").glob("*token*"))


@pytest.mark.parametrize("reads", ["text", "prefix"])
def test_an_index_leaves_the_small_networks_out(directory, reads):
    """vLLM 0.32 reads every safetensors file of a directory as the model's, unless an index names those that are."""
    made = directory(reads)
    index = json.loads((made / INDEX).read_text())
    with safetensors.safe_open(made / SINGLE, framework="numpy") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}
    assert index["weight_map"] == dict.fromkeys(tensors, SINGLE)
    assert index["metadata"]["total_size"] == sum(tensor.nbytes for tensor in tensors.values())
    others = {path.name for path in made.glob("*.safetensors")} - {SINGLE}
    assert others == {"weight_net.safetensors", *(["prefix.safetensors"] if reads == "prefix" else [])}


def test_large_models_are_cut_into_shards(run, directory, tmp_path, monkeypatch):
    real = pretrained.save
    monkeypatch.setattr(pretrained, "save", lambda *args, **options: real(*args, **options, max_shard_bytes=8_000))
    model_directory.export(run("text"), tmp_path / "out")
    assert len(list((tmp_path / "out").glob("model-*.safetensors"))) > 2
    whole, cut = load(directory("text")).state_dict(), load(tmp_path / "out").state_dict()
    assert all(torch.equal(whole[name], cut[name]) for name in whole)


def test_numpy_weight_net_is_flax_s(run, directory):
    run, rng = run("text"), np.random.default_rng(0)
    pooled = 3 * rng.normal(size=(5, 16)).astype(np.float32) + 1
    w = rng.dirichlet(np.ones(2), (5, 4)).astype(np.float32)
    w[0, 0], w[1, 1] = [0, 1], [1, 0]
    expected = run.setup.net.apply({"params": run.state.net}, pooled, w)
    net = weight_net.load(directory("text") / "weight_net.safetensors")
    np.testing.assert_allclose(weight_net.propose(net, pooled[:, None], w), expected, atol=1e-6, rtol=0)
    np.testing.assert_allclose(weight_net.propose(net, pooled[2], w[2, 1]), expected[2, 1], atol=1e-6, rtol=0)
    assert np.abs(expected - w).max() > 0.05


def test_numpy_prefix_is_flax_s(run, directory):
    run = run("prefix")
    module = Conditioner(run.task.transformer, run.task.conditioning)
    net = prefix.load(directory("prefix") / "prefix.safetensors")
    for w in ([0.3, 0.7], [0.0, 1.0]):
        expected = module.apply({"params": run.state.policy["conditioner"]}, np.array(w, np.float32))
        np.testing.assert_allclose(prefix.slots(net, w), expected, atol=1e-6, rtol=0)
        assert expected.shape == (3, 16)


def test_the_numpy_files_need_neither_jax_nor_torch(directory):
    made = directory("prefix")
    script = (
        "import sys, weight_net, prefix; weight_net.propose(weight_net.load(), [0.5, 1.0] * 8, [0.2, 0.8]);"
        "prefix.slots(prefix.load(), [0.2, 0.8]); assert not {'jax', 'torch', 'flax', 'meal_jax'} & sys.modules.keys()"
    )
    subprocess.run([sys.executable, "-c", script], cwd=made, check=True)
    for name in ("weight_net.py", "prefix.py"):
        assert len((made / name).read_text().splitlines()) < 40


TEMPLATES = {
    "lines and macros": (
        "\n{% macro turn(m) %}\n  <|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endmacro %}\n"
        "{% set ns = namespace(n=0) %}\n{% for m in messages %}\n    {%- set ns.n = ns.n + 1 %}\n{{ turn(m) }}{{ ns.n }}\n"
        "{% endfor %}\n{% if add_generation_prompt %}\n<|im_start|>assistant\n{% endif %}\n"
    ),
    "no generation prompt": "{% for m in messages %}{{ m.content }}<|im_end|>{% endfor %}{{ bos_token }}\n  \n",
    "quotes": (
        "{% for m in messages %}{{ 'it\\'s \"' + m.content }}<|im_end|>\n{% endfor %}{{ '\n' if add_generation_prompt }}"
    ),
}


@pytest.mark.parametrize("name", TEMPLATES)
def test_a_wrapped_template_writes_what_the_base_s_does(name, chat_tokenizer):
    chat = chats.Chat(chat_tokenizer, 0, 0, "")
    messages = [{"role": "system", "content": ""}, {"role": "user", "content": "x\n"}, {"role": "user", "content": "y"}]
    for opened in (False, True):
        settings = {"tokenize": False, "add_generation_prompt": opened}

        def render(template, messages):
            return chat_tokenizer.apply_chat_template(
                messages,
                chat_template=template,
                **settings,  # noqa: B023
            )

        own = render(TEMPLATES[name], messages)
        copy = chat._replace(tokenizer=type("T", (), {"chat_template": TEMPLATES[name]}))
        for given in (messages, messages[1:]):  # with the system message that training used, or without one
            assert render(chat_template.wrap(copy), given) == own
        plain = render(TEMPLATES[name], messages[1:])
        assert render(chat_template.wrap(copy._replace(system=None)), messages[1:]) == plain
        marked = render(chat_template.wrap(copy, "{{- ' +' -}}\n"), messages)
        assert marked.replace(" +", "", 1) == own and (" +" in marked) == opened


def test_the_template_rounds_a_preference_as_the_policy_does_and_has_a_default(run, directory):
    task, tokenizer = run("text").task, transformers.AutoTokenizer.from_pretrained(directory("text"))
    messages = [{"role": "user", "content": "Hi."}]
    settings = {"add_generation_prompt": True}

    def render(**given):
        return tokenizer.apply_chat_template(messages, **settings, **given)["input_ids"]

    table, tail = np.array(task.conditioning.table), list(task.conditioning.tail)
    text = chats.prompt_ids(task.chat, (("user", "Hi."),))
    for i in range(101):
        w = [i / 100, round(1 - i / 100, 2)]
        level = np.asarray(jax.numpy.round(jax.numpy.asarray(w) * 10).astype(int))  # as Policy.condition
        assert render(preference=w) == [*text, *table[0, level[0]], *table[1, level[1]], *tail]
    assert render() == render(preference=[0.5, 0.5])
    assert tokenizer.apply_chat_template(messages)["input_ids"] == text
    with pytest.raises(Exception, match="preference needs 2 weights that sum to 1: harmless, helpful"):
        render(preference=[1.0])
    template, exact = model_directory.make_template(run("text"), task.chat.tokenizer, [], np.array([0.9, 0.1]))
    given = tokenizer.apply_chat_template(messages, chat_template=template, add_generation_prompt=True)["input_ids"]
    assert exact and given == render(preference=[0.9, 0.1])


def test_numerals_that_text_cannot_give_are_told(run):
    opened = run("text")
    chat, c = opened.task.chat, opened.task.conditioning

    def spelled(row):
        return tuple(i for char in chat.tokenizer.decode(list(row)) for i in chat.tokenizer(char)["input_ids"])

    table = tuple(tuple(map(spelled, rows)) for rows in c.table)
    assert table != c.table
    opened = opened._replace(task=opened.task._replace(conditioning=dataclasses.replace(c, table=table)))
    template, exact = model_directory.make_template(opened, chat.tokenizer, [], None)
    assert not exact and "harmless: 0.3" in template
    text = card.write(opened, "merged", None, [], exact, ["weight_net"])
    assert "some numerals do not become the tokens" in text and "preference.json" in text


def test_the_card_and_settings_say_what_the_model_is(run, directory, chat_model):
    made, opened = directory("text"), run("text")
    text = (made / "README.md").read_text()
    for message in (
        "harmless, helpful", "step 3 of 600", "LoRA of rank 2, alpha 6, on `attention/(q\\|k\\|v\\|o)$`", chat_model.name,
        "| harmless | 0.5 | 2 |", "| helpful | 1.5 | 2.236 |", "96 responses", "conditioning.kind = 'text'",
        'license: "other"',
        "As the base model", '"chat_template_kwargs": {"preference": […]}', "hidden_states[-1]", "harmless: 0.5",
    ):  # fmt: skip
        assert message in text, message
    assert str(chat_model) not in text.partition("## Training")[0]  # a path of this machine, in the configuration alone
    settings = json.loads((made / "generation_config.json").read_text())
    assert settings["eos_token_id"] == opened.task.end and settings["pad_token_id"] == opened.task.pad
    np.testing.assert_array_equal(settings["suppress_tokens"], np.flatnonzero(opened.task.forbidden))
    entries = json.loads((made / "config.json").read_text())
    assert entries["eos_token_id"] == opened.task.end and entries["vocab_size"] == 320
    tokenizer = json.loads((made / "tokenizer_config.json").read_text())
    assert tokenizer["tokenizer_class"] == "PreTrainedTokenizerFast" and "is_local" not in tokenizer
    assert json.loads((made / "meal_config.json").read_text())["conditioning"]["kind"] == "text"
    unconditioned = (directory("prefix") / "README.md").read_text()
    assert (
        "By text alone this model is given no preference at all" in unconditioned
        and "enable_prompt_embeds=True" in unconditioned
    )
    baked = (directory("prefix", preference=W) / "README.md").read_text()
    assert "under [0.3, 0.7] and no other" in baked and "do have probability" in baked and "logit_bias" in baked


def test_what_cannot_be_exported_is_refused_before_anything_is_loaded(
    assistant_run, toy_run, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr("meal_jax.saved_run.open_run", lambda *args: pytest.fail("opened"))
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").write_text("")

    def refusal(workdir, *argv):
        with pytest.raises(SystemExit) as error:
            command_line.main([f"--checkpoint={workdir}", *argv])
        return str(error.value)

    out = f"--out={tmp_path / 'out'}"
    assert "not empty" in refusal(toy_run, f"--out={tmp_path / 'full'}")
    assert "--kind=merged" in refusal(toy_run, out, "--kind=adapter")
    assert "does not hold" in refusal(assistant_run("prefix"), out, "--kind=adapter", "--preference=0.3,0.7")
    assert "answers under one preference: give it" in refusal(assistant_run("adapter"), out)
    assert "--kind=merged." in refusal(assistant_run("adapter+prefix"), out, "--kind=adapter", "--preference=0.3,0.7")
    assert "reads no preference" in refusal(assistant_run("none"), out, "--preference=0.3,0.7")
    assert "has 1 weight" in refusal(toy_run, out, "--preference=0.3")
    gguf = tmp_path / "gguf"
    gguf.mkdir()
    entries = json.loads((assistant_run("text") / "config.json").read_text())
    entries["policy"]["source"] = "base.gguf"
    (gguf / "config.json").write_text(json.dumps(entries))
    assert "GGUF file, which PEFT cannot load (base.gguf): --kind=merged" in refusal(gguf, out, "--kind=adapter")
    soups = json.loads((toy_run / "config.json").read_text()) | {"method": "soups"}
    soups["conditioning"]["kind"] = "none"
    (gguf / "config.json").write_text(json.dumps(soups))  # not that it reads no preference: an export would not help
    assert "by more than telling one policy of it" in refusal(gguf, out, "--preference=0.3,0.7")
    assert "has no config.json" in refusal(tmp_path, out)
    refusal(toy_run, out, "--kind=gguf")
    assert "invalid choice: 'gguf'" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_an_export_that_fails_leaves_nothing_behind(run, tmp_path, monkeypatch):
    monkeypatch.setattr(model_directory.card, "write", lambda *args: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        model_directory.export(run("text"), tmp_path / "out")
    assert not (tmp_path / "out").exists()
    monkeypatch.undo()
    model_directory.export(run("text"), tmp_path / "out")
    assert {path.name for path in tmp_path.iterdir()} == {"out"}
