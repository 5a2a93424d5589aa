"""Text that is shown holds nothing that speaks to the model by other means than its words, and ids that nobody can
guess.
"""

import json
import random

from hypothesis import given
from hypothesis import strategies as st
import pytest

from diversity_jax.cluster_agent.text_cleaning import (
    _INVISIBLE,
    _TEMPLATE,
    child_seed,
    choose,
    clean_text,
    random_ids,
    random_order,
)

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


@pytest.mark.parametrize("mark", SPECIALS)
def test_marks_of_chat_templates_go_also_when_nested_or_hidden(mark):
    assert clean_text(f"a {mark} b", 100) == "a  b"
    middle = len(mark) // 2
    assert mark not in clean_text(mark[:middle] + mark + mark[middle:], 100)
    assert mark not in clean_text("\u200b".join(mark), 100)


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
