"""What may change when a run is resumed, by complete runs: the same bits, or one line and nothing changed on disk."""

import dataclasses
import shutil
import time

import pytest

from diversity_jax.core.artifacts import locked_folder
from diversity_jax.core.errors import InputError
from diversity_jax.mixtures.config import MixtureConfig
from diversity_jax.prepare.config import Chat, Filtering
from diversity_jax.training import checkpoint, run
from diversity_jax.training.checkpoint import read_info
from diversity_jax.training.config import OptimizerConfig
from diversity_jax.training.resume import FREE
from tests.training_settings import MODEL, NAMES, another, changed, config_for, refused, shown, state_of, write_texts


@pytest.fixture(scope="module")
def texts(tmp_path_factory):
    return write_texts(tmp_path_factory.mktemp("texts"))


@pytest.fixture(scope="module")
def stopped(texts, tmp_path_factory):
    """A run of four steps."""
    output_dir = tmp_path_factory.mktemp("stopped") / "run"
    run.run(config_for(texts, output_dir))
    return output_dir


# A constant schedule depends on neither of these.
NO_PART = {"train.steps"} | {f"optimizer.{name}" for name in ("total_steps", "decay_share", "final_ratio")}


@pytest.mark.parametrize("name", [name for name in NAMES if name not in FREE | NO_PART])
def test_a_refused_run_changes_nothing_on_disk(texts, stopped, name):
    config, settings = config_for(texts, stopped), changed(name)
    optimizer = config.optimizer
    if name.startswith("optimizer."):
        optimizer = dataclasses.replace(optimizer, **{name.removeprefix("optimizer."): another(name)})
    train = dataclasses.replace(settings.train, steps=4)
    before = state_of(stopped)
    message = refused(
        dataclasses.replace(config, model=settings.model, mesh=settings.mesh, train=train, optimizer=optimizer)
    )
    assert f"{name}={shown(another(name))} (was " in message
    assert state_of(stopped) == before


OTHER_MIXTURE = {
    "name": "other",
    "real_to_synthetic": (1.0, 0.0),
    "vocabulary": "elsewhere.model",
    "end_of_text": "</s>",
    "document_start": "none",
    "special_text": "special",
    "sequence_length": 24,
    "validation_share": 0.2,
    "seed": 1,
    "train_tokens": 1000,
    "shares_of": "epochs",
    "components_dir": "elsewhere",
    "hygiene": Filtering(exact_duplicates=True),
    "chat": Chat(system_prompt="Be kind."),
    "repeat_shuffle": True,
}


@pytest.mark.parametrize(
    "name", [field.name for field in dataclasses.fields(MixtureConfig) if field.name != "processes"]
)
def test_another_mixture_is_refused_before_it_is_built(texts, stopped, name):
    config = config_for(texts, stopped)
    if name == "components":
        first, two = config.mixture.components
        value = (dataclasses.replace(first, share=0.25), dataclasses.replace(two, share=0.75))
    else:
        value = OTHER_MIXTURE[name]
    before = state_of(stopped)
    message = refused(dataclasses.replace(config, mixture=dataclasses.replace(config.mixture, **{name: value})))
    assert f"mixture.{name}" in message
    assert "(was " in message
    assert state_of(stopped) == before


def test_free_fields_changed_together_leave_every_bit_as_it_is(texts, stopped, tmp_path):
    folder = shutil.copytree(stopped, tmp_path / "run")
    config = config_for(texts, folder)
    free = {name.partition(".")[2]: another(name) for name in FREE if name.startswith("train.")} | {"steps": 6}
    free |= {"epochs": None, "allow_changed": (), "compilation_cache": None, "tensorboard": False, "trackers": ()}
    model = dataclasses.replace(MODEL, max_length=512)
    run.run(
        dataclasses.replace(config, train=dataclasses.replace(config.train, **free), model=model),
    )
    uninterrupted_config = config_for(texts, tmp_path / "whole")
    run.run(dataclasses.replace(uninterrupted_config, train=dataclasses.replace(uninterrupted_config.train, steps=6)))
    resumed, uninterrupted = (read_info(output / "checkpoints", 6) for output in (folder, tmp_path / "whole"))
    assert resumed["fingerprint"] == uninterrupted["fingerprint"]


def test_what_was_allowed_by_name_is_recorded_and_a_run_may_begin_anew(texts, stopped, tmp_path):
    folder = shutil.copytree(stopped, tmp_path / "run")
    config = config_for(texts, folder, allow_changed=("optimizer",))
    faster = dataclasses.replace(
        config,
        optimizer=dataclasses.replace(config.optimizer, learning_rate=0.03),
        train=dataclasses.replace(config.train, steps=6),
    )
    result = run.run(faster)
    change = {"step": 4, "field": "optimizer.learning_rate", "before": 0.01, "now": 0.03}
    assert result.summary["changes"] == read_info(folder / "checkpoints", 6)["changes"] == [change]
    run.run(
        dataclasses.replace(faster, train=dataclasses.replace(faster.train, allow_changed=(), steps=8)),
    )
    assert read_info(folder / "checkpoints", 8)["changes"] == [change]
    anew = dataclasses.replace(faster, overwrite=True, model=dataclasses.replace(MODEL, num_layers=2))
    run.run(anew)
    assert checkpoint.complete_steps(folder / "checkpoints") == [2, 4, 6]
    assert read_info(folder / "checkpoints", 6)["changes"] == []


def test_a_decay_branch_has_the_bits_of_a_run_with_the_decay_in_its_schedule(texts, stopped, tmp_path):
    before = state_of(stopped)
    decaying = OptimizerConfig(learning_rate=1e-2, schedule="warmup_stable_decay", decay_share=0.5)
    at_once = config_for(texts, tmp_path / "whole")
    train = dataclasses.replace(at_once.train, steps=8)
    run.run(dataclasses.replace(at_once, optimizer=decaying, train=train))
    branch = dataclasses.replace(
        config_for(texts, tmp_path / "branch"),
        optimizer=decaying,
        mixture=None,
        prepared=str(stopped / "mixture"),
        train=dataclasses.replace(train, branch_from=str(stopped), branch_step=4),
    )
    run.run(dataclasses.replace(branch, prepared=None, mixture=at_once.mixture))
    branched, wanted = (read_info(tmp_path / name / "checkpoints", 8) for name in ("branch", "whole"))
    assert branched["fingerprint"] == wanted["fingerprint"]
    assert state_of(stopped) == before
    assert "train.branch_step=2 (was 4)" in refused(
        dataclasses.replace(branch, train=dataclasses.replace(branch.train, branch_step=2))
    )
    early = dataclasses.replace(
        branch, output_dir=str(tmp_path / "early"), optimizer=dataclasses.replace(decaying, decay_share=0.9)
    )
    assert "optimizer.decay_share=0.9 (was 0.2)" in refused(early)
    assert "has no checkpoint to branch off from" in refused(
        dataclasses.replace(early, optimizer=decaying, train=dataclasses.replace(branch.train, branch_step=3))
    )
    assert not (tmp_path / "early").exists()


def test_a_refusal_after_the_folder_was_locked_leaves_no_trace(texts, stopped, tmp_path):
    prepared = dataclasses.replace(
        config_for(texts, tmp_path / "new" / "run", sample_prompts=("x" * 300,)), prepared=str(stopped / "mixture")
    )
    assert "more than model.max_length=256" in refused(prepared)
    assert list(tmp_path.iterdir()) == []


def test_a_second_training_in_the_same_folder_is_refused(texts, stopped):
    with locked_folder(stopped):
        before = state_of(stopped)
        assert "is writing to it" in refused(config_for(texts, stopped))
        assert state_of(stopped) == before


def test_a_folder_of_another_command_is_refused(texts, tmp_path):
    run.run_info.describe(["python -m diversity_jax.evaluate"], {"tasks": "paper"}).save(tmp_path / "run")
    before = state_of(tmp_path)
    assert "holds no training run, but what" in refused(config_for(texts, tmp_path / "run"))
    assert state_of(tmp_path) == before


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"output_dir": "memory://run"}, "output_dir=memory://run: memory:// cannot be used here; give gs://, s3://"),
        ({"output_dir": "gsx://bucket/run"}, "output_dir=gsx://bucket/run: gsx:// cannot be used here"),
        ({"output_dir": "az://bucket/run"}, "output_dir=az://bucket/run: needs the package adlfs; pip install adlfs"),
        ({"prepared": "http://host/mixture"}, "prepared=http://host/mixture: http:// cannot be used here"),
        ({"train": {"init_from": "memory://run"}}, "train.init_from=memory://run"),
        ({"train": {"branch_from": "ftp://host/run"}}, "train.branch_from=ftp://host/run"),
    ],
    ids=str,
)
def test_urls_that_cannot_be_used_are_refused_when_the_configuration_is_made(texts, tmp_path, fields, message):
    fields = dict(fields)
    train = fields.pop("train", {})
    with pytest.raises(InputError) as error:
        dataclasses.replace(config_for(texts, tmp_path / "run", **train), **fields)
    assert message in str(error.value)


def test_a_bucket_is_accepted_without_a_look_at_it(texts, tmp_path):
    pytest.importorskip("gcsfs", reason="needs gcsfs: pip install 'diversity_jax[gcs]'")
    began = time.monotonic()
    dataclasses.replace(config_for(texts, tmp_path / "run", init_from="gs://b/run"), output_dir="gs://b/x")
    assert time.monotonic() - began < 5


@pytest.mark.parametrize("name", ["file", "file/below", "/proc/run"])
def test_an_output_dir_that_cannot_be_made_is_one_line(texts, tmp_path, name):
    (tmp_path / "file").write_text("")
    message = refused(config_for(texts, tmp_path / name))
    assert str(tmp_path / name) in message
    assert "choose another" in message
