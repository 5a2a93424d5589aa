"""Parts that all packages share: estimates, progress on stderr, the folder store and its lock, paths."""

import argparse
import dataclasses
from decimal import Decimal
import errno
from fractions import Fraction
import os
from pathlib import Path
import re
import socket
import subprocess
import sys
import time

import numpy as np
import pytest

from diversity_jax.core import artifacts, progress
from diversity_jax.core.artifacts import ArtifactStore, FolderLocked, exclusive_lock, locked_folder
from diversity_jax.core.buckets import writes_to
from diversity_jax.core.cli import run_plain
from diversity_jax.core.config import check_kinds, check_least, plain_for_keys
from diversity_jax.core.errors import InputError
from diversity_jax.core.files import (
    DiskFull,
    disk_errors_named,
    exists,
    file_hash,
    local_folder,
    read_json,
    remove_tree,
    resolve_path,
    write_json,
    writing,
)
from diversity_jax.core.intervals import Estimate


def test_estimates_read_what_they_write_and_know_their_one_sided_bounds():
    both, lower = Estimate(value=4.1, low=3.8, high=4.5), Estimate(value=200, low=120)
    for estimate in (both, lower):
        assert Estimate.from_json(estimate.to_json(), "a file") == estimate
    assert lower.bounds == (120, float("inf"))
    assert (both.excludes(3.7), both.excludes(4.0), lower.excludes(1e9)) == (True, False, False)
    with pytest.raises(InputError, match=r"scorecard.collision: expected an object"):
        Estimate.from_json({"value": 1}, "scorecard.collision")


@pytest.fixture
def clock(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    return now


def test_short_work_shows_nothing_and_long_work_a_line_now_and_then(clock, capsys):
    with progress.ProgressDisplay("rows", 100, completed=40, mode="lines") as display:
        for _ in range(5):
            clock[0] += 1.0
            display.advance(2)
    assert capsys.readouterr().err == ""
    with progress.ProgressDisplay("rows", 100, completed=40, mode="lines") as display:
        for _ in range(30):
            clock[0] += 1.0
            display.advance(2)
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "rows: 60 of 100 done, 2.0 per second, 0:00:20 left"
    assert len(lines) == 3


def test_a_lock_names_its_holder_and_ends_with_its_process(tmp_path):
    path = tmp_path / "folder" / "lock"
    with exclusive_lock(path, "busy: {holder}"):
        code = (
            "from diversity_jax.core.artifacts import exclusive_lock\n"
            f"with exclusive_lock({str(path)!r}, 'busy: {{holder}}'): pass"
        )
        other = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
        assert f"FolderLocked: busy: process {os.getpid()} on " in other.stderr
        with pytest.raises(FolderLocked, match="busy"), exclusive_lock(path, "busy"):
            pass
    with exclusive_lock(path, "busy"):
        pass


def test_a_locked_folder_is_left_as_it_was_found(tmp_path):
    folder = tmp_path / "new" / "run"
    refused = pytest.raises(FolderLocked, match=r"process \d+ on .* is writing to it")
    with locked_folder(folder), refused, locked_folder(folder):
        pass
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="no folder can be made there"), locked_folder(tmp_path / "file" / "run"):
        pass


def test_a_rate_counts_the_time_in_which_nothing_was_done(clock):
    with progress.ProgressDisplay("rows", 8000, mode="off") as display:
        for seconds in (40.0, 0.001):
            clock[0] += seconds
            display.advance(200)
        assert display.line() == "rows: 400 of 8,000 done, 10.0 per second, 0:12:40 left"


DEAD = f"process 999999999 on {socket.gethostname()}"


@pytest.mark.parametrize(
    ("lock", "is_taken_over"),
    [
        ({"holder": "process 1 on elsewhere", "place": "", "renewed": -61}, True),
        ({"holder": DEAD, "renewed": 0}, True),
        ({"holder": f"process {os.getpid()} on {socket.gethostname()}", "renewed": 0}, False),
    ],
    ids=["not renewed", "a dead process's", "a living process's"],
)
def test_a_lock_in_a_bucket_outlives_no_process(lock, is_taken_over, monkeypatch):
    monkeypatch.setattr(artifacts, "_EXPIRE_SECONDS", 0.1)
    folder = "memory://locks/run"
    with locked_folder(folder):
        held = read_json(f"{folder}/.lock")
        assert held["holder"] == f"process {os.getpid()} on {socket.gethostname()}"
        with pytest.raises(FolderLocked, match="is writing to it"), locked_folder(folder):
            pass
    assert not exists(f"{folder}/.lock")
    write_json(f"{folder}/.lock", {**held, "lease": "theirs", **lock, "renewed": time.time() + lock["renewed"]})
    if is_taken_over:
        with locked_folder(folder):
            assert read_json(f"{folder}/.lock")["lease"] != "theirs"
    else:
        with pytest.raises(FolderLocked), locked_folder(folder):
            pass
        remove_tree(f"{folder}/.lock")


def test_a_lock_in_a_bucket_is_kept_by_a_process_whose_clock_is_late(monkeypatch):
    url = "memory://locks/late/.lock"
    lock = {"holder": "process 1 on elsewhere", "lease": "theirs", "renewed": time.time() - 600}
    write_json(url, lock)
    monkeypatch.setattr(artifacts.time, "sleep", lambda _: write_json(url, {**lock, "renewed": lock["renewed"] + 15}))
    with pytest.raises(FolderLocked, match="process 1 on elsewhere"), locked_folder("memory://locks/late"):
        pass


def test_artifacts_count_once_they_are_committed_and_only_undamaged(tmp_path):
    store = ArtifactStore(tmp_path / "store")
    for name in ("a", "b", "c"):
        with writing(store.path(f"{name}.rows")) as file:
            file.write(name.encode())
        if name != "c":
            store.commit(f"{name}.rows.json", {"sha256": file_hash(store.path(f"{name}.rows"))})
    (tmp_path / "store" / "b.rows").write_bytes(b"damaged")
    assert store.names(".rows.json") == ["a", "b"]
    assert store.verified(["a", "b", "c"], ".rows.json", {".rows": "sha256"}) == {"a"}
    assert store.record("c.rows.json") is None
    store.commit("request.json", {"seed": 1, "kinds": ["x"]})
    assert store.changed_settings("request.json", {"seed": 1, "kinds": ("x",)}) == {}
    assert store.changed_settings("request.json", {"seed": 2}) == {"seed": 1}
    (tmp_path / "store" / ".a.rows.7.partial").write_bytes(b"cut")
    (tmp_path / "store" / "lock").touch()
    store.clear()
    assert os.listdir(store.folder) == ["lock"]


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
def test_a_full_disk_is_one_line_about_the_file():
    expected = pytest.raises(DiskFull, match=r"^a\.bin: the disk is full; free space")
    with expected, disk_errors_named("a.bin"), open("/dev/full", "wb") as file:
        file.write(b"x" * 100_000)


def disk_error(number, path=None):
    def raise_it(*_, **__):
        raise OSError(number, os.strerror(number), path)

    return raise_it


def test_a_lock_holds_on_a_full_disk_and_a_read_only_one_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "pwrite", disk_error(errno.ENOSPC))
    with locked_folder(tmp_path / "run"), pytest.raises(FolderLocked), locked_folder(tmp_path / "run"):
        pass
    assert not os.listdir(tmp_path)
    monkeypatch.setattr(os, "open", disk_error(errno.EROFS, str(tmp_path / "run/.lock")))
    refused = pytest.raises(InputError, match=r"run: may not be written to \(Read-only file system\)")
    with refused, locked_folder(tmp_path / "run"):
        pass


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EROFS])
def test_any_writer_that_meets_a_full_or_read_only_disk_ends_a_command_with_one_line(number, capsys):
    with pytest.raises(SystemExit) as ended:
        run_plain(disk_error(number, "run/figure.png"), None, ["x"])
    assert ended.value.code == 2
    assert re.fullmatch(r"error: run/figure.png: .*; free space or .* run again\n", capsys.readouterr().err)


def test_a_file_that_cannot_be_written_is_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="no folder can be made there"), writing(tmp_path / "file" / "a.json"):
        pass
    with pytest.raises(InputError, match="is a folder; name a file"), writing(tmp_path):
        pass
    with pytest.raises(InputError, match=r"^output_dir=~/run: ~ was not replaced by the shell; write /.*/run$"):
        local_folder("~/run", "output_dir")


@pytest.mark.parametrize(
    ("folder", "name", "wanted"),
    [
        ("gs://b/run", "components/a/manifest.json", "gs://b/run/components/a/manifest.json"),
        ("gs://b/run", "../web/manifest.json", "gs://b/web/manifest.json"),
        ("gs://b/run", "s3://c/web/manifest.json", "s3://c/web/manifest.json"),
        ("/data/run", "../web/manifest.json", "/data/web/manifest.json"),
        ("/data/run", "gs://c/web/manifest.json", "gs://c/web/manifest.json"),
    ],
)
def test_names_in_files_lead_to_urls(folder, name, wanted):
    assert str(resolve_path(folder, name)) == wanted


@dataclasses.dataclass(frozen=True, kw_only=True)
class Bounded:
    rows: int = 1
    limit: float | None = None


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"rows": 0}, r"^part\.rows=0: must be at least 1$"),
        ({"limit": 0.5}, r"^part\.limit=0\.5: must be at least 1, or None$"),
        ({"limit": float("nan")}, r"^part\.limit=nan: must be at least 1, or None$"),
    ],
)
def test_a_field_below_its_bound_is_named(values, message):
    check_least(Bounded(), "part.", rows=1, limit=1)
    with pytest.raises(InputError, match=message):
        check_least(Bounded(**values), "part.", rows=1, limit=1)


_WORKER = """
import asyncio, sys
from diversity_jax.core.event_loop import run_to_end

async def work():
    print("begun", flush=True)
    try:
        await asyncio.sleep(60)
    finally:
        await asyncio.sleep(0)
        print("freed", flush=True)

run_to_end(work())
"""


def test_a_coroutine_that_sigterm_ends_cleans_up():
    worker = subprocess.Popen(
        [sys.executable, "-c", _WORKER], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert worker.stdout.readline() == "begun\n"
    worker.terminate()
    out, err = worker.communicate(timeout=30)
    assert (out, worker.returncode) == ("freed\n", 143)
    assert err == "SIGTERM: stopped; run the same command again to go on\n"


def test_an_empty_output_folder_is_not_the_current_one():
    with pytest.raises(InputError, match="output_dir is empty; name a folder"):
        local_folder("", "output_dir")
    with pytest.raises(InputError, match="output_dir is empty; name a folder"):
        writes_to("output_dir")(lambda config: None)(argparse.Namespace(output_dir=" "))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Kinds:
    integer: int | None = 2
    share: float = 0.5
    on: bool = True
    path: str = "a"
    many: tuple[int, ...] = ()
    inner: "Kinds | None" = None

    def __post_init__(self):
        check_kinds(self, "kinds.")


@pytest.mark.parametrize("two", [2.0, np.int64(2), np.float32(2), Fraction(2), Decimal("2")])
def test_equal_settings_have_equal_keys(two):
    given = Kinds(integer=two, share=two / 4, on=np.bool_(True), path=Path("a"), many=[two], inner=Kinds(integer=two))
    plain = Kinds(many=(2,), inner=Kinds())
    assert given == plain
    assert repr(given) == repr(plain)
    assert repr(plain_for_keys(given)) == repr(plain_for_keys(plain))


@pytest.mark.parametrize(
    ("fields", "problem"),
    [
        ({"integer": np.array([2])}, r"integer=array\(\[2\]\): must be a whole number of at most 64 bits or None"),
        ({"integer": True}, "integer=True: must be a whole number"),
        ({"integer": Decimal("NaN")}, "integer=Decimal.*: must be a whole number"),
        ({"share": "0.5"}, "share='0.5': must be a number"),
        ({"share": None}, "share=None: must be a number"),
        ({"on": 1}, "on=1: must be True or False"),
        ({"path": 5}, "path=5: must be a text"),
        ({"many": {1, 2}}, "many={1, 2}: must be a tuple or list"),
        ({"many": [1, "b"]}, r"many\[1\]='b': must be a whole number"),
        ({"inner": {"integer": 2}}, "inner={'integer': 2}: must be of type Kinds or None"),
    ],
)
def test_a_setting_of_another_type_is_one_line(fields, problem):
    with pytest.raises(InputError, match=rf"^kinds\.{problem}"):
        Kinds(**fields)
