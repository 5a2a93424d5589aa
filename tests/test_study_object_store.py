"""Studies in a bucket, against a server that speaks Google Cloud Storage's own protocol: leases, take-over, and results
that stand.
"""

from collections import Counter
from concurrent.futures import ThreadPoolExecutor
import json
import os
import signal
import subprocess
import sys
import time
import uuid

import fsspec
from fsspec.implementations.memory import MemoryFileSystem
import pytest

from diversity_jax.core.errors import InputError
from diversity_jax.study.bucket import Bucket
from diversity_jax.study.graph import progress, run_steps
from diversity_jax.study.object_store import ObjectStore
from tests import gcs_server, study_worker

LEASE = 1.5


@pytest.fixture(scope="module")
def environment():
    from gcsfs.core import GCSFileSystem

    with gcs_server.serving() as found, pytest.MonkeyPatch.context() as patch:
        for name, value in found.items():
            patch.setenv(name, value)
        fsspec.config.set_conf_env(fsspec.config.conf)
        usual = fsspec.get_filesystem_class("gs")
        fsspec.register_implementation("gs", GCSFileSystem, clobber=True)
        yield found
        fsspec.register_implementation("gs", usual, clobber=True)
        fsspec.config.conf.pop("gs", None)


@pytest.fixture
def url(environment):
    return f"gs://{gcs_server.BUCKET}/{uuid.uuid4().hex}"


def machine(folder, url, *, seconds=0.05, pairs=3):
    """A worker with a disk of its own, as another machine has."""
    settings = {"folder": str(folder), "seconds": seconds, "url": url, "lease_seconds": LEASE, "pairs": pairs}
    return subprocess.Popen(
        [sys.executable, "-W", "ignore", "-m", "tests.study_worker", json.dumps(settings)], env=dict(os.environ)
    )


def store_of(folder, url):
    return ObjectStore(url, folder / "steps", lease_seconds=LEASE, save_seconds=0.1)


def notes(*folders):
    lines = [line for folder in folders for line in (folder / "notes.txt").read_text().splitlines()]
    return Counter(lines)


def wait_for(true, seconds=60):
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline, "it did not come to pass"
        time.sleep(0.02)


def test_of_many_that_create_an_object_one_does(url):
    bucket = Bucket(url)
    bucket.check()
    with ThreadPoolExecutor(16) as pool:
        won = list(pool.map(lambda number: bucket.create("records/x", {"number": number}), range(48)))
    assert won.count(True) == 1
    assert bucket.read("records/x")["number"] == won.index(True)


def test_two_machines_share_a_study_and_do_no_step_twice(url, tmp_path):
    workers = [machine(tmp_path / name, url) for name in "ab"]
    assert [worker.wait(120) for worker in workers] == [0, 0]
    seen = notes(tmp_path / "a", tmp_path / "b")
    assert len(seen) == 12
    assert set(seen.values()) == {1}
    third = store_of(tmp_path / "c", url)
    assert len(progress(study_worker.steps(0.05, pairs=3), third).done) == 6


def test_a_killed_machines_step_is_taken_over_and_gone_on_with(url, tmp_path):
    steps, store = study_worker.steps(30.0, pairs=1), store_of(tmp_path / "b", url)
    (first, _) = steps
    dead = machine(tmp_path / "a", url, seconds=30.0, pairs=1)
    wait_for(lambda: "saved-00001.json" in store.bucket.names(f"records/{first}", within=False))
    time.sleep(2 * LEASE)
    store.states([first])
    with store.claim(first) as mine:
        assert not mine  # however long it works, a holder that shows signs of life keeps its step
    dead.kill()
    dead.wait()
    killed = time.monotonic()
    quick = {
        key: step.__class__(**{**vars(step), "config": {**step.config, "seconds": 0.0}}) for key, step in steps.items()
    }
    found = run_steps(quick, store, study_worker.commands(tmp_path / "b", store), study_worker.CODES)
    assert len(found.done) == 2
    assert LEASE * 0.7 < time.monotonic() - killed < LEASE * 10
    assert notes(tmp_path / "b")["going on with first 0 after 1"] == 1
    assert store.done(first)["attempt"] == 2


def test_a_killed_process_of_this_machine_is_followed_at_once(url, tmp_path):
    dead = machine(tmp_path / "a", url, seconds=30.0, pairs=1)
    wait_for(lambda: (tmp_path / "a" / "notes.txt").exists())
    dead.kill()
    dead.wait()
    store = ObjectStore(url, tmp_path / "a" / "steps", lease_seconds=1000)
    (first, _) = study_worker.steps(30.0, pairs=1)
    with store.claim(first) as mine:
        assert mine
        assert (store.output(first) / "lines.txt").exists()


def test_a_stalled_holder_that_wakes_up_changes_nothing(url, tmp_path):
    (first, _), store = study_worker.steps(1.0, pairs=1), store_of(tmp_path / "b", url)
    stalled = machine(tmp_path / "a", url, seconds=1.0, pairs=1)
    try:
        wait_for(lambda: (tmp_path / "a" / "notes.txt").exists())
        stalled.send_signal(signal.SIGSTOP)
        run_steps(
            study_worker.steps(1.0, pairs=1), store, study_worker.commands(tmp_path / "b", store), study_worker.CODES
        )
        stands = store.done(first)
    finally:
        stalled.send_signal(signal.SIGCONT)
    assert stalled.wait(60) == 0
    assert notes(tmp_path / "a")["end first 0"] == 1  # it did end its work
    assert Bucket(url).read(f"records/{first}/done.json") == stands
    late = store_of(tmp_path / "a", url)
    late.bring([first])
    assert "begun by b" in (late.output(first) / "lines.txt").read_text()
    assert not [name for name in late.bucket.names(f"steps/{first}/00001", within=False) if name.startswith("output")]


def test_a_failed_step_is_told_everywhere_and_its_files_go_on(url, tmp_path):
    steps = study_worker.steps(0.0, fail="first 0", pairs=2)
    here, there = store_of(tmp_path / "a", url), store_of(tmp_path / "b", url)
    found = run_steps(steps, here, study_worker.commands(tmp_path / "a", here), study_worker.CODES)
    assert (len(found.done), len(found.failed), len(found.blocked)) == (2, 1, 1)
    (key,) = progress(steps, there).failed
    failure = there.failure(key)
    assert failure["reason"] == "this one cannot be done; it was asked to fail"
    assert b"InputError" in fsspec.open(failure["log"]).open().read()
    there.forgive(list(steps))
    with there.claim(key) as mine:
        assert mine
        assert (there.output(key) / "lines.txt").read_text() == "begun by a\n"


def test_forgotten_steps_are_done_again_from_nothing(url, tmp_path):
    steps, here, there = study_worker.steps(0.0, pairs=1), store_of(tmp_path / "a", url), store_of(tmp_path / "b", url)
    run_steps(steps, here, study_worker.commands(tmp_path / "a", here), study_worker.CODES)
    here.forget(list(steps))
    assert len(progress(steps, there).waiting) == 2
    run_steps(steps, here, study_worker.commands(tmp_path / "a", here), study_worker.CODES)
    assert set(notes(tmp_path / "a").values()) == {2}
    assert here.done(next(iter(steps)))["attempt"] == 2


class Careless(MemoryFileSystem):
    """Overwrites whatever it is asked not to."""

    protocol = "careless"

    def pipe_file(self, path, value, mode="overwrite", **kwargs):
        super().pipe_file(path, value, mode="overwrite")


def test_a_store_that_cannot_refuse_to_overwrite_is_refused():
    fsspec.register_implementation("careless", Careless, clobber=True)
    with pytest.raises(InputError, match="cannot create a file only where there is none"):
        Bucket("careless://a/b").check()


def test_a_bucket_that_is_not_there_is_one_line(environment):
    with pytest.raises(InputError, match="output_dir=gs://no-such-bucket/x: cannot be written to") as error:
        Bucket("gs://no-such-bucket/x").check()
    assert "\n" not in str(error.value)
