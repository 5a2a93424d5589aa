"""What a run should ask for: how many groupings, what share of them verified, and how many samples at once."""

import math

import numpy as np

from diversity_jax.cluster_agent.estimators import collision_variance, values
from diversity_jax.cluster_agent.groupings import Groupings
from diversity_jax.core.intervals import Estimate

LEAST_VERIFIED = 0.1  # share of the groupings: what verification changes is rare, and has to be seen to be corrected
DRIFT_TOLERANCE = 0.1  # of T, on the log scale: as much as a score's own interval usually is wide


def groupings_needed(
    theta: float, theta3: float, samples_per_grouping: int, relative: float = 0.05, confidence: float = 0.95
) -> int:
    """Groupings for an interval of +-`relative` around 1 / theta, with one criteria set."""
    from scipy.special import ndtri

    variance = collision_variance(theta, theta3, samples_per_grouping) / theta**2
    return math.ceil(variance * (ndtri(0.5 + confidence / 2) / relative) ** 2)


def verification_share(groupings: Groupings, price_cluster: float, price_verify: float) -> float:
    """Share q of the groupings to verify so that a wanted error costs least (double sampling, Cochran 1977, 12.5).

    The variance of a grouping's part in T is s^2 + (1/q - 1) d^2, where s^2 is the variance of its value and d^2 that
    of the change that verification makes; its price is that of clustering and q times that of verifying. The product is
    least at q = sqrt(d^2 price_cluster / ((s^2 - d^2) price_verify)).

    Args:
      groupings: usable groupings so far, some of them verified.
      price_cluster, price_verify: of the two calls of one grouping, in one unit.
    """
    if groupings.weight is None or groupings.claimed_pairs is None or not groupings.weight.any():
        return 1.0
    verified = groupings.weight > 0
    change = (groupings.claimed_pairs - groupings.pairs)[verified] / groupings.possible_pairs
    # One change more than was seen: where 40 groupings show none, one in 40 may still be changed.
    change = np.append(change, 1 / groupings.possible_pairs if not change.any() else change[change > 0].mean())
    changed, whole = float(change.var()), float(values(groupings).var())
    if whole <= changed or price_verify <= 0:
        return 1.0
    share = math.sqrt(changed * price_cluster / ((whole - changed) * price_verify))
    return min(1.0, max(LEAST_VERIFIED, share))


def drifts(difference: Estimate, tolerance: float = DRIFT_TOLERANCE) -> bool | None:
    """Whether a judge drifts at K, from log T of the same pairs judged at K less that at K/2; None where more rechecks
    are needed to tell.

    It drifts where the interval leaves out 0 and the difference is at least `tolerance`; it does not where the whole
    interval lies within twice the tolerance.
    """
    low, high = difference.bounds
    if (low > 0 or high < 0) and abs(difference.value) >= tolerance:
        return True
    return False if -2 * tolerance <= low and high <= 2 * tolerance else None
