"""Merges duplicate topics: equal ones, equal after normalisation, or nearly equal by embedding.

The embedding needs no model: a word is the sum of its hashed letter trigrams and of itself, a name the sum of its words
weighted by rarity, a topic its last name and, with less weight, those above it. Near pairs are searched within cells of
the space (an inverted file index); every topic is in its two nearest cells, so that few pairs are missed. A near pair
is merged only if its names differ in spelling alone: other numbers, a prefix that changes the meaning (`inorganic`) or
a word without a counterpart make another topic.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
import difflib
import functools
import logging
import re
import unicodedata
import zlib

import numpy as np

from diversity_jax.core.formats import counted
from diversity_jax.core.words import words as text_words
from diversity_jax.synthesis.topics import MOST_KEYWORDS, Topic

_logger = logging.getLogger(__name__)
_DIMENSIONS = 128
_ABOVE_WEIGHT = 0.7  # of the names above: an equal name elsewhere in the tree then has a cosine of 0.67
_FULL_WORD_WEIGHT = 0.3  # relative to its trigrams; more would separate spellings of a word
_CELL_TOPICS = 300  # topics in a cell, about
_CELL_SAMPLE = 60_000
_BLOCK = 4096
_LEAST_SPELLING_SIMILARITY = 0.85  # of two spellings of one word, by difflib's ratio
_PERSONA_COSINE = 0.92  # personas are sentences and share more words than topics do
_FILLERS = frozenset((
    "a", "an", "the", "of", "and", "in", "on", "for", "to", "with", "by", "from", "at", "as", "or", "introduction",
    "overview", "basics", "fundamentals",
    "的", "之", "和", "与", "與", "及", "の", "と", "ของ", "และ", "का", "की", "के", "और",
))  # fmt: skip
# Prefixes that change the meaning of a word, and the empty one.
_PREFIXES = (
    "", "in", "im", "un", "non", "anti", "pre", "post", "pro", "sub", "super", "hyper", "hypo", "micro", "macro",
    "meso", "inter", "intra", "extra", "endo", "exo", "de", "bio", "geo", "multi", "uni", "bi", "di", "tri", "mono",
    "poly", "homo", "hetero", "iso", "ortho", "para", "ultra", "infra", "meta", "counter", "re", "dis", "a", "an",
    "neo", "proto", "pseudo", "over", "under", "east", "west",
)  # fmt: skip
_ROMAN = re.compile(r"^(?=[ivx])(x{0,3})(ix|iv|v?i{0,3})$")
# Accents of Latin, Greek and Cyrillic, vowel points of Hebrew and Arabic. Other marks distinguish words: tones in Thai,
# voicing in Japanese, vowels in Hindi.
_OPTIONAL_MARKS = re.compile("[\u0300-\u036f\u0591-\u05c7\u064b-\u065f\u0670]")
_LAST_LATIN = "\u024f"


@dataclass(frozen=True, kw_only=True)
class MergedTopics:
    """Topics without duplicates, in the order of their first appearance.

    Attributes:
      topics: with the keywords of all that were merged.
      read: number of topics before.
      exact, normalised, near: numbers of topics merged for each reason.
    """

    topics: list[Topic]
    read: int
    exact: int
    normalised: int
    near: int

    def __str__(self) -> str:
        counts = f"{self.exact:,} exact, {self.normalised:,} normalised, {self.near:,} near duplicates merged"
        return f"{counted(len(self.topics), 'topic')} of {self.read:,} ({counts})"


def merge_topics(topics: Sequence[Topic], *, near: float | None = 0.85) -> MergedTopics:
    """Merges duplicates.

    Args:
      topics: in order; the first of equal ones gives the name.
      near: cosine from which two topics may be merged; None merges only topics that are equal after normalisation.
    """
    by_path: dict[tuple[str, ...], list[Topic]] = {}
    for topic in topics:
        by_path.setdefault(topic.path, []).append(topic)
    by_key: dict[str, list[Topic]] = {}
    for path, equals in by_path.items():
        by_key.setdefault(normalised(path), []).extend(equals)
    groups = list(by_key.values())
    leaders = list(range(len(groups)))
    if near is not None and len(groups) > 1:
        leaders = _near_leaders([group[0] for group in groups], near).tolist()
    merged: dict[int, list[Topic]] = {}
    for leader, group in zip(leaders, groups, strict=True):
        merged.setdefault(leader, []).extend(group)
    return MergedTopics(
        topics=[_join(group) for group in merged.values()],
        read=len(topics),
        exact=len(topics) - len(by_path),
        normalised=len(by_path) - len(groups),
        near=len(groups) - len(merged),
    )


def merge_personas(personas: Sequence[str]) -> list[str]:
    """Personas without duplicates, in order."""
    merged = merge_topics([Topic((persona,)) for persona in personas], near=_PERSONA_COSINE)
    return [topic.path[0] for topic in merged.topics]


def _join(group: Sequence[Topic]) -> Topic:
    if len(group) == 1:
        return group[0]
    keywords = dict.fromkeys(word for topic in group for word in topic.keywords)
    return Topic(group[0].path, tuple(keywords)[:MOST_KEYWORDS])


def normalised(path: Sequence[str]) -> str:
    """A path's key: equal for names that differ in case, accents, punctuation, plurals, fillers or order of words."""
    return "/".join(filter(None, (" ".join(sorted(words_of(name))) for name in path)))


@functools.lru_cache(200_000)
def words_of(name: str) -> tuple[str, ...]:
    """Words of a name without fillers, each in the singular; all words where nothing else is left."""
    plain = _OPTIONAL_MARKS.sub("", unicodedata.normalize("NFKD", name).casefold())
    words = [_singular(word) for word in text_words(plain)]
    content = [word for word in words if word not in _FILLERS]
    if len(words) > 1 and len(words[-1]) == 1 and words[-1] in _FILLERS:
        content.append(words[-1])  # "Vitamin A" ends in a name, not in an article
    return tuple(content or words) or (name,)


def _singular(word: str) -> str:
    if len(word) > 4 and word.endswith("ies"):
        return word[:-3] + "y"
    return word[:-1] if len(word) > 3 and word.endswith("s") and not word.endswith(("ss", "us", "is")) else word


def embed(topics: Sequence[Topic]) -> np.ndarray:
    """Unit vectors [topics, dimensions], float32."""
    from scipy.sparse import csr_matrix

    columns: dict[str, int] = {}
    last = [[columns.setdefault(word, len(columns)) for word in words_of(topic.path[-1])] for topic in topics]
    above = [
        [columns.setdefault(word, len(columns)) for name in topic.path[:-1] for word in words_of(name)]
        for topic in topics
    ]
    seen = np.bincount(np.concatenate([np.asarray(row, np.int64) for row in (*last, *above)]), minlength=len(columns))
    rarity = np.log1p(len(topics) / seen).astype(np.float32)
    word_vectors = np.stack([_word_vector(word) for word in columns]) * rarity[:, None]

    def summed(rows: Sequence[Sequence[int]]) -> np.ndarray:
        ends = np.cumsum([0, *map(len, rows)])
        flat = np.fromiter((column for row in rows for column in row), np.int64, ends[-1])
        counts = csr_matrix((np.ones(len(flat), np.float32), flat, ends), shape=(len(rows), len(columns)))
        return _unit(counts @ word_vectors)

    vectors = summed(last)
    vectors += _ABOVE_WEIGHT * summed(above)
    return _unit(vectors)


def _unit(vectors: np.ndarray) -> np.ndarray:
    """Divides vectors, in place, by their norms."""
    vectors /= np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-6)
    return vectors


def _word_vector(word: str) -> np.ndarray:
    """Unit vector of a word: itself and its trigrams, each hashed to dimensions and signs."""
    framed = f"<{word}>"
    parts = [word, *(framed[start : start + 3] for start in range(len(framed) - 2))]
    weights = [_FULL_WORD_WEIGHT] + [(len(parts) - 1) ** -0.5] * (len(parts) - 1)
    vector = np.zeros(_DIMENSIONS, np.float32)
    for part, weight in zip(parts, weights, strict=True):
        code = zlib.crc32(part.encode())
        for shift in (0, 8, 16, 24):  # four dimensions a part keep two parts from falling together
            bits = (code >> shift | code << (32 - shift)) * 2654435761 & 0xFFFFFFFF  # Knuth's multiplicative hash
            vector[bits >> 8 & 127] += weight if bits & 128 else -weight
    return vector / max(float(np.linalg.norm(vector)), 1e-6)


def _near_leaders(topics: Sequence[Topic], near: float) -> np.ndarray:
    """For each topic the first one that is the same, which may be itself: int64 [topics]."""
    leaders = np.arange(len(topics))
    pairs = np.concatenate([np.zeros((0, 2), np.int64), *_near_pairs(embed(topics), near)])
    # In the order of the later topic, so that a topic that was merged into another never becomes a leader.
    pairs = np.unique(pairs, axis=0)
    _logger.debug("%s near pairs to look at", f"{len(pairs):,}")
    for later, earlier in pairs.tolist():
        if leaders[later] == later and leaders[earlier] == earlier and same_topic(topics[earlier], topics[later]):
            leaders[later] = earlier
    return leaders


def _near_pairs(vectors: np.ndarray, near: float) -> Iterator[np.ndarray]:
    """Pairs (later, earlier) at a cosine of at least `near`, cell by cell; a pair may come twice."""
    for members in _cells(vectors):
        inside = vectors[members]
        for start in range(0, len(members), _BLOCK):
            rows, columns = np.nonzero(inside[start : start + _BLOCK] @ inside.T >= near)
            rows += start
            is_later = columns < rows
            if is_later.any():
                yield np.stack([members[rows[is_later]], members[columns[is_later]]], axis=1)


def _cells(vectors: np.ndarray) -> list[np.ndarray]:
    """Ascending row numbers of every cell of k-means (three rounds); each row is in its two nearest cells."""
    count = len(vectors) // _CELL_TOPICS
    if count < 4:
        return [np.arange(len(vectors))]
    sample = vectors[np.random.default_rng(0).permutation(len(vectors))[:_CELL_SAMPLE]]
    centres = sample[:count].copy()
    for _ in range(3):
        nearest = _nearest(sample, centres, 1)[:, 0]
        order = np.argsort(nearest, kind="stable")
        present, starts = np.unique(nearest[order], return_index=True)
        centres[present] = _unit(np.add.reduceat(sample[order], starts, axis=0))
    cells = _nearest(vectors, centres, 2).ravel()
    rows = np.repeat(np.arange(len(vectors)), 2)
    order = np.argsort(cells, kind="stable")
    groups = np.split(rows[order], np.flatnonzero(np.diff(cells[order])) + 1)
    return [members for members in groups if len(members) > 1]


def _nearest(vectors: np.ndarray, centres: np.ndarray, count: int) -> np.ndarray:
    """Numbers of the `count` nearest centres of each vector: int32 [vectors, count]."""
    nearest = np.empty((len(vectors), count), np.int32)
    for start in range(0, len(vectors), _BLOCK):
        similar = vectors[start : start + _BLOCK] @ centres.T
        for rank in range(count):
            best = similar.argmax(axis=1)
            nearest[start : start + _BLOCK, rank] = best
            similar[np.arange(len(best)), best] = -2
    return nearest


def same_topic(a: Topic, b: Topic) -> bool:
    """Whether two near topics are the same: every word of the last names has a counterpart that differs in spelling
    only, and the names above, where both have some, share a word.
    """
    above_a, above_b = ({word for name in topic.path[:-1] for word in words_of(name)} for topic in (a, b))
    if above_a and above_b and not above_a & above_b:
        return False
    words_a, words_b = set(words_of(a.path[-1])), set(words_of(b.path[-1]))
    return _same_words(tuple(sorted(words_a - words_b)), tuple(sorted(words_b - words_a)))


@functools.lru_cache(100_000)
def _same_words(first: tuple[str, ...], second: tuple[str, ...]) -> bool:
    if len(first) != len(second):
        return False
    others = list(second)
    for word in first:
        match = next((other for other in others if _same_word(word, other)), None)
        if match is None:
            return False
        others.remove(match)
    return True


def _same_word(a: str, b: str) -> bool:
    """Whether two different strings are spellings of the same word."""
    if max(a + b) > _LAST_LATIN:
        return False  # a letter may be a syllable or word, and other prefixes change meanings, as in Russian
    if any(letter.isdigit() for letter in a + b) or _ROMAN.match(a) or _ROMAN.match(b):
        return False  # different numbers name different things
    short, long = sorted((a, b), key=len)
    if len(short) < 4 or not _roots(a).isdisjoint(_roots(b)):
        return False
    if long.startswith(short) and len(long) - len(short) <= 2:
        return True
    return difflib.SequenceMatcher(None, short, long, autojunk=False).ratio() >= _LEAST_SPELLING_SIMILARITY


def _roots(word: str) -> set[str]:
    """The rest of a word after each of `_PREFIXES` that it has; words with a common rest differ in meaning."""
    return {word[len(prefix) :] for prefix in _PREFIXES if word.startswith(prefix) and len(word) >= len(prefix) + 3}
