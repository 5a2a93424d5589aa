"""Text on which two tokenizers that differ at all are likely to differ, and the comparison."""

from collections.abc import Iterable, Mapping, Sequence
import json
from typing import Any, Protocol

# ruff: noqa: E501 - one text a line
SAMPLE_TEXTS = (
    "The quick brown fox jumps over the lazy dog. It's 12:45, isn't it? I'LL say: they'd've known!",
    " leading space",
    "  two leading spaces and two trailing  ",
    "\n\nlines\n\n\n and \r\n others\r\r\n\t\ttabs \t mixed\x0b\x0c ends\n",
    "".join("x" + " " * width for width in range(1, 40)),
    "def f(x, *, y=None):\n    if x:\n        return {'a': [1, 2.5e-3], \"b\": x ** 2}\n\treturn None  # 100%\n",
    "for(int i=0;i<n;++i){a[i]+=b->c&~0xFFu;}//TODO\n\n\n#include <vector>\n<html><br/></html> <a href='#x'>",
    "1234567890 3.14159 1,000,000 007 2024-02-29T12:00:00Z 0x1F600 \u0661\u0662\u0663 \u0967\u0968 \u00bd \u00b2 \u2163",
    "na\u00efve caf\u00e9 Stra\u00dfe \u0130stanbul \u01c6 \ufb01ne \u1e9e \u0153uvre \u00c5ngstr\u00f6m",
    "cafe\u0301 A\u030a o\u0308 n\u0303 \u1e0d\u0307 q\u0307\u0323 Z\u0351\u036b\u0343\u036a\u0302\u036b\u033d",
    "\u041f\u0440\u0438\u0432\u0435\u0442, \u043c\u0438\u0440! \u0401\u0436\u0438\u043a. \u0393\u03b5\u03b9\u03ac \u03c3\u03bf\u03c5 \u03ba\u03cc\u03c3\u03bc\u03b5\u03c2 \u1f08\u03c1\u03c7\u1f74",
    "\u0627\u0644\u0633\u0644\u0627\u0645 \u0639\u0644\u064a\u0643\u0645 \u0645\u064e\u0631\u0652\u062d\u064e\u0628\u064b\u0627 \ufdfa \u05e9\u05c1\u05b8\u05dc\u05d5\u05b9\u05dd \u05e2\u05d5\u05dc\u05dd",
    "\u0928\u092e\u0938\u094d\u0924\u0947 \u0926\u0941\u0928\u093f\u092f\u093e \u0995\u09cd\u09b7 \u0ba4\u0bae\u0bbf\u0bb4\u0bcd \u0c24\u0c46\u0c32\u0c41\u0c17\u0c41 \u0e2a\u0e27\u0e31\u0e2a\u0e14\u0e35\u0e0a\u0e32\u0e27\u0e42\u0e25\u0e01 \u1019\u103c\u1014\u103a\u1019\u102c",
    "\u4f60\u597d\uff0c\u4e16\u754c\uff01\u7e41\u9ad4\u5b57\u3002\u3053\u3093\u306b\u3061\u306f\u3001\u30ab\u30bf\u30ab\u30ca \uff76\uff9e\uff21\uff11\u3000\uc548\ub155\ud558\uc138\uc694 \u1112\u1161\u11ab \u3131\u3134",
    "\U0001f600\U0001f44d\U0001f3fd \U0001f468\u200d\U0001f469\u200d\U0001f467 \U0001f1eb\U0001f1f7 \u2764\ufe0f \U0001d4d0\U0001d7d9 \U00020000 \U000e0041 \U0010fffd",
    "a\u00a0b\u2003c\u200bd\u2060e\ufefff\u00adg\u202eh\u2028i\u2029j\x00k\x7fl\x85m\u0600n\ue000o",
    "\u2581already \u2581\u2581marked\u2581 _under__score___ ~!@#$%^&*()_+-=[]{}|;':\",./<>?`\\ \u2018q\u2019 \u201cq\u201d \u2014\u2026",
    "a" * 70 + "." * 33 + "-" * 64 + "=" * 17 + "ha" * 20 + "\u3042" * 20 + "0" * 40 + "\n" * 9,
    "https://example.org/a_b?q=%20x&y=1#frag user.name+tag@mail.example C:\\dir\\file.txt $\\frac{a}{b}_{i}^2$ E=mc\u00b2",
    "SHOUTED WORDS camelCaseWords snake_case XMLHttpRequest iPhone15Pro MiXeD \u00c9COLE don\u2019t l'\u00e9t\u00e9 rock'n'roll '90s",
    "<0x0A> <|not a token|> [INST] <<SYS>> ### <unk?> {{ x }} {% if %}",
    "Donaudampfschifffahrtselektrizit\u00e4tenhauptbetriebswerkbauunterbeamtengesellschaft pneumonoultramicroscopic",
    "x",
    " ",
    "\n",
    "",
)  # fmt: skip


class SampledTokenizer(Protocol):
    """What is needed of a `Tokenizer`."""

    size: int
    special_ids: Mapping[str, int]

    def token_text(self, number: int) -> str:
        """A token's text."""

    def special_in(self, texts: Iterable[str]) -> list[str | None]:
        """A special token's text that stands in each text."""

    def encode_each(self, texts: Sequence[str], *, special: bool = False) -> list[list[int]]:
        """Ids of each text."""


def sample_texts(tokenizer: SampledTokenizer) -> list[str]:
    """The sample, and pieces that the tokenizer itself treats in its own way, in which no special token is spelt."""
    spelt = [tokenizer.token_text(number) for number in range(0, tokenizer.size, max(tokenizer.size // 400, 1))]
    texts = [*SAMPLE_TEXTS, " ".join(spelt), "".join(spelt).replace("\u2581", " ")]
    return [text for text, found in zip(texts, tokenizer.special_in(texts), strict=True) if found is None]


def special_samples(tokenizer: SampledTokenizer) -> list[str]:
    """Texts in which special tokens stand between others, as chat templates write them."""
    texts = list(tokenizer.special_ids)[:8]
    return [form.replace("@", text) for text in texts for form in ("@", "@word\n@", "word@ word", "\n@\n\n@ x")]


def differing_texts(content: Mapping[str, Any], tokenizer: SampledTokenizer, *, special: bool = True) -> list[str]:
    """Sample texts to which a `tokenizer.json` gives other ids than the tokenizer does.

    Args:
      special: also of texts in which special tokens stand.
    """
    from tokenizers import Tokenizer as Library

    theirs = Library.from_str(json.dumps(content))
    plain, marked = sample_texts(tokenizer), special_samples(tokenizer) if special else []
    texts, ours = [*plain, *marked], [*tokenizer.encode_each(plain), *tokenizer.encode_each(marked, special=True)]
    found = [encoding.ids for encoding in theirs.encode_batch_fast(texts, add_special_tokens=False)]
    return [text for text, a, b in zip(texts, ours, found, strict=True) if a != b]
