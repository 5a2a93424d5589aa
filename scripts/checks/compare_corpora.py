#!/usr/bin/env python3
"""Which of two corpora is more diverse by the sequential test, with the offline judge and with known labels.

    python scripts/checks/compare_corpora.py A.jsonl.gz B.jsonl.gz [--labels prompt prompt] [--groupings 2000]

`--labels` names the label field of each file (one field for both where they share texts); a judge that knows the labels
shows what a judge without errors would find.
"""

import argparse
from pathlib import Path
import sys

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from diversity_jax.cluster_agent import AgentConfig, EmbeddingJudge, score_corpora, score_until_decided
from diversity_jax.cluster_agent.text_cleaning import clean_text
from diversity_jax.corpus import open_corpus
from tests.simulated_corpus import LabelJudge


def main() -> None:
    """Prints scores at K = 10 and 20, and the decision, for each judge."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("corpora", nargs=2)
    parser.add_argument("--labels", nargs=2)
    parser.add_argument("--groupings", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    flags = parser.parse_args()
    corpora = [open_corpus(path) for path in flags.corpora]
    judges = [EmbeddingJudge()]
    if flags.labels:
        shown = AgentConfig().max_characters
        labels = {}
        for corpus, field in zip(corpora, flags.labels, strict=True):
            labels |= {clean_text(document.text, shown): f"{field}: {document.meta[field]}" for document in corpus}
        judges.append(LabelJudge(labels))
    for judge in judges:
        print(judge.label)
        for k in (10, 20):
            config = AgentConfig(samples_per_grouping=k, groupings=flags.groupings, seed=flags.seed)
            for scorecard in score_corpora(dict(zip(flags.corpora, corpora, strict=True)), judge, config).values():
                count, score = scorecard.effective_clusters, scorecard.cluster_score
                high = "any" if count.high is None else f"{count.high:.1f}"
                name = Path(scorecard.corpus["name"]).name
                effective = f"effective {count.value:8.1f} [{count.low:.1f}, {high}]"
                print(f"  K={k:2} {name:50} {effective}  C/S {score.value:6.3f}")
        config = AgentConfig(groupings=flags.groupings, seed=flags.seed)
        print(f"  first against second: {score_until_decided(*corpora, judge, config)[0]}", flush=True)


if __name__ == "__main__":
    main()
