#!/usr/bin/env python
r"""Precision and recall of near-duplicate removal and of decontamination on planted copies, by similarity and language.

    python scripts/checks/measure_filtering.py --pairs=1000
    python scripts/checks/measure_filtering.py --languages --pairs=500
    python scripts/checks/measure_filtering.py --corpus=paragraphs.jsonl.gz --benchmark=boolq_validation.jsonl.gz
    python scripts/checks/measure_filtering.py --corpus=novels.jsonl.gz --benchmark='benchmarks/*.jsonl.gz' \
        --plants=1500

The second takes texts of ten languages, copies with one word in a hundred changed, and items inside other texts. The
last one writes runs of words of benchmark items, in another case and with other punctuation, into documents of the
corpus that share nothing with the benchmarks, and counts what is found: all runs of 13 words must be, none of 12.
"""

import argparse
import itertools
import json
from pathlib import Path
import random
import sys
import tempfile
import time

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from diversity_jax.core.compression import read_lines
from diversity_jax.core.files import list_files
from diversity_jax.core.words import words
from diversity_jax.corpus import open_corpus
from diversity_jax.prepare.config import Filtering, Preparation
from diversity_jax.prepare.decontaminate import Benchmarks
from diversity_jax.prepare.deduplicate import MinHasher
from diversity_jax.prepare.pipeline import prepare
from diversity_jax.tokenizers.tokenizer import load_tokenizer
from tests.planted_texts import planted_copies
from tests.words_by_language import UNSPACED, WORDS, as_text, copies_by_language, random_words

_BINS = (0.0, 0.5, 0.6, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95, 1.01)


def left_out(source: str, folder: Path, report: str, filtering: Filtering) -> tuple[int, list[dict]]:
    """Documents read, and the lines of a report of what was left out."""
    settings = Preparation(name="part", kind="real", sequence_length=256, hygiene=filtering)
    manifest = prepare(open_corpus(source), load_tokenizer("bytes"), folder, settings)
    return manifest.statistics["documents"], [json.loads(line) for line in (folder / report).read_text().splitlines()]


def copies(folder: Path, pairs: int, threshold: float) -> None:
    """Prints how many planted copies of each similarity were left out."""
    corpus, similar = planted_copies(folder, pairs=pairs)
    _, results = left_out(corpus, folder / "part", "duplicates.jsonl", Filtering(near_duplicates=threshold))
    gone = {number_of(copy["document"]) for copy in results}
    alike = {number for number, value in similar.items() if value >= threshold}
    right = len(gone & alike)
    print(f"{pairs:,} pairs, {len(alike):,} of them at least {threshold} similar; {len(gone):,} left out")
    print(
        f"precision {right / len(gone):.3f}, recall {right / len(alike):.3f}; originals left out: "
        f"{len(gone - set(similar))}"
    )
    for low, high in itertools.pairwise(_BINS):
        here = {number for number, value in similar.items() if low <= value < high}
        if here:
            print(f"  similarity {low:.2f} to {min(high, 1):.2f}: {len(here & gone):5,} of {len(here):5,} left out")


def languages(folder: Path, pairs: int, threshold: float) -> None:
    """Prints for each language how many copies with 1 % of the words changed were left out, how many others, and how
    much text is signed in a CPU second.
    """
    hasher = MinHasher(threshold)
    planted = list(copies_by_language(pairs))
    texts = [text for _, text, _ in planted] + [copy for _, _, copy in planted]
    corpus = folder / "languages.jsonl"
    corpus.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    _, results = left_out(str(corpus), folder / "part", "duplicates.jsonl", Filtering(near_duplicates=threshold))
    original = {number_of(copy["document"]): number_of(copy["copy_of"]) for copy in results}
    for language in WORDS:
        here = [number for number, (of, _, _) in enumerate(planted) if of == language]
        removed = sum(original.get(number + len(planted)) == number for number in here)
        others = sum(number in original for number in here)
        megabytes, start = sum(len(texts[number].encode()) for number in here) / 1e6, time.process_time()
        for number in here:
            hasher.signature(texts[number])
        print(
            f"{language:9} {removed:4} of {len(here)} copies found ({removed / len(here):.3f}), {others} of {len(here)}"
            f" unrelated texts left out, {megabytes / (time.process_time() - start):.1f} MB signed a CPU second"
        )


def items_by_language(folder: Path, items: int) -> None:
    """Prints for each language and length how many items are found that stand between sentences of another text."""
    source = random.Random(0)
    for language, length in itertools.product(WORDS, (13, 15, 20)):
        planted = [as_text(random_words(source, language, length), language) for _ in range(items)]
        benchmark = folder / f"{language}-{length}.jsonl"
        benchmark.write_text("".join(json.dumps({"question": item}) + "\n" for item in planted))
        benchmarks, between = Benchmarks((str(benchmark),)), "" if language in UNSPACED else " "
        around = lambda: as_text(random_words(source, language, 20), language)  # noqa: B023, E731
        removed = [
            any(match.item == line for match in benchmarks.overlaps("text", between.join([around(), item, around()])))
            for line, item in enumerate(planted, start=1)
        ]
        print(f"{language:9} items of {length} words: {sum(removed)} of {items} found")


def number_of(document: str) -> int:
    """From 0; ids name the line, from 1."""
    return int(document.rsplit(":", 1)[1]) - 1


def strings(value) -> list[str]:
    """All strings of a JSON value."""
    if isinstance(value, str):
        return [value]
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return [text for element in inner for text in strings(element)]


def planted(corpus: str, benchmark: str, plants: int) -> None:
    """Prints how many planted runs of 13 and of 12 words are found, and whether the right item is named."""
    draw, benchmarks = random.Random(0), Benchmarks((benchmark,))
    sources = [
        (line, words(text))
        for path in list_files(benchmark)
        for line, raw in enumerate((raw for block in read_lines(path) for raw in block), 1)
        for text in strings(json.loads(raw))
    ]
    sources = [(line, taken) for line, taken in sources if len(taken) >= 13]
    hosts = [
        document.text.split() for document in open_corpus(corpus) if not benchmarks.overlaps(document.id, document.text)
    ]
    results = {13: 0, 12: 0}
    named = 0
    for _ in range(plants):
        line, taken = draw.choice(sources)
        start, host = draw.randrange(len(taken) - 12), draw.choice(hosts)
        position = draw.randrange(len(host) + 1)
        for length in results:
            run = [
                draw.choice((word, word.upper(), word.capitalize())) + draw.choice(("", "", ",", ".", ";", " -", "!"))
                for word in taken
            ]
            text = " ".join([*host[:position], "planted", *run[start : start + length], "here", *host[position:]])
            overlaps = benchmarks.overlaps("host", text)
            results[length] += bool(overlaps)
            named += length == 13 and any(overlap.item == line for overlap in overlaps)
    print(
        f"{plants:,} runs of 13 words planted in {len(hosts):,} documents: {results[13]:,} found, "
        f"{named:,} with their item's line named"
    )
    print(f"{plants:,} runs of 12 words: {results[12]:,} found")


def main() -> None:
    """Prints one table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=1000)
    parser.add_argument("--threshold", type=float, default=0.8)
    parser.add_argument("--languages", action="store_true")
    parser.add_argument("--corpus", help="look for benchmark items in this corpus instead")
    parser.add_argument("--benchmark")
    parser.add_argument("--plants", type=int, default=0)
    flags = parser.parse_args()
    if flags.plants:
        return planted(flags.corpus, flags.benchmark, flags.plants)
    with tempfile.TemporaryDirectory() as scratch:
        if not flags.corpus:
            if flags.languages:
                items_by_language(Path(scratch), flags.pairs)
            return (languages if flags.languages else copies)(Path(scratch), flags.pairs, flags.threshold)
        documents, results = left_out(
            flags.corpus, Path(scratch), "decontamination.jsonl", Filtering(decontaminate=(flags.benchmark,))
        )
        items = {overlap["item"] for overlap in results}
        print(
            f"{len({match['document'] for match in results}):,} of {documents:,} documents share 13 words in a row "
            f"with {len(items):,} items"
        )


if __name__ == "__main__":
    main()
