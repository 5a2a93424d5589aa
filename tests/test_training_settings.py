"""What may change when a run is resumed, by its records alone: every field of its configuration.

Each field is either allowed or refused in one line with its old and its new value.
"""

import dataclasses

import numpy as np
import pytest

from diversity_jax.core.errors import InputError
from diversity_jax.core.run_info import changes, plain
from diversity_jax.model import MeshConfig
from diversity_jax.training import resume
from diversity_jax.training.resume import BY_NAME, FREE, SCHEDULE, accepted_changes
from diversity_jax.training.step import learning_rate
from tests.training_settings import BESIDE, NAMES, OPTIMIZER, ROWS, SETTINGS, TRAIN, another, changed, shown, value_of


def recorded(step):
    return {"step": step, "settings": plain(SETTINGS), "mixture": "rows", "identity": {}}


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
        np.asarray(learning_rate(each.optimizer.for_run(each.train.steps), np.arange(finished))).tolist()
        for each in (old, new)
    ]
    info = {**recorded(finished), "settings": plain(old)}
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
    before = plain(SETTINGS)
    del before["train"]["branch_from"], before["model"]["sliding_window"], before["mesh"]["tensor"]
    assert accepted_changes({**recorded(8), "settings": before}, SETTINGS, ROWS, run="run") == []
    assert [change.field for change in changes({}, MeshConfig(tensor=2), "mesh")] == ["mesh.tensor"]


def test_resume_knows_all_names_that_it_uses():
    assert resume.field_names(SETTINGS) >= FREE | SCHEDULE | BY_NAME | {"optimizer", "train.lora"}
