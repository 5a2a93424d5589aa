"""Kills a preparation at random moments, resumes it each time, and compares its files with those of an uninterrupted
run.

    python scripts/checks/kill_preparation.py --kills 30                          # this machine's processes
    python scripts/checks/kill_preparation.py --kills 30 --runner DirectRunner    # Apache Beam
    # chunks large enough for the fast encoder
    python scripts/checks/kill_preparation.py --kills 20 --vocabulary tokenizer.json --documents 20000 \\
        --characters 1000000

Half of the kills come at a moment drawn uniformly from the time that a complete run takes; the others shortly after a
phase has begun (signing, encoding, permuting, tidying up), so that short phases are hit too. A run that ends before its
kill is compared, and the next one starts from nothing. SIGKILL goes to the command alone: its workers have to notice.
"""

import argparse
from collections import Counter
import hashlib
import json
from pathlib import Path
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time

ROOT = Path(__file__).resolve().parents[2]
_LOOK_SECONDS = 0.005
_CONFIG = """
from diversity_jax.corpus import CorpusConfig
from diversity_jax.prepare.config import Filtering, Preparation, PrepareConfig


def get_config():
    hygiene = Filtering(exact_duplicates=True, near_duplicates=0.8)
    sizes = dict(piece_characters={characters!r}, shard_bytes=1_500 * {characters!r} // 1_000)
    preparation = Preparation(
        name="part", kind="real", sequence_length=64, validation_share=0.1, hygiene=hygiene, **sizes
    )
    corpus = CorpusConfig(source={source!r})
    return PrepareConfig(
        output_dir={output!r}, corpus=corpus, preparation=preparation, processes=2, vocabulary={vocabulary!r}
    )
"""
_PHASES = {
    "tidying up": lambda folder: (folder / "manifest.json").exists() and (folder / ".preparing").exists(),
    "permuting": lambda folder: any(folder.glob("*.bin")),
    "encoding": lambda folder: any((folder / ".preparing").glob("*.rows")),
    "signing": lambda folder: any((folder / ".preparing").glob("*.signatures")),
    "starting": lambda folder: True,
}
"""Phases of a preparation, the last first, by the files that it has written."""


def write_text(folder: Path, documents: int) -> str:
    """Files of made-up documents, some of them copies; returns a pattern."""
    source, files = random.Random(0), 3
    words = [f"word{i}" for i in range(2000)]
    texts = [" ".join(source.choices(words, k=source.randint(1, 120))) for _ in range(documents)]
    texts[::50] = [texts[0]] * len(texts[::50])
    folder.mkdir()
    for file in range(files):
        (folder / f"text-{file}.jsonl").write_text(
            "".join(json.dumps({"text": text}) + "\n" for text in texts[file::files])
        )
    return str(folder / "text-*.jsonl")


def contents(folder: Path) -> dict[str, str]:
    """Hash of every file, by its name."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("*")
        if path.is_file()
    }


def phase(folder: Path) -> str:
    return next(name for name, is_there in _PHASES.items() if is_there(folder))


def start(source: str, folder: Path, args: argparse.Namespace) -> subprocess.Popen:
    config, runner = folder.with_suffix(".py"), args.runner
    values = {"vocabulary": args.vocabulary, "characters": args.characters}
    config.write_text(_CONFIG.format(output=str(folder), source=source, **values))
    command = [sys.executable, "-m", "diversity_jax.mixtures.prepare", "--config", str(config)]
    with open(folder.with_suffix(".log"), "w") as log:
        return subprocess.Popen(
            [*command, *([f"--runner={runner}"] if runner else [])], cwd=ROOT, stdout=log, stderr=log
        )


def is_killed(process: subprocess.Popen, folder: Path, draw: random.Random, whole_seconds: float, number: int) -> bool:
    """Kills after a random time, or soon after a phase has begun; False where the run ended first."""
    wanted = None if number % 2 else draw.choice([name for name in _PHASES if name != "starting"])
    deadline = time.monotonic() + draw.uniform(0, whole_seconds)
    while process.poll() is None:
        if (phase(folder) == wanted) if wanted else (time.monotonic() >= deadline):
            time.sleep(draw.uniform(0, 0.02 if wanted == "tidying up" else 0.3) if wanted else 0)
            process.send_signal(signal.SIGKILL)
            return process.wait() == -signal.SIGKILL
        time.sleep(_LOOK_SECONDS)
    return False


def main() -> None:
    flags = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    flags.add_argument("--kills", type=int, default=30)
    flags.add_argument("--documents", type=int, default=2000)
    flags.add_argument("--seed", type=int, default=0)
    flags.add_argument("--runner")
    flags.add_argument("--vocabulary", default="bytes")
    flags.add_argument("--characters", type=int, default=40_000, help="in a chunk, about")
    args = flags.parse_args()
    draw, killed, compared = random.Random(args.seed), Counter(), 0
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as scratch:
        source, complete, folder = (
            write_text(Path(scratch, "text"), args.documents),
            Path(scratch, "whole"),
            Path(scratch, "part"),
        )
        began = time.monotonic()
        if start(source, complete, args).wait():
            sys.exit(complete.with_suffix(".log").read_text())
        whole_seconds, wanted, number = time.monotonic() - began, contents(complete), 0
        while sum(killed.values()) < args.kills or not compared:
            number += 1
            process = start(source, folder, args)
            if sum(killed.values()) < args.kills and is_killed(process, folder, draw, whole_seconds, number):
                killed[phase(folder)] += 1
                continue
            if process.wait():
                sys.exit(f"a run after {sum(killed.values())} kills failed:\n{folder.with_suffix('.log').read_text()}")
            if contents(folder) != wanted:
                sys.exit(
                    f"files differ after {sum(killed.values())} kills: "
                    f"{sorted(set(contents(folder).items()) ^ set(wanted.items()))}"
                )
            compared += 1
            if sum(killed.values()) < args.kills:
                shutil.rmtree(folder)
        phases = ", ".join(f"{count} while {name}" for name, count in killed.most_common())
        print(
            f"{sum(killed.values())} kills ({phases}); {compared} finished runs, each with the {len(wanted)} "
            "files of "
            "an uninterrupted run"
        )


if __name__ == "__main__":
    main()
