"""Prompts under chat templates as published families have them, written here from their documented behaviour."""

import copy

import jinja2
import numpy as np
import pytest
import tokenizers

from meal_jax import config as defaults
from meal_jax.data import chat as chats
from meal_jax.data import hh_rlhf, summarize_from_feedback, template_text, templates
from meal_jax.export import chat_template
from meal_jax.hf import sentencepiece
from meal_jax.models.policy import Conditioning
from tests.hf.pretrained_test import TOKENIZERS, pieces_file

SYSTEM = "{% if messages[0]['role'] == 'system' %}"
TURNS = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
REFUSES = SYSTEM + "{{ raise_exception('System role not supported') }}{% endif %}" + TURNS  # Gemma 2, Mistral 0.1
# Gemma 3 and Mistral 0.3 put the system message in front of the first user turn.
FOLDS = (
    SYSTEM + "{% set first = messages[0]['content'] + '\n\n' %}{% set rest = messages[1:] %}{% else %}"
    "{% set first = '' %}{% set rest = messages %}{% endif %}{% for m in rest %}"
    "{{ '<|im_start|>' + m['role'] + '\n' + (first if loop.first else '') + m['content'] + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
DATED = (
    "{%- if strftime_now is defined -%}{%- set today = strftime_now('%d %b %Y') -%}{%- else -%}{%- set today = 'x' -%}"
    "{%- endif -%}{{ '<|im_start|>system\nToday: ' + today + '<|im_end|>\n' }}" + TURNS
)
# Qwen 3: an answer stands behind its thoughts, which `enable_thinking=false` closes before it begins
THINKS = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' }}{% if loop.last and m['role'] == 'assistant' %}"
    "{{ '<think>\n\n</think>\n\n' }}{% endif %}{{ m['content'] + '<|im_end|>\n' }}{% endfor %}{% if add_generation_prompt %}"
    "{{ '<|im_start|>assistant\n' }}{% if enable_thinking is defined and enable_thinking is false %}"
    "{{ '<think>\n\n</think>\n\n' }}{% endif %}{% endif %}"
)
HELLO = (("user", "Hello"),)


@pytest.fixture
def with_template(chat_tokenizer):
    """Function of a template to the tokenizer with it."""

    def make(template):
        tokenizer = copy.copy(chat_tokenizer)
        tokenizer.chat_template = template
        return tokenizer

    return make


@pytest.mark.parametrize("template", [REFUSES, FOLDS, TURNS])
def test_an_empty_system_message_does_not_change_a_prompt(with_template, template):
    chat = chats.make(with_template(template))
    assert chat.system is None
    assert chats.render(chat, HELLO, False) == "<|im_start|>user\nHello<|im_end|>\n"


def test_an_empty_system_message_takes_the_place_of_the_templates_own_text(chat_tokenizer):
    assert chats.make(chat_tokenizer).system == ""
    assert chats.make(chat_tokenizer, None).system is None


def test_a_system_message_is_in_the_prompt_or_refused(with_template):
    text = chats.render(chats.make(with_template(FOLDS), "Be brief."), HELLO, False)
    assert text == "<|im_start|>user\nBe brief.\n\nHello<|im_end|>\n"
    with pytest.raises(ValueError, match=r"System role not supported.*config\.data\.system=''"):
        chats.make(with_template(REFUSES), "Be brief.")
    silent = "{% for m in messages if m['role'] != 'system' %}" + TURNS.partition("%}")[2]
    with pytest.raises(ValueError, match="leaves the system message 'Be brief.' out"):
        chats.make(with_template(silent), "Be brief.")


def test_of_several_named_templates_the_default_one_is_used(with_template):
    chat = chats.make(with_template({"default": TURNS, "tool_use": "tools"}))
    assert chat.tokenizer.chat_template == TURNS and chats.describe(chat)
    assert "im_start" in chat_template.wrap(chat)
    with pytest.raises(ValueError, match="named rag, tool_use, and none is named default"):
        chats.make(with_template({"tool_use": "a", "rag": "b"}))


def test_the_date_is_a_field_and_not_todays(with_template):
    chat = chats.make(with_template(DATED), None)
    assert "Today: 26 Jul 2024<" in chats.render(chat, HELLO, False)
    by_name = DATED.replace("strftime_now('%d %b %Y')", "strftime_now(f)")
    chat = chats.make(with_template("{%- set f = '%d %b %Y' -%}" + by_name), None)
    assert "Today: 26 Jul 2024<" in chats.render(chat, HELLO, False)
    later = chats.make(with_template(DATED), None, "2025-01-02")
    assert "Today: 02 Jan 2025<" in chats.render(later, HELLO, False)
    assert chats.describe(later).endswith("date 2025-01-02")
    assert defaults.default().data.date == template_text.DATE
    config = defaults.default()
    config.data.date = "yesterday"
    with pytest.raises(ValueError, match=r"config\.data\.date='yesterday'"):
        defaults.check(config)


def test_a_template_is_given_its_variables_in_training_and_in_an_export(with_template, chat_tokenizer):
    thinking = chats.make(with_template(THINKS))
    at_once = chats.make(with_template(THINKS), options=("enable_thinking=false",))
    assert (thinking.opened[-10:], thinking.lead) == ("assistant\n", "<think>\n\n</think>\n\n")
    assert (at_once.opened[-20:], at_once.lead) == ("\n<think>\n\n</think>\n\n", "")
    assert chat_tokenizer.decode(chats.tail_ids(at_once)).endswith("assistant\n<think>\n\n</think>\n\n")
    assert chats.prompt_ids(at_once, HELLO) == chats.prompt_ids(thinking, HELLO)
    assert chats.describe(at_once) != chats.describe(thinking)  # heads that were fitted on the one are not the other's
    assert chat_template.spells(at_once, chat_template.wrap(at_once), [])  # a request gives no variables
    assert not chat_template.spells(thinking, chat_template.wrap(at_once), [])
    as_text = templates.make_chat(with_template(THINKS), "chat", "assistant", options=("enable_thinking=false",))
    assert chats.describe(as_text) == chats.describe(at_once)


@pytest.mark.parametrize(
    "value, written", [('"a \\"b\\""', 'a "b"'), ("null", "None"), ("true", "True"), ("0.5", "0.5")]
)
def test_a_variable_has_its_value_and_leaves_the_templates_blanks(with_template, value, written):
    chat = chats.make(with_template("\n  {{ style }}" + TURNS), None, options=(f"style={value}",))
    assert chats.render(chat, HELLO, False) == f"\n  {written}<|im_start|>user\nHello<|im_end|>\n"


@pytest.mark.parametrize(
    "option", ["style", "style=", "style=no", "style=[1]", "style=NaN", "messages=1", "two words=1", "=1", ""]
)
def test_an_option_is_a_variable_and_a_plain_value(option):
    config = defaults.default()
    config.data.template_options = (option,)
    with pytest.raises(ValueError, match=r"config\.data\.template_options: .* is not NAME=VALUE"):
        defaults.check(config)


def test_a_variable_that_a_template_does_not_read_is_refused(with_template):
    with pytest.raises(ValueError, match="reads no variable enable_thinking"):
        chats.make(with_template(TURNS), options=("enable_thinking=false",))
    with pytest.raises(ValueError, match="template=plain has no variables"):
        templates.make_chat(with_template(TURNS), "plain", "assistant", options=("enable_thinking=false",))


def test_an_evaluations_hash_covers_token_ids():
    first, other = (templates.evaluation_set("name", [1], ["text"], [np.array(t)]) for t in ([5, 6], [5, 7]))
    assert first["sha256"] != other["sha256"]


@pytest.mark.parametrize("system", [SYSTEM, None])
@pytest.mark.parametrize(
    "around", ["{}", "\n  {}\n", "\n{}\n", " {}\n", "{{%- set a = 1 -%}}\n {}\n{{%- set a = 1 %}}\n"]
)
def test_the_exported_template_has_no_plus_signs_and_renders_the_bases_text(with_template, around, system):
    template = around.format(DATED if system is None else TURNS)
    chat = chats.make(with_template(template), None)
    wrapped = chat_template.wrap(chat)
    assert "+%}" not in wrapped and "{%+" not in wrapped and "strftime_now" not in wrapped
    messages = [{"role": role, "content": text} for role, text in chat_template.EXAMPLE]
    for opened in (False, True):
        expected = chats.render(chat, chat_template.EXAMPLE, opened)
        actual = chat.tokenizer.apply_chat_template(
            messages, chat_template=wrapped, tokenize=False, add_generation_prompt=opened
        )
        assert actual == expected
        # Engines differ in what a tag without a sign takes of the white space around it.
        if template in (TURNS, DATED):
            plain = jinja2.Environment().from_string(wrapped)
            assert plain.render(messages=messages, add_generation_prompt=opened) == expected


def test_exported_numerals_round_as_training_does_without_the_filter(chat_tokenizer):

    def encode(text):
        return tuple(chat_tokenizer(text, add_special_tokens=False)["input_ids"])

    rows = tuple(encode(f" {i / 10:.1f}") for i in range(11))
    conditioning = Conditioning("text", objectives=1, table=(rows,))
    source = chat_template.numerals(chats.make(chat_tokenizer), conditioning, ["a"])
    assert "round" not in source
    template = jinja2.Environment(trim_blocks=True, lstrip_blocks=True).from_string(source)
    for weight in [i / 20 for i in range(21)] + [0.333, 0.777, 0, 1]:
        assert template.render(preference=[weight] if weight else [0.0]) == f" {round(weight * 10) / 10:.1f}"


def test_answers_are_cut_at_the_next_turn_before_they_are_scored():
    config = defaults.default()
    assert templates.stop_of(config, "assistant") == ()
    config.data.template = "plain"
    stop = templates.stop_of(config, "assistant")
    assert templates.cut(" yes.\n\nHuman: more?\n\nAssistant: no", stop) == "yes."
    assert templates.cut("yes.\nAssistant: no", stop) == "yes." and templates.stop_of(config, "stories") == ()
    config.data.stop = ()
    assert templates.cut("yes.\n\nHuman: more?", templates.stop_of(config, "assistant")) == "yes.\n\nHuman: more?"


@pytest.fixture(scope="module")
def llama_2():
    """Llama 2's tokenizer from its sentencepiece file, or a skip."""
    if not (TOKENIZERS / "llama2").is_dir():
        pytest.skip("the shared tokenizers are not here")
    import transformers

    tokenizer, settings = sentencepiece.read_model(TOKENIZERS / "llama2" / "tokenizer.model")
    assert isinstance(tokenizer, tokenizers.Tokenizer)
    fast = transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, **settings)
    fast.pad_token = fast.eos_token
    return fast


@pytest.fixture(scope="module", params=["small", "Llama 2"])
def spaced(request, tmp_path_factory):
    """A tokenizer of sentencepiece's kind, which puts a space before a text: a small one, and Llama 2's or a skip."""
    if request.param == "Llama 2":
        return request.getfixturevalue("llama_2")
    import transformers

    path = tmp_path_factory.mktemp("spaced") / "tokenizer.model"
    path.write_bytes(pieces_file())
    tokenizer, settings = sentencepiece.read_model(path)
    return transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="</s>", **settings)


# TinyLlama's and Zephyr's, but for the newlines between tags.
ZEPHYR = (
    "{% for m in messages %}{{ '<|' + m['role'] + '|>\n' + m['content'] + eos_token + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}"
)


# Vicuna's, but for the words: the small tokenizer joins a space with "the" alone.
VICUNA = (
    "{% for m in messages %}{% if m['role'] == 'user' %}{{ 'the user: ' + m['content'] + ' ' }}"
    "{% else %}{{ 'the assistant: ' + m['content'] + eos_token }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'the assistant:' }}{% endif %}"
)

# Phi 3's and Phi 4 mini's: where no answer is to follow, an end token does.
PHI_3 = (
    "{% for m in messages %}{{ '<|' + m['role'] + '|>\n' + m['content'] + '</s>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% else %}{{ eos_token }}{% endif %}"
)


def whole_ids(tokenizer, template, turns, opened):
    """What transformers makes of a conversation in one piece."""
    messages = [{"role": role, "content": text} for role, text in turns]
    return tokenizer.apply_chat_template(
        messages, chat_template=template, add_generation_prompt=opened, return_dict=False
    )


@pytest.mark.parametrize("answer", ["the", "he. the", " the", "  the", "\nthe", "\n"])
def test_an_answer_is_spelled_as_it_is_within_its_conversation(spaced, answer):
    tokenizer = copy.copy(spaced)
    tokenizer.chat_template = ZEPHYR
    chat = chats.make(tokenizer)
    ids = chats.prompt_ids(chat, HELLO) + chats.tail_ids(chat) + chats.response_ids(chat, answer)
    newline = tokenizer.convert_tokens_to_ids("<0x0A>")
    assert [*ids, newline] == whole_ids(tokenizer, ZEPHYR, (*HELLO, ("assistant", answer)), False)


@pytest.mark.parametrize(("template", "closing"), [(VICUNA, " "), (ZEPHYR, ""), (PHI_3, "</s>")])
@pytest.mark.parametrize("turns", [HELLO, chat_template.EXAMPLE])
def test_prompt_and_tail_are_what_the_conversation_is_in_one_piece(spaced, template, closing, turns):
    """A space at the conversation's end is joined with what follows, and Phi 3's end token is no part of the prompt."""
    tokenizer = copy.copy(spaced)
    tokenizer.chat_template = template
    chat = chats.make(tokenizer)
    assert chat.closing == closing
    ids = chats.prompt_ids(chat, turns)
    assert ids + chats.tail_ids(chat) == whole_ids(tokenizer, template, turns, True)
    for conditioning, given in (("", []), ("{{- eos_token -}}\n", [tokenizer.eos_token_id])):
        wrapped = chat_template.wrap(chat, conditioning)
        assert chat_template.spells(chat, wrapped, given)
        assert whole_ids(tokenizer, wrapped, turns, True) == [*ids, *given, *chats.tail_ids(chat)]
        assert whole_ids(tokenizer, wrapped, turns, False) == whole_ids(tokenizer, template, turns, False)


def test_a_template_that_rewrites_a_conversation_before_an_answer_is_refused(with_template):
    for other in ("{{ '!' + m['content'] }}", "{{ eos_token + m['content'] }}"):
        text = (
            "{% for m in messages %}{% if add_generation_prompt %}{{ m['content'] }}{% else %}" + other + "{% endif %}"
        )
        chat = chats.make(with_template(text + "<|im_end|>{% endfor %}"))
        assert chat.closing == ""
        with pytest.raises(ValueError, match="rewrites a conversation when an answer is to follow"):
            chats.tail_ids(chat)


def test_plain_prompts_have_the_published_ids_under_llama_2s_tokenizer(llama_2):
    """RiC encodes the whole text with the slow tokenizer, which puts its dummy prefix after the begin token."""
    for benchmark, first in (("assistant", [1, 29871, 13, 13]), ("reddit", [1, 835])):
        chat = templates.make_chat(llama_2, "plain", benchmark)
        ids = chats.prompt_ids(chat, HELLO)
        assert ids[: len(first)] == first
        whole = chats.render(chat, HELLO, True).removeprefix("<s>")
        assert ids + chats.tail_ids(chat) == [1, *llama_2(whole, add_special_tokens=False)["input_ids"]]


def published_texts(benchmark):
    """(turns as a run under plain prompts reads them, the published code's text) of every shared row."""
    data = TOKENIZERS.parent
    if benchmark == "reddit":
        posts = summarize_from_feedback.posts(
            summarize_from_feedback.read_comparisons(data / "summarize_from_feedback")
        )
        rows = templates.reddit_rows(posts, "plain")
        return [(row.turns, templates.reddit_prompt(row.text)) for row in rows]
    return [
        (
            hh_rlhf.parse(row, source, as_written=True)[0].turns,
            row["chosen"].rpartition(hh_rlhf.ASSISTANT)[0] + " \n\nAssistant:",
        )
        for folder in sorted((data / "hh_rlhf").iterdir())
        for source, row in hh_rlhf.rows(folder)
    ]


@pytest.mark.slow
@pytest.mark.parametrize(("benchmark", "count"), [("assistant", 7415), ("reddit", 360)])
def test_every_shared_row_has_the_ids_of_the_sentencepiece_library(llama_2, benchmark, count):
    """The slow tokenizer of the published code is this library behind a begin token."""
    library = pytest.importorskip("sentencepiece", reason="sentencepiece, the reference, is not installed")
    reference = library.SentencePieceProcessor(model_file=str(TOKENIZERS / "llama2" / "tokenizer.model"))
    chat = templates.make_chat(llama_2, "plain", benchmark)
    rows, tail = published_texts(benchmark), chats.tail_ids(chat)
    assert len(rows) == count
    for turns, text in rows:
        assert chats.prompt_ids(chat, turns) + tail == [1, *reference.encode(text)], text[-80:]


def test_ids_past_the_embedding_are_refused_by_name(chat_tokenizer):
    chat = chats.make(chat_tokenizer)
    last = len(chat_tokenizer) - 1
    chats.need_known(chat, last + 1, [[0, last]], "The prompt")
    with pytest.raises(ValueError, match=rf"The prompt 1 has the token .* of id {last}, .* V = {last} rows"):
        chats.need_known(chat, last, [[0], [1, last]], "The prompt")
