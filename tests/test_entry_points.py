"""The main commands as a user types them, and one line of error that says what, where and what to do."""

from fractions import Fraction
import gzip
import json
import os
from pathlib import Path
import subprocess
import sys

import pytest

from tests.json_lines import json_lines
from tests.mixture_folders import build_mixture

ROOT = Path(__file__).resolve().parents[1]

CONFIG = """
from diversity_jax.cluster_agent import AgentConfig
from diversity_jax.training.run import Config
from diversity_jax.corpus import CorpusConfig
from diversity_jax.mixtures.component import Component, GatePolicy, MixtureConfig
from diversity_jax.model import LLAMA
from diversity_jax.training.config import OptimizerConfig
from diversity_jax.training.settings import TrainConfig

def get_config():
    policy = GatePolicy(min_ratio_to={{"real": 0.3}}, on_fail="reject")
    return Config(
        output_dir={output!r},
        mixture=MixtureConfig(
            name="cli",
            components=(
                Component(name="web", kind="real", corpus={folder!r} + "/web.jsonl"),
                Component(name="varied", kind="synthetic", corpus={folder!r} + "/varied.jsonl", policy=policy),
                Component(name="dull", kind="synthetic", corpus={folder!r} + "/dull.jsonl.gz", policy=policy),
            ),
            real_to_synthetic=(1, 1),
            sequence_length=32,
            validation_share=0.1,
        ),
        agent=AgentConfig(groupings=150),
        model=LLAMA["llama_tiny"](vocab_size=384, num_layers=1, hidden_size=32, intermediate_size=64, num_heads=2),
        optimizer=OptimizerConfig(learning_rate=1e-2),
        train=TrainConfig(steps=12, batch_size=8, log_every=4, eval_batches=1, tensorboard=False),
    )
"""


def run(module, *arguments, cwd=ROOT):
    environment = {
        **os.environ,
        "JAX_PLATFORMS": "cpu",
        "JAX_COMPILATION_CACHE_DIR": str(ROOT / ".jax_cache"),
    }
    environment["PYTHONPATH"] = str(ROOT)
    command = [sys.executable, "-m", f"diversity_jax.{module}", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd, env=environment, timeout=300, check=False)


def error_of(done):
    assert done.returncode == 2, (done.stdout, done.stderr)
    lines = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1, done.stderr
    assert "Traceback" not in done.stderr
    return lines[0]


def write_text(folder):
    """Real text over 60 subjects, synthetic text over 60, and synthetic text over 2."""
    from diversity_jax.synthesis.demo_grammar import GrammarConfig, write_component

    write_component(GrammarConfig(topics=60, documents=300, seed=1), folder / "web.jsonl")
    write_component(GrammarConfig(topics=60, documents=300, seed=2), folder / "varied.jsonl")
    write_component(GrammarConfig(topics=2, documents=300, seed=3), folder / "dull.jsonl.gz")


@pytest.fixture(scope="module")
def prepared_run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("a place with spaces")
    write_text(folder)
    config = folder / "config.py"
    config.write_text(CONFIG.format(output=str(folder / "out"), folder=str(folder)))
    return folder, config


@pytest.mark.slow
def test_the_main_job_gates_trains_and_writes_its_page(prepared_run):
    folder, config = prepared_run
    done = run("train", "--config", config)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == str(folder / "out" / "report.html")
    mixture = json.loads((folder / "out" / "mixture" / "mixture.json").read_text())
    actions = {part["name"]: part["decision"]["action"] for part in mixture["components"]}
    assert actions == {"web": "register", "varied": "register", "dull": "reject"}
    granted = {part["name"]: Fraction(part["share_granted_exact"]) for part in mixture["components"]}
    assert granted == {"web": Fraction(1, 2), "varied": Fraction(1, 2), "dull": 0}
    losses = json_lines(folder / "out" / "metrics.jsonl")
    held_out = [line["eval/loss"] for line in losses if "eval/loss" in line]
    assert held_out[-1] < held_out[0] - 1
    again = run("train", "--config", config)
    assert again.returncode == 0
    assert "going on from step 12" in again.stderr


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--config.train.stps=3"], "did you mean 'steps'?"),
        (["--config.train.steps=three"], "is not a value of type int"),
        (["--config.mixture.vocabulary=tokenizer"], "vocabulary 'tokenizer' is unknown"),
        (["--config.mixture.components[0].corpus.source=nowhere.jsonl"], "nowhere.jsonl: no such file"),
        (["--config.mixture.components[0].corpus.text_field=body"], "body"),
        (["--config.mixture.real_to_synthetic=none"], "shares sum to 3"),
        (["--config.model.vocab_size=100"], "the mixture's tokenizer has 259 ids"),
        (["--config.mesh.fsdp=3"], "needs 3 devices but there are 1"),
        (["--config.train.gradient_accumulation=3"], "must be a multiple of"),
        (["--config.prepared=nowhere"], "nowhere: no such file"),
        (["--config.judge=oracle"], "oracle"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_bad_settings_are_one_clear_line(prepared_run, arguments, words, tmp_path):
    done = run("train", "--config", prepared_run[1], *arguments, f"--config.output_dir={tmp_path / 'out'}")
    assert words in error_of(done)
    assert not (tmp_path / "out").exists()


def test_prepared_rows_of_another_length_are_refused(prepared_run, tmp_path):
    built = build_mixture(tmp_path, {"web": Fraction(1)}, sequence_length=300)
    fields = [f"--config.prepared={built}", f"--config.output_dir={tmp_path / 'out'}", "--config.model.max_length=256"]
    assert "rows predict 300 tokens" in error_of(run("train", "--config", prepared_run[1], *fields))


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("empty.jsonl", b"", "empty.jsonl"),
        ("broken.jsonl", b'{"text": "one document here"}\n{"text": \n', "broken.jsonl:2"),
        ("latin.jsonl", b'{"text": "one document here"}\n{"text": "caf\xe9"}\n', "latin.jsonl:2"),
        ("cut.jsonl.gz", gzip.compress(b'{"text": "one document here"}\n' * 1000, mtime=0)[:40], "cut.jsonl.gz"),
    ],
)
def test_bad_text_is_named_by_file_and_line(tmp_path, name, content, words):
    (tmp_path / name).write_bytes(content)
    done = run(
        "score",
        "--config",
        "configs/score.py",
        f"--config.corpus={tmp_path / name}",
        f"--config.output_dir={tmp_path / 'out'}",
    )
    assert words in error_of(done)
    assert not (tmp_path / "out" / "scorecard.json").exists()


def test_help_says_how_to_call(tmp_path):
    done = run("train", "--help")
    assert done.returncode == 0
    assert "--config configs/quickstart.py" in done.stdout


def test_names_joined_by_commas_are_a_tuple():
    from diversity_jax.core.config import parse
    from diversity_jax.synthesis.config import GenerateConfig

    given = ["--config", str(ROOT / "configs" / "generate.py"), "--config.grid.topic_counts=100,300"]
    for written in ("topic,topic_styles", "('topic', 'topic_styles')"):
        grid = parse([*given, f"--config.grid.templates={written}"], GenerateConfig).grid
        assert (grid.templates, grid.topic_counts) == (("topic", "topic_styles"), (100, 300))
