"""The train step: equal on every mesh and with accumulation, safe against non-finite values, compiled once."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from diversity_jax.core.errors import InputError
from diversity_jax.model import MeshConfig, logits, make_mesh
from diversity_jax.training.config import OptimizerConfig
from diversity_jax.training.step import TrainState, make_eval_step, make_train_step, state_shardings
from tests.small_llama import random_params, small_config

OPTIMIZER = OptimizerConfig(learning_rate=1e-2, total_steps=10, warmup_steps=2)
COMPONENTS = 3


@pytest.fixture(scope="module")
def batch():
    rng = np.random.default_rng(0)
    mask = rng.random((8, 17)) < 0.8
    tokens = rng.integers(0, 64, (8, 17)).astype(np.int32)
    return {"tokens": tokens, "component": np.asarray([0, 2, 2, 0, 0, 2, 0, 0], np.int32), "loss_mask": mask}


@functools.cache
def step_of(mesh=None, **arguments):
    """A compiled step, shared by the tests of this file."""
    fields = {name: arguments.pop(name) for name in list(arguments) if name in {"dropout", "remat", "scan_layers"}}
    devices = jax.devices()[:1] if mesh is None else None
    built = make_mesh(mesh or MeshConfig(), devices)
    arguments = {"num_components": COMPONENTS, "optimizer": OPTIMIZER} | arguments
    return built, make_train_step(small_config(**fields), arguments.pop("optimizer"), built, **arguments)[1]


def state_on(mesh, params=None, optimizer=OPTIMIZER):
    """A first state with parameters drawn by numpy."""
    shapes, shardings = state_shardings(small_config(), optimizer, mesh)
    zeros = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), shapes)
    return jax.device_put(dataclasses.replace(zeros, params=params or random_params(small_config())), shardings)


def run(steps, batch, mesh=None, params=None, **arguments):
    built, step = step_of(mesh, **arguments)
    state = state_on(built, params)
    for _ in range(steps):
        state, metrics = step(state, batch)
    return jax.device_get(state), jax.device_get(metrics)


def assert_close(left, right, atol):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=atol), left, right)


def plain_steps(steps, batch, clip=1.0):
    """The same training, written from scratch with optax."""
    params = jax.tree.map(jnp.asarray, random_params(small_config()))
    decay = jax.tree_util.tree_map_with_path(lambda path, _: "norm" not in str(path[-1]), params)
    rate = lambda step: 1e-2 * min((step + 1) / 2, 1) * (1 - max(step - 2, 0) / 8)  # noqa: E731
    mask = batch["loss_mask"][:, 1:]

    def objective(params):
        scores = logits(small_config(attention="reference"), params, batch["tokens"][:, :-1])
        return (
            optax.softmax_cross_entropy_with_integer_labels(scores, batch["tokens"][:, 1:]) * mask
        ).sum() / mask.sum()

    gradient = jax.jit(jax.value_and_grad(objective))
    optimizer = optax.inject_hyperparams(optax.adamw)(1.0, 0.9, 0.95, weight_decay=0.1, mask=decay)
    state = optimizer.init(params)
    for step in range(steps):
        loss, gradients = gradient(params)
        norm = float(optax.global_norm(gradients))
        gradients = jax.tree.map(lambda g, n=norm: g * min(1, clip / n), gradients)
        state.hyperparams["learning_rate"] = jnp.float32(rate(step))
        updates, state = optimizer.update(gradients, state, params)
        params = optax.apply_updates(params, updates)
    return params, float(loss), norm, rate(steps - 1)


def test_it_equals_training_written_from_scratch(batch):
    state, metrics = run(4, batch)
    params, loss, norm, rate = plain_steps(4, batch)
    assert_close(state.params, params, 2e-5)
    assert [metrics[name] for name in ("loss", "gradient_norm", "learning_rate")] == pytest.approx(
        [loss, norm, rate], rel=1e-4
    )
    assert (int(state.step), int(state.skipped), metrics["applied"]) == (4, 0, 1)


MESHES = [MeshConfig(fsdp=4, tensor=2), MeshConfig(data=2, fsdp=2, sequence=2)]


@pytest.mark.parametrize("mesh", MESHES, ids=lambda mesh: str(mesh.sizes))
def test_every_mesh_trains_as_one_device_does(batch, mesh):
    single, one_metrics = run(1, batch)
    many, many_metrics = run(1, batch, mesh)
    assert abs(one_metrics["loss"] - many_metrics["loss"]) < 1e-5
    assert_close(single.params, many.params, 2e-5)
    assert_close(one_metrics, many_metrics, 1e-3)


def test_state_is_born_where_it_belongs():
    mesh = make_mesh(MeshConfig(fsdp=4, tensor=2))
    init, step = make_train_step(small_config(), OPTIMIZER, mesh)
    state = init(jax.random.key(0))
    _, shardings = state_shardings(small_config(), OPTIMIZER, mesh)
    jax.tree.map(
        lambda leaf, sharding: leaf.sharding.is_equivalent_to(sharding, leaf.ndim) or pytest.fail(str(leaf.sharding)),
        state,
        shardings,
    )
    moment = state.opt_state[1].mu["blocks"]["mlp"]["gate"]
    assert moment.sharding.shard_shape(moment.shape) == (2, 8, 24)
    assert step.mesh is mesh


@pytest.mark.parametrize("mesh", [None, MeshConfig(fsdp=2, data=2, tensor=2)], ids=["one", "eight"])
def test_accumulated_parts_equal_the_whole(batch, mesh):
    at_once, whole_metrics = run(2, batch, mesh)
    parts, parts_metrics = run(2, batch, mesh, gradient_accumulation=2)
    assert_close(at_once.params, parts.params, 2e-5)
    assert_close(whole_metrics, parts_metrics, 1e-3)


def test_components_are_counted_apart(batch):
    _, metrics = run(1, batch)
    mask = batch["loss_mask"][:, 1:]
    counts = [mask[batch["component"] == component].sum() for component in range(COMPONENTS)]
    np.testing.assert_array_equal(metrics["component_tokens"], counts)
    assert metrics["component_loss_sum"][1] == 0
    np.testing.assert_allclose(metrics["component_loss_sum"].sum() / mask.sum(), metrics["loss"], rtol=1e-6)
    only = {**batch, "loss_mask": batch["loss_mask"] & (batch["component"] == 2)[:, None]}
    np.testing.assert_allclose(run(1, only)[1]["loss"], metrics["component_loss_sum"][2] / counts[2], rtol=1e-5)


@pytest.mark.parametrize("bad", ["weight", "infinite"])
def test_a_non_finite_update_is_left_out_but_counted(batch, bad):
    params = random_params(small_config())
    if bad == "weight":
        params["blocks"]["mlp"]["up"][0, 0, 0] = np.nan
    else:
        params["embed"] *= 1e30
    state, metrics = run(3, batch, params=params)
    assert (metrics["applied"], int(state.step), int(state.skipped)) == (0, 3, 3)
    jax.tree.map(np.testing.assert_array_equal, state.params, params)
    assert all(np.all(leaf == 0) for leaf in jax.tree.leaves(state.opt_state))


def test_after_a_skipped_step_training_goes_on_as_if_it_had_not_been(batch):
    mesh, step = step_of(optimizer=OptimizerConfig(learning_rate=1e-2, schedule="constant", total_steps=10))
    state = state_on(mesh)
    state, _ = step(state, batch)
    poisoned = state_on(mesh)
    poisoned, _ = step(poisoned, batch)
    good = jax.device_get(poisoned.params)
    broken = jax.tree.map(lambda x: x * np.float32(np.nan), good)
    poisoned = dataclasses.replace(
        poisoned, params=jax.device_put(broken, jax.tree.map(lambda x: x.sharding, poisoned.params))
    )
    poisoned, metrics = step(poisoned, batch)
    assert metrics["applied"] == 0
    poisoned = dataclasses.replace(
        poisoned, params=jax.device_put(good, jax.tree.map(lambda x: x.sharding, poisoned.params))
    )
    state, _ = step(state, batch)
    poisoned, _ = step(poisoned, batch)
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(state.params), jax.device_get(poisoned.params))


def test_the_loss_falls_on_a_repeated_batch(batch):
    first = run(1, batch)[1]["loss"]
    assert run(10, batch)[1]["loss"] < 0.8 * first


def test_the_given_state_is_donated_and_the_program_compiled_once(batch):
    mesh, step = step_of()
    state = state_on(mesh)
    after, _ = step(state, batch)
    before = step.jitted._cache_size()
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(state.params))
    step(after, batch)
    assert step.jitted._cache_size() == before


def test_dropout_repeats_by_step_and_seed(batch):
    def losses(seed):
        mesh, step = step_of(dropout=0.3, seed=seed)
        state, values = state_on(mesh), []
        for _ in range(2):
            params = state.params
            state = dataclasses.replace(state, params=jax.tree.map(jnp.copy, params))
            state, metrics = step(state, batch)
            values.append(float(metrics["loss"]))
        return values

    assert losses(0) == losses(0)
    assert losses(0) != losses(1)


def test_lowering_needs_shapes_only(batch):
    mesh, step = step_of(MeshConfig(fsdp=4, tensor=2))
    shapes, shardings = state_shardings(small_config(), OPTIMIZER, mesh)
    shapes = jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding), shapes, shardings
    )
    text = step.lower(shapes, {name: jax.ShapeDtypeStruct(x.shape, x.dtype) for name, x in batch.items()}).as_text()
    assert "sdy.mesh" in text or "sharding" in text
    assert isinstance(shapes, TrainState)


def test_no_value_is_copied_between_host_and_device_in_the_loop(batch):
    mesh, step = step_of()
    state = state_on(mesh)
    placed = jax.device_put(batch, jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(("data", "fsdp"))))
    state, _ = step(state, placed)
    with jax.transfer_guard("disallow"):
        for _ in range(2):
            state, metrics = step(state, placed)
    assert float(metrics["applied"]) == 1


def test_evaluation_equals_the_losses_of_training(batch):
    mesh, _ = step_of(MeshConfig(fsdp=4, tensor=2))
    evaluate = make_eval_step(small_config(), mesh, num_components=COMPONENTS)
    state = state_on(mesh)
    sums = jax.device_get(evaluate(state.params, batch))
    assert_close(sums["component_tokens"], run(1, batch)[1]["component_tokens"], 0)
    assert_close(sums["component_loss_sum"], run(1, batch)[1]["component_loss_sum"], 1e-3)
    assert not any(leaf.is_deleted() for leaf in jax.tree.leaves(state.params))


def test_a_batch_that_does_not_divide_is_refused(batch):
    _, step = step_of(MeshConfig(fsdp=4, tensor=2))
    state = state_on(step.mesh)
    with pytest.raises(InputError, match="batch of 6 rows"):
        step(state, jax.tree.map(lambda x: x[:6], batch))


def test_segment_ids_and_positions_pass_through(batch):
    packed = {**batch, "segment_ids": np.cumsum(np.arange(17) % 6 == 0) * np.ones((8, 1), np.int32)}
    packed["segment_ids"] = packed["segment_ids"].astype(np.int32)
    assert run(1, packed)[1]["loss"] != run(1, batch)[1]["loss"]
    counted = packed | {"positions": np.tile(np.arange(17, dtype=np.int32), (8, 1))}
    assert run(1, counted)[1]["loss"] == pytest.approx(run(1, packed)[1]["loss"])
