"""Sharding rules cover every parameter, bad meshes are refused, and the loss does not depend on the mesh."""

import jax
import numpy as np
import pytest

from diversity_jax.core.errors import InputError
from diversity_jax.model import (
    LLAMA,
    MeshConfig,
    batch_sharding,
    check_batch,
    init_params,
    loss,
    make_mesh,
    param_shardings,
)
from tests.small_llama import random_params, small_config

EIGHT = [
    MeshConfig(fsdp=4, tensor=2),
    MeshConfig(data=8, fsdp=1),
    MeshConfig(data=2, fsdp=2, tensor=2),
    MeshConfig(fsdp=2, sequence=4),
]
EIGHT += [MeshConfig(data=2, fsdp=2, tensor=2, network_data=2)]


def batch(packed):
    rng = np.random.default_rng(1)
    made = {"tokens": rng.integers(0, 64, (8, 33)).astype(np.int32)}
    return made | ({"segment_ids": np.cumsum(rng.random((8, 33)) < 0.1, axis=1).astype(np.int32)} if packed else {})


def loss_on(mesh, model, batch):
    params = random_params(model)
    params = jax.device_put(params, param_shardings(mesh, params))
    value = jax.jit(lambda p, b: loss(model, p, b, mesh=mesh)[0])
    return float(value(params, jax.device_put(batch, batch_sharding(mesh))))


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("mesh", EIGHT, ids=lambda mesh: str(mesh.sizes))
def test_the_loss_is_that_of_one_device(mesh, packed):
    model, rows = small_config(scan_layers=True, num_kv_heads=2, loss_chunk_bytes=4096), batch(packed)
    single = loss_on(make_mesh(MeshConfig(), jax.devices()[:1]), small_config(scan_layers=True, num_kv_heads=2), rows)
    assert abs(loss_on(make_mesh(mesh), model, rows) - single) < 1e-5


def test_a_step_in_bfloat16_is_about_that_of_one_device():
    """XLA's CPU compiler aborted on the sum of the head's gradient."""
    model, rows = small_config(num_layers=1, num_kv_heads=2, compute_dtype="bfloat16"), batch(packed=False)

    def value_and_gradient(mesh):
        params = jax.device_put(random_params(model), param_shardings(mesh, random_params(model)))
        step = jax.jit(jax.value_and_grad(lambda p, b: loss(model, p, b, mesh=mesh)[0]))
        return jax.device_get(step(params, jax.device_put(rows, batch_sharding(mesh))))

    value, gradient = value_and_gradient(make_mesh(MeshConfig(), jax.devices()[:1]))
    sharded_value, sharded = value_and_gradient(make_mesh(MeshConfig(data=2, fsdp=4)))
    assert abs(value - sharded_value) < 1e-2
    for single, other in zip(jax.tree.leaves(gradient), jax.tree.leaves(sharded), strict=True):
        assert np.abs(single - other).max() < 0.05 * np.abs(single).max()


@pytest.mark.parametrize(
    ("fields", "crossing"),
    [
        ({"data": 2, "network_data": 2}, "data"),
        ({"network_fsdp": 2}, "fsdp"),
        ({"data": 4, "tensor": 2, "network_data": 2}, "data"),
    ],
    ids=str,
)
def test_only_the_named_axis_crosses_from_slice_to_slice(fields, crossing):
    slice_of = {
        device: index // 4 for index, device in enumerate(jax.devices()[:8])
    }  # two slices of four neighbours each
    mesh = make_mesh(MeshConfig(**fields), jax.devices()[:8])
    slices = np.vectorize(slice_of.get)(mesh.devices)
    for number, axis in enumerate(mesh.axis_names):
        crosses = bool((np.diff(slices, axis=number) != 0).any())
        assert crosses == (axis == crossing), axis
    # Along the crossing axis, first all cuts of one slice, then all of the other: one boundary.
    assert (
        np.count_nonzero(np.diff(slices, axis=mesh.axis_names.index(crossing)), axis=mesh.axis_names.index(crossing))
        == 1
    ).all()


def test_every_parameter_has_a_place_and_the_large_ones_are_cut():
    mesh = make_mesh(MeshConfig(fsdp=4, tensor=2))
    shapes = jax.eval_shape(lambda: init_params(LLAMA["llama_1p4b"](tie_embeddings=False), jax.random.key(0)))
    shardings = param_shardings(mesh, shapes)
    total = sum(leaf.size for leaf in jax.tree.leaves(shapes))
    parts = jax.tree.map(lambda leaf, sharding: np.prod(sharding.shard_shape(leaf.shape)), shapes, shardings)
    assert sum(jax.tree.leaves(parts)) < 1.001 * total / 8


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"fsdp": 3}, "needs 3 devices but there are 8"),
        ({"data": 3}, "3 does not divide the 8 devices"),
        ({"data": -1}, "only one axis may be -1"),
        ({"tensor": 0}, "tensor=0: must be at least 1"),
        ({"data": 2, "fsdp": 2}, "needs 4 devices but there are 8"),
    ],
)
def test_a_mesh_that_does_not_fit_is_refused(fields, message):
    with pytest.raises(InputError) as error:
        make_mesh(MeshConfig(**fields))
    assert message in str(error.value)


def test_the_rest_of_the_devices_go_to_the_axis_that_asks():
    assert dict(make_mesh(MeshConfig(tensor=2)).shape) == {"data": 1, "fsdp": 4, "tensor": 2, "sequence": 1}
    assert dict(make_mesh(MeshConfig(data=-1, fsdp=2)).shape) == {"data": 4, "fsdp": 2, "tensor": 1, "sequence": 1}


def test_a_parameter_that_cannot_be_cut_evenly_is_named():
    shapes = jax.eval_shape(lambda: init_params(LLAMA["llama_350m"](), jax.random.key(0)))
    with pytest.raises(InputError, match=r"axis 'kv_heads' \(15\) of parameter blocks/attention/key"):
        param_shardings(make_mesh(MeshConfig(fsdp=4, tensor=2)), shapes)


def test_a_batch_that_cannot_be_dealt_is_refused():
    mesh = make_mesh(MeshConfig(data=2, fsdp=2, tensor=2))
    check_batch(mesh, 16, gradient_accumulation=4)
    with pytest.raises(InputError, match=r"batch of 8 rows: must be a multiple of .* = 2 \* 2 \* 4 = 16"):
        check_batch(mesh, 8, gradient_accumulation=4)
