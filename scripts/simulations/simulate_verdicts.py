#!/usr/bin/env python3
"""Verdicts of complete scorings by judges with known faults and by judges without.

    python scripts/simulations/simulate_verdicts.py [--runs 5] [--honest_runs 40] [--groupings 200] [--samples 10 20]
    python scripts/simulations/simulate_verdicts.py --tests [--runs 400] [--samples 5 10 20 40]

A corpus of 72.9 effective clusters (Zipf-like) whose texts differ in form and length too, both independent of the
cluster; without the control variate, since artificial texts tell it nothing. `held` counts runs whose interval holds
the truth, `missed` those that end fit with an interval that does not. A line for each judge that reads and does not end
fit says why. With `--tests`: the tests of partitions on random samples of known clusters, which depend on nothing.
"""

import argparse
from collections import Counter
from dataclasses import replace
from pathlib import Path
import sys

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from diversity_jax.cluster_agent import AgentConfig, NothingUsable, score_corpus
from diversity_jax.cluster_agent.canaries import ErrorRates
from diversity_jax.cluster_agent.examination import cluster_counts, partition_checks, traits
from diversity_jax.cluster_agent.verdict import FITNESS, JudgeEvidence, Verdict, verdict
from tests.faulty_judges import FaultyJudge
from tests.simulated_corpus import draw_labels, even_shares, zipf_shares
from tests.styled_corpus import StyledCorpus, style_of

SHARES = zipf_shares(72.9)
HONEST = [("none", 0.0, "honest"), ("errors", 0.01, "honest"), ("errors", 0.02, "honest")]
FAULTY = [
    *(("errors", rate, "honest") for rate in (0.05, 0.1)),
    *(("errors", rate, "yes") for rate in (0.01, 0.02, 0.05, 0.1)),
    *(("other", rate, "yes") for rate in (0.1, 0.3, 0.5, 1.0)),
    ("other", 0.3, "honest"),
    *((f"at most {most}", 0.0, "yes") for most in (2, 5, 10, 15)),
    ("style", 0.0, "yes"),
    ("twos", 0.0, "yes"),
    ("fours", 0.0, "yes"),
    ("position", 0.0, "yes"),
    ("length", 0.0, "yes"),
    ("none", 0.0, "yes"),
    ("none", 0.0, "no"),
]
RANDOM = (*map(even_shares, (5, 50, 500)), *map(zipf_shares, (5, 72.9, 500)))


def one_run(fault: str, rate: float, verifier: str, config: AgentConfig) -> tuple[Verdict, bool, float | None]:
    """(Verdict, whether the interval holds the truth, effective clusters or None)."""
    corpus = StyledCorpus(SHARES, documents=5000, seed=config.seed)
    labels = [str(label) for label in range(len(SHARES))]
    judge = FaultyJudge(
        fault,
        StyledCorpus.label_of,
        style_of=style_of,
        labels=labels,
        rate=rate,
        verifier=verifier,
        seed=config.seed,
    )
    try:
        scorecard = score_corpus(corpus, judge, config)
    except NothingUsable as failure:
        return failure.score.verdict, False, None
    estimate, truth = scorecard.effective_clusters, 1 / np.square(SHARES).sum()
    return scorecard.verdict, not estimate.excludes(truth), estimate.value


def line_of(fault: str, rate: float, verifier: str, config: AgentConfig, runs: int) -> str:
    """A judge's row of the table; its seeds follow that of `config`."""
    verdicts: Counter[str] = Counter()
    held, missed, values = 0, 0, []
    for seed in range(config.seed, config.seed + runs):
        verdict, holds, value = one_run(fault, rate, verifier, replace(config, seed=seed))
        verdicts[verdict.judge] += 1
        held += holds
        missed += verdict.judge == "fit" and not holds
        values += [] if value is None else [value]
        if verdict.judge != "fit" and (fault, rate, verifier) in HONEST:
            print(f"{fault} {rate}, seed {seed}: {verdict.judge}: {'; '.join(verdict.reasons)}", file=sys.stderr)
    mean = f"{np.mean(values):.1f}" if values else "none"
    counts = " / ".join(str(verdicts[fitness]) for fitness in FITNESS)
    return f"| {fault} | {rate} | {verifier} | {config.samples_per_grouping} | {mean} | {counts} | {held} | {missed} |"


def table_of_tests(runs: int, groupings: int, sizes: list[int]) -> None:
    """False alarms of the tests of partitions, and the least ratio of the variance of C, by K."""
    print("| K | position | length | cluster counts | least variance of C over expected |")
    print("|---:|---:|---:|---:|---:|")
    generator, none = np.random.default_rng(0), ErrorRates(shown=0, merged=0, split=0)
    for k in sizes:
        alarms, ratios = np.zeros(3), []
        for shares in RANDOM:
            labels = draw_labels(shares, (runs, groupings, k), generator)
            rows = [[traits(row, generator.integers(1, 1000, k)) for row in run] for run in labels]
            ratios.append(cluster_counts([row for run in rows for row in run], k)["variance_ratio"])
            for checks in (partition_checks(run, k) for run in rows):
                evidence = JudgeEvidence(groupings=groupings, drops={}, rates=none, checks=checks)
                reasons = " ".join(verdict(evidence).reasons)
                alarms += [
                    told in reasons for told in ("follow the places", "follow the length", "whatever it is shown")
                ]
        shown = " | ".join(f"{share:.1%}" for share in alarms / runs / len(RANDOM))
        print(f"| {k} | {shown} | {min(ratio for ratio in ratios if ratio):.2f} |", flush=True)


def main() -> None:
    """Prints a line for each judge and K."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("runs", 5), ("honest_runs", 40), ("groupings", 200)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--samples", type=int, nargs="+", default=[10, 20])
    parser.add_argument("--tests", action="store_true")
    asked = parser.parse_args()
    if asked.tests:
        table_of_tests(asked.runs, asked.groupings, asked.samples)
        return
    print("| fault | rate | verifier | K | reads (mean) | fit / doubtful / unfit | held | missed |")
    print("|---|---:|---|---:|---:|---:|---:|---:|")
    for number, judge in enumerate([*HONEST, *FAULTY]):
        runs = asked.honest_runs if judge in HONEST else asked.runs
        for k in asked.samples if runs else ():
            size = {"groupings": asked.groupings, "samples_per_grouping": k}
            config = AgentConfig(**size, proposals=2, control_variate=False, seed=1000 * number)
            print(line_of(*judge, config, runs), flush=True)


if __name__ == "__main__":
    main()
