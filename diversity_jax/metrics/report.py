"""Reports of baseline metrics: figures with intervals, the file, and comparisons of corpora and of metrics."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
import functools
import itertools
import math
import os
from typing import Any

import numpy as np

from diversity_jax.core import files
from diversity_jax.core.errors import InputError
from diversity_jax.core.formats import ShownAsTable, SummaryTable, interval, significant
from diversity_jax.core.intervals import Z95, Estimate, t_quantile
from diversity_jax.metrics.registry import METRICS, MetricsConfig

VERSION = 1
KIND = "baseline_metrics"
FEWEST_CORPORA = 5


@dataclass(frozen=True, kw_only=True)
class Figure(Estimate):
    """One metric on one corpus: the mean over draws, and the 95 % interval of its expectation over corpora of the same
    source at this draw size. Interval, spread and error are None with a single draw.

    Attributes:
      spread: standard deviation over draws, the paper's error bar.
      standard_error: of `value`, from which intervals and comparisons are computed.
      draws: the number on which the metric was defined.
    """

    spread: float | None = None
    standard_error: float | None = None
    draws: int = 1

    @classmethod
    def of_draws(cls, values: Sequence[float], share: float) -> "Figure":
        """From the values of draws without replacement that each hold `share` of the corpus.

        Draws of one corpus overlap, so their spread s is less than that of independent ones: for a mean-like statistic
        s^2 = v (1/m - 1/N) with m documents of N. The mean over R draws then has variance v/N + s^2/R = s^2 (share / (1
        - share) + 1/R), since the corpus is itself a sample of its source. At half of a corpus this is the delete-half
        jackknife (Shao and Wu 1989).
        """
        value, draws = float(np.mean(values, dtype=np.float64)), len(values)
        if draws < 2 or share >= 1:
            return cls(value=value, draws=draws)
        spread = float(np.std(values, ddof=1, dtype=np.float64))
        error = spread * math.sqrt(share / (1 - share) + 1 / draws)
        reach = t_quantile(0.975, draws - 1) * error
        return cls(value=value, low=value - reach, high=value + reach, spread=spread, standard_error=error, draws=draws)

    def to_json(self) -> dict[str, float | None]:
        """All fields by name."""
        return dict(vars(self))


@dataclass(frozen=True, kw_only=True)
class Difference:
    """Two corpora on one metric: the difference of the values, its 95 % interval, and which is more diverse (None:
    undecided).
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
    squares = (first.standard_error**2, second.standard_error**2)
    error = math.sqrt(sum(squares))
    shared = squares[0] ** 2 / (first.draws - 1) + squares[1] ** 2 / (second.draws - 1)
    freedom = sum(squares) ** 2 / shared if shared else 1.0
    gap = first.value - second.value
    reach = t_quantile(0.975, freedom) * error
    decided = sign != 0 and abs(gap) > reach
    return Difference(
        difference=gap, low=gap - reach, high=gap + reach, first_is_more_diverse=(sign * gap > 0) if decided else None
    )


_NOT_PARAMETERS = ("threads", "embedder_base_url", "seed")


def report_parameters(config: MetricsConfig, **derived: Any) -> dict[str, Any]:
    """`MetricsReport.parameters`: the settings that figures depend on, and values derived from all corpora of a run."""
    return {name: value for name, value in asdict(config).items() if name not in _NOT_PARAMETERS} | derived


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class MetricsReport(ShownAsTable):
    """The metrics of one corpus, identified by `content_hash`.

    Attributes:
      metrics: figures by name, on draws of whole documents.
      controlled: the same at equal length (`control_words` and `control_documents` of `parameters`); empty where no
        length is possible.
      compatible: figures of the `diversity` package on the first draw, by that package's names; empty unless asked for.
      dependence: of each metric, by `documents` and by `words`: sizes, values, and the slope of log value over log
        size.
      cost: a mapping for each stage and size: stage, documents, seconds, cpu_seconds, memory_bytes, dollars. It varies
        between runs, so it is no part of the file and its hash; `save_cost` writes a file of its own.
      corpus: name, fingerprint, and documents (None where it was only sampled).
      parameters: what figures depend on: the settings, and values derived from all corpora of the run.
      seed: of every draw.
      warnings: for the reader, one line each.
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
            value[name] = {metric: figure.to_json() for metric, figure in value[name].items()}
        return value | {"version": VERSION, "kind": KIND, "warnings": list(self.warnings)}

    def table(self) -> SummaryTable:
        """Every figure with its interval, and whether more of it means more diverse."""
        ways = {1: "more is more diverse", -1: "less is more diverse", 0: ""}
        rows = [
            (METRICS[name].title, significant(figure.value), interval(figure), ways[METRICS[name].sign])
            for name, figure in self.metrics.items()
        ]
        title = f"{self.corpus['name']}: baseline metrics"
        return SummaryTable(title=title, columns=("", "value", "95 % interval", ""), rows=rows, notes=self.warnings)

    @functools.cached_property
    def content_hash(self) -> str:
        """SHA-256 of the content of the file."""
        return files.content_hash(self.to_json())

    def save(self, path: str | os.PathLike) -> None:
        """Writes it as JSON, atomically."""
        files.write_json(path, self.to_json() | {"content_hash": self.content_hash})

    def save_cost(self, path: str | os.PathLike) -> None:
        """Writes `cost` as JSON."""
        files.write_json(path, list(self.cost))

    @classmethod
    def load(cls, path: str | os.PathLike) -> "MetricsReport":
        """Reads what `save` wrote, or the `metrics` part of a scorecard that holds both.

        Raises:
          InputError: no such file, not JSON, not such a scorecard, another version, or changed by hand.
        """
        value = files.read_json(path)
        if isinstance(value, Mapping) and value.get("kind") != KIND and isinstance(value.get("baseline"), Mapping):
            value = value["baseline"]
        return cls.from_json(value, where=os.fspath(path))

    @classmethod
    def from_json(cls, value: Any, *, where: str) -> "MetricsReport":
        """Reads `to_json`'s value; `where` begins every error line."""
        if not isinstance(value, Mapping) or value.get("kind") != KIND:
            raise InputError(f"{where}: holds no baseline metrics; score the corpus with --config.metrics=all")
        if value.get("version") != VERSION:
            version = value.get("version")
            raise InputError(
                f"{where}: version is {version!r}; this program reads version {VERSION}: measure the corpus again"
            )
        fields = {name: part for name, part in value.items() if name not in ("version", "kind", "content_hash")}
        try:
            for name in ("metrics", "controlled"):
                fields[name] = {metric: Figure(**figure) for metric, figure in fields[name].items()}
            fields["warnings"] = [str(warning) for warning in fields["warnings"]]
            scorecard = cls(**fields)
            own_hash = scorecard.content_hash
        except (TypeError, AttributeError, KeyError, ValueError) as error:
            raise InputError(f"{where}: is damaged ({error}); measure the corpus again") from None
        if "content_hash" in value and value["content_hash"] != own_hash:
            raise InputError(f"{where}: content does not fit its content_hash; the file was changed: measure again")
        return scorecard


@dataclass(frozen=True, kw_only=True)
class Agreement:
    """Rank correlations of two metrics over the same corpora, both signed so that more means more diverse; None where
    a metric is constant.
    """

    first: str
    second: str
    corpora: int
    kendall: Estimate | None
    spearman: Estimate | None


def agreements(columns: Mapping[str, Sequence[float | None]]) -> list[Agreement]:
    """The rank correlations of every pair of columns, over the corpora that both have values for.

    Args:
      columns: by metric, one value a corpus, signed so that more means more diverse; None where a corpus has none.

    Intervals are those of Fieller, Hartley and Pearson (1957): on the scale of the inverse hyperbolic tangent, variance
    0.437 / (n - 4) for Kendall's tau and 1.06 / (n - 3) for Spearman's rho. A value of +-1 is moved towards 0 by
    1 / (n (n - 1)).

    Raises:
      InputError: fewer than 5 corpora, for which the intervals do not hold.
    """
    from scipy.stats import kendalltau, spearmanr

    lengths = {len(column) for column in columns.values()}
    if len(lengths) > 1 or not columns or max(lengths) < FEWEST_CORPORA:
        raise InputError(
            f"agreement: {max(lengths, default=0)} corpora are too few; rank correlations need at least "
            f"{FEWEST_CORPORA}"
        )
    result = []
    for first, second in itertools.combinations(columns, 2):
        pairs = zip(columns[first], columns[second], strict=True)
        x, y = np.array([pair for pair in pairs if None not in pair], float).reshape(-1, 2).T
        tau = rho = None
        if len(x) >= FEWEST_CORPORA and np.ptp(x) and np.ptp(y):
            tau, rho = float(kendalltau(x, y).statistic), float(spearmanr(x, y).statistic)
        result.append(
            Agreement(
                first=first,
                second=second,
                corpora=len(x),
                kendall=_fisher_interval(tau, 0.437 / max(len(x) - 4, 1), len(x)),
                spearman=_fisher_interval(rho, 1.06 / max(len(x) - 3, 1), len(x)),
            )
        )
    return result


def _fisher_interval(value: float | None, variance: float, corpora: int) -> Estimate | None:
    if value is None:
        return None
    value = max(-1.0, min(1.0, value))
    step = 1 / (corpora * (corpora - 1))
    centre = math.atanh(max(-1 + step, min(1 - step, value)))
    reach = Z95 * math.sqrt(variance)
    low, high = math.tanh(centre - reach), math.tanh(centre + reach)
    return Estimate(value=value, low=min(low, value), high=max(high, value))


def columns_of(
    scorecards: Mapping[str, MetricsReport], judged: Mapping[str, float] | None = None
) -> dict[str, list[float | None]]:
    """Values of every metric with a sign, signed so that more means more diverse, over the scorecards in their order.

    Args:
      judged: effective clusters by corpus, where a judge has scored them too, as a further column.
    """
    columns: dict[str, list[float | None]] = {}
    if judged:
        columns["effective_clusters"] = [judged.get(name) for name in scorecards]
    for metric, about in METRICS.items():
        figures = [scorecard.metrics.get(metric) for scorecard in scorecards.values()]
        if about.sign and any(figure is not None for figure in figures):
            columns[metric] = [None if figure is None else about.sign * figure.value for figure in figures]
    return columns
