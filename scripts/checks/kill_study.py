"""Kills a study at random moments, resumes it each time, and compares its last page with that of an uninterrupted
study.

    python scripts/checks/kill_study.py --kills 10
    python scripts/checks/kill_study.py --kills 10 --processes 2

The study is configs/studies/smoke.py: generate, score, build, train, evaluate, train again and evaluate again, 22
steps. All its processes get SIGKILL at once, at random moments within the time that the uninterrupted study took, so
that they fall into all kinds of steps. A study that ends before its kill is compared, and the kills go on with a new
one. Prints a line for each kill, and for each study whether analysis.json and the page are the same, byte for byte; the
page's last section, with the command line, is left out.
"""

import argparse
import os
from pathlib import Path
import random
import signal
import subprocess
import sys
import tempfile
import time

ROOT = Path(__file__).resolve().parents[2]
STUDY = "configs/studies/smoke.py"


def start(folder: Path, options: argparse.Namespace) -> subprocess.Popen:
    """The study, in a group of processes of its own."""
    words = [
        "--config",
        STUDY,
        f"--config.output_dir={folder}",
        f"--config.processes={options.processes}",
        f"--config.only={options.only}",
    ]
    return subprocess.Popen(
        [sys.executable, "-m", "diversity_jax.study", *words],
        cwd=ROOT,
        env={**os.environ, "JAX_PLATFORMS": "cpu"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def finish(process: subprocess.Popen) -> None:
    """Waits for a study, and exits where it failed."""
    _, errors = process.communicate()
    if process.returncode:
        sys.exit(f"the study ended with {process.returncode}:\n{errors}")


def results(folder: Path) -> tuple[bytes, str]:
    """The study's analysis, and its page without the section that holds the command line."""
    return (folder / "analysis.json").read_bytes(), (folder / "report.html").read_text().split('id="facts"')[0]


def kill(process: subprocess.Popen, folder: Path, seconds: float) -> str | None:
    """Kills the study after so many seconds; returns its state, or None where it had ended."""
    try:
        process.wait(seconds)
        finish(process)
        return None
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
    steps = sorted(path for path in (folder / "steps").glob("*") if path.is_dir())
    running = [
        path.name.split("-")[0] for path in steps if not (path / "done.json").exists() and (path / "log.txt").exists()
    ]
    done = sum((path / "done.json").exists() for path in steps)
    return f"{done:2} steps done, running: {', '.join(sorted(set(running))) or 'none'}"


def same(uninterrupted: Path, killed: Path, kills: int) -> bool:
    """Prints and returns whether a killed study ended like the uninterrupted one."""
    equal = [expected == actual for expected, actual in zip(results(uninterrupted), results(killed), strict=True)]
    analysis, page = ("the same" if result else "DIFFERS" for result in equal)
    print(f"{kills} kills: analysis.json {analysis}, page {page}", flush=True)
    return all(equal)


def main() -> None:
    """Runs all kills; the exit status is 1 where anything differs."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--only", default="", help="levels to keep, as in the study's configuration")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    draw = random.Random(options.seed)
    with tempfile.TemporaryDirectory() as scratch:
        uninterrupted, killed = Path(scratch, "uninterrupted"), Path(scratch, "killed")
        began = time.monotonic()
        finish(start(uninterrupted, options))
        took = time.monotonic() - began
        print(f"uninterrupted: {took:.0f} s", flush=True)
        kills, before, right = 0, 0, True
        while kills < options.kills:
            # A fraction of the full time: each start after a kill repeats the start-up.
            seconds = draw.uniform(0.1 * took, 0.45 * took)
            where = kill(start(killed, options), killed, seconds)
            if where is None:
                right &= same(uninterrupted, killed, kills - before)
                before, killed = kills, Path(scratch, f"killed after {kills}")
                continue
            kills += 1
            print(f"kill {kills:2} after {seconds:5.1f} s: {where}", flush=True)
        finish(start(killed, options))
        right &= same(uninterrupted, killed, kills - before)
    sys.exit(0 if right else 1)


if __name__ == "__main__":
    main()
