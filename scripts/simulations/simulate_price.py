#!/usr/bin/env python3
"""Tokens and dollars for the same interval width, by this version and an earlier one, on labelled corpora.

    git worktree add ../earlier fdaef38
    python scripts/simulations/simulate_price.py --earlier ../earlier [--data ../shared/data] [--runs 500]

A judge that knows the labels groups by five criteria sets. The earlier version takes 1,000 groupings of 10 samples, all
verified, with t of 4 degrees of freedom; this one as many as give the same mean width of the interval for exactly these
documents, with the control variate, a share of the groupings verified (0.1 after the first 40: nothing is misplaced),
and a fifth rechecked. Tokens are those of each version's own forecast from its own prompts and the corpus's texts;
dollars are at gpt-4o-mini's ratio of prices, this version's at half for batches. Coverage is that of the documents' T.
"""

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass
import gzip
import json
import math
import os
from pathlib import Path
import random
import subprocess
import sys
from types import SimpleNamespace

import numpy as np

ROOT = Path(__file__).resolve().parents[2]
CORPORA = {
    "20 prompts": ("corpora_synthetic/llm_answers_20_prompts_low_diversity.jsonl.gz", "label"),
    "600 prompts": ("corpora_synthetic/llm_answers_600_prompts.jsonl.gz", "prompt"),
    "intents": ("corpora_real/clinc150_train.jsonl.gz", "label"),
    "question types": ("corpora_real/trec_questions.jsonl.gz", "fine_label"),
    "news": ("corpora_real/bbc_news_lemmatised.jsonl.gz", "label"),
    "genres": ("corpora_real/brown_by_genre.jsonl.gz", "label"),
    "textbooks": ("corpora_synthetic/textbooks_gpt4.jsonl.gz", "course"),
    "mathematics": ("corpora_real/math_competition.jsonl.gz", "label"),
}
EARLIER_GROUPINGS, EARLIER_SAMPLES, SETS, PILOT, VERIFIED = 1000, 10, 5, 40, 0.1
DOLLARS = 0.15e-6, 0.60e-6  # of a prompt and a completion token
POOL = 10_000  # groupings that runs draw from
ATTEMPT_RUNS = 100  # for each number of groupings tried


class ListCorpus:
    """Given texts, for a forecast. Not that of the tests, since this also runs on an earlier version's code."""

    def __init__(self, name: str, texts: Sequence[str]):
        self.name, self._texts = name, texts

    def __len__(self) -> int:
        return len(self._texts)

    def sample(self, size: int, *, seed: int) -> list[SimpleNamespace]:
        """Without replacement."""
        chosen = random.Random(seed).sample(range(len(self)), min(size, len(self)))
        return [SimpleNamespace(id=str(row), text=self._texts[row]) for row in chosen]

    def fingerprint(self) -> str:
        """Its name: nothing is stored by it."""
        return self.name


def load(data: Path, name: str) -> tuple[list[str], np.ndarray]:
    """Texts of a corpus, and their labels as numbers."""
    path, field = CORPORA[name]
    with gzip.open(data / path, "rt") as lines:
        rows = [json.loads(line) for line in lines]
    return [row["text"] for row in rows], np.unique([str(row[field]) for row in rows], return_inverse=True)[1]


def print_tokens(data: Path, samples_per_grouping: int) -> None:
    """By corpus: [stage, calls, prompt tokens, completion tokens] of 1,000 groupings, by the version imported."""
    from diversity_jax.cluster_agent import AgentConfig, plan_calls

    config = AgentConfig(samples_per_grouping=samples_per_grouping, groupings=EARLIER_GROUPINGS, criteria_sets=SETS)
    planned = {name: plan_calls([ListCorpus(name, load(data, name)[0])], config) for name in CORPORA}
    print(
        json.dumps(
            {
                name: [(plan.stage, plan.calls, plan.prompt_tokens, plan.completion_tokens) for plan in plans]
                for name, plans in planned.items()
            }
        )
    )


def tokens_by(version: Path, data: Path, samples_per_grouping: int) -> dict[str, list]:
    """What `print_tokens` prints under the code of a version."""
    words = [sys.executable, __file__, "--tokens-of", str(samples_per_grouping), "--data", str(data)]
    environment = {**os.environ, "PYTHONPATH": str(version)}
    done = subprocess.run(words, env=environment, capture_output=True, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def price(planned: list, groupings: int, *, earlier: bool) -> np.ndarray:
    """(Tokens, dollars) of a run of so many groupings."""
    total = np.zeros(2)
    for stage, calls, prompt, completion in planned:
        if stage == "cluster_samples":
            calls *= groupings / EARLIER_GROUPINGS
        elif stage == "verify_clusters":
            calls = groupings if earlier else min(groupings, PILOT) + VERIFIED * max(0, groupings - PILOT)
        dollars = prompt * DOLLARS[0] + completion * DOLLARS[1]
        total += calls * np.array([prompt + completion, dollars if earlier else dollars / 2])
    return total


@dataclass(frozen=True, kw_only=True)
class Pool:
    """Groupings of one corpus: pairs and triples of equal labels, and features; the corpus's means of features."""

    k: int
    pairs: np.ndarray
    triples: np.ndarray
    features: np.ndarray
    feature_means: np.ndarray

    @classmethod
    def draw(cls, labels: np.ndarray, vectors: np.ndarray, k: int, generator: np.random.Generator) -> "Pool":
        """`POOL` groupings of k samples."""
        from diversity_jax.cluster_agent import uncertainty
        from tests.simulated_corpus import count_pairs, count_triples, draw_rows

        rows = draw_rows(len(labels), POOL, k, generator)
        return cls(
            k=k,
            pairs=count_pairs(labels[rows]),
            triples=count_triples(labels[rows]),
            features=np.stack([uncertainty.features(vectors[index]) for index in rows]),
            feature_means=uncertainty.corpus_means(vectors)[0],
        )

    def run(self, groupings: int, spread: float, generator: np.random.Generator, *, earlier: bool):
        """One run's groupings; with `spread`, criteria sets differ by so much in T (standard deviation)."""
        from diversity_jax.cluster_agent.groupings import Groupings

        effects = np.exp(generator.normal(0, spread, SETS) - spread**2 / 2)
        rows, sets = generator.integers(0, POOL, groupings), np.arange(groupings) % SETS
        pairs = np.floor(self.pairs[rows] * effects[sets] + generator.random(groupings) * (spread > 0)).astype(int)
        ones = np.ones(groupings, int)
        more = (
            {}
            if earlier
            else {"triples": self.triples[rows], "features": self.features[rows], "feature_means": self.feature_means}
        )
        return Groupings(
            samples_per_grouping=self.k,
            criteria_set=sets,
            clusters=ones,
            kept=ones,
            pairs=np.minimum(pairs, math.comb(self.k, 2)),
            **more,
        )


def measure(runs: int, draw: Callable[[np.random.Generator], object], truth: float) -> tuple[float, float]:
    """Mean half-width of log T, and coverage, over runs that start from the same seeds for every drawing function."""
    from diversity_jax.cluster_agent.estimators import collision

    widths, held = [], 0
    for number in range(runs):
        estimate = collision(draw(np.random.default_rng(number)))
        low, high = estimate.bounds
        widths.append(math.log(high / max(low, 1e-9)) / 2)
        held += low <= truth <= high
    return float(np.mean(widths)), held / runs


def groupings_for(width: float, draw: Callable[[int, np.random.Generator], object], truth: float) -> int:
    """Fewest groupings, to 3 %, whose interval is as narrow."""
    low, high = 2 * SETS, 4 * EARLIER_GROUPINGS
    while high > low * 1.03 + 1:
        middle = round(math.sqrt(low * high))
        wide = measure(ATTEMPT_RUNS, lambda generator, count=middle: draw(count, generator), truth)[0] > width
        low, high = (middle, high) if wide else (low, middle)
    return high


def compare_prices(data: Path, version: Path, runs: int, *, worthless: bool) -> None:
    """Prints the table."""
    from diversity_jax.cluster_agent.ruler import default_ruler

    earlier, tokens = tokens_by(version, data, EARLIER_SAMPLES), {k: tokens_by(ROOT, data, k) for k in (10, 40)}
    ratios: dict[tuple[int, float], list[np.ndarray]] = {}
    print("ruler: random vectors" if worthless else "ruler: the static word vectors")
    print(f"{'corpus':>15} {'T':>7} {'sets':>5} {'+-':>6} {'held':>6}   K: groupings, width, held, tokens, dollars")
    for name in CORPORA:
        generator = np.random.default_rng(0)
        texts, labels = load(data, name)
        vectors = default_ruler().embed(texts)
        if worthless:
            vectors = generator.standard_normal(vectors.shape).astype(np.float32)
            vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
        sizes = np.bincount(labels)
        truth = float((sizes * (sizes - 1)).sum() / (len(labels) * (len(labels) - 1)))
        pools = {k: Pool.draw(labels, vectors, k, generator) for k in (10, 40)}
        for spread in (0.0, 0.1):
            old = lambda draw: pools[EARLIER_SAMPLES].run(EARLIER_GROUPINGS, spread, draw, earlier=True)  # noqa: B023, E731
            width, held = measure(runs, old, truth)
            line = f"{name:>15} {truth:7.4f} {spread:5.0%} {width:6.1%} {held:6.1%}"
            for k in (10, 40):
                new = lambda count, draw: pools[k].run(count, spread, draw, earlier=False)  # noqa: B023, E731
                count = groupings_for(width, new, truth)
                width_now, held_now = measure(runs, lambda draw: new(count, draw), truth)  # noqa: B023
                ratio = price(tokens[k][name], count, earlier=False)
                ratio /= price(earlier[name], EARLIER_GROUPINGS, earlier=True)
                ratios.setdefault((k, spread), []).append(ratio)
                line += f"   {k}: {count:4} {width_now:5.1%} {held_now:5.1%} {ratio[0]:.2f} {ratio[1]:.3f}"
            print(line, flush=True)
    for (k, spread), width_ratios in ratios.items():
        mean, worst = np.exp(np.log(width_ratios).mean(axis=0)), np.max(width_ratios, axis=0)
        print(
            f"K = {k}, sets differ by {spread:.0%}: tokens {mean[0]:.2f} (at most {worst[0]:.2f}), dollars "
            f"{mean[1]:.3f} (at most {worst[1]:.3f})"
        )


def main() -> None:
    """Prints both tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--earlier", type=Path, help="a checkout of the earlier version")
    parser.add_argument("--data", type=Path, default=ROOT.parent / "shared" / "data")
    parser.add_argument("--runs", type=int, default=500)
    parser.add_argument("--tokens-of", type=int, help=argparse.SUPPRESS)
    flags = parser.parse_args()
    if flags.tokens_of:
        print_tokens(flags.data, flags.tokens_of)
        return
    sys.path.insert(0, str(ROOT))
    for worthless in (False, True):
        compare_prices(flags.data, flags.earlier, flags.runs, worthless=worthless)


if __name__ == "__main__":
    main()
