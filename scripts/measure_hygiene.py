#!/usr/bin/env python
"""Precision and recall of near-duplicate removal on planted copies, by exact similarity; and what a benchmark file finds in a corpus.

python scripts/measure_hygiene.py --pairs=1000
python scripts/measure_hygiene.py --corpus=paragraphs.jsonl.gz --benchmark=boolq_validation.jsonl.gz
"""

import argparse
import itertools
import json
from pathlib import Path
import sys
import tempfile

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from diversity_jax.corpus import open_corpus
from diversity_jax.mixtures.preparation import Hygiene, Preparation
from diversity_jax.mixtures.preparer import prepare
from diversity_jax.mixtures.vocabulary import load_tokenizer
from tests.planted_texts import planted_copies

_BINS = (0.0, 0.5, 0.6, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95, 1.01)


def left_out(source: str, folder: Path, report: str, hygiene: Hygiene) -> tuple[int, list[dict]]:
    """Documents read, and the lines of a report of what was left out."""
    settings = Preparation(name="part", kind="real", sequence_length=256, hygiene=hygiene)
    manifest = prepare(open_corpus(source), load_tokenizer("bytes"), folder, settings)
    return manifest.statistics["documents"], [json.loads(line) for line in (folder / report).read_text().splitlines()]


def copies(folder: Path, pairs: int, threshold: float) -> None:
    """Prints how many planted copies of each similarity were left out."""
    corpus, similar = planted_copies(folder, pairs=pairs)
    _, found = left_out(corpus, folder / "part", "duplicates.jsonl", Hygiene(near_duplicates=threshold))
    gone = {int(copy["document"].rsplit(":", 1)[1]) - 1 for copy in found}
    alike = {number for number, value in similar.items() if value >= threshold}
    right = len(gone & alike)
    print(f"{pairs:,} pairs, {len(alike):,} of them at least {threshold} similar; {len(gone):,} left out")
    print(f"precision {right / len(gone):.3f}, recall {right / len(alike):.3f}; originals left out: {len(gone - set(similar))}")
    for low, high in itertools.pairwise(_BINS):
        here = {number for number, value in similar.items() if low <= value < high}
        if here:
            print(f"  similarity {low:.2f} to {min(high, 1):.2f}: {len(here & gone):5,} of {len(here):5,} left out")


def main() -> None:
    """Prints one table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=1000)
    parser.add_argument("--threshold", type=float, default=0.8)
    parser.add_argument("--corpus", help="look for benchmark items in this corpus instead")
    parser.add_argument("--benchmark")
    flags = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        if not flags.corpus:
            return copies(Path(scratch), flags.pairs, flags.threshold)
        documents, found = left_out(flags.corpus, Path(scratch), "decontamination.jsonl", Hygiene(decontaminate=(flags.benchmark,)))
        items = {overlap["item"] for overlap in found}
        print(f"{len({one['document'] for one in found}):,} of {documents:,} documents share 13 words in a row with {len(items):,} items")


if __name__ == "__main__":
    main()
