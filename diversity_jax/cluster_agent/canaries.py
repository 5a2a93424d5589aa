"""Canaries: planted samples whose right grouping is known, a copy of a shown sample and a text foreign to the corpus.

The copy belongs with its original and the foreign text with none of the drawn samples, whatever the criteria. A
grouping that gets either wrong does not reflect the texts (the judge is too weak, or a document told it to split or to
merge everything) and is discarded. Over all groupings the rates measure the judge's errors. Planted samples never enter
a figure.

A judge that merges two unrelated samples with probability a and splits two alike ones with probability b gives
E[T] = theta (1 - b) + (1 - theta) a (docs/statistics.md, "The judge's own mistakes"). However diverse the corpus, T
stays above a, so more than 1 / a effective clusters cannot be measured.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
import math
import random
from typing import Any

from diversity_jax.cluster_agent.estimators import Groupings, collision
from diversity_jax.cluster_agent.exam_corpora import foreign_text
from diversity_jax.cluster_agent.text_cleaning import child_seed
from diversity_jax.cluster_agent.types import Cluster, Sample
from diversity_jax.core.intervals import Estimate
from diversity_jax.core.lazy import special_functions

_LEAST_MISS = 0.05  # rate of misses that `ErrorRates.passing` assumes at least
_WIDEST_CORRECTION = 2.0  # of the width of the interval of log T, by which `corrected` may widen it

FOREIGN = "canary"  # document id of planted foreign texts


@dataclass(frozen=True, kw_only=True)
class Canary:
    """Ids of one grouping's planted pair: `copy` repeats `original`, `foreign` belongs with neither."""

    original: str
    copy: str
    foreign: str


@dataclass(frozen=True, kw_only=True)
class CanaryResult:
    """How a judge grouped and verified the canary of one grouping.

    Attributes:
      merged: whether the foreign text was put with any drawn sample; merged_with: with how many of `drawn`.
      kept: whether verification left the foreign text with a drawn sample; None where nothing was verified or merged.
      split: whether the copy was put apart from its original; moved: and one of the two with other samples, which is a
        single misplaced sample and not a grouping in which everything is split.
      denied: whether verification called the cluster of the two invalid, or one of them misplaced; None where nothing
        was verified.
      missed: whether it called a cluster valid that holds the foreign text; None likewise.
    """

    merged: bool
    split: bool
    merged_with: int = 0
    drawn: int = 1
    kept: bool | None = None
    moved: bool = False
    denied: bool | None = None
    missed: bool | None = None

    @property
    def passed(self) -> bool:
        """Whether the grouping counts: copy and foreign text were grouped rightly, and verification did not deny the
        copy. A missed control cluster does not discard it, since the partition may be right; it measures verification.
        """
        return not (self.merged or self.split or self.denied)

    def with_controls(self, checked: Sequence[Cluster]) -> "CanaryResult":
        """This result with the verification of the control clusters, the valid and the invalid one."""
        valid, invalid = checked
        return replace(self, denied=not valid.valid, missed=invalid.valid)


def plant(samples: Sequence[Sample], ids: Sequence[str], generator: random.Random) -> tuple[tuple[Sample, ...], Canary]:
    """`samples` with a copy of one of them and a foreign text inserted at random, under the two new `ids`."""
    original = samples[int(generator.random() * len(samples))]
    foreign = foreign_text([sample.text for sample in samples], generator)
    shown = list(samples)
    copied = Sample(sample_id=ids[0], text=original.text, document=original.document)
    for planted in (copied, Sample(sample_id=ids[1], text=foreign, document=FOREIGN)):
        shown.insert(int(generator.random() * (len(shown) + 1)), planted)
    return tuple(shown), Canary(original=original.sample_id, copy=ids[0], foreign=ids[1])


def cluster_numbers(clusters: Sequence[Cluster]) -> dict[str, int]:
    """The index of each sample's cluster, by sample id."""
    return {sample_id: number for number, cluster in enumerate(clusters) for sample_id in cluster.sample_ids}


def canary_result(clusters: Sequence[Cluster], canary: Canary) -> CanaryResult:
    """Whether a partition split the copy from its original, and with how many drawn samples it put the foreign text."""
    cluster_of = cluster_numbers(clusters)
    planted = {canary.copy, canary.foreign}
    drawn = cluster_of.keys() - planted
    merged_with = sum(cluster_of[sample_id] == cluster_of[canary.foreign] for sample_id in drawn)
    split = cluster_of[canary.original] != cluster_of[canary.copy]
    moved = split and max(len(clusters[cluster_of[i]].sample_ids) for i in (canary.original, canary.copy)) > 1
    return CanaryResult(
        merged=merged_with > 0, split=split, merged_with=merged_with, drawn=len(drawn), moved=bool(moved)
    )


def without_planted(
    clusters: Sequence[Cluster], canary: Canary | None, *, leave_foreign: bool = False
) -> tuple[Cluster, ...]:
    """The partition of the drawn samples alone; with `leave_foreign` of these and the foreign text."""
    if canary is None:
        return tuple(clusters)
    planted = {canary.copy} if leave_foreign else {canary.copy, canary.foreign}
    left = [replace(c, sample_ids=tuple(i for i in c.sample_ids if i not in planted)) for c in clusters]
    return tuple(cluster for cluster in left if cluster.sample_ids)


def with_controls(clusters: Sequence[Cluster], canary: Canary | None) -> tuple[tuple[Cluster, ...], tuple[int, ...]]:
    """Clusters for verification with two control clusters inserted, and the positions of the valid and the invalid one.

    A text and its copy are valid: this exposes a document that has every cluster called invalid, which the partition
    alone would not show. The two with the foreign text are invalid: this exposes a judge that calls all valid.
    """
    if canary is None:
        return tuple(clusters), ()
    pair = (canary.original, canary.copy)
    alike = "the texts say the same"
    controls = [Cluster(sample_ids=ids, reasoning=alike) for ids in (pair, (*pair, canary.foreign))]
    if (seed := child_seed(canary.copy, canary.foreign)) % 2:
        controls.reverse()
    shown = list(clusters)
    # The later one first, so that the index of the other does not change.
    second, first = sorted((seed // 2 % (len(clusters) + 1), seed // 997 % (len(clusters) + 1)), reverse=True)
    shown.insert(second, controls[1])
    shown.insert(first, controls[0])
    return tuple(shown), (second + 1, first) if seed % 2 else (first, second + 1)


@dataclass(frozen=True, kw_only=True)
class ErrorRates:
    """Counts over the canaries of all groupings, and error rates from them.

    Attributes:
      shown: groupings with a canary that were partitioned.
      merged: those whose foreign text lay with any drawn sample; merged_pairs: with how many samples, of drawn_pairs.
      split: those whose copy lay apart from its original; moved: and one of the two with other samples.
      asked: merged groupings whose clusters were verified; kept: those whose foreign text verification left there.
      controls: groupings whose control clusters were checked; denied, missed: those whose valid one was called invalid,
        and whose invalid one valid.
    """

    shown: int
    merged: int
    split: int
    merged_pairs: int | None = None
    drawn_pairs: int | None = None
    moved: int = 0
    asked: int = 0
    kept: int = 0
    controls: int = 0
    denied: int = 0
    missed: int = 0

    @classmethod
    def of(cls, results: Sequence[CanaryResult]) -> "ErrorRates":
        """Counts the results of all groupings."""
        checked = [result for result in results if result.denied is not None]
        return cls(
            shown=len(results),
            merged=sum(result.merged for result in results),
            split=sum(result.split for result in results),
            merged_pairs=sum(result.merged_with for result in results),
            drawn_pairs=sum(result.drawn for result in results),
            moved=sum(result.moved for result in results),
            asked=sum(result.kept is not None for result in results),
            kept=sum(bool(result.kept) for result in results),
            controls=len(checked),
            denied=sum(bool(result.denied) for result in checked),
            missed=sum(bool(result.missed) for result in checked),
        )

    def to_json(self) -> dict[str, Any]:
        """Counts, rates with exact 95 % intervals, and the ceiling of the score; None where nothing was shown."""
        names = ("false_merge", "false_split", "misplacement", "denial", "miss", "pair_merge", "pair_split")
        rates = {name: getattr(self, name) for name in names}
        values = {name: rate and rate.to_json() for name, rate in rates.items()}
        return {**vars(self), **values, "ceiling": self.ceiling}

    @property
    def false_merge(self) -> Estimate | None:
        """Share of the groupings whose foreign text was put with a drawn sample."""
        return binomial(self.merged, self.shown)

    @property
    def false_split(self) -> Estimate | None:
        """Share of the groupings whose copy was put apart from its original."""
        return binomial(self.split, self.shown)

    @property
    def misplacement(self) -> Estimate | None:
        """Share of the groupings whose copy or original was put with other samples."""
        return binomial(self.moved, self.shown)

    @property
    def passing(self) -> Estimate | None:
        """Share of wrongly merged samples that verification lets pass; None where nothing was verified.

        Where foreign texts were merged and verified, the share of these. Otherwise the rate of misses, at least
        `_LEAST_MISS`: a control cluster is easier to recognise as wrong than a judge's own.
        """
        if self.asked:
            return binomial(self.kept, self.asked)
        miss = self.miss
        if miss is None:
            return None
        value, low, high = (max(part, _LEAST_MISS) for part in (miss.value, *miss.bounds))
        return Estimate(value=value, low=low, high=high)

    @property
    def denial(self) -> Estimate | None:
        """Share of the verifications that called a text and its copy invalid."""
        return binomial(self.denied, self.controls)

    @property
    def miss(self) -> Estimate | None:
        """Share of the verifications that called a cluster with the foreign text valid."""
        return binomial(self.missed, self.controls)

    @property
    def pair_merge(self) -> Estimate | None:
        """a, the probability that two unrelated samples are together in T: put together by the partition, and left
        together by verification where there is one.

        The rate of merges, times the mean share of the drawn samples that the foreign text was then put with (one of
        them where it never was), times the share that verification lets pass.
        """
        merged = self.false_merge
        if merged is None:
            return None
        share = 1.0
        if self.merged_pairs is not None and self.drawn_pairs:
            share = self.merged_pairs / self.merged if self.merged else 1.0
            share *= self.shown / self.drawn_pairs
        low, high = (bound * share for bound in merged.bounds)
        passing = self.passing
        if passing is None:
            return Estimate(value=merged.value * share, low=low, high=high)
        passes, most_pass = passing.bounds
        return Estimate(value=merged.value * share * passing.value, low=low * passes, high=high * most_pass)

    @property
    def pair_split(self) -> Estimate | None:
        """b, the probability that two like samples are apart in T: split by the partition or denied by verification."""
        split, denial = self.false_split, self.denial
        if split is None or denial is None:
            return split
        parts = zip((split.value, *split.bounds), (denial.value, *denial.bounds), strict=True)
        value, low, high = (1 - (1 - first) * (1 - second) for first, second in parts)
        return Estimate(value=value, low=low, high=high)

    @property
    def pair_split_beside_misplacement(self) -> Estimate | None:
        """The part of `pair_split` that `without_misplacement` does not correct for."""
        return replace(self, split=self.split - self.moved).pair_split

    @property
    def ceiling(self) -> dict[str, float | None] | None:
        """The most effective clusters this judge can measure: 1 / a, None without a merge; `low` at the upper a."""
        merge = self.pair_merge
        if merge is None:
            return None
        return {"value": 1.0 / merge.value if merge.value else None, "low": 1.0 / merge.bounds[1]}


def binomial(events: int, trials: int, confidence: float = 0.95) -> Estimate | None:
    """A rate with its exact interval (Clopper and Pearson 1934); None without trials."""
    if not trials:
        return None
    special = special_functions()

    error = (1 - confidence) / 2
    low = float(special.betaincinv(events, trials - events + 1, error)) if events else 0.0
    high = float(special.betaincinv(events + 1, trials - events, 1 - error)) if events < trials else 1.0
    return Estimate(value=events / trials, low=low, high=high)


def without_misplacement(theta: Estimate, rates: ErrorRates, samples_per_grouping: int) -> Estimate:
    """T corrected for misplaced samples: T / (1 - b), where a like pair is together with probability 1 - b, since one
    of the two may be misplaced. Verification can name such a sample, but not its right cluster.

    b is `misplacement`, which is measured on the groupings of T, times 1 - 2 / K: in a grouping that counts the
    original was not misplaced itself, and is in a larger cluster than a sample on average (bias measured in
    docs/statistics.md). The two intervals are joined on the logarithmic scale by their distances to each side.
    """
    rate = rates.misplacement
    if rate is None or not rate.value or rate.value >= 1 or not theta.value:
        return theta
    share = 1 - 2 / samples_per_grouping
    low_b, high_b = (share * bound for bound in rate.bounds)
    low, high = theta.bounds
    factor = 1 - share * rate.value
    value = theta.value / factor
    down, up = math.log((1 - low_b) / factor), math.log(factor / max(1 - high_b, 1e-9))
    below = value * math.exp(-math.hypot(math.log(theta.value / low), down)) if low > 0 else 0.0
    above = value * math.exp(math.hypot(math.log(high / theta.value), up))
    return Estimate(value=min(1.0, value), low=min(1.0, below), high=min(1.0, above))


def corrected(groupings: Groupings, rates: ErrorRates) -> tuple[Estimate | None, str | None]:
    """Effective clusters corrected for the judge's errors, theta = (T - a) / (1 - a - b); or None and the reason.

    a and b are measured after verification, as T is. The three intervals are joined by their distances to each side
    (the method of variance estimates recovery, Zou and Donner 2008), since those of rare events are far from symmetric.
    There is no correction where the result leaves (0, 1), or where it more than doubles the width of the interval of
    log T.
    """
    merge, split = rates.pair_merge, rates.pair_split
    if merge is None or split is None:
        return None, "not corrected for the judge's mistakes: no canaries measured them"
    if merge.value + split.value >= 1:
        return None, "not corrected for the judge's mistakes: it errs on most canaries"
    measured = collision(groupings)
    (low_t, high_t), (low_a, high_a), (low_b, high_b) = (part.bounds for part in (measured, merge, split))
    gain = 1 - merge.value - split.value
    theta = (measured.value - merge.value) / gain
    below = measured.value - low_t, (1 - theta) * (high_a - merge.value), theta * (split.value - low_b)
    above = high_t - measured.value, (1 - theta) * (merge.value - low_a), theta * (high_b - split.value)
    low, high = theta - math.hypot(*below) / gain, theta + math.hypot(*above) / gain
    if not 0 < low <= high < 1:
        return None, "not corrected for the judge's mistakes: T cannot be told from them"
    if low_t and math.log(high / low) > _WIDEST_CORRECTION * math.log(high_t / low_t):
        return None, "not corrected for the judge's mistakes: the correction is less certain than the figure"
    return Estimate(value=1.0 / theta, low=1.0 / high, high=1.0 / low), None
