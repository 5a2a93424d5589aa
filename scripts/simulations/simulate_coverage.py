#!/usr/bin/env python3
"""Coverage of the intervals of the diversity score, by simulation with known labels.

    python scripts/simulations/simulate_coverage.py [--runs 500]

One table each for: the figures by K; the sampling of documents; criteria sets that differ; verification of a share of
the groupings; a correction by canaries; stopping at a precision; and sizes. A share over 500 runs is itself uncertain
by 1.9 points (95 %).
"""

import argparse
from pathlib import Path
import sys

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from diversity_jax.cluster_agent import AgentConfig, estimators, score_corpus
from diversity_jax.cluster_agent.canaries import ErrorRates, corrected
from diversity_jax.cluster_agent.estimators import groupings_needed, verification_share
from diversity_jax.cluster_agent.groupings import Groupings
from diversity_jax.cluster_agent.sequential_test import precise_enough
from tests.faulty_judges import FaultyJudge
from tests.simulated_corpus import (
    POPULATIONS,
    LabelledCorpus,
    draw_labels,
    draw_rows,
    even_shares,
    groupings_of_labels,
    misplace,
    misplaced_groupings,
    shares_off_by,
    simulate_groupings,
    zipf_shares,
)

TRUTHS = (5, 50, 500)
PILOT = 40  # groupings that are all verified, before the share for the others is chosen


def holds(estimate, truth: float) -> bool:
    """Whether an interval holds the truth."""
    low, high = estimate.bounds
    return low <= truth <= high


def table_of_figures(runs: int, generator: np.random.Generator) -> None:
    """Mean figures and coverage by truth and K."""
    print(f"\n{runs} runs of 500 groupings, equal clusters, criteria sets that agree")
    print(f"{'truth':>6} {'K':>3} {'C^2/K':>7} {'1/mean T':>9} {'bound only':>11} {'B=1':>7} {'B=5':>7}")
    for truth in TRUTHS:
        for k in (5, 10, 20, 40):
            pairs = [
                [
                    simulate_groupings(
                        [even_shares(truth)] * sets, samples_per_grouping=k, groupings=500, generator=generator
                    )
                    for sets in (1, 5)
                ]
                for _ in range(runs)
            ]
            figures = [[estimators.effective_clusters(groupings) for groupings in pair] for pair in pairs]
            score = np.mean([estimators.cluster_score(pair[0]).value for pair in pairs])
            mean = 1 / np.mean([pair[0].collisions.mean() for pair in pairs])
            bounds = np.mean([pair[0].high is None for pair in figures])
            held = [np.mean([holds(pair[number], truth) for pair in figures]) for number in (0, 1)]
            print(f"{truth:6} {k:3} {score:7.2f} {mean:9.1f} {bounds:11.1%} {held[0]:7.1%} {held[1]:7.1%}", flush=True)


def table_of_documents(runs: int, generator: np.random.Generator) -> None:
    """Corpora drawn from a population: coverage of its value, and of the value of exactly these documents."""
    print(f"\n{runs} corpora of D documents drawn from one population, 400 groupings each")
    print(f"{'population':>18} {'D':>5} {'K':>3} {'population':>11} {'of these documents':>19}")
    for name, population in POPULATIONS.items():
        for documents in (200, 1000, 7000):
            shares = population(documents)
            for k in (5, 20, 40):
                held = np.zeros(2)
                for _ in range(runs):
                    labels = draw_labels(shares, documents, generator)
                    groupings = groupings_of_labels(labels[draw_rows(documents, 400, k, generator)])
                    sizes = np.bincount(labels)
                    exactly = (sizes * (sizes - 1)).sum() / (documents * (documents - 1))
                    held += (
                        holds(estimators.collision(groupings, documents=documents), np.square(shares).sum()),
                        holds(estimators.collision(groupings), exactly),
                    )
                print(f"{name:>18} {documents:5} {k:3} {held[0] / runs:11.1%} {held[1] / runs:19.1%}", flush=True)


def table_of_spread(runs: int, generator: np.random.Generator) -> None:
    """Criteria sets that differ: coverage, and the interval's width on the log scale over that of t with B - 1."""
    print(f"\n{runs} runs, 50 clusters, K = 10; sets whose T differs by so much (standard deviation)")
    print(f"{'B':>3} {'N':>5}   " + "".join(f"{f'{spread:.0%}':>16}" for spread in (0, 0.05, 0.1, 0.2)))
    for sets in (2, 3, 5, 10):
        for count in (50, 200, 500, 2000):
            cells = []
            for spread in (0, 0.05, 0.1, 0.2):
                held, widths = 0, np.zeros(2)
                for _ in range(runs):
                    shares = [shares_off_by(50, generator.normal(0, spread)) for _ in range(sets)]
                    groupings = simulate_groupings(
                        shares, samples_per_grouping=10, groupings=count, generator=generator
                    )
                    held += holds(estimators.effective_clusters(groupings), 50)
                    plain = estimators.mean_over_sets(groupings.collisions, groupings.criteria_set, bounded=False)
                    mean = estimators.collision_mean(groupings)
                    widths += mean.half_width(0.95) / mean.value, plain.half_width(0.95) / plain.value
                cells.append(f"{held / runs:.1%} ({widths[0] / widths[1]:.2f})")
            print(f"{sets:3} {count:5}   " + "".join(f"{cell:>16}" for cell in cells), flush=True)


def verified_in_part(shares: np.ndarray, k: int, count: int, rate: float, generator: np.random.Generator):
    """Groupings of a judge that misplaces samples, verified correctly: the share that pays off, and all of them."""
    labels = draw_labels(shares, (count, k), generator)
    claimed, placed = misplace(labels, rate, generator)
    everything = misplaced_groupings(claimed, placed, np.ones(count))
    share = verification_share(everything.first(PILOT), price_cluster=1.0, price_verify=0.8)
    later = np.where(generator.random(count) < share, 1 / share, 0.0)
    return misplaced_groupings(claimed, placed, np.where(np.arange(count) < PILOT, 1.0, later)), everything, share


def table_of_double_sampling(runs: int, generator: np.random.Generator) -> None:
    """Verifying a share of the groupings against verifying all: coverage of what many verified groupings would give."""
    print(f"\n{runs} runs of 200 groupings; a share of samples is put with a random other one; a share is verified")
    print(f"{'clusters':>9} {'K':>3} {'misplaced':>10} {'verified':>9} {'moved':>7} {'held':>6} {'all verified':>13}")
    for name, shares in (("4, even", even_shares(4)), ("50, even", even_shares(50)), ("20, Zipf", zipf_shares(20))):
        for k in (5, 10, 20, 40):
            for rate in (0.0, 0.01, 0.05):
                samples = [verified_in_part(shares, k, 200, rate, generator) for _ in range(runs)]
                estimates = [[estimators.collision(groupings) for groupings in both] for *both, _ in samples]
                values = np.array([[estimate.value for estimate in both] for both in estimates]).mean(axis=0)
                held = np.mean([[holds(estimate, values[1]) for estimate in both] for both in estimates], axis=0)
                print(
                    f"{name:>9} {k:3} {rate:10.0%} {np.mean([share for *_, share in samples]):9.0%} "
                    f"{values[0] / values[1] - 1:+7.1%} {held[0]:6.1%} {held[1]:13.1%}",
                    flush=True,
                )


def table_of_verification() -> None:
    """The whole scorer with a judge that misplaces 5 % of the samples, and a verifier that names them."""
    print("\neffective clusters of 4 by complete scorings; 5 % of the samples are put with a random other one")
    print(f"{'K':>3} {'groupings':>10} {'claimed':>8} {'singletons':>11} {'scorecard':>20}")
    corpus = LabelledCorpus(even_shares(4), documents=20_000)
    judge = FaultyJudge("errors", corpus.label_of, rate=0.05)
    for k in (5, 10, 20, 40):
        config = AgentConfig(
            samples_per_grouping=k, groupings=30_000 // k, proposals=1, recheck_share=0, verify_share=1
        )
        scorecard = score_corpus(corpus, judge, config)
        claimed = scorecard.series.possible_pairs / scorecard.series.claimed_pairs.mean()
        estimate = scorecard.effective_clusters
        print(
            f"{k:3} {scorecard.groupings:10} {claimed:8.2f} {1 / scorecard.collision.value:11.2f} {estimate.value:8.2f}"
            f" [{estimate.low:.2f}, {estimate.high:.2f}]",
            flush=True,
        )


def table_of_errors(runs: int, generator: np.random.Generator) -> None:
    """A judge that merges or splits pairs by mistake: the score, its ceiling, the corrected score."""
    print(f"\n{runs} runs of 500 groupings, K = 10: a judge with false merge a and false split b, 500 canaries")
    print(
        f"{'truth':>6} {'a':>6} {'b':>5} {'reads':>8} {'ceiling 1/a':>12} {'refused':>8} {'corrected':>10} {'holds':>7}"
    )
    for truth, a, b in ((5, 0.01, 0.05), (50, 0.01, 0.05), (50, 0.002, 0.1), (500, 0.01, 0.05)):
        reads, fixed, held = [], [], 0
        for _ in range(runs):
            groupings = simulate_groupings(
                even_shares(truth), samples_per_grouping=10, groupings=500, generator=generator
            )
            apart = groupings.possible_pairs - groupings.pairs
            pairs = generator.binomial(groupings.pairs, 1 - b) + generator.binomial(apart, a)
            columns = {name: getattr(groupings, name) for name in ("clusters", "kept", "criteria_set")}
            spoilt = Groupings(samples_per_grouping=10, pairs=pairs, **columns)
            lay_with = generator.binomial(10, a, 500)  # the samples that each foreign text was put with
            rates = ErrorRates(
                shown=500,
                merged=np.count_nonzero(lay_with),
                split=generator.binomial(500, b),
                merged_pairs=lay_with.sum(),
                drawn_pairs=5000,
            )
            reads.append(estimators.effective_clusters(spoilt).value)
            estimate, _ = corrected(spoilt, rates)
            if estimate:
                fixed.append(estimate.value)
                held += holds(estimate, truth)
        print(
            f"{truth:6} {a:6} {b:5} {np.mean(reads):8.1f} {1 / a:12.0f} {1 - len(fixed) / runs:8.1%} "
            f"{np.median(fixed or [0]):10.1f} {held / max(len(fixed), 1):7.1%}",
            flush=True,
        )


def table_of_stopping(runs: int, generator: np.random.Generator) -> None:
    """Coverage of runs that stop at a half-width, looked at every 50 groupings."""
    print(
        f"\n{runs} runs that stop once the half-width is small enough and 50 pairs were seen; looks every 50 groupings"
    )
    print(f"{'truth':>6} {'K':>3} {'wanted':>7} {'groupings':>10} {'coverage':>9}")
    for truth, k, wanted in ((5, 10, 0.1), (5, 20, 0.05), (50, 10, 0.1), (50, 20, 0.1), (500, 20, 0.15)):
        used, held = [], 0
        for _ in range(runs):
            longest = 4 * groupings_needed(1 / truth, 1 / truth**2, k, wanted)
            groupings = simulate_groupings(
                even_shares(truth), samples_per_grouping=k, groupings=longest, generator=generator
            )
            count = next((n for n in range(50, longest, 50) if precise_enough(groupings.first(n), wanted)), longest)
            used.append(count)
            held += holds(estimators.effective_clusters(groupings.first(count)), truth)
        print(f"{truth:6} {k:3} {wanted:7.0%} {np.mean(used):10.0f} {held / runs:9.1%}", flush=True)


def table_of_sizes() -> None:
    """Groupings for a half-width of 5 % at 95 %."""
    print("\ngroupings for +-5 % at 95 %, equal clusters / Zipf(0.75)")
    print(f"{'truth':>6}" + "".join(f"{f'K={k}':>16}" for k in (10, 20, 40)))
    for truth in TRUTHS:
        cells = []
        for k in (10, 20, 40):
            needed = [
                groupings_needed(np.square(p).sum(), (p**3).sum(), k) for p in (even_shares(truth), zipf_shares(truth))
            ]
            cells.append(f"{needed[0]:,} / {needed[1]:,}")
        print(f"{truth:6}" + "".join(f"{cell:>16}" for cell in cells))


def main() -> None:
    """Prints all tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=500)
    parser.add_argument("--seed", type=int, default=0)
    flags = parser.parse_args()
    tables = (
        table_of_figures,
        table_of_documents,
        table_of_spread,
        table_of_double_sampling,
        table_of_errors,
        table_of_stopping,
    )
    for table in tables:
        table(flags.runs, np.random.default_rng(flags.seed))
    table_of_verification()
    table_of_sizes()


if __name__ == "__main__":
    main()
