"""Several real processes: a failure of one ends all in seconds, with one line."""

import json
from pathlib import Path
import socket
import subprocess
import sys
import time
from types import SimpleNamespace

import pytest

from diversity_jax.core.errors import InputError
from diversity_jax.training import runtime

ROOT = Path(__file__).resolve().parents[1]

MISSING = "prepared=/data/mixture: no such folder"
UNSEEN = "this host does not see what process 0 wrote there; it must be a folder that all hosts share"


def start(case, count, folder):
    """Starts all processes of a case; returns their statuses, standard errors, and seconds until the last one ended."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    began = time.monotonic()
    command = [sys.executable, "-m", "tests.together_process", case]
    processes = [
        subprocess.Popen([*command, str(number), str(count), str(port), str(folder)], cwd=ROOT, stderr=subprocess.PIPE,
                         stdout=subprocess.DEVNULL, text=True)
        for number in range(count)
    ]  # fmt: skip
    try:
        errors = [process.communicate(timeout=120)[1] for process in processes]
    finally:
        for process in processes:
            process.kill()
    return [process.returncode for process in processes], errors, time.monotonic() - began


@pytest.mark.parametrize(
    ("case", "count", "failing", "line", "status"),
    [
        ("first", 2, 0, MISSING, 2),
        ("last", 4, 3, MISSING, 2),
        ("folder", 3, 1, UNSEEN, 2),
        ("collective", 3, 2, "ValueError: a row that cannot be read", 1),
        ("stuck", 2, 1, "ValueError: a row that cannot be read", 1),
    ],
)
def test_a_failure_reaches_all_processes(case, count, failing, line, status, tmp_path):
    codes, errors, seconds = start(case, count, tmp_path)
    assert codes == [status] * count
    assert seconds < 90  # with their start; a heartbeat takes 100, and the barrier at the exit 300
    for number, error in enumerate(errors):
        last = error.strip().splitlines()[-1]
        assert line in last
        if number != failing:
            assert f"error: process {failing} on {socket.gethostname()} stopped: " in last
            assert "Traceback" not in error
            assert "LogMessage" not in error
    assert not list(tmp_path.glob(".shared-*"))


@pytest.mark.parametrize(
    ("error", "line", "status"),
    [
        (KeyboardInterrupt(), "KeyboardInterrupt", 130),
        (InputError(MISSING), MISSING, 2),
        (OSError("x"), "OSError: x", 1),
    ],
)
def test_the_others_end_as_the_one_that_was_first(error, line, status, monkeypatch):
    published = {}
    client = SimpleNamespace(key_value_set=published.__setitem__)
    monkeypatch.setattr(runtime.jax_distributed.global_state, "client", client)
    monkeypatch.setattr(runtime.jax, "process_index", lambda: 1)
    runtime._announce(error)
    (failure,) = map(json.loads, published.values())
    assert (failure["line"].split(" stopped: ")[1], failure["status"]) == (line, status)


def test_processes_that_agree_go_on(tmp_path):
    codes, errors, _ = start("none", 3, tmp_path)
    assert codes == [0, 0, 0], errors
    assert not list(tmp_path.glob(".shared-*"))
