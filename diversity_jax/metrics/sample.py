"""A draw of documents with all that the metrics read of it, made once; and the stages that turn it into figures."""

from collections.abc import Callable, Iterator, Sequence
import contextlib
from dataclasses import dataclass
import os
import threading
import time
from typing import Any

import numpy as np

from diversity_jax.metrics import embedding, lexical, pairwise
from diversity_jax.metrics import lexical as richness
from diversity_jax.metrics.ngrams import Ngrams
from diversity_jax.metrics.perplexity import Nats, perplexity_gap
from diversity_jax.metrics.text import Words


@dataclass(frozen=True, kw_only=True, eq=False)
class Sample:
    """Documents and what is known of them; parts that no chosen metric reads are None.

    Attributes:
      texts: the documents.
      words: in the form for repetition and n-grams; `folded`: for richness and overlap.
      tokens: tokens of each document, int64 [documents].
      vectors: float32 [documents, D].
      nats, larger_nats: under the two models.
    """

    texts: Sequence[str]
    words: Words | None = None
    folded: Words | None = None
    tokens: np.ndarray | None = None
    vectors: np.ndarray | None = None
    nats: Nats | None = None
    larger_nats: Nats | None = None

    def take(self, documents: np.ndarray) -> "Sample":
        """These documents, by number, in this order."""
        parts: dict[str, Any] = {"texts": [self.texts[number] for number in documents.tolist()]}
        for name in ("words", "folded", "nats", "larger_nats"):
            part = getattr(self, name)
            parts[name] = part and part.take(documents)
        for name in ("tokens", "vectors"):
            part = getattr(self, name)
            parts[name] = None if part is None else part[documents]
        return Sample(**parts)


@dataclass(frozen=True, kw_only=True, eq=False)
class Ruler:
    """What all corpora of a run are measured by: the clusters, and how pairs are drawn."""

    pairs: int
    seed: int
    codebook: embedding.Codebook | None = None
    threads: int | None = None


def _context_length(sample: Sample, ruler: Ruler) -> dict[str, float | None]:
    tokens = None if sample.tokens is None else float(sample.tokens.mean())
    return {"context_length_words": richness.context_length(sample.words), "context_length_tokens": tokens}


def _ngram_diversity(sample: Sample, ruler: Ruler) -> dict[str, float | None]:
    ngrams = Ngrams(sample.words, threads=ruler.threads)
    values = [richness.ngram_diversity(ngrams, n) for n in range(1, 5)]
    parts = {f"ngram_diversity_{n}": value for n, value in enumerate(values, 1)}
    return parts | {"ngram_diversity": None if None in values else sum(values)}


def _pairs(score: Callable, name: str) -> Callable[[Sample, Ruler], dict[str, float | None]]:
    def stage(sample: Sample, ruler: Ruler) -> dict[str, float | None]:
        mean = score(sample.folded, pairs=ruler.pairs, seed=ruler.seed)
        return {name: mean and mean.value}

    return stage


def _compression(algorithm: str) -> Callable[[Sample, Ruler], dict[str, float | None]]:
    return lambda sample, ruler: {
        f"compression_ratio_{algorithm}": lexical.compression_ratio(sample.texts, algorithm, threads=ruler.threads)
    }


def _perplexity(sample: Sample, ruler: Ruler) -> dict[str, float | None]:
    values = {"perplexity": sample.nats.perplexity(), "bits_per_byte": sample.nats.bits_per_byte()}
    return values | ({"perplexity_gap": perplexity_gap(sample.nats, sample.larger_nats)} if sample.larger_nats else {})


def _kmeans(sample: Sample, ruler: Ruler) -> dict[str, float | None]:
    return {"kmeans_effective_clusters": embedding.effective_occupied(ruler.codebook.occupancy(sample.vectors))}


# Each stage reads what `READS` says; a figure that a draw does not define is None.
STAGES: dict[str, Callable[[Sample, Ruler], dict[str, float | None]]] = {
    "context_length": _context_length,
    "self_repetition": lambda sample, ruler: {
        "self_repetition": richness.self_repetition(Ngrams(sample.words, threads=ruler.threads))
    },
    "ngram_diversity": _ngram_diversity,
    **{algorithm: _compression(algorithm) for algorithm in lexical.ALGORITHMS},
    "type_token_ratio": lambda sample, ruler: {"type_token_ratio": richness.type_token_ratio(sample.folded)},
    "mtld": lambda sample, ruler: {"mtld": richness.mtld(sample.folded)},
    "self_bleu": _pairs(pairwise.self_bleu, "self_bleu"),
    "rouge_l": _pairs(pairwise.rouge_l_homogenization, "rouge_l"),
    "vendi": lambda sample, ruler: {f"vendi_{order}": embedding.vendi_score(sample.vectors, order) for order in (1, 2)},
    "distance": lambda sample, ruler: {"mean_pairwise_distance": embedding.mean_pairwise_distance(sample.vectors)},
    "kmeans": _kmeans,
    "perplexity": _perplexity,
}
READS = {
    "words": ("context_length", "self_repetition", "ngram_diversity"),
    "folded": ("type_token_ratio", "mtld", "self_bleu", "rouge_l"),
    "vectors": ("vendi", "distance", "kmeans"),
    "nats": ("perplexity",),
}


@contextlib.contextmanager
def metered(
    costs: list[dict[str, Any]], stage: str, documents: int, dollars: Callable[[], float] = lambda: 0.0
) -> Iterator[None]:
    """Appends what the block took: seconds, CPU seconds of all threads, and how far memory rose above where it was.

    Memory is what the system counts as resident, looked at fifty times a second: a rise shorter than that is missed.
    """
    peak, done = [_resident_bytes()], threading.Event()
    base, paid = peak[0], dollars()

    def watch() -> None:
        while not done.wait(0.02):
            peak[0] = max(peak[0], _resident_bytes())

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    began, cpu = time.perf_counter(), time.process_time()
    try:
        yield
    finally:
        seconds, cpu_seconds = time.perf_counter() - began, time.process_time() - cpu
        done.set()
        watcher.join()
        memory = max(peak[0], _resident_bytes()) - base
        costs.append(
            {
                "stage": stage,
                "documents": documents,
                "seconds": seconds,
                "cpu_seconds": cpu_seconds,
                "memory_bytes": memory,
                "dollars": dollars() - paid,
            }
        )


def _resident_bytes() -> int:
    import psutil

    return psutil.Process(os.getpid()).memory_info().rss
