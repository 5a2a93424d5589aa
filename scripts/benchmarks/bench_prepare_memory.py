"""Peak memory and disk use of a preparation, over its whole process tree, on text made from a seed.

    # one process a core, a SentencePiece vocabulary
    python scripts/benchmarks/bench_prepare_memory.py --megabytes=1000
    # twice the text's size in tokens
    python scripts/benchmarks/bench_prepare_memory.py --megabytes=1000 --vocabulary=bytes
    # with near-duplicate removal
    python scripts/benchmarks/bench_prepare_memory.py --megabytes=100 --near_duplicates=0.8

Every 50 ms the memory of the command and of everything it started is summed: resident memory, where shared pages count
in each process, and PSS, where shared pages are divided among processes. The goal is 1 GB of text in under 1 GB.
"""

import argparse
from fractions import Fraction
import json
from pathlib import Path
import random
import shutil
import subprocess
import sys
import tempfile
import time

import psutil

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from diversity_jax.corpus import CorpusConfig
from diversity_jax.mixtures.config import Component
from diversity_jax.mixtures.sources import sampled_texts
from diversity_jax.tokenizers.sentence_piece import train_tokenizer

_LOOK_SECONDS = 0.05
_CONFIG = """
from diversity_jax.corpus import CorpusConfig
from diversity_jax.prepare.config import Filtering, Preparation, PrepareConfig


def get_config():
    filtering = Filtering(near_duplicates={near!r})
    return PrepareConfig(
        output_dir={output!r},
        corpus=CorpusConfig(source={source!r}),
        vocabulary={vocabulary!r},
        processes={processes!r},
        preparation=Preparation(name="bench", kind="real", sequence_length=2048, hygiene=filtering),
    )
"""


def write_text(path: Path, megabytes: int, seed: int) -> None:
    """JSON Lines of made-up words, whose frequencies fall as those of words do, in documents of 20 to 2,000 words."""
    source = random.Random(seed)
    letters = "etaoinshrdlucmfwypvbgk"
    words = ["".join(source.choices(letters, k=source.randint(2, 9))) for _ in range(50_000)]
    weights = [1 / (rank + 3) for rank in range(len(words))]
    with open(path, "w") as file:
        written = 0
        while written < megabytes * 1_000_000:
            drawn = source.choices(words, weights, k=200_000)
            at = 0
            while at < len(drawn):
                length = int(20 * 100 ** source.random())
                line = json.dumps({"text": " ".join(drawn[at : at + length])}) + "\n"
                file.write(line)
                written += len(line)
                at += length


def watch(command: list[str], folder: Path) -> dict[str, float]:
    """Runs a command; peak megabytes of its tree, peak disk of `folder`, seconds, and most processes at a time."""
    peak = {"rss": 0.0, "pss": 0.0, "disk": 0.0, "processes": 0.0}
    started, looks = time.monotonic(), 0
    process = subprocess.Popen(command)
    tree = psutil.Process(process.pid)
    while process.poll() is None:
        looks += 1
        try:
            members = [tree, *tree.children(recursive=True)]
            peak["rss"] = max(peak["rss"], sum(member.memory_info().rss for member in members) / 1e6)
            peak["processes"] = max(peak["processes"], len(members))
            if looks % 10 == 0:
                peak["pss"] = max(peak["pss"], sum(member.memory_full_info().pss for member in members) / 1e6)
                peak["disk"] = max(
                    peak["disk"], sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) / 1e6
                )
        except (psutil.NoSuchProcess, FileNotFoundError):
            pass
        time.sleep(_LOOK_SECONDS)
    if process.returncode:
        sys.exit(process.returncode)
    return {**peak, "seconds": time.monotonic() - started}


def main() -> None:
    flags = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    flags.add_argument("--megabytes", type=int, default=1000)
    flags.add_argument("--seed", type=int, default=0)
    flags.add_argument("--vocabulary")
    flags.add_argument("--processes", type=int)
    flags.add_argument("--near_duplicates", type=float)
    flags.add_argument("--folder", help="for the text and the rows; a temporary one if not given")
    args = flags.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(args.folder or scratch)
        folder.mkdir(parents=True, exist_ok=True)
        text, rows = folder / f"text-{args.megabytes}-{args.seed}.jsonl", folder / "rows"
        if not text.exists():
            write_text(text, args.megabytes, args.seed)
        shutil.rmtree(rows, ignore_errors=True)
        vocabulary = args.vocabulary
        if vocabulary is None:
            sample = Component(name="sample", kind="real", corpus=CorpusConfig(source=str(text), max_documents=3000))
            texts = sampled_texts([sample], [Fraction(1)], characters=2_000_000, seed=0)
            vocabulary = str(train_tokenizer(texts, folder / "bench.model", vocab_size=8192))
        config = folder / "prepare_config.py"
        near = args.near_duplicates
        config.write_text(
            _CONFIG.format(
                output=str(rows), source=str(text), vocabulary=vocabulary, processes=args.processes, near=near
            ).strip()
            + "\n"
        )
        results = watch([sys.executable, "-m", "diversity_jax.mixtures.prepare", "--config", str(config)], rows)
        print(
            f"{args.megabytes:,} MB of text: peak resident memory of {results['processes']:.0f} processes "
            f"{results['rss']:,.0f} MB "
            f"({results['pss']:,.0f} MB with shared pages divided), {results['disk']:,.0f} MB of disk while running, "
            f"{results['seconds']:,.0f} s"
        )


if __name__ == "__main__":
    main()
