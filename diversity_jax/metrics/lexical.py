"""Lexical metrics of corpora: length, repetition, n-gram diversity, type-token ratio, MTLD and compression ratios.

Compression: documents are joined by a line feed in the order given, and that order matters. gzip looks back 32 KiB,
some 25 documents of 200 words, and sees repetition only between near neighbours. So documents must come in random order
(as draws are), or the ratio measures how they were sorted. xz looks back 8 MiB, zstd here 128 MiB. Figures do not
depend on the number of cores. The `diversity` package joins by spaces, uses level 9 and compresses gzip's output a
second time, which changes the ratio by a fraction of a per cent.
"""

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
import functools
import itertools
import lzma
import os
import zlib

import numpy as np

from diversity_jax.core.errors import InputError
from diversity_jax.metrics.ngrams import Ngrams, is_new
from diversity_jax.metrics.registry import DocumentFeatures, Figures, StageSettings, single_metric, stage
from diversity_jax.metrics.text import Words

_THRESHOLD = (18, 25)  # 0.72 as a fraction, so that a ratio of exactly 0.72 is never a matter of rounding
_PART_WORDS = 1 << 24
_MIN_ROWS = 48  # documents for a step of array code; with fewer, a loop over words is faster


def context_length(words: Words) -> float:
    """Mean words of a document, empty ones included. arXiv 2410.15226, "context length", which counts tokens."""
    return float(words.lengths.mean())


def self_repetition(ngrams: Ngrams, n: int = 4) -> float:
    """Mean over documents of log(1 + sum over the document's different n-grams of the number of OTHER documents that
    hold it).

    Source: Salkar et al., "Self-repetition in abstractive neural summarizers" (2022), as the `diversity` package
    computes it, but for the definition of a word (see `text`); 0 where nothing repeats. It grows with the length of
    documents and with their number.
    """
    return float(np.log1p(ngrams.repeats_by_document(n)).mean())


def ngram_diversity(ngrams: Ngrams, n: int) -> float | None:
    """Different n-grams over all n-grams, pooled over documents; None where no document has n words.

    Source: Meister et al., "Locally typical sampling" (2022); Li et al., "A diversity-promoting objective function"
    (2016), distinct-n. The `diversity` package joins documents first, so that n-grams span two of them; here they never
    do. It falls as a corpus grows.
    """
    distinct, total = ngrams.distinct(n)
    return distinct / total if total else None


def type_token_ratio(words: Words) -> float | None:
    """Mean over documents of different words / words; empty documents are left out; None where all are empty.

    Within documents, unlike `ngram_diversity(n=1)`, which pools them. It falls as documents grow. Source: Johnson
    (1944).
    """
    ratios = [_type_token_ratios(part) for part in document_parts(words)]
    documents = sum(map(len, ratios))
    return float(sum(part.sum() for part in ratios) / documents) if documents else None


def _type_token_ratios(words: Words) -> np.ndarray:
    """The ratio of every document that is not empty."""
    pairs = np.sort(_document_keys(words))
    types = np.bincount((pairs[is_new(pairs)] >> np.uint64(32)).astype(np.int64), minlength=words.documents)
    with_words = words.lengths > 0
    return types[with_words] / words.lengths[with_words]


def _document_keys(words: Words) -> np.ndarray:
    """A key of document (upper 32 bits) and word for every word of the documents: uint64 [words]."""
    return words.document_of_word().astype(np.uint64) << np.uint64(32) | words.ids.astype(np.uint64)


def document_parts(words: Words) -> Iterator[Words]:
    """Documents in parts of some million words, so that sorting takes little memory beside the words."""
    edges = np.searchsorted(words.offsets, np.arange(_PART_WORDS, len(words.ids), _PART_WORDS))
    for start, end in itertools.pairwise(np.unique([0, *edges.tolist(), words.documents]).tolist()):
        offsets = words.offsets[start : end + 1]
        yield Words(ids=words.ids[offsets[0] : offsets[-1]], offsets=offsets - offsets[0], types=words.types)


def mtld(words: Words) -> float | None:
    """Measure of textual lexical diversity: mean length of a run of words whose type-token ratio stays above 0.72.

    A factor is complete where the ratio falls to 0.72 or below; the rest at a document's end counts as the part (1 -
    ratio) / 0.28 of one. Forward and backward factors are averaged. Pooled: all words over all factors, so that a
    short document without a complete factor needs no special rule, and for one document it is McCarthy and Jarvis's
    figure exactly. None where there is no factor at all (no word occurs twice in a document).

    Source: McCarthy and Jarvis, "MTLD, vocd-D, and HD-D" (Behavior Research Methods, 2010).
    """
    factors = sum(map(mean_factors, document_parts(words)))
    return float(words.lengths.sum() / factors) if factors > 0 else None


def mean_factors(words: Words) -> float:
    """MTLD factors of all documents, the mean of reading them forward and backward."""
    last = np.repeat(words.offsets[1:] - 1, words.lengths)
    backward = Words(ids=words.ids[last - words.positions()], offsets=words.offsets, types=words.types)
    return float(factor_counts(words).sum() + factor_counts(backward).sum()) / 2


def factor_counts(words: Words) -> np.ndarray:
    """MTLD factors of every document read forward: float64 [documents].

    All documents are read together, a word in each step, while enough of them have words left; then one after another.
    """
    before = _last_occurrences(words)
    order = np.argsort(-words.lengths, kind="stable")
    lengths, starts = words.lengths[order], words.offsets[:-1][order]
    began = np.zeros(len(order), np.int64)  # where the running factor began, in its document
    types = np.zeros(len(order), np.int64)
    factors = np.zeros(len(order))
    # Documents are in order of length, longest first, so the first `running[step]` have a word at a step.
    running = len(order) - np.searchsorted(lengths[::-1], np.arange(lengths[0] if len(lengths) else 0), side="right")
    steps = int(np.searchsorted(-running, -_MIN_ROWS, side="right"))
    for step in range(steps):
        rows = slice(0, running[step])
        types[rows] += before[starts[rows] + step] < began[rows]
        full = np.flatnonzero(_THRESHOLD[1] * types[rows] <= _THRESHOLD[0] * (step + 1 - began[rows]))
        factors[full] += 1
        began[full], types[full] = step + 1, 0
    for row in np.flatnonzero(lengths > steps).tolist():
        inside = before[starts[row] + steps : starts[row] + lengths[row]]
        factors[row] += _remaining_factors(inside, steps, int(began[row]), int(types[row]))
    done = (lengths <= steps) & (lengths > began)
    ratio = types[done] / (lengths[done] - began[done])
    factors[done] += _factor_part(ratio)
    result = np.empty(len(order))
    result[order] = factors
    return result


def _factor_part(ratio):
    """The part of a factor that words with this type-token ratio make."""
    return (1 - ratio) / (1 - _THRESHOLD[0] / _THRESHOLD[1])


def _remaining_factors(before: np.ndarray, first: int, began: int, types: int) -> float:
    """Factors of the rest of a document, whose words from position `first` on occurred last at positions `before`."""
    factors, position = 0.0, first
    for last_seen in itertools.chain.from_iterable(
        part.tolist() for part in np.array_split(before, 1 + len(before) // _PART_WORDS)
    ):
        types += last_seen < began
        position += 1
        if _THRESHOLD[1] * types <= _THRESHOLD[0] * (position - began):
            factors, began, types = factors + 1, position, 0
    return factors + _factor_part(types / (position - began)) if position > began else factors


def _last_occurrences(words: Words) -> np.ndarray:
    """Position in the document of each word's last occurrence, -1 where it is new: int64 [words]."""
    keys = _document_keys(words)
    order = np.argsort(keys, kind="stable")
    same = keys[order][1:] == keys[order][:-1]
    before = np.full(len(keys), -1, np.int64)
    before[order[1:][same]] = words.positions()[order[:-1][same]]
    return before


ALGORITHMS = ("gzip", "xz", "zstd")
_GZIP_BLOCK_BYTES = 1 << 20
_GZIP_WINDOW_BYTES = 1 << 15
_GZIP_FRAME_BYTES = 18  # header and trailer of one member without a name
_XZ_DICTIONARY_BYTES = 8 << 20
_XZ_BLOCK_BYTES = 3 * _XZ_DICTIONARY_BYTES
_ZSTD_WINDOW_LOG = 27
_ZSTD_LEVEL = 3


def compression_ratio(texts: Sequence[str], algorithm: str = "gzip", *, threads: int | None = None) -> float | None:
    """Original bytes over compressed bytes; None where there is nothing to compress.

    Args:
      texts: documents, in the order in which they are to be compressed.
      algorithm: `gzip` (level 6; blocks of 1 MiB primed with the 32 KiB before them, as by pigz), `xz` (preset 1 with
        the 8 MiB dictionary of preset 6: five times as fast, a tenth larger; blocks of 24 MiB, as `xz --threads`), or
        `zstd` (level 3 with long-distance matching over 128 MiB).
      threads: number of them; None for as many as there are cores.

    Source: "compression ratio" of Shaib et al., "Standardizing the measurement of text diversity" (2024).

    Raises:
      InputError: an unknown algorithm.
    """
    if algorithm not in ALGORITHMS:
        raise InputError(f"compression {algorithm!r}: choose one of {', '.join(ALGORITHMS)}")
    if not any(texts):
        return None
    compressor = {"gzip": _gzip_bytes, "xz": _xz_bytes, "zstd": _zstd_bytes}[algorithm]
    size = 0

    def counted() -> Iterator[bytes]:
        nonlocal size
        for block in _encoded(texts, _XZ_BLOCK_BYTES if algorithm == "xz" else _GZIP_BLOCK_BYTES):
            size += len(block)
            yield block

    compressed = compressor(counted(), threads or os.cpu_count() or 1)
    return size / compressed


def encode(text: str) -> bytes:
    """UTF-8, in which a lone surrogate becomes three bytes."""
    return text.encode("utf-8", "surrogatepass")


def _encoded(texts: Sequence[str], block_bytes: int) -> Iterator[bytes]:
    """The documents, joined, in blocks of exactly `block_bytes`, the last one shorter."""
    pending = bytearray()
    for number, text in enumerate(texts):
        if number:
            pending += b"\n"
        for start in range(0, max(len(text), 1), _XZ_BLOCK_BYTES):
            pending += encode(text[start : start + _XZ_BLOCK_BYTES])
            while len(pending) >= block_bytes:
                yield bytes(memoryview(pending)[:block_bytes])
                del pending[:block_bytes]
    if pending:
        yield bytes(pending)


def _sum_over(work, items: Iterator, threads: int) -> int:
    """The sum of `work` over items in threads, a few items at a time, so that they are never all in memory."""
    total = 0
    with ThreadPoolExecutor(threads) as pool:
        while batch := list(itertools.islice(items, 2 * threads)):
            total += sum(pool.map(work, batch))
    return total


def _gzip_bytes(blocks: Iterator[bytes], threads: int) -> int:
    def pairs() -> Iterator[tuple[bytes, bytes]]:
        before = b""
        for block in blocks:
            yield before, block
            before = block[-_GZIP_WINDOW_BYTES:]

    def deflated(pair: tuple[bytes, bytes]) -> int:
        before, block = pair
        raw = functools.partial(zlib.compressobj, 6, zlib.DEFLATED, -15, 8)
        stream = raw(zlib.Z_DEFAULT_STRATEGY, before) if before else raw()
        end = zlib.Z_SYNC_FLUSH if len(block) == _GZIP_BLOCK_BYTES else zlib.Z_FINISH
        return len(stream.compress(block)) + len(stream.flush(end))

    return _GZIP_FRAME_BYTES + _sum_over(deflated, pairs(), threads)


def _xz_bytes(blocks: Iterator[bytes], threads: int) -> int:
    """Each block is a stream of its own, 32 bytes longer than a block of one stream."""
    filters = [{"id": lzma.FILTER_LZMA2, "preset": 1, "dict_size": _XZ_DICTIONARY_BYTES}]
    return _sum_over(lambda block: len(lzma.compress(block, filters=filters)), blocks, threads)


def _zstd_bytes(blocks: Iterator[bytes], threads: int) -> int:
    """One frame. Its jobs are split by size alone, so that one thread and many give the same bytes."""
    import zstandard

    parameters = zstandard.ZstdCompressionParameters.from_level(
        _ZSTD_LEVEL, window_log=_ZSTD_WINDOW_LOG, enable_ldm=True, threads=threads, write_checksum=False
    )
    stream = zstandard.ZstdCompressor(compression_params=parameters).compressobj()
    total = sum(len(stream.compress(block)) for block in blocks)
    return total + len(stream.flush())


@stage(
    "context_length",
    "lexical",
    "words",
    {
        "context_length_words": ("Context length, words", 0, "mean words of a document"),
        "context_length_tokens": (
            "Context length, tokens",
            0,
            "mean tokens of a document under baseline.vocabulary",
            "vocabulary",
        ),
    },
    mergeable=True,
)
def _context_length(sample: DocumentFeatures, settings: StageSettings) -> Figures:
    tokens = None if sample.tokens is None else float(sample.tokens.mean())
    return {"context_length_words": context_length(sample.words), "context_length_tokens": tokens}


single_metric(
    "self_repetition",
    "lexical",
    "words",
    ("Self-repetition", -1, "log of 1 + repeats of 4-grams in other documents"),
    lambda sample, settings: self_repetition(Ngrams(sample.words, threads=settings.threads)),
    mergeable=True,
)


@stage(
    "ngram_diversity",
    "lexical",
    "words",
    {
        "ngram_diversity_1": ("1-gram diversity", 1, "different words over all words, pooled"),
        **{
            f"ngram_diversity_{n}": (f"{n}-gram diversity", 1, f"different over all {n}-grams, pooled")
            for n in (2, 3, 4)
        },
        "ngram_diversity": ("N-gram diversity, n = 1 to 4", 1, "the four above, added up"),
    },
    mergeable=True,
)
def _ngram_diversity(sample: DocumentFeatures, settings: StageSettings) -> Figures:
    ngrams = Ngrams(sample.words, threads=settings.threads)
    values = [ngram_diversity(ngrams, n) for n in range(1, 5)]
    parts = {f"ngram_diversity_{n}": value for n, value in enumerate(values, 1)}
    return parts | {"ngram_diversity": None if None in values else sum(filter(None, values))}


def _compression(algorithm: str, sample: DocumentFeatures, settings: StageSettings) -> float | None:
    return compression_ratio(sample.texts, algorithm, threads=settings.threads)


for _algorithm, _back in {"gzip": "32 KiB", "xz": "8 MiB", "zstd": "128 MiB"}.items():
    single_metric(
        f"compression_ratio_{_algorithm}",
        "lexical",
        "texts",
        (f"Compression ratio, {_algorithm}", -1, f"bytes over {_algorithm} bytes; sees {_back} back"),
        functools.partial(_compression, _algorithm),
        stage_name=_algorithm,
    )
single_metric(
    "type_token_ratio",
    "lexical",
    "folded",
    ("Type-token ratio", 1, "different words over words, mean over documents"),
    lambda sample, settings: type_token_ratio(sample.folded),
    mergeable=True,
)
single_metric(
    "mtld",
    "lexical",
    "folded",
    ("MTLD", 1, "mean run of words with a type-token ratio above 0.72"),
    lambda sample, settings: mtld(sample.folded),
    mergeable=True,
)
