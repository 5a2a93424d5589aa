"""The files that `fuzz_files.py` damages, each with what reads it: one function a format, named as the format is."""

from collections.abc import Callable
import contextlib
import functools
import importlib
import json
from pathlib import Path
import sys
import tarfile

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

import numpy as np  # noqa: E402

from scripts.checks.fuzz_formats_exchange import EXCHANGE  # noqa: E402

GOLDEN = ROOT / "tests" / "golden" / "written_by_fdaef38"
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


def _compressed(folder: Path, ending: str, by: str) -> Format:
    """A corpus of equal lines, compressed by a module's `compress`."""
    return _texts(folder, ending, importlib.import_module(by).compress(b'{"text": "some words"}\n' * 50))


def tfrecord(folder: Path) -> Format:
    """A corpus of TensorFlow examples."""
    import tensorflow as tf

    path = folder / "texts.tfrecord"
    with tf.io.TFRecordWriter(str(path)) as writer:
        for number in range(10):
            text = tf.train.Feature(bytes_list=tf.train.BytesList(value=[f"text {number}".encode()]))
            writer.write(tf.train.Example(features=tf.train.Features(feature={"text": text})).SerializeToString())
    # Making the pipeline takes 20 ms and opens no file; the one of a path is made once.
    tf.data.TFRecordDataset = functools.cache(tf.data.TFRecordDataset)
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
        manifest = Manifest.load(path)
        manifest.check_sizes()
        describe(manifest)
        prepared_tokenizer(manifest)

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


def response_cache(folder: Path) -> Format:
    """A response cache."""
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


def safetensors_index(folder: Path) -> Format:
    """The index of weights in several files."""
    from safetensors import safe_open

    from diversity_jax.model.checkpoint_io.hugging_face import import_hugging_face

    model = _model(folder)
    with safe_open(model / "model.safetensors", "numpy") as file:
        names = list(file.keys())
    (model / "model.safetensors").rename(model / "model-00001-of-00001.safetensors")
    path = model / "model.safetensors.index.json"
    path.write_text(json.dumps({"weight_map": dict.fromkeys(names, "model-00001-of-00001.safetensors")}))
    return path, lambda: import_hugging_face(model)


def chat_template(folder: Path) -> Format:
    """A tokenizer's chat template, rendered."""
    from diversity_jax.tokenizers.chat_template import render_chat

    path = folder / "chat_template.jinja"
    path.write_text(
        "{% for message in messages %}<|{{ message['role'] }}|>{{ message.content | trim }}{{ eos_token }}"
        "{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
    )
    turns = [{"role": "user", "content": "a question"}, {"role": "assistant", "content": "an answer"}]
    return path, lambda: render_chat(turns, template=path.read_text(errors="replace"))


def evaluation_results(folder: Path) -> Format:
    """Results of an evaluation that another is compared with."""
    from diversity_jax.evaluation.results import load_results

    path = _unpacked(folder, "evaluation") / "evaluation" / "results.json"
    return path, lambda: load_results(path.parent)


def evaluation_samples(folder: Path) -> Format:
    """The items of an evaluation."""
    from diversity_jax.evaluation.results import outcomes, read_samples

    path = _unpacked(folder, "evaluation") / "evaluation" / "samples" / "copa.jsonl.gz"
    return path, lambda: outcomes(read_samples(path.parents[1], "copa"), "acc")


def evaluation_items(folder: Path) -> Format:
    """The items of a benchmark."""
    from diversity_jax.evaluation.tasks import BY_TASK, read_items

    path = _unpacked(folder, "inputs") / "benchmarks" / "copa_validation.jsonl.gz"
    return path, lambda: read_items(path, BY_TASK["copa"].check)


def benchmark_texts(folder: Path) -> Format:
    """Benchmark items that rows are decontaminated of."""
    from diversity_jax.prepare.decontaminate import _items

    path = _unpacked(folder, "inputs") / "benchmarks" / "copa_validation.jsonl.gz"
    return path, lambda: list(_items(str(path)))


def prompts(folder: Path) -> Format:
    """Prompts to generate from."""
    from diversity_jax.evaluation.run import read_prompts

    path = folder / "prompts.jsonl"
    path.write_text('{"prompt": "a"}\n{"messages": [{"role": "user", "content": "b"}]}\n')
    return path, lambda: read_prompts(str(path))


def criteria(folder: Path) -> Format:
    """Criteria written by hand."""
    from diversity_jax.cluster_agent.criteria import load_criteria

    path = folder / "criteria.json"
    metric = {"name": "depth", "definition": "how deep", "guidance": "look", "levels": list("abcde")}
    path.write_text(
        json.dumps({"metadata": [{"name": "topic", "definition": "what", "guidance": ""}], "metrics": [metric]})
    )
    return path, lambda: load_criteria(str(path))


def template(folder: Path) -> Format:
    """A template of synthesis."""
    from diversity_jax.synthesis.templates import load_template

    path = folder / "mine.json"
    path.write_text(json.dumps({"name": "mine", "system": "Write.", "user": "On {topic}.", "passages": [3, 5]}))
    return path, lambda: load_template(str(path))


def prices(folder: Path) -> Format:
    """Prices of models."""
    from diversity_jax.llm.budget import _table

    path = folder / "prices.json"
    path.write_text(json.dumps({"models": {"openai": {"one": {"input": 1.0, "output": 2.0, "cached_input": None}}}}))
    return path, lambda: _table.__wrapped__(str(path))


def training_log(folder: Path) -> Format:
    """A run's metrics, summary and samples."""
    from diversity_jax.training import log

    path = folder / "metrics.jsonl"
    path.write_text("".join(json.dumps({"step": step, "loss": 2.0 / step, "lr": None}) + "\n" for step in range(1, 9)))
    return path, lambda: log.read(path)


def run_settings(folder: Path) -> Format:
    """A training run's record, read to load its model and tokenizer."""
    from diversity_jax.model.convert import read_config
    from diversity_jax.tokenizers.files import model_tokenizer

    path = _unpacked(folder, "run") / "run" / "run.json"
    return path, lambda: (read_config(path.parent), model_tokenizer(path.parent))


def model_json(folder: Path) -> Format:
    """The description of an imported model."""
    from diversity_jax.model.convert import read_config

    path = _unpacked(folder, "run") / "imported" / "model.json"
    return path, lambda: read_config(path.parent)


def checkpoint_record(folder: Path) -> Format:
    """The record of a checkpoint in a bucket, and its arrays."""
    import jax

    from diversity_jax.core.errors import InputError
    from diversity_jax.core.files import write_json
    from diversity_jax.model.checkpoint_io import shards

    device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    tree = {"params": {"a": jax.device_put(np.ones((4, 3), np.float32), device)}}
    shard_records = shards.write(folder, "part", shards.snapshot(tree))
    path = folder / shards.RECORD
    write_json(path, shards.record(tree, shard_records, {"fingerprint": 3}))
    wanted = {"params": {"a": jax.ShapeDtypeStruct((4, 3), np.float32, sharding=device)}}

    def read() -> None:
        try:
            record = shards.read_record(folder)
            if record is None:
                raise InputError("no checkpoint")
            shards.read(folder, record, wanted)
        except shards.DamagedCheckpoint as error:  # the caller prints a line and reads the checkpoint before
            raise InputError(str(error)) from None

    return path, read


def study_analysis(folder: Path) -> Format:
    """The analysis of a study, whose page is drawn again."""
    from diversity_jax.study.analysis import draw

    path = _unpacked(folder, "study") / "study" / "analysis.json"
    return path, lambda: draw(path.parent)


def bucket_lock(folder: Path) -> Format:
    """The lock of a folder in a bucket."""
    from diversity_jax.core.artifacts import _Lease
    from diversity_jax.core.files import write_json

    path = folder / ".lock"
    write_json(path, {"holder": "process 999999 on here", "lease": "0", "place": "x", "began": "1", "renewed": 1.0})
    return path, lambda: _Lease.read(str(path)).is_abandoned()


_OF_A_TOKENIZER = {
    "tokenizer_json": "tokenizer.json",
    "tokenizer_config": "tokenizer_config.json",
    "generation_config": "generation_config.json",
}
_COMPRESSED = {
    "jsonl_gz": (".jsonl.gz", "gzip"),
    "text_gz": (".txt.gz", "gzip"),
    "jsonl_zst": (".jsonl.zst", "zstandard"),
    "jsonl_xz": (".jsonl.xz", "lzma"),
}
_FORMATS = (
    *(jsonl, tfrecord, safetensors, model_config, gguf, sentencepiece, manifest),
    *(mixture, scorecard, run_record, response_cache, topics, topic_lines, personas, safetensors_index, chat_template),
    *(evaluation_results, evaluation_samples, evaluation_items, benchmark_texts, prompts, criteria),
    *(template, prices, training_log, run_settings, model_json, checkpoint_record, study_analysis, bucket_lock),
)
FORMATS: dict[str, Callable[[Path], Format]] = {
    **{make.__name__: make for make in _FORMATS},
    **{name: functools.partial(_tokenizer, name=file) for name, file in _OF_A_TOKENIZER.items()},
    **{name: functools.partial(_compressed, ending=end, by=by) for name, (end, by) in _COMPRESSED.items()},
    **EXCHANGE,
}
