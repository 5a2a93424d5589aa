"""Properties of the model: causality, isolated documents, and equality of all ways to run it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diversity_jax.core.errors import InputError
from diversity_jax.model import LLAMA, hidden_states, init_params
from diversity_jax.model import logits as eager_logits
from diversity_jax.model.rotary import rotary_table, rotate
from tests.small_llama import random_params, small_config

KERNELS = ["xla", "reference"]
logits = jax.jit(eager_logits, static_argnums=0)


@pytest.fixture(scope="module")
def tokens():
    return jnp.asarray(np.random.default_rng(0).integers(0, 64, (2, 24)), jnp.int32)


def influence(config, tokens, **arguments):
    """LxL: how much the output at a position depends on the embedding at another, by gradient."""
    params = random_params(config)
    rows = jnp.arange(tokens.shape[1])
    params = params | {"embed": params["embed"][tokens[0]]}  # a row of its own for every position
    weight = jax.random.normal(jax.random.key(1), (config.hidden_size,))

    def outputs(embed):
        return hidden_states(config, params | {"embed": embed}, rows[None], **arguments)[0] @ weight

    return jnp.abs(jax.jit(jax.jacrev(outputs))(params["embed"])).sum(axis=-1)


@pytest.mark.parametrize("kernel", KERNELS)
def test_no_position_depends_on_a_later_one(tokens, kernel):
    reached = influence(small_config(attention=kernel), tokens)
    assert np.all(np.triu(reached, 1) == 0)
    assert np.all(np.tril(reached)[np.tril_indices(24)] > 0)


@pytest.mark.parametrize("kernel", KERNELS)
def test_no_document_depends_on_another(tokens, kernel):
    segments = jnp.asarray([[0] * 7 + [1] * 10 + [2] * 7])
    reached = influence(small_config(attention=kernel, num_kv_heads=2), tokens, segment_ids_BxL=segments)
    same = np.asarray(segments[0][:, None] == segments[0][None])
    assert np.all(np.asarray(reached)[~same] == 0)
    assert np.all(np.asarray(reached)[same & np.tri(24, dtype=bool)] > 0)


def test_packed_documents_get_the_logits_they_have_alone(tokens):
    config = small_config(num_kv_heads=1)
    params = random_params(config)
    packed = jnp.concatenate([tokens[:1, :9], tokens[1:, :15]], axis=1)
    segments = jnp.asarray([[0] * 9 + [1] * 15])
    together = logits(config, params, packed, segment_ids_BxL=segments)
    alone = jnp.concatenate([logits(config, params, tokens[:1, :9]), logits(config, params, tokens[1:, :15])], axis=1)
    np.testing.assert_allclose(together, alone, atol=2e-5)


def test_positions_count_only_by_their_differences(tokens):
    config = small_config()
    params = random_params(config)
    shifted = jnp.broadcast_to(jnp.arange(24) + 100, tokens.shape)
    np.testing.assert_allclose(
        logits(config, params, tokens, positions_BxL=shifted), logits(config, params, tokens), atol=1e-4
    )
    stretched = 3 * jnp.broadcast_to(jnp.arange(24), tokens.shape)
    assert (
        jnp.abs(logits(config, params, tokens, positions_BxL=stretched) - logits(config, params, tokens)).max() > 1e-2
    )


def test_rotation_keeps_lengths():
    config = small_config()
    x = jax.random.normal(jax.random.key(0), (1, 32, 4, config.head_size))
    turned = rotate(x, rotary_table(config, 32, None))
    np.testing.assert_allclose(jnp.linalg.norm(turned, axis=-1), jnp.linalg.norm(x, axis=-1), rtol=1e-5)


def loss_and_gradient(config, params, tokens):
    def objective(params):
        return jnp.mean(jax.nn.logsumexp(eager_logits(config, params, tokens), axis=-1))

    return jax.jit(jax.value_and_grad(objective))(params)


@pytest.mark.parametrize(
    "fields",
    [
        {"scan_layers": True},
        {"remat": "full"},
        {"remat": "save_matmuls"},
        {"scan_layers": True, "remat": "full"},
        {"scan_layers": True, "remat": "offload"},
        {"attention": "reference"},
    ],
    ids=str,
)
def test_every_way_to_run_it_gives_the_same_gradient(tokens, fields):
    params = random_params(small_config())
    value, gradient = loss_and_gradient(small_config(), params, tokens)
    other, other_gradient = loss_and_gradient(small_config(**fields), params, tokens)
    np.testing.assert_allclose(value, other, rtol=1e-6)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), gradient, other_gradient)


@pytest.mark.parametrize(("remat", "times"), [("none", 1), ("save_matmuls", 1), ("full", 2)])
def test_attention_runs_again_in_the_backward_pass_only_where_everything_does(tokens, remat, times):
    config = small_config(remat=remat, scan_layers=True)
    params = random_params(config)
    program = str(jax.make_jaxpr(jax.grad(lambda params: hidden_states(config, params, tokens).sum()))(params))
    assert program.count("reduce_max") == times * len(range(0, tokens.shape[1], 64))  # one a piece of a forward pass


def test_bfloat16_stays_near_float32(tokens):
    params = random_params(small_config(), scale=0.05)
    exact, rounded = (logits(small_config(compute_dtype=dtype), params, tokens) for dtype in ("float32", "bfloat16"))
    assert exact.dtype == rounded.dtype == jnp.float32
    # bfloat16 keeps 8 bits: errors of about 2^-8 of the logits' size, a few of them added up over the layers.
    assert jnp.abs(exact - rounded).max() < 4 * 2**-8 * jnp.abs(exact).max()


def test_initial_parameters_have_the_asked_spread_and_differ_by_layer():
    config = small_config(initializer_range=0.1)
    params = jax.jit(init_params, static_argnums=0)(config, jax.random.key(0))
    query, norm = params["blocks"]["attention"]["query"], params["norm"]
    assert jnp.abs(query[0] - query[1]).max() > 0.1
    assert abs(float(query.std()) - 0.1) < 0.01
    assert np.all(np.asarray(norm) == 1)


@pytest.mark.parametrize(
    "fields",
    [{}, {"tie_embeddings": False}, {"num_kv_heads": 2}, {"num_kv_heads": 1, "tie_embeddings": False}],
    ids=str,
)
def test_parameter_count_is_what_there_is(fields):
    shapes = jax.eval_shape(lambda: init_params(small_config(**fields), jax.random.key(0)))
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes)) == small_config(**fields).parameter_count
    assert {leaf.dtype for leaf in jax.tree.leaves(shapes)} == {jnp.dtype("float32")}


@pytest.mark.parametrize(
    ("name", "tied", "millions"),
    [("llama_350m", True, 358), ("llama_350m", False, 406), ("llama_1p4b", True, 1177), ("llama_1p4b", False, 1280)],
)
def test_sizes_are_the_papers(name, tied, millions):
    assert round(LLAMA[name](tie_embeddings=tied).parameter_count / 1e6) == millions


def test_dropout_drops_in_training_alone(tokens):
    config = small_config(dropout=0.5)
    params = random_params(config)
    np.testing.assert_array_equal(logits(config, params, tokens), logits(config, params, tokens))
    first, again, other = (logits(config, params, tokens, dropout_key=jax.random.key(seed)) for seed in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    assert jnp.abs(first - other).max() > 1e-3


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"hidden_size": 30}, "hidden_size=30"),
        ({"num_kv_heads": 3}, "num_kv_heads=3: must divide num_heads=4"),
        ({"attention": "flash"}, "attention='flash': must be one of"),
        ({"remat": "some"}, "remat='some'"),
        ({"dropout": 1.0}, "dropout=1.0"),
        ({"dropout": 0.1, "attention": "cudnn"}, "cannot drop attention probabilities"),
        ({"num_layers": 0}, "num_layers=0"),
        ({"compute_dtype": "float16"}, "compute_dtype='float16'"),
    ],
    ids=str,
)
def test_impossible_configs_are_refused_with_the_reason(fields, message):
    with pytest.raises(InputError) as error:
        small_config(**fields)
    assert message in str(error.value)
