"""Synthesis with llama.cpp as the server, up to a training step: an untrained tiny Llama under enforced schemas passes
every template, and its documents are prepared and trained on.
"""

import json
import os
from pathlib import Path
import subprocess
import sys

import jax
import pytest

from diversity_jax.llm import EngineConfig
from diversity_jax.model import LlamaConfig, init_params
from diversity_jax.model.checkpoint_io.gguf import export_gguf
from diversity_jax.report.pages import synthesis
from diversity_jax.synthesis.config import (
    GeneratorConfig,
    GridConfig,
    PersonasConfig,
    QualityConfig,
    SynthesisConfig,
    TopicsConfig,
)
from diversity_jax.synthesis.run import run
from diversity_jax.synthesis.templates import TEMPLATES
from diversity_jax.tokenizers.files import TokenizerFiles
from tests.llama_cpp_server import serve_gguf
from tests.test_scoring_real_server import VOCABULARY, train_tokenizer

ROOT = Path(__file__).resolve().parents[1]

CONFIG = """
from diversity_jax.training.run import Config
from diversity_jax.mixtures.component import Component, GatePolicy, MixtureConfig
from diversity_jax.model import LLAMA
from diversity_jax.training.settings import TrainConfig

def get_config():
    policy = GatePolicy(ungated=True)
    made = tuple(
        Component(
            name=name,
            kind="synthetic",
            share=0.25,
            corpus=f"{folder}/{{name}}/documents/*.jsonl.zst",
            policy=policy,
        )
        for name in {names!r}
    )
    return Config(
        output_dir="{folder}/trained",
        mixture=MixtureConfig(name="made", components=made, sequence_length=32),
        model=LLAMA["llama_tiny"](vocab_size=384, num_layers=1, hidden_size=32, intermediate_size=64, num_heads=2),
        train=TrainConfig(steps=2, batch_size=4, log_every=1, eval_every=0, tensorboard=False),
    )
"""


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """Address of llama.cpp with random weights."""
    pytest.importorskip("xllamacpp", reason="llama.cpp is not installed (extra llamacpp)")
    folder = tmp_path_factory.mktemp("model")
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=32,
        intermediate_size=64,
        num_layers=1,
        num_heads=2,
        max_length=8192,
        initializer_range=0.1,
    )
    params = jax.device_get(init_params(config, jax.random.key(0)))
    tokenizer = train_tokenizer(folder / "tokenizer.json")
    with serve_gguf(
        export_gguf(
            config, params, folder / "tiny.gguf", tokenizer=TokenizerFiles(files=(tokenizer,), end_of_text_id=0)
        )
    ) as address:
        yield address


@pytest.mark.slow
def test_every_template_goes_from_a_real_server_to_a_trained_step(server, tmp_path):
    (tmp_path / "topics.txt").write_text(
        "Crafts/Pottery/Kilns\tclay, heat\nCrafts/Weaving/Looms\nCrafts/Baking/Ovens\n"
    )
    (tmp_path / "personas.txt").write_text("A baker of bread\nA student of law\nA diver in cold seas\n")
    for name in TEMPLATES:
        config = SynthesisConfig(
            output_dir=str(tmp_path / name),
            topics=TopicsConfig(source=str(tmp_path / "topics.txt")),
            personas=PersonasConfig(source=str(tmp_path / "personas.txt")),
            grid=GridConfig(templates=(name,), generations_per_topic=1),
            generators=(GeneratorConfig(model="openai:tiny", base_url=f"{server}/v1"),),
            quality=QualityConfig(min_passage_words=1, attempts=1),
            engine=EngineConfig(progress="off", max_in_flight=2),
            schema_limits=True,
        )
        store = run(config)
        written = list(store.documents())
        # A model that writes anything may write a lone surrogate, which is refused.
        assert written, list(store.rejects())
        for document in written:
            assert 3 <= len(document["passages"]) <= 5
            assert document["question"]["answer"] in document["question"]["options"]
            assert (document["persona"] is not None) == ("persona" in name)
            assert all(passage["text"] in document["text"] for passage in document["passages"])
        assert synthesis.write(store, []).exists()
    (tmp_path / "config.py").write_text(CONFIG.format(folder=tmp_path, names=tuple(TEMPLATES)))
    environment = {
        **os.environ,
        "JAX_PLATFORMS": "cpu",
        "JAX_COMPILATION_CACHE_DIR": str(ROOT / ".jax_cache"),
    }
    command = [sys.executable, "-m", "diversity_jax.train", "--config", str(tmp_path / "config.py")]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    mixture = json.loads((tmp_path / "trained" / "mixture" / "mixture.json").read_text())
    assert [part["name"] for part in mixture["components"]] == list(TEMPLATES)
    seen = json.loads((tmp_path / "trained" / "metrics.jsonl").read_text().splitlines()[-1])
    assert all(seen[f"loss/{name}"] > 0 for name in TEMPLATES)
