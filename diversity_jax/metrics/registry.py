"""The table of baseline metrics. A metric registers itself beside its function, with `stage`."""

from collections.abc import Callable
from dataclasses import dataclass
import math
from typing import Any

import numpy as np

from diversity_jax.core.errors import InputError
from diversity_jax.metrics.config import MetricsConfig
from diversity_jax.metrics.text import Words

GROUPS = ("lexical", "embedding", "perplexity")


@dataclass(frozen=True, kw_only=True, eq=False)
class Nats:
    """What documents cost under a model: `nats`, `tokens` and `utf8_bytes` of each, [documents]."""

    nats: np.ndarray
    tokens: np.ndarray
    utf8_bytes: np.ndarray

    def take(self, documents: np.ndarray) -> "Nats":
        """These documents, by number."""
        return Nats(nats=self.nats[documents], tokens=self.tokens[documents], utf8_bytes=self.utf8_bytes[documents])

    def perplexity(self) -> float | None:
        """exp(nats per token), over all tokens of all documents; None without a token."""
        tokens = self.tokens.sum()
        return float(np.exp(min(self.nats.sum() / tokens, 700.0))) if tokens else None

    def bits_per_byte(self) -> float | None:
        """Bits per byte of UTF-8: comparable between models with different tokenizers; None without a byte."""
        size = self.utf8_bytes.sum()
        return float(self.nats.sum() / math.log(2) / size) if size else None


@dataclass(frozen=True, kw_only=True, eq=False)
class Sample:
    """Documents with everything that the chosen metrics read of them, made once.

    A stage asks only for the part that it registered for; the other parts are None where no chosen stage reads them.

    Attributes:
      texts: the documents.
      words: in the form for repetition and n-grams; `folded`: for richness and overlap.
      vectors: float32 [documents, D].
      nats, larger_nats: under the two models.
      tokens: tokens of each document, int64 [documents].
    """

    texts: list[str]
    words: Words = None  # type: ignore[assignment]  # set wherever a stage that reads it is chosen
    folded: Words = None  # type: ignore[assignment]
    vectors: np.ndarray = None  # type: ignore[assignment]
    nats: Nats = None  # type: ignore[assignment]
    larger_nats: Nats | None = None
    tokens: np.ndarray | None = None

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
class StageSettings:
    """What a stage measures by, the same for all corpora of a run.

    Attributes:
      pairs, seed: of the pairs of documents that are drawn.
      occupancy: vectors to the number of documents in each of the clusters fitted to all corpora, int64 [clusters].
      threads: that count and compress at once; None for as many as there are cores.
    """

    pairs: int
    seed: int
    occupancy: Callable[[np.ndarray], np.ndarray] | None = None
    threads: int | None = None


Figures = dict[str, float | None]
"""Values by metric; None where a draw does not define one."""
Measure = Callable[[Sample, StageSettings], Figures]


@dataclass(frozen=True, kw_only=True)
class Metric:
    """One figure of a scorecard.

    Attributes:
      title: as tables write it.
      group: `lexical`, `embedding` or `perplexity`.
      stage: what is computed in one go with it, and timed.
      sign: 1 where more means more diverse, -1 where less does, 0 where the figure says nothing of diversity by itself.
      note: what it is, in a few words.
      needs: fields of `MetricsConfig` that name the models or the tokenizer it cannot be measured without.
      mergeable: workers can measure it on parts of a corpus, and the parts add up.
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
    """What computes one or more metrics: the part of a `Sample` that it reads, and its function."""

    reads: str
    measure: Measure


METRICS: dict[str, Metric] = {}
STAGES: dict[str, Stage] = {}


def metric(title: str, sign: int, note: str, *, needs: tuple[str, ...] = ()) -> dict[str, Any]:
    """The fields of one metric in a call of `stage`; see `Metric`."""
    return {"title": title, "sign": sign, "note": note, "needs": needs}


def stage(
    name: str, group: str, reads: str, metrics: dict[str, dict[str, Any]], *, mergeable: bool = False
) -> Callable[[Measure], Measure]:
    """Registers the decorated function as the stage that computes `metrics`.

    Args:
      name: of the stage.
      group: one of `GROUPS`.
      reads: the field of `Sample` that must be there: `texts`, `words`, `folded`, `vectors` or `nats`.
      metrics: by name, what `metric` returns; the function answers a value for each of them.
      mergeable: `metrics.beam` measures these too.
    """

    def register(measure: Measure) -> Measure:
        STAGES[name] = Stage(reads=reads, measure=measure)
        for key, fields in metrics.items():
            METRICS[key] = Metric(group=group, stage=name, mergeable=mergeable and not fields["needs"], **fields)
        return measure

    return register


def single_metric(
    name: str,
    group: str,
    reads: str,
    about: tuple[str, int, str],
    value: Callable[[Sample, StageSettings], float | None],
    *,
    stage_name: str | None = None,
    mergeable: bool = False,
) -> None:
    """Registers a metric that is a stage of its own.

    Args:
      about: title, sign and note, as `metric` takes them.
      value: what a draw has.
      stage_name: the metric's own name by default.
    """
    stage(stage_name or name, group, reads, {name: metric(*about)}, mergeable=mergeable)(
        lambda sample, settings: {name: value(sample, settings)}
    )


def chosen_metrics(asked: str, config: MetricsConfig) -> tuple[str, ...]:
    """Names of the metrics that `--config.metrics=...` asks for, in the order of `METRICS`.

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
