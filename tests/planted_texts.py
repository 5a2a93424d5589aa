"""Texts with known overlaps: runs of benchmark items hidden in documents, and copies of documents with some words
changed.
"""

from collections.abc import Sequence
import json
from pathlib import Path
import random
import re

SHINGLE_WORDS = 5
_WORDS = [
    f"{start}{middle}{end}"
    for start in "bdgklmnprst"
    for middle in ("a", "e", "io", "ou")
    for end in ("", "n", "rd", "lt", "mosk")
]


def prose(source: random.Random, words: int) -> list[str]:
    """Made-up words."""
    return source.choices(_WORDS, k=words)


def write_jsonl(path: Path, records: Sequence[dict]) -> str:
    """One JSON object a line; returns the path."""
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return str(path)


def disguised(source: random.Random, words: Sequence[str]) -> str:
    """The same words in another case, with other punctuation and spaces."""
    return "".join(
        source.choice((word, word.upper(), word.capitalize())) + source.choice((" ", ", ", "\n", " - ", "; "))
        for word in words
    )


def planted_overlaps(
    folder: Path, *, items: int, run_words: int, seed: int = 0
) -> tuple[str, str, set[tuple[str, int]]]:
    """A corpus whose first document in three hides `run_words` words of an item, or of an item's question and answer in
    a row.

    Returns:
      Path of the corpus, path of the benchmark, and (document number, item) of all that was hidden.
    """
    source = random.Random(seed)
    benchmark = [
        {"question": " ".join(prose(source, 30)) + "?", "answers": {"text": [" ".join(prose(source, 9))]}}
        for _ in range(items)
    ]
    documents, hidden = [], set()
    for number in range(3 * items):
        words = " ".join(prose(source, source.randint(40, 200)))
        if number % 3 == 0:
            item = source.randrange(items)
            run = re.findall(r"\w+", benchmark[item]["question"] + " " + benchmark[item]["answers"]["text"][0])
            start = source.randrange(len(run) - run_words + 1)
            middle = words.index(" ")
            words = f"{words[:middle]} {disguised(source, run[start : start + run_words])} {words[middle:]}"
            hidden.add((number, item + 1))
        documents.append({"text": words})
    return write_jsonl(folder / "corpus.jsonl", documents), write_jsonl(folder / "benchmark.jsonl", benchmark), hidden


def shingles(text: str) -> set[tuple[str, ...]]:
    """Every run of five words, without case and punctuation."""
    words = re.findall(r"[^\W_]+", text.casefold())
    return {tuple(words[i : i + SHINGLE_WORDS]) for i in range(len(words) - SHINGLE_WORDS + 1)}


def planted_copies(folder: Path, *, pairs: int, seed: int = 0) -> tuple[str, dict[int, float]]:
    """A corpus of documents and, somewhere after each, a copy with some words changed, from none to one in ten.

    Returns:
      Path of the corpus, and the exact Jaccard similarity of each copy with its original, by the copy's number.
    """
    source = random.Random(seed)
    originals = [prose(source, source.randint(80, 300)) for _ in range(pairs)]
    copies = []
    for original in originals:
        share = source.random() ** 2 * 0.1
        copies.append([source.choice(_WORDS) if source.random() < share else word for word in original])
    texts = [" ".join(words) for words in (*originals, *copies)]
    shingle_pairs = [(shingles(a), shingles(b)) for a, b in zip(texts[:pairs], texts[pairs:], strict=True)]
    similar = {pairs + i: len(a & b) / len(a | b) for i, (a, b) in enumerate(shingle_pairs)}
    return write_jsonl(folder / "copies.jsonl", [{"text": text} for text in texts]), similar
