#!/usr/bin/env python
"""Time and memory of the baseline metrics, beside the `diversity` and `vendi-score` packages and on a million
documents.

    # 10,000 documents of 200 words; theirs take some minutes
    python scripts/benchmarks/bench_metrics.py peers
    # the same on documents of your own, cut to 200 words
    python scripts/benchmarks/bench_metrics.py peers --corpus=texts.jsonl.gz
    # 1,000,000 documents of 60 words: time per metric, peak memory
    python scripts/benchmarks/bench_metrics.py million

`peers` wants `pip install --no-deps diversity vendi-score` and what they import (nltk, rouge-score, evaluate, tqdm).
Every figure of ours includes splitting text into words. Theirs are the fastest of `--repeats`, except that
self-repetition, which is quadratic in documents and takes minutes, runs once. ROUGE-L over all pairs would take too
long: theirs is timed on a few pairs and extrapolated, marked `about`. Made text: words by Zipf's law, half of them in
recurring phrases, so that n-grams repeat as they do in prose.
"""

import argparse
from collections.abc import Callable, Iterator
import contextlib
from dataclasses import dataclass
import math
import os
from pathlib import Path
import sys
import threading
import time

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from diversity_jax.corpus import open_corpus
from diversity_jax.metrics import embedding, lexical, pairwise
from diversity_jax.metrics.measure import metered
from diversity_jax.metrics.ngrams import Ngrams
from diversity_jax.metrics.registry import STAGES, DocumentFeatures, StageSettings
from diversity_jax.metrics.text import first_words, split_words

_WORDS, _PHRASES = 60_000, 40_000
_PEER_PAIRS = 60
_LIMIT_BYTES = 8e9
_LEXICAL = (
    "context_length",
    "self_repetition",
    "ngram_diversity",
    "gzip",
    "xz",
    "zstd",
    "type_token_ratio",
    "mtld",
    "self_bleu",
    "rouge_l",
)


def made_texts(documents: int, words: int, seed: int = 0) -> list[str]:
    """Documents of exactly so many made words."""
    draw = np.random.default_rng(seed)
    letters = np.array(list("etaoinshrdlucmfwypvbgk"))
    lexicon = np.array(["".join(draw.choice(letters, draw.integers(2, 10))) for _ in range(_WORDS)], object)
    by_rank = 1 / (np.arange(_WORDS) + 3.0)
    chances = np.cumsum(by_rank / by_rank.sum())
    single = lambda size: np.minimum(np.searchsorted(chances, draw.random(size)), _WORDS - 1)  # noqa: E731
    phrases = single((_PHRASES, 6)).astype(np.int32)
    texts: list[str] = []
    while len(texts) < documents:
        rows = min(20_000, documents - len(texts))
        ids = single((rows, words)).astype(np.int32)
        for start in range(0, words - 6, 12):
            ids[:, start : start + 6] = phrases[(draw.random(rows) ** 3 * _PHRASES).astype(int)]
        texts += [" ".join(row) for row in lexicon[ids]]
    return texts


@dataclass(frozen=True, kw_only=True)
class Timed:
    """The fastest run of a function, in wall-clock seconds and in CPU seconds of all its threads."""

    seconds: float
    cpu_seconds: float
    value: float


def fastest(work: Callable[[], float], repeats: int) -> Timed:
    """Runs a function several times."""
    seconds = cpu_seconds = math.inf
    for _ in range(repeats):
        began, cpu = time.perf_counter(), time.process_time()
        value = float(work())
        seconds, cpu_seconds = min(seconds, time.perf_counter() - began), min(cpu_seconds, time.process_time() - cpu)
    return Timed(seconds=seconds, cpu_seconds=cpu_seconds, value=value)


def row(name: str, ours: Timed, theirs: Timed, wanted: float, about: str = "") -> None:
    print(
        f"{name:34} ours {ours.seconds:9.3f} s = {ours.value:<8.5g} theirs {about}{theirs.seconds:9.3f} s = "
        f"{theirs.value:<8.5g} "
        f"{about}{theirs.seconds / ours.seconds:,.1f}x by the clock, {theirs.cpu_seconds / ours.cpu_seconds:,.1f}x in "
        "CPU seconds "
        f"(wanted {wanted:g}x)",
        flush=True,
    )


def bench_peers(texts: list[str], repeats: int) -> None:
    """Prints seconds, values and ratios."""
    from tests.renew_metrics_golden import peer_modules

    theirs = peer_modules()
    words = sum(len(text.split()) for text in texts)
    print(
        f"{len(texts):,} documents of {words / len(texts):.0f} words, {os.cpu_count()} cores, load "
        f"{os.getloadavg()[0]:.1f}"
    )

    def diversity_of() -> float:
        ngrams = Ngrams(split_words(texts))
        return sum(lexical.ngram_diversity(ngrams, n) for n in range(1, 5))

    ours = fastest(diversity_of, repeats)
    row("n-gram diversity, n = 1 to 4", ours, fastest(lambda: theirs["ngram_diversity_score"](texts), repeats), 5)
    gzip = fastest(lambda: theirs["compression_ratio"](texts, "gzip"), repeats)
    for algorithm in ("gzip", "zstd"):
        ours = fastest(lambda: lexical.compression_ratio(texts, algorithm), repeats)  # noqa: B023 - called at once
        row(f"compression, {algorithm} against their gzip", ours, gzip, 1.5)
    xz = fastest(lambda: theirs["compression_ratio"](texts, "xz"), 1)
    row("compression, xz", fastest(lambda: lexical.compression_ratio(texts, "xz"), repeats), xz, 1.5)
    bench_rouge(texts, theirs)
    bench_vendi(repeats)
    ours = fastest(lambda: lexical.self_repetition(Ngrams(split_words(texts))), repeats)
    row("self-repetition", ours, fastest(lambda: theirs["self_repetition_score"](texts, verbose=False), 1), 100)


def bench_rouge(texts: list[str], theirs: dict) -> None:
    """Ours to +-0.005; theirs on a few pairs, times all ordered pairs."""
    means = []

    def sampled() -> float:
        means.append(pairwise.rouge_l_homogenization(texts, pairs=2_000_000, half_width=0.005))
        return means[-1].value

    ours, few = fastest(sampled, 1), texts[: math.isqrt(_PEER_PAIRS) + 1]
    some = fastest(lambda: theirs["homogenization_score"](few, verbose=False), 1)
    more = len(texts) * (len(texts) - 1) / (len(few) * (len(few) - 1))
    complete = Timed(seconds=some.seconds * more, cpu_seconds=some.cpu_seconds * more, value=some.value)
    row("ROUGE-L homogenisation", ours, complete, 1, "about ")
    reach = (means[0].high - means[0].low) / 2
    print(
        f"{'':34} +-{reach:.4f} from {means[0].pairs:,} pairs in {ours.seconds:.2f} s of 60; theirs is of "
        f"{len(few)} "
        "documents only"
    )


def bench_vendi(repeats: int, documents: int = 10_000, size: int = 384) -> None:
    """Vendi scores of the same vectors."""
    from vendi_score import vendi

    vectors = np.random.default_rng(0).normal(size=(documents, size)).astype(np.float32)
    vectors[:, :40] *= 4
    for order in (1, 2):
        ours = fastest(lambda: embedding.vendi_score(vectors, order), max(repeats, 5))  # noqa: B023 - called at once
        peer = fastest(lambda: vendi.score_dual(vectors, q=order), max(repeats, 5))  # noqa: B023
        row(f"Vendi, order {order}, {documents:,} x {size}", ours, peer, 1)
        print(f"{'':34} {ours.seconds:.3f} s of 0.5")


@contextlib.contextmanager
def memory_held() -> Iterator[dict[str, float]]:
    """The most that this process has held at once, in bytes."""
    import psutil

    peak, done = {"bytes": 0.0}, threading.Event()

    def watch() -> None:
        while not done.wait(0.1):
            peak["bytes"] = max(peak["bytes"], psutil.Process().memory_info().rss)

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield peak
    finally:
        done.set()
        watcher.join()


def bench_million(documents: int, words: int, clusters: int, dimensions: int, pairs: int) -> None:
    """Prints each stage's seconds and memory on one draw of all documents."""
    with memory_held() as peak:
        costs: list[dict] = []
        texts = made_texts(documents, words)
        size = sum(map(len, texts)) / 1e9
        held = peak["bytes"] / 1e9
        print(
            f"{documents:,} documents of {words} words, {size:.2f} GB of text; {held:.2f} GB held by the text and "
            "what made it"
        )
        with metered(costs, "splitting into words (two forms)", documents):
            sample = DocumentFeatures(
                texts=texts,
                words=split_words(texts),
                folded=split_words(texts, "folded"),
            )
        show(costs[-1])
        measured(sample, _LEXICAL, StageSettings(pairs=pairs, seed=0), costs)
        sample = DocumentFeatures(texts=texts)
        with metered(costs, f"TF-IDF and SVD, {dimensions} dimensions", documents):
            space = embedding.TfidfSvd(texts[:20_000], dimensions=dimensions)
            sample = DocumentFeatures(texts=texts, vectors=space.embed(texts))
        show(costs[-1])
        measured(sample, ("vendi", "distance"), StageSettings(pairs=pairs, seed=0), costs)
        with metered(costs, f"fitting {clusters:,} clusters", documents):
            codebook = embedding.Codebook.fit(sample.vectors[:100_000], clusters)
        show(costs[-1])
        measured(sample, ("kmeans",), StageSettings(pairs=pairs, seed=0, occupancy=codebook.occupancy), costs)
    total = sum(item["seconds"] for item in costs)
    print(
        f"all {total:,.0f} s; at most {peak['bytes'] / 1e9:.2f} GB of {_LIMIT_BYTES / 1e9:g} held at once, load "
        f"{os.getloadavg()[0]:.1f}"
    )


def measured(sample: DocumentFeatures, stages: tuple[str, ...], settings: StageSettings, costs: list[dict]) -> None:
    for stage in stages:
        with metered(costs, stage, len(sample.texts)):
            values = STAGES[stage].measure(sample, settings)
        show(costs[-1], ", ".join(f"{name} {value:.5g}" for name, value in values.items() if value is not None))


def show(cost: dict, values: str = "") -> None:
    rise = cost["memory_bytes"] / 1e9
    print(
        f"{cost['stage']:34} {cost['seconds']:8.1f} s {cost['cpu_seconds']:8.1f} CPU s  +{rise:5.2f} GB  {values}",
        flush=True,
    )


def cut_texts(source: str, documents: int, words: int) -> list[str]:
    """The first words of the first documents that have as many."""
    results = []
    for document in open_corpus(source):
        if (text := first_words(document.text, words)) is not None:
            results.append(text)
        if len(results) == documents:
            break
    return results


def main() -> None:
    """Runs the chosen benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("peers", "million"))
    parser.add_argument("--documents", type=int, help="10,000 for peers, 1,000,000 for million")
    parser.add_argument("--words", type=int, help="of each: 200 for peers, 60 for million")
    parser.add_argument("--corpus", help="for peers: text of your own instead of made text")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--clusters", type=int, default=10_000)
    parser.add_argument("--dimensions", type=int, default=256)
    parser.add_argument("--pairs", type=int, default=20_000)
    flags = parser.parse_args()
    if flags.what == "million":
        bench_million(flags.documents or 1_000_000, flags.words or 60, flags.clusters, flags.dimensions, flags.pairs)
        return
    documents, words = flags.documents or 10_000, flags.words or 200
    bench_peers(
        cut_texts(flags.corpus, documents, words) if flags.corpus else made_texts(documents, words), flags.repeats
    )


if __name__ == "__main__":
    main()
