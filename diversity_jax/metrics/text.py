"""Splits documents into arrays of word ids, on which lexical metrics compute.

Text is split at white space first, as `str.split` does. The form decides how each such token is split further:

  written   its written words (see `core.words`), composed (NFC), case and punctuation kept.
  folded    its words as `core.words.words` gives them, composed (NFC): without punctuation, case-folded.
  pieces    the token unchanged, for comparison with packages that split at white space only.
  rouge     as the `rouge_score` package: lower-case runs of a-z and 0-9; other scripts are dropped.

Each DIFFERENT token is split once, so that the cost of Unicode rules is small.
"""

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
import functools
import itertools
import os
import re
import unicodedata

import numpy as np

from diversity_jax.core import words as core_words
from diversity_jax.core.errors import InputError
from diversity_jax.core.words import words, written_words

_CHUNK_DOCUMENTS = 8192
_CHUNK_CHARACTERS = 1 << 23
_MOST_TYPES = 2**31 - 1


@dataclass(frozen=True, kw_only=True, eq=False)
class Words:
    """The words of some documents.

    Attributes:
      ids: int32 [words], document after document; equal words have equal ids.
      offsets: int64 [documents + 1], where each document begins, and last the number of words.
      types: a number above every id.
    """

    ids: np.ndarray
    offsets: np.ndarray
    types: int

    @property
    def documents(self) -> int:
        """Number of documents, empty ones included."""
        return len(self.offsets) - 1

    @functools.cached_property
    def lengths(self) -> np.ndarray:
        """Words of each document: int64 [documents]."""
        return np.diff(self.offsets)

    def take(self, documents: np.ndarray) -> "Words":
        """The documents of these numbers, in this order; a number may occur twice."""
        lengths = self.lengths[documents]
        offsets = _offsets(lengths)
        shift = np.repeat(self.offsets[:-1][documents] - offsets[:-1], lengths)
        return Words(ids=self.ids[np.arange(offsets[-1]) + shift], offsets=offsets, types=self.types)

    def first(self, length: int) -> "Words":
        """The first `length` words of every document."""
        offsets = _offsets(np.minimum(self.lengths, length))
        return Words(ids=self.ids[self.positions() < length], offsets=offsets, types=self.types)

    def positions(self) -> np.ndarray:
        """Position of each word in its document, from 0: int64 [words]."""
        return np.arange(len(self.ids)) - np.repeat(self.offsets[:-1], self.lengths)

    def document(self, number: int) -> np.ndarray:
        """Word ids of one document."""
        return self.ids[self.offsets[number] : self.offsets[number + 1]]

    def document_of_word(self) -> np.ndarray:
        """Number of each word's document: int32 [words]."""
        return np.repeat(np.arange(self.documents, dtype=np.int32), self.lengths)


def _offsets(lengths: np.ndarray) -> np.ndarray:
    return np.concatenate([[0], np.cumsum(lengths)])


def _written(token: str) -> list[str]:
    if token.isascii():
        return [token]
    parts = written_words(unicodedata.normalize("NFC", token))
    return parts if len(parts) == 1 else [part.strip("\u200b") for part in parts]  # zero-width space


_ASCII_WORD = re.compile(r"[a-z0-9]+")


def _folded(token: str) -> list[str]:
    return _ASCII_WORD.findall(token.lower()) if token.isascii() else words(token, normal_form="NFC")


_SPLITTERS = {
    "written": _written,
    "folded": _folded,
    "pieces": lambda token: [token],
    "rouge": lambda token: _ASCII_WORD.findall(token.lower()),
}
FORMS = tuple(_SPLITTERS)


class _Ids(dict):
    """Token -> number in `parts`, which hold the word ids of each token; a new token is split when looked up."""

    def __init__(self, form: str):
        super().__init__()
        self.words: dict[str, int] = {}
        self.parts: list[tuple[int, ...]] = []
        self._split = _SPLITTERS[form]

    def __missing__(self, token: str) -> int:
        ids = self.words
        self.parts.append(tuple([ids.setdefault(word, len(ids)) for word in self._split(token) if word]))
        self[token] = number = len(self.parts) - 1
        return number


@dataclass(frozen=True, kw_only=True, eq=False)
class _Tokens:
    """Texts split at white space.

    Attributes:
      different: all different tokens, in the order of their first appearance; an empty one may be among them.
      numbers: int [tokens], the position of each token in `different`.
      lengths: int64 [texts], tokens of each.
    """

    different: list[str]
    numbers: np.ndarray
    lengths: np.ndarray


def _tokens(texts: Sequence[str]) -> _Tokens:
    """Splits by Arrow, whose white space is that of `str.split`, in a third of the time and without the GIL."""
    import pyarrow
    import pyarrow.compute

    try:
        column = pyarrow.array(texts, pyarrow.large_string())
    except UnicodeEncodeError:  # a lone surrogate, which only Python can hold
        return _tokens_of_any(texts)
    split = pyarrow.compute.utf8_split_whitespace(column)
    tokens = split.flatten().dictionary_encode()
    lengths = np.diff(split.offsets.to_numpy()).astype(np.int64)
    return _Tokens(different=tokens.dictionary.to_pylist(), numbers=tokens.indices.to_numpy(), lengths=lengths)


def _tokens_of_any(texts: Sequence[str]) -> _Tokens:
    ids: dict[str, int] = {}
    split = [text.split() for text in texts]
    numbers = np.array([ids.setdefault(token, len(ids)) for token in itertools.chain.from_iterable(split)], np.int32)
    return _Tokens(different=list(ids), numbers=numbers, lengths=np.array([len(tokens) for tokens in split], np.int64))


class Vocabulary:
    """Assigns ids to words, the same in all calls of `encode`."""

    def __init__(self, form: str = "written"):
        if form not in FORMS:
            raise InputError(f"form of words {form!r}: choose one of {', '.join(FORMS)}")
        self.form = form
        self._ids = _Ids(form)

    def __len__(self) -> int:
        return len(self._ids.words)

    @property
    def words(self) -> list[str]:
        return list(self._ids.words)

    def encode(self, texts: Sequence[str], *, threads: int | None = None) -> Words:
        """The words of every text.

        Args:
          threads: number of them; None for as many as there are cores. Ids do not depend on it.

        Raises:
          InputError: more than 2^31 different words.
        """
        ids, lengths = [np.empty(0, np.int32)], np.zeros(len(texts), np.int64)
        threads, chunks = threads or os.cpu_count() or 1, _segments(texts)
        with ThreadPoolExecutor(threads) as pool:
            while batch := list(itertools.islice(chunks, 2 * threads)):
                encoded = pool.map(_tokens, [segments for _, segments in batch])
                for (documents, _), tokens in zip(batch, encoded, strict=True):
                    table = np.fromiter(map(self._ids.__getitem__, tokens.different), np.int32, len(tokens.different))
                    word_ids, counts = self._expanded(table[tokens.numbers], tokens.lengths)
                    ids.append(word_ids)
                    np.add.at(lengths, documents, counts)
        if len(self) > _MOST_TYPES:
            raise InputError(f"{len(self)} different words are more than {_MOST_TYPES}; measure a sample")
        return Words(ids=np.concatenate(ids), offsets=_offsets(lengths), types=len(self))

    def _expanded(self, numbers: np.ndarray, lengths: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Word ids, and words of each text, from token numbers and the tokens of each text."""
        parts = self._ids.parts
        counts = np.fromiter(map(len, parts), np.int64, len(parts))
        flat = np.fromiter(itertools.chain.from_iterable(parts), np.int32, int(counts.sum()))
        if (counts == 1).all():
            return flat[numbers], lengths
        token_words = counts[numbers]
        ends = _offsets(token_words)
        shift = np.repeat(_offsets(counts)[numbers] - ends[:-1], token_words)
        return flat[np.arange(ends[-1]) + shift], np.diff(ends[_offsets(lengths)])


_SPACE = re.compile(r"\s")


def _segments(texts: Sequence[str]) -> Iterator[tuple[list[int], list[str]]]:
    """Numbers and texts of some documents at a time; very long documents come in parts, cut at white space.

    Tokens take several times the memory of the text, so a thread splits about `_CHUNK_CHARACTERS` at once.
    """
    numbers: list[int] = []
    segments: list[str] = []
    left = _CHUNK_CHARACTERS
    for number, text in enumerate(texts):
        start = 0
        while len(text) - start > _CHUNK_CHARACTERS:
            space = _SPACE.search(text, start + _CHUNK_CHARACTERS)
            end = space.start() if space else len(text)
            yield [number], [text[start:end]]
            start = end
        numbers.append(number)
        segments.append(text[start:] if start else text)
        left -= len(segments[-1])
        if left <= 0 or len(segments) == _CHUNK_DOCUMENTS:
            yield numbers, segments
            numbers, segments, left = [], [], _CHUNK_CHARACTERS
    if segments:
        yield numbers, segments


def split_words(texts: Sequence[str], form: str = "written", *, threads: int | None = None) -> Words:
    """The words of every text, in a form (see the module)."""
    return Vocabulary(form).encode(texts, threads=threads)


def first_words(text: str, count: int) -> str | None:
    """The beginning of a text up to its `count`-th written word; None where it has fewer words."""
    beginning = core_words.first_words(text, count)
    return beginning if len(beginning) < len(text) or core_words.count_words(text) >= count else None
