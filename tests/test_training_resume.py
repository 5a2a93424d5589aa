"""A run that is stopped and resumed ends with the bits of an uninterrupted one."""

from fractions import Fraction
import os
from pathlib import Path
import random
import shutil
import signal
import socket
import subprocess
import sys
import time

import pytest

from scripts.checks.kill_training import kill_at_random, truncate_latest
from tests.json_lines import json_lines
from tests.kills import kills
from tests.mixture_folders import build_mixture

STEPS = 12
ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def mixture(tmp_path_factory):
    folder = tmp_path_factory.mktemp("resume")
    return build_mixture(folder, {"a": Fraction(1, 3), "b": Fraction(2, 3)}, sequence_length=16)


def start(folder, steps=STEPS, *arguments, **environment):
    # JAX's own cache of compiled programs makes the many short processes of this file affordable.
    cache = {"JAX_COMPILATION_CACHE_DIR": str(ROOT / ".jax_cache"), "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
    return subprocess.Popen(
        [sys.executable, "-m", "tests.train_process", str(folder), str(steps), *map(str, arguments)],
        cwd=ROOT,
        env={**os.environ, "JAX_PLATFORMS": "cpu", **cache, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(process):
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    return out.split()


@pytest.fixture(scope="module")
def uninterrupted(mixture, tmp_path_factory):
    folder = shutil.copytree(mixture, tmp_path_factory.mktemp("whole") / "mixture")
    return folder, finish(start(folder))[-1]


@pytest.fixture
def folder(mixture, tmp_path):
    return shutil.copytree(mixture, tmp_path / "mixture")


@pytest.mark.slow
@pytest.mark.parametrize("truncate", [False, True], ids=["killed", "killed and a checkpoint file truncated"])
def test_killed_at_random_moments_it_ends_with_the_same_bits(folder, uninterrupted, truncate):
    """Two kills; `scripts/checks/kill_training.py --kills 20` does the same for longer."""
    draw = random.Random(7 + truncate)
    for _ in range(kills(2)):
        process = start(folder)
        kill_at_random(process, folder, draw)
        if process.returncode != -signal.SIGKILL:
            break
        if truncate:
            truncate_latest(folder, draw)
    assert finish(start(folder))[-1] == uninterrupted[1]
    assert logged_losses(folder) == logged_losses(uninterrupted[0])


def logged_losses(folder):
    """Loss by step, the last line of a step winning."""
    lines = json_lines(folder / "run" / "metrics.jsonl")
    return {line["step"]: line["loss"] for line in lines if "loss" in line}


@pytest.mark.slow
def test_sigterm_saves_and_exits_cleanly(folder, uninterrupted):
    process = start(folder)
    while not (folder / "run" / "checkpoints" / "3").exists() and process.poll() is None:
        time.sleep(0.005)
    process.send_signal(signal.SIGTERM)
    words = finish(process)
    steps = int(words[1])
    if words[2] == "True":
        assert steps < STEPS
        assert (folder / "run" / "checkpoints" / str(steps)).exists()
    assert finish(start(folder))[-1] == uninterrupted[1]


@pytest.mark.slow
def test_the_number_of_hosts_may_change(folder, uninterrupted):
    hosts = (1, 2, 1)
    for attempt, processes in enumerate(hosts):
        steps = STEPS if attempt == len(hosts) - 1 else 5 + 3 * attempt
        with socket.socket() as free:
            free.bind(("localhost", 0))
            port = free.getsockname()[1]
        members = [start(folder, steps, i, processes, port) for i in range(processes)]
        endings = [finish(member) for member in members]
    assert endings[0][-1] == uninterrupted[1]


@pytest.mark.slow
def test_a_damaged_checkpoint_falls_back_to_the_one_before(folder, uninterrupted):
    finish(start(folder, 9))
    largest = max(
        (folder / "run" / "checkpoints" / "9").rglob("*"), key=lambda path: path.stat().st_size if path.is_file() else 0
    )
    data = bytearray(largest.read_bytes())
    data[len(data) // 2] ^= 0xFF
    largest.write_bytes(data)
    process = start(folder)
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    assert "9 is damaged" in err
    assert out.split()[-1] == uninterrupted[1]
    assert (folder / "run" / "checkpoints-damaged" / "9").exists()


@pytest.mark.slow
def test_another_learning_rate_may_not_resume(folder):
    finish(start(folder, 3))
    process = start(folder, LEARNING_RATE="2e-2")
    assert process.wait(timeout=300) == 2
    assert "optimizer.learning_rate=0.02 (was 0.01)" in process.stderr.read()


@pytest.mark.slow
def test_a_loss_that_stays_non_finite_stops_the_run(folder):
    process = start(folder, 40, LEARNING_RATE="1e38")
    assert process.wait(timeout=300) == 2
    assert "not finite for 20 steps in a row" in process.stderr.read()
