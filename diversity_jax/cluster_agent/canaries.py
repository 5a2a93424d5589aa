"""Planted samples whose right grouping is known: a copy of a shown sample, and a text that is foreign to it.

The copy belongs with its original and the foreign text does not, whatever the criteria. A grouping that gets either
wrong was not made by reading (a judge out of its depth, or a document that told it to split or to merge everything) and
is discarded. Over all groupings the two rates measure the judge. Planted samples never enter a figure.

A judge that merges two unrelated samples with probability a and splits two alike ones with probability b gives
E[T] = theta (1 - b) + (1 - theta) a (docs/statistics.md, "The judge's own mistakes"). However diverse the corpus, T
stays above a: nothing above 1 / a effective clusters can be told apart.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
import math
from pathlib import Path
import random
import re
from typing import Any

from diversity_jax.cluster_agent.estimators import Groupings, collision
from diversity_jax.cluster_agent.text_cleaning import child_seed
from diversity_jax.cluster_agent.types import Cluster, Sample
from diversity_jax.core.files import read_json
from diversity_jax.core.intervals import Estimate

_WORD = re.compile(r"[^\W\d_]{4,}")
_LOOKED_AT_CHARACTERS = 600  # of a text, to choose what is foreign to it

FOREIGN = "canary"  # the document that planted foreign texts are said to be from
PLANTED_TEXTS: Mapping[str, Any] = read_json(Path(__file__).with_name("planted_texts.json"))
# Subjects far apart, so that whatever a corpus is about at least one of them is foreign to it.
FOREIGN_TEXTS: tuple[str, ...] = tuple(PLANTED_TEXTS["foreign"])
_FOREIGN_WORDS = tuple(frozenset(_WORD.findall(text.casefold())) for text in FOREIGN_TEXTS)


@dataclass(frozen=True, kw_only=True)
class Canary:
    """Ids of one grouping's planted pair: `copy` repeats `original`, `foreign` belongs with neither."""

    original: str
    copy: str
    foreign: str


@dataclass(frozen=True, kw_only=True)
class CanaryResult:
    """What a grouping made of its canary; `split` also where verification denied that a text is like its own copy."""

    merged: bool
    split: bool

    @property
    def passed(self) -> bool:
        """Whether both pairs were grouped rightly."""
        return not (self.merged or self.split)


def plant(samples: Sequence[Sample], ids: Sequence[str], generator: random.Random) -> tuple[tuple[Sample, ...], Canary]:
    """`samples` with a copy of one of them and a foreign text inserted at random, under the two new `ids`.

    The foreign text is the one that shares the fewest longer words with the copied sample, the first such after a
    random start.
    """
    original = samples[int(generator.random() * len(samples))]
    start = int(generator.random() * len(FOREIGN_TEXTS))
    words = set(_WORD.findall(original.text[:_LOOKED_AT_CHARACTERS].casefold()))
    turned = [(start + turn) % len(FOREIGN_TEXTS) for turn in range(len(FOREIGN_TEXTS))]
    foreign = FOREIGN_TEXTS[min(turned, key=lambda number: len(words & _FOREIGN_WORDS[number]))]
    shown = list(samples)
    copied = Sample(sample_id=ids[0], text=original.text, document=original.document)
    for planted in (copied, Sample(sample_id=ids[1], text=foreign, document=FOREIGN)):
        shown.insert(int(generator.random() * (len(shown) + 1)), planted)
    return tuple(shown), Canary(original=original.sample_id, copy=ids[0], foreign=ids[1])


def canary_result(clusters: Sequence[Cluster], canary: Canary) -> CanaryResult:
    """Whether a partition split the duplicate pair or merged the unrelated one."""
    cluster_of = {sample_id: number for number, cluster in enumerate(clusters) for sample_id in cluster.sample_ids}
    own = cluster_of[canary.original]
    return CanaryResult(merged=own == cluster_of[canary.foreign], split=own != cluster_of[canary.copy])


def without_planted(clusters: Sequence[Cluster], canary: Canary | None) -> tuple[Cluster, ...]:
    """The partition of the drawn samples alone."""
    if canary is None:
        return tuple(clusters)
    planted = {canary.copy, canary.foreign}
    left = [replace(c, sample_ids=tuple(i for i in c.sample_ids if i not in planted)) for c in clusters]
    return tuple(cluster for cluster in left if cluster.sample_ids)


def with_control_cluster(clusters: Sequence[Cluster], canary: Canary | None) -> tuple[tuple[Cluster, ...], int | None]:
    """Clusters for verification, with one inserted that is certainly valid, a text and its copy; and its position.

    It catches a document that has every cluster called invalid, which the partition alone would not show.
    """
    if canary is None:
        return tuple(clusters), None
    position = child_seed(canary.copy, canary.foreign) % (len(clusters) + 1)
    control = Cluster(sample_ids=(canary.original, canary.copy), reasoning="these two say the same")
    return (*clusters[:position], control, *clusters[position:]), position


@dataclass(frozen=True, kw_only=True)
class ErrorRates:
    """Canaries shown, and how many of them a judge merged (the unrelated pair) or split (the duplicate pair)."""

    shown: int
    merged: int
    split: int

    def to_json(self) -> dict[str, Any]:
        """Counts, rates with exact 95 % intervals, and the ceiling of the score; None where nothing was shown."""
        rates = {name: getattr(self, name) for name in ("false_merge", "false_split")}
        values = {name: rate and rate.to_json() for name, rate in rates.items()}
        return {**vars(self), **values, "ceiling": self.ceiling}

    @property
    def false_merge(self) -> Estimate | None:
        """a, with its interval."""
        return binomial(self.merged, self.shown)

    @property
    def false_split(self) -> Estimate | None:
        """b, with its interval."""
        return binomial(self.split, self.shown)

    @property
    def ceiling(self) -> dict[str, float | None] | None:
        """The most effective clusters this judge can tell apart: 1 / a, None without a merge; `low` at the upper a."""
        if self.false_merge is None:
            return None
        upper = self.false_merge.bounds[1]
        return {"value": self.shown / self.merged if self.merged else None, "low": 1.0 / upper}


def binomial(events: int, trials: int, confidence: float = 0.95) -> Estimate | None:
    """A rate with its exact interval (Clopper and Pearson 1934); None without trials."""
    if not trials:
        return None
    from scipy.special import betaincinv

    error = (1 - confidence) / 2
    low = float(betaincinv(events, trials - events + 1, error)) if events else 0.0
    high = float(betaincinv(events + 1, trials - events, 1 - error)) if events < trials else 1.0
    return Estimate(value=events / trials, low=low, high=high)


def corrected(groupings: Groupings, rates: ErrorRates, confidence: float = 0.95) -> Estimate | None:
    """Effective clusters without the judge's errors: theta = (T - a) / (1 - a - b).

    The three intervals are joined by their distances to each side (the method of variance estimates recovery, Zou and
    Donner 2008), since that of a rate seen a few times is far from symmetric. `high` is None where T cannot be told
    from a. None where there is nothing to correct by: no canary shown, or a judge that errs so often (a + b >= 1) that
    its partitions say nothing.
    """
    merge, split = rates.false_merge, rates.false_split
    if merge is None or split is None or merge.value + split.value >= 1:
        return None
    measured = collision(groupings, confidence)
    (low_t, high_t), (low_a, high_a), (low_b, high_b) = (part.bounds for part in (measured, merge, split))
    gain = 1 - merge.value - split.value
    theta = (measured.value - merge.value) / gain
    below = measured.value - low_t, (1 - theta) * (high_a - merge.value), theta * (split.value - low_b)
    above = high_t - measured.value, (1 - theta) * (merge.value - low_a), theta * (high_b - split.value)
    low, high = theta - math.hypot(*below) / gain, theta + math.hypot(*above) / gain
    least = 1.0 / min(1.0, max(high, 1e-12))
    value = max(1.0, 1.0 / theta) if theta > 0 else least
    return Estimate(value=value, low=least, high=max(1.0, 1.0 / low) if low > 0 else None)
