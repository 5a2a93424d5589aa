"""Preparation from and into a bucket of a local Google Cloud Storage server."""

import hashlib
import importlib.util
from pathlib import Path
import random
import types

import fsspec
import pytest

from diversity_jax.core.artifacts import FolderLocked, locked_folder
from diversity_jax.core.errors import InputError
from diversity_jax.core.files import exists, join_path, write_json, writing
from diversity_jax.corpus import CorpusConfig, open_corpus
from diversity_jax.prepare import shards
from diversity_jax.prepare.config import Filtering, Preparation
from diversity_jax.prepare.pipeline import prepare
from diversity_jax.tokenizers.tokenizer import load_tokenizer
from tests.gcs_server import BUCKET, client, serving
from tests.mixture_folders import file_hashes

SETTINGS = {"sequence_length": 32, "validation_share": 0.1, "piece_characters": 20_000, "shard_bytes": 40_000}


@pytest.fixture(scope="module")
def store():
    """fsspec's file system of a bucket that lies in a server of this machine."""
    if importlib.util.find_spec("gcsfs") is None:
        pytest.skip("needs gcsfs: pip install 'diversity_jax[gcs]'")
    with serving() as environment, client(environment):
        yield fsspec.filesystem("gs")


@pytest.fixture(scope="module")
def source(store, tmp_path_factory) -> str:
    """Text in the bucket, compressed: a pattern of URLs."""
    import gzip
    import json

    draw = random.Random(0)
    words = [f"word{i}" for i in range(500)]
    for file in range(2):
        texts = [" ".join(draw.choices(words, k=draw.randint(3, 60))) for _ in range(150)]
        lines = "".join(json.dumps({"text": text}) + "\n" for text in [*texts, texts[0]])
        store.pipe_file(f"{BUCKET}/text/{file}.jsonl.gz", gzip.compress(lines.encode()))
    store.pipe_file(f"{BUCKET}/items.jsonl", json.dumps({"question": " ".join(texts[3].split()[:20])}).encode() + b"\n")
    return f"gs://{BUCKET}/text/*.jsonl.gz"


def asked() -> Preparation:
    filters = Filtering(near_duplicates=0.8, decontaminate=(f"gs://{BUCKET}/items.jsonl",))
    return Preparation(name="part", kind="real", hygiene=filters, **SETTINGS)


@pytest.fixture(scope="module")
def on_disk(source, tmp_path_factory) -> Path:
    """The component as this machine's processes write it to a local folder."""
    folder = tmp_path_factory.mktemp("local") / "part"
    manifest = prepare(open_corpus(source), load_tokenizer("bytes"), folder, asked(), processes=1)
    assert manifest.statistics["contaminated"] == 1
    assert manifest.statistics["exact_duplicates"] == 2
    return folder


def test_a_bucket_that_is_not_there_is_one_line(store, source):
    with pytest.raises(
        InputError, match=r"^gs://nowhere/part/.*: cannot be written \(.*\); check that the bucket is there"
    ):
        prepare(open_corpus(source), load_tokenizer("bytes"), "gs://nowhere/part", asked(), processes=1)
    with pytest.raises(InputError, match="no file matches this pattern"):
        open_corpus("gs://nowhere/text/*.jsonl")


def objects(store, folder: str) -> dict[str, str]:
    """Hash of every object below a folder, by its name."""
    store.invalidate_cache()
    inside = folder.removeprefix("gs://")
    return {
        name.removeprefix(f"{inside}/"): hashlib.sha256(store.cat_file(name)).hexdigest() for name in store.find(inside)
    }


def test_a_component_in_a_bucket_is_the_one_on_disk(store, source, on_disk):
    folder = f"gs://{BUCKET}/by_processes"
    prepare(open_corpus(source), load_tokenizer("bytes"), folder, asked(), processes=2)
    assert objects(store, folder) == file_hashes(on_disk)
    pytest.importorskip("apache_beam", reason="needs apache-beam: pip install 'diversity_jax[beam]'")
    from diversity_jax.prepare.beam import BeamExecutor

    config, folder = CorpusConfig(source=source), f"gs://{BUCKET}/by_beam"
    prepare(
        open_corpus(config), load_tokenizer("bytes"), folder, asked(), executor=BeamExecutor(config, "DirectRunner")
    )
    assert objects(store, folder) == file_hashes(on_disk)


def test_two_preparations_in_one_folder_of_a_bucket_do_not_meet(store, source):
    folder = f"gs://{BUCKET}/locked"
    with locked_folder(folder):
        assert objects(store, folder).keys() == {".lock"}
        with pytest.raises(FolderLocked, match=r"process \d+ on .* is writing to it"):
            prepare(open_corpus(source), load_tokenizer("bytes"), folder, asked(), processes=1)
    assert not objects(store, folder)


def test_a_stopped_preparation_in_a_bucket_goes_on(store, source, on_disk, monkeypatch, caplog):
    from diversity_jax.prepare import executors

    folder, begun = f"gs://{BUCKET}/stopped", []

    def gather(job, plan_hash, shard):
        begun.append(shard)
        if len(begun) == 2:
            raise KeyboardInterrupt
        return shards.gather_shard(job, plan_hash, shard)

    with monkeypatch.context() as patch:
        patch.setattr(executors, "gather_shard", gather)
        with pytest.raises(KeyboardInterrupt):
            prepare(open_corpus(source), load_tokenizer("bytes"), folder, asked(), processes=1)
    chunk_files = sorted(name for name in objects(store, folder) if name.endswith(".rows") and "tails" not in name)
    assert len(chunk_files) >= 2
    assert not exists(join_path(folder, "manifest.json"))
    damaged = f"{folder.removeprefix('gs://')}/{chunk_files[0]}"
    store.pipe_file(damaged, store.cat_file(damaged)[:-1])
    before = {name: store.info(f"{folder}/{name}")["generation"] for name in chunk_files[1:]}
    seen = types.SimpleNamespace(generations=None)

    def look(job, plan_hash, shard):
        store.invalidate_cache()
        seen.generations = {name: store.info(f"{folder}/{name}")["generation"] for name in chunk_files[1:]}
        return shards.gather_shard(job, plan_hash, shard)

    monkeypatch.setattr(executors, "gather_shard", look)
    prepare(open_corpus(source), load_tokenizer("bytes"), folder, asked(), processes=1)
    assert seen.generations == before
    assert f"{chunk_files[0]}: finished before, but damaged since" in caplog.text
    assert objects(store, folder) == file_hashes(on_disk)


@pytest.mark.parametrize("size_bytes", [10, 12_000_000])
def test_what_fails_half_way_leaves_no_object(store, size_bytes):
    url = f"gs://{BUCKET}/half/{size_bytes}"

    def fail():
        with writing(url) as file:
            file.write(bytes(size_bytes))
            raise RuntimeError("half way")

    with pytest.raises(RuntimeError, match="half way"):
        fail()
    assert not exists(url)
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(f"{url}.json", {"value": float("nan")})
    assert not exists(f"{url}.json")
    with writing(url) as file:
        file.write(bytes(size_bytes))
    assert store.size(url) == size_bytes
