#!/usr/bin/env python3
"""Groupings and tokens needed at each K for an interval of +-5 % at 95 %, with equally common clusters.

    python scripts/simulations/simulate_cost.py [--characters 600]

Tokens are counted by the forecast that precedes every paid run, for documents of so many characters, with and without
reasoning.
"""

import argparse
from pathlib import Path
import sys

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from diversity_jax.cluster_agent import AgentConfig, plan_calls
from diversity_jax.cluster_agent.estimators import groupings_needed
from tests.simulated_corpus import LabelledCorpus, LabelledDocument, even_shares

FILLER = "and so the account of it goes on in plain words that any reader may follow from one line to the next "


class LongerCorpus(LabelledCorpus):
    """The same documents, each with further text of its topic up to a given length."""

    characters = 600

    def sample(self, size: int, *, seed: int) -> list[LabelledDocument]:
        """As `LabelledCorpus.sample`."""
        documents = super().sample(size, seed=seed)
        endings = (
            f" topic{document.text.split()[1]}" * 12 + " " + FILLER * (self.characters // 100) for document in documents
        )
        return [
            LabelledDocument(id=document.id, text=(document.text + ending)[: self.characters])
            for document, ending in zip(documents, endings, strict=True)
        ]


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--characters", type=int, default=600)
    flags = parser.parse_args()
    LongerCorpus.characters = flags.characters
    print(
        f"documents of {flags.characters} characters; groupings for +-5 % at 95 %; millions of tokens, prompt + "
        "completion"
    )
    print(f"{'truth':>6} {'K':>3} {'groupings':>10} {'with reasons':>20} {'reasoning_words=0':>20}")
    for truth in (5, 50, 500):
        for k in (5, 10, 20, 40):
            cells = []
            for words in (15, 0):
                needed = groupings_needed(1 / truth, 1 / truth**2, k)
                config = AgentConfig(samples_per_grouping=k, groupings=needed, reasoning_words=words)
                planned = plan_calls([LongerCorpus(even_shares(truth), documents=20_000)], config)
                prompt = sum(plan.calls * plan.prompt_tokens for plan in planned) / 1e6
                completion = sum(plan.calls * plan.completion_tokens for plan in planned) / 1e6
                cells.append(f"{prompt:.2f} + {completion:.2f}")
            print(f"{truth:6} {k:3} {needed:10,} {cells[0]:>20} {cells[1]:>20}", flush=True)


if __name__ == "__main__":
    main()
