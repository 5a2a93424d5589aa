"""What all packages share: estimates, progress on stderr, the folder store and its lock."""

import os
import subprocess
import sys

import pytest

from diversity_jax.core import progress
from diversity_jax.core.artifacts import ArtifactStore, FolderLocked, exclusive_lock
from diversity_jax.core.errors import InputError
from diversity_jax.core.files import DiskFull, file_hash, full_disk_named, writing
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
    with expected, full_disk_named("a.bin"), open("/dev/full", "wb") as file:
        file.write(b"x" * 100_000)
