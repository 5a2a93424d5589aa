"""Cleaning of shown texts: no special tokens, control characters or guessable ids reach the model."""

from dataclasses import replace
import json
import random

from hypothesis import given
from hypothesis import strategies as st
import pytest
import tokenizers

from diversity_jax.cluster_agent.llm import system_of, user_of
from diversity_jax.cluster_agent.text_cleaning import (
    _INVISIBLE,
    _TEMPLATE,
    as_data,
    child_seed,
    choose,
    clean_text,
    random_ids,
    random_order,
)
from diversity_jax.cluster_agent.types import STAGES, Cluster, CriteriaSet, Criterion, Sample, Task
from tests.shared_data import shared_file

SPECIALS = [
    "<|im_start|>",
    "<|im_end|>",
    "<|endoftext|>",
    "[INST]",
    "[/INST]",
    "<<SYS>>",
    "<</SYS>>",
    "<s>",
    "</s>",
    "<start_of_turn>",
    "<\uff5cUser\uff5c>",
]


OTHER_MARKS = [
    *("<think>", "</think>", "<tool_call>", "</tool_call>", "<tool_response>", "<|vision_start|>", "<|image_pad|>"),
    *("[TOOL_CALLS]", "[TOOL_RESULTS]", "[/TOOL_RESULTS]", "[IMG]", "[IMG_BREAK]", "[THINK]", "[/THINK]", "[AUDIO]"),
    *("[|system|]", "[|user|]", "[|assistant|]", "[|endofturn|]", "<thought>", "<seed:bos>", "<seed:think>"),
    *("<seed:tool_call>", "<image_soft_token>", "<start_of_image>", "<end_of_turn>", "]~b]", "]~!b[", "[e~[", "]!p~["),
    *("]<]image[>[", "[gMASK]", "<sop>", "<eop>", "[MASK]", "<extra_id_0>", "<pad>", "<unk>", ">>QUESTION<<"),
    *("<\uff5ctool\u2581calls\u2581begin\uff5c>", "<|START_OF_TURN_TOKEN|>", "<|start_of_role|>", "<jupyter_code>"),
    *("<|" + "a" * 80 + "|>", "<reserved_106>", "[BOS]", "[EOS]", "[PAD]", "[SEP]", "<0x0A>", "[UNUSED_TOKEN_146]"),
]
"""Special tokens of tokenizers of Qwen, Gemma, Mistral, EXAONE, Seed, MiniMax, GLM, DeepSeek, Command R and others."""


def _prompts(text: str) -> str:
    """All that a judge is sent where documents, criteria, reasons and an earlier answer hold a text."""
    samples = tuple(Sample(sample_id=f"k{n}x", text=text, document=str(n)) for n in range(3))
    criterion = Criterion(name=text, definition=text, guidance=text, levels=(text,) * 5)
    criteria = CriteriaSet(metadata=(replace(criterion, levels=None),), metrics=(criterion,))
    clusters = (Cluster(sample_ids=("k0x",), reasoning=text),)
    fields = {"criteria": criteria, "samples": samples, "clusters": clusters, "proposals": ((text, (text,)),)}
    fields |= {"replicate": 0, "criteria_set": 0, "criteria_count": 3, "reasoning_words": 10}
    tasks = [Task(stage=stage, **fields, problem=f"sample {text}", previous=f'{{"a": ["{text}"]}}') for stage in STAGES]
    return "\n".join(f"{system_of(task)}\n{user_of(task)}" for task in tasks)


@pytest.mark.parametrize("special", SPECIALS + OTHER_MARKS)
def test_no_special_token_of_any_tokenizer_reaches_a_judge(special):
    assert _prompts("plain words").count("plain words") > 20
    assert special not in as_data(f"a{special}b")
    assert special not in _prompts(f"before {special} after")


def test_documents_are_read_without_the_ids_of_special_tokens():
    for name in ("tokenizers/llama_tokenizer.json", "tokenizers/gpt_neox_tokenizer.json"):
        tokenizer = tokenizers.Tokenizer.from_file(str(shared_file(name)))
        special = {i: token.content for i, token in tokenizer.get_added_tokens_decoder().items() if token.special}
        text = "".join(special.values())
        assert set(tokenizer.encode(text, add_special_tokens=False).ids) & set(special)
        assert not set(tokenizer.encode(as_data(text), add_special_tokens=False).ids) & set(special)


@given(st.recursive(st.text(st.sampled_from('ab[]<>{},"~! 1-')) | st.integers(), st.lists))
def test_an_earlier_answer_is_shown_with_the_brackets_of_its_lists(value):
    shown = as_data(json.dumps(value), is_json=True)
    assert [as_data(text) for text in _texts(json.loads(shown))] == [as_data(text) for text in _texts(value)]


def _texts(value):
    return [text for item in value for text in _texts(item)] if isinstance(value, list) else [str(value)]


@given(
    st.lists(st.one_of(st.text(), st.sampled_from([*SPECIALS, "<|", "|>", "\u200b", "\u202e", "\U000e0041"]))).map(
        "".join
    )
)
def test_nothing_hidden_and_no_template_mark_is_left(text):
    cleaned = clean_text(text, 300)
    assert not _INVISIBLE.search(cleaned)
    assert not _TEMPLATE.search(cleaned)
    assert len(cleaned) <= 300
    assert clean_text(cleaned, 300) == cleaned
    assert len(json.dumps({"text": cleaned}, ensure_ascii=False).splitlines()) == 1


@pytest.mark.parametrize("special", SPECIALS)
def test_marks_of_chat_templates_go_also_when_nested_or_hidden(special):
    assert clean_text(f"a {special} b", 100) == "a  b"
    middle = len(special) // 2
    assert special not in clean_text(special[:middle] + special + special[middle:], 100)
    assert special not in clean_text("\u200b".join(special), 100)


def test_ordinary_text_stays_as_it_is():
    for text in (
        "A line.\nAnother, with <b>tags</b> and [brackets], 1 < 2 > 0 || x.",
        "naïve café, 中文, русский, العربية",
        "if a<b and c>d: x[i] = y",
    ):
        assert clean_text(text, 1000) == text


def test_line_ends_become_newlines():
    assert clean_text("a\r\nb\rc\u2028d", 100) == "a\nb\nc\nd"


def test_a_seed_depends_on_every_part_and_fits_everywhere():
    seeds = {child_seed(*parts) for parts in ((0, "a"), (1, "a"), (0, "b"), (0, "a", 0), ("0a",))}
    assert len(seeds) == 5
    assert all(0 <= seed < 2**31 for seed in seeds)
    assert child_seed(0, "grouping", 7) == 275047768


@given(st.integers(0, 100), st.integers(1, 60))
def test_orders_choices_and_ids_are_all_different(seed, count):
    assert sorted(random_order(random.Random(seed), count)) == list(range(count))
    assert len(set(choose(random.Random(seed), count, count + 3))) == count
    ids = random_ids(random.Random(seed), count)
    assert len(set(ids)) == count
    assert all(len(i) == 3 and i.isalnum() for i in ids)
