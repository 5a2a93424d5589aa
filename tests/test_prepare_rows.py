"""Prepared rows: no token lost or repeated, and every fault named."""

from collections import Counter
from fractions import Fraction
import json
import os
import subprocess
from typing import ClassVar

from hypothesis import given, settings
from hypothesis import strategies as st
import numpy as np
import pytest

from diversity_jax.core.errors import InputError
from diversity_jax.corpus import Document
from diversity_jax.mixtures.loader import Loader
from diversity_jax.mixtures.mixture import Mixture
from diversity_jax.prepare.config import Filtering, Preparation
from diversity_jax.prepare.manifest import Manifest
from diversity_jax.prepare.pipeline import prepare
from diversity_jax.prepare.rows import RowReader
from diversity_jax.tokenizers.tokenizer import load_tokenizer
from tests.mixture_folders import MadeCorpus, build_mixture
from tests.shared_data import shared_file


class TextCorpus:
    name = "texts"
    rejected: ClassVar[Counter[str]] = Counter()

    def __init__(self, texts):
        self.texts = texts

    def __iter__(self):
        return (Document(id=str(i), text=text) for i, text in enumerate(self.texts))

    def fingerprint(self):
        return f"{hash(tuple(self.texts)):x}"


def settings_of(length=8, **options):
    return Preparation(**{"name": "part", "kind": "real", "sequence_length": length, **options})


@settings(max_examples=30, deadline=None)
@given(
    st.lists(st.text(st.characters(codec="utf-8"), min_size=1, max_size=40), min_size=3, max_size=60),
    st.integers(1, 12),
)
def test_rows_hold_every_token_once(tmp_path_factory, texts, length):
    tokenizer = load_tokenizer("bytes")
    joined = [i for text in texts for i in [*tokenizer.encode_batch([text])[0].tolist(), tokenizer.end_of_text_id]]
    if len(joined) <= length:
        return
    manifest = prepare(TextCorpus(texts), tokenizer, tmp_path_factory.mktemp("part"), settings_of(length))
    rows = len(joined) // (length + 1)
    expected = np.array(joined[: rows * (length + 1)]).reshape(rows, length + 1)
    rows_read = RowReader(manifest).read(np.arange(rows)).tokens
    assert sorted(map(tuple, rows_read)) == sorted(map(tuple, expected))
    train = manifest.splits["train"]
    assert (train.rows, train.dropped_tokens, train.documents) == (rows, len(joined) - rows * (length + 1), len(texts))
    assert train.text_bytes == sum(len(text.encode()) for text in texts)


def test_copies_of_a_document_are_held_out_together(tmp_path):
    texts = [f"document {i % 50} " * 5 for i in range(500)]
    manifest = prepare(TextCorpus(texts), load_tokenizer("bytes"), tmp_path, settings_of(16, validation_share=0.3))
    held_out = manifest.splits["validation"].documents
    assert held_out % 10 == 0
    assert 50 <= held_out <= 250


def test_preparing_again_reuses_and_another_request_is_refused(tmp_path):
    corpus, tokenizer = MadeCorpus("a", 20), load_tokenizer("bytes")
    manifest = prepare(corpus, tokenizer, tmp_path, settings_of(16))
    before = {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    assert prepare(corpus, tokenizer, tmp_path, settings_of(16)).content_hash == manifest.content_hash
    assert {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()} == before
    for change, words in ((settings_of(32), "another sequence_length"), (settings_of(16, seed=1), "another seed")):
        with pytest.raises(InputError, match=words):
            prepare(corpus, tokenizer, tmp_path, change)
    with pytest.raises(InputError, match="another source"):
        prepare(MadeCorpus("a", 21), tokenizer, tmp_path, settings_of(16))


def test_another_tokenizer_than_the_prepared_one_is_refused(tmp_path):
    tokenizer = load_tokenizer(str(shared_file("tokenizers/llama2_tokenizer.model")))
    prepare(MadeCorpus("a", 20), load_tokenizer("bytes"), tmp_path, settings_of(16))
    with pytest.raises(InputError, match="another tokenizer"):
        prepare(MadeCorpus("a", 20), tokenizer, tmp_path, settings_of(16))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"validation_share": 1 - 1e-9}, r"no document is left for training \(1 held out\)"),
        ({"hygiene": "short.jsonl"}, r"no document is left for training \(1 contaminated\)"),
    ],
)
def test_text_that_is_left_out_altogether_is_named(tmp_path, options, words):
    text = " ".join(f"word{i}" for i in range(40))
    if "hygiene" in options:
        (tmp_path / "short.jsonl").write_text(json.dumps({"text": text}))
        options = {"hygiene": Filtering(decontaminate=(str(tmp_path / "short.jsonl"),))}
    with pytest.raises(InputError, match=words):
        prepare(TextCorpus([text]), load_tokenizer("bytes"), tmp_path / "out", settings_of(16, **options))


def test_too_little_text_is_refused_and_leaves_no_manifest(tmp_path):
    with pytest.raises(InputError, match="6 tokens of training text do not fill one row of 17"):
        prepare(TextCorpus(["short"]), load_tokenizer("bytes"), tmp_path, settings_of(16))
    copies, settings = TextCorpus(["short"] * 9), settings_of(16, hygiene=Filtering(exact_duplicates=True))
    with pytest.raises(InputError, match=r"do not fill one row of 17 \(without 8 exact duplicates\); give"):
        prepare(copies, load_tokenizer("bytes"), tmp_path, settings, processes=1)
    assert not list(tmp_path.iterdir())


def test_a_damaged_row_is_named_when_it_is_read(tmp_path):
    manifest = prepare(MadeCorpus("a", 20), load_tokenizer("bytes"), tmp_path, settings_of(16))
    shard = tmp_path / manifest.splits["train"].shards[0].file
    data = bytearray(shard.read_bytes())
    data[5 * manifest.row_bytes + 3] ^= 1
    shard.write_bytes(data)
    reader = RowReader(manifest)
    reader.read(np.arange(5))
    with pytest.raises(InputError, match=r"train-00000-of-00001.bin: row 5 is damaged"):
        reader.read(np.arange(10))


@pytest.mark.parametrize(
    ("change", "words"),
    [(lambda path: path.unlink(), "is missing"), (lambda path: os.truncate(path, 100), "is damaged")],
)
def test_a_missing_or_cut_shard_is_named_at_once(tmp_path, change, words):
    manifest = prepare(MadeCorpus("a", 20), load_tokenizer("bytes"), tmp_path, settings_of(16))
    change(tmp_path / manifest.splits["train"].shards[0].file)
    with pytest.raises(InputError, match=words):
        RowReader(Manifest.load(tmp_path / "manifest.json"))


def test_a_full_disk_leaves_nothing_that_looks_whole(tmp_path):
    folder = tmp_path / "small"
    folder.mkdir()
    if subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", folder], capture_output=True, check=False
    ).returncode:
        pytest.skip("needs leave to mount a small file system, which this user has not")
    try:
        with pytest.raises(InputError, match="disk is full"):
            prepare(MadeCorpus("a", 400), load_tokenizer("bytes"), folder / "part", settings_of(16))
        assert [path.name for path in (folder / "part").iterdir()] == [".preparing"]
        assert not [path for path in (folder / "part").rglob("*") if path.name.endswith(".partial")]
        subprocess.run(["mount", "-o", "remount,size=8m", folder], check=True)
        folders = (folder / "part", tmp_path / "roomy")
        prepared = [
            prepare(MadeCorpus("a", 400), load_tokenizer("bytes"), target, settings_of(16)) for target in folders
        ]
        assert prepared[0].content_hash == prepared[1].content_hash
    finally:
        subprocess.run(["umount", folder], check=True)


def test_an_edited_mixture_is_refused(tmp_path):
    folder = build_mixture(tmp_path, {"a": Fraction(1, 4), "b": Fraction(3, 4)})
    path = folder / "mixture.json"
    path.write_text(path.read_text().replace('"share_granted_exact": "1/4"', '"share_granted_exact": "1/2"'))
    with pytest.raises(InputError, match="changed after it was built"):
        Mixture.load(folder)


def test_components_of_two_lengths_are_not_mixed(tmp_path):
    tokenizer = load_tokenizer("bytes")
    parts = [prepare(MadeCorpus("a", 20), tokenizer, tmp_path / str(n), settings_of(n)) for n in (8, 16)]
    with pytest.raises(InputError, match="different sequence lengths"):
        Loader(parts, [1, 1], batch_size=2)


def test_hosts_read_disjoint_parts_of_the_same_batch(tmp_path):
    loader = Mixture.load(build_mixture(tmp_path, {"a": Fraction(1, 4), "b": Fraction(3, 4)})).loader(batch_size=8)
    global_batch = loader.batch(5)
    parts = [loader.batch(5, part) for part in (slice(0, 4), slice(4, 8))]
    np.testing.assert_array_equal(np.concatenate([part.tokens for part in parts]), global_batch.tokens)
    np.testing.assert_array_equal(np.concatenate([part.component for part in parts]), global_batch.component)
