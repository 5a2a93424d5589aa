"""The scorecard of one corpus: figures with intervals, how they were measured, and data for figures of a page."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
import functools
import os
from typing import Any

import numpy as np

from diversity_jax.cluster_agent.groupings import Groupings
from diversity_jax.cluster_agent.verdict import Verdict
from diversity_jax.core import files
from diversity_jax.core.errors import InputError
from diversity_jax.core.formats import (
    ShownAsTable,
    SummaryTable,
    count,
    counted,
    estimate,
    interval,
    money,
    significant,
)
from diversity_jax.core.intervals import Estimate

VERSION = 1
STOPPED = "stopped after"  # begins the warning of a run that ended before its last grouping
_FIGURES = ("effective_clusters", "cluster_score", "clusters_per_sample", "collision")
_OPTIONAL_FIGURES = ("effective_clusters_corrected", "effective_clusters_of_corpus")
_KINDS: dict[str, type | tuple[type, ...]] = {
    **dict.fromkeys(("groupings", "dropped_groupings", "invalid_clusters", "repairs", "calls", "seed"), int),
    "cost_usd": (int, float),
    **dict.fromkeys(("criteria", "examples", "warnings"), list),
    **dict.fromkeys(("criteria_hash", "criteria_origin", "judge", "prompt_version", "ruler"), str),
    **dict.fromkeys(("canaries", "tokens", "parameters", "corpus", "series"), Mapping),
    **dict.fromkeys(("drops", "cluster_sizes", "convergence"), Mapping),
}
"""Types of a scorecard's other fields in JSON."""
# Fields that a file leaves out where they are None, since files of earlier versions do not have them.
_LEFT_OUT = (
    "verdict",
    "consistency",
    "drift",
    "checks",
    "look",
    "reading_words",
    "ruler_identity",
    "series_at_length",
    "baseline",
)


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Scorecard(ShownAsTable):
    """Diversity of one corpus by one judge; never changed once written, and identified by `content_hash`.

    Attributes:
      effective_clusters: 1 / T, the diversity figure, comparable at every K. `high` is None where only a lower bound is
        known.
      cluster_score: the paper's mean of C / S; comparable at equal K only.
      clusters_per_sample, collision: mean of C / K, and T itself.
      effective_clusters_corrected: corrected for the judge's measured errors; None unless asked for.
      effective_clusters_of_corpus: of exactly these documents (see `estimators.in_a_corpus_of`); None where their
        number is unknown.
      groupings: number of usable groupings, from which all figures are.
      dropped_groupings, drops: number of other groupings, and that by reason.
      invalid_clusters: clusters that verification called invalid, in usable groupings.
      repairs: answers that were asked for a second time because they were malformed.
      criteria, criteria_hash, criteria_origin: criteria of the groupings; origin is "judge", "file" or "scorecard".
      canaries: counts, rates and ceiling over planted samples, as `ErrorRates.to_json`.
      calls, tokens, cost_usd: of the answers used, also those from the response cache; tokens by "prompt" and
        "completion".
      judge, prompt_version, ruler: label, wording, and a hash of what two scores have to share to be compared (judge,
        wording, how texts are shown).
      parameters: settings that the score depends on.
      corpus: name, fingerprint, documents (None where not counted), sampled (different documents shown); where there
        are copies, `different`: the equivalent number of different documents.
      seed: of all random choices.
      series: the groupings, for later comparisons.
      cluster_sizes: number of valid clusters of 1, 2, ... samples, without planted ones.
      convergence: `effective_clusters` after growing numbers of groupings.
      examples: some groupings with texts (cut) and reasons.
      warnings: remarks on the figures, one line each.
      verdict: whether the judge's figures can be trusted, and why; None in scorecards of versions that did not examine
        judges.
      consistency: how far the judge repeats itself, as `examination.consistency`; None where nothing was judged again.
      drift: whether it groups the same pairs differently among half as many samples, as `examination.drift`; None
        likewise.
      checks: tests of partitions by name: position, length and cluster_counts, as `examination.partition_checks`; None
        likewise.
      look: (taken, planned) where it was scored in looks until a decision; comparisons then use the level of that look
        (see `sequential_test`). None: the number of groupings was fixed beforehand.
      reading_words: words read of each document by an embedding judge; None for other judges.
      ruler_identity: `Ruler.identity` of an embedding judge: package and version of its vectors, or embedder, and its
        thresholds of similarity by number of words.
      series_at_length: the same groupings at smaller reading lengths: by length, `pairs` of samples that are alike, and
        `paths`, the pairs of these pairs that have a sample in common; one number for each grouping.
      baseline: the corpus's baseline metrics as JSON, where they were measured in the same run.
    """

    effective_clusters: Estimate
    cluster_score: Estimate
    clusters_per_sample: Estimate
    collision: Estimate
    groupings: int
    dropped_groupings: int
    invalid_clusters: int
    criteria: Sequence[Mapping[str, Any]]
    criteria_hash: str
    criteria_origin: str
    canaries: Mapping[str, Any]
    calls: int
    tokens: Mapping[str, int]
    cost_usd: float
    judge: str
    prompt_version: str
    ruler: str
    parameters: Mapping[str, Any]
    corpus: Mapping[str, Any]
    seed: int
    series: Groupings
    drops: Mapping[str, int] = field(default_factory=dict)
    repairs: int = 0
    effective_clusters_corrected: Estimate | None = None
    effective_clusters_of_corpus: Estimate | None = None
    cluster_sizes: Mapping[str, int] = field(default_factory=dict)
    convergence: Mapping[str, Sequence[float | None]] = field(default_factory=dict)
    examples: Sequence[Mapping[str, Any]] = ()
    warnings: Sequence[str] = ()
    verdict: Verdict | None = None
    consistency: Mapping[str, Any] | None = None
    drift: Mapping[str, Any] | None = None
    checks: Mapping[str, Any] | None = None
    look: tuple[int, int] | None = None
    reading_words: int | None = None
    ruler_identity: Mapping[str, Any] | None = None
    series_at_length: Mapping[str, Mapping[str, Sequence[int]]] | None = None
    baseline: Mapping[str, Any] | None = None

    def to_json(self) -> dict[str, Any]:
        """The JSON value that `save` writes, without its own hash."""
        omitted = {"content_hash", *(name for name in _LEFT_OUT if getattr(self, name) is None)}
        value = {name: part for name, part in vars(self).items() if name not in omitted}
        value |= {"verdict": self.verdict.to_json()} if self.verdict else {}
        value |= {name: value[name] and value[name].to_json() for name in (*_FIGURES, *_OPTIONAL_FIGURES)}
        value["series"] = self.series.to_json()
        return value | {"version": VERSION, "warnings": list(self.warnings), "examples": list(self.examples)}

    @property
    def sampled_documents(self) -> int | None:
        """Number of documents, for the part of an error that is due to their sampling. None where they were not
        counted, and for scores of earlier versions, which have no triples.
        """
        return None if self.series.triples is None else self.corpus.get("different", self.corpus["documents"])

    def series_at(self, words: int | None) -> Groupings:
        """The groupings at a smaller reading length; `series` at `reading_words`, and for other judges.

        Raises:
          InputError: this length was not read.
        """
        if words == self.reading_words:
            return self.series
        try:
            at = (self.series_at_length or {})[str(words)]
            pairs, paths = np.asarray(at["pairs"], int), np.asarray(at["paths"], int)
            # A triple of one cluster holds three paths of two pairs each.
            triples = np.diff(np.round(np.cumsum(paths) / 3).astype(int), prepend=0)
            columns = {name: getattr(self.series, name) for name in ("criteria_set", "clusters", "kept")}
            k = self.series.samples_per_grouping
            return Groupings(samples_per_grouping=k, pairs=pairs, triples=triples, **columns)
        except (KeyError, TypeError, ValueError):
            raise InputError(f"scorecard of {self.corpus['name']}: holds no groupings at {words} words") from None

    @functools.cached_property
    def content_hash(self) -> str:
        """SHA-256 of its content, by which decisions of a gate name it."""
        return files.content_hash(self.to_json())

    def save(self, path: str | os.PathLike) -> None:
        """Writes it as JSON, atomically."""
        files.write_json(path, self.to_json() | {"content_hash": self.content_hash})

    @classmethod
    def load(cls, path: str | os.PathLike) -> "Scorecard":
        """Reads what `save` wrote.

        Raises:
          InputError: no such file, not JSON, another version, a field missing or of the wrong kind, or changed by hand.
        """
        return cls.from_json(files.read_json(path), where=os.fspath(path))

    @classmethod
    def from_json(cls, value: Any, *, where: str) -> "Scorecard":
        """Reads `to_json`'s value; `where` begins every error line."""
        if not isinstance(value, Mapping) or not all(name in value for name in _FIGURES):
            raise InputError(f"{where}: is not a scorecard; expected a JSON object with {', '.join(_FIGURES)}")
        if isinstance(value.get("unusable"), str):
            raise InputError(f"{where}: holds no figure: {value['unusable']}")
        if value.get("version") != VERSION:
            version = value.get("version")
            raise InputError(f"{where}: version is {version!r}, not {VERSION}: score the corpus again")
        _check(value, where)
        fields = {name: part for name, part in value.items() if name not in ("version", "content_hash")}
        try:
            fits = value.get("content_hash") in (None, files.content_hash({**fields, "version": VERSION}))
        except ValueError:  # a number that is not finite
            fits = False
        if not fits:
            raise InputError(f"{where}: content does not fit its content_hash: it was changed; score the corpus again")
        for name in (*_FIGURES, *_OPTIONAL_FIGURES):
            missing = name in _OPTIONAL_FIGURES and not value[name]
            fields[name] = value[name] if missing else Estimate.from_json(value[name], f"{where}: {name}")
        try:
            fields["series"] = Groupings(**value["series"])
        except (TypeError, ValueError, OverflowError) as error:
            raise InputError(f"{where}: series: {error}") from None
        if fields.get("verdict") is not None:
            fields["verdict"] = Verdict.from_json(fields["verdict"], f"{where}: verdict")
        if (look := fields.get("look")) is not None:
            if not (isinstance(look, list) and len(look) == 2 and all(type(part) is int for part in look)):
                raise InputError(f"{where}: look is {look!r}; expected two numbers, taken and planned")
            if not 1 <= look[0] <= look[1]:
                raise InputError(f"{where}: look is {look!r}; expected at least 1, and at most the looks planned")
            fields["look"] = tuple(look)
        return cls(**fields)

    @property
    def stopped_early(self) -> bool:
        """Whether its run ended before the last grouping, by a cap or a lost server; another run then continues it."""
        return any(warning.startswith(STOPPED) for warning in self.warnings)

    def table(self) -> SummaryTable:
        """Its main figures, the judge and the warnings."""
        name, verdict, shown = self.corpus["name"], self.verdict, self.corpus["documents"]
        figures = {"effective clusters": self.effective_clusters, "cluster score": self.cluster_score}
        rows = [(title, significant(each.value), interval(each)) for title, each in figures.items()]
        rows += [("groupings", count(self.groupings), f"{count(self.dropped_groupings)} dropped")]
        rows += [("documents", "not counted" if shown is None else count(shown), "")]
        rows += [("judge", self.judge, verdict.judge if verdict else "not examined")]
        rows += [("cost", money(self.cost_usd), counted(self.calls, "call"))] if self.calls else []
        unfit = verdict.reasons if verdict and verdict.judge != "fit" else ()
        notes = [f"the judge is {verdict.judge}: {reason}" for reason in unfit if verdict] + list(self.warnings)
        title = f"{name}: {estimate(self.effective_clusters, 'effective clusters')}"
        return SummaryTable(title=title, columns=("", "value", "95 % interval"), rows=rows, notes=notes)

    def histogram(self, name: str) -> dict[str, list[float]]:
        """`values` and `counts` of "clusters" (C of a grouping), "samples_per_cluster" (n / C) or "cluster_sizes"."""
        if name == "cluster_sizes":
            pairs = sorted((int(size), count) for size, count in self.cluster_sizes.items())
            return {"values": [size for size, _ in pairs], "counts": [count for _, count in pairs]}
        some = self.series.clusters > 0
        numbers = self.series.clusters[some]
        if name == "samples_per_cluster":
            numbers = np.round(self.series.kept[some] / numbers, 3)
        values, counts = np.unique(numbers, return_counts=True)
        return {"values": values.tolist(), "counts": counts.tolist()}


def at_common_length(a: Scorecard, b: Scorecard) -> tuple[Groupings, Groupings]:
    """The groupings of two scorecards at the smaller of their reading lengths."""
    if a.reading_words is None or b.reading_words is None:
        return a.series, b.series
    words = min(a.reading_words, b.reading_words)
    return a.series_at(words), b.series_at(words)


def _check(value: Mapping[str, Any], where: str) -> None:
    known = {*_KINDS, *_FIGURES, *_OPTIONAL_FIGURES, *_LEFT_OUT, "version", "content_hash"}
    if unknown := sorted(set(value) - known):
        raise InputError(f"{where}: has a field {unknown[0]!r} that no scorecard has; score the corpus again")
    for name, kind in _KINDS.items():
        if not isinstance(value.get(name), kind) or isinstance(value[name], bool):
            wanted = " or ".join(k.__name__ for k in (kind if isinstance(kind, tuple) else (kind,)))
            raise InputError(
                f"{where}: {name} is {type(value.get(name)).__name__}; expected {wanted}: score the corpus again"
            )
    for name in ("consistency", "drift", "checks"):
        if not isinstance(value.get(name, {}), Mapping):
            raise InputError(f"{where}: {name} is {type(value[name]).__name__}; expected an object")
    for name in _OPTIONAL_FIGURES:
        if name not in value:
            raise InputError(f"{where}: {name} is missing; expected an estimate or null: score the corpus again")
