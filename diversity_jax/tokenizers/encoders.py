"""Encodes by a fast library whose ids are compared with those of the library that defines them, the reference.

The reference is `tokenizers` or `sentencepiece`. `fastokens` reads a `tokenizer.json` and is many times faster. It is
used if it loads the tokenizer and gives the reference's ids for `torture_texts`; then excerpts of every batch are
encoded by both before its ids are returned.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
import functools
import importlib.metadata
import json
import logging
import random
from typing import Any, Protocol

import numpy as np

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


Encoded = tuple[np.ndarray, np.ndarray]
"""Ids of all texts end to end, uint32 [total], and how many ids each text has, int64 [texts]."""


class Reference(Protocol):
    """What is needed of a `Tokenizer`, whose module imports this one."""

    size: int
    special_ids: Mapping[str, int]
    reference_library: str

    def encode_reference(self, texts: Sequence[str], *, special: bool) -> Encoded:
        """Ids by the library that defines them."""

    def fast_content(self) -> str | None:
        """A `tokenizer.json` for the fast encoder; None: there is none."""

    def token_text(self, number: int) -> str:
        """A token's text."""

    def special_in(self, texts: Iterable[str]) -> list[str | None]:
        """The first special token's text in each text; None where there is none."""

    def encode_each(self, texts: Sequence[str], *, special: bool = False) -> list[list[int]]:
        """Ids of each text."""


def sample_texts(tokenizer: Reference) -> list[str]:
    """`SAMPLE_TEXTS`, and texts of the tokenizer's own tokens; none contains a special token's text."""
    spelt = [tokenizer.token_text(number) for number in range(0, tokenizer.size, max(tokenizer.size // 400, 1))]
    texts = [*SAMPLE_TEXTS, " ".join(spelt), "".join(spelt).replace("\u2581", " ")]
    return [text for text, special in zip(texts, tokenizer.special_in(texts), strict=True) if special is None]


def special_samples(tokenizer: Reference) -> list[str]:
    """Texts with special tokens between words, as chat templates write them."""
    texts = list(tokenizer.special_ids)[:8]
    return [form.replace("@", text) for text in texts for form in ("@", "@word\n@", "word@ word", "\n@\n\n@ x")]


def differing_texts(content: Mapping[str, Any], tokenizer: Reference, *, special: bool = True) -> list[str]:
    """Sample texts for which a `tokenizer.json` gives other ids than the tokenizer.

    Args:
      special: also try texts with special tokens.
    """
    from tokenizers import Tokenizer as Library

    theirs = Library.from_str(json.dumps(content))
    plain, with_special = sample_texts(tokenizer), special_samples(tokenizer) if special else []
    texts = [*plain, *with_special]
    ours = [*tokenizer.encode_each(plain), *tokenizer.encode_each(with_special, special=True)]
    their_ids = [encoding.ids for encoding in theirs.encode_batch_fast(texts, add_special_tokens=False)]
    return [text for text, a, b in zip(texts, ours, their_ids, strict=True) if a != b]


log = logging.getLogger(__name__)

ENCODERS = ("auto", "fast", "checked", "reference")
"""`auto`: the fast encoder for enough text, and the reference where they differ; `fast`: an error where they differ in
excerpts; `checked`: both encode all of the text, and a difference is an error; `reference`."""
_WORTH_CHARACTERS = 1_000_000  # which the reference encodes in about the time that loading the fast encoder takes
_BATCH_CHARACTERS = 1 << 14  # for fewer, comparing takes more time than the fast encoder saves
_EXCERPT_EVERY, _EXCERPT_CHARACTERS = 1 << 18, 1 << 10  # characters: 0.4 % of the text is encoded by both
_SHOWN_CHARACTERS = 60
_TORTURE_TEXTS, _TORTURE_PARTS = 500, 24


class EncodersDiffer(Exception):
    """The fast encoder gives other ids than the reference, or fails.

    Attributes:
      text: for which; fast, reference: the encoders' names.
    """

    def __init__(self, text: str, fast: str, reference: str):
        super().__init__(text, fast, reference)
        self.text, self.fast, self.reference = text, fast, reference

    def __str__(self) -> str:
        return f"{self.fast} gives other ids than {self.reference} for {self.text[:_SHOWN_CHARACTERS]!r}"


class FastEncoder:
    """A `tokenizer.json` in `fastokens`.

    Args:
      content: of the file.

    Raises:
      Exception: whatever the library raises, a `BaseException` for a panic in it.
    """

    def __init__(self, content: str):
        import fastokens

        self.name = library_version("fastokens")
        self._library = fastokens.Tokenizer.from_json_str(content)
        self._library.no_truncation()

    def encode(self, texts: Sequence[str], *, special: bool) -> Encoded:
        """Ids of texts as `Tokenizer.encode_batch`; views of the library's own buffers."""
        ids, offsets = self._library.encode_batch_flat(list(texts), False, not special)
        return np.frombuffer(ids, "<u4"), np.diff(np.frombuffer(offsets, "<u8").astype(np.int64))


class CheckedEncoder:
    """Encodes by the fast encoder while it gives the reference's ids, else by the reference.

    Attributes:
      problem: why the fast encoder is not used; None: it is, or was not loaded yet.
    """

    def __init__(self, tokenizer: Reference):
        self._tokenizer = tokenizer
        self._fast: FastEncoder | None = None
        self._is_tried, self._serves_special = False, False
        self._characters = 0  # that were encoded so far
        self.problem: str | None = None

    def __getstate__(self) -> dict[str, Any]:
        """Without the loaded library, which another process loads again."""
        return {**vars(self), "_fast": None, "_is_tried": self.problem is not None}

    @property
    def reference_name(self) -> str:
        """The reference's library and version."""
        library = self._tokenizer.reference_library
        return library if library == "bytes" else library_version(library)

    def fast_name(self) -> str | None:
        """Loads the fast encoder; returns its library and version, or None if it cannot be used."""
        fast = self._open()
        return fast.name if fast else None

    def encode(self, texts: Sequence[str], *, special: bool, encoder: str) -> Encoded:
        """Ids of texts.

        Args:
          encoder: one of `ENCODERS`.

        Raises:
          EncodersDiffer: unless `encoder` is `auto`, which encodes such texts by the reference.
        """
        fast = self._chosen(texts, encoder)
        if fast is None or (special and not self._serves_special):
            return self._tokenizer.encode_reference(texts, special=special)
        try:
            if encoder == "checked":
                return self._compared(fast, texts, special=special)
            self._compared(fast, list(excerpts(texts)), special=special)
            return self._encoded(fast, texts, special=special)
        except EncodersDiffer as difference:
            if encoder != "auto":
                raise
            self.stop(str(difference))
            log.warning("%s; the latter encodes from here on", difference)
            return self._tokenizer.encode_reference(texts, special=special)

    def stop(self, problem: str) -> None:
        """Stops using the fast encoder."""
        self._fast, self._is_tried, self.problem = None, True, problem

    def _chosen(self, texts: Sequence[str], encoder: str) -> FastEncoder | None:
        if encoder == "auto":
            characters = sum(map(len, texts))
            self._characters += characters
            if characters < _BATCH_CHARACTERS or self._characters < _WORTH_CHARACTERS:
                return None
        return None if encoder == "reference" or not texts else self._open()

    def _open(self) -> FastEncoder | None:
        if not self._is_tried:
            self._is_tried = True
            try:
                content = self._tokenizer.fast_content()
                if content is None:
                    self.problem = "there is none of its kind"
                    return None
                fast = FastEncoder(content)
                self._try(fast)
                self._fast = fast
            except EncodersDiffer as difference:
                self.problem = str(difference)
            except (KeyboardInterrupt, SystemExit, MemoryError):
                raise
            except BaseException as error:  # also the panics of a Rust library
                self.problem = f"it cannot be loaded ({_one_line(error)})"
        return self._fast

    def _try(self, fast: FastEncoder) -> None:
        with_special = special_samples(self._tokenizer)
        self._compared(fast, [*sample_texts(self._tokenizer), *torture_texts(), *with_special], special=False)
        try:
            self._compared(fast, with_special or [""], special=True)
            self._serves_special = True
        except EncodersDiffer:
            self._serves_special = False  # texts with special tokens go to the reference

    def _encoded(self, fast: FastEncoder, texts: Sequence[str], *, special: bool) -> Encoded:
        """Ids by the fast encoder; if it fails, that is a difference."""
        try:
            return fast.encode(texts, special=special)
        except (KeyboardInterrupt, SystemExit, MemoryError):
            raise
        except BaseException as error:
            log.debug("%s: %s", fast.name, _one_line(error))
            raise EncodersDiffer(texts[0], fast.name, self.reference_name) from None

    def _compared(self, fast: FastEncoder, texts: Sequence[str], *, special: bool) -> Encoded:
        """Ids of both encoders.

        Raises:
          EncodersDiffer: with the first text for which they differ.
        """
        ids, lengths = self._tokenizer.encode_reference(texts, special=special)
        fast_ids, fast_lengths = self._encoded(fast, texts, special=special)
        if np.array_equal(ids, fast_ids) and np.array_equal(lengths, fast_lengths):
            return ids, lengths
        raise EncodersDiffer(
            texts[_first_difference(ids, lengths, fast_ids, fast_lengths)], fast.name, self.reference_name
        )


def excerpts(texts: Sequence[str]) -> Iterator[str]:
    """Short parts of the texts at regular distances, from the beginning of the first text on."""
    at = 0
    for text in texts:
        while at < len(text):
            yield text[at : at + _EXCERPT_CHARACTERS]
            at += _EXCERPT_EVERY
        at -= len(text)


_TORTURE = (
    *(" ", "  ", "   ", "\t", "\n", "\n\n", "\r\n", "\u00a0", "\u3000", "\u2028", "\u200b", "\u200d", "\ufe0f"),
    *("'", "'s", "'T", "'re", "'Ve", "'m", "'ll", "'d", "\u2019s", '"', "_", "-", "--", ".", "...", ",", "!", "?!"),
    *("/", "//", "\\", "(", ")", "[]", "{}", "<", "</", ">", "=", "==", "->", ":", ";", "#", "$", "%", "&", "*", "|"),
    *("0", "7", "42", "123", "2024", "1234567", "\u0663", "\u0967", "\u00bd", "\u00b2", "\u2163", "\uff11"),
    *("a", "I", "the", "The", "THE", "word", "hello", "World", "return", "def", "self", "for", "int", "x", "https"),
    *("\u00e9", "e\u0301", "\u00df", "\u0130", "\u01c6", "\ufb01", "\u212b", "\u00c5", "\u1e9e", "\u0308", "\u0327"),
    *("\u0434\u0430", "\u0391\u03c1", "\u05e9\u05c1", "\u0645\u064e\u0631", "\u0928\u093f", "\u0e01\u0e33"),
    *("\u4f60\u597d", "\u3042", "\uff76\uff9e", "\ud55c", "\u1112\u1161\u11ab", "\U00020000", "\U0001d4d0"),
    *("\U0001f600", "\U0001f44d\U0001f3fd", "\U0001f1eb\U0001f1f7", "\u2764", "\u2581", "\x00", "\x7f", "\x85"),
    *("\u00ad", "\u0600", "\ue000", "\ufeff", "\ufffd", "\U000e0041", "\U0010ffff"),
)


@functools.cache
def torture_texts() -> tuple[str, ...]:
    """Random sequences of strings that pre-tokenizers and normalizers often treat differently; always the same."""
    draw = random.Random(0)
    return tuple("".join(draw.choices(_TORTURE, k=draw.randint(1, _TORTURE_PARTS))) for _ in range(_TORTURE_TEXTS))


@functools.cache
def library_version(library: str) -> str:
    """A library's name and version."""
    return f"{library} {importlib.metadata.version(library)}"


def _first_difference(ids: np.ndarray, lengths: np.ndarray, other: np.ndarray, other_lengths: np.ndarray) -> int:
    """The number of the first text with other ids."""
    different = np.flatnonzero(lengths != other_lengths)
    least = min(len(ids), len(other))
    at = np.flatnonzero(ids[:least] != other[:least])
    texts = [int(different[0])] if len(different) else []
    texts += [int(np.searchsorted(np.cumsum(lengths), at[0], side="right"))] if len(at) else []
    return min(texts)


def _one_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:200]
