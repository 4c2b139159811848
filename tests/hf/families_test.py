"""Each family from a published directory to exports in every kind: trained two steps, the same greedy text everywhere.

Tiny random models of transformers' own classes, with that family's chat template (written here from its documented
behaviour), its special tokens, and more of them than the embedding has rows. All are trained under text conditioning, a few
under prefix and adapter conditioning too.
"""

import importlib.util
import json

import jax
import numpy as np
import pytest
import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers, trainers

from meal_jax import config as base
from meal_jax import train
from meal_jax.data import chat as chats
from meal_jax.export import model_directory
from meal_jax.generate import answers
from meal_jax.hf import families, pretrained, sentencepiece
from meal_jax.parity import comparison
from meal_jax.rollout.sampling import Sampling
from meal_jax.saved_run import open_run
from tests.data.published_chat_test import THINKS

torch = pytest.importorskip("torch", reason="torch, the reference, is not installed")
transformers = pytest.importorskip("transformers")

SIZES = dict(
    hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1, head_dim=8,
    initializer_range=0.4, max_position_embeddings=256,
)  # fmt: skip
W, PROMPT = np.array([0.3, 0.7]), "How do I keep bread fresh?"
REWARDS = """
def early(tokens, mask, prompt_tokens, prompt_mask):
    return ((tokens % 7 < 3) & mask).sum(-1) / mask.sum(-1).clip(1)


def late(tokens, mask, prompt_tokens, prompt_mask):
    return ((tokens % 5 > 2) & mask).sum(-1) / mask.sum(-1).clip(1)
"""
CHATML = (
    "{%- for message in messages %}{{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>' + '\\n' }}"
    "{%- endfor %}{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}"
)


def with_own_system(text):
    """ChatML that inserts a system message of its own where there is none: Qwen 2 and 2.5, SmolLM2."""
    inserted = "{{- '<|im_start|>system\\n" + text + "<|im_end|>\\n' }}"
    return "{%- if messages[0]['role'] != 'system' %}" + inserted + "{%- endif %}" + CHATML


ALTERNATES = (
    "{% for message in messages %}{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{% endif %}"
)
GEMMA_2 = (
    "{{ bos_token }}{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    + ALTERNATES
    + "{% if message['role'] == 'assistant' %}{% set role = 'model' %}{% else %}{% set role = message['role'] %}{% endif %}"
    "{{ '<start_of_turn>' + role + '\n' + message['content'] | trim + '<end_of_turn>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"
)
GEMMA_3 = (
    "{{ bos_token }}\n{%- if messages[0]['role'] == 'system' -%}\n    {%- if messages[0]['content'] is string -%}\n"
    "        {%- set first = messages[0]['content'] + '\n\n' -%}\n    {%- else -%}\n"
    "        {%- set first = messages[0]['content'][0]['text'] + '\n\n' -%}\n    {%- endif -%}\n"
    "    {%- set rest = messages[1:] -%}\n{%- else -%}\n    {%- set first = '' -%}\n    {%- set rest = messages -%}\n"
    "{%- endif -%}\n"
    "{%- for message in rest -%}\n    {%- set role = 'model' if message['role'] == 'assistant' else message['role'] -%}\n"
    "    {{ '<start_of_turn>' + role + '\n' + (first if loop.first else '') }}\n"
    "    {%- if message['content'] is string -%}\n        {{ message['content'] | trim }}\n    {%- endif -%}\n"
    "    {{ '<end_of_turn>\n' }}\n{%- endfor -%}\n"
    "{%- if add_generation_prompt -%}\n    {{ '<start_of_turn>model\n' }}\n{%- endif -%}\n"
)
MISTRAL = (
    "{{ bos_token }}"
    + ALTERNATES
    + "{% if message['role'] == 'user' %}{{ '[INST] ' + message['content'] + ' [/INST]' }}"
    "{% elif message['role'] == 'assistant' %}{{ message['content'] + eos_token }}"
    "{% else %}{{ raise_exception('Only user and assistant roles are supported!') }}{% endif %}{% endfor %}"
)
LLAMA_2 = (
    "{% if messages[0]['role'] == 'system' %}{% set rest = messages[1:] %}{% set system = messages[0]['content'] %}"
    "{% else %}{% set rest = messages %}{% set system = false %}{% endif %}{% for message in rest %}"
    "{% if loop.index0 == 0 and system != false %}"
    "{% set content = '<<SYS>>\n' + system + '\n<</SYS>>\n\n' + message['content'] %}"
    "{% else %}{% set content = message['content'] %}{% endif %}"
    "{% if message['role'] == 'user' %}{{ bos_token + '[INST] ' + content.strip() + ' [/INST]' }}"
    "{% else %}{{ ' ' + content.strip() + ' ' + eos_token }}{% endif %}{% endfor %}"
)
HEADER = "'<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n'"
HEADERS = "{{- " + HEADER + " + message['content'] | trim + '<|eot_id|>' }}"
OPENED = "{%- if add_generation_prompt %}{{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{%- endif %}"
LLAMA_3 = "{{- bos_token }}{%- for message in messages %}" + HEADERS + "{%- endfor %}" + OPENED
LLAMA_31 = (
    "{{- bos_token }}\n{%- if not date_string is defined %}\n    {%- if strftime_now is defined %}\n"
    "        {%- set date_string = strftime_now('%d %b %Y') %}\n    {%- else %}\n"
    "        {%- set date_string = '26 Jul 2024' %}\n    {%- endif %}\n{%- endif %}\n"
    "{%- if messages[0]['role'] == 'system' %}{%- set system = messages[0]['content'] | trim %}"
    "{%- set messages = messages[1:] %}{%- else %}{%- set system = '' %}{%- endif %}\n"
    "{{- '<|start_header_id|>system<|end_header_id|>\\n\\nToday Date: ' + date_string + '\\n\\n' + system + '<|eot_id|>' }}\n"
    "{%- for message in messages %}" + HEADERS + "{%- endfor %}" + OPENED
)
PIECES = dict(bos_token="<s>", eos_token="</s>", unk_token="<unk>")
GEMMA = dict(bos_token="<bos>", eos_token="<eos>", unk_token="<unk>", pad_token="<pad>")
TURNS = ["<start_of_turn>", "<end_of_turn>"]
IM = ["<|im_start|>", "<|im_end|>"]
QWEN = dict(eos_token="<|im_end|>", pad_token="<|endoftext|>")
PHI_4 = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '<|im_sep|>' + message['content'] + '<|im_end|>' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant<|im_sep|>' }}{% endif %}"
)
SMOLLM_3 = (
    "{%- set today = strftime_now('%d %B %Y') -%}"
    "{%- if messages[0]['role'] == 'system' -%}{%- set own = messages[0]['content'] -%}{%- set rest = messages[1:] -%}"
    "{%- else -%}{%- set own = 'You are a helpful AI assistant named SmolLM.' -%}{%- set rest = messages -%}{%- endif -%}"
    "{{- '<|im_start|>system\n## Metadata\n\nToday Date: ' + today + '\nReasoning Mode: /think\n\n' -}}"
    "{{- '## Custom Instructions\n\n' + own + '\n\n<|im_end|>\n' -}}"
    "{%- for message in rest -%}{{- '<|im_start|>' + message.role + '\n' + message.content + '<|im_end|>\n' -}}"
    "{%- endfor -%}{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\n' -}}{%- endif -%}"
)
OLMO_2 = (
    "{{ bos_token }}{% for message in messages %}"
    "{% if message['role'] == 'assistant' %}{{ '<|assistant|>\n' + message['content'] + eos_token }}"
    "{% if not loop.last %}{{ '\n' }}{% endif %}"
    "{% else %}{{ '<|' + message['role'] + '|>\n' + message['content'] + '\n' }}{% endif %}"
    "{% if loop.last and add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}{% endfor %}"
)
ROLE = "'<|start_of_role|>' + message['role'] + '<|end_of_role|>' + message['content'] + '<|end_of_text|>\n'"
GRANITE_3 = (
    "{%- if messages[0]['role'] != 'system' %}{{- '<|start_of_role|>system<|end_of_role|>Today is ' }}"
    "{{- strftime_now('%B %d, %Y') + '.\nYou are Granite.<|end_of_text|>\n' }}{%- endif %}"
    "{%- for message in messages %}{{- " + ROLE + " }}"
    "{%- if loop.last and add_generation_prompt %}{{- '<|start_of_role|>assistant<|end_of_role|>' }}{%- endif %}"
    "{%- endfor %}"
)
OLMO = dict(bos_token="<|endoftext|>", eos_token="<|endoftext|>", pad_token="<|pad|>")
GRANITE = dict(bos_token="<|end_of_text|>", eos_token="<|end_of_text|>", pad_token="<|end_of_text|>")
MULTIPLIERS = dict(
    attention_multiplier=0.3,
    embedding_multiplier=4.0,
    residual_multiplier=0.6,
    logits_scaling=2.0,
    tie_word_embeddings=True,
)
LLAMA3 = dict(bos_token="<|begin_of_text|>", eos_token="<|eot_id|>")
LLAMA3_MARKS = ["<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"]
ROPE = {"rope_type": "llama3", "rope_theta": 500.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
ROPE |= {"original_max_position_embeddings": 64}
SLIDES = dict(sliding_window=8, query_pre_attn_scalar=8, layer_types=["sliding_attention", "full_attention"])
# Family → (class, entries of its configuration, whether it has pieces (else bytes), special tokens, marks, template).
FAMILIES = {
    "mistral": ("Mistral", dict(sliding_window=16), True, PIECES, [], MISTRAL),
    "gemma 2": ("Gemma2", SLIDES, True, GEMMA, TURNS, GEMMA_2),
    "gemma 3 with vision": ("Gemma3", SLIDES, True, GEMMA, TURNS, GEMMA_3),
    "llama 2": ("Llama", {}, True, PIECES, [], LLAMA_2),
    "llama 3": ("Llama", dict(rope_theta=500.0), False, LLAMA3, LLAMA3_MARKS, LLAMA_3),
    "llama 3.1": ("Llama", dict(rope_parameters=ROPE), False, LLAMA3, LLAMA3_MARKS, LLAMA_31),
    "qwen 2.5": ("Qwen2", {}, False, QWEN, IM, with_own_system("You are a helpful assistant.")),
    "qwen 3": ("Qwen3", dict(tie_word_embeddings=True), False, QWEN, IM, THINKS),
    "phi 4": ("Phi3", dict(sliding_window=12), False, QWEN, [*IM, "<|im_sep|>"], PHI_4),
    "smollm3": ("SmolLM3", dict(no_rope_layers=[0, 1], tie_word_embeddings=True), False, QWEN, IM, SMOLLM_3),
    "olmo 2": ("Olmo2", dict(num_key_value_heads=2), False, OLMO, [], OLMO_2),
    "granite": ("Granite", MULTIPLIERS, False, GRANITE, ["<|start_of_role|>", "<|end_of_role|>"], GRANITE_3),
    "smollm2": ("Llama", dict(tie_word_embeddings=True), False, QWEN, IM, with_own_system("You are named SmolLM.")),
}
CONDITIONED = ("llama 3", "qwen 3", "gemma 3 with vision", "granite")
CASES = [(name, "text") for name in FAMILIES] + [(name, kind) for kind in ("prefix", "adapter") for name in CONDITIONED]
FAST = ("mistral", "text")


def make_tokenizer(pieces, special, marks, template):
    """A tokenizer as sentencepiece's (characters, bytes for the others, spaces as "▁") or of bytes, with merges."""
    names = list(dict.fromkeys([*special.values(), *marks]))
    if pieces:
        letters = "▁\n" + "".join(map(chr, range(33, 127)))
        vocabulary = [*names, *(f"<0x{i:02X}>" for i in range(256)), *letters, "he", "ll", "▁a"]
        merges = [("h", "e"), ("l", "l"), ("▁", "a")]
        tokenizer = tokenizers.Tokenizer(
            models.BPE({name: i for i, name in enumerate(vocabulary)}, merges, unk_token="<unk>", byte_fallback=True)
        )
        steps = [normalizers.Replace(" ", "▁")]
        first = [] if "<bos>" in names else [normalizers.Prepend("▁")]  # Gemma has no dummy prefix
        tokenizer.normalizer = normalizers.Sequence([*first, *steps])
        last = [] if "<bos>" in names else [decoders.Strip(" ", 1, 0)]
        tokenizer.decoder = decoders.Sequence(
            [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), *last]
        )
        tokenizer.add_special_tokens([tokenizers.AddedToken(name, special=True, normalized=False) for name in names])
    else:
        tokenizer = tokenizers.Tokenizer(models.BPE())
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            vocab_size=280,
            show_progress=False,
            special_tokens=names,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        )
        tokenizer.train_from_iterator(["user assistant system harmless helpful"] * 4, trainer)
    rows = tokenizer.get_vocab_size()
    made = transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special, chat_template=template)
    made.add_tokens([f"<extra_{i}>" for i in range(3)], special_tokens=True)
    return made, rows


def make_base(name, directory):
    """A model directory of a family."""
    stem, entries, *format = FAMILIES[name]
    tokenizer, rows = make_tokenizer(*format)
    torch.manual_seed(0)
    special = dict(bos_token_id=None, eos_token_id=None, pad_token_id=None)
    if stem == "Gemma3":
        vision = dict(hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2)
        vision |= dict(image_size=28, patch_size=14)
        text = SIZES | entries | dict(vocab_size=rows)
        settings = transformers.Gemma3Config(text_config=text, vision_config=vision, mm_tokens_per_image=4)
        model = transformers.Gemma3ForConditionalGeneration(settings)
    else:
        settings = getattr(transformers, f"{stem}Config")(**(SIZES | special | entries), vocab_size=rows)
        model = getattr(transformers, f"{stem}ForCausalLM")(settings)
    model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    assert len(tokenizer) > rows


def make_config(directory, tmp_path, reads):
    (tmp_path / "mine.py").write_text(REWARDS)
    (tmp_path / "rows.jsonl").write_text(
        "".join(
            json.dumps({"prompt": f"question {i}?", "split": "train" if i % 2 else "test"}) + "\n" for i in range(16)
        )
    )
    c = base.default()
    changes = {
        "task": "assistant", "objectives": ("harmless", "helpful"), "method": "static", "compare_with": (), "steps": 2,
        "reward.sources": tuple(f"jax:{tmp_path / 'mine.py'}:{name}" for name in ("early", "late")), "batch_size": 2,
        "meal.candidates": 2, "sampling.max_new": 4, "policy.source": str(directory), "policy.lora_rank": 2,
        "conditioning.kind": reads, "conditioning.prompt": "preference" if reads == "adapter" else "uniform",
        "conditioning.slots": 3, "data.path": str(tmp_path / "rows.jsonl"), "data.format": "own",
        "data.prompt_length": 128, "eval.prompts": 2, "eval.batch_size": 2, "eval.divisions": 1, "eval.bootstrap": 10,
        "eval.samples": 1, "optim.lr": 0.1, "optim.warmup": 1, "tensorboard": False,
    }  # fmt: skip
    if "enable_thinking" in str(pretrained.load_tokenizer(str(directory)).chat_template):
        changes["data.template_options"] = ("enable_thinking=false",)
    c.update_from_flattened_dict(changes)
    return c


def greedy(model, ids):
    ids = torch.tensor([ids])
    with torch.no_grad():
        out = model.eval().generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=8, do_sample=False)
    return out[0, ids.shape[1] :].tolist()


def greedy_behind_prefix(model, said, opened, directory):
    """As `greedy`, with the exported prefix network's embeddings between conversation and generation prompt."""
    spec = importlib.util.spec_from_file_location("exported_prefix", directory / "prefix.py")
    network = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(network)
    embed, slots = model.get_input_embeddings(), torch.tensor(network.slots(network.load(), W))[None]
    with torch.no_grad():
        inputs = torch.cat([embed(torch.tensor([said])), slots, embed(torch.tensor([opened[len(said) :]]))], dim=1)
        mask = torch.ones(inputs.shape[:2], dtype=torch.long)
        return (
            model.eval()
            .generate(inputs_embeds=inputs, attention_mask=mask, max_new_tokens=8, do_sample=False)[0]
            .tolist()
        )


def exports_of(reads):
    """Pairs (kind, with a preference) of a conditioning's exports."""
    if reads == "prefix":
        return [("merged", True), ("merged", False), ("adapter", False)]
    return [(kind, reads == "adapter") for kind in model_directory.KINDS]


@pytest.mark.parametrize(
    ("name", "reads"), [case if case == FAST else pytest.param(*case, marks=pytest.mark.slow) for case in CASES]
)
def test_a_family_is_trained_and_exported_with_the_same_greedy_text_everywhere(name, reads, tmp_path, monkeypatch):
    peft = pytest.importorskip("peft", reason="peft is not installed")
    one_device = train.sharding.make_mesh
    monkeypatch.setattr(train.sharding, "make_mesh", lambda *axes: one_device(1, 1, 1, jax.devices()[:1]))
    make_base(name, tmp_path / "base")
    train.run(make_config(tmp_path / "base", tmp_path, reads), str(tmp_path / "run"))
    run = open_run(tmp_path / "run")
    assert run.step == 2
    prompts = chats.encode_explicit(run.task.chat, [PROMPT], 128)
    answer = answers.answers(run, prompts, W[None], sampling=Sampling(temperature=0.0), max_new=8, rewards=False)
    expected = answer.tokens[0, 0][answer.mask[0, 0]].tolist()
    load, messages = transformers.AutoModelForCausalLM.from_pretrained, [{"role": "user", "content": PROMPT}]
    texts = [run.task.show(np.array(expected))]
    for kind, baked in exports_of(reads):
        out = tmp_path / f"{kind}{'-baked' if baked else ''}"
        if kind == "adapter" and FAMILIES[name][0] == "Phi3":
            with pytest.raises(ValueError, match="fuse matrices.*--kind=merged"):
                model_directory.export(run, out, kind=kind)
            continue
        if (name, reads, kind) == ("gemma 3 with vision", "prefix", "adapter"):
            with pytest.raises(ValueError, match="does not generate from embeddings.*--kind=merged"):
                model_directory.export(run, out, kind=kind)
            continue
        model_directory.export(run, out, kind=kind, preference=W if baked else None)
        tokenizer = transformers.AutoTokenizer.from_pretrained(out)
        said, ids = (
            tokenizer.apply_chat_template(messages, add_generation_prompt=opened, preference=W.tolist())["input_ids"]
            for opened in (False, True)
        )
        if reads == "prefix" and baked:
            assert max(ids) < pretrained.load_config(out).vocab_size
        else:
            assert max(ids) < run.task.transformer.vocab_size
        model = load(out) if kind == "merged" else peft.PeftModel.from_pretrained(load(tmp_path / "base"), out)
        model.generation_config = transformers.GenerationConfig.from_pretrained(out)
        answer = greedy_behind_prefix(model, said, ids, out) if (out / "prefix.py").exists() else greedy(model, ids)
        assert answer == expected, (kind, baked)
        texts.append(tokenizer.decode(answer, skip_special_tokens=True).strip())
    assert len(set(texts)) == 1
    base_config = pretrained.load_config(tmp_path / "base")
    merged = next(folder for folder in (tmp_path / "merged", tmp_path / "merged-baked") if folder.exists())
    trained = pretrained.load_params(merged, pretrained.load_config(merged))
    kept = pretrained.load_params(tmp_path / "base", base_config)
    q = [np.asarray(params["layers"]["attention"]["q"]["kernel"]) for params in (trained, kept)]
    assert np.abs(q[0] - q[1]).max() > 1e-3 and base_config.family in families.FAMILIES


@pytest.mark.parametrize(
    "entries", [dict(sliding_window=6), dict(num_key_value_heads=2), dict(tie_word_embeddings=True, rope_theta=50.0)]
)
def test_phi_3s_fused_tensors_are_read(tmp_path, entries):
    torch.manual_seed(0)
    sizes = dict(vocab_size=61, pad_token_id=None, bos_token_id=None, eos_token_id=None)
    transformers.Phi3ForCausalLM(transformers.Phi3Config(**(SIZES | sizes | entries))).save_pretrained(tmp_path)
    config = pretrained.load_config(tmp_path)
    assert config.family == "mistral" and config.window == entries.get("sliding_window", 0)
    result = comparison.compare(str(tmp_path), [[3, 5, 7, 9, 11, 2, 4, 8], [11, 2]], 3)
    assert result.difference < 1e-4, result
    pretrained.save(tmp_path / "out", config, pretrained.load_params(tmp_path, config))
    ids = torch.tensor([[3, 5, 7, 9, 11, 2, 4, 8]])
    one, other = (transformers.AutoModelForCausalLM.from_pretrained(d).eval() for d in (tmp_path, tmp_path / "out"))
    with torch.no_grad():
        assert (one(ids).logits - other(ids).logits).abs().max() < 1e-4
    assert type(other).__name__ == "MistralForCausalLM"


@pytest.mark.parametrize(
    ("stem", "entries", "says"),
    [
        ("Olmo", {}, "architecture OlmoForCausalLM"),
        ("Olmo3", {}, "architecture Olmo3ForCausalLM"),
        ("GraniteMoe", {}, "architecture GraniteMoeForCausalLM"),
        ("Phi", {}, "architecture PhiForCausalLM"),
        ("SmolLM3", {"attention_bias": True}, "attention_bias"),
        ("Granite", {"mlp_bias": True}, "mlp_bias"),
        (
            "Phi3",
            {"rope_scaling": {"type": "longrope", "short_factor": [1.0], "long_factor": [2.0]}},
            "of type longrope",
        ),
        ("Phi3", {"partial_rotary_factor": 0.75}, "partial_rotary_factor other than 1"),
    ],
)
def test_decoders_that_compute_otherwise_are_refused_by_name(tmp_path, stem, entries, says):
    """OLMo has norms without scales, OLMo 3 yarn, Granite's mixtures have experts, Phi 2 parallel layers."""
    settings = getattr(transformers, f"{stem}Config")(**SIZES, vocab_size=61).to_dict()
    c = {"architectures": [f"{stem}ForCausalLM"]} | {k: v for k, v in settings.items() if k != "architectures"}
    if stem == "Phi3":
        c.pop("rope_parameters")
    with pytest.raises(ValueError, match=f"asks for what is not implemented: .*{says}"):
        families.parse(c | entries, tmp_path / "config.json")


def test_transformers_takes_llamas_tokenizer_for_the_other_families_alone():
    """Which decides whether `legacy` is on by default for a tokenizer.model."""
    classes = transformers.models.auto.tokenization_auto.TOKENIZER_MAPPING_NAMES

    without = {kind for kind in families.FAMILIES if classes.get(kind) in ("TokenizersBackend", "MistralCommonBackend")}
    assert without == set(sentencepiece.WITHOUT_LLAMAS) & families.FAMILIES.keys()
