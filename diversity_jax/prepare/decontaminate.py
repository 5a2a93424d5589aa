"""Finds documents that share an n-gram of words with a benchmark item, to leave them out of training text.

The usual test (Brown et al. 2020, appendix C): a document is contaminated if it has 13 words in a row in common with
an evaluation item. Words are those of `core.words`. Matches are verified word by word: a document is never removed by a
hash collision.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
import itertools
from typing import Any

import numpy as np

from diversity_jax.core.compression import read_lines
from diversity_jax.core.errors import InputError
from diversity_jax.core.files import file_hash, list_files
from diversity_jax.core.json_text import parse_json
from diversity_jax.core.words import words

_SHORT_FIELD_WORDS = 8  # longer fields are not answers that fill a blank
_MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)  # 2^64 / golden ratio; odd, so that multiplying loses nothing


@dataclass(frozen=True, kw_only=True)
class Overlap:
    """The n-grams that a document shares with one benchmark item.

    Attributes:
      document: its id; file: of the benchmark; item: its line, counted from 1.
      ngram: the words of the first; ngrams: how many there are.
    """

    document: str
    file: str
    item: int
    ngram: str
    ngrams: int


class Benchmarks:
    """An index of all n-grams of the text fields of evaluation files.

    All strings of an item are its text, also those in nested lists and records. An n-gram may be in one of them, across
    the border of two in sequence (a question and its answer), or in one whose blank `_` is filled by another. Items of
    fewer words than an n-gram cannot be detected; `short_items` counts these by file.

    Args:
      patterns: JSONL files (also .gz, .zst), or patterns of such.
      ngram_words: n.

    Raises:
      InputError: a pattern matches nothing, a file cannot be read or decompressed, a line is no JSON object, or a file
        has no n-gram at all.
    """

    def __init__(self, patterns: Sequence[str], ngram_words: int = 13):
        self.ngram_words = ngram_words
        self.files: list[str] = []
        self.hashes: dict[str, str] = {}
        self.items: Counter[str] = Counter()
        self.short_items: Counter[str] = Counter()
        self._vocabulary: dict[str, int] = {}
        matching = {pattern: list_files(pattern) for pattern in patterns}
        for pattern, files in matching.items():
            if not files:
                raise InputError(
                    f"hygiene.decontaminate {pattern}: no such file; name JSONL files, or patterns of such"
                )
        paths = sorted({path for files in matching.values() for path in files})
        runs, owners = [np.empty((0, ngram_words), np.uint32)], [np.empty((0, 2), np.int32)]
        for number, (path, name) in enumerate(zip(paths, _shortest_names(paths), strict=True)):
            self.files.append(name)
            self.hashes[name] = file_hash(path)
            for line, texts in _items(path):
                item_runs = self._runs(texts)
                self.items[name] += 1
                self.short_items[name] += not len(item_runs)
                runs.append(item_runs)
                owners.append(np.tile(np.array([number, line], np.int32), (len(item_runs), 1)))
            if self.items[name] == self.short_items[name]:
                raise InputError(f"{path}: no item has {ngram_words} words in a row; check it, or lower ngram_words")
        all_runs, pairs = np.concatenate(runs), np.concatenate(owners)
        hashes = hash_runs(all_runs)
        order = np.lexsort((pairs[:, 1], pairs[:, 0], hashes))
        hashes, pairs = hashes[order], pairs[order]
        new = np.append(True, (hashes[1:] != hashes[:-1]) | (pairs[1:] != pairs[:-1]).any(1))
        self._hashes, self._owners, self._words = hashes[new], pairs[new], all_runs[order[new]]

    def _runs(self, texts: Sequence[str]) -> np.ndarray:
        """Word numbers of every n-gram of an item, uint32 [ngrams, ngram_words]; some may occur twice."""
        variants = (ids for ids in _variants(texts, self._number, self.ngram_words) if len(ids) >= self.ngram_words)
        runs = [np.lib.stride_tricks.sliding_window_view(ids, self.ngram_words) for ids in variants]
        return np.concatenate([np.empty((0, self.ngram_words), np.uint32), *runs])

    def _number(self, text: str) -> np.ndarray:
        """Numbers of a text's words; new words get new numbers."""
        numbers = self._vocabulary
        return np.array([numbers.setdefault(word, len(numbers) + 1) for word in words(text)], np.uint32)

    def overlaps(self, document: str, text: str) -> list[Overlap]:
        """Benchmark items that a text shares an n-gram with, in the order of files and items."""
        text_words = words(text)
        numbers = (self._vocabulary.get(word, 0) for word in text_words)  # 0 stands for a word of no benchmark
        ids = np.fromiter(numbers, np.uint64, len(text_words))
        hashes = windows(ids, self.ngram_words)
        first = np.searchsorted(self._hashes, hashes)
        hits = np.flatnonzero(self._hashes[np.minimum(first, len(self._hashes) - 1)] == hashes)
        shared: dict[tuple[int, int], list[int]] = {}
        for position in hits.tolist():
            run = ids[position : position + self.ngram_words]
            end = int(np.searchsorted(self._hashes, hashes[position], side="right"))
            for match in range(int(first[position]), end):
                if np.array_equal(self._words[match], run):
                    file, item = self._owners[match].tolist()
                    shared.setdefault((file, item), []).append(position)
        return [
            Overlap(
                document=document,
                file=self.files[file],
                item=item,
                ngram=" ".join(text_words[positions[0] : positions[0] + self.ngram_words]),
                ngrams=len(positions),
            )
            for (file, item), positions in sorted(shared.items())
        ]


def _shortest_names(paths: Sequence[str]) -> list[str]:
    """File names, with as many of their folders as make them unique."""
    parts = [path.split("/") for path in paths]
    for depth in range(1, 1 + max(map(len, parts), default=0)):
        names = ["/".join(part[-depth:]) for part in parts]
        if len(set(names)) == len(names):
            return names
    return list(paths)


def _items(path: str) -> Iterator[tuple[int, list[str]]]:
    """(line, texts) of every item of a file."""
    line = 0
    for line, raw in enumerate(itertools.chain.from_iterable(read_lines(path)), start=1):
        if not raw.strip():
            continue
        record = parse_json(raw, f"{path}:{line}", remedy="evaluation files hold one JSON object a line")
        if not isinstance(record, dict):
            raise InputError(f"{path}:{line}: is JSON but not an object with text fields; write one object a line")
        yield line, list(_strings(record))
    if not line:
        raise InputError(f"{path}: is empty; name a file with evaluation items")


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for inner in value.values() if isinstance(value, dict) else value:
            yield from _strings(inner)


def _variants(texts: Sequence[str], number: Callable[[str], np.ndarray], length: int) -> Iterator[np.ndarray]:
    """Word numbers of the forms in which an item may occur in a text: fields, two in sequence, blanks filled."""
    fields = [number(text) for text in texts]
    yield from fields
    for before, after in itertools.permutations([field for field in fields if len(field)], 2):
        yield np.concatenate([before[1 - length :], after[: length - 1]])
    for text in texts:
        if text.count("_") == 1:
            start, end = map(number, text.split("_"))
            for filling in fields:
                if 0 < len(filling) <= _SHORT_FIELD_WORDS:
                    yield np.concatenate([start, filling, end])


def windows(ids: np.ndarray, length: int) -> np.ndarray:
    """A hash of every `length` consecutive ids, uint64 [max(0, len(ids) - length + 1)]; ids are uint64."""
    count = len(ids) - length + 1
    return _hash([ids[offset : offset + count] for offset in range(length)]) if count > 0 else np.empty(0, np.uint64)


def hash_runs(runs: np.ndarray) -> np.ndarray:
    """The hash that `windows` gives each run: uint64 [runs] of unsigned integers [runs, length]."""
    return _hash(runs.T)


def _hash(columns: Sequence[np.ndarray] | np.ndarray) -> np.ndarray:
    hashes = np.zeros(len(columns[0]), np.uint64)
    with np.errstate(over="ignore"):
        for column in columns:
            hashes = (hashes ^ column) * _MULTIPLIER
            hashes ^= hashes >> np.uint64(29)
    return hashes
