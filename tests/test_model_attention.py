"""Every attention kernel against the float32 reference, forward and gradient, and the chooser between them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diversity_jax.core.errors import InputError
from diversity_jax.model import LlamaConfig, MeshConfig, make_mesh
from diversity_jax.model.attention import (
    _per_device,
    attend,
    choose_attention,
    chunked_attention,
    plain_attention,
    reference_attention,
    splash_attention,
)

HEADS = [(4, 4), (4, 2), (6, 1)]


def inputs(length, heads, kv_heads, size=64, batch=2, dtype=jnp.float32):
    keys = jax.random.split(jax.random.key(length + heads), 4)
    shapes = [(batch, length, heads, size), *[(batch, length, kv_heads, size)] * 2, (batch, length, heads, size)]
    return [jax.random.normal(key, shape, dtype) for key, shape in zip(keys, shapes, strict=True)]


def segments(length, batch=2):
    """Documents of random lengths, other ones in every row, one of them a single token."""
    starts = np.random.default_rng(length).random((batch, length)) < 3 / length
    starts[:, length // 2 : length // 2 + 2] = True
    return jnp.asarray(np.cumsum(starts, axis=1), jnp.int32)


def value_and_gradients(kernel, q, k, v, output_gradient):
    output, backward = jax.vjp(kernel, q, k, v)
    return (output, *backward(output_gradient))


def compiled(kernel, segment_ids=None):
    """Output and gradients, as one program."""
    return jax.jit(lambda *arrays: value_and_gradients(lambda *x: kernel(*x, segment_ids_BxL=segment_ids), *arrays))


def assert_equal_to_reference(kernel, arrays, segment_ids, atol):
    results, wanted = compiled(kernel, segment_ids)(*arrays), compiled(reference_attention, segment_ids)(*arrays)
    for name, left, right in zip(("output", "dq", "dk", "dv"), results, wanted, strict=True):
        np.testing.assert_allclose(left, right, atol=atol, err_msg=name)


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("length", [1, 64, 130, 530])
def test_chunked_equals_reference(length, packed):
    assert_equal_to_reference(
        chunked_attention, inputs(length, 4, 2, size=16), segments(length) if packed else None, 2e-5
    )


@pytest.mark.parametrize("heads", HEADS)
def test_chunked_equals_reference_for_grouped_queries(heads):
    assert_equal_to_reference(chunked_attention, inputs(150, *heads, size=16), segments(150), 2e-5)


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("heads", HEADS)
def test_plain_equals_reference(heads, packed):
    assert_equal_to_reference(plain_attention, inputs(40, *heads, size=16), segments(40) if packed else None, 2e-5)


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("heads", [(2, 2), (4, 2)])
def test_splash_equals_reference(heads, packed):
    def kernel(*arrays, **arguments):
        return splash_attention(*arrays, interpret=True, **arguments)

    assert_equal_to_reference(kernel, inputs(256, *heads, batch=1), segments(256, batch=1) if packed else None, 1e-4)


@pytest.mark.parametrize("packed", [False, True])
def test_bfloat16_is_as_near_as_its_bits_allow(packed):
    arrays = inputs(100, 4, 2, dtype=jnp.bfloat16)
    ids = segments(100) if packed else None
    results = compiled(chunked_attention, ids)(*arrays)
    wanted = compiled(reference_attention, ids)(*(x.astype(jnp.float32) for x in arrays))
    for left, right in zip(results, wanted, strict=True):
        assert left.dtype == jnp.bfloat16
        error = jnp.linalg.norm(left.astype(jnp.float32) - right) / jnp.linalg.norm(right)
        assert error < 2**-7


def windowed(kernel, window, **more):
    return lambda *arrays, **arguments: kernel(*arrays, window=window, **more, **arguments)


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("window", [1, 70, 10**6])
def test_a_sliding_window_equals_the_reference(window, packed):
    arrays, ids = inputs(200, 4, 2, size=16), segments(200) if packed else None
    results = compiled(windowed(chunked_attention, window), ids)(*arrays)
    wanted = compiled(windowed(reference_attention, window), ids)(*arrays)
    for left, right in zip(results, wanted, strict=True):
        np.testing.assert_allclose(left, right, atol=2e-5)
    if window >= 200:
        np.testing.assert_array_equal(results[0], compiled(chunked_attention, ids)(*arrays)[0])


def test_splash_has_the_same_window():
    arrays, ids = inputs(256, 4, 2, batch=1), segments(256, batch=1)
    results = compiled(windowed(splash_attention, 100, interpret=True), ids)(*arrays)
    wanted = compiled(windowed(reference_attention, 100), ids)(*arrays)
    for left, right in zip(results, wanted, strict=True):
        np.testing.assert_allclose(left, right, atol=1e-4)


@pytest.mark.parametrize("packed", [False, True])
def test_splash_on_every_devices_own_rows_and_heads(packed):
    mesh = make_mesh(MeshConfig(fsdp=2, tensor=2), jax.devices()[:4])
    arrays, ids = inputs(128, 4, 2, batch=2), segments(128) if packed else None

    def kernel(*arrays, segment_ids_BxL):
        more = [] if segment_ids_BxL is None else [segment_ids_BxL]
        return _per_device(
            lambda q, k, v, s=None: splash_attention(q, k, v, segment_ids_BxL=s, interpret=True), mesh, *arrays, *more
        )

    assert_equal_to_reference(kernel, arrays, ids, 1e-4)


def test_no_gradient_reaches_a_key_outside_the_window():
    q, k, v, _ = inputs(96, 2, 2, size=16)
    gradient = jax.grad(lambda k: chunked_attention(q, k, v, window=10)[:, 50].sum())(k)
    reached = np.flatnonzero(np.abs(gradient).sum(axis=(0, 2, 3)))
    assert (reached.min(), reached.max()) == (41, 50)


@pytest.mark.parametrize("kernel", [chunked_attention, plain_attention])
def test_dropouts_gradient_is_that_of_its_own_forward(kernel):
    q, k, v, output_gradient = inputs(70, 4, 2, size=8, batch=1)

    def value(q, k, v):
        return jnp.sum(output_gradient * kernel(q, k, v, dropout=0.3, dropout_key=jax.random.key(3)))

    arrays, directions = (q, k, v), [jax.random.normal(jax.random.key(7 + n), x.shape) for n, x in enumerate((q, k, v))]
    predicted = sum(jnp.vdot(g, d) for g, d in zip(jax.grad(value, (0, 1, 2))(*arrays), directions, strict=True))
    moved = [value(*(x + step * d for x, d in zip(arrays, directions, strict=True))) for step in (1e-2, -1e-2)]
    np.testing.assert_allclose((moved[0] - moved[1]) / 2e-2, predicted, rtol=2e-2)


def test_scores_far_apart_do_not_overflow():
    q, k, v, output_gradient = inputs(80, 2, 2, size=16)
    results = compiled(chunked_attention)(300 * q, 300 * k, v, output_gradient)
    assert all(bool(jnp.isfinite(x).all()) for x in results)


@pytest.mark.parametrize("kernel", [chunked_attention, plain_attention])
def test_dropout_keeps_the_mean_and_drops_its_share(kernel):
    # With all scores zero and values one, an output is the share of kept weights, scaled up again.
    # Arguments, not constants: jaxlib 0.10.2's CPU fusions (ynn) give garbage for exp(scores) @ ones / total with ones
    # built in.
    zeros, ones = jnp.zeros((64, 32, 2, 8)), jnp.ones((64, 32, 2, 8))
    outputs = jax.jit(lambda q, v, key: kernel(q, q, v, dropout=0.25, dropout_key=key))(zeros, ones, jax.random.key(0))
    last = outputs[:, -1, :, 0]
    assert abs(float(last.mean()) - 1) < 0.02
    assert 0.03 < float(last.std()) < 0.2


def config(**fields):
    shape = {"vocab_size": 64, "hidden_size": 256, "intermediate_size": 64, "num_layers": 1, "num_heads": 4}
    return LlamaConfig(**(shape | fields))


@pytest.mark.parametrize(
    ("fields", "platform", "length", "segments", "sequence_shards", "kernel"),
    [
        ({}, "cpu", 256, False, 1, "chunked"),
        ({}, "gpu", 256, False, 1, "cudnn"),
        ({}, "cuda", 256, False, 1, "cudnn"),
        ({}, "gpu", 256, True, 1, "chunked"),
        ({}, "gpu", 255, False, 1, "chunked"),
        ({"compute_dtype": "float32"}, "gpu", 256, False, 1, "chunked"),
        ({"num_heads": 1}, "gpu", 256, False, 1, "chunked"),
        ({}, "tpu", 256, True, 1, "splash"),
        ({}, "tpu", 200, False, 1, "chunked"),
        ({}, "tpu", 256, False, 2, "plain"),
        ({"dropout": 0.1}, "tpu", 256, False, 1, "chunked"),
        ({"dropout": 0.1}, "cpu", 256, False, 2, "plain"),
        ({"sliding_window": 64}, "gpu", 256, False, 1, "cudnn"),
        ({"sliding_window": 64}, "tpu", 256, True, 1, "splash"),
        ({"attention": "xla"}, "tpu", 256, False, 1, "chunked"),
        ({"attention": "reference"}, "gpu", 256, False, 1, "reference"),
    ],
)
def test_the_chooser_takes_the_fastest_kernel_that_is_right(
    fields, platform, length, segments, sequence_shards, kernel
):
    assert (
        choose_attention(config(**fields), platform, length, segments=segments, sequence_shards=sequence_shards)[0]
        == kernel
    )


@pytest.mark.parametrize(
    ("fields", "platform", "segments", "message"),
    [
        ({"attention": "cudnn"}, "gpu", True, "ignore segment ids"),
        ({"attention": "cudnn"}, "cpu", False, "runs on GPUs and this is a CPU"),
        ({"attention": "cudnn", "compute_dtype": "float32"}, "gpu", False, "has no float32"),
        ({"attention": "splash"}, "gpu", False, "runs on TPUs"),
    ],
)
def test_a_kernel_that_would_be_wrong_is_refused_with_the_reason(fields, platform, segments, message):
    with pytest.raises(InputError) as error:
        choose_attention(config(**fields), platform, 256, segments=segments)
    assert message in str(error.value)


def test_a_refusal_reaches_the_caller():
    q, k, v, _ = inputs(8, 4, 4)
    with pytest.raises(InputError, match="this is a CPU"):
        attend(config(attention="cudnn"), q, k, v)
