"""The scoring command with llama.cpp as the server, which enforces schemas, and an untrained tiny Llama: most groupings
are dropped, which the run has to survive and report.
"""

import collections
import gzip
import json
import os
from pathlib import Path
import random
import sqlite3
import subprocess
import sys

import jax
import pytest

from diversity_jax.model import LlamaConfig, init_params
from diversity_jax.model.checkpoint_io.gguf import export_gguf
from diversity_jax.model.convert import write_imported
from diversity_jax.tokenizers.files import TokenizerFiles
from tests.json_lines import json_lines
from tests.llama_cpp_server import serve_gguf

ROOT = Path(__file__).resolve().parents[1]
STAGES = {
    "propose_criteria",
    "summarize_metadata",
    "summarize_metrics",
    "define_criteria",
    "cluster_samples",
    "verify_clusters",
}
GROUPINGS = 12
VOCABULARY = 1000


def train_tokenizer(path):
    """Byte-level BPE of ASCII alone: a model that knows nothing would write bytes that are no UTF-8, which the server
    answers with 500.
    """
    import tokenizers

    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE())
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=VOCABULARY, special_tokens=["<|endoftext|>"], show_progress=False
    )
    lines = (ROOT / "diversity_jax/cluster_agent/prompts.toml").read_text().splitlines()
    tokenizer.train_from_iterator([*lines, "".join(map(chr, range(32, 127)))], trainer)
    tokenizer.save(str(path))
    return path


def random_model():
    """Sizes and weights of a model that has learnt nothing."""
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=32,
        intermediate_size=64,
        num_layers=1,
        num_heads=2,
        max_length=8192,
        initializer_range=0.1,
    )
    return config, jax.device_get(init_params(config, jax.random.key(0)))


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """Address of llama.cpp with random weights."""
    pytest.importorskip("xllamacpp", reason="llama.cpp is not installed (extra llamacpp)")
    folder = tmp_path_factory.mktemp("model")
    config, params = random_model()
    tokenizer = train_tokenizer(folder / "tokenizer.json")
    path = export_gguf(
        config, params, folder / "tiny.gguf", tokenizer=TokenizerFiles(files=(tokenizer,), end_of_text_id=0)
    )
    with serve_gguf(path, context_tokens=8192, in_parallel=2) as address:
        yield address


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """60 short texts over six topics."""
    path = tmp_path_factory.mktemp("corpus") / "texts.jsonl.gz"
    draw = random.Random(0)
    with gzip.open(path, "wt") as file:
        for number in range(60):
            file.write(
                json.dumps({"text": f"topic{number % 6} {' '.join(f'word{draw.randrange(500)}' for _ in range(8))}"})
                + "\n"
            )
    return path


def score(corpus, address, output, **settings):
    values = {
        "corpus": corpus,
        "judge": "openai:tiny",
        "judge_base_url": f"{address}/v1",
        "output_dir": output,
        "agent.samples_per_grouping": 2,
        "agent.groupings": GROUPINGS,
        "agent.samples_per_proposal": 2,
        "agent.proposals": 2,
        "agent.criteria_sets": 2,
        "agent.criteria_count": 1,
        "agent.canary_share": 0,
        "agent.reasoning_words": 1,
        "agent.temperature": 1.0,
        "agent.schema_limits": True,
        "engine.max_in_flight": 2,
        **settings,
    }
    arguments = [f"--config.{name}={value}" for name, value in values.items()]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}
    environment.pop("OPENAI_API_KEY", None)
    command = [sys.executable, "-m", "diversity_jax.score", "--config", "configs/score.py", *arguments]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=240, check=False)
    assert "Traceback" not in done.stderr
    return done


def rows_of_cache(output, statement):
    connection = sqlite3.connect(output / "ledger.sqlite")
    try:
        return connection.execute(statement).fetchall()
    finally:
        connection.close()


@pytest.fixture(scope="module")
def finished_run(corpus, server, tmp_path_factory):
    """Folder of a run through all stages."""
    output = tmp_path_factory.mktemp("run")
    done = score(corpus, server, output)
    assert done.returncode == 0, done.stderr
    assert f"{GROUPINGS - scorecard(output)['dropped_groupings']} groupings" in done.stderr
    return output


def scorecard(output):
    return json.loads((output / "scorecard.json").read_text())


@pytest.mark.slow
def test_all_six_stages_are_asked_and_answered_in_schema(finished_run):
    answers = rows_of_cache(finished_run, "SELECT stage, answer FROM answers")
    assert {stage for stage, _ in answers} == STAGES
    assert rows_of_cache(finished_run, "SELECT * FROM failures") == []
    values = scorecard(finished_run)
    assert len(answers) == values["calls"]
    keys = {
        "propose_criteria": "metadata",
        "summarize_metrics": "metrics",
        "cluster_samples": "clusters",
        "verify_clusters": "validation",
    }
    for stage, answer in answers:
        assert keys.get(stage, "metadata") in json.loads(json.loads(answer))


@pytest.mark.slow
def test_our_own_server_enforces_the_schemas_of_a_run(corpus, tmp_path):
    config, params = random_model()
    write_imported(config, params, tmp_path / "model")
    train_tokenizer(tmp_path / "model" / "tokenizer.json")
    few = {"agent.groupings": 3, "agent.criteria_sets": 1, "agent.proposals": 1}
    settings = {"model.checkpoint": tmp_path / "model", "name": "tiny", "port": 0, "slots": 2}
    command = [sys.executable, "-m", "diversity_jax.serve", "--config", "configs/serve.py"]
    command += [f"--config.{name}={value}" for name, value in settings.items()]
    environment = {**os.environ, "JAX_PLATFORMS": "cpu"}
    with subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True) as server:
        address = server.stdout.readline().partition(" on ")[2].removesuffix("/v1\n")
        done = score(corpus, address, tmp_path / "run", **few)
        server.terminate()
    # Whether one of three random groupings names each sample once is luck; that all answers are in schema is not.
    assert done.returncode == 0 or "was usable (malformed" in done.stderr
    answers = rows_of_cache(tmp_path / "run", "SELECT stage, answer FROM answers")
    assert {stage for stage, _ in answers} >= STAGES - {"verify_clusters"}
    assert all(isinstance(json.loads(json.loads(answer)), dict) for _, answer in answers)
    assert rows_of_cache(tmp_path / "run", "SELECT * FROM failures") == []


@pytest.mark.slow
def test_nonsense_is_dropped_counted_and_said(finished_run):
    values = scorecard(finished_run)
    lines = json_lines(finished_run / "groupings.jsonl")
    assert len(lines) == GROUPINGS
    drops = collections.Counter(line["dropped"] for line in lines if line["dropped"])
    assert drops == values["drops"]
    # In schema every answer is JSON and names shown samples only; that each stands in one place is more than a schema
    # can say.
    assert set(drops) <= {"malformed"}
    assert values["groupings"] == GROUPINGS - drops.total() > 0
    assert values["repairs"] >= drops.total()
    assert values["tokens"]["prompt"] > 0 < values["tokens"]["completion"]
    assert values["effective_clusters"]["high"] is None
    warnings = " ".join(values["warnings"])
    assert "a lower bound, not an estimate" in warnings
    assert drops.total() <= 0.1 * GROUPINGS or "were dropped" in warnings
    assert len(values["criteria"]) == 2
    assert (finished_run / "report.html").stat().st_size > 10_000


@pytest.mark.slow
@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"agent.samples_per_grouping": 6, "agent.canary_share": 1, "agent.groupings": 3},
            "none of 3 groupings was usable",
        ),
        ({"agent.max_output_tokens": 16, "agent.groupings": 3}, "none of 3 groupings was usable (truncated 3: "),
    ],
    ids=["larger groupings with canaries", "answers cut short"],
)
def test_where_nothing_is_usable_one_line_says_so(corpus, server, finished_run, tmp_path, settings, message):
    done = score(corpus, server, tmp_path, **{"agent.criteria": finished_run / "scorecard.json"}, **settings)
    lines = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert done.returncode != 0
    assert len(lines) == 1
    assert message in lines[0]
    assert scorecard(tmp_path)["effective_clusters"] is None
    assert (tmp_path / "report.html").stat().st_size > 5000
