"""Kills a whole study at random moments, runs it again each time, and compares its last page with that of a study left alone.

    python scripts/kill_study.py --kills 10
    python scripts/kill_study.py --kills 10 --processes 2

The study is configs/studies/smoke.py: generate, score, build, train, evaluate, train again and evaluate again, 22 steps. All its
processes get SIGKILL at once. Moments are drawn from the time that the undisturbed study took, so that they fall into all kinds of steps.
Prints a line for each kill, and last whether analysis.json and the page are the same, byte for byte; the page's last section, with the
command line, is left out.
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

ROOT = Path(__file__).resolve().parents[1]
STUDY = "configs/studies/smoke.py"


def start(folder: Path, asked: argparse.Namespace) -> subprocess.Popen:
    """The study, in a group of processes of its own."""
    words = ["--config", STUDY, f"--config.output_dir={folder}", f"--config.processes={asked.processes}", f"--config.only={asked.only}"]
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
    """Waits for a study that must end well."""
    _, errors = process.communicate()
    if process.returncode:
        sys.exit(f"the study ended with {process.returncode}:\n{errors}")


def found(folder: Path) -> tuple[bytes, str]:
    """What the study found, and its page without the section that holds the command line."""
    return (folder / "analysis.json").read_bytes(), (folder / "report.html").read_text().split('id="facts"')[0]


def kill(process: subprocess.Popen, folder: Path, seconds: float) -> str:
    """Kills the study after so many seconds; says where that was."""
    try:
        process.wait(seconds)
        return "it had ended"
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
    steps = sorted(path for path in (folder / "steps").glob("*") if path.is_dir())
    at_work = [path.name.split("-")[0] for path in steps if not (path / "done.json").exists() and (path / "log.txt").exists()]
    done = sum((path / "done.json").exists() for path in steps)
    return f"{done:2} steps done, at work: {', '.join(sorted(set(at_work))) or 'between steps'}"


def main() -> None:
    """The campaign; ends with 1 where anything differs."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--only", default="", help="levels to keep, as in the study's configuration")
    parser.add_argument("--seed", type=int, default=0)
    words = parser.parse_args()
    draw = random.Random(words.seed)
    with tempfile.TemporaryDirectory() as scratch:
        whole, killed = Path(scratch, "whole"), Path(scratch, "killed")
        began = time.monotonic()
        finish(start(whole, words))
        took = time.monotonic() - began
        print(f"left alone: {took:.0f} s", flush=True)
        for number in range(words.kills):
            # Of each sitting the start-up is lost; what is left of the time is shared out among the kills.
            seconds = draw.uniform(0.1 * took, 0.45 * took)
            print(f"kill {number + 1:2} after {seconds:5.1f} s: {kill(start(killed, words), killed, seconds)}", flush=True)
        finish(start(killed, words))
        same = [one == other for one, other in zip(found(whole), found(killed), strict=True)]
    print(f"after {words.kills} kills: analysis.json {'the same' if same[0] else 'DIFFERS'}, page {'the same' if same[1] else 'DIFFERS'}")
    sys.exit(0 if all(same) else 1)


if __name__ == "__main__":
    main()
