"""Training curves: ours against an implementation from the definitions, and bfloat16 against float32."""

import dataclasses

import jax
import numpy as np
import pytest

from diversity_jax.model import MeshConfig, make_mesh
from diversity_jax.model.checkpoint_io.hugging_face import hugging_face_tensors
from diversity_jax.training.config import OptimizerConfig
from diversity_jax.training.step import make_train_step, state_shardings
from tests import plain_llama
from tests.small_llama import random_params, small_config

STEPS, ROWS, LENGTH = 200, 8, 24
OPTIMIZER = OptimizerConfig(learning_rate=1e-2, warmup_steps=20, total_steps=STEPS)
CONFIG = {"num_kv_heads": 2}


@pytest.fixture(scope="module")
def batches():
    """Text of a Markov chain with few successors a token, so that there is something to learn; a new batch every
    step.
    """
    rng = np.random.default_rng(0)
    successors = rng.integers(0, 64, (64, 4))
    tokens = np.empty((STEPS * ROWS, LENGTH + 1), np.int32)
    tokens[:, 0] = rng.integers(0, 64, len(tokens))
    for position in range(LENGTH):
        tokens[:, position + 1] = successors[tokens[:, position], rng.choice(4, len(tokens), p=[0.7, 0.2, 0.06, 0.04])]
    return tokens.reshape(STEPS, ROWS, LENGTH + 1)


def our_losses(batches, compute_dtype):
    config = small_config(compute_dtype=compute_dtype, **CONFIG)
    mesh = make_mesh(MeshConfig(), jax.devices()[:1])
    _, step = make_train_step(config, OPTIMIZER, mesh)
    shapes, shardings = state_shardings(config, OPTIMIZER, mesh)
    zeros = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), shapes)
    state = jax.device_put(dataclasses.replace(zeros, params=random_params(config, scale=0.1)), shardings)
    losses = []
    for tokens in batches:
        state, metrics = step(state, {"tokens": tokens, "component": np.zeros(ROWS, np.int32)})
        losses.append(metrics["loss"])
    return np.array(jax.device_get(losses))


@pytest.fixture(scope="module")
def ours(batches):
    return our_losses(batches, "float32")


def test_the_curve_is_that_of_a_plain_implementation(batches, ours):
    config = small_config(**CONFIG)
    tensors = {
        tensor.name: tensor.values() for tensor in hugging_face_tensors(config, random_params(config, scale=0.1))
    }
    names = {"input_norm": "input_layernorm", "post_norm": "post_attention_layernorm"}
    names |= {name: f"self_attn.{name}" for name in ("q_proj", "k_proj", "v_proj", "o_proj")}
    names |= {name: f"mlp.{name}" for name in ("gate_proj", "up_proj", "down_proj")}
    layers = [
        {ours: np.array(tensors[f"model.layers.{layer}.{theirs}.weight"]) for ours, theirs in names.items()}
        for layer in range(config.num_layers)
    ]
    weights = {"embed": tensors["model.embed_tokens.weight"], "norm": tensors["model.norm.weight"], "layers": layers}
    shape = {"head": config.head_size, "theta": config.rope_theta, "epsilon": config.rms_norm_eps}
    theirs = plain_llama.train(shape, weights, batches, rate=OPTIMIZER.learning_rate, warmup=OPTIMIZER.warmup_steps)
    assert theirs[0] - theirs[-20:].mean() > 2  # something was learnt
    np.testing.assert_allclose(ours[:10], theirs[:10], rtol=2e-6)
    np.testing.assert_allclose(ours, theirs, atol=2e-5)  # seen: 2e-6


def test_bfloat16_stays_within_its_band(batches, ours):
    """Band: the loss of each step within 3 % of that in float32, the mean of the last fifty within 0.5 %; seen: 1.2 %
    and 0.1 %.
    """
    rounded = our_losses(batches, "bfloat16")
    np.testing.assert_allclose(rounded, ours, rtol=0.03)
    assert rounded[-50:].mean() == pytest.approx(ours[-50:].mean(), rel=0.005)
