#!/usr/bin/env python3
"""False and true decisions when two corpora are compared at repeated looks, by simulation with a judge that makes no
mistake.

    python scripts/simulations/simulate_sequential.py [--runs 2000] [--groupings 400]

Prints how often two EQUALLY diverse corpora are called different: at one look, at 8 looks with the error spent over
them, and at 8 and 40 looks that each pretend to be the only one; then how soon corpora that differ are told apart. A
share of 5 % over 2,000 runs is itself uncertain by 1 point (95 %).
"""

import argparse
from pathlib import Path
import sys

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from diversity_jax.cluster_agent.groupings import Groupings
from diversity_jax.cluster_agent.sequential_test import compare_groupings, compare_in_looks
from tests.simulated_corpus import even_shares, simulate_groupings


def draw(shares, k: int, count: int, generator: np.random.Generator) -> Groupings:
    """Groupings of one corpus."""
    return simulate_groupings(shares, samples_per_grouping=k, groupings=count, generator=generator)


def peeking_decides(a: Groupings, b: Groupings, looks: int) -> bool:
    """Whether any of so many looks, each at the full 5 %, calls them different."""
    parts = ((a.first(len(a) * n // looks), b.first(len(b) * n // looks)) for n in range(1, looks + 1))
    return any(compare_groupings(x, y, paired=True).decided for x, y in parts)


def table_of_false_decisions(runs: int, count: int, generator: np.random.Generator) -> None:
    """Equal corpora; criteria sets that both share cancel, whatever they do."""
    print(f"\nfalse decisions, {runs} pairs of equally diverse corpora, {count} groupings each")
    print(
        f"{'truth':>6} {'K':>3} {'B':>2} {'one look':>9} {'8 looks, spent':>15} {'8 looks, peeking':>17} "
        f"{'40 looks, peeking':>18}"
    )
    total = np.zeros(2)
    cases = [(truth, k, sets) for truth in (5, 50, 500) for k in (10, 20) for sets in (1, 5)]
    for truth, k, sets in cases:
        decisions = np.zeros(4)
        for _ in range(runs):
            shares = [even_shares(round(truth * f)) for f in np.exp(generator.normal(0, 0.1 * (sets > 1), sets))]
            a, b = (draw(shares if sets > 1 else shares[0], k, count, generator) for _ in range(2))
            decisions += (
                compare_in_looks(a, b, paired=True, looks=1).decided,
                compare_in_looks(a, b, paired=True).decided,
                peeking_decides(a, b, 8),
                peeking_decides(a, b, 40) if sets == 1 else 0,
            )
        total += decisions[:2]
        last = f"{decisions[3] / runs:18.1%}" if sets == 1 else f"{'':>18}"
        once, spent, peeking = decisions[:3] / runs
        print(f"{truth:6} {k:3} {sets:2} {once:9.1%} {spent:15.1%} {peeking:17.1%} {last}", flush=True)
    share = total / (runs * len(cases))
    print(f"   all together {share[0]:9.2%} {share[1]:15.2%}")


def table_of_power(runs: int, count: int, generator: np.random.Generator) -> None:
    """Corpora that differ."""
    print(
        f"\ntrue decisions, {runs} pairs, at most {count} groupings each, K = 10, 8 looks with the error spent "
        "over "
        "them"
    )
    print(f"{'a':>5} {'b':>5} {'B':>2} {'decided':>8} {'rightly':>8} {'mean groupings used':>20}")
    for first, second in ((20, 25), (20, 40), (50, 100), (50, 500)):
        for sets in (1, 5):
            decided, right, used = 0, 0, []
            for _ in range(runs):
                pair = []
                effects = np.exp(generator.normal(0, 0.1 * (sets > 1), sets))
                for truth in (first, second):
                    shares = [even_shares(max(2, round(truth * effect))) for effect in effects]
                    pair.append(draw(shares if sets > 1 else shares[0], 10, count, generator))
                decisions = compare_in_looks(*pair, paired=True)
                decided += decisions.decided
                right += decisions.higher == "b"
                used.append(decisions.groupings[0])
            print(
                f"{first:5} {second:5} {sets:2} {decided / runs:8.1%} {right / runs:8.1%} {np.mean(used):20.0f}",
                flush=True,
            )


def main() -> None:
    """Prints all tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=2000)
    parser.add_argument("--groupings", type=int, default=400)
    parser.add_argument("--seed", type=int, default=0)
    flags = parser.parse_args()
    generator = np.random.default_rng(flags.seed)
    table_of_false_decisions(flags.runs, flags.groupings, generator)
    table_of_power(max(200, flags.runs // 5), flags.groupings, generator)


if __name__ == "__main__":
    main()
