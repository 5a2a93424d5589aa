"""Fine-tuning by the training command: it starts from a model, learns to answer, and resumes bit for bit."""

import dataclasses
import json
import shutil

import jax
import numpy as np
import pytest

from diversity_jax import train
from diversity_jax.core import run_info
from diversity_jax.core.errors import InputError
from diversity_jax.corpus import CorpusConfig
from diversity_jax.evaluation.generate import Generator
from diversity_jax.evaluation.load_model import open_model
from diversity_jax.evaluation.sampling import Sampling
from diversity_jax.mixtures.config import Component, GatePolicy, MixtureConfig
from diversity_jax.model import LlamaConfig, MeshConfig
from diversity_jax.model.checkpoint_io.hugging_face import export_hugging_face
from diversity_jax.model.convert import read_config, read_model, write_imported
from diversity_jax.prepare.config import Chat
from diversity_jax.training import loop, run
from diversity_jax.training.checkpoint import read_info
from diversity_jax.training.config import OptimizerConfig, TrainConfig
from diversity_jax.training.run import Config
from tests.json_lines import json_lines
from tests.sft_folders import build_components, write_examples, write_text
from tests.small_llama import random_params

MODEL = LlamaConfig(
    vocab_size=260,
    hidden_size=64,
    intermediate_size=128,
    num_layers=2,
    num_heads=4,
    max_length=128,
    compute_dtype="float32",
    scan_layers=False,
)
TRAIN = TrainConfig(
    steps=30,
    batch_size=16,
    log_every=20,
    eval_batches=1,
    checkpoint_every=30,
    tensorboard=False,
    compilation_cache=None,
)
OPTIMIZER = OptimizerConfig(learning_rate=3e-3, warmup_steps=5, weight_decay=0.0, total_steps=200)


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory):
    """A model of plain text, in a run's folder."""
    folder = tmp_path_factory.mktemp("pretrained")
    source = CorpusConfig(source=str(write_text(folder / "text.jsonl", 400)))
    mixture = build_components(folder / "mixture", {"text": source}, {"text": 1}, sequence_length=128)
    config = Config(output_dir=str(folder), prepared=str(mixture.folder), model=MODEL, train=TRAIN)
    run_info.describe(["test"], config, jax.devices()).save(folder)
    loop.train(mixture, MODEL, OPTIMIZER, TRAIN, MeshConfig(), folder)
    return folder


def tuning(folder, output, **fields) -> Config:
    """Fine-tuning on half a thousand examples."""
    corpus = CorpusConfig(source=str(folder / "examples.jsonl"), conversations="alpaca")
    component = Component(name="alpaca", kind="synthetic", corpus=corpus, share=1, policy=GatePolicy(ungated=True))
    mixture = MixtureConfig(
        name="tuning",
        components=(component,),
        shares_of="epochs",
        sequence_length=256,
        validation_share=0.1,
        processes=1,
        chat=Chat(),
    )
    config = Config(
        output_dir=str(output),
        mixture=mixture,
        model=dataclasses.replace(MODEL, max_length=256),
        optimizer=OPTIMIZER,
        train=dataclasses.replace(TRAIN, epochs=4, checkpoint_every=20, init_from=str(folder)),
    )
    return dataclasses.replace(config, **fields)


@pytest.fixture(scope="module")
def tuned(pretrained, tmp_path_factory):
    """The finished run, and what it printed of its losses."""
    write_examples(pretrained / "examples.jsonl", 500, longest=2)
    output = tmp_path_factory.mktemp("tuned")
    train.main(tuning(pretrained, output))
    return output


def evaluations(output):
    lines = json_lines(output / "metrics.jsonl")
    return [line["eval/loss"] for line in lines if "eval/loss" in line]


def test_the_loss_on_answers_falls_and_the_model_answers_in_the_form_it_was_taught(tuned):
    losses = evaluations(tuned)
    assert losses[-1] < 0.6 * losses[0]
    settings = json.loads((tuned / "run.json").read_text())["settings"]
    rows = json.loads((tuned / "mixture" / "mixture.json").read_text())["components"][0]["train_rows"]
    assert settings["train"]["steps"] == round(4 * rows / 16)
    model = open_model(tuned)
    text, ids = model.encode_chat([{"role": "user", "content": "Turn round.\n\noak elm"}])
    assert text == "### Instruction:\nTurn round.\n\noak elm\n\n### Response:\n"
    answer = Generator(model, slots=1).generate([ids], Sampling(max_tokens=40))[0]
    assert answer.finish_reason == "stop"  # it learnt to end
    assert "#" not in answer.text


def test_resumed_it_ends_with_the_same_bits(pretrained, tuned, tmp_path, monkeypatch):
    monkeypatch.setattr(train, "write_page", lambda config, folder: None)
    steps = json.loads((tuned / "run.json").read_text())["settings"]["train"]["steps"]
    shutil.copytree(tuned / "mixture", tmp_path / "mixture")
    for epochs in (2, 4):
        config = tuning(pretrained, tmp_path)
        train.main(dataclasses.replace(config, train=dataclasses.replace(config.train, epochs=epochs)))
    uninterrupted, resumed = (read_info(folder / "checkpoints", steps) for folder in (tuned, tmp_path))
    assert resumed["fingerprint"] == uninterrupted["fingerprint"]


def test_it_begins_with_exactly_the_parameters_of_a_checkpoint_or_a_hugging_face_folder(tmp_path):
    params = jax.tree.map(np.asarray, random_params(MODEL))
    export_hugging_face(MODEL, params, tmp_path / "theirs", token_ids={"eos_token_id": 1})
    write_imported(MODEL, params, tmp_path / "ours")
    mesh = loop.make_mesh(MeshConfig(fsdp=4, tensor=2))
    _, placed = loop.state_shardings(MODEL, OPTIMIZER, mesh)
    for folder in ("theirs", "ours"):
        initial = loop.initial_params(tmp_path / folder, None, MODEL, placed.params)
        jax.tree.map(np.testing.assert_array_equal, initial, params)
        assert read_config(tmp_path / folder).hidden_size == 64
    config = Config(output_dir="x", prepared="y", train=TrainConfig(init_from=str(tmp_path / "theirs")))
    assert run.with_model(config)[1].num_layers == 2
    other = dataclasses.replace(MODEL, num_layers=3, rope_theta=500.0)
    with pytest.raises(
        InputError, match=r"is another model \(num_layers 2 there, 3 here, rope_theta 10000.0 there, 500.0 here\)"
    ):
        loop.initial_params(tmp_path / "ours", None, other, placed.params)
    with pytest.raises(InputError, match="both None"):
        Config(output_dir="x", prepared="y")


def test_a_checkpoint_of_another_vocabulary_or_beginning_is_refused(pretrained, tuned, tmp_path):
    config = tuning(pretrained, tuned)
    with pytest.raises(InputError, match="was trained with another tokenizer"):
        run.check_same_tokenizer(str(pretrained), "0" * 64)
    with pytest.raises(InputError, match=r"train.init_step=30 \(was None\)"):
        train.main(dataclasses.replace(config, train=dataclasses.replace(config.train, init_step=30)))
    with pytest.raises(InputError, match="holds no model"):
        read_model(tmp_path)
    for fields, message in (({"epochs": 0}, "epochs=0"), ({"init_step": 3}, "init_from, which is None")):
        with pytest.raises(InputError, match=message):
            TrainConfig(**fields)
