"""Sampling is uniform, seeded, and independent of text lengths and of access order; fingerprints follow the content."""

from collections import Counter
import gzip
import json

import numpy as np
import pytest
from scipy import stats

from diversity_jax.core.errors import InputError
from diversity_jax.corpus import CorpusConfig, open_corpus
from diversity_jax.corpus.sampling import Lowest, lowest, priorities


def write(path, texts):
    data = b"".join(json.dumps({"text": text}).encode() + b"\n" for text in texts)
    path.write_bytes(gzip.compress(data, 1) if path.name.endswith(".gz") else data)
    return str(path)


def test_lowest_is_what_sorting_all_priorities_gives():
    for total, size in ((1, 1), (10, 3), (10, 50), (2_500_000, 1000)):
        order = np.argsort(priorities(0, total, 9), kind="stable")[:size]
        assert lowest(total, size, 9).tolist() == order.tolist()


def test_streaming_keeps_the_same_records_as_looking_them_up():
    for total, size in ((1, 3), (50, 50), (5000, 37)):
        lowest_priorities: Lowest[int] = Lowest(size, seed=4)
        for first in range(0, total, 700):
            for offset, priority in lowest_priorities.wanted(first, min(700, total - first)):
                lowest_priorities.add(priority, first + offset, first + offset)
        assert lowest_priorities.values() == lowest(total, size, 4).tolist()


def test_priorities_of_seeds_and_positions_are_uncorrelated():
    draws = np.stack([priorities(0, 20_000, seed) for seed in (0, 1, 2, -1, 10**30)]) / 2.0**64
    assert stats.kstest(draws.ravel(), "uniform").pvalue > 1e-3
    off_diagonal = np.corrcoef(draws) - np.eye(len(draws))
    assert np.abs(off_diagonal).max() < 0.03
    assert abs(np.corrcoef(draws[0, 1:], draws[0, :-1])[0, 1]) < 0.03


@pytest.mark.parametrize("ending", [".jsonl", ".jsonl.gz"])
def test_every_document_is_drawn_equally_often_whatever_its_length(tmp_path, ending):
    rng = np.random.default_rng(0)
    texts = [f"{n} " + "x" * int(length) for n, length in enumerate(rng.lognormal(3, 2, 60).clip(1, 20_000))]
    corpus = open_corpus(write(tmp_path / f"a{ending}", texts))
    counts = Counter(document.id for seed in range(600) for document in corpus.sample(6, seed=seed))
    assert len(counts) == len(texts)
    assert stats.chisquare(list(counts.values())).pvalue > 1e-3


def test_pairs_are_drawn_without_replacement_and_uniformly(tmp_path):
    corpus = open_corpus(write(tmp_path / "a.jsonl", [str(n) for n in range(7)]))
    pairs = Counter(frozenset(d.text for d in corpus.sample(2, seed=seed)) for seed in range(2100))
    assert all(len(pair) == 2 for pair in pairs)
    assert len(pairs) == 21
    assert stats.chisquare(list(pairs.values())).pvalue > 1e-3


def test_a_smaller_sample_begins_a_larger_one_and_seeds_differ(tmp_path):
    corpus = open_corpus(write(tmp_path / "a.jsonl", [str(n) for n in range(500)]))
    large = corpus.sample(100, seed=1)
    assert corpus.sample(10, seed=1) == large[:10]
    assert corpus.sample(100, seed=2) != large
    assert len(corpus.sample(9999, seed=1)) == 500
    with pytest.raises(InputError, match="sample size 0"):
        corpus.sample(0, seed=1)


@pytest.mark.parametrize("ending", [".jsonl", ".jsonl.gz"])
def test_rejected_records_are_replaced_without_bias(tmp_path, ending):
    texts = ["" if n % 3 else str(n) for n in range(300)]
    corpus = open_corpus(write(tmp_path / f"a{ending}", texts))
    counts = Counter(document.text for seed in range(300) for document in corpus.sample(20, seed=seed))
    assert len(counts) == 100
    assert stats.chisquare(list(counts.values())).pvalue > 1e-3


def test_a_limited_corpus_is_a_beginning_and_samples_stay_in_it(tmp_path):
    path = write(tmp_path / "a.jsonl", ["", *(str(n) for n in range(100))])
    corpus = open_corpus(CorpusConfig(source=path, max_documents=10))
    assert [document.text for document in corpus] == [str(n) for n in range(10)]
    assert sorted(document.text for document in corpus.sample(99, seed=0)) == [str(n) for n in range(10)]


def test_sampling_an_indexed_file_reads_little_of_it(tmp_path, monkeypatch):
    path = write(tmp_path / "a.jsonl", ["y" * 1000] * 3000)
    corpus = open_corpus(path)
    corpus.sample(1, seed=0)

    def no_more_passes(_):
        raise AssertionError("read the whole file again")

    monkeypatch.setattr("diversity_jax.corpus.readers.text.read_lines", no_more_passes)
    monkeypatch.setattr("diversity_jax.corpus.readers.text.read_blocks", no_more_passes)
    assert len(corpus.sample(100, seed=1)) == 100


def test_fingerprint_follows_content_order_and_settings_but_not_names(tmp_path):
    path = write(tmp_path / "a.jsonl", ["one", "two"])
    fingerprint = open_corpus(path).fingerprint()
    (tmp_path / "moved").mkdir()
    assert open_corpus(write(tmp_path / "moved" / "b.jsonl", ["one", "two"])).fingerprint() == fingerprint
    others = [
        open_corpus(write(tmp_path / "c.jsonl", ["two", "one"])),
        open_corpus(write(tmp_path / "d.jsonl", ["one", "twO"])),
        open_corpus(CorpusConfig(source=path, min_characters=2)),
        open_corpus(CorpusConfig(source=path, max_documents=1)),
        open_corpus(CorpusConfig(source=path, max_documents=2)),
        open_corpus(f"{tmp_path}/[ad].jsonl"),
        open_corpus(f"{tmp_path}/[ac].jsonl"),
    ]
    fingerprints = {fingerprint, *(corpus.fingerprint() for corpus in others)}
    assert len(fingerprints) == len(others) + 1


def test_fingerprint_of_a_limited_corpus_ignores_what_lies_behind_the_limit(tmp_path):
    short = open_corpus(CorpusConfig(source=write(tmp_path / "a.jsonl", ["one", "two"]), max_documents=2))
    longer = open_corpus(CorpusConfig(source=write(tmp_path / "b.jsonl", ["one", "two", "three"]), max_documents=2))
    assert short.fingerprint() == longer.fingerprint()


def test_text_files_are_sampled_by_opening_only_those_drawn(tmp_path):
    for n in range(50):
        (tmp_path / f"{n:02}.txt").write_text(f"file {n}")
    corpus = open_corpus(f"{tmp_path}/*.txt")
    drawn = corpus.sample(5, seed=8)
    for n in range(50):
        if f"{n:02}.txt" not in {document.id for document in drawn}:
            (tmp_path / f"{n:02}.txt").unlink()
    assert corpus.sample(5, seed=8) == drawn
