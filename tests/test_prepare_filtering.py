"""Filtering in preparation: planted and known benchmark overlaps, and near copies, are removed."""

import gzip
import json
from pathlib import Path
import random
import re

import pytest

from diversity_jax.core.errors import InputError
from diversity_jax.corpus import open_corpus
from diversity_jax.prepare.config import Filtering, Preparation
from diversity_jax.prepare.pipeline import prepare
from diversity_jax.tokenizers.tokenizer import load_tokenizer
from tests.json_lines import json_lines
from tests.planted_texts import planted_copies, planted_overlaps, write_jsonl
from tests.shared_data import shared_file
from tests.words_by_language import UNSPACED, WORDS, as_text, copies_by_language, random_words


def prepared(source: str, folder: Path, **filters):
    """Manifest, and the lines of its report."""
    settings = Preparation(name="part", kind="real", sequence_length=64, hygiene=Filtering(**filters))
    manifest = prepare(open_corpus(source), load_tokenizer("bytes"), folder, settings, processes=1)
    report = folder / ("decontamination.jsonl" if "decontaminate" in filters else "duplicates.jsonl")
    return manifest, json_lines(report)


def number_of(document: str) -> int:
    """From 0; ids name the line, from 1."""
    return int(document.rsplit(":", 1)[1]) - 1


@pytest.mark.parametrize(("run_words", "is_removed"), [(13, True), (12, False)])
def test_every_planted_run_of_13_words_is_found_and_none_of_12(tmp_path, run_words, is_removed):
    corpus, benchmark, hidden = planted_overlaps(tmp_path, items=60, run_words=run_words)
    manifest, overlaps = prepared(corpus, tmp_path / "part", decontaminate=(benchmark,))
    assert {(number_of(overlap["document"]), overlap["item"]) for overlap in overlaps} == (
        hidden if is_removed else set()
    )
    assert manifest.statistics["contaminated"] == (len(hidden) if is_removed else 0)
    assert manifest.statistics["kept"] == 180 - manifest.statistics["contaminated"]


def test_the_known_overlap_of_wikipedia_with_boolq_is_found(tmp_path):
    corpus = shared_file("corpora_real/wikipedia_paragraphs_boolq.jsonl.gz")
    benchmark = shared_file("benchmarks/boolq_validation.jsonl.gz")

    def runs(text: str) -> set[tuple[str, ...]]:
        words = re.findall(r"[^\W_]+", text.casefold())
        return {tuple(words[i : i + 13]) for i in range(len(words) - 12)}

    def records(path):
        with gzip.open(path, "rt") as file:
            return [json.loads(line) for line in file]

    asked = set().union(*(runs(record["passage"]) | runs(record["question"]) for record in records(benchmark)))
    paragraphs = records(corpus)[:2500]
    known = {line for line, record in enumerate(paragraphs) if not asked.isdisjoint(runs(record["text"]))}
    part = write_jsonl(tmp_path / "paragraphs.jsonl", paragraphs)
    manifest, overlaps = prepared(part, tmp_path / "part", decontaminate=(str(benchmark),))
    contaminated = {number_of(overlap["document"]) for overlap in overlaps}
    assert len(known) > 30
    assert known <= contaminated
    assert len(contaminated) == manifest.statistics["contaminated"] < 1.05 * len(known)


def test_near_copies_are_left_out_with_measured_precision_and_recall(tmp_path):
    corpus, similar = planted_copies(tmp_path, pairs=400)
    manifest, copies = prepared(corpus, tmp_path / "part", near_duplicates=0.8)
    left_out = {number_of(copy["document"]) for copy in copies}
    assert left_out <= set(similar)  # no original is taken for a copy
    alike = {number for number, value in similar.items() if value >= 0.8}
    assert len(left_out & alike) >= 0.9 * len(alike)
    assert len(left_out & alike) >= 0.9 * len(left_out)
    assert {number for number, value in similar.items() if value >= 0.9} <= left_out
    assert not {number for number, value in similar.items() if value < 0.6} & left_out
    assert manifest.statistics["near_duplicates"] + manifest.statistics["exact_duplicates"] == len(left_out)


def test_near_copies_are_found_in_every_language_and_nothing_else(tmp_path):
    planted = list(copies_by_language(20))
    texts = [text for _, text, _ in planted] + [copy for _, _, copy in planted]
    corpus = write_jsonl(tmp_path / "languages.jsonl", [{"text": text} for text in texts])
    _, copies = prepared(corpus, tmp_path / "part", near_duplicates=0.8)
    originals = {number_of(copy["document"]): number_of(copy["copy_of"]) for copy in copies}
    for language in WORDS:
        numbers = [number for number, (of, _, _) in enumerate(planted) if of == language]
        removed = [number for number in numbers if originals.get(len(planted) + number) == number]
        assert len(removed) >= 0.95 * len(numbers), language
    assert all(number == origin + len(planted) for number, origin in originals.items())


@pytest.mark.parametrize("language", WORDS)
def test_an_item_inside_running_text_is_found_in_every_language(tmp_path, language):
    source = random.Random(0)
    items = [as_text(random_words(source, language, 16), language) for _ in range(20)]
    benchmark = write_jsonl(tmp_path / "items.jsonl", [{"question": item} for item in items])
    between = "" if language in UNSPACED else " "
    texts = []
    for number in range(40):  # an item in every second
        before, after = (as_text(random_words(source, language, 20), language) for _ in range(2))
        texts.append(between.join([before, *items[number // 2 : number // 2 + number % 2], after]))
    corpus = write_jsonl(tmp_path / "corpus.jsonl", [{"text": text} for text in texts])
    _, overlaps = prepared(corpus, tmp_path / "part", decontaminate=(benchmark,))
    overlapping = {(number_of(overlap["document"]), overlap["item"]) for overlap in overlaps}
    assert overlapping == {(number, number // 2 + 1) for number in range(1, 40, 2)}


@pytest.mark.parametrize("permutations", [16, 128, 256])
@pytest.mark.parametrize("threshold", [0.97, 0.99, 1.0])
def test_thresholds_near_one_leave_out_what_is_the_same_but_for_case_and_punctuation(tmp_path, threshold, permutations):
    words = random_words(random.Random(0), "english", 200)
    texts = [" ".join(words), ", ".join(words).upper(), " ".join(words[100:]), "!!!", "???", "!!! "]
    corpus = write_jsonl(tmp_path / "corpus.jsonl", [{"text": text} for text in texts])
    _, copies = prepared(corpus, tmp_path / "part", near_duplicates=threshold, permutations=permutations)
    assert [(number_of(copy["document"]), number_of(copy["copy_of"])) for copy in copies] == [(1, 0), (5, 3)]


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (None, "no such file"),
        ("", "is empty"),
        ("not json\n", ":1: is not valid JSON"),
        ("[1]\n", ":1: is JSON but not an object"),
        ('{"question": "too short to look for"}\n', "no item has 13 words in a row"),
    ],
)
def test_bad_evaluation_files_are_one_line(tmp_path, content, says):
    corpus = write_jsonl(tmp_path / "corpus.jsonl", [{"text": "some words to prepare " * 40}] * 9)
    if content is not None:
        (tmp_path / "benchmark.jsonl").write_text(content)
    with pytest.raises(InputError, match=says):
        prepared(corpus, tmp_path / "part", decontaminate=(str(tmp_path / "benchmark.jsonl"),))
    assert not (tmp_path / "part" / "manifest.json").exists()
