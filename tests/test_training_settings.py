"""What a run may go on with: every field of its configuration changed on resume, and checkpoints that cannot be read.

Each field is either allowed, and the bits are those of a run that never stopped, or refused in one line with its old
and its new value, and nothing on disk is changed.
"""

import dataclasses
import errno
import hashlib
import os
from pathlib import Path
import random
import shutil
import time

import jax
import jax.numpy as jnp
import pytest

from diversity_jax.core.artifacts import locked_folder
from diversity_jax.core.errors import InputError
from diversity_jax.core.files import join_path
from diversity_jax.core.run_info import changes
from diversity_jax.corpus import CorpusConfig
from diversity_jax.mixtures.config import Component, MixtureConfig
from diversity_jax.model import LLAMA, MeshConfig, make_mesh
from diversity_jax.model.config import LoraConfig
from diversity_jax.prepare.config import Chat, Filtering
from diversity_jax.training import checkpoint, resume, run
from diversity_jax.training.checkpoint import CheckpointError, Checkpoints, load, read_info
from diversity_jax.training.config import OptimizerConfig, TrainConfig
from diversity_jax.training.resume import BY_NAME, FREE, SCHEDULE, Settings, accepted_changes, settings_json
from diversity_jax.training.run import Config
from diversity_jax.training.step import learning_rate, make_train_step, state_shardings

MODEL = LLAMA["llama_tiny"](
    vocab_size=512,
    max_length=256,
    num_layers=1,
    hidden_size=32,
    intermediate_size=64,
    num_heads=2,
    num_kv_heads=2,
    attention="chunked",
)
OPTIMIZER = OptimizerConfig(learning_rate=1e-2, schedule="warmup_stable_decay", warmup_steps=2)
TRAIN = TrainConfig(
    steps=40, batch_size=8, log_every=1, eval_batches=1, checkpoint_every=2, tensorboard=False, compilation_cache=None
)
ROWS = {"content_hash": "rows"}
SETTINGS = Settings(model=MODEL, optimizer=OPTIMIZER, train=TRAIN, mesh=MeshConfig())
OTHER = {  # another value, where the field's type alone does not tell one
    "model.num_heads": 4,
    "model.num_kv_heads": 1,
    "model.hidden_size": 64,
    "model.sliding_window": 8,
    "model.remat": "full",
    "model.attention": "reference",
    "model.compute_dtype": "bfloat16",
    "model.dropout": 0.1,
    "model.head_dim": 8,
    "model.qk_norm": "head",
    "model.norm_order": "post",
    "model.activation": "gelu_tanh",
    "model.layers_without_window": (0,),
    "model.layers_without_rotary": (0,),
    "model.partial_rotary_factor": 0.5,
    "model.rope_scaling": "linear",
    "model.rope_original_length": 64,
    "model.rope_fast_turns": 8.0,
    "model.rope_attention_factor": 1.5,
    "model.window_rope_theta": 100.0,
    "model.attention_multiplier": 0.5,
    "optimizer.schedule": "linear",
    "optimizer.total_steps": 30,
    "optimizer.beta1": 0.8,
    "optimizer.beta2": 0.99,
    "optimizer.decay_share": 0.95,
    "optimizer.warmup_steps": 3,
    "train.steps": 4,
    "train.epochs": 2.0,
    "train.init_from": "elsewhere",
    "train.init_step": 3,
    "train.branch_from": "elsewhere",
    "train.branch_step": 3,
    "train.allow_changed": ("optimizer.beta2",),
    "train.trackers": ("tensorboard",),
    "train.sample_prompts": ("a",),
    "train.keep_every_steps": 4,
    "train.batch_size": 16,
    "train.gradient_accumulation": 2,
    "train.compilation_cache": "user",
    "train.lora.matrices": ("query",),
    "mesh.fsdp": 4,
    "mesh.data": 2,
    "mesh.network_data": 2,
    "mesh.network_fsdp": 2,
}
_STRETCHED = {"model.rope_scaling": "yarn", "model.rope_original_length": 64}
BESIDE = {  # what has to be there for a value to be allowed at all
    "model.rope_factor": _STRETCHED,
    "model.rope_original_length": _STRETCHED,
    "model.rope_attention_factor": _STRETCHED,
    "model.layers_without_window": {"model.sliding_window": 8},
    "model.window_rope_theta": {"model.sliding_window": 8},
    "train.init_step": {"train.init_from": "elsewhere"},
    "train.branch_step": {"train.branch_from": "elsewhere"},
    "train.lora.rank": {"train.init_from": "elsewhere"},
    "mesh.fsdp": {"mesh.data": 2},
    "mesh.network_data": {"mesh.data": 2},
    "train.keep_every_steps": {},
}


def fields(config, prefix):
    """Names of all fields that hold no fields themselves."""
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if dataclasses.is_dataclass(value):
            yield from fields(value, f"{prefix}{field.name}.")
        else:
            yield prefix + field.name


NAMES = [
    name for part in ("model", "optimizer", "train", "mesh") for name in fields(getattr(SETTINGS, part), f"{part}.")
]


def value_of(settings, name):
    for part in name.split("."):
        settings = getattr(settings, part)
    return settings


def with_value(settings, name, value):
    first, _, rest = name.partition(".")
    value = with_value(getattr(settings, first), rest, value) if rest else value
    return dataclasses.replace(settings, **{first: value})


def another(name):
    """Another value of a field."""
    value = value_of(SETTINGS, name)
    if name in OTHER:
        return OTHER[name]
    return not value if isinstance(value, bool) else value * 2 or 1


def changed(name):
    settings = with_value(SETTINGS, name, another(name)) if not BESIDE.get(name) else SETTINGS
    values = {**BESIDE.get(name, {}), name: another(name)}
    for part in ("model", "optimizer", "train", "mesh"):  # at once, since a part checks itself when it is made
        own = {key.removeprefix(f"{part}."): value for key, value in values.items() if key.startswith(f"{part}.")}
        if "lora.rank" in own:
            own["lora"] = LoraConfig(rank=own.pop("lora.rank"))
        plain = {key: value for key, value in own.items() if "." not in key}
        settings = dataclasses.replace(settings, **{part: dataclasses.replace(getattr(settings, part), **plain)})
    return settings


def recorded(step):
    return {"step": step, "settings": settings_json(SETTINGS), "mixture": "rows", "identity": {}}


def shown(value):
    return repr(tuple(value) if isinstance(value, list) else value)


@pytest.mark.parametrize("name", NAMES)
def test_a_changed_field_is_free_or_refused_with_both_values_and_a_named_one_is_recorded(name):
    settings, old, new = changed(name), value_of(SETTINGS, name), another(name)
    assert new != old
    if name in FREE:
        assert accepted_changes(recorded(8), settings, ROWS, run="run") == []
        return
    with pytest.raises(InputError) as error:
        accepted_changes(recorded(36), settings, ROWS, run="run")
    assert f"{name}={shown(new)} (was {shown(old)})" in str(error.value)
    assert "\n" not in str(error.value)
    assert "set it back" in str(error.value) or "set them back" in str(error.value)
    beside = [other for other in (name, *BESIDE.get(name, ()))]
    allowing = dataclasses.replace(settings, train=dataclasses.replace(settings.train, allow_changed=tuple(beside)))
    if name in BY_NAME | SCHEDULE:
        changes = accepted_changes(recorded(36), allowing, ROWS, run="run")
        assert (name, *map(shown, (new, old))) in [
            (change.field, shown(change.now), shown(change.before)) for change in changes
        ]
    else:
        with pytest.raises(InputError, match=name):
            accepted_changes(recorded(36), allowing, ROWS, run="run")


def test_every_field_is_of_one_kind():
    kinds = [FREE, SCHEDULE, BY_NAME]
    assert set.union(*kinds) <= set(NAMES)
    assert sum(map(len, kinds)) == len(set.union(*kinds))
    fixed = set(NAMES) - set.union(*kinds)
    assert fixed == {
        *(f"model.{name}" for name in ("vocab_size", "hidden_size", "intermediate_size", "num_layers", "num_heads")),
        *("model.num_kv_heads", "model.tie_embeddings", "model.initializer_range", "train.batch_size"),
        *(f"model.{name}" for name in ("head_dim", "qkv_bias", "output_bias", "mlp_bias", "qk_norm", "norm_order")),
        *(f"model.{name}" for name in ("norm_offset", "activation", "partial_rotary_factor", "logits_divisor")),
        *(f"model.{name}_multiplier" for name in ("embedding", "residual", "attention")),
        *("train.init_from", "train.init_step", "train.branch_from", "train.branch_step"),
        *("train.lora.rank", "train.lora.matrices"),
    }


def test_names_of_fields_that_are_not_there_are_refused():
    train = dataclasses.replace(TRAIN, allow_changed=("optimizer.learnig_rate",))
    with pytest.raises(InputError, match=r"no field is named 'optimizer.learnig_rate'"):
        accepted_changes(recorded(8), dataclasses.replace(SETTINGS, train=train), ROWS, run="run")


def test_other_rows_are_refused():
    with pytest.raises(InputError, match=r"mixture \(hash of its rows\)='others' \(was 'rows'\)"):
        accepted_changes(recorded(8), SETTINGS, {"content_hash": "others"}, run="run")


@pytest.mark.parametrize("schedule", ["linear", "cosine", "warmup_stable_decay", "constant"])
@pytest.mark.parametrize("steps", [(40, 80), (40, 20), (40, 41)], ids=str)
@pytest.mark.parametrize("finished", [0, 1, 9, 16, 30, 40])
def test_the_length_may_change_where_the_finished_steps_had_the_same_rate(schedule, steps, finished):
    old, new = (
        dataclasses.replace(
            SETTINGS,
            optimizer=dataclasses.replace(OPTIMIZER, schedule=schedule),
            train=dataclasses.replace(TRAIN, steps=length),
        )
        for length in steps
    )
    rates = [
        [float(learning_rate(each.optimizer.for_run(each.train.steps), step)) for step in range(finished)]
        for each in (old, new)
    ]
    info = {**recorded(finished), "settings": settings_json(old)}
    if rates[0] == rates[1]:
        assert accepted_changes(info, new, ROWS, run="run") == []
        return
    with pytest.raises(
        InputError, match=rf"train.steps={steps[1]} \(was {steps[0]}\) \(step \d+ would have had"
    ) as error:
        accepted_changes(info, new, ROWS, run="run")
    assert f"keep the schedule with optimizer.total_steps={steps[0]}" in str(error.value)
    lengthened = dataclasses.replace(new, optimizer=dataclasses.replace(new.optimizer, total_steps=steps[0]))
    assert accepted_changes(info, lengthened, ROWS, run="run") == []


def test_what_is_to_blame_is_named_and_no_more():
    train = dataclasses.replace(TRAIN, steps=80)
    optimizer = dataclasses.replace(OPTIMIZER, learning_rate=0.5)
    with pytest.raises(InputError) as error:
        accepted_changes(recorded(8), dataclasses.replace(SETTINGS, train=train, optimizer=optimizer), ROWS, run="r")
    assert "learning_rate=0.5 (was 0.01)" in str(error.value)
    assert "train.steps" not in str(error.value)


def test_settings_of_an_earlier_version_count_as_the_defaults():
    before = settings_json(SETTINGS)
    del before["train"]["branch_from"], before["model"]["sliding_window"], before["mesh"]["tensor"]
    assert accepted_changes({**recorded(8), "settings": before}, SETTINGS, ROWS, run="run") == []
    assert [change.field for change in changes({}, MeshConfig(tensor=2), "mesh")] == ["mesh.tensor"]


# The same through a whole run


@pytest.fixture(scope="module")
def texts(tmp_path_factory):
    folder, draw = tmp_path_factory.mktemp("texts"), random.Random(0)
    for name in ("a", "b"):
        lines = (" ".join(f"{name}{draw.randrange(50)}" for _ in range(20)) for _ in range(80))
        (folder / f"{name}.txt").write_text("\n".join(lines))
    return folder


def config_for(texts, output_dir, **train):
    mixture = MixtureConfig(
        name="made",
        components=tuple(
            Component(
                name=name, kind="real", corpus=CorpusConfig(source=str(join_path(texts, f"{name}.txt"))), share=0.5
            )
            for name in ("a", "b")
        ),
        sequence_length=16,
        validation_share=0.1,
        processes=1,
    )
    train = dataclasses.replace(TRAIN, steps=4, **train)
    optimizer = OptimizerConfig(learning_rate=1e-2, schedule="constant")
    return Config(output_dir=str(output_dir), mixture=mixture, model=MODEL, optimizer=optimizer, train=train)


@pytest.fixture(scope="module")
def stopped(texts, tmp_path_factory):
    """A run of four steps."""
    output_dir = tmp_path_factory.mktemp("stopped") / "run"
    run.run(config_for(texts, output_dir))
    return output_dir


def state_of(folder):
    """Every file and folder with a hash of its content."""
    paths = sorted(Path(folder).rglob("*"))
    return [(str(path), path.is_file() and hashlib.sha256(path.read_bytes()).hexdigest()) for path in paths]


def refused(config):
    with pytest.raises(InputError) as error:
        run.run(config)
    return str(error.value)


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


# Damage, and what is none


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """Checkpoints of steps 1 and 2, and how to read them."""
    mesh, folder = make_mesh(MeshConfig()), tmp_path_factory.mktemp("saved") / "checkpoints"
    state = make_train_step(MODEL, OPTIMIZER.for_run(4), mesh)[0](jax.random.key(0))
    checkpoints = Checkpoints(folder)
    for step in (1, 2):
        checkpoints.save(step, dataclasses.replace(state, step=jnp.int32(step)), {})
    checkpoints.close()
    return folder, state_shardings(MODEL, OPTIMIZER.for_run(4), mesh)


def cut(path):
    os.truncate(path, path.stat().st_size // 2)


def flip(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 0xFF
    path.write_bytes(data)


@pytest.mark.parametrize(
    "damage", [Path.unlink, cut, flip, lambda path: os.truncate(path, 0)], ids=["gone", "cut", "flip", "empty"]
)
def test_damage_is_proved_and_the_checkpoint_before_is_read(saved, tmp_path, damage, caplog):
    original, shardings = saved
    needed = [path.relative_to(original) for path in sorted((original / "2").rglob("*")) if path.is_file()]
    needed = [path for path in needed if path.name in ("_METADATA", "_CHECKPOINT_METADATA") or path.parent.name == "d"]
    damaged_count = 0
    for number, path in enumerate(needed):
        folder = shutil.copytree(original, tmp_path / str(number))
        damage(folder / path)
        before = state_of(folder)
        state, info, damaged = load(folder, *shardings)
        assert state_of(folder) == before
        assert (int(state.step), damaged) in ((1, [2]), (2, []))
        assert info["step"] == int(state.step)
        damaged_count += len(damaged)
    assert damaged_count > len(needed) // 2  # Orbax keeps some files that nothing needs
    shutil.rmtree(folder / "1" / "params")
    damage(folder / "2" / "_CHECKPOINT_METADATA")
    before = state_of(folder)
    with pytest.raises(InputError, match="all 2 checkpoints are damaged; nothing was changed"):
        load(folder, *shardings)
    assert state_of(folder) == before


@pytest.mark.parametrize(
    "failure",
    [
        OSError(errno.EIO, "Input/output error"),
        MemoryError(),
        ValueError("RESOURCE_EXHAUSTED: Out of memory while trying to allocate 123 bytes."),
        ValueError("PERMISSION_DENIED: Error reading"),
        ConnectionResetError(errno.ECONNRESET, "Connection reset by peer"),
    ],
    ids=lambda failure: f"{type(failure).__name__} {failure}"[:30],
)
def test_storage_and_memory_that_fail_are_no_damage(saved, tmp_path, monkeypatch, failure):
    original, shardings = saved
    folder = shutil.copytree(original, tmp_path / "checkpoints")

    def failing(*arguments, **options):
        try:
            raise failure
        except Exception as cause:
            raise KeyError("no entry was found") from cause

    monkeypatch.setattr(checkpoint.ocp, "load_checkpointables", failing)
    before = state_of(tmp_path)
    with pytest.raises(CheckpointError, match="which is no sign of damage; nothing was changed") as error:
        load(folder, *shardings)
    assert "\n" not in str(error.value)
    assert state_of(tmp_path) == before


def test_a_configuration_is_compared_before_anything_is_read(saved, monkeypatch):
    def refuse(info):
        raise InputError("other settings")

    monkeypatch.setattr(checkpoint, "_load", lambda *arguments: pytest.fail("it was read"))
    with pytest.raises(InputError, match="other settings"):
        load(saved[0], *saved[1], refuse)


def test_resume_knows_all_names_that_it_uses():
    assert resume.field_names(SETTINGS) >= FREE | SCHEDULE | BY_NAME | {"optimizer", "train.lora"}
