"""Damages files of every format that comes from outside, and reads them: each is read, or refused in one line.

    python scripts/checks/fuzz_files.py [--inputs 1000] [--seed 0] [--formats jsonl,gguf]

Every format is fuzzed in a process of its own, since the libraries below may end it; then the last seed is printed.
Exit status 1: something else than a line came out, one took over 5 s, or memory grew beyond 2 GB.
"""

import argparse
from collections import Counter
from collections.abc import Callable
import contextlib
from fractions import Fraction
import io
import json
import logging
import os
from pathlib import Path
import random
import resource
import subprocess
import sys
import tarfile
import tempfile
import time
import traceback
import warnings

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

import numpy as np  # noqa: E402

from diversity_jax.core.errors import InputError  # noqa: E402
from tests.changed_json import changed_at  # noqa: E402
from tests.mixture_folders import build_mixture  # noqa: E402

GOLDEN = ROOT / "tests" / "golden" / "written_by_fdaef38"
SLOW_SECONDS = 5.0
MOST_BYTES = 2 << 30
Format = tuple[Path, Callable[[], object]]
"""The file that is damaged, and what reads it."""


def _unpacked(folder: Path, *archives: str) -> Path:
    for name in archives:
        with tarfile.open(GOLDEN / f"{name}.tar.gz") as packed:
            packed.extractall(folder, filter="data")
    return folder


def _texts(folder: Path, ending: str, content: bytes) -> Format:
    from diversity_jax.corpus import open_corpus

    path = folder / f"texts{ending}"
    path.write_bytes(content)
    return path, lambda: list(open_corpus(str(path)))


def jsonl(folder: Path) -> Format:
    """A corpus in JSON Lines."""
    lines = [json.dumps({"text": f"a text of {number} words", "n": [number, {"a": None}]}) for number in range(20)]
    return _texts(folder, ".jsonl", "\n".join(lines).encode())


def jsonl_gz(folder: Path) -> Format:
    """A compressed corpus."""
    import gzip

    return _texts(folder, ".jsonl.gz", gzip.compress(b'{"text": "some words"}\n' * 50))


def tfrecord(folder: Path) -> Format:
    """A corpus of TensorFlow examples."""
    import tensorflow as tf

    path = folder / "texts.tfrecord"
    with tf.io.TFRecordWriter(str(path)) as writer:
        for number in range(10):
            text = tf.train.Feature(bytes_list=tf.train.BytesList(value=[f"text {number}".encode()]))
            writer.write(tf.train.Example(features=tf.train.Features(feature={"text": text})).SerializeToString())
    return _texts(folder, ".tfrecord", path.read_bytes())


def _model(folder: Path) -> Path:
    import jax

    from diversity_jax.model.checkpoint_io.hugging_face import export_hugging_face
    from diversity_jax.model.config import LlamaConfig
    from diversity_jax.model.llama import init_params
    from diversity_jax.tokenizers.files import named_tokenizer, write_tokenizer

    config = LlamaConfig(vocab_size=300, hidden_size=16, intermediate_size=32, num_layers=2, num_heads=2, max_length=32)
    params = jax.tree.map(np.asarray, init_params(config, jax.random.key(0)))
    export_hugging_face(config, params, folder / "model")
    write_tokenizer(named_tokenizer("bytes"), folder / "model", vocab_size=300)
    return folder / "model"


def safetensors(folder: Path) -> Format:
    """A model's weights."""
    from diversity_jax.model.checkpoint_io.hugging_face import import_hugging_face

    model = _model(folder)
    return model / "model.safetensors", lambda: import_hugging_face(model)


def model_config(folder: Path) -> Format:
    """A model's config.json."""
    from diversity_jax.model.checkpoint_io.hugging_face import import_hugging_face

    model = _model(folder)
    return model / "config.json", lambda: import_hugging_face(model)


def gguf(folder: Path) -> Format:
    """A model in GGUF."""
    from diversity_jax.model.checkpoint_io.gguf import export_gguf, import_gguf
    from diversity_jax.model.checkpoint_io.hugging_face import import_hugging_face
    from diversity_jax.tokenizers.files import named_tokenizer

    config, params = import_hugging_face(_model(folder))
    path = folder / "model.gguf"
    export_gguf(config, params, path, tokenizer=named_tokenizer("bytes"))
    return path, lambda: import_gguf(path)


def tokenizer_json(folder: Path) -> Format:
    """A tokenizer of Hugging Face."""
    return _tokenizer(folder, "tokenizer.json")


def tokenizer_config(folder: Path) -> Format:
    """A tokenizer's settings."""
    return _tokenizer(folder, "tokenizer_config.json")


def _tokenizer(folder: Path, name: str) -> Format:
    from diversity_jax.tokenizers.tokenizer import for_folder, load_tokenizer

    model = _model(folder)
    return model / name, lambda: for_folder(load_tokenizer(str(model)), model).encode("some words")


def sentencepiece(folder: Path) -> Format:
    """A SentencePiece model."""
    from diversity_jax.tokenizers.tokenizer import load_tokenizer

    path = _unpacked(folder, "inputs") / "tokenizers" / "small.model"
    return path, lambda: load_tokenizer(str(path)).encode_batch(["some words"])


def manifest(folder: Path) -> Format:
    """A prepared component's manifest, and its rows."""
    from diversity_jax.prepare.manifest import Manifest, describe, prepared_tokenizer

    path = _unpacked(folder, "prepared") / "byte_pairs" / "manifest.json"

    def read() -> None:
        found = Manifest.load(path)
        found.check_sizes()
        describe(found)
        prepared_tokenizer(found)

    return path, read


def mixture(folder: Path) -> Format:
    """A built mixture."""
    from diversity_jax.mixtures.mixture import Mixture
    from diversity_jax.mixtures.replay import replay

    path = _unpacked(folder, "mixture") / "mixture" / "mixture.json"
    return path, lambda: (Mixture.load(path), replay(path))


def scorecard(folder: Path) -> Format:
    """A scorecard."""
    from diversity_jax.cluster_agent import Scorecard

    path = _unpacked(folder, "score") / "score_llm" / "dull" / "scorecard.json"
    return path, lambda: Scorecard.load(path)


def run_record(folder: Path) -> Format:
    """A run's record."""
    from diversity_jax.core.run_info import RunInfo

    path = _unpacked(folder, "score") / "score_llm" / "run.json"
    return path, lambda: RunInfo.load(path)


def ledger(folder: Path) -> Format:
    """Paid answers."""
    from diversity_jax.llm import BudgetConfig
    from diversity_jax.llm.response_cache import ResponseCacheFile

    path = _unpacked(folder, "score") / "score_llm" / "ledger.sqlite"

    def read() -> None:
        with contextlib.closing(ResponseCacheFile(str(path), run="fuzz", caps=BudgetConfig(), replay=True)) as cache:
            cache.find(["0" * 64])

    return path, read


def topics(folder: Path) -> Format:
    """Topics as an outline."""
    from diversity_jax.synthesis.topics import read_topics

    path = folder / "topics.jsonl"
    outline = [{"name": "algebra", "children": [{"name": "groups"}]}]
    records = [{"path": "science/physics", "keywords": "a, b"}, {"field": "mathematics", "outline": outline}]
    path.write_text("\n".join(map(json.dumps, records)))
    return path, lambda: list(read_topics(str(path)))


def topic_lines(folder: Path) -> Format:
    """Topics by indentation."""
    from diversity_jax.synthesis.topics import read_topics

    path = folder / "topics.txt"
    path.write_text("science\n  physics\tenergy, mass\n    - heat\n  biology\nart\n")
    return path, lambda: list(read_topics(str(path)))


def personas(folder: Path) -> Format:
    """Personas."""
    from diversity_jax.synthesis.topics import read_personas

    path = folder / "personas.jsonl"
    path.write_text("\n".join(json.dumps({"persona": f"a baker of {number} loaves"}) for number in range(9)))
    return path, lambda: read_personas(str(path), "persona")


def _tokens(folder: Path, to: str, name: str, source: str) -> Format:
    """A small export in one of the formats that are imported too, and its import."""
    from diversity_jax.mixtures.exchange.export import ExportRequest, export
    from diversity_jax.mixtures.exchange.token_files import open_token_set
    from diversity_jax.mixtures.mixture import Mixture

    root = folder / "exported"
    mixture = Mixture.load(build_mixture(folder / "mixture", {"made": Fraction(1)}, documents=30))
    export(mixture, root, ExportRequest(to=to, rows=40))

    def read() -> None:
        found = open_token_set(str(root / source))
        found.fingerprint()
        for ids, lengths in found.blocks(1000):
            assert len(ids) == lengths.sum()

    return root / name, read


def megatron_index(folder: Path) -> Format:
    """The index of a Megatron set."""
    return _tokens(folder, "megatron", "data/train.idx", "data/train")


def megatron_tokens(folder: Path) -> Format:
    """The ids of a Megatron set."""
    return _tokens(folder, "megatron", "data/train.bin", "data/train")


def mds_index(folder: Path) -> Format:
    """The index of an MDS set."""
    return _tokens(folder, "mds", "data/index.json", "data")


def mds_shard(folder: Path) -> Format:
    """A shard of an MDS set."""
    return _tokens(folder, "mds", "data/shard.00000.mds", "data")


def levanter_ledger(folder: Path) -> Format:
    """The ledger of a Levanter cache."""
    return _tokens(folder, "levanter", "data/train/shard_ledger.json", "data/train")


def levanter_array(folder: Path) -> Format:
    """The metadata of an array in a Levanter cache."""
    return _tokens(folder, "levanter", "data/train/part-00000/input_ids/offsets/zarr.json", "data/train")


def levanter_chunk(folder: Path) -> Format:
    """Ids in a Levanter cache."""
    return _tokens(folder, "levanter", "data/train/part-00000/input_ids/data/c/0", "data/train")


def array_record(folder: Path) -> Format:
    """An ArrayRecord file of examples."""
    return _tokens(folder, "array_record", "data/train-00000-of-00001.arrayrecord", "data")


def datatrove_index(folder: Path) -> Format:
    """Where documents end in a datatrove file."""
    from diversity_jax.mixtures.exchange.token_files import open_token_set

    np.arange(600).astype("<u2").tofile(folder / "set.ds")
    np.array([100, 350, 600]).astype("<u8").tofile(folder / "set.ds.index")
    return folder / "set.ds.index", lambda: list(open_token_set(str(folder / "set.ds")).blocks(200))


def export_record(folder: Path) -> Format:
    """The record of an export."""
    from diversity_jax.mixtures.exchange.export import verify

    path, _ = _tokens(folder, "mds", "export.json", "data")
    return path, lambda: verify(path.parent)


FORMATS: dict[str, Callable[[Path], Format]] = {
    make.__name__: make
    for make in (
        *(jsonl, jsonl_gz, tfrecord, safetensors, model_config, gguf, tokenizer_json, tokenizer_config),
        *(sentencepiece, manifest, mixture, scorecard, run_record, ledger, topics, topic_lines, personas),
        *(megatron_index, megatron_tokens, mds_index, mds_shard, levanter_ledger, levanter_array, levanter_chunk),
        *(array_record, datatrove_index, export_record),
    )
}


def damaged(original: bytes, generator: random.Random) -> bytes:
    """Changed bytes, or a wrong value in a field where the file is JSON."""
    if original[:1] == b"{" and generator.random() < 0.5:
        with contextlib.suppress(ValueError):
            return json.dumps(changed_at(json.loads(original), generator)).encode()
    data = bytearray(original)
    for _ in range(generator.choice((1, 1, 2, 5))):
        at = generator.randrange(len(data) + 1)
        length = min(generator.choice((1, 1, 4, 8, 200)), len(data) - at)
        kind = generator.randrange(5)
        if kind == 0:
            del data[at : at + length]
        elif kind == 1:
            data[at : at + length] = generator.randbytes(length)
        elif kind == 2:
            data[at:at] = data[at : at + length] * generator.choice((1, 2, 50))
        elif kind == 3:
            data[at : at + length] = generator.choice((b"\xff", b"\0", b"\x7f", b"9")) * length
        elif data:
            data[at:] = b""
    return bytes(data)


def fuzz(name: str, inputs: int, seed: int) -> int:
    """Reads that many damaged files of one format; returns how often it went wrong."""
    warnings.simplefilter("ignore")
    logging.disable()
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    with tempfile.TemporaryDirectory() as folder:
        path, read = FORMATS[name](Path(folder))
        original, outcomes, wrong = path.read_bytes(), Counter[str](), Counter[str]()
        read()
        for number in range(inputs):
            path.write_bytes(damaged(original, random.Random(f"{name}/{seed}/{number}")))
            print(f"{name}/{seed}/{number}", file=sys.stderr, end="\r")
            began = time.process_time()
            try:
                with contextlib.redirect_stdout(io.StringIO()):
                    read()
                outcomes["read"] += 1
            except InputError as error:
                is_line = "\n" not in str(error) and len(str(error)) < 1500
                outcomes["refused"] += 1
                wrong[f"a message of {len(str(error))} characters"] += not is_line
            except BaseException as error:
                frames = traceback.extract_tb(error.__traceback__)
                own = [frame for frame in frames if "diversity_jax/" in frame.filename]
                where = f"{Path(own[-1].filename).name}:{own[-1].lineno}" if own else "?"
                wrong[f"{type(error).__name__} at {where} ({str(error)[:80]!r}), first at input {number}"] += 1
                if isinstance(error, KeyboardInterrupt):
                    raise
            if time.process_time() - began > SLOW_SECONDS:
                wrong[f"over {SLOW_SECONDS} s at input {number}"] += 1
        path.write_bytes(original)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        if peak > MOST_BYTES:
            wrong[f"{peak / 2**30:.1f} GB of memory"] += 1
    kept = {what: count for what, count in wrong.items() if count}
    print(f"{name}: {inputs:,} inputs, {outcomes['refused']:,} refused in one line, {outcomes['read']:,} read")
    for what, count in kept.items():
        print(f"  WRONG {count:,} times: {what}")
    return len(kept)


def main() -> int:
    """Fuzzes the formats asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--inputs", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--formats", default=",".join(FORMATS))
    options = parser.parse_args()
    names = options.formats.split(",")
    if len(names) == 1:
        return bool(fuzz(names[0], options.inputs, options.seed))
    failed = False
    for name in names:
        command = [sys.executable, __file__, "--formats", name, f"--inputs={options.inputs}", f"--seed={options.seed}"]
        finished = subprocess.run(
            command, stderr=subprocess.PIPE, text=True, env={**os.environ, "JAX_PLATFORMS": "cpu"}
        )
        if finished.returncode not in (0, 1):
            print(f"{name}: ENDED with {finished.returncode} at input {finished.stderr.split(chr(13))[-2:]}")
        failed |= finished.returncode != 0
    return failed


if __name__ == "__main__":
    sys.exit(main())
