#!/usr/bin/env python3
"""How far hostile documents move a score, with and without canaries, where the judge obeys them half the time.

    python scripts/simulations/simulate_hostile.py [--groupings 1000] [--share 0.01]

The corpus has 5, 50 or 500 equally common topics, the judge knows them, and every known injection of `audit` is
planted. Groupings are the same with and without injections, so the movement is that of the injections alone.
"""

import argparse
from pathlib import Path
import sys

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from diversity_jax.cluster_agent import AgentConfig, audit
from diversity_jax.cluster_agent.injection_audit import INJECTIONS
from diversity_jax.cluster_agent.text_cleaning import clean_text
from tests.simulated_corpus import LabelJudge, LabelledCorpus, even_shares

ORDERS = {"merge": "merge", "invalid": "invalid"}  # what the other injections order is to split


def order_in(text: str) -> str | None:
    """What a shown text orders the judge to do, recognised by the words of its injection that survive cleaning."""
    names = (
        name for name, injection in INJECTIONS.items() if max(clean_text(injection, 2000).split("\n"), key=len) in text
    )
    return next((ORDERS.get(name, "split") for name in names), None)


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--groupings", type=int, default=1000)
    parser.add_argument("--share", type=float, default=0.01)
    flags = parser.parse_args()
    print(f"{flags.share:.1%} hostile documents, obeyed half the time, {flags.groupings} groupings")
    print(
        f"{'truth':>6} {'K':>3} {'canaries in':>12} {'clean':>8} {'attacked':>9} {'moved':>8} "
        f"{'discarding nothing':>19}"
    )
    for truth in (5, 50, 500):
        corpus = LabelledCorpus(even_shares(truth))
        for k in (10, 20, 50):
            for share in (1.0, 0.2):
                config = AgentConfig(samples_per_grouping=k, groupings=flags.groupings, canary_share=share)
                measured = audit(corpus, LabelJudge(corpus.label_of, obeys=order_in), config, share=flags.share)
                figures = f"{measured.clean.value:8.2f} {measured.hostile.value:9.2f} {measured.moved:+8.2%}"
                print(
                    (
                        f"{truth:6} {k:3} {share:12.0%} {figures} {measured.undefended.value:9.2f} "
                        f"({measured.moved_undefended:+.1%})"
                    ),
                    flush=True,
                )


if __name__ == "__main__":
    main()
