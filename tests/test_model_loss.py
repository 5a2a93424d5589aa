"""The chunked cross-entropy equals the plain one in value and gradient, for every chunk size."""

from hypothesis import given, settings
from hypothesis import strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from diversity_jax.model import logits
from diversity_jax.model import loss as eager_loss
from diversity_jax.model.cross_entropy import chunk_count, weighted_cross_entropy
from tests.small_llama import random_params, small_config

B, L, D, V = 3, 12, 32, 64
loss = jax.jit(eager_loss, static_argnums=0, static_argnames="z_loss")


@pytest.fixture(scope="module")
def batch():
    rng = np.random.default_rng(0)
    return {"tokens": rng.integers(0, V, (B, L + 1)).astype(np.int32), "loss_mask": rng.random((B, L + 1)) < 0.7}


def plain(config, params, batch, z_loss):
    scores = logits(config, params, batch["tokens"][:, :-1])
    losses = optax.softmax_cross_entropy_with_integer_labels(scores, batch["tokens"][:, 1:])
    mask = batch["loss_mask"][:, 1:]
    return jnp.sum(mask * (losses + z_loss * jax.nn.logsumexp(scores, axis=-1) ** 2)) / mask.sum()


@pytest.mark.parametrize("z_loss", [0.0, 1e-2])
@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("chunk_bytes", [4 * B * V * L, 4 * B * V * 4, 1])
def test_it_equals_the_plain_formula(batch, chunk_bytes, tied, z_loss):
    model = small_config(num_layers=1, loss_chunk_bytes=chunk_bytes, tie_embeddings=tied)
    params = random_params(model)
    value, gradient = jax.jit(jax.value_and_grad(lambda p: eager_loss(model, p, batch, z_loss=z_loss)[0]))(params)
    wanted, right = jax.jit(jax.value_and_grad(lambda p: plain(model, p, batch, z_loss)))(params)
    np.testing.assert_allclose(value, wanted, rtol=1e-6)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-6), gradient, right)


def test_losses_of_tokens_add_up_to_the_mean(batch):
    model = small_config(num_layers=1)
    params = random_params(model)
    total, parts = loss(model, params, batch, z_loss=0.5)
    mean = parts["losses"].sum() / parts["weights"].sum()
    np.testing.assert_allclose(mean, jax.jit(plain, static_argnums=0)(model, params, batch, 0.0), rtol=1e-6)
    assert total > mean
    np.testing.assert_array_equal(parts["weights"], batch["loss_mask"][:, 1:])
    assert np.all(np.asarray(parts["losses"])[~batch["loss_mask"][:, 1:]] == 0)


def test_tokens_outside_the_mask_do_not_matter(batch):
    model = small_config(num_layers=1)
    params = random_params(model)
    last = {**batch, "loss_mask": np.arange(L + 1) == np.full((B, 1), L)}
    changed = {**last, "tokens": np.where(np.arange(L + 1) == L, (batch["tokens"] + 1) % V, batch["tokens"])}
    assert loss(model, params, last)[0] != loss(model, params, changed)[0]
    first = {**batch, "loss_mask": np.arange(L + 1) == np.full((B, 1), 1)}
    assert loss(model, params, first)[0] == loss(model, params, first | {"tokens": changed["tokens"]})[0]


def test_a_batch_without_targets_has_no_loss_and_no_gradient(batch):
    model = small_config(num_layers=1)
    params = random_params(model)
    empty = {**batch, "loss_mask": np.zeros((B, L + 1), bool)}
    value, gradient = jax.jit(jax.value_and_grad(lambda p: eager_loss(model, p, empty)[0]))(params)
    assert value == 0
    assert all(np.all(np.asarray(leaf) == 0) for leaf in jax.tree.leaves(gradient))


def test_huge_logits_stay_finite():
    x = 1e4 * jax.random.normal(jax.random.key(0), (1, 4, D))
    head = jax.random.normal(jax.random.key(1), (D, V))
    value, gradient = jax.value_and_grad(
        lambda x: weighted_cross_entropy(1, 0.0, None, x, head, jnp.zeros((1, 4), jnp.int32), jnp.ones((1, 4)))[0]
    )(x)
    assert jnp.isfinite(value)
    assert jnp.isfinite(gradient).all()


def test_no_array_of_all_logits_exists(batch):
    model = small_config(num_layers=1, loss_chunk_bytes=4 * B * V * 3)
    params = random_params(model)
    text = str(jax.make_jaxpr(jax.grad(lambda p: eager_loss(model, p, batch)[0]))(params))
    assert f"f32[{B},3,{V}]" in text
    assert f"f32[{B},{L},{V}]" not in text
    assert f"f32[{B * L},{V}]" not in text


@settings(deadline=None)
@given(rows=st.integers(1, 64), length=st.integers(1, 300), chunk=st.integers(1, 1 << 20))
def test_chunks_divide_the_length_and_fit(rows, length, chunk):
    count = chunk_count(small_config(num_layers=1, loss_chunk_bytes=chunk), rows, length)
    assert length % count == 0
    assert count == length or 4 * rows * (length // count) * V <= chunk
