"""The figures of the `diversity` package (0.3.1), to the digits it prints, computed our way.

For comparison with what others have published; the definitions of `lexical` and `pairwise` are the better ones. What
differs, and is reproduced here on purpose: words are split at single spaces for n-gram diversity, so that double spaces
make empty words and line feeds make none; n-grams span documents; gzip is applied twice and its file's name counted;
ROUGE words are a-z and 0-9; documents that share nothing at all have homogenization 1.
"""

from collections.abc import Callable, Sequence
import gzip
import io
import lzma
import re

import numpy as np

from diversity_jax.core.errors import InputError
from diversity_jax.core.words import unspaced_share
from diversity_jax.metrics.ngrams import Ngrams
from diversity_jax.metrics.pairwise import rouge_l
from diversity_jax.metrics.text import Vocabulary, Words

_MOST_DOCUMENTS_OF_ALL_PAIRS = 5000
MOST_UNREADABLE = 0.1  # share of a text that a definition may leave out: of French, its accents are 4 %
_NOT_ASCII = re.compile(r"[^\x00-\x7f]")


def compatible_figures(texts: Sequence[str]) -> tuple[dict[str, float], list[str]]:
    """The package's figures of some texts, and a warning for each that it cannot give or that would mislead."""
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
    """Share of the characters, white space not counted."""
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
