"""Similarity of pairs of documents of a corpus, over seeded random pairs: ROUGE-L and BLEU, each with an interval.

Of n documents there are n (n - 1) / 2 pairs: 50 million for 10,000. Drawing pairs at random gives the mean over all of
them with a known error; where the corpus has no more pairs than asked for, all are taken and the figure is exact.

`compatible_figures` are those of the `diversity` package (0.3.1), to the digits it prints, for comparison with
published figures; the definitions of `lexical` and of this module are the better ones. These differences are reproduced
on purpose: words are split at single spaces for n-gram diversity, so that double spaces make empty words and line feeds
make none; n-grams span documents; gzip is applied twice and its file's name counted; ROUGE words are a-z and 0-9;
documents that share nothing have homogenization 1.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
import functools
import gzip
import io
import itertools
import lzma
import math
import re

import numpy as np

from diversity_jax.core.errors import InputError
from diversity_jax.core.intervals import Z95
from diversity_jax.core.words import unspaced_share
from diversity_jax.metrics.ngrams import Ngrams, rank
from diversity_jax.metrics.registry import single_metric
from diversity_jax.metrics.text import Vocabulary, Words, split_words

_EPSILON = 0.1  # matches of an order without one
_PART_WORDS = 1 << 20
_FIRST_LOOK_PAIRS = 1000  # with fewer, the spread is hardly known


@dataclass(frozen=True, kw_only=True)
class PairMean:
    """A mean over pairs of documents, its 95 % interval, the number of pairs, and whether they are all pairs."""

    value: float
    low: float
    high: float
    pairs: int
    exact: bool


def rouge_l_homogenization(
    texts: Sequence[str] | Words,
    *,
    pairs: int | None = 20_000,
    half_width: float | None = None,
    seed: int = 0,
    threads: int | None = None,
) -> PairMean | None:
    """Mean ROUGE-L F1 over pairs of documents; None with fewer than two documents.

    F1 = 2 LCS / (words of the first + words of the second), on folded words (see `text`); 0 where either has none. 1
    means that all documents are the same. The `diversity` package keeps a-z and 0-9 only, so that other scripts score 0
    or 1 by accident, and takes all pairs.

    Args:
      texts: documents, or their words.
      pairs: drawn at random with this seed; None for all.
      half_width: stop as soon as half the interval is no wider than this.

    Source: Lin, "ROUGE" (2004); Padmakumar and He, "Does writing with language models reduce content diversity?"
      (2024).
    """
    return _pair_mean(texts, functools.partial(rouge_l, threads=threads), pairs, half_width, seed)


def self_bleu(
    texts: Sequence[str] | Words, *, pairs: int | None = 20_000, half_width: float | None = None, seed: int = 0
) -> PairMean | None:
    """Mean BLEU-4 of one document with another as its only reference, over random ordered pairs; None with fewer than
    two documents.

    Zhu et al., "Texygen" (2018), take ALL other documents as references, so that figure and cost grow with the corpus;
    pairs do not depend on its size. Sentence BLEU with orders 1 to 4 weighted equally and a brevity
    penalty; an order without a match counts 0.1 matches (Chen and Cherry 2014, method 1); documents of fewer than 4
    words have as many orders as words. On folded words.
    """
    return _pair_mean(texts, bleu, pairs, half_width, seed)


def _pair_mean(
    texts: Sequence[str] | Words, score: Callable, pairs: int | None, half_width: float | None, seed: int
) -> PairMean | None:
    words = texts if isinstance(texts, Words) else split_words(texts, "folded")
    documents = words.documents
    if documents < 2:
        return None
    if pairs is not None and pairs < 1:
        raise InputError(f"pairs={pairs}: expected at least 1, or None for all")
    if pairs is None or math.comb(documents, 2) <= (_FIRST_LOOK_PAIRS if half_width else pairs):
        left, right = np.nonzero(~np.eye(documents, dtype=bool)) if score is bleu else np.triu_indices(documents, 1)
        mean = float(score(words, left, right).mean())
        return PairMean(value=mean, low=mean, high=mean, pairs=len(left), exact=True)
    draw = np.random.default_rng([seed, 0x9A125])
    scores = np.empty(0)
    for count in _looks(pairs) if half_width else (pairs,):
        left = draw.integers(documents, size=count - len(scores))
        right = (left + draw.integers(1, documents, size=len(left))) % documents
        scores = np.concatenate([scores, score(words, left, right)])
        reach = Z95 * float(scores.std(ddof=1)) / math.sqrt(len(scores)) if len(scores) > 1 else math.inf
        if half_width and reach <= half_width:
            break
    mean = float(scores.mean())
    return PairMean(value=mean, low=max(0.0, mean - reach), high=min(1.0, mean + reach), pairs=len(scores), exact=False)


def _looks(pairs: int) -> list[int]:
    """The numbers of pairs after which the width of the interval is checked."""
    looks = [_FIRST_LOOK_PAIRS * 2**step for step in range(40)]
    return [look for look in looks if look < pairs] + [pairs]


def rouge_l(words: Words, left: np.ndarray, right: np.ndarray, threads: int | None = None) -> np.ndarray:
    """F1 of the longest common subsequence of each pair of documents: float64 [pairs]."""
    from rapidfuzz import process
    from rapidfuzz.distance import LCSseq

    needed, positions = np.unique(np.concatenate([left, right]), return_inverse=True)
    sequences = _strings(words.take(needed))
    of_left, of_right = ([sequences[i] for i in side.tolist()] for side in np.split(positions, [len(left)]))
    common = process.cpdist(of_left, of_right, scorer=LCSseq.similarity, dtype=np.int64, workers=threads or -1)
    return 2 * common / np.maximum(words.lengths[left] + words.lengths[right], 1)


def _strings(words: Words) -> Sequence[object]:
    """Each document as a string with one character for each word, or a list where words outnumber characters."""
    different, ids = np.unique(words.ids, return_inverse=True)
    edges = words.offsets.tolist()
    if len(different) >= 0x10FFFF - 0xE000:
        return [ids[start:end].tolist() for start, end in itertools.pairwise(edges)]
    text = (ids + 0xE000).astype("<u4").tobytes().decode("utf-32-le")
    return [text[start:end] for start, end in itertools.pairwise(edges)]


def bleu(words: Words, left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Smoothed BLEU-4 of documents `left` against references `right`: float64 [pairs]; 0 where either is empty."""
    size = words.lengths[left] + words.lengths[right]
    order = np.argsort(size, kind="stable")  # pairs of like size together, so that rows of a matrix waste little
    edges = np.flatnonzero(np.diff(np.cumsum(size[order]) // _PART_WORDS)) + 1
    scores = np.empty(len(left))
    for part in np.split(order, edges):
        scores[part] = _bleu(words, left[part], right[part])
    return scores


def _bleu(words: Words, left: np.ndarray, right: np.ndarray) -> np.ndarray:
    # The two documents of a pair are neighbours in `both`, and equal n-grams have equal keys.
    both = words.take(np.stack([left, right], axis=1).ravel())
    _, ids = np.unique(both.ids, return_inverse=True)
    ngrams = Ngrams(Words(ids=ids.astype(np.int32), offsets=both.offsets, types=int(ids.max(initial=0)) + 1), threads=1)
    hypothesis, reference = both.lengths[0::2], both.lengths[1::2]
    logs, orders = np.zeros(len(left)), np.minimum(hypothesis, 4)
    for n in range(1, 5):
        matches = _clipped_matches(ngrams, n)
        total = np.maximum(hypothesis - n + 1, 1)
        logs += np.where(n <= orders, np.log(np.maximum(matches, _EPSILON) / total), 0.0)
    penalty = np.minimum(0.0, 1 - reference / np.maximum(hypothesis, 1))
    scores = np.exp(penalty + logs / np.maximum(orders, 1))
    return np.where((hypothesis > 0) & (reference > 0), scores, 0.0)


def _clipped_matches(ngrams: Ngrams, n: int) -> np.ndarray:
    """For documents 2 i and 2 i + 1, the sum over n-grams of the smaller count: float64 [documents / 2]."""
    counts = np.maximum(ngrams.words.lengths - n + 1, 0)
    of_pair = counts[0::2] + counts[1::2]
    keys = ngrams.keys(n)
    if int(keys.max(initial=0)) >= 1 << 62:
        keys = rank(keys, 1).astype(np.uint64)
    keys = keys << np.uint64(1) | (ngrams.documents(n) & 1).astype(np.uint64)
    rows = np.full((len(of_pair), int(of_pair.max(initial=0))), np.iinfo(np.uint64).max)
    filled = np.arange(rows.shape[1]) < of_pair[:, None]
    rows[filled] = keys
    rows.sort(axis=1)
    # Now equal n-grams of a pair are neighbours, those of its first document first.
    keys, pair = rows[filled], np.repeat(np.arange(len(of_pair)), of_pair)
    if not len(keys):
        return np.zeros(len(of_pair))
    side, keys = (keys & np.uint64(1)).astype(np.int64), keys >> np.uint64(1)
    starts = np.flatnonzero(np.concatenate([[True], (keys[1:] != keys[:-1]) | (pair[1:] != pair[:-1])]))
    seconds = np.add.reduceat(side, starts)
    firsts = np.diff(np.append(starts, len(keys))) - seconds
    return np.bincount(pair[starts], np.minimum(firsts, seconds), len(of_pair))


def _mean(mean: PairMean | None) -> float | None:
    return mean.value if mean else None


single_metric(
    "self_bleu",
    "lexical",
    "folded",
    ("Self-BLEU, pairs", -1, "BLEU-4 of a document against another, over random pairs"),
    lambda sample, settings: _mean(self_bleu(sample.folded, pairs=settings.pairs, seed=settings.seed)),
)
single_metric(
    "rouge_l",
    "lexical",
    "folded",
    ("ROUGE-L, pairs", -1, "longest common subsequence F1, over random pairs"),
    lambda sample, settings: _mean(rouge_l_homogenization(sample.folded, pairs=settings.pairs, seed=settings.seed)),
)


_MOST_DOCUMENTS_OF_ALL_PAIRS = 5000
MOST_UNREADABLE = 0.1  # share of a text that a definition may leave out: of French, its accents are 4 %
_NOT_ASCII = re.compile(r"[^\x00-\x7f]")


def compatible_figures(texts: Sequence[str]) -> tuple[dict[str, float], list[str]]:
    """The `diversity` package's figures, and a warning for each that is undefined or would mislead."""
    figures: dict[str, Callable[[], float]] = {
        "ngram_diversity_score": lambda: ngram_diversity_score(texts),
        "self_repetition_score": lambda: self_repetition_score(texts),
        "compression_ratio_gzip": lambda: compression_ratio(texts, "gzip"),
        "compression_ratio_xz": lambda: compression_ratio(texts, "xz"),
        "homogenization_score_rougel": lambda: homogenization_score(texts),
    }
    unspaced, vanishing = unspaced_share(texts), _share_outside_ascii(texts)
    values, warnings = {}, []
    for name, figure in figures.items():
        try:
            if name in ("ngram_diversity_score", "self_repetition_score") and unspaced > MOST_UNREADABLE:
                raise InputError(f"{unspaced:.0%} of the text is in scripts without spaces, which are its words")
            if name == "homogenization_score_rougel" and vanishing > MOST_UNREADABLE:
                raise InputError(f"its words are a-z and 0-9, and {vanishing:.0%} of the text is not ASCII")
            values[name] = figure()
        except InputError as error:
            warnings.append(f"{name} is left out: {error}")
    return values, warnings


def _share_outside_ascii(texts: Sequence[str]) -> float:
    """Share of the characters that are not ASCII, white space not counted."""
    characters = ["".join(text.split()) for text in texts]
    outside = sum(len(_NOT_ASCII.findall(text)) for text in characters if not text.isascii())
    return outside / max(sum(map(len, characters)), 1)


def ngram_diversity_score(texts: Sequence[str], num_n: int = 4) -> float:
    """`diversity.ngram_diversity_score`: for n = 1 to `num_n`, different n-grams over all, added up.

    Raises:
      InputError: fewer words than `num_n` in all (theirs divides by zero).
    """
    ids: dict[str, int] = {}
    tokens = " ".join(texts).split(" ")
    if len(tokens) < num_n:
        raise InputError(
            f"n-gram diversity: {len(tokens)} words hold no {num_n}-gram; give more text or a smaller num_n"
        )
    ids_of_words = np.fromiter((ids.setdefault(token, len(ids)) for token in tokens), np.int32, len(tokens))
    ngrams = Ngrams(Words(ids=ids_of_words, offsets=np.array([0, len(ids_of_words)]), types=len(ids)))
    return round(sum(distinct / total for distinct, total in (ngrams.distinct(n) for n in range(1, num_n + 1))), 3)


def self_repetition_score(texts: Sequence[str], n: int = 4) -> float:
    """`diversity.self_repetition_score`, which does not round."""
    words = Vocabulary("pieces").encode(texts)
    return float(np.log(Ngrams(words).repeats_by_document(n) + 1).mean())


def compression_ratio(texts: Sequence[str], algorithm: str = "gzip") -> float:
    """`diversity.compression_ratio` for `gzip` or `xz`."""
    data = " ".join(texts).encode()
    if algorithm == "gzip":
        file = io.BytesIO()
        with gzip.GzipFile("compressed.gz", "wb", fileobj=file) as twice:
            twice.write(gzip.compress(data))
        size = len(file.getvalue())
    elif algorithm == "xz":
        size = len(lzma.compress(data))
    else:
        raise InputError(f"compression {algorithm!r}: the package knows gzip and xz")
    return round(len(data) / size, 3)


def homogenization_score(texts: Sequence[str]) -> float:
    """`diversity.homogenization_score(measure="rougel")`: the mean over all ordered pairs.

    Raises:
      InputError: fewer than two documents, or too many for all pairs; `pairwise.rouge_l_homogenization` samples them.
    """
    count = len(texts)
    if count < 2:
        raise InputError(f"homogenization: {count} documents make no pair; give at least 2")
    if count > _MOST_DOCUMENTS_OF_ALL_PAIRS:
        raise InputError(
            f"homogenization: {count} documents are {count * (count - 1) // 2:,} pairs; take at most "
            f"{_MOST_DOCUMENTS_OF_ALL_PAIRS} documents, or sample pairs with pairwise.rouge_l_homogenization"
        )
    words = Vocabulary("rouge").encode(texts)
    total = 0.0
    for document in range(count - 1):
        others = np.arange(document + 1, count)
        total += 2 * float(rouge_l(words, np.full(len(others), document), others).sum())
    return round(total / (count * (count - 1)), 3) if total else 1.0
