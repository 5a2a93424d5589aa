"""Tokens per CPU second of preparing text: ours, SeqIO and datatrove, with the same documents and tokenizer in one run.

    # a SentencePiece model trained on the spot
    python scripts/benchmarks/bench_prepare.py
    python scripts/benchmarks/bench_prepare.py --vocabulary tokenizer.json --text texts.jsonl --tokens 50 1000 \\
        --datatrove-python ENVIRONMENT/bin/python

Three peers. SeqIO's cache job (`seqio.scripts.cache_tasks_main` on Beam's DirectRunner; with `--processes` also with
one process a core, which is slower) reads one document a line from one file a core, tokenises, shuffles and writes
TFRecords that are still to be packed. SeqIO's pipeline tokenises and packs with DecoderFeatureConverter(pack=True) and
writes nothing. datatrove (an environment of its own, a `tokenizer.json`) reads JSON Lines, tokenises and writes
shuffled files of tokens, one after the other. Ours reads JSON Lines, cuts full rows, permutes them, writes them with
checksums and syncs them to disk.

Jobs are commands, as users start them. CPU seconds are user and system time of all their processes. Rates are shown
with start-up and without it, where the time of the same command on 64 documents is subtracted. The jobs take turns;
figures are medians of the repeats.
"""

import argparse
from dataclasses import dataclass
from fractions import Fraction
import json
import os
from pathlib import Path
import statistics
import subprocess
import sys
import tempfile
import time

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from diversity_jax.corpus import CorpusConfig, open_corpus
from diversity_jax.mixtures.config import Component
from diversity_jax.mixtures.sources import sampled_texts
from diversity_jax.prepare.manifest import Manifest
from diversity_jax.prepare.workers import usable_cores
from diversity_jax.tokenizers.sentence_piece import train_tokenizer
from diversity_jax.tokenizers.tokenizer import Tokenizer, load_tokenizer
from scripts.child_times import ChildTimes

ROOT = Path(__file__).resolve().parents[2]
_FEW = 64
_PREPARE_CONFIG = """
from diversity_jax.corpus import CorpusConfig
from diversity_jax.prepare.config import Preparation, PrepareConfig


def get_config():
    preparation = Preparation(name="bench", kind="real", sequence_length={length!r})
    corpus = CorpusConfig(source={source!r})
    return PrepareConfig(output_dir={output!r}, corpus=corpus, vocabulary={vocabulary!r}, preparation=preparation)
"""
_SEQIO_TASK = """
from diversity_jax.core.tensorflow import seqio, tf
from diversity_jax.mixtures.seqio_rows import seqio_vocabulary
from diversity_jax.tokenizers.tokenizer import load_tokenizer

vocabulary = seqio_vocabulary(load_tokenizer({vocabulary!r}))
seqio.TaskRegistry.add(
    "bench",
    source=seqio.TextLineDataSource({{"train": {source!r}}}),
    preprocessors=[
        lambda dataset: dataset.map(lambda text: {{"targets": text}}),
        seqio.preprocessors.tokenize,
        seqio.CacheDatasetPlaceholder(),
        seqio.preprocessors.append_eos,
    ],
    output_features={{"targets": seqio.Feature(vocabulary, add_eos=True, dtype=tf.int32)}},
)
"""


@dataclass(frozen=True)
class Text:
    """The same documents as both sides read them: one a line, and as JSON Lines; in one file a core."""

    lines: str
    jsonl: str


def documents(tokens: int, most: int, tokenizer: Tokenizer, text: str | None) -> list[str]:
    """Documents of about so many tokens, cut out of a JSON Lines file or of the prose of this machine's packages."""
    source = CorpusConfig(source=text or "installed_docs:prose", max_documents=None if text else most)
    joined = " ".join(" ".join(document.text.split()) for document in open_corpus(source))
    sample = joined[: 1 << 20]
    size, parts, start = round(tokens * len(sample) / int(tokenizer.encode_batch([sample])[1][0])), list[str](), 0
    while start + size < len(joined) and len(parts) < most:
        end = joined.find(" ", start + size)
        parts.append(joined[start : end if end > 0 else len(joined)])
        start += len(parts[-1]) + 1
    return parts


def write_text(folder: Path, name: str, texts: list[str]) -> Text:
    files = usable_cores()
    for number in range(files):
        part = texts[number::files]
        (folder / f"{name}-{number}.txt").write_text("\n".join(part))
        (folder / f"{name}-{number}.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in part))
    return Text(lines=str(folder / f"{name}-*.txt"), jsonl=str(folder / f"{name}-*.jsonl"))


def command_seconds(command: list[str], **environment: str) -> np.ndarray:
    """CPU and wall-clock seconds that a command and all that it starts take."""
    known = {**os.environ, **environment}
    with ChildTimes() as times:
        done = subprocess.run(command, cwd=ROOT, env=known, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"{' '.join(command)}\n{done.stderr[-2000:]}")
    return np.array([times.cpu_seconds, times.seconds])


def our_job(text: Text, vocabulary: str, length: int, folder: Path) -> tuple[int, np.ndarray]:
    """Tokens prepared, and seconds."""
    folder.mkdir()
    config = folder / "prepare_config.py"
    config.write_text(
        _PREPARE_CONFIG.format(length=length, output=str(folder / "rows"), source=text.jsonl, vocabulary=vocabulary)
    )
    seconds = command_seconds([sys.executable, "-m", "diversity_jax.mixtures.prepare", "--config", str(config)])
    split = Manifest.load(folder / "rows" / "manifest.json").splits["train"]
    return split.tokens + split.dropped_tokens, seconds


def cache_job(text: Text, vocabulary: str, options: str, folder: Path) -> tuple[int, np.ndarray]:
    """Tokens that SeqIO's job wrote (it leaves out end-of-text, which is appended when its cache is read), and
    seconds.
    """
    folder.mkdir()
    (folder / "bench_prepare_task.py").write_text(_SEQIO_TASK.format(source=text.lines, vocabulary=vocabulary))
    words = [
        "--tasks=bench",
        f"--output_cache_dir={folder / 'cache'}",
        "--module_import=bench_prepare_task",
        f"--pipeline_options={options}",
    ]
    shards = f"{usable_cores()}"
    command = [
        sys.executable,
        "-m",
        "seqio.scripts.cache_tasks_main",
        *words,
        f"--min_shards={shards}",
        f"--max_shards={shards}",
    ]
    paths = os.pathsep.join([str(folder), str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    seconds = command_seconds(command, PYTHONPATH=paths)
    results = json.loads((folder / "cache" / "bench" / "stats.train.json").read_text())
    return results["targets_tokens"] + results["examples"], seconds


def datatrove_job(text: Text, tokenizer: Tokenizer, python: str, folder: Path) -> tuple[int, np.ndarray]:
    """Tokens that datatrove wrote, and seconds."""
    folder.mkdir()
    source, script = Path(text.jsonl), ROOT / "scripts" / "benchmarks" / "peers" / "datatrove_tokens.py"
    end = tokenizer.token_text(tokenizer.end_of_text_id)
    words = [str(source.parent), source.name, tokenizer.files[0], end, str(folder), str(usable_cores())]
    seconds = command_seconds([python, str(script), *words], PYTHONPATH="")
    sizes = [path.stat().st_size for path in (folder / "tokens").glob("*.ds")]
    return sum(sizes) // 2, seconds


def pipeline(text: Text, tokenizer: Tokenizer, length: int, name: str) -> tuple[int, float]:
    """Tokens that SeqIO's pipeline packed, and CPU seconds of this process."""
    from diversity_jax.core.tensorflow import seqio, tf
    from diversity_jax.mixtures.seqio_rows import seqio_vocabulary

    feature = seqio.Feature(seqio_vocabulary(tokenizer), add_eos=True, dtype=tf.int32)
    steps = [
        lambda ds: ds.map(lambda line: {"targets": line}),
        seqio.preprocessors.tokenize,
        seqio.preprocessors.append_eos,
    ]
    source = seqio.TextLineDataSource({"train": text.lines})
    task = seqio.Task(name, source=source, preprocessors=steps, output_features={"targets": feature})
    began = time.process_time()
    dataset = task.get_dataset({"targets": length}, "train", shuffle=False)
    rows = seqio.DecoderFeatureConverter(pack=True)(dataset, {"targets": length})
    tokens = sum(int((row["decoder_segment_ids"] > 0).sum()) for row in rows.as_numpy_iterator())
    return tokens, time.process_time() - began


def median_rates(jobs: dict, text: Text, few: Text | None, folder: Path, repeats: int) -> dict[str, np.ndarray]:
    """For each job, tokens a CPU second past its start-up, and with it; the same twice without `few`."""
    spent: dict[str, list[tuple[float, float]]] = {name: [] for name in jobs}
    counts = {}
    for repeat in range(repeats):
        for number, (name, job) in enumerate(jobs.items()):
            few_tokens, start_up = job(few, folder / f"few-{number}-{repeat}") if few else (0, np.zeros(2))
            tokens, seconds = job(text, folder / f"{number}-{repeat}")
            spent[name].append((seconds[0], start_up[0]))
            counts[name] = tokens, few_tokens
            line = f"  {name}: {tokens:,} tokens, {seconds[0]:.2f} CPU s ({start_up[0]:.2f} of start-up), "
            print(f"{line}{seconds[1]:.1f} s", flush=True)
    rates = {}
    for name, (tokens, few_tokens) in counts.items():
        full_run, start_up = (statistics.median(values) for values in zip(*spent[name], strict=True))
        rates[name] = np.array([(tokens - few_tokens) / max(full_run - start_up, 0.01), tokens / full_run])
    return rates


def report(tokens: int, tokenizer: Tokenizer, vocabulary: str, args: argparse.Namespace, folder: Path) -> None:
    texts, kind = documents(tokens, args.documents, tokenizer, args.text), f"documents_{tokens}"
    text, few = write_text(folder, kind, texts), write_text(folder, f"few_{tokens}", texts[:_FEW])
    workers = f"--runner=DirectRunner,--direct_running_mode=multi_processing,--direct_num_workers={usable_cores()}"
    jobs = {"ours": lambda text, position: our_job(text, vocabulary, args.length, position)}
    if "seqio" in args.peers:
        jobs["SeqIO's cache job"] = lambda text, position: cache_job(
            text, vocabulary, "--runner=DirectRunner", position
        )
    if args.processes:
        jobs["the same, one process a core"] = lambda text, position: cache_job(text, vocabulary, workers, position)
    if args.datatrove_python:
        jobs["datatrove"] = lambda text, position: datatrove_job(text, tokenizer, args.datatrove_python, position)
    position = folder / f"{kind}-jobs"
    position.mkdir()
    mean, characters = np.mean(tokenizer.encode_batch(texts[:2000])[1]), sum(map(len, texts))
    print(f"{len(texts):,} documents of {mean:.0f} tokens, {characters / 1e6:.1f} million characters", flush=True)
    rates = median_rates(jobs, text, few if args.start_up else None, position, args.repeats)
    if "pipeline" in args.peers:
        pipeline(few, tokenizer, args.length, f"{kind}_warm")
        packed = [pipeline(text, tokenizer, args.length, f"{kind}_{repeat}") for repeat in range(args.repeats)]
        median = statistics.median(count / seconds for count, seconds in packed)
        rates["SeqIO's pipeline, not written"] = np.array([median])
    print(f"{'tokens a CPU second':<32}{'past start-up':>14}{'ours is':>10}{'with it':>14}{'ours is':>10}")
    for name, rate in rates.items():
        columns = (f"{value:>14,.0f}{ours / value:>9.2f}x" for value, ours in zip(rate, rates["ours"], strict=False))
        print(f"{name:<32}{''.join(columns)}", flush=True)


def main() -> None:
    flags = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    flags.add_argument("--vocabulary")
    flags.add_argument("--text", help="JSON Lines; without it prose of this machine's packages")
    flags.add_argument("--tokens", type=int, nargs="+", default=(50, 1000), help="of a document, about")
    flags.add_argument("--documents", type=int, default=8000, help="at most")
    flags.add_argument("--length", type=int, default=512)
    flags.add_argument("--repeats", type=int, default=2)
    flags.add_argument("--processes", action="store_true")
    flags.add_argument("--peers", nargs="*", choices=("seqio", "pipeline"), default=("seqio", "pipeline"))
    flags.add_argument(
        "--start-up", action=argparse.BooleanOptionalAction, default=True, help="time that by itself too"
    )
    flags.add_argument("--datatrove-python", help="of an environment that holds datatrove and tokenizers")
    args = flags.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        vocabulary = args.vocabulary
        if vocabulary is None:
            prose = Component(
                name="prose", kind="real", corpus=CorpusConfig(source="installed_docs:prose", max_documents=4000)
            )
            texts = sampled_texts([prose], [Fraction(1)], characters=2_000_000, seed=0)
            vocabulary = str(train_tokenizer(texts, folder / "bench.model", vocab_size=8192))
        vocabulary = str(Path(vocabulary).resolve())
        tokenizer = load_tokenizer(vocabulary)
        for tokens in args.tokens:
            report(tokens, tokenizer, vocabulary, args, folder)


if __name__ == "__main__":
    started = time.time()
    main()
    print(f"done in {time.time() - started:.0f} s")
