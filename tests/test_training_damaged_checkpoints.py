"""Damaged checkpoints are told apart from failing storage and memory, and the previous checkpoint is read."""

import dataclasses
import errno
import os
from pathlib import Path
import shutil

import jax
import jax.numpy as jnp
import pytest

from diversity_jax.core.errors import InputError
from diversity_jax.model import MeshConfig, make_mesh
from diversity_jax.training import checkpoint
from diversity_jax.training.checkpoint import CheckpointError, Checkpoints, load
from diversity_jax.training.step import make_train_step, state_shardings
from tests.training_settings import MODEL, OPTIMIZER, state_of

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
