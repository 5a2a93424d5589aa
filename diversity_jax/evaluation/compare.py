"""Two checkpoints on the same items: McNemar's exact test for each task, and a paired bootstrap of the average."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
import math

import numpy as np

from diversity_jax.errors import InputError
from diversity_jax.evaluation.results import Outcome


@dataclass(frozen=True, kw_only=True)
class TaskComparison:
    """One task: this model against the other.

    Attributes:
      items: judged by both.
      only_this, only_other: items that one alone gets right.
      difference: this minus the other, with its 95 % interval by a paired bootstrap.
      p_value: that a difference so large arises between equals: McNemar's exact test for right-or-wrong scores, else the bootstrap's.
    """

    items: int
    only_this: int
    only_other: int
    difference: float
    low: float
    high: float
    p_value: float


@dataclass(frozen=True, kw_only=True)
class AverageComparison:
    """The mean over tasks, each weighing the same."""

    difference: float
    low: float
    high: float
    p_value: float


def mcnemar(only_this: int, only_other: int) -> float:
    """Two-sided exact p-value: the discordant items are fair coin throws between equals."""
    n, least = only_this + only_other, min(only_this, only_other)
    if n == 0:
        return 1.0
    logs = [math.lgamma(n + 1) - math.lgamma(i + 1) - math.lgamma(n - i + 1) - n * math.log(2) for i in range(least + 1)]
    return min(1.0, 2 * math.fsum(math.exp(one) for one in logs))


def compare(
    this: Mapping[str, Sequence[Outcome]], other: Mapping[str, Sequence[Outcome]], *, draws: int, seed: int = 0
) -> tuple[dict[str, TaskComparison], AverageComparison | None]:
    """Compares two evaluations task by task and on average, over the tasks that both have.

    Args:
      draws: of the bootstrap, which draws items, each with both outcomes, within every task.

    Raises:
      InputError: no task in common, or a task whose items are not the same.
    """
    shared = [task for task in this if task in other]
    if not shared:
        raise InputError("the two evaluations have no task in common; evaluate both on the same tasks")
    generator = np.random.default_rng(seed)
    compared, means = {}, []
    for task in shared:
        ours, theirs = _paired(task, this[task], other[task])
        differences = ours - theirs
        means.append(_bootstrap_means(differences, draws, generator))
        binary = bool(np.isin(ours, (0, 1)).all() and np.isin(theirs, (0, 1)).all())
        only_this, only_other = int((differences > 0).sum()), int((differences < 0).sum())
        compared[task] = TaskComparison(
            items=len(ours),
            only_this=only_this,
            only_other=only_other,
            difference=float(differences.mean()),
            **_interval(means[-1]),
            p_value=mcnemar(only_this, only_other) if binary else _p_value(means[-1]),
        )
    average = np.mean(means, axis=0)
    difference = float(np.mean([one.difference for one in compared.values()]))
    return compared, AverageComparison(difference=difference, **_interval(average), p_value=_p_value(average))


def _paired(task: str, ours: Sequence[Outcome], theirs: Sequence[Outcome]) -> tuple[np.ndarray, np.ndarray]:
    first, second = ({one.item: one.score for one in rows} for rows in (ours, theirs))
    if set(first) != set(second) or not first:
        both = len(set(first) & set(second))
        raise InputError(
            f"{task}: the evaluations judged {len(first):,} and {len(second):,} items, {both:,} of them the same; "
            "evaluate both on the same data and with the same limit"
        )
    items = sorted(first)
    return np.array([first[item] for item in items]), np.array([second[item] for item in items])


def _bootstrap_means(values: np.ndarray, draws: int, generator: np.random.Generator) -> np.ndarray:
    """Means of resamples; equal values are drawn together, which is the same and needs no n x draws array."""
    kinds, counts = np.unique(values, return_counts=True)
    drawn = generator.multinomial(len(values), counts / len(values), size=draws)
    return drawn @ kinds / len(values)


def _interval(means: np.ndarray) -> dict[str, float]:
    low, high = np.quantile(means, (0.025, 0.975))
    return {"low": float(low), "high": float(high)}


def _p_value(means: np.ndarray) -> float:
    """Twice the share of resamples on the far side of zero, never below what so many draws can tell."""
    tail = min((means <= 0).mean(), (means >= 0).mean())
    return float(min(1.0, max(2 * tail, 1 / len(means))))
