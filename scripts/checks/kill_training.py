"""Kills a training run at random moments, resumes it each time, and compares its parameters with an uninterrupted
run's.

    python scripts/checks/kill_training.py --kills 20
    # also cuts a random file of the latest checkpoint short after each kill
    python scripts/checks/kill_training.py --kills 20 --truncate
    python scripts/checks/kill_training.py --kills 20 --scenario extended    # or branch, or reshuffled

Each attempt is a process of its own and gets SIGKILL. A kill comes after a random number of new steps and a random part
of a second, or, one time in five, at a random moment of the start-up. Prints a line for each kill and, last, whether
every bit is the same.

- extended: begun for a third of the steps, then made longer twice, under a constant learning rate.
- branch: a decay branch that leaves a run with a constant rate at half of the steps; the uninterrupted run has the
  schedule with the decay from its first step on.
- reshuffled: few rows, which are read in another order in every pass.

With `--store gs` or `--store s3`, run and mixture are stored in a bucket of a server on this machine (fake-gcs-server,
moto), and after each kill every object is checked: records parse, and the files that they name have the right
checksums. Every other time the local copies are removed too, as on a new machine. `--processes 2` trains in two
processes that share nothing but the bucket, and kills both.
"""

import argparse
from collections.abc import Mapping
import contextlib
from dataclasses import dataclass, field, replace
from fractions import Fraction
import json
import os
from pathlib import Path
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from types import MappingProxyType
import zlib

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from diversity_jax.core.buckets import cache_folder, remote_tree, staging_folder  # noqa: E402
from diversity_jax.core.files import join_path, open_file, read_range  # noqa: E402
from diversity_jax.core.stores import is_remote, remote  # noqa: E402
from diversity_jax.model.checkpoint_io.shards import RECORD  # noqa: E402
from tests import gcs_server, s3_server  # noqa: E402
from tests.gcs_server import BUCKET, free_port  # noqa: E402

SERVERS = {"gs": gcs_server, "s3": s3_server}


@dataclass(frozen=True, kw_only=True)
class Scenario:
    """What is trained: environments of `tests.train_process` for both, and successive lengths of the killed one."""

    killed: Mapping[str, str] = field(default_factory=dict)
    uninterrupted: Mapping[str, str] = field(default_factory=dict)
    parts: tuple[float, ...] = (1.0,)
    documents: int = 300
    repeat_shuffle: bool = False


CONSTANT, DECAYING = {"SCHEDULE": "constant"}, {"SCHEDULE": "warmup_stable_decay"}
SCENARIOS = {
    "plain": Scenario(),
    "extended": Scenario(killed=CONSTANT, uninterrupted=CONSTANT, parts=(1 / 3, 2 / 3, 1.0)),
    "branch": Scenario(killed={**DECAYING, "RUN": "branch"}, uninterrupted=DECAYING),
    "reshuffled": Scenario(documents=8, repeat_shuffle=True),
}


class RunProcesses:
    """One attempt of the run in `folder`, in one process or several that stand for hosts."""

    def __init__(self, folder: Path | str, steps: int, environment: Mapping[str, str] = MappingProxyType({})):
        cache = {"JAX_COMPILATION_CACHE_DIR": str(ROOT / ".jax_cache")}
        cache["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
        processes = int(environment.get("PROCESSES", "1"))
        port = free_port() if processes > 1 else 0
        self._processes = [
            subprocess.Popen(
                [
                    sys.executable,
                    "-m",
                    "tests.train_process",
                    str(folder),
                    str(steps),
                    str(i),
                    str(processes),
                    str(port),
                ],
                cwd=ROOT,
                env={**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": "", **cache, **environment},
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
            for i in range(processes)
        ]

    @property
    def returncode(self) -> int | None:
        """Of the first process."""
        return self._processes[0].returncode

    def poll(self) -> int | None:
        """The first process's status; None while it runs."""
        return self._processes[0].poll()

    def kill(self) -> None:
        """Kills all of them."""
        for process in self._processes:
            process.kill()

    def communicate(self, timeout: float | None = None) -> tuple[str, str]:
        """What the first process wrote to stdout, and all to stderr, once they have ended."""
        written = [process.communicate(timeout=timeout) for process in self._processes]
        return written[0][0], "\n".join(errors for _, errors in written)


def start(folder: Path | str, steps: int, environment: Mapping[str, str] = MappingProxyType({})) -> RunProcesses:
    """One attempt of the run in `folder`."""
    return RunProcesses(folder, steps, environment)


def logs_folder(run: Path | str) -> Path:
    """Where this machine writes the logs of a run."""
    return staging_folder(run) if is_remote(run) else Path(run)


def check_objects(run: str) -> int:
    """Checks every object of a run in a bucket, whatever moment it was killed at; returns how many there are."""
    tree = remote_tree(run)
    for name in tree:
        if name.endswith(".json"):
            with open_file(join_path(run, name)) as file:
                value = json.loads(file.read())
            if name.endswith(RECORD):
                for shard in value["shards"]:
                    path = join_path(run, name.removesuffix(RECORD) + shard["file"])
                    if zlib.crc32(read_range(path, shard["offset"], shard["bytes"])) != shard["crc32"]:
                        raise SystemExit(f"{path}: {shard['name']} is damaged")
    return len(tree)


def lines(folder: Path | str, run: str = "run") -> int:
    """Lines of the run's log."""
    path = logs_folder(join_path(folder, run)) / "metrics.jsonl"
    return path.read_bytes().count(b"\n") if path.exists() else 0


def kill_at_random(process: RunProcesses, folder: Path | str, draw: random.Random, run: str = "run") -> str:
    """Kills the process at a random moment; returns a description of it."""
    if draw.random() < 0.2:
        seconds = draw.uniform(0.5, 6.0)
        moment = f"after {seconds:.1f} s"
        deadline = time.monotonic() + seconds
        while process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.01)
    else:
        new = draw.randint(1, 7)
        wanted, moment = lines(folder, run) + new, f"after {new} new lines of its log"
        while process.poll() is None and lines(folder, run) < wanted:
            time.sleep(0.005)
        time.sleep(draw.uniform(0.0, 0.2))
    process.kill()
    _, output = process.communicate()
    if process.returncode not in (0, -signal.SIGKILL):
        raise SystemExit(f"the run failed (status {process.returncode}):\n{output}")
    return moment


def truncate_latest(folder: Path, draw: random.Random) -> str:
    """Cuts a random file of the latest checkpoint short, where there is an earlier one to fall back to; returns what
    was cut.
    """
    checkpoints = sorted(
        (int(path.name), path) for path in (folder / "run" / "checkpoints").glob("*") if path.name.isdigit()
    )
    if len(checkpoints) < 2:
        return "no earlier checkpoint: nothing truncated"
    files = sorted(path for path in checkpoints[-1][1].rglob("*") if path.is_file() and path.stat().st_size)
    chosen = draw.choice(files)
    length = draw.randrange(chosen.stat().st_size)
    os.truncate(chosen, length)
    return f"truncated {chosen.relative_to(folder / 'run')} to {length} bytes"


def finish(process: RunProcesses) -> tuple[str, str]:
    """The fingerprint that an attempt ends with, and its standard error."""
    out, err = process.communicate(timeout=600)
    if process.returncode:
        raise SystemExit(f"the run failed:\n{err}")
    return out.split()[-1], err


def kill_and_resume(scenario: Scenario, folder: Path | str, options: argparse.Namespace) -> str:
    """Kills and resumes; the fingerprint that the run ends with."""
    draw, killed, run = random.Random(options.seed), 0, scenario.killed.get("RUN", "run")
    lengths = [round(part * options.steps) for part in scenario.parts]
    while killed < options.kills:
        # The lengths take equal numbers of kills, and the next one where a run ends before it is killed.
        steps = lengths[max(0, len(lengths) - 1 - (options.kills - killed - 1) * len(lengths) // options.kills)]
        process = start(folder, steps, scenario.killed)
        moment = kill_at_random(process, folder, draw, run)
        if process.returncode == 0 and steps < options.steps:
            lengths = [length for length in lengths if length > steps]
            continue
        if process.returncode == 0:
            raise SystemExit(f"the run ended before {options.kills} kills; give more --steps")
        killed += 1
        damage = truncate_latest(folder, draw) if options.truncate else ""
        if is_remote(folder):
            damage = f"{check_objects(str(join_path(folder, run)))} objects, all whole"
            if killed % 2:
                shutil.rmtree(cache_folder(), ignore_errors=True)
                damage += "; local copies removed"
        print(f"kill {killed:2d} of {steps} steps {moment}; {damage}", flush=True)
    digest, output = finish(start(folder, options.steps, scenario.killed))
    print(output.strip())
    return digest


def main() -> None:
    flags = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    flags.add_argument("--kills", type=int, default=20)
    flags.add_argument("--steps", type=int, default=120)
    flags.add_argument("--seed", type=int, default=0)
    flags.add_argument("--truncate", action="store_true")
    flags.add_argument("--scenario", choices=SCENARIOS, default="plain")
    flags.add_argument("--store", choices=("disk", "gs", "s3"), default="disk")
    flags.add_argument("--processes", type=int, default=1)
    options = flags.parse_args()
    from tests.mixture_folders import build_mixture

    scenario = SCENARIOS[options.scenario]
    with tempfile.TemporaryDirectory() as scratch, contextlib.ExitStack() as resources:
        complete = build_mixture(
            Path(scratch) / "whole",
            {"a": Fraction(1, 3), "b": Fraction(2, 3)},
            sequence_length=16,
            documents=scenario.documents,
            repeat_shuffle=scenario.repeat_shuffle,
        )
        folder: Path | str = shutil.copytree(complete, Path(scratch) / "killed")
        if options.store != "disk":
            os.environ.update(resources.enter_context(SERVERS[options.store].serving()))
            os.environ["DIVERSITY_JAX_CACHE"] = str(Path(scratch) / "cache")
            filesystem, _ = remote(f"{options.store}://{BUCKET}")
            filesystem.put(f"{folder}/", f"{BUCKET}/killed/", recursive=True)
            folder = f"{options.store}://{BUCKET}/killed"
        scenario = replace(scenario, killed={**scenario.killed, "PROCESSES": str(options.processes)})
        wanted, _ = finish(start(complete, options.steps, scenario.uninterrupted))
        if options.scenario == "branch":
            finish(start(folder, options.steps // 2, {**CONSTANT, "RUN": "trunk", "PROCESSES": str(options.processes)}))
            scenario = replace(scenario, killed={**scenario.killed, "BRANCH_FROM": str(join_path(folder, "trunk"))})
        digest = kill_and_resume(scenario, folder, options)
        same = digest == wanted
        print(
            f"{options.scenario} on {options.store}: {options.kills} kills, {options.steps} steps: state "
            f"{'bit-identical' if same else 'DIFFER'} ({digest}, {wanted})"
        )
        sys.exit(not same)


if __name__ == "__main__":
    main()
