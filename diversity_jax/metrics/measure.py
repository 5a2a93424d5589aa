"""Measures corpora by the baseline metrics, all with the same draw size, length, embedding space and clusters."""

from collections.abc import Callable, Iterator, Mapping, Sequence
import contextlib
from dataclasses import dataclass, replace
import functools
import logging
import math
import threading
import time
from typing import Any

import numpy as np

from diversity_jax.core.errors import InputError
from diversity_jax.core.files import content_hash
from diversity_jax.core.progress import ProgressDisplay
from diversity_jax.core.words import unspaced_share
from diversity_jax.corpus import Corpus
from diversity_jax.embedders import Embedder
from diversity_jax.metrics.embedding import Codebook, TfidfSvd, default_clusters, unit_rows
from diversity_jax.metrics.pairwise import MOST_UNREADABLE, compatible_figures
from diversity_jax.metrics.perplexity import CausalModel, document_nats
from diversity_jax.metrics.registry import METRICS, STAGES, DocumentFeatures, Figures, MetricsConfig, StageSettings
from diversity_jax.metrics.report import Figure, MetricsReport, report_parameters
from diversity_jax.metrics.text import first_words, split_words

log = logging.getLogger(__name__)

_FEWEST = 20  # documents; with fewer, draws of half a corpus do not show its spread
_MOST_CONTROL_WORDS = 256
_STEPS = 4  # sizes for `dependence`, each twice the one before
_MOST_DOCUMENTS, _DEPENDENCE_PAIRS = 20_000, 1000  # for `dependence`
_FIT_DOCUMENTS = 20_000  # of each corpus, for the TF-IDF space and the clusters

Costs = list[dict[str, Any]]
"""Cost of stages; see `MetricsReport.cost`."""


@dataclass(frozen=True, kw_only=True)
class Tools:
    """Models and tokenizers that the caller opens; None where no chosen metric needs one.

    Attributes:
      embedder: None for TF-IDF fitted to the corpora.
      model, larger_model: for perplexity.
      count_tokens: returns the number of tokens of each text, int64 [texts].
    """

    embedder: Embedder | None = None
    model: CausalModel | None = None
    larger_model: CausalModel | None = None
    count_tokens: Callable[[Sequence[str]], np.ndarray] | None = None


def measure(
    corpora: Mapping[str, Corpus | Sequence[str]], metrics: Sequence[str], config: MetricsConfig, tools: Tools = Tools()
) -> dict[str, MetricsReport]:
    """Measures corpora, by name, in comparable draws.

    Args:
      corpora: by name; a corpus, or its texts.
      metrics: names of `METRICS`, such as `chosen_metrics` gives.

    Raises:
      InputError: no corpus, an empty one, an unknown metric, or one whose tool is missing.
    """
    if not corpora or not metrics:
        raise InputError("metrics: nothing to measure; name at least one corpus and one metric")
    if unknown := [name for name in metrics if name not in METRICS]:
        raise InputError(f"metrics: {unknown[0]} is unknown; known are {', '.join(METRICS)}")
    sources = {name: _Source(name, corpus, config) for name, corpus in corpora.items()}
    run = _Run(metrics, config, tools, sources)
    return {name: run.report(source) for name, source in sources.items()}


class _Source:
    """One corpus: in memory where it is small enough, else sampled again for every draw."""

    def __init__(self, name: str, corpus: Corpus | Sequence[str], config: MetricsConfig):
        self.name, self._corpus = name, corpus
        if isinstance(corpus, Sequence):
            self.texts = list(corpus)
            head = [text.encode("utf-8", "surrogatepass").hex() for text in self.texts[:1000]]
            self.fingerprint = content_hash([*head, len(self.texts)])
            self.in_memory = True
        else:
            self.texts = [document.text for document in corpus.sample(config.pool_documents + 1, seed=config.seed)]
            self.fingerprint = corpus.fingerprint()
            self.in_memory = len(self.texts) <= config.pool_documents
        if not self.texts:
            raise InputError(f"{name}: holds no document; check the source and its settings")

    @functools.cached_property
    def documents(self) -> int:
        """Number of documents; counted where they are not all in memory."""
        return len(self.texts) if self.in_memory else sum(1 for _ in self._corpus)

    def sample(self, count: int, seed: int) -> list[str]:
        """A new sample of a corpus that is not in memory."""
        assert not isinstance(self._corpus, Sequence)
        return [document.text for document in self._corpus.sample(count, seed=seed)]


class _Run:
    """What all corpora of a run share: draw size, control length, embedding space and clusters; measures by them."""

    def __init__(self, metrics: Sequence[str], config: MetricsConfig, tools: Tools, sources: Mapping[str, _Source]):
        self.metrics, self.config, self.tools = metrics, config, tools
        self.stages = tuple(dict.fromkeys(METRICS[name].stage for name in metrics))
        if "perplexity" in self.stages and tools.model is None:
            raise InputError("metrics: perplexity needs a model; give one in tools")
        self.reads = {STAGES[stage].reads for stage in self.stages}
        self.unspaced = {name: unspaced_share(source.texts[:_FIT_DOCUMENTS]) for name, source in sources.items()}
        for name, share in self.unspaced.items():
            if config.words == "pieces" and "words" in self.reads and share > MOST_UNREADABLE:
                raise InputError(
                    f"baseline.words=pieces: {share:.0%} of {name} is in scripts without spaces, where sentences "
                    "would be single words; take baseline.words=written"
                )
        smallest = min(
            len(source.texts) if source.in_memory else config.pool_documents * 2 for source in sources.values()
        )
        self.draws = config.draws if smallest >= _FEWEST else 1
        half = max(1, smallest // 2) if self.draws > 1 else smallest
        self.documents = min(half, config.draw_documents or half)
        if config.draw_documents and smallest == 2 * config.pool_documents:  # no corpus is in memory
            self.documents = config.draw_documents
        self.embedder = tools.embedder
        if "vectors" in self.reads and self.embedder is None:
            fit = [text for source in sources.values() for text in source.texts[:_FIT_DOCUMENTS]]
            self.embedder = TfidfSvd(fit, dimensions=config.dimensions, seed=config.seed)
        self.control_words, self.control_documents = self._control(sources) if config.control else (0, 0)
        self.codebook = self._fit_clusters(sources) if "kmeans" in self.stages else None
        if self.codebook is None:
            self.stages = tuple(stage for stage in self.stages if stage != "kmeans")
        self._settings = StageSettings(
            pairs=config.pairs,
            seed=config.seed,
            occupancy=self.codebook.occupancy if self.codebook else None,
            threads=config.threads,
        )
        self._progress: ProgressDisplay | None = None

    def _control(self, sources: Mapping[str, _Source]) -> tuple[int, int]:
        """Words that controlled documents are cut to, and documents of a draw; zeros where no length is possible."""
        lengths = {name: split_words(source.texts[:_FIT_DOCUMENTS]).lengths for name, source in sources.items()}
        words = self.config.control_words
        if words is None:
            words = min(_MOST_CONTROL_WORDS, *(int(np.median(counts)) for counts in lengths.values()))
        if words < 1:
            return 0, 0
        least = min(int((lengths[name] >= words).mean() * len(source.texts)) for name, source in sources.items())
        documents = least // 2 if self.draws > 1 else least
        return (words, min(documents, self.config.draw_documents or documents)) if documents >= 1 else (0, 0)

    def _fit_clusters(self, sources: Mapping[str, _Source]) -> Codebook | None:
        """Clusters fitted to equally many documents of each corpus; None where no document has content."""
        assert self.embedder is not None
        each = min(_FIT_DOCUMENTS * 5, *(len(source.texts) for source in sources.values()))
        vectors = unit_rows(np.concatenate([self.embedder.embed(source.texts[:each]) for source in sources.values()]))
        if not len(vectors):
            return None
        clusters = min(self.config.clusters or default_clusters(max(self.documents, len(vectors))), len(vectors))
        return Codebook.fit(vectors, clusters, seed=self.config.seed)

    def prepare(self, texts: Sequence[str], costs: Costs) -> DocumentFeatures:
        """The features of texts that the chosen metrics read."""
        parts: dict[str, Any] = {"texts": texts}
        count, threads = len(texts), self.config.threads
        if {"words", "folded"} & self.reads:
            with metered(costs, "splitting into words", count):
                if "words" in self.reads:
                    parts["words"] = split_words(texts, self.config.words, threads=threads)
                if "folded" in self.reads:
                    parts["folded"] = split_words(texts, "folded", threads=threads)
        if self.tools.count_tokens is not None and "context_length_tokens" in self.metrics:
            with metered(costs, "counting tokens", count):
                parts["tokens"] = self.tools.count_tokens(texts)
        if "vectors" in self.reads and (embedder := self.embedder):
            with metered(costs, f"embedding by {embedder.label}", count, lambda: embedder.cost_usd):
                parts["vectors"] = embedder.embed(texts)
        larger = self.tools.larger_model if "perplexity_gap" in self.metrics else None
        for name, model in {"nats": self.tools.model, "larger_nats": larger}.items():
            if model is not None and "nats" in self.reads:
                with metered(costs, f"scoring by {model.label}", count):
                    parts[name] = document_nats(texts, model, stride=self.config.stride_tokens)
        return DocumentFeatures(**parts)

    def values(self, sample: DocumentFeatures, costs: Costs, seed: int) -> Figures:
        """The chosen metrics of one draw."""
        figures: Figures = {}
        settings = replace(self._settings, seed=seed)
        for stage in self.stages:
            with metered(costs, stage, len(sample.texts)):
                figures |= STAGES[stage].measure(sample, settings)
            if self._progress:
                self._progress.advance()
        return {name: figures.get(name) for name in self.metrics}

    def report(self, source: _Source) -> MetricsReport:
        """Measures one corpus."""
        log.info("measuring %s: %d draws of %s documents", source.name, self.draws, f"{self.documents:,}")
        costs: Costs = []
        warnings: list[str] = []
        rounds = self.draws * (2 if self.control_documents else 1)
        self._progress = ProgressDisplay(f"{source.name}: stages measured", rounds * len(self.stages))
        if self.draws < self.config.draws:
            warnings.append(f"a corpus of fewer than {_FEWEST} documents: figures of all documents, without intervals")
        pool = self.prepare(source.texts, costs) if source.in_memory else None
        metrics = self._figures(source, pool, self.documents, costs, None)
        controlled: dict[str, Figure] = {}
        if self.control_documents:
            prepared = self.prepare(_shortened(source.texts, self.control_words), []) if source.in_memory else None
            controlled = self._figures(source, prepared, self.control_documents, [], self.control_words)
        elif self.config.control:
            warnings.append(
                "no length that enough documents of every corpus have: nothing was measured at equal length"
            )
        self._progress.close()
        self._progress = None  # of this corpus alone
        first = source.texts[: self.documents]
        dependence: dict[str, dict[str, Any]] = {}
        if self.config.dependence:
            dependence = _size_dependence(pool or self.prepare(first, []), self, costs)
        if self.unspaced[source.name] > MOST_UNREADABLE:
            warnings.append(
                f"{self.unspaced[source.name]:.0%} of the text is in scripts without spaces; its words are those of a "
                "dictionary, and figures of words compare only with those of the same language"
            )
        compatible: dict[str, float] = {}
        if self.config.compatible:
            compatible, left_out = compatible_figures(first)
            warnings += left_out
        return MetricsReport(
            metrics=metrics,
            controlled=controlled,
            compatible=compatible,
            dependence=dependence,
            cost=costs,
            corpus={
                "name": source.name,
                "fingerprint": source.fingerprint,
                "documents": len(source.texts) if source.in_memory else None,
            },
            parameters=report_parameters(
                self.config,
                draws=self.draws,
                draw_documents=self.documents,
                control_words=self.control_words,
                control_documents=self.control_documents,
                clusters=len(self.codebook.centres) if self.codebook else 0,
                embedder=self.embedder.label if self.embedder else None,
            ),
            seed=self.config.seed,
            warnings=warnings,
        )

    def _figures(
        self, source: _Source, pool: DocumentFeatures | None, documents: int, costs: Costs, control_words: int | None
    ) -> dict[str, Figure]:
        """Every metric over the draws: of a prepared pool, or of new samples where the corpus is not in memory."""
        values = []
        for number in range(self.draws):
            seed = self.config.seed * 1_000_003 + number
            draw_costs = costs if number == 0 else []
            if pool is not None:
                order = np.random.default_rng([self.config.seed, 0xD2A3, number]).permutation(len(pool.texts))
                sample = pool.take(order[: min(documents, len(order))])
            else:
                texts = source.sample(documents if control_words is None else 3 * documents, seed=seed + 1)
                if control_words is not None:
                    texts = _shortened(texts, control_words)[:documents]
                sample = self.prepare(texts, draw_costs)
            values.append(self.values(sample, draw_costs, seed))
        total = len(pool.texts) if pool is not None else source.documents
        figures = {}
        for name in self.metrics:
            defined = [value for draw in values if (value := draw[name]) is not None]
            if defined:
                figures[name] = Figure.of_draws(defined, documents / total)
        return figures


def _shortened(texts: Sequence[str], words: int) -> list[str]:
    """The first `words` words of every text that has at least so many."""
    return [short for text in texts if (short := first_words(text, words)) is not None]


def _size_dependence(pool: DocumentFeatures, run: _Run, costs: Costs) -> dict[str, dict[str, Any]]:
    """Metrics at doubled sizes and lengths; appends the costs of the sizes.

    Lengths are for lexical metrics only, on documents of at least the longest length, cut to each: models and paid
    embeddings would have to read the shorter texts again.

    Returns:
      By metric, `documents` and `words`, each with `sizes`, `values` and `slope`: that of log value over log size, 0
      where the metric does not depend on it, 1 where it grows in proportion; None where a value is not above 0.
    """
    most, seed = min(run.documents, _MOST_DOCUMENTS, len(pool.texts)), run.config.seed
    sizes = [most >> step for step in reversed(range(_STEPS)) if most >> step >= 4]
    order = np.random.default_rng([seed, 0xDE9]).permutation(len(pool.texts))
    by_size = [run.values(pool.take(order[:size]), costs, seed) for size in sizes]
    lexical = [
        name
        for name in run.metrics
        if METRICS[name].group == "lexical" and not name.startswith(("context", "compression"))
    ]
    lengths, by_length = _length_dependence(pool, lexical, most, seed)
    result = {name: {"documents": _dependence_on(sizes, [values[name] for values in by_size])} for name in run.metrics}
    for name in lexical if lengths else ():
        result[name]["words"] = _dependence_on(lengths, [values[name] for values in by_length])
    return result


def _length_dependence(
    pool: DocumentFeatures, lexical: Sequence[str], most_documents: int, seed: int
) -> tuple[list[int], list[Figures]]:
    splits = [words for words in (pool.words, pool.folded) if words is not None]
    if not lexical or not splits:
        return [], []
    longest = int(np.median(splits[0].lengths))
    lengths = [longest >> step for step in reversed(range(_STEPS)) if longest >> step >= 8]
    chosen = np.flatnonzero(np.all([words.lengths >= longest for words in splits], axis=0))[:most_documents]
    if len(lengths) < 2 or len(chosen) < 4:
        return [], []
    long_texts, settings = pool.take(chosen), StageSettings(pairs=_DEPENDENCE_PAIRS, seed=seed)
    by_length = []
    for length in lengths:
        shortened = DocumentFeatures(
            texts=long_texts.texts,
            words=long_texts.words and long_texts.words.first(length),
            folded=long_texts.folded and long_texts.folded.first(length),
        )
        values: Figures = {}
        for stage in {METRICS[name].stage for name in lexical}:
            values |= STAGES[stage].measure(shortened, settings)
        by_length.append(values)
    return lengths, by_length


def _dependence_on(sizes: Sequence[int], values: Sequence[float | None]) -> dict[str, Any]:
    gradient = None
    if len(sizes) > 1 and all(value is not None and value > 0 for value in values):
        x, y = np.log(sizes), np.log(np.array(values, float))
        x = x - x.mean()
        gradient = float(x @ y / (x @ x))
    return {
        "sizes": list(sizes),
        "values": list(values),
        "slope": gradient if gradient is not None and math.isfinite(gradient) else None,
    }


@contextlib.contextmanager
def metered(costs: Costs, stage: str, documents: int, dollars: Callable[[], float] = lambda: 0.0) -> Iterator[None]:
    """Appends the cost of the block: seconds, CPU seconds of all threads, and the rise of memory to its peak.

    Resident memory is read fifty times a second, so that shorter peaks are missed.
    """
    import psutil

    resident = psutil.Process().memory_info
    base, paid = resident().rss, dollars()
    peak, done = [base], threading.Event()

    def watch() -> None:
        while not done.wait(0.02):
            peak[0] = max(peak[0], resident().rss)

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    began, cpu = time.perf_counter(), time.process_time()
    try:
        yield
    finally:
        seconds, cpu_seconds = time.perf_counter() - began, time.process_time() - cpu
        done.set()
        watcher.join()
        costs.append(
            {
                "stage": stage,
                "documents": documents,
                "seconds": seconds,
                "cpu_seconds": cpu_seconds,
                "memory_bytes": max(peak[0], resident().rss) - base,
                "dollars": dollars() - paid,
            }
        )
