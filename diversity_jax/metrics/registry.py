"""Settings and registry of the baseline metrics. A metric registers itself beside its function, with `stage`."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
import math
from typing import Any

import numpy as np

from diversity_jax.core.config import check_kinds, check_least
from diversity_jax.core.errors import InputError
from diversity_jax.embedders import EMBEDDERS
from diversity_jax.metrics.text import FORMS, Words

GROUPS = ("lexical", "embedding", "perplexity")
_COUNTS = ("draws", "draw_documents", "pool_documents", "control_words", "pairs", "dimensions", "clusters")
_LEAST = dict.fromkeys((*_COUNTS, "context_tokens", "stride_tokens", "threads"), 1)
_LEAST |= dict.fromkeys(("embedder_dollars_per_million_tokens", "max_dollars"), 0)


@dataclass(frozen=True, kw_only=True)
class MetricsConfig:
    """Settings of the baseline metrics, the same for all corpora of a run.

    Attributes:
      draws: samples that each figure is measured on; its interval comes from their spread. 1 gives figures without
        intervals.
      draw_documents: documents of a draw, at most; by default half of the smallest corpus. The paper: 10 draws of
        1,000,000.
      pool_documents: a corpus of at most so many is read once and drawn from in memory; a larger one is sampled anew
        for every draw.
      control: measure each figure a second time with the length held equal: documents of at least `control_words`
        words, cut to so many, and the same number of them from every corpus.
      control_words: None takes the largest number that half the documents of every corpus have, at most 256.
      dependence: measure also smaller draws and shorter documents, to print how much each figure moves with them.
      words: form of words for repetition and n-gram diversity: `written`, `folded` or `pieces` (see `metrics.text`).
      pairs: of documents, drawn for ROUGE-L and self-BLEU in every draw.
      embedder: `tfidf`, `st:NAME_OR_PATH`, `openai:MODEL` or `llama:FOLDER`.
      embedder_base_url: of an OpenAI-compatible server, such as http://127.0.0.1:8000/v1.
      embedder_dollars_per_million_tokens, max_dollars: price of the embeddings endpoint, and what may be spent on it.
      dimensions: of the TF-IDF space.
      clusters: of K-means; None for one per ten documents, at most 10,000.
      model, larger_model: causal models for perplexity and, with both, its gap: a training run, an import, a Hugging
        Face folder or name.
      vocabulary: tokenizer of `model`s and `llama:` embedders that are our own (default: what their folder names), and
        of the token count.
      context_tokens, stride_tokens: window of perplexity over long documents, and its step; None for the model's own
        and half of it.
      compatible: also the figures of the `diversity` package, to the digits it prints.
      runner: of Apache Beam (DirectRunner, DataflowRunner, FlinkRunner, SparkRunner, ...): measure the lexical metrics
        that merge over workers on the WHOLE corpus instead of on draws; see `metrics.beam`.
      runner_options: for Beam, such as ("--project=P", "--region=R", "--temp_location=gs://B/tmp").
      threads: that split, sort and compress at once; None for as many as there are cores.
      seed: of every draw.
    """

    draws: int = 10
    draw_documents: int | None = None
    pool_documents: int = 200_000
    control: bool = True
    control_words: int | None = None
    dependence: bool = True
    words: str = "written"
    pairs: int = 2000
    embedder: str = "tfidf"
    embedder_base_url: str | None = None
    embedder_dollars_per_million_tokens: float = 0.0
    max_dollars: float | None = None
    dimensions: int = 256
    clusters: int | None = None
    model: str | None = None
    larger_model: str | None = None
    vocabulary: str | None = None
    context_tokens: int | None = None
    stride_tokens: int | None = None
    compatible: bool = False
    runner: str | None = None
    runner_options: tuple[str, ...] = ()
    threads: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        check_kinds(self, "baseline.")
        check_least(self, "baseline.", **_LEAST)
        if self.words not in FORMS:
            raise InputError(f"baseline.words={self.words!r}: choose one of {', '.join(FORMS)}")
        kind, _, name = self.embedder.partition(":")
        if self.embedder != "tfidf" and (kind not in EMBEDDERS or not name):
            raise InputError(
                f"baseline.embedder={self.embedder!r}: choose tfidf, st:NAME_OR_PATH, openai:MODEL or llama:FOLDER"
            )
        if self.larger_model and not self.model:
            raise InputError("baseline.larger_model is set and baseline.model is not; the gap needs both")


@dataclass(frozen=True, kw_only=True, eq=False)
class Nats:
    """Negative log-likelihoods of documents under a model: `nats`, `tokens` and `utf8_bytes` of each, [documents]."""

    nats: np.ndarray
    tokens: np.ndarray
    utf8_bytes: np.ndarray

    def take(self, documents: np.ndarray) -> "Nats":
        """The documents of these numbers."""
        return Nats(nats=self.nats[documents], tokens=self.tokens[documents], utf8_bytes=self.utf8_bytes[documents])

    def perplexity(self) -> float | None:
        """exp(nats per token), over all tokens of all documents; None without a token."""
        tokens = self.tokens.sum()
        return float(np.exp(min(self.nats.sum() / tokens, 700.0))) if tokens else None

    def bits_per_byte(self) -> float | None:
        """Bits per byte of UTF-8, comparable between models with different tokenizers; None without a byte."""
        size = self.utf8_bytes.sum()
        return float(self.nats.sum() / math.log(2) / size) if size else None


@dataclass(frozen=True, kw_only=True, eq=False)
class DocumentFeatures:
    """Documents with the features that the chosen metrics read.

    A stage reads only the feature that it was registered with; features that no chosen stage reads are None.

    Attributes:
      texts: the documents.
      words: in the form of `baseline.words`, for repetition and n-grams.
      folded: words in the form `folded`, for lexical richness and overlap.
      vectors: float32 [documents, D].
      nats, larger_nats: under `baseline.model` and `baseline.larger_model`.
      tokens: tokens of each document, int64 [documents].
    """

    texts: list[str]
    words: Words = None  # type: ignore[assignment]  # set where a chosen stage reads it
    folded: Words = None  # type: ignore[assignment]
    vectors: np.ndarray = None  # type: ignore[assignment]
    nats: Nats = None  # type: ignore[assignment]
    larger_nats: Nats | None = None
    tokens: np.ndarray | None = None

    def take(self, documents: np.ndarray) -> "DocumentFeatures":
        """The documents of these numbers, in this order."""
        parts: dict[str, Any] = {"texts": [self.texts[number] for number in documents.tolist()]}
        for name in ("words", "folded", "nats", "larger_nats"):
            part = getattr(self, name)
            parts[name] = part and part.take(documents)
        for name in ("tokens", "vectors"):
            part = getattr(self, name)
            parts[name] = None if part is None else part[documents]
        return DocumentFeatures(**parts)


@dataclass(frozen=True, kw_only=True, eq=False)
class StageSettings:
    """Settings of stages, the same for all corpora of a run.

    Attributes:
      pairs, seed: of the pairs of documents that are drawn.
      occupancy: returns the documents in each of the clusters fitted to all corpora, int64 [clusters].
      threads: number of them; None for as many as there are cores.
    """

    pairs: int
    seed: int
    occupancy: Callable[[np.ndarray], np.ndarray] | None = None
    threads: int | None = None


Figures = dict[str, float | None]
"""Values by metric; None where a draw does not define one."""
Measure = Callable[[DocumentFeatures, StageSettings], Figures]


@dataclass(frozen=True, kw_only=True)
class Metric:
    """One figure of a report.

    Attributes:
      title: in tables.
      group: `lexical`, `embedding` or `perplexity`.
      stage: the stage that computes and times it, maybe with other metrics.
      sign: 1 where more means more diverse, -1 where less does, 0 where the figure alone says nothing of diversity.
      note: its definition in a few words.
      needs: fields of `MetricsConfig` that name the models or the tokenizer it cannot be measured without.
      mergeable: workers can measure it on parts of a corpus and add up the results.
    """

    title: str
    group: str
    stage: str
    sign: int
    note: str
    needs: tuple[str, ...] = ()
    mergeable: bool = False


@dataclass(frozen=True, kw_only=True)
class Stage:
    """A function that computes one or more metrics, and the field of `DocumentFeatures` that it reads."""

    reads: str
    measure: Measure


METRICS: dict[str, Metric] = {}
STAGES: dict[str, Stage] = {}


def stage(
    name: str, group: str, reads: str, metrics: Mapping[str, Sequence[Any]], *, mergeable: bool = False
) -> Callable[[Measure], Measure]:
    """Registers the decorated function as the stage that computes `metrics`.

    Args:
      reads: the field of `DocumentFeatures` that it needs: `texts`, `words`, `folded`, `vectors` or `nats`.
      metrics: by name, (title, sign, note, *needs) of `Metric`; the function returns a value for each of them.
      mergeable: `metrics.beam` measures these too, except those that need a model or a tokenizer.
    """

    def register(measure: Measure) -> Measure:
        STAGES[name] = Stage(reads=reads, measure=measure)
        for key, (title, sign, note, *needs) in metrics.items():
            METRICS[key] = Metric(
                title=title, group=group, stage=name, sign=sign, note=note, needs=tuple(needs),
                mergeable=mergeable and not needs,
            )  # fmt: skip
        return measure

    return register


def single_metric(
    name: str, group: str, reads: str, about: tuple[str, int, str],
    value: Callable[[DocumentFeatures, StageSettings], float | None],
    *, stage_name: str | None = None, mergeable: bool = False,
) -> None:  # fmt: skip
    """Registers a metric, `about` being its (title, sign, note), that is a stage of its own."""
    stage(stage_name or name, group, reads, {name: about}, mergeable=mergeable)(
        lambda sample, settings: {name: value(sample, settings)}
    )


def chosen_metrics(asked: str, config: MetricsConfig) -> tuple[str, ...]:
    """Names of the metrics that `--config.metrics=...` selects, in the order of `METRICS`.

    Args:
      asked: `all`, or names joined by commas: of metrics, of groups (`lexical`, `embedding`, `perplexity`) or of stages
        (`vendi`, ...). `all` leaves out what needs a model or a tokenizer that is not named.

    Raises:
      InputError: an unknown name, or a metric that needs a model or tokenizer that is not named.
    """

    def missing(name: str) -> bool:
        return not all(getattr(config, field) for field in METRICS[name].needs)

    chosen = set()
    for word in filter(None, (word.strip() for word in asked.split(","))):
        names = [name for name, metric in METRICS.items() if word in ("all", name, metric.group, metric.stage)]
        if not names:
            raise InputError(
                f"metrics={word}: is unknown; choose all, {', '.join(GROUPS)}, or some of {', '.join(METRICS)}"
            )
        usable = [name for name in names if not missing(name)]
        if not usable:
            settings = " and ".join(f"baseline.{field}" for field in METRICS[names[0]].needs)
            raise InputError(f"metrics={word}: needs {settings}; set it, or leave {word} out")
        chosen |= set(usable)
    return tuple(name for name in METRICS if name in chosen)
