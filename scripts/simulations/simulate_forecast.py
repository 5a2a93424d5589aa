#!/usr/bin/env python3
"""Error of the token forecast of a scoring, by corpus, K, tokenizer and length of the judge's answers.

    python scripts/simulations/simulate_forecast.py A.jsonl.gz:label B.jsonl.gz:label --tokenizer tokenizer.json

Every corpus has a text and, under the key named, a label that the judge groups by. Judges: `instructed` keeps to the
instructions, `brief` writes short criteria and one entry in every list, `terse` one-word criteria and empty lists.
Prints forecast / use - 1 before the first call, in brackets the same after half of the calls, and `!` where the use was
outside the stated range.
"""

import argparse
import gzip
import json
from pathlib import Path
import random
import sys

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from diversity_jax.cluster_agent import AgentConfig
from tests.cluster_agent_answers import answers_briefly, follows_instructions
from tests.llm_answers import label_oracle, tokens_of
from tests.test_cluster_agent_forecast import CountingJudge, LabelledTexts, run


def load(source: str, most: int = 2000) -> LabelledTexts:
    """A random part of a file, with its labels."""
    path, _, label = source.rpartition(":")
    with gzip.open(path, "rt") as lines:
        rows = [json.loads(line) for line in lines]
    return LabelledTexts(
        [(row["text"], str(row[label])) for row in random.Random(0).sample(rows, min(most, len(rows)))]
    )


def main() -> None:
    """Prints one line for every corpus and K."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("corpora", nargs="+", help="FILE.jsonl.gz:LABEL")
    parser.add_argument("--tokenizer", help="tokenizer.json; without one four characters are a token")
    parser.add_argument("--groupings", type=int, default=80)
    flags = parser.parse_args()
    count = tokens_of
    if flags.tokenizer:
        from tokenizers import Tokenizer

        tokenizer = Tokenizer.from_file(flags.tokenizer)

        def count(text: str) -> int:
            return len(tokenizer.encode(text, add_special_tokens=False).ids)

    for source in flags.corpora:
        texts = load(source)
        for k in (5, 10, 20):
            config = AgentConfig(groupings=flags.groupings, proposals=2, samples_per_grouping=k)
            oracle, results = label_oracle(texts.labels), []
            judges = {
                "instructed": follows_instructions(oracle, config.reasoning_words),
                "brief": answers_briefly(oracle),
                "terse": oracle,
            }
            for name, answer in judges.items():
                before, middle, within = run(texts, config, CountingJudge(answer, count))
                results.append(f"{name} {before - 1:+5.0%} ({middle - 1:+4.0%}){' ' if within else '!'}")
            print(f"{Path(source).name:60.60} K = {k:2}  {'  '.join(results)}", flush=True)


if __name__ == "__main__":
    main()
