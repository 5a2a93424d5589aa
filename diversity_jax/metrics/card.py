"""The baseline metrics of one corpus as a file: figures with intervals, how they move with size and length, and what
they cost.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
import functools
import math
import os
from typing import Any

import numpy as np

from diversity_jax.core import files
from diversity_jax.core.errors import InputError
from diversity_jax.metrics.config import MetricsConfig

VERSION = 1
KIND = "baseline_metrics"


@dataclass(frozen=True, kw_only=True)
class Figure:
    """One metric on one corpus.

    Attributes:
      value: mean over draws.
      low, high: 95 % interval for what more text of the same source would give at this draw size; None with a single
        draw.
      spread: standard deviation over draws, the paper's error bar; None with a single draw.
      standard_error: of `value`, what intervals and comparisons are made of; None with a single draw.
      draws: on how many the metric was defined.
    """

    value: float
    low: float | None = None
    high: float | None = None
    spread: float | None = None
    standard_error: float | None = None
    draws: int = 1

    @classmethod
    def of_draws(cls, values: Sequence[float], share: float) -> "Figure":
        """From the values of draws without replacement that each hold `share` of the corpus.

        Draws of one corpus overlap, so their spread s is less than that of independent ones: for a mean-like statistic
        s^2 = v (1/m - 1/N) with m documents of N. The mean over R draws then has variance v/N + s^2/R = s^2 (share / (1
        - share) + 1/R): what the corpus is itself a sample of, and what the draws add. At half of a corpus this is the
        delete-half jackknife (Shao and Wu 1989).
        """
        seen = np.asarray(values, np.float64)
        value = float(seen.mean())
        if len(seen) < 2 or share >= 1:
            return cls(value=value, draws=len(seen))
        from scipy.stats import t

        spread = float(seen.std(ddof=1))
        error = spread * math.sqrt(share / (1 - share) + 1 / len(seen))
        reach = float(t.ppf(0.975, len(seen) - 1)) * error
        return cls(
            value=value, low=value - reach, high=value + reach, spread=spread, standard_error=error, draws=len(seen)
        )


@dataclass(frozen=True, kw_only=True)
class Difference:
    """Two corpora on one metric: the difference of the values, its 95 % interval, and which one is more diverse (None:
    not decided).
    """

    difference: float
    low: float
    high: float
    first_is_more_diverse: bool | None


def difference(first: Figure, second: Figure, sign: int) -> Difference | None:
    """Welch's interval for first - second; None where either has no interval.

    Args:
      sign: of the metric: 1 where more means more diverse, -1 where less does.
    """
    if first.standard_error is None or second.standard_error is None:
        return None
    from scipy.stats import t

    squares = (first.standard_error**2, second.standard_error**2)
    error = math.sqrt(sum(squares))
    shared = squares[0] ** 2 / (first.draws - 1) + squares[1] ** 2 / (second.draws - 1)
    freedom = sum(squares) ** 2 / shared if shared else 1.0
    gap = first.value - second.value
    reach = float(t.ppf(0.975, freedom)) * error
    decided = sign != 0 and abs(gap) > reach
    return Difference(
        difference=gap, low=gap - reach, high=gap + reach, first_is_more_diverse=(sign * gap > 0) if decided else None
    )


_NOT_PARAMETERS = ("threads", "embedder_base_url", "seed")


def card_parameters(config: MetricsConfig, **derived: Any) -> dict[str, Any]:
    """`MetricsCard.parameters`: the settings that figures depend on, and what was derived from all corpora."""
    return {name: value for name, value in asdict(config).items() if name not in _NOT_PARAMETERS} | derived


@dataclass(frozen=True, kw_only=True, eq=False)
class MetricsCard:
    """The metrics of one corpus. Written once; `content_hash` names it.

    Attributes:
      metrics: figures by name, on draws of whole documents.
      controlled: the same with equal length: see `parameters`' control_words and control_documents; empty where it was
        not possible.
      compatible: figures of the `diversity` package on the first draw, by that package's names; empty unless asked for.
      dependence: of each metric, by `documents` and by `words`: sizes, values, and the slope of log value over log
        size.
      cost: one entry a stage and size: stage, documents, seconds, cpu_seconds, memory_bytes, dollars. It is never twice
        the same, so it is no part of the file and its hash; `save_cost` puts it beside.
      corpus: name, fingerprint, documents (None where only sampled), words_per_document.
      parameters: settings that the figures depend on, those derived from all corpora of the run too.
      seed: of every draw.
      warnings: what a reader has to know, one line each.
    """

    metrics: Mapping[str, Figure]
    corpus: Mapping[str, Any]
    parameters: Mapping[str, Any]
    seed: int
    controlled: Mapping[str, Figure] = field(default_factory=dict)
    compatible: Mapping[str, float] = field(default_factory=dict)
    dependence: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    cost: Sequence[Mapping[str, Any]] = ()
    warnings: Sequence[str] = ()

    def to_json(self) -> dict[str, Any]:
        """The JSON value that `save` writes, without its own hash."""
        value = {name: part for name, part in vars(self).items() if name not in ("content_hash", "cost")}
        for name in ("metrics", "controlled"):
            value[name] = {metric: dict(vars(figure)) for metric, figure in value[name].items()}
        return value | {"version": VERSION, "kind": KIND, "warnings": list(self.warnings)}

    @functools.cached_property
    def content_hash(self) -> str:
        """SHA-256 of everything in the file."""
        return files.content_hash(self.to_json())

    def save(self, path: str | os.PathLike) -> None:
        """Writes it as JSON, whole or not at all."""
        files.write_json(path, self.to_json() | {"content_hash": self.content_hash})

    def save_cost(self, path: str | os.PathLike) -> None:
        """Writes what it took as JSON."""
        files.write_json(path, list(self.cost))

    @classmethod
    def load(cls, path: str | os.PathLike) -> "MetricsCard":
        """Reads what `save` wrote, or the `metrics` part of a scorecard that holds both.

        Raises:
          InputError: no such file, not JSON, not such a card, another version, or changed by hand.
        """
        value = files.read_json(path)
        if isinstance(value, Mapping) and value.get("kind") != KIND and isinstance(value.get("baseline"), Mapping):
            value = value["baseline"]
        return cls.from_json(value, where=os.fspath(path))

    @classmethod
    def from_json(cls, value: Any, *, where: str) -> "MetricsCard":
        """Reads `to_json`'s value; `where` begins every error line."""
        if not isinstance(value, Mapping) or value.get("kind") != KIND:
            raise InputError(f"{where}: holds no baseline metrics; score the corpus with --config.metrics=all")
        if value.get("version") != VERSION:
            raise InputError(
                f"{where}: version is {value.get('version')!r}; this program reads version {VERSION}: measure the "
                "corpus again"
            )
        fields = {name: part for name, part in value.items() if name not in ("version", "kind", "content_hash")}
        try:
            for name in ("metrics", "controlled"):
                fields[name] = {metric: Figure(**figure) for metric, figure in fields[name].items()}
            card = cls(**fields)
        except (TypeError, AttributeError, KeyError) as error:
            raise InputError(f"{where}: is damaged ({error}); measure the corpus again") from None
        if "content_hash" in value and value["content_hash"] != card.content_hash:
            raise InputError(
                f"{where}: content does not fit its content_hash; the file was changed or damaged: measure the corpus "
                "again"
            )
        return card
