"""The accelerator benchmark: the files it needs, kills at any moment, failing peers, and the table."""

import contextlib
import importlib.util
import os
from pathlib import Path
import shutil
import signal
import subprocess
import sys
import time

import pytest

from tests.json_lines import json_lines
from tests.kills import kills

ROOT = Path(__file__).resolve().parents[1]
SCRIPT = "scripts/benchmarks/bench_accelerator.py"
TINY = ("--models", "tiny", "--steps", "2")


@pytest.fixture(scope="module")
def bench():
    specification = importlib.util.spec_from_file_location("bench_accelerator", ROOT / SCRIPT)
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


def run(*arguments, folder=ROOT, **environment):
    """A run of the command in a folder that holds the repository or a part of it, without TensorFlow."""
    hidden = folder / "hidden" if folder != ROOT else None
    if hidden:
        hidden.mkdir()
        for name in ("tensorflow", "seqio", "ml_collections", "clu"):
            (hidden / f"{name}.py").write_text("raise ImportError('hidden')\n")
    variables = {**os.environ, "PYTHONPATH": str(hidden or ""), "JAX_PLATFORMS": "cpu", **environment}
    command = [sys.executable, SCRIPT, *map(str, arguments)]
    return subprocess.run(command, cwd=folder, env=variables, capture_output=True, text=True, timeout=400, check=False)


def records(output):
    return json_lines(output.with_suffix(".jsonl"))


def test_the_files_it_lists_are_all_that_it_needs(tmp_path):
    files = run("--files").stdout.split()
    assert {"diversity_jax/training/step.py", "scripts/benchmarks/peers/torch_llama_step.py"} <= set(files)
    for name in files:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / name)
    done = run(*TINY, "--peer", "jax_llama_step.py", "--output", tmp_path / "tiny", folder=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    _, ours, peer = records(tmp_path / "tiny")
    assert (ours["contestant"], peer["contestant"]) == ("diversity_jax", "jax_llama_step")
    assert ours["steps"] == peer["steps"] == 2
    assert ours["parameters"] == peer["parameters"]
    assert ours["first_losses"][0] == pytest.approx(peer["first_losses"][0], abs=0.05)
    assert set(ours["files"]) <= set(files)


FAILS = "import sys; print('a kernel that is not there', file=sys.stderr); sys.exit(3)"
TOO_LARGE = """import sys, json
if "--batch=4" in sys.argv:
    sys.exit("jaxlib.XlaRuntimeError: RESOURCE_EXHAUSTED: Out of memory while trying to allocate 9 bytes.")
print(json.dumps({"steps": 2, "tokens_per_second": {"fastest_tenth": 9.0, "median": 8.0}, "first_losses": [6.2]}))
"""
HANGS = """import json, time
print(json.dumps({"steps": 5, "tokens_per_second": {"fastest_tenth": 9.0, "median": 8.0}, "first_losses": [6.2]}))
print('{"steps": 6, "tokens_per_sec', end="", flush=True)
time.sleep(600)
"""


def test_a_peer_that_fails_costs_its_own_row_alone(tmp_path):
    for name, text in (("fails", FAILS), ("large", TOO_LARGE), ("hangs", HANGS)):
        (tmp_path / f"{name}.py").write_text(text)
    peers = [tmp_path / f"{name}.py" for name in ("fails", "large", "hangs")]
    flags = [word for peer in [*peers, tmp_path / "missing.py"] for word in ("--peer", peer)]
    done = run(*TINY, *flags, "--time-limit", "60", "--output", tmp_path / "out")
    assert done.returncode == 1
    _, ours, fails, large, hangs, missing = records(tmp_path / "out")
    assert ours["steps"] == 2
    assert "failed" not in ours
    assert fails["failed"] == "ended with status 3: a kernel that is not there"
    assert (large["batch"], large["tokens_per_second"]["median"]) == (2, 8.0)
    assert hangs["steps"] == 5
    assert hangs["failed"].startswith("stopped after")
    assert "failed" in missing or "skipped" in missing
    text = (tmp_path / "out.md").read_text()
    assert "| tiny | 4 x 128 | diversity_jax |" in text
    assert "- not measured: tiny, fails, 4 rows: ended with status 3" in text
    assert "- cut short: tiny, hangs, 4 rows: stopped after" in text


def test_no_time_and_no_package_are_named(bench):
    nothing = bench.Contest("tiny", "x", "x.py").run(bench.MODELS["tiny"], 2, 1.0)
    assert nothing["skipped"] == "1 s were left of the time limit"
    absent = bench.Contest("tiny", "x", "x.py", needs="no_such_module").run(bench.MODELS["tiny"], 2, 100.0)
    assert absent["skipped"] == "no_such_module is not installed"


@pytest.mark.parametrize("kill", [signal.SIGTERM, signal.SIGKILL], ids=["SIGTERM", "SIGKILL"])
def test_what_was_measured_survives_a_kill_at_any_moment(kill, tmp_path):
    """When a line of results is there, a while later, and at the start: two moments of five by default."""
    moments = [(1, 0.0), (2, 0.0), (0, 0.0), (0, 3.0), (2, 2.0)]
    for moment, (lines, later) in enumerate(moments[: kills(2)]):
        output = tmp_path / f"out{moment}"
        command = [sys.executable, SCRIPT, *TINY, "--peer", "jax_llama_step.py", "--output", str(output)]
        process = subprocess.Popen(
            command,
            cwd=ROOT,
            env={**os.environ, "JAX_PLATFORMS": "cpu"},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        file = output.with_suffix(".jsonl")
        deadline = time.monotonic() + 120
        while len(file.read_text().splitlines() if file.exists() else []) < lines and time.monotonic() < deadline:
            time.sleep(0.05)
        time.sleep(later if lines else 0.5 + later)
        process.send_signal(kill)
        status = process.wait(timeout=30)
        rows = records(output) if file.exists() else []
        assert len(rows) >= lines
        assert all("limits" in row or "contestant" in row or "stopped" in row for row in rows)
        if kill == signal.SIGTERM:
            assert status in (128 + kill, 0, -kill)  # the last: before Python had begun
            assert status != 128 + kill or "stopped" in rows[-1]
        if len(rows) > 1 or (rows and kill == signal.SIGTERM):  # the table follows the line at once
            text = output.with_suffix(".md").read_text()
            assert text.startswith("# ")
            measured = [row for row in rows if "tokens_per_second" in row]
            assert sum(line.startswith("| tiny |") for line in text.splitlines()) in (len(measured), len(measured) - 1)
        if kill == signal.SIGTERM and lines == 2:
            assert "| tiny | 4 x 128 | diversity_jax |" in text
            assert status == 0 or "not measured: tiny jax_llama_step" in text
        deadline = time.monotonic() + 10
        while still := _still_running(str(output)):
            assert time.monotonic() < deadline, f"outlived the benchmark: {still}"
            time.sleep(0.1)


def _still_running(word):
    running = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            if word.encode() in (command := path.read_bytes()):
                running.append(command)
    return running


def test_shares_of_the_peak_and_goals_come_from_the_fastest_tenth(bench):
    # tokens/s of 350M at an MFU of 55 %: 6 x 357.9M matrix parameters + 12 x 28 x 960 x 2048 FLOPs
    speed = 0.55 * 989e12 / 2.8053e9
    rates = {"diversity_jax": speed, "torch_llama_step --compile": speed / 1.05, "jax_llama_step": speed}
    rows = [
        {
            "model": "350m",
            "contestant": name,
            "batch": 8,
            "steps": 20,
            "seconds": 60.0,
            "tokens_per_second": {"fastest_tenth": rate, "median": rate},
            "peak_bytes": None,
            "first_losses": [11.0, 10.9, 10.8, 10.7],
        }
        for name, rate in rates.items()
    ]
    limits = {"device": "NVIDIA H200", "jax": "0", "peak": 989e12, "ceiling": 800e12, "products": {8192: 800e12}}
    ours = bench.figures(rows[0], rows, limits)
    assert ours["mfu"] == pytest.approx(0.55, rel=0.01)
    assert ours["mfu_causal"] < ours["mfu"] < ours["of_ceiling"]
    verdicts = bench.goals(limits, rows)
    assert [verdict.rsplit(": ", 1)[1] for verdict in verdicts] == ["reached", "reached", "MISSED", "reached"]
    text = bench.table(limits, [*rows, {"model": "1p4b", "contestant": "diversity_jax", "batch": 8, "skipped": "why"}])
    assert "- not measured: 1p4b, diversity_jax, 8 rows: why" in text
    assert len({line.count("|") for line in text.splitlines() if line.startswith("|")}) == 1
    alone = bench.table(limits, rows[1:])  # a peer is shown where ours is missing
    assert "| 350m | 8 x 2048 | jax_llama_step |" in alone
