"""What a judge's own mistakes do to the score: false merges set a ceiling, and both kinds can be corrected for.

A judge that merges two unrelated samples with probability a and splits two alike ones with probability b gives
E[T] = theta (1 - b) + (1 - theta) a. However diverse the corpus, T stays above a: nothing above 1 / a can be told apart.
"""

from dataclasses import dataclass
import math
from typing import Any

from diversity_jax.cluster_agent.estimators import Estimate, Groupings, collision


@dataclass(frozen=True, kw_only=True)
class ErrorRates:
    """Counts over canaries: how often a judge merged an unrelated pair and split a duplicate pair, of how many shown."""

    shown: int
    merged: int
    split: int

    def to_json(self) -> dict[str, Any]:
        """Counts, rates with exact 95 % intervals, and the ceiling of the score; `false_merge` is None where nothing was shown."""
        merge, split = self.false_merge, self.false_split
        return {
            "shown": self.shown,
            "merged": self.merged,
            "split": self.split,
            "false_merge": merge and merge.to_json(),
            "false_split": split and split.to_json(),
            "ceiling": self.ceiling,
        }

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
        """The most effective clusters this judge can tell apart: `value` 1 / a (None: no merge seen), `low` at the upper end of a."""
        if self.false_merge is None:
            return None
        return {"value": self.shown / self.merged if self.merged else None, "low": 1.0 / self.false_merge.high}


def binomial(events: int, trials: int, confidence: float = 0.95) -> Estimate | None:
    """A rate with its exact (Clopper-Pearson) interval; None without trials."""
    if not trials:
        return None
    from scipy.special import betaincinv

    tail = (1 - confidence) / 2
    low = float(betaincinv(events, trials - events + 1, tail)) if events else 0.0
    high = float(betaincinv(events + 1, trials - events, 1 - tail)) if events < trials else 1.0
    return Estimate(value=events / trials, low=low, high=high)


def corrected(groupings: Groupings, rates: ErrorRates, confidence: float = 0.95) -> Estimate | None:
    """Effective clusters with the judge's errors taken out: theta = (T - a) / (1 - a - b).

    The three intervals are joined by their distances to each side (the method of variance estimates recovery), since that of a
    rate seen a few times is far from symmetric. `high` is None where T cannot be told from a. None where there is nothing to
    correct by: no canary shown, or a judge that errs so often (a + b >= 1) that its partitions say nothing.
    """
    merge, split = rates.false_merge, rates.false_split
    if merge is None or merge.value + split.value >= 1:
        return None
    measured = collision(groupings, confidence)
    gain = 1 - merge.value - split.value
    theta = (measured.value - merge.value) / gain
    below = measured.value - measured.low, (1 - theta) * (merge.high - merge.value), theta * (split.value - split.low)
    above = measured.high - measured.value, (1 - theta) * (merge.value - merge.low), theta * (split.high - split.value)
    low, high = theta - math.hypot(*below) / gain, theta + math.hypot(*above) / gain
    least = 1.0 / min(1.0, max(high, 1e-12))
    value = max(1.0, 1.0 / theta) if theta > 0 else least
    return Estimate(value=value, low=least, high=max(1.0, 1.0 / low) if low > 0 else None)
