"""Runs, rows and models in buckets of a local Cloud Storage server and, where it is installed, a local S3 server."""

import dataclasses
from fractions import Fraction
from pathlib import Path
import shutil
import threading

import numpy as np
import pytest

from diversity_jax.core import artifacts, buckets
from diversity_jax.core.artifacts import FolderLocked, locked_folder
from diversity_jax.core.buckets import local_copy, published, remote_tree
from diversity_jax.core.errors import InputError
from diversity_jax.core.files import exists, open_file, read_json, remove_tree, write_json
from diversity_jax.core.stores import remote
from diversity_jax.mixtures import fetch
from diversity_jax.mixtures.mixture import Mixture
from diversity_jax.model import convert
from diversity_jax.model.checkpoint_io import shards
from diversity_jax.model.convert import read_model
from diversity_jax.prepare import rows
from diversity_jax.prepare.rows import RowReader
from diversity_jax.training import run
from diversity_jax.training.checkpoint import complete_steps
from tests import gcs_server, s3_server
from tests.gcs_server import BUCKET
from tests.mixture_folders import build_mixture
from tests.processes import wait_until
from tests.test_training_resume import start
from tests.training_settings import config_for, write_texts

SHARES = {"a": Fraction(1, 3), "b": Fraction(2, 3)}
ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module", params=["gs", "s3"])
def store(request, tmp_path_factory):
    """URL of an empty bucket in a server of this machine, which processes that are started reach too."""
    server = {"gs": gcs_server, "s3": s3_server}[request.param]
    pytest.importorskip({"gs": "gcsfs", "s3": "s3fs"}[request.param])
    with server.serving() as environment, server.client(environment), pytest.MonkeyPatch.context() as patch:
        patch.setenv("DIVERSITY_JAX_CACHE", str(tmp_path_factory.mktemp("cache")))
        patch.setattr(artifacts, "_TAKEOVER_SECONDS", 0.1)
        yield f"{request.param}://{BUCKET}"


@pytest.fixture(scope="module")
def local(tmp_path_factory) -> Path:
    """A mixture on a disk, of several shards."""
    return build_mixture(tmp_path_factory.mktemp("disk"), SHARES, sequence_length=16, documents=120, shard_bytes=20_000)


@pytest.fixture(scope="module")
def disk(local, tmp_path_factory) -> Path:
    """A copy of it, to train in."""
    return shutil.copytree(local, tmp_path_factory.mktemp("trained") / "mixture")


@pytest.fixture(scope="module")
def six_steps(disk) -> str:
    """What a run of six steps on a disk ends with."""
    process = start(disk, 6)
    got, errors = process.communicate(timeout=600)
    assert process.returncode == 0, errors
    return fingerprint(got)


def upload(folder: Path, url: str) -> str:
    remote(url)[0].put(f"{folder}/", f"{url}/", recursive=True)
    return url


@pytest.fixture(scope="module")
def in_bucket(store, local) -> str:
    """The same mixture in the bucket."""
    return upload(local, f"{store}/mixture")


def fingerprint(out: str) -> str:
    return out.split()[-1]


@pytest.fixture(scope="module")
def trained_in_bucket(in_bucket) -> str:
    """What a run of six steps in the bucket ends with."""
    process = start(in_bucket, 6)
    output, errors = process.communicate(timeout=600)
    assert process.returncode == 0, errors
    return fingerprint(output)


def test_a_run_in_a_bucket_has_the_bits_of_one_on_a_disk(in_bucket, trained_in_bucket, disk, six_steps):
    assert trained_in_bucket == six_steps
    tree = remote_tree(f"{in_bucket}/run")
    assert complete_steps(f"{in_bucket}/run/checkpoints") == [3, 6]
    assert not [name for name in tree if name.endswith((".lock", ".partial"))]
    with open_file(f"{in_bucket}/run/metrics.jsonl") as file:
        assert len(file.readlines()) == len((disk / "run" / "metrics.jsonl").read_text().splitlines())


def test_a_killed_run_goes_on_wherever_it_is_started_again(store, local, six_steps):
    url = upload(local, f"{store}/killed")
    killed = start(url, 6)
    logs = buckets.staging_folder(f"{url}/run") / "metrics.jsonl"
    wait_until(lambda: killed.poll() is not None or (logs.exists() and logs.read_text().count("\n") > 4), seconds=200)
    killed.kill()
    killed.communicate()
    remove_tree(buckets.cache_folder())  # another machine
    for name in remote_tree(f"{url}/run"):
        if name.endswith(shards.RECORD):
            folder = f"{url}/run/{name.removesuffix('/' + shards.RECORD)}"
            for shard in read_json(f"{folder}/{shards.RECORD}")["shards"]:
                shards._read_bytes(folder, shards._ShardLocation(**shard))
    again = start(url, 6)
    got, errors = again.communicate(timeout=600)
    assert again.returncode == 0, errors
    assert fingerprint(got) == six_steps


def test_two_processes_share_nothing_but_the_bucket(store, local, disk):
    url, port = upload(local, f"{store}/two"), gcs_server.free_port()
    shared = [start(disk, 6, i, 2, port, RUN="two") for i in range(2)]
    (wanted, _), _ = [process.communicate(timeout=600) for process in shared]
    port = gcs_server.free_port()
    both = [start(url, 6, i, 2, port, DIVERSITY_JAX_CACHE=str(buckets.cache_folder() / str(i))) for i in range(2)]
    outputs = [process.communicate(timeout=600) for process in both]
    assert [process.returncode for process in both] == [0, 0], outputs
    assert fingerprint(outputs[0][0]) == fingerprint(wanted)
    record = read_json(f"{url}/run/checkpoints/6/{shards.RECORD}")
    assert {shard["file"].split(".")[1] for shard in record["shards"]} == {"00000", "00001"}
    # A checkpoint of two hosts is read by one, here copied to a disk.
    copy = local_copy(f"{url}/run/checkpoints")
    assert complete_steps(copy) == complete_steps(f"{url}/run/checkpoints")
    assert shards.read_record(copy / "6")["info"]["fingerprint"] == record["info"]["fingerprint"]


@pytest.fixture(scope="module")
def trained(store, tmp_path_factory):
    """A whole run from text in the bucket, by the command's own function."""
    texts = write_texts(tmp_path_factory.mktemp("texts"))
    config = config_for(upload(texts, f"{store}/texts"), f"{store}/trained")
    run.run(config)
    return config


def test_training_again_changes_no_object_but_reports(trained):
    before = remote_tree(trained.output_dir)
    assert {"run.json", "metrics.jsonl", "mixture/mixture.json"} <= set(before)
    remove_tree(buckets.cache_folder())
    assert run.run(trained).steps == 4
    after = remote_tree(trained.output_dir)
    unchanged = [name for name in before if name.startswith(("checkpoints", "mixture"))]
    assert {name: before[name] for name in unchanged} == {name: after.get(name) for name in unchanged}


def test_a_model_is_read_exported_and_imported_by_url(store, trained, tmp_path):
    _, params = read_model(trained.output_dir)
    convert.main(["export", trained.output_dir, f"{store}/exported"])
    convert.main(["import", f"{store}/exported", f"{store}/imported"])
    convert.main(["gguf", trained.output_dir, f"{store}/model.gguf"])
    assert exists(f"{store}/model.gguf")
    for url in (f"{store}/exported", f"{store}/imported"):
        _, other = read_model(url)
        assert str(convert_leaves(other)) == str(convert_leaves(params))
    with pytest.raises(SystemExit):
        convert.main(["export", trained.output_dir, f"{store}/exported"])


def convert_leaves(params):
    import jax

    return [float(np.asarray(leaf, np.float64).sum()) for leaf in jax.tree.leaves(params)]


def test_other_settings_and_other_commands_are_refused_before_anything_is_written(store, trained):
    before = remote_tree(trained.output_dir)
    other = dataclasses.replace(trained, train=dataclasses.replace(trained.train, batch_size=16))
    with pytest.raises(InputError, match=r"train\.batch_size"):
        run.run(other)
    write_json(f"{store}/foreign/run.json", {"command": "x", "settings": {}, "versions": {}, "hardware": ""})
    with pytest.raises(InputError, match="holds no training run, but what"):
        run.run(dataclasses.replace(trained, output_dir=f"{store}/foreign"))
    assert remote_tree(trained.output_dir) == before


def test_damaged_checkpoints_are_set_aside_and_the_one_before_is_read(store, in_bucket, trained_in_bucket, six_steps):
    url = f"{store}/damaged"  # a copy of the finished run
    remote(store)[0].copy(f"{in_bucket}/", f"{url}/", recursive=True)
    name = next(name for name in remote_tree(f"{url}/run/checkpoints/6") if name.endswith(".bin"))
    filesystem, inside = remote(f"{url}/run/checkpoints/6/{name}")
    data = filesystem.cat_file(inside)
    filesystem.pipe_file(inside, data[:100] + bytes([data[100] ^ 1]) + data[101:])
    again = start(url, 6)
    got, errors = again.communicate(timeout=600)
    assert again.returncode == 0
    assert "is damaged" in errors
    assert fingerprint(got) == six_steps
    assert exists(f"{url}/run/checkpoints-damaged/6/{name}")


# Rows


class Requests:
    """Byte ranges that are asked for, by object."""

    def __init__(self, monkeypatch):
        self.ranges, usual = [], rows.read_range

        def read_range(path, start, size):
            self.ranges.append((str(path), start, start + size))
            return usual(path, start, size)

        monkeypatch.setattr(rows, "read_range", read_range)

    def rows(self, row_bytes):
        """(file, row) that were asked for, as often as they were."""
        return [
            (path.split("components/")[1], row)
            for path, first, end in self.ranges
            if path.endswith(".bin")
            for row in range(first // row_bytes, end // row_bytes)
        ]


@pytest.mark.parametrize("hosts", [1, 4])
def test_a_host_asks_for_its_own_rows_once(in_bucket, local, hosts, monkeypatch):
    mixture, wanted = Mixture.load(in_bucket), Mixture.load(local).loader(batch_size=8)
    row_bytes, steps = mixture.taken[0].prepared.row_bytes, 30
    monkeypatch.setattr("diversity_jax.mixtures.loader._PREFETCH_STEPS", 10)
    monkeypatch.setenv("DIVERSITY_JAX_CACHE", str(buckets.cache_folder() / f"own{hosts}"))
    asked = []
    for host in range(hosts):
        requests = Requests(monkeypatch)
        part = slice(host * 8 // hosts, (host + 1) * 8 // hosts)
        loader = mixture.loader(batch_size=8, cache_gb=0)
        for step in range(steps):
            batch = loader.batch(step, part)
            np.testing.assert_array_equal(batch.tokens, wanted.batch(step, part).tokens)
        rows = requests.rows(row_bytes)
        assert len(rows) == len(set(rows))
        asked.append(set(rows))
        most_rows = (steps + 10) * 8 // hosts
        assert steps * 8 // hosts <= len(rows) <= most_rows
        if hosts == 1:  # rows that lie one after the other are asked for together
            assert len([path for path, *_ in requests.ranges if path.endswith(".bin")]) < len(rows) / 8
    for host in range(hosts):
        for other in range(host):
            assert not asked[host] & asked[other]


def test_a_second_pass_comes_from_the_disk_within_its_limit(in_bucket, monkeypatch, tmp_path):
    monkeypatch.setenv("DIVERSITY_JAX_CACHE", str(tmp_path))
    manifest = Mixture.load(in_bucket).taken[0].prepared
    reader = RowReader(manifest, cache_gb=1)
    first = reader.read(np.arange(reader.rows)).tokens
    requests = Requests(monkeypatch)
    again = RowReader(manifest, cache_gb=1)
    np.testing.assert_array_equal(again.read(np.arange(reader.rows)).tokens, first)
    assert not requests.rows(manifest.row_bytes)
    held = sum(path.stat().st_size for path in tmp_path.rglob("*.bin"))
    assert held >= reader.rows * manifest.row_bytes
    small = RowReader(manifest, cache_gb=3e-5)
    np.testing.assert_array_equal(small.read(np.arange(reader.rows)).tokens, first)
    assert sum(512 * path.stat().st_blocks for path in tmp_path.rglob("*.bin")) < 3e4 + 20_000 + 8192


def test_a_damaged_row_in_a_bucket_is_named(store, local):
    url = upload(local, f"{store}/rotten")
    manifest = Mixture.load(url).taken[0].prepared
    path = remote(f"{manifest.folder}/{manifest.splits['train'].shards[0].file}")
    data = bytearray(path[0].cat_file(path[1]))
    data[manifest.row_bytes * 3] ^= 1
    path[0].pipe_file(path[1], bytes(data))
    with pytest.raises(InputError, match=r"row 3 is damaged \(checksum\)"):
        RowReader(manifest, cache_gb=0).read(np.arange(5))


def test_fetch_copies_what_the_first_steps_need_and_goes_on(in_bucket, local, tmp_path, capsys):
    words = ["--steps", "4", "--batch-size", "8", "--process", "1", "--processes", "2"]
    fetch.main([in_bucket, str(tmp_path / "m"), *words])
    assert capsys.readouterr().out.strip() == str(tmp_path / "m")
    mixture, wanted = Mixture.load(tmp_path / "m"), Mixture.load(local).loader(batch_size=8)
    loader = mixture.loader(batch_size=8)
    for step in range(4):
        np.testing.assert_array_equal(loader.batch(step, slice(4, 8)).tokens, wanted.batch(step, slice(4, 8)).tokens)
    assert sum(len(part.prepared.left_out_shards) for part in mixture.taken) > 0
    with pytest.raises(InputError, match="was not fetched, since fewer steps were asked for"):
        loader.rows(np.arange(32, 6000))
    some = next((tmp_path / "m").rglob("train-*.bin"))
    some.write_bytes(bytes(some.stat().st_size))  # damaged since
    fetch.main([in_bucket, str(tmp_path / "m")])
    fetched = Mixture.load(tmp_path / "m")
    assert fetched.content_hash == Mixture.load(local).content_hash
    np.testing.assert_array_equal(fetched.loader(batch_size=8).batch(60).tokens, wanted.batch(60).tokens)
    with pytest.raises(InputError, match="usage: fetch"):
        fetch.main([in_bucket, str(tmp_path / "m"), "--steps", "4"])


# Folders, copies and locks


def test_a_published_folder_is_the_buckets_and_comes_back_elsewhere(store, monkeypatch, tmp_path):
    url = f"{store}/published"
    with published(url, "output_dir") as folder:
        (folder / "a").mkdir()
        (folder / "a" / "log.jsonl").write_text("one\n")
        (folder / "gone").write_text("x")
        assert buckets.public_name(folder / "a") == f"{url}/a"
        assert exists(f"{url}/.lock")
    assert set(remote_tree(url)) == {"a/log.jsonl", "gone"}
    monkeypatch.setenv("DIVERSITY_JAX_CACHE", str(tmp_path))
    with published(url, "output_dir") as folder:
        with open(folder / "a" / "log.jsonl", "a") as file:
            file.write("two\n")
        (folder / "gone").unlink()
    assert set(remote_tree(url)) == {"a/log.jsonl"}
    with open_file(f"{url}/a/log.jsonl", "r") as file:
        assert file.read() == "one\ntwo\n"

    def fail():
        with published(url, "output_dir") as folder:
            (folder / "b").write_text("what there is of a failed run is uploaded too")
            raise InputError(f"{folder / 'b'}: half way")

    with pytest.raises(InputError, match=f"^{url}/b: half way"):  # by the name that the bucket gives it
        fail()
    assert "b" in remote_tree(url)


def test_copies_follow_the_bucket(store):
    write_json(f"{store}/copied/a.json", 1)
    write_json(f"{store}/copied/sub/b.json", 1)
    folder = local_copy(f"{store}/copied", lambda name: name != "sub/b.json")
    assert [path.name for path in folder.rglob("*.json")] == ["a.json"]
    write_json(f"{store}/copied/a.json", 2)
    assert read_json(local_copy(f"{store}/copied") / "a.json") == 2
    assert read_json(local_copy(f"{store}/copied/sub/b.json")) == 1
    with pytest.raises(InputError, match="no such file"):
        local_copy(f"{store}/copied/nothing.json")


def test_a_lock_of_a_living_process_holds_and_one_that_is_left_is_taken(store, monkeypatch):
    url = f"{store}/locked"
    monkeypatch.setattr(artifacts, "_EXPIRE_SECONDS", 3.0)
    write_json(f"{url}/.lock", {"holder": "process 1 on elsewhere", "lease": "x", "renewed": 2e10})
    with locked_folder(url):  # it is not renewed while we watch
        with pytest.raises(FolderLocked, match=r"process \d+ on"), locked_folder(url):
            pass
        write_json(f"{url}/.lock", {"holder": "process 1 on elsewhere", "lease": "y", "renewed": 2e10})
    assert read_json(f"{url}/.lock")["lease"] == "y"  # what is another's by now is not removed
    lock = {"holder": "process 1 on elsewhere", "lease": "y", "renewed": 3e10}
    renewed = threading.Timer(1.2, write_json, [f"{url}/.lock", lock])
    renewed.start()
    with pytest.raises(FolderLocked, match="process 1 on"), locked_folder(url):
        pass
