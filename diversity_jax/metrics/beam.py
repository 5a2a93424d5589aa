"""Lexical metrics of all documents of a corpus on Apache Beam, for corpora too large for one machine.

These metrics can be merged over workers:

  context length, type-token ratio, MTLD    sums over documents
  n-gram diversity                          sum over ranges of keys of the different n-grams in the range
  self-repetition                           number of documents with each 4-gram, joined to the documents, then a mean

The others are measured on draws: compression depends on the order of texts, ROUGE-L and BLEU on pairs, perplexity on a
model on every worker, and embedding metrics on a common embedder.

An n-gram is identified by 64 bits, made from a hash of each word, so that workers agree without a common vocabulary.
Among m different n-grams, m^2 / 2^65 collisions are expected: 0.03 among 10^9, 3 among 10^10. Apart from these, figures
equal those of `lexical`, on the same words.
"""

import collections
from collections.abc import Callable, Iterable, Iterator, Sequence
import hashlib
import itertools
import math
from typing import Any
import uuid

import numpy as np

from diversity_jax.core.errors import InputError
from diversity_jax.core.files import join_path, read_json, remove_tree, write_json
from diversity_jax.corpus import Corpus
from diversity_jax.corpus.beam import open_pipeline, pipeline_options
from diversity_jax.corpus.corpus import Tally, read_unit, units_of
from diversity_jax.metrics import lexical
from diversity_jax.metrics.ngrams import Ngrams, is_new
from diversity_jax.metrics.registry import METRICS, MetricsConfig
from diversity_jax.metrics.report import Figure, MetricsReport, report_parameters
from diversity_jax.metrics.text import Vocabulary

_ORDERS, _REPEATED_ORDER = (1, 2, 3, 4), 4
_BLOCK_DOCUMENTS, _BLOCK_CHARACTERS = 8192, 1 << 24
_BUCKET_BITS = 8
_FIRST, _SECOND = np.uint64(0x9E3779B97F4A7C15), np.uint64(0xD6E8FEB86659FD93)

Block = tuple[str, list[str]]
"""The name of a block, and its documents."""


def measure_all(
    open_corpus: Callable[[], Corpus], name: str, metrics: Sequence[str], config: MetricsConfig, scratch: str
) -> MetricsReport:
    """Measures all documents of a corpus, without draws and hence without intervals.

    Args:
      open_corpus: opens the corpus, here and on every worker.
      name: of the corpus.
      metrics: the mergeable ones are measured; a warning of the report names the others.
      config: its `runner`, `runner_options` and `words` are used.
      scratch: a folder that all workers can reach (`gs://` with Dataflow) for temporary files.

    Raises:
      InputError: no metric is mergeable, Beam is not installed or refuses the settings, or the corpus is empty or
        damaged.
    """
    chosen = [name for name in metrics if METRICS[name].mergeable]
    if not chosen:
        mergeable = ", ".join(name for name, metric in METRICS.items() if metric.mergeable)
        raise InputError(
            f"baseline.runner: none of {', '.join(metrics)} merges over workers; choose some of {mergeable}"
        )
    folder = str(join_path(scratch, f".beam-{uuid.uuid4().hex}"))
    assert config.runner is not None
    try:
        with open_pipeline(config.runner, pipeline_options(config.runner, config.runner_options)) as pipeline:
            _build(pipeline, open_corpus, len(units_of(open_corpus())), config.words, folder)
        totals = {part: read_json(join_path(folder, f"{part}.json")) for part in ("sums", "distinct", "repeats")}
    finally:
        remove_tree(folder)
    if not totals["sums"]:
        raise InputError(f"{name}: holds no document; check the source and its settings")
    values = _values(totals)
    warnings = ["measured on the whole corpus, in one piece: figures without intervals"]
    if left := [metric for metric in metrics if metric not in chosen]:
        warnings.append(f"not measured, because they do not merge over workers: {', '.join(left)}")
    documents = int(totals["sums"]["documents"])
    parameters = report_parameters(
        config, draws=1, draw_documents=documents, control_words=0, control_documents=0, clusters=0, embedder=None
    )
    parameters.pop("runner_options")
    return MetricsReport(
        metrics={metric: Figure(value=value) for metric in chosen if (value := values[metric]) is not None},
        corpus={"name": name, "fingerprint": open_corpus().fingerprint(), "documents": documents},
        parameters=parameters,
        seed=config.seed,
        warnings=warnings,
    )


def _build(pipeline: Any, open_corpus: Callable[[], Corpus], units: int, form: str, folder: str) -> None:
    import apache_beam as beam

    blocks = (
        pipeline
        | beam.Create(range(units))
        | "spread units" >> beam.Reshuffle()
        | "read" >> beam.FlatMap(read_blocks, open_corpus)
    )
    counted = (
        blocks
        | "spread blocks" >> beam.Reshuffle()
        | "count" >> beam.FlatMap(_tagged, form).with_outputs("sums", "distinct", "repeats")
    )
    parts = {
        "sums": counted.sums | "add sums" >> beam.CombineGlobally(_summed),
        "distinct": counted.distinct
        | beam.GroupByKey()
        | beam.MapTuple(count_distinct)
        | "add orders" >> beam.CombineGlobally(_summed),
        "repeats": counted.repeats
        | "by keys" >> beam.GroupByKey()
        | beam.FlatMap(lambda pair: count_others(pair[1]))
        | "by documents" >> beam.GroupByKey()
        | beam.MapTuple(lambda _, counts: {"log": float(np.log1p(sum(counts)).sum())})
        | "add logs" >> beam.CombineGlobally(_summed),
    }
    for name, value in parts.items():
        path = str(join_path(folder, f"{name}.json"))
        _ = value | f"write {name}" >> beam.Map(lambda sums, path=path: write_json(path, sums))


def _summed(sums: Iterable[dict[str, float]]) -> dict[str, float]:
    total: collections.Counter[str] = collections.Counter()
    for part in sums:
        total.update(part)
    return dict(total)


def read_blocks(number: int, open_corpus: Callable[[], Corpus]) -> Iterator[Block]:
    """A unit's documents in blocks of some thousand."""
    corpus = open_corpus()
    unit = units_of(corpus)[number]
    texts: list[str] = []
    left, block = _BLOCK_CHARACTERS, 0
    for document in read_unit(corpus, unit, Tally()):
        texts.append(document.text)
        left -= len(document.text)
        if left <= 0 or len(texts) == _BLOCK_DOCUMENTS:
            yield f"{number}-{block}", texts
            texts, left, block = [], _BLOCK_CHARACTERS, block + 1
    if texts:
        yield f"{number}-{block}", texts


def _tagged(block: Block, form: str) -> Iterator[Any]:
    from apache_beam.pvalue import TaggedOutput

    for tag, value in count_block(block, form):
        yield TaggedOutput(tag, value)


def count_block(block: Block, form: str) -> Iterator[tuple[str, Any]]:
    """The counts of one block, tagged `sums`, `distinct`: ((order, range), keys), or `repeats`: (range, (block, number
    of documents, keys, their documents)).
    """
    name, texts = block
    vocabulary, folded = Vocabulary(form), Vocabulary("folded").encode(texts, threads=1)
    words = vocabulary.encode(texts, threads=1)
    ngrams = Ngrams(words, threads=1)
    keys = {n: _global_keys(ngrams, vocabulary, n) for n in _ORDERS}
    ratio = lexical.type_token_ratio(folded)
    not_empty = int(np.count_nonzero(folded.lengths))
    sums = {
        "documents": len(texts),
        "words": len(words.ids),
        "folded": len(folded.ids),
        "factors": lexical.mean_factors(folded),
        "ratios": (ratio or 0.0) * not_empty,
        "some": not_empty,
    }
    yield "sums", sums | {f"total_{n}": len(keys[n]) for n in _ORDERS}
    for n in _ORDERS:
        ascending = np.sort(keys[n])
        different = ascending[is_new(ascending)]
        for bucket, part in enumerate(_ranges(different)):
            if part.stop > part.start:
                yield "distinct", ((n, bucket), different[part])
    documents = ngrams.documents(_REPEATED_ORDER)
    order = np.lexsort((documents, keys[_REPEATED_ORDER]))
    ascending, owners = keys[_REPEATED_ORDER][order], documents[order]
    first_in_document = is_new(ascending) | is_new(owners)
    ascending, owners = ascending[first_in_document], owners[first_in_document]
    # Empty parts too: every block must be in the result, even where nothing of it repeats.
    for bucket, part in enumerate(_ranges(ascending)):
        yield "repeats", (bucket, (name, len(texts), ascending[part], owners[part]))


def _global_keys(ngrams: Ngrams, vocabulary: Vocabulary, n: int) -> np.ndarray:
    """A 64-bit key of every window inside a document, the same on all workers: uint64 [windows]."""
    hashes = [hashlib.blake2b(lexical.encode(word), digest_size=8).digest() for word in vocabulary.words]
    by_word = np.frombuffer(b"".join(hashes), "<u8")[ngrams.words.ids]
    count = max(len(by_word) - n + 1, 0)
    keys = np.full(count, n, np.uint64)
    for step in range(n):
        keys = (keys ^ by_word[step : step + count]) * _FIRST
        keys ^= keys >> np.uint64(29)
        keys *= _SECOND
    return keys[ngrams.windows(n)]


def _ranges(ascending: np.ndarray) -> list[slice]:
    """The slice of each range of keys; keys with the same highest bits are a range."""
    highest = ascending >> np.uint64(64 - _BUCKET_BITS)
    edges = np.searchsorted(highest, np.arange((1 << _BUCKET_BITS) + 1, dtype=np.uint64)).tolist()
    return [slice(start, end) for start, end in itertools.pairwise(edges)]


def count_distinct(key: tuple[int, int], parts: Iterable[np.ndarray]) -> dict[str, int]:
    """The number of different keys in one range of one order."""
    return {f"distinct_{key[0]}": int(np.count_nonzero(is_new(np.sort(np.concatenate(list(parts))))))}


def count_others(parts: Iterable[tuple[str, int, np.ndarray, np.ndarray]]) -> Iterator[tuple[str, np.ndarray]]:
    """For each block, the number of other documents with each key of a range, summed by document: int64 [documents]."""
    blocks = list(parts)
    keys = np.concatenate([block[2] for block in blocks])
    _, inverse, counts = np.unique(keys, return_inverse=True, return_counts=True)
    others, start = counts[inverse] - 1, 0
    for name, documents, block_keys, owners in blocks:
        end = start + len(block_keys)
        yield name, np.bincount(owners, others[start:end], documents).astype(np.int64)
        start = end


def _values(totals: dict[str, dict[str, float]]) -> dict[str, float | None]:
    sums, distinct = totals["sums"], totals["distinct"]
    shares = [distinct.get(f"distinct_{n}", 0) / sums[f"total_{n}"] if sums[f"total_{n}"] else None for n in _ORDERS]
    return {
        "context_length_words": sums["words"] / sums["documents"],
        "self_repetition": totals["repeats"]["log"] / sums["documents"],
        **{f"ngram_diversity_{n}": share for n, share in zip(_ORDERS, shares, strict=True)},
        "ngram_diversity": None if None in shares else math.fsum(filter(None, shares)),
        "type_token_ratio": sums["ratios"] / sums["some"] if sums["some"] else None,
        "mtld": sums["folded"] / sums["factors"] if sums["factors"] > 0 else None,
    }
