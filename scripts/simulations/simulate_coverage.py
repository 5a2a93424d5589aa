#!/usr/bin/env python3
"""How often intervals of the diversity score hold the truth, by simulation with a judge that makes no mistake.

    python scripts/simulations/simulate_coverage.py [--runs 500] [--groupings 500]

Prints, for 5, 50 and 500 equally common clusters and K = 5, 10, 20: the mean of each figure, and the share of runs
whose 95 % interval of `effective_clusters` holds the truth, with one criteria set and with five; then coverage with
criteria that differ, with a judge that errs, and when a run stops at a wanted precision. A share over 500 runs is
itself uncertain by 1.9 points (95 %).
"""

import argparse
from pathlib import Path
import sys

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from diversity_jax.cluster_agent.canaries import ErrorRates, corrected
from diversity_jax.cluster_agent.estimators import cluster_score, effective_clusters
from diversity_jax.cluster_agent.groupings import Groupings
from diversity_jax.cluster_agent.sampling_plan import groupings_needed
from diversity_jax.cluster_agent.sequential_test import precise_enough
from tests.simulated_corpus import even_shares, simulate_groupings, zipf_shares

TRUTHS = (5, 50, 500)


def holds(estimate, truth: float) -> bool:
    """Whether an interval holds the truth."""
    return estimate.low <= truth and (estimate.high is None or truth <= estimate.high)


def with_sets(groupings: Groupings, sets: int) -> Groupings:
    """The same groupings dealt out to so many criteria sets."""
    columns = {name: getattr(groupings, name) for name in ("clusters", "kept", "pairs")}
    return Groupings(
        samples_per_grouping=groupings.samples_per_grouping, criteria_set=np.arange(len(groupings)) % sets, **columns
    )


def table_of_coverage(runs: int, count: int, generator: np.random.Generator) -> None:
    """Mean figures and coverage by truth and K."""
    print(f"\n{runs} runs of {count} groupings, equal clusters")
    print(
        f"{'truth':>6} {'K':>3} {'C^2/K':>7} {'1/mean T':>9} {'bound only':>11} {'coverage B=1':>13} "
        f"{'coverage B=5':>13}"
    )
    for truth in TRUTHS:
        for k in (5, 10, 20):
            scores, collisions, bounds, held = [], [], 0, np.zeros(2)
            for _ in range(runs):
                groupings = simulate_groupings(
                    even_shares(truth), samples_per_grouping=k, groupings=count, generator=generator
                )
                item = effective_clusters(groupings)
                scores.append(cluster_score(groupings).value)
                collisions.append(groupings.collisions.mean())
                bounds += item.high is None
                held += holds(item, truth), holds(effective_clusters(with_sets(groupings, 5)), truth)
            figures = f"{np.mean(scores):7.2f} {1 / np.mean(collisions):9.1f} {bounds / runs:11.1%}"
            print(f"{truth:6} {k:3} {figures} {held[0] / runs:13.1%} {held[1] / runs:13.1%}", flush=True)


def table_of_spread(runs: int, count: int, generator: np.random.Generator) -> None:
    """Coverage when criteria sets differ by 10 % in how finely they divide."""
    print(f"\n{runs} runs of {count} groupings, K = 10, collision of a criteria set off by 10 % (standard deviation)")
    print(f"{'truth':>6} {'groupings only':>15} {'two-level B=5':>14} {'two-level B=10':>15}")
    for truth in (5, 50):
        held = {1: 0, 5: 0, 10: 0}
        for sets in (5, 10):
            for _ in range(runs):
                shares = [_off_by(truth, generator.normal(0, 0.1)) for _ in range(sets)]
                groupings = simulate_groupings(shares, samples_per_grouping=10, groupings=count, generator=generator)
                held[sets] += holds(effective_clusters(groupings), truth)
                held[1] += sets == 5 and holds(effective_clusters(with_sets(groupings, 1)), truth)
        print(f"{truth:6} {held[1] / runs:15.1%} {held[5] / runs:14.1%} {held[10] / runs:15.1%}", flush=True)


def _off_by(truth: int, relative: float) -> np.ndarray:
    """Shares with sum p^2 = (1 + relative) / truth: the clusters with one of them made larger, or with more of them."""
    theta = (1 + relative) / truth
    count = max(truth, int(np.ceil(1 / theta)))
    # One share x, the others alike: x^2 + (1 - x)^2 / (count - 1) = theta.
    rest = count - 1
    x = (1 + np.sqrt(max(0.0, 1 - (1 + rest) * (1 - theta * rest)))) / (1 + rest)
    return np.array([x] + [(1 - x) / rest] * rest)


def table_of_errors(runs: int, count: int, generator: np.random.Generator) -> None:
    """A judge that merges or splits pairs by mistake: what the score reads, the ceiling, and the corrected score."""
    print(
        f"\n{runs} runs of {count} groupings, K = 10: a judge with false merge a and false split b, canaries in "
        "every "
        "grouping"
    )
    print(f"{'truth':>6} {'a':>6} {'b':>5} {'reads':>8} {'ceiling 1/a':>12} {'corrected':>10} {'coverage':>9}")
    for truth, a, b in ((5, 0.01, 0.05), (50, 0.01, 0.05), (50, 0.002, 0.1), (500, 0.01, 0.05)):
        reads, fixed, held = [], [], 0
        for _ in range(runs):
            groupings = simulate_groupings(
                even_shares(truth), samples_per_grouping=10, groupings=count, generator=generator
            )
            total = groupings.possible_pairs
            pairs = generator.binomial(groupings.pairs, 1 - b) + generator.binomial(total - groupings.pairs, a)
            remaining = {"clusters": groupings.clusters, "kept": groupings.kept, "criteria_set": groupings.criteria_set}
            spoilt = Groupings(samples_per_grouping=10, pairs=pairs, **remaining)
            rates = ErrorRates(
                shown=count, merged=int(generator.binomial(count, a)), split=int(generator.binomial(count, b))
            )
            reads.append(effective_clusters(spoilt).value)
            estimate = corrected(spoilt, rates)
            fixed.append(estimate.value)
            held += holds(estimate, truth)
        print(
            f"{truth:6} {a:6} {b:5} {np.mean(reads):8.1f} {1 / a:12.0f} {np.median(fixed):10.1f} {held / runs:9.1%}",
            flush=True,
        )


def table_of_stopping(runs: int, generator: np.random.Generator) -> None:
    """Coverage of runs that stop at a half-width, looked at every 50 groupings."""
    print(
        f"\n{runs} runs that stop once the half-width is small enough and 50 pairs were seen; a look every 50 groupings"
    )
    print(f"{'truth':>6} {'K':>3} {'wanted':>7} {'groupings':>10} {'coverage':>9}")
    for truth, k, wanted in ((5, 10, 0.1), (5, 20, 0.05), (50, 10, 0.1), (50, 20, 0.1), (500, 20, 0.15)):
        used, held = [], 0
        for _ in range(runs):
            longest = 4 * groupings_needed(1 / truth, 1 / truth**2, k, wanted)
            everything = simulate_groupings(
                even_shares(truth), samples_per_grouping=k, groupings=longest, generator=generator
            )
            count = next((n for n in range(50, longest, 50) if precise_enough(everything.first(n), wanted)), longest)
            used.append(count)
            held += holds(effective_clusters(everything.first(count)), truth)
        print(f"{truth:6} {k:3} {wanted:7.0%} {np.mean(used):10.0f} {held / runs:9.1%}", flush=True)


def table_of_sizes() -> None:
    """Groupings for a half-width of 5 % at 95 %."""
    print("\ngroupings for +-5 % at 95 %, equal clusters / Zipf(0.75)")
    print(f"{'truth':>6} {'K=10':>16} {'K=20':>16}")
    for truth in TRUTHS:
        even, zipf = even_shares(truth), zipf_shares(truth)
        cells = []
        for k in (10, 20):
            needed = [groupings_needed(np.square(p).sum(), (p**3).sum(), k) for p in (even, zipf)]
            cells.append(f"{needed[0]:,} / {needed[1]:,}")
        print(f"{truth:6} {cells[0]:>16} {cells[1]:>16}")


def main() -> None:
    """Prints all tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=500)
    parser.add_argument("--groupings", type=int, default=500)
    parser.add_argument("--seed", type=int, default=0)
    flags = parser.parse_args()
    generator = np.random.default_rng(flags.seed)
    table_of_coverage(flags.runs, flags.groupings, generator)
    table_of_spread(flags.runs, 4 * flags.groupings, generator)
    table_of_errors(flags.runs, flags.groupings, generator)
    table_of_stopping(flags.runs, generator)
    table_of_sizes()


if __name__ == "__main__":
    main()
