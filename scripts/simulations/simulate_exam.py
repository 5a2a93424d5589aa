#!/usr/bin/env python3
"""How often the exam gives each verdict to judges with known faults, and the scores that they read.

    python scripts/simulations/simulate_exam.py [--runs 40] [--samples_per_grouping 10]

A judge that errs at random makes other errors in each run. Prints a table for docs/judges.md.
"""

import argparse
from collections import Counter
from pathlib import Path
import sys
import tempfile

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from diversity_jax.cluster_agent import AgentConfig, examine
from tests.faulty_judges import exam_judge

JUDGES = (
    ("reads, no mistake", "none", 0.0, "honest"),
    ("1 % at random", "errors", 0.01, "honest"),
    ("2 % at random", "errors", 0.02, "honest"),
    ("5 % at random", "errors", 0.05, "honest"),
    ("2 % at random, verifier says yes", "errors", 0.02, "yes"),
    ("5 % at random, verifier says yes", "errors", 0.05, "yes"),
    ("10 % at random, verifier says yes", "errors", 0.10, "yes"),
    ("a quarter of leftovers in one cluster", "other", 0.25, "yes"),
    ("half of leftovers in one cluster", "other", 0.5, "yes"),
    ("all leftovers in one cluster", "other", 1.0, "yes"),
    ("at most 5 clusters", "at most 5", 0.0, "yes"),
    ("by style", "style", 0.0, "yes"),
    ("labels merged in twos", "twos", 0.0, "yes"),
    ("labels merged in fours", "fours", 0.0, "yes"),
    ("by place in the list", "position", 0.0, "yes"),
    ("by length", "length", 0.0, "yes"),
    ("verifier says no", "none", 0.0, "no"),
    ("splits everything", "splits all", 0.0, "yes"),
    ("merges everything", "merges all", 0.0, "yes"),
)
SHOWN = ("subjects_24", "neighbours", "styles")


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=40)
    parser.add_argument("--samples_per_grouping", type=int, default=10)
    options = parser.parse_args()
    config = AgentConfig(samples_per_grouping=options.samples_per_grouping)
    print("| judge | fit | doubtful | unfit | 24 subjects (26.6) | 12 neighbours (13.2) | 4 in styles (4.33) | calls |")
    print("|---|---:|---:|---:|---:|---:|---:|---:|")
    for name, fault, rate, verifier in JUDGES:
        verdicts: Counter[str] = Counter()
        read: dict[str, list[float]] = {corpus: [] for corpus in SHOWN}
        calls = []
        for run in range(options.runs if fault in ("errors", "other") else 1):
            with tempfile.TemporaryDirectory() as folder:
                result = examine(exam_judge(fault, rate=rate, verifier=verifier, seed=run), config, folder)
            verdicts[result.verdict.judge] += 1
            calls.append(result.calls)
            for reading in result.readings:
                if reading.corpus in read and reading.reading:
                    read[reading.corpus].append(reading.reading.value)
        means = [f"{np.mean(values):.3g}" if values else "none" for values in read.values()]
        counts = [str(verdicts[fitness]) for fitness in ("fit", "doubtful", "unfit")]
        print(f"| {' | '.join([name, *counts, *means, f'{np.mean(calls):.0f}'])} |", flush=True)


if __name__ == "__main__":
    main()
