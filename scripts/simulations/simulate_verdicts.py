#!/usr/bin/env python3
"""What the verdict says of judges with known faults, and of judges that read: the whole scoring, in this process.

    python scripts/simulations/simulate_verdicts.py [--runs 5] [--groupings 200] [--samples 10]

A corpus of 72.9 effective clusters (Zipf-like) whose texts differ in form and length too, both independent of the
cluster. `told` counts runs that end doubtful or unfit, `held` those whose interval holds the truth, `missed` those that
end fit with an interval that does not.
"""

import argparse
from collections import Counter
from pathlib import Path
import sys

import numpy as np

from diversity_jax.cluster_agent import AgentConfig, NothingUsable, score_corpus

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from tests.faulty_judges import FaultyJudge
from tests.simulated_corpus import zipf_shares
from tests.styled_corpus import StyledCorpus, style_of

SHARES = zipf_shares(72.9)
HONEST = [("none", 0.0, "honest"), ("errors", 0.01, "honest"), ("errors", 0.02, "honest")]
FAULTY = [
    ("errors", 0.05, "honest"),
    ("errors", 0.1, "honest"),
    ("errors", 0.02, "yes"),
    ("errors", 0.05, "yes"),
    *(("other", rate, "yes") for rate in (0.1, 0.3, 1.0)),
    ("other", 0.3, "honest"),
    ("at most 5", 0.0, "yes"),
    ("style", 0.0, "yes"),
    ("twos", 0.0, "yes"),
    ("fours", 0.0, "yes"),
    ("position", 0.0, "yes"),
    ("length", 0.0, "yes"),
    ("none", 0.0, "yes"),
    ("none", 0.0, "no"),
]


def one_run(fault: str, rate: float, verifier: str, config: AgentConfig) -> tuple[str, bool, float | None]:
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
        card = score_corpus(corpus, judge, config)
    except NothingUsable as failure:
        return failure.score.verdict.judge, False, None
    found, truth = card.effective_clusters, 1 / np.square(SHARES).sum()
    return card.verdict.judge, not found.excludes(truth), found.value


def main() -> None:
    """Prints a line for each judge."""
    parser = argparse.ArgumentParser()
    for name, default in (("runs", 5), ("groupings", 200), ("samples", 10), ("honest_runs", 20)):
        parser.add_argument(f"--{name}", type=int, default=default)
    asked = parser.parse_args()
    print(f"{'fault':>10} {'rate':>5} {'verifier':>8}  reads (mean)  fit/doubtful/unfit  held  missed")
    for fault, rate, verifier in [*HONEST, *FAULTY]:
        verdicts: Counter[str] = Counter()
        held, missed, values = 0, 0, []
        runs = asked.honest_runs if (fault, rate, verifier) in HONEST else asked.runs
        for seed in range(runs):
            config = AgentConfig(groupings=asked.groupings, samples_per_grouping=asked.samples, proposals=2, seed=seed)
            judged, holds, value = one_run(fault, rate, verifier, config)
            verdicts[judged] += 1
            held += holds
            missed += judged == "fit" and not holds
            values += [] if value is None else [value]
        mean = f"{np.mean(values):.1f}" if values else "none"
        counts = "/".join(str(verdicts[name]) for name in ("fit", "doubtful", "unfit"))
        print(f"{fault:>10} {rate:5} {verifier:>8}  {mean:>12}  {counts:>18}  {held:>4}  {missed:>6}", flush=True)


if __name__ == "__main__":
    main()
