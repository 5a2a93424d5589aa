"""Measures corpora by the baseline metrics: the same draws, cuts and rulers for all, so that their figures can be
compared.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
import functools
import logging
from typing import Any

import numpy as np

from diversity_jax.core.errors import InputError
from diversity_jax.core.progress import ProgressDisplay
from diversity_jax.corpus import Corpus
from diversity_jax.metrics import compatible
from diversity_jax.metrics.card import Figure, MetricsCard
from diversity_jax.metrics.embedders import Embedder, TfidfSvd
from diversity_jax.metrics.embedding import Codebook, default_clusters, unit_rows
from diversity_jax.metrics.perplexity import CausalModel, document_nats
from diversity_jax.metrics.registry import METRICS, MetricsConfig
from diversity_jax.metrics.sample import READS, STAGES, Ruler, Sample, metered
from diversity_jax.metrics.sensitivity import dependence
from diversity_jax.metrics.text import first_words, split_words

log = logging.getLogger(__name__)

_FEWEST = 20  # documents; below, half a corpus says nothing about its spread
_MOST_CONTROL_WORDS = 256
_FIT_DOCUMENTS = 20_000  # of each corpus, for the TF-IDF space and the clusters


@dataclass(frozen=True, kw_only=True)
class Tools:
    """What the roof has to open, because it is paid, heavy or lives on another floor; None where no chosen metric needs
    it.

    Attributes:
      embedder: None for TF-IDF fitted to the corpora.
      model, larger_model: for perplexity.
      count_tokens: texts to the number of tokens of each.
    """

    embedder: Embedder | None = None
    model: CausalModel | None = None
    larger_model: CausalModel | None = None
    count_tokens: Callable[[Sequence[str]], np.ndarray] | None = None


def measure(
    corpora: Mapping[str, Corpus | Sequence[str]], metrics: Sequence[str], config: MetricsConfig, tools: Tools = Tools()
) -> dict[str, MetricsCard]:
    """The metrics of every corpus, in comparable draws.

    Args:
      corpora: by name; a corpus, or its texts.
      metrics: names of `settings.METRICS`, such as `chosen_metrics` gives.

    Raises:
      InputError: no corpus, an empty one, an unknown metric, or one whose tool is missing.
    """
    if not corpora or not metrics:
        raise InputError("metrics: nothing to measure; name at least one corpus and one metric")
    if unknown := [name for name in metrics if name not in METRICS]:
        raise InputError(f"metrics: {unknown[0]} is unknown; known are {', '.join(METRICS)}")
    sources = {name: _Source(name, corpus, config) for name, corpus in corpora.items()}
    run = _Run(metrics, config, tools, sources)
    return {name: run.card(source) for name, source in sources.items()}


class _Source:
    """One corpus: in memory where it is small enough, else sampled anew for every draw."""

    def __init__(self, name: str, corpus: Corpus | Sequence[str], config: MetricsConfig):
        self.name, self._corpus = name, corpus
        if hasattr(corpus, "sample"):
            self.texts = [document.text for document in corpus.sample(config.pool_documents + 1, seed=config.seed)]
            self.fingerprint = corpus.fingerprint()
        else:
            from diversity_jax.core.files import content_hash

            self.texts = list(corpus)
            self.fingerprint = content_hash(
                [text.encode("utf-8", "surrogatepass").hex() for text in self.texts[:1000]] + [len(self.texts)]
            )
        self.is_whole = len(self.texts) <= config.pool_documents or not hasattr(corpus, "sample")
        if not self.texts:
            raise InputError(f"{name}: holds no document; check the source and its settings")
        self.known_documents = len(self.texts) if self.is_whole else None

    @functools.cached_property
    def documents(self) -> int:
        """How many there are; counted where they are not all in memory."""
        return len(self.texts) if self.is_whole else sum(1 for _ in self._corpus)

    def fresh(self, count: int, seed: int) -> list[str]:
        return [document.text for document in self._corpus.sample(count, seed=seed)]


class _Run:
    """What all corpora have in common: draw size, cut, space and clusters."""

    def __init__(self, metrics: Sequence[str], config: MetricsConfig, tools: Tools, sources: Mapping[str, _Source]):
        self.metrics, self.config, self.tools = metrics, config, tools
        self.stages = tuple(dict.fromkeys(METRICS[name].stage for name in metrics))
        for stage, tool in (("perplexity", tools.model),):
            if stage in self.stages and tool is None:
                raise InputError(f"metrics: {stage} needs a model; give one in tools")
        self.reads = {part for part, stages in READS.items() if set(stages) & set(self.stages)}
        smallest = min(
            len(source.texts) if source.is_whole else config.pool_documents * 2 for source in sources.values()
        )
        self.draws = config.draws if smallest >= _FEWEST else 1
        half = max(1, smallest // 2) if self.draws > 1 else smallest
        self.documents = min(half, config.draw_documents or half)
        if any(not source.is_whole for source in sources.values()) and config.draw_documents:
            self.documents = (
                min(config.draw_documents, half) if smallest < config.pool_documents * 2 else config.draw_documents
            )
        self.embedder = tools.embedder
        if "vectors" in self.reads and self.embedder is None:
            fit = [text for source in sources.values() for text in source.texts[:_FIT_DOCUMENTS]]
            self.embedder = TfidfSvd(fit, dimensions=config.dimensions, seed=config.seed)
        self.control_words, self.control_documents = self._control(sources) if config.control else (0, 0)
        self._fit_clusters(sources)
        self._progress: ProgressDisplay | None = None

    def _control(self, sources: Mapping[str, _Source]) -> tuple[int, int]:
        """Words to cut at, and documents of a draw; zeros where no length leaves enough documents."""
        lengths = {
            name: split_words(source.texts[:_FIT_DOCUMENTS], "written").lengths / 1.0
            for name, source in sources.items()
        }
        words = self.config.control_words
        if words is None:
            words = min(_MOST_CONTROL_WORDS, *(int(np.median(one)) for one in lengths.values()))
        if words < 1:
            return 0, 0
        counts = [int((lengths[name] >= words).mean() * len(source.texts)) for name, source in sources.items()]
        least = min(counts)
        documents = least // 2 if self.draws > 1 else least
        return (words, min(documents, self.config.draw_documents or documents)) if documents >= 1 else (0, 0)

    def _fit_clusters(self, sources: Mapping[str, _Source]) -> None:
        self.ruler = Ruler(pairs=self.config.pairs, seed=self.config.seed, threads=self.config.threads)
        if "kmeans" not in self.stages:
            return
        each = min(_FIT_DOCUMENTS * 5, *(len(source.texts) for source in sources.values()))
        vectors = np.concatenate([self.embedder.embed(source.texts[:each]) for source in sources.values()])
        vectors = unit_rows(vectors)
        if not len(vectors):
            self.stages = tuple(stage for stage in self.stages if stage != "kmeans")
            return
        clusters = min(self.config.clusters or default_clusters(max(self.documents, len(vectors))), len(vectors))
        codebook = Codebook.fit(vectors, clusters, seed=self.config.seed)
        self.ruler = Ruler(
            pairs=self.config.pairs, seed=self.config.seed, codebook=codebook, threads=self.config.threads
        )

    def prepare(self, texts: Sequence[str], costs: list[dict[str, Any]]) -> Sample:
        """A sample with everything that the chosen metrics read."""
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
        if "vectors" in self.reads:
            with metered(costs, f"embedding by {self.embedder.label}", count, lambda: self.embedder.cost_usd):
                parts["vectors"] = self.embedder.embed(texts)
        models = {"nats": self.tools.model, "larger_nats": self.tools.larger_model} if "nats" in self.reads else {}
        for name, model in models.items():
            if model is not None and (name == "nats" or "perplexity_gap" in self.metrics):
                with metered(costs, f"scoring by {model.label}", count):
                    parts[name] = document_nats(texts, model, stride=self.config.stride_tokens)
        return Sample(**parts)

    def values(self, sample: Sample, costs: list[dict[str, Any]], seed: int) -> dict[str, float | None]:
        """The chosen metrics of one draw."""
        found: dict[str, float | None] = {}
        ruler = Ruler(pairs=self.ruler.pairs, seed=seed, codebook=self.ruler.codebook, threads=self.ruler.threads)
        for stage in self.stages:
            with metered(costs, stage, len(sample.texts)):
                found |= STAGES[stage](sample, ruler)
            if self._progress:
                self._progress.advance()
        return {name: found.get(name) for name in self.metrics}

    def card(self, source: _Source) -> MetricsCard:
        """Measures one corpus."""
        log.info("measuring %s: %d draws of %s documents", source.name, self.draws, f"{self.documents:,}")
        costs: list[dict[str, Any]] = []
        warnings: list[str] = []
        rounds = self.draws * (2 if self.control_documents else 1)
        self._progress = ProgressDisplay(f"{source.name}: stages measured", rounds * len(self.stages))
        if self.draws < self.config.draws:
            warnings.append(f"a corpus of fewer than {_FEWEST} documents: figures of all documents, without intervals")
        pool = self.prepare(source.texts, costs) if source.is_whole else None
        metrics = self._figures(source, pool, self.documents, costs, None)
        controlled: dict[str, Figure] = {}
        if self.control_documents:
            cut = [text for text in (first_words(one, self.control_words) for one in source.texts) if text is not None]
            prepared = self.prepare(cut, []) if source.is_whole else None
            controlled = self._figures(source, prepared, self.control_documents, [], self.control_words)
        elif self.config.control:
            warnings.append(
                "no length that enough documents of every corpus have: nothing was measured at equal length"
            )
        self._progress.close()
        self._progress = None  # how many stages the next takes is known only there
        first = source.texts[: self.documents]
        # Figures under models and paid embeddings are followed over sizes only, since shorter texts would have to be
        # paid again.
        moves, grown = (
            dependence(pool or self.prepare(first, []), self, seed=self.config.seed)
            if self.config.dependence
            else ({}, [])
        )
        return MetricsCard(
            metrics=metrics,
            controlled=controlled,
            compatible=_compatible(first, warnings) if self.config.compatible else {},
            dependence=moves,
            cost=costs + grown,
            corpus={"name": source.name, "fingerprint": source.fingerprint, "documents": source.known_documents},
            parameters=self.parameters(),
            seed=self.config.seed,
            warnings=warnings,
        )

    def parameters(self) -> dict[str, Any]:
        """Settings and what was derived from all corpora."""
        clusters = 0 if self.ruler.codebook is None else len(self.ruler.codebook.centres)
        kept = {
            name: value
            for name, value in asdict(self.config).items()
            if name not in ("threads", "embedder_base_url", "seed")
        }
        derived = {
            "draws": self.draws,
            "draw_documents": self.documents,
            "control_words": self.control_words,
            "control_documents": self.control_documents,
            "clusters": clusters,
            "embedder": self.embedder.label if self.embedder else None,
        }
        return kept | derived

    def _figures(
        self, source: _Source, pool: Sample | None, documents: int, costs: list[dict[str, Any]], cut_words: int | None
    ) -> dict[str, Figure]:
        """Every metric over the draws: from a prepared pool, or from fresh samples of a corpus that is too large for
        one.
        """
        values = []
        for number in range(self.draws):
            seed = self.config.seed * 1_000_003 + number
            own: list[dict[str, Any]] = costs if number == 0 else []
            if pool is not None:
                order = np.random.default_rng([self.config.seed, 0xD2A3, number]).permutation(len(pool.texts))
                sample = pool.take(order[: min(documents, len(order))])
            else:
                texts = source.fresh(documents if cut_words is None else 3 * documents, seed=seed + 1)
                if cut_words is not None:
                    texts = [text for text in (first_words(one, cut_words) for one in texts) if text is not None][
                        :documents
                    ]
                sample = self.prepare(texts, own)
            values.append(self.values(sample, own, seed))
        total = len(pool.texts) if pool is not None else source.documents
        figures = {}
        for name in self.metrics:
            seen = [one[name] for one in values if one[name] is not None]
            if seen:
                figures[name] = Figure.of_draws(seen, documents / total)
        return figures


def _compatible(texts: Sequence[str], warnings: list[str]) -> dict[str, float]:
    """The `diversity` package's figures of some texts; those it cannot give are left out with a warning."""
    figures = {
        "ngram_diversity_score": lambda: compatible.ngram_diversity_score(texts),
        "self_repetition_score": lambda: compatible.self_repetition_score(texts),
        "compression_ratio_gzip": lambda: compatible.compression_ratio(texts, "gzip"),
        "compression_ratio_xz": lambda: compatible.compression_ratio(texts, "xz"),
        "homogenization_score_rougel": lambda: compatible.homogenization_score(texts),
    }
    found = {}
    for name, figure in figures.items():
        try:
            found[name] = figure()
        except InputError as error:
            warnings.append(f"{name} is left out: {error}")
    return found
