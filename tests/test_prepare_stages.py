"""Preparation gives the same files for any number of processes, on Beam, and after kills; bad input is one line."""

import contextlib
import fcntl
import itertools
import json
import os
from pathlib import Path
import random
import signal
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest

from diversity_jax.core.errors import InputError
from diversity_jax.core.progress import ProgressDisplay
from diversity_jax.core.stores import StoreError
from diversity_jax.corpus import CorpusConfig, open_corpus
from diversity_jax.corpus.beam import open_pipeline
from diversity_jax.mixtures.builder import build
from diversity_jax.mixtures.config import Component, MixtureConfig
from diversity_jax.prepare import executors
from diversity_jax.prepare.config import Filtering, Preparation
from diversity_jax.prepare.manifest import describe
from diversity_jax.prepare.pipeline import prepare
from diversity_jax.prepare.rows import RowReader, row_keys
from diversity_jax.prepare.shards import extent_of, shard_count
from diversity_jax.tokenizers.tokenizer import ByteTokenizer, load_tokenizer
from tests.kills import kills
from tests.mixture_folders import file_hashes

ROOT = Path(__file__).resolve().parents[1]


def write_text(folder: Path, *, files: int = 3, documents: int = 400, seed: int = 0) -> str:
    """Files of made-up documents, some of them copies; returns a pattern."""
    source = random.Random(seed)
    words = [f"word{i}" for i in range(2000)]
    texts = [" ".join(source.choices(words, k=source.randint(1, 120))) for _ in range(files * documents)]
    texts[7 * files :: 50] = [texts[0]] * len(texts[7 * files :: 50])
    folder.mkdir(exist_ok=True)
    for file in range(files):
        lines = [json.dumps({"text": text}) + "\n" for text in texts[file::files]]
        (folder / f"text-{file}.jsonl").write_text("".join(lines))
    return str(folder / "text-*.jsonl")


def asked(**options) -> Preparation:
    defaults = {"sequence_length": 64, "validation_share": 0.1, "piece_characters": 40_000, "shard_bytes": 60_000}
    return Preparation(name="part", kind="real", **{**defaults, **options})


FILTERING = Filtering(exact_duplicates=True, near_duplicates=0.8)


def test_the_files_are_the_same_from_one_process_from_several_and_from_beam(tmp_path):
    config = CorpusConfig(source=write_text(tmp_path / "text", documents=200))
    settings, tokenizer = asked(hygiene=FILTERING), load_tokenizer("bytes")
    manifests = [
        prepare(open_corpus(config), tokenizer, tmp_path / str(count), settings, processes=count) for count in (1, 2)
    ]
    assert file_hashes(tmp_path / "1") == file_hashes(tmp_path / "2")
    assert len(manifests[0].splits["train"].shards) > 3
    assert manifests[0].content_hash == manifests[1].content_hash
    assert not (tmp_path / "2" / ".preparing").exists()
    pytest.importorskip("apache_beam", reason="needs apache-beam: pip install 'diversity_jax[beam]'")
    from diversity_jax.prepare.beam import BeamExecutor

    prepare(open_corpus(config), tokenizer, tmp_path / "beam", settings, executor=BeamExecutor(config, "DirectRunner"))
    assert file_hashes(tmp_path / "1") == file_hashes(tmp_path / "beam")


def test_beam_writes_to_a_remote_folder_and_names_bad_input_in_one_line(tmp_path):
    pytest.importorskip("apache_beam", reason="needs apache-beam: pip install 'diversity_jax[beam]'")
    import fsspec

    from diversity_jax.prepare.beam import BeamExecutor

    config = CorpusConfig(source=write_text(tmp_path / "text", files=1, documents=60))
    folder = f"memory://{tmp_path.name}/part"
    manifest = prepare(
        open_corpus(config), load_tokenizer("bytes"), folder, asked(), executor=BeamExecutor(config, "DirectRunner")
    )
    local = prepare(open_corpus(config), load_tokenizer("bytes"), tmp_path / "local", asked())
    assert manifest.content_hash == local.content_hash
    shard = local.splits["train"].shards[0].file
    assert fsspec.filesystem("memory").cat(f"{folder}/{shard}") == (tmp_path / "local" / shard).read_bytes()
    assert not fsspec.filesystem("memory").exists(f"{folder}/.preparing")
    rows = np.arange(local.splits["train"].rows)
    read, remote = (RowReader(part).read(rows).tokens for part in (local, manifest))
    assert np.array_equal(read, remote)
    with pytest.raises(InputError, match="Unexpected pipeline runner: NoRunner"):
        BeamExecutor(config, "NoRunner").fingerprint(open_corpus(config), str(tmp_path))
    with open(tmp_path / "text" / "text-0.jsonl", "a") as file:
        file.write("{broken\n")
    with pytest.raises(InputError, match=r"text-0.jsonl:61: is not valid JSON.*column \d+\)$"):
        prepare(
            open_corpus(config),
            load_tokenizer("bytes"),
            tmp_path / "out",
            asked(),
            executor=BeamExecutor(config, "DirectRunner"),
        )
    assert not (tmp_path / "out" / "manifest.json").exists()


def command(source: str, folder: Path, *more: str) -> list[str]:
    """The command line of a preparation, with a configuration of its own."""
    config = folder.parent / "prepare_config.py"
    config.write_text(
        "from diversity_jax.corpus import CorpusConfig\n"
        "from diversity_jax.prepare.config import Filtering, Preparation, PrepareConfig\n\n\n"
        "def get_config():\n"
        f"    corpus = CorpusConfig(source={source!r})\n"
        f"    asked = {asked(hygiene=FILTERING)!r}\n"
        f"    return PrepareConfig(output_dir={str(folder)!r}, corpus=corpus, preparation=asked)\n"
    )
    return [
        sys.executable,
        "-m",
        "diversity_jax.mixtures.prepare",
        "--config",
        str(config),
        "--config.processes=2",
        *more,
    ]


@pytest.mark.slow
@pytest.mark.parametrize(("runner", "few"), [(None, 2), ("DirectRunner", 1)])  # Beam takes seconds to start
def test_killed_at_random_moments_and_restarted_it_ends_with_the_same_files(runner, few):
    if runner:
        pytest.importorskip("apache_beam", reason="needs apache-beam: pip install 'diversity_jax[beam]'")
    words = [f"--kills={kills(few)}", "--documents=600", *([f"--runner={runner}"] if runner else [])]
    done = subprocess.run(
        [sys.executable, "scripts/checks/kill_preparation.py", *words],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=500,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"{kills(few)} kill")


class Stopped(Exception):
    """Stands for a kill at a chosen place."""


def stop_before_shards(monkeypatch):
    """Makes the next preparation end when all pieces are finished and one shard is."""
    from diversity_jax.prepare import executors

    gather_shard = executors.gather_shard

    def gather(job, plan_hash, shard):
        if shard.number == 1:
            raise Stopped
        return gather_shard(job, plan_hash, shard)

    monkeypatch.setattr(executors, "gather_shard", gather)


def test_finished_work_is_kept_and_damaged_work_is_made_again(tmp_path, monkeypatch, caplog):
    corpus, tokenizer = open_corpus(write_text(tmp_path / "text")), load_tokenizer("bytes")
    prepare(corpus, tokenizer, tmp_path / "whole", asked(), processes=1)
    with monkeypatch.context() as patch:
        stop_before_shards(patch)
        with pytest.raises(Stopped):
            prepare(corpus, tokenizer, tmp_path / "part", asked(), processes=1)
    staging = tmp_path / "part" / ".preparing"
    chunks = sorted(staging.glob("0*.rows"))  # not what their ends are joined to, which changes with any of them
    shard = next((tmp_path / "part").glob("train-00000-of-*.bin"))
    written_at = {path: path.stat().st_mtime_ns for path in chunks[1:]}
    for damaged in (chunks[0], shard):
        data = bytearray(damaged.read_bytes())
        data[100] ^= 1
        damaged.write_bytes(data)
    (tmp_path / "part" / "tokenizer").mkdir()
    for partial in (".train-00001-of-00009.bin.1.partial", "tokenizer/.tokenizer.json.1.partial"):
        (tmp_path / "part" / partial).write_bytes(b"cut")
    with monkeypatch.context() as patch:
        stop_before_shards(patch)
        with pytest.raises(Stopped):
            prepare(corpus, tokenizer, tmp_path / "part", asked(), processes=1)
    assert {path: path.stat().st_mtime_ns for path in written_at} == written_at
    prepare(corpus, tokenizer, tmp_path / "part", asked(), processes=1)
    assert [record.getMessage().partition(":")[0] for record in caplog.records] == [str(chunks[0]), str(shard)]
    assert file_hashes(tmp_path / "part") == file_hashes(tmp_path / "whole")


def test_an_unfinished_preparation_of_something_else_starts_afresh_and_says_so(tmp_path, monkeypatch, caplog):
    corpus, tokenizer = open_corpus(write_text(tmp_path / "text")), load_tokenizer("bytes")
    with monkeypatch.context() as patch:
        stop_before_shards(patch)
        with pytest.raises(Stopped):
            prepare(corpus, tokenizer, tmp_path / "part", asked(), processes=1)
    prepare(corpus, tokenizer, tmp_path / "part", asked(sequence_length=32, seed=5), processes=1)
    assert "another sequence_length (64, now 32), seed (0, now 5); starting afresh" in caplog.text
    prepare(corpus, tokenizer, tmp_path / "whole", asked(sequence_length=32, seed=5), processes=1)
    assert file_hashes(tmp_path / "part") == file_hashes(tmp_path / "whole")


def test_two_cannot_prepare_one_folder_and_a_dead_holder_does_not_matter(tmp_path, monkeypatch):
    from diversity_jax.prepare import executors

    monkeypatch.setattr(executors, "_LOCK_WAIT_SECONDS", 0.2)
    corpus, tokenizer = open_corpus(write_text(tmp_path / "text", files=1)), load_tokenizer("bytes")
    lock = tmp_path / "part" / ".preparing" / "lock"
    lock.parent.mkdir(parents=True)
    lock.write_text("process 1 on elsewhere")
    with open(lock) as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        with pytest.raises(InputError, match="is being prepared by process 1 on elsewhere; wait for it"):
            prepare(corpus, tokenizer, tmp_path / "part", asked(), processes=1)
    assert prepare(corpus, tokenizer, tmp_path / "part", asked(), processes=1).splits["train"].rows


def test_the_lock_is_held_until_all_staging_files_are_removed(tmp_path, monkeypatch):
    staging, removed, remove = executors.Staging(tmp_path), [], executors.remove_tree

    def remove_while_locked(path):
        with open(tmp_path / ".preparing" / "lock") as other, pytest.raises(BlockingIOError):
            fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
        removed.append(Path(path).name)
        remove(path)

    monkeypatch.setattr(executors, "remove_tree", remove_while_locked)
    with staging.locked():
        for name in "abc":
            (tmp_path / ".preparing" / name).touch()
        staging.close()
    assert sorted(removed) == ["a", "b", "c"]
    assert not list(tmp_path.iterdir())


class DeadlyTokenizer(ByteTokenizer):
    """Kills the process that uses it, unless that is the one that made it."""

    def __init__(self):
        self.home = os.getpid()

    def encode_batch(self, texts, **options):
        if os.getpid() != self.home:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().encode_batch(texts, **options)


def test_a_killed_worker_is_named_in_one_line(tmp_path):
    corpus = open_corpus(write_text(tmp_path / "text", files=1))
    with pytest.raises(
        InputError, match=r"a worker process was killed by signal 9, perhaps for want of memory; run again to go on"
    ):
        prepare(corpus, DeadlyTokenizer(), tmp_path / "part", asked(), processes=2)
    assert not (tmp_path / "part" / "manifest.json").exists()
    assert (tmp_path / "part" / ".preparing" / "request.json").exists()  # what is finished stays, to go on


@pytest.mark.parametrize(("kind", "is_kept"), [("StoreError", True), ("DiskFull", True), ("Rejected", False)])
def test_what_a_worker_of_beam_says_of_a_store_keeps_finished_work(monkeypatch, kind, is_kept):
    module = SimpleNamespace(Pipeline=lambda options: contextlib.nullcontext())
    monkeypatch.setitem(sys.modules, "apache_beam", module)
    with pytest.raises(InputError, match=r"^b: has failed$") as caught, open_pipeline("Some", None):
        raise RuntimeError(f"in a worker: core.{kind}: b: has failed [while running 'Map(_work)']")
    assert isinstance(caught.value, StoreError) == is_kept


def test_an_empty_output_folder_is_not_the_current_one(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    corpus = open_corpus(write_text(tmp_path / "text", files=1, documents=9))
    config = MixtureConfig(name="m", components=(Component(name="a", kind="real", corpus="text/text-0.jsonl"),))
    for run in (lambda: prepare(corpus, load_tokenizer("bytes"), "", asked()), lambda: build(config, "", dict)):
        with pytest.raises(InputError, match="output_dir is empty; name a folder"):
            run()
    assert [path.name for path in tmp_path.iterdir()] == ["text"]


def test_broken_lines_beyond_the_tolerated_share_leave_nothing(tmp_path):
    source = write_text(tmp_path / "text", files=1, documents=95)
    with open(tmp_path / "text" / "text-0.jsonl", "a") as file:
        file.write("{broken\n" * 5)
    tolerant = CorpusConfig(source=source, max_broken_share=0.05)
    manifest = prepare(open_corpus(tolerant), load_tokenizer("bytes"), tmp_path / "part", asked())
    assert manifest.rejected == {"not JSON": 5}
    assert "rejected records: 5 not JSON" in describe(manifest)
    strict = CorpusConfig(source=source, max_broken_share=0.04)
    with pytest.raises(InputError, match=r"5 of 100 records are broken, more than max_broken_share=0\.04"):
        prepare(open_corpus(strict), load_tokenizer("bytes"), tmp_path / "strict", asked())
    assert not list((tmp_path / "strict").iterdir())


def test_statistics_agree_with_a_count_by_hand(tmp_path):
    source = write_text(tmp_path / "text")
    corpus, tokenizer = open_corpus(source), load_tokenizer("bytes")
    lengths = np.array([len(document.text) for document in corpus])
    manifest = prepare(corpus, tokenizer, tmp_path / "part", asked(), processes=1)
    statistics = manifest.statistics
    assert (statistics["documents"], statistics["kept"]) == (len(lengths), len(lengths))
    length = statistics["length_tokens"]
    assert (length["shortest"], length["longest"]) == (lengths.min(), lengths.max())
    assert statistics["length_tokens"]["mean"] == pytest.approx(lengths.mean(), abs=1e-3)
    assert statistics["length_tokens"]["histogram"]["64-127"] == ((lengths >= 64) & (lengths < 128)).sum()
    splits = manifest.splits.values()
    assert sum(split.tokens + split.dropped_tokens for split in splits) == lengths.sum() + len(lengths)
    assert statistics["truncated_documents"] <= sum(split.dropped_tokens for split in splits)


def test_the_permutation_is_uniform_and_every_key_has_one_shard():
    keys = np.sort(np.concatenate([row_keys(0, "part", "train", f"{chunk:06d}", 3000) for chunk in range(4)]))
    assert len(np.unique(keys)) == len(keys)
    shards = shard_count(len(keys), 100, 100_000)
    edges = [extent_of(keys, shard, shards) for shard in range(shards)]
    assert edges[0][0] == 0
    assert edges[-1][1] == len(keys)
    assert all(before[1] == after[0] for before, after in itertools.pairwise(edges))
    sizes = np.array([end - first for first, end in edges])
    assert (np.abs(sizes - sizes.mean()) < 5 * np.sqrt(sizes.mean())).all()
    ranks = np.argsort(row_keys(1, "part", "train", "000000", 3000))
    assert abs(np.corrcoef(ranks, np.arange(3000))[0, 1]) < 0.08


def test_progress_says_rate_and_time_left(capsys, monkeypatch):
    clock = iter(np.arange(0.0, 100.0, 5.0).tolist())
    monkeypatch.setattr("diversity_jax.core.progress.time.monotonic", lambda: next(clock))
    with ProgressDisplay("web", unit="tokens") as progress:
        progress.begin("tokenising", 1000)
        for step in range(1, 5):
            progress.update(100.0 * step, {"tokens": 50_000 * step, "documents": 10 * step})
    lines = capsys.readouterr().err.splitlines()
    assert lines
    assert lines[-1].startswith("web: tokenising: ")
    assert "10,000 tokens/s" in lines[-1]
    assert lines[-1].endswith("left")


def test_the_command_prints_statistics_and_refuses_unknown_flags(tmp_path):
    source = write_text(tmp_path / "text", files=1)
    done = subprocess.run(command(source, tmp_path / "part"), cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "documents kept" in done.stdout
    assert done.stdout.splitlines()[-1] == str(tmp_path / "part" / "manifest.json")
    wrong = subprocess.run(
        command(source, tmp_path / "part", "--project=p"), cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert (wrong.returncode, len(wrong.stderr.splitlines())) == (2, 1)
    assert os.fspath("--project=p") in wrong.stderr


def test_what_a_kill_left_after_the_manifest_is_tidied_up(tmp_path):
    source = write_text(tmp_path / "text", documents=60)
    corpus, folder = open_corpus(CorpusConfig(source=source)), tmp_path / "part"
    manifest = prepare(corpus, ByteTokenizer(), folder, asked())
    files = file_hashes(folder)
    (folder / ".preparing").mkdir()
    (folder / ".preparing" / "000000-000000.rows").write_bytes(b"left behind")
    assert prepare(corpus, ByteTokenizer(), folder, asked()) == manifest
    assert file_hashes(folder) == files
