#!/usr/bin/env python3
"""False and true decisions when two corpora are compared at repeated looks, by simulation over labels that are known.

    python scripts/simulations/simulate_sequential.py [--runs 500]

First how often two corpora drawn from ONE population are called different, by the number of their documents: at one
look, at 8 looks with the error spent over them, with the interval of exactly these documents, and where every one of 8
looks pretends to be the only one; then how soon corpora that differ are told apart. A share of 5 % over 500 runs is
itself uncertain by 1.9 points (95 %).
"""

import argparse
from pathlib import Path
import sys

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from diversity_jax.cluster_agent.groupings import Groupings
from diversity_jax.cluster_agent.sequential_test import compare_groupings, compare_in_looks
from tests.simulated_corpus import (
    POPULATIONS,
    draw_labels,
    draw_rows,
    groupings_of_labels,
    shares_off_by,
    simulate_groupings,
)

GROUPINGS = 400


def peeking_decides(a: Groupings, b: Groupings, looks: int, documents: tuple[int, int]) -> bool:
    """Whether any of several looks, each at the full 5 %, decides that they differ."""
    parts = ((a.first(len(a) * n // looks), b.first(len(b) * n // looks)) for n in range(1, looks + 1))
    return any(compare_groupings(x, y, paired=True, documents=documents).decided for x, y in parts)


def table_of_samples(runs: int, generator: np.random.Generator) -> None:
    """Two corpora of one population."""
    print(f"\nfalse decisions, {runs} pairs of corpora drawn from one population, {GROUPINGS} groupings each")
    print(f"{'population':>18} {'D':>5} {'K':>3} {'one look':>9} {'8 looks':>8} {'these documents':>16} {'8 peeks':>8}")
    total, cases = np.zeros(2), 0
    for name, population in POPULATIONS.items():
        for documents in (200, 1000, 7000):
            shares = population(documents)
            for k in (5, 20, 40):
                decisions = np.zeros(4)
                for _ in range(runs):
                    labels = [draw_labels(shares, documents, generator) for _ in range(2)]
                    a, b = (
                        groupings_of_labels(topics[draw_rows(documents, GROUPINGS, k, generator)]) for topics in labels
                    )
                    sizes = documents, documents
                    decisions += (
                        compare_groupings(a, b, paired=True, documents=sizes).decided,
                        compare_in_looks(a, b, paired=True, documents=sizes).decided,
                        compare_groupings(a, b, paired=True).decided,
                        peeking_decides(a, b, 8, sizes),
                    )
                total, cases = total + decisions[:2], cases + runs
                single, spent, exactly, peeking = decisions / runs
                print(
                    f"{name:>18} {documents:5} {k:3} {single:9.1%} {spent:8.1%} {exactly:16.1%} {peeking:8.1%}",
                    flush=True,
                )
    print(f"{'all together':>28} {total[0] / cases:9.2%} {total[1] / cases:8.2%}")


def pair(first: float, second: float, sets: int, spread: float, generator: np.random.Generator) -> list[Groupings]:
    """Groupings of two corpora of so many clusters under the same criteria sets, K = 10."""
    effects = generator.normal(0, spread, sets)
    return [
        simulate_groupings(
            [shares_off_by(truth, effect) for effect in effects],
            samples_per_grouping=10,
            groupings=GROUPINGS,
            generator=generator,
        )
        for truth in (first, second)
    ]


def table_of_sets(runs: int, generator: np.random.Generator) -> None:
    """Equal corpora judged by the same criteria sets, whose effects cancel, and by two separate choices of sets."""
    print(f"\nfalse decisions, {runs} pairs of equal corpora (50 clusters, K = 10), sets whose T differs by so much")
    print(f"{'B':>3} {'spread':>7} {'same sets':>10} {'8 looks':>8} {'other sets':>11} {'8 looks':>8}")
    for sets in (2, 3, 5, 10):
        for spread in (0.0, 0.1, 0.2):
            decisions = np.zeros(4)
            for _ in range(runs):
                a, b = pair(50, 50, sets, spread, generator)
                other = pair(50, 50, sets, spread, generator)[0]
                decisions += [
                    compare_in_looks(a, other_side, paired=paired, looks=looks).decided
                    for other_side, paired in ((b, True), (other, False))
                    for looks in (1, 8)
                ]
            same, same_looks, others, others_looks = decisions / runs
            print(
                f"{sets:3} {spread:7.0%} {same:10.1%} {same_looks:8.1%} {others:11.1%} {others_looks:8.1%}", flush=True
            )


def table_of_power(runs: int, generator: np.random.Generator) -> None:
    """Corpora that differ, and are large."""
    print(f"\ntrue decisions, {runs} pairs, at most {GROUPINGS} groupings each, K = 10, 8 looks, sets differ by 10 %")
    print(f"{'a':>5} {'b':>5} {'B':>2} {'decided':>8} {'rightly':>8} {'mean groupings used':>20}")
    for first, second in ((20, 25), (20, 40), (50, 100), (50, 500)):
        for sets in (1, 2, 5):
            comparisons = [
                compare_in_looks(*pair(first, second, sets, 0.1 * (sets > 1), generator), paired=True)
                for _ in range(runs)
            ]
            decided, right = (
                np.mean([comparison.decided for comparison in comparisons]),
                np.mean([comparison.higher == "b" for comparison in comparisons]),
            )
            used = np.mean([comparison.groupings[0] for comparison in comparisons])
            print(f"{first:5} {second:5} {sets:2} {decided:8.1%} {right:8.1%} {used:20.0f}", flush=True)


def main() -> None:
    """Prints all tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=500)
    parser.add_argument("--seed", type=int, default=0)
    flags = parser.parse_args()
    for table in (table_of_samples, table_of_sets, table_of_power):
        table(flags.runs, np.random.default_rng(flags.seed))


if __name__ == "__main__":
    main()
