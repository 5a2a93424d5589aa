"""Checkpoints are restored on any mesh, and what cannot be saved is reported."""

import subprocess

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diversity_jax.core.cli import run_plain
from diversity_jax.core.errors import InputError
from diversity_jax.model import LLAMA, MeshConfig, make_mesh
from diversity_jax.training.checkpoint import Checkpoints, fingerprint, load
from diversity_jax.training.config import OptimizerConfig
from diversity_jax.training.step import make_train_step, state_shardings

MODEL = LLAMA["llama_tiny"](
    vocab_size=512, max_length=256, num_layers=1, hidden_size=64, intermediate_size=128, num_heads=4
)
OPTIMIZER = OptimizerConfig(total_steps=10)


def state_on(mesh):
    return make_train_step(MODEL, OPTIMIZER, mesh)[0](jax.random.key(0))


def test_a_checkpoint_returns_on_another_mesh(tmp_path):
    first = make_mesh(MeshConfig(fsdp=8))
    second = make_mesh(MeshConfig(data=2, fsdp=2, tensor=2))
    state = state_on(first)
    checkpoints = Checkpoints(tmp_path / "checkpoints")
    checkpoints.save(3, state, {"note": "kept"})
    shapes, shardings = state_shardings(MODEL, OPTIMIZER, second)
    checkpoints.wait()
    restored, info, _ = load(checkpoints.folder, shapes, shardings)
    checkpoints.close()
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(state), jax.device_get(restored))
    assert info["note"] == "kept"
    placed = jax.tree.map(lambda x, wanted: x.sharding.is_equivalent_to(wanted, x.ndim), restored, shardings)
    assert all(jax.tree.leaves(placed))


def test_only_the_latest_are_kept(tmp_path):
    checkpoints = Checkpoints(tmp_path / "checkpoints", keep=2)
    state = state_on(make_mesh(MeshConfig()))
    for step in (1, 2, 3):
        checkpoints.save(step, state, {})
    checkpoints.wait()
    assert checkpoints.steps == [2, 3]
    checkpoints.close()


def test_the_fingerprint_sees_a_bit_an_order_and_not_the_mesh():
    tree = {"a": jnp.arange(64, dtype=jnp.float32).reshape(8, 8), "b": jnp.ones(8)}
    expected = int(fingerprint(tree))
    mesh = make_mesh(MeshConfig(fsdp=8))
    spread = jax.device_put(tree, jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("fsdp")))
    assert int(fingerprint(spread)) == expected
    flipped = np.asarray(tree["a"]).view(np.uint32).copy()
    flipped[3, 3] ^= 1
    assert int(fingerprint({**tree, "a": jnp.asarray(flipped.view(np.float32))})) != expected
    assert int(fingerprint({**tree, "a": tree["a"][::-1]})) != expected
    assert int(fingerprint({"a": tree["b"], "b": tree["a"]})) != expected


def save_until_it_fails(checkpoints, state):
    for step in range(1, 40):
        checkpoints.save(step, state, {})
        checkpoints.wait()


def test_a_full_disk_is_one_line_that_names_the_last_good_checkpoint(tmp_path, capfd):
    run_plain(lambda _: None, None, ["x"])  # another command of this process, which sets the levels of logs
    folder = tmp_path / "small"
    folder.mkdir()
    if subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", folder], capture_output=True, check=False
    ).returncode:
        pytest.skip("needs leave to mount a small file system, which this user has not")
    try:
        checkpoints = Checkpoints(folder / "checkpoints", keep=40)
        state = state_on(make_mesh(MeshConfig()))
        with pytest.raises(
            InputError, match=r"disk is full: a checkpoint takes up to [\d,]+ bytes.*last good one is step \d+"
        ) as caught:
            save_until_it_fails(checkpoints, state)
        checkpoints.close()
        assert "Traceback" not in capfd.readouterr().err
        good = int(str(caught.value).split("last good one is step ")[-1].split(";")[0])
        again = Checkpoints(folder / "checkpoints", keep=40)
        assert again.steps[-1] == good
        assert load(again.folder, *state_shardings(MODEL, OPTIMIZER, make_mesh(MeshConfig()))) is not None
    finally:
        subprocess.run(["umount", "-l", folder], check=True)
