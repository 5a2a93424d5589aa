"""Word splitting: the same in every script, and in linear time."""

import random
import re
import unicodedata

from hypothesis import given
from hypothesis import strategies as st
import pytest

from diversity_jax.core import words as module
from diversity_jax.core.words import count_words, first_words, unspaced_share, words, written_words
from tests.words_by_language import UNSPACED, WORDS, as_text, random_words

# Letters, marks, digits, joiners and punctuation of many scripts, white space, emoji, a lone surrogate.
_PIECES = [
    *("a", "Don't", "x_1", "ÉTÉ", "e\u0301", " ", "\n", ", ", "—", "“", "3.5%", "한국어", "हिन्दी", "।", "Ⅲ", "½", "ﷺ"),
    *("你好", "，", "「中国」", "。", "𠀀", "カタカナ", "ー", "ｶﾞ", "ひらがな", "น้ำ", "แม่น้ำ", "\u0e49"),
    *("ສະບາຍດີ", "ភាសា", "។", "\u200b", "မြန်မာ", "བོད་", "ꦲꦏ꧀ꦱꦫ", "ꀉꀊ"),
    *("می\u200cخواهم", "inter\u00adnational", "😀", "❤️", "\ud800"),
]
_texts = st.lists(st.sampled_from(_PIECES), max_size=20).map("".join)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Don't stop_here: ½ ﬁne", "don t stop here 1 2 fine"),
        ("E\u0301te\u0301 ÉTÉ", "été été"),
        ("नमस्ते दुनिया, हिन्दी में", "नमस्ते दुनिया हिन्दी में"),
        ("தமிழ் மொழி", "தமிழ் மொழி"),
        ("مَدْرَسَة السلام", "مَدْرَسَة السلام"),
        ("می\u200cخواهم inter\u00adnational", "میخواهم international"),
        ("한국어 문장입니다", "한국어 문장입니다"),
        ("我们今天去学校，GDP增长3.5%了。", "我们 今天 去 学校 gdp 增长 3 5 了"),
        ("コンピューターを使う人々", "コンピューター を 使う 人々"),
        ("ﾃｰﾌﾞﾙを作る", "テーブル を 作る"),
        ("น้ำในแม่น้ำ ๑๒๓", "น้ำ ใน แม่น้ำ ๑๒๓"),
        ("ພາສາລາວ ສະບາຍດີ", "ພາສາ ລາວ ສະບາຍດີ"),
        ("ភាសាខ្មែរ។ ជំរាបសួរ", "ភាសាខ្មែរ ជំរាបសួរ"),
        ("ပြတင်းပေါက်တံခါး။", "ပြတင်းပေါက် တံခါး"),
        ("བོད་སྐད་ཡིག", "བོད སྐད ཡིག"),
        ("ꦲꦏ꧀ꦱꦫ", "ꦲ ꦏ꧀ ꦱ ꦫ"),
        ("葛\U000e0100飾区 葛飾区", "葛飾 区 葛飾 区"),
        ("ok 👩\u200d👩 ❤️ \ud800", "ok"),
        ("", ""),
    ],
)
def test_words_of_many_scripts(text, expected):
    assert words(text) == expected.split()


@pytest.mark.parametrize("language", WORDS)
def test_a_text_counts_as_many_words_as_it_was_made_of(language):
    made = random_words(random.Random(0), language, 300)
    text = as_text(made, language)
    allowed = 60 if language in UNSPACED else 0  # a compound such as hospital is one word or two
    assert abs(count_words(text) - len(made)) <= allowed
    assert abs(len(words(text)) - len(made)) <= allowed
    assert (unspaced_share([text]) > 0.9) == (language in UNSPACED)


@given(_texts)
def test_written_words_are_the_tokens_and_their_number_is_the_count(text):
    parts = [written_words(token) for token in text.split()]
    assert ["".join(part) for part in parts] == text.split()
    assert count_words(text) == sum(map(len, parts))
    assert all(part for token in parts for part in token)


@given(_texts, st.integers(0, 12))
def test_a_beginning_is_cut_at_the_end_of_a_written_word(text, count):
    beginning = first_words(text, count)
    assert text.startswith(beginning)
    if count_words(text) <= count:
        assert beginning == text or beginning == text.rstrip()
    else:
        assert count_words(beginning) == count


@given(st.text(st.characters(max_codepoint=0x17F, exclude_characters="\u00ad\u0130")))
def test_plain_text_is_cut_as_letters_and_digits(text):
    assert words(text) == re.findall(r"[^\W_]+", unicodedata.normalize("NFKC", text).casefold())


@pytest.mark.parametrize("unit", ["word and more ", "我们今天去学校，", "我们今天去学校", "น้ำในแม่น้ำ"])
def test_the_beginning_of_a_long_text_is_found_without_reading_the_text(unit, monkeypatch):
    read, end_of_words = [], module._end_of_words

    def counted(text, count):
        read.append(len(text))
        return end_of_words(text, count)

    monkeypatch.setattr(module, "_end_of_words", counted)
    text = unit * (1_000_000 // len(unit))
    beginning = first_words(text, 20)
    assert count_words(beginning) == 20
    assert sum(read) < 2000


def test_upper_case_is_kept_where_it_is_asked_for():
    assert words("Ångström GROẞ 你好A", fold=False) == ["Ångström", "GROẞ", "你好", "A"]
