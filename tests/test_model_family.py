"""Every architecture option means the same in training, unrolled, on a mesh, in evaluation and in decoding."""

import dataclasses
import json
import math
import random

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diversity_jax.core.errors import InputError
from diversity_jax.corpus.corpus import CorpusConfig
from diversity_jax.evaluation.cache_blocks import CacheRow, RowLayout
from diversity_jax.mixtures.config import Component, MixtureConfig
from diversity_jax.model import MeshConfig, init_params, logits, make_mesh, param_shardings
from diversity_jax.model.cache import (
    cached_hidden_states,
    decode_step,
    empty_cache,
    for_inference,
    forest_hidden_states,
)
from diversity_jax.model.checkpoint_io.hugging_face import export_hugging_face, import_hugging_face
from diversity_jax.model.config import LoraConfig
from diversity_jax.model.convert import main as convert
from diversity_jax.model.convert import read_config
from diversity_jax.model.cross_entropy import loss
from diversity_jax.model.llama import head_weight, init_adapters, merged, with_adapters
from diversity_jax.model.rotary import rotary_frequencies
from diversity_jax.training import run
from diversity_jax.training.config import OptimizerConfig, TrainConfig
from tests.family_switches import SWITCHES, switched
from tests.small_llama import random_params, small_config

LENGTH, PROMPT = 24, 16


@pytest.fixture(scope="module")
def tokens():
    return jax.random.randint(jax.random.key(3), (4, LENGTH), 0, 64)


def full_logits(config, params, tokens):
    return np.asarray(jax.jit(logits, static_argnums=0)(config, params, tokens))


def assert_close(actual, expected):
    """To a few roundings of float32, by the spread of the logits."""
    assert np.abs(actual - expected).max() < 5e-5 * expected.std()


def positions_of(rows, length):
    """Positions, blocks written to and blocks read of rows (block, first position)."""
    layout = RowLayout([CacheRow(0, [block], start, start + length) for block, start in rows], 1, (len(rows),))
    starts = layout.array([start for _, start in rows])
    return starts, layout.written(length, 1)[0], layout.reads(1, None, on_host=True)


@pytest.mark.parametrize("name", SWITCHES)
def test_decoding_and_scoring_equal_the_whole_forward_pass(name, tokens):
    config = switched(name)
    params = random_params(config)
    expected = full_logits(config, params, tokens[:2])
    ours = for_inference(config, params)
    cache = tuple(empty_cache(config, 3) for _ in range(config.num_layers))
    read = jax.jit(cached_hidden_states, static_argnums=0)
    parts = tokens[:2, :PROMPT].reshape(4, 8)  # two rows of each sequence
    hidden, cache = read(config, ours, cache, parts, *positions_of([(1, 0), (1, 8), (2, 0), (2, 8)], 8))
    assert_close(hidden @ head_weight(config, ours), expected[:, :PROMPT].reshape(4, 8, -1))
    step = jax.jit(decode_step, static_argnums=0)
    for position in range(PROMPT, LENGTH):
        actual, cache = step(
            config, ours, cache, tokens[:2, position], *positions_of([(1, position), (2, position)], 1)
        )
        assert_close(actual, expected[:, position])
    depths, ends = (jnp.broadcast_to(row, (2, LENGTH)) for row in (jnp.arange(LENGTH), jnp.array(LENGTH)))
    scored = jax.jit(forest_hidden_states, static_argnums=(0, 5))(config, ours, tokens[:2], depths, ends, None)
    assert_close(scored @ head_weight(config, ours), expected)


@pytest.mark.parametrize("name", SWITCHES)
def test_every_parameter_is_counted_and_a_switch_is_no_other_model(name, tokens):
    config = switched(name)
    params = random_params(config)
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == config.parameter_count
    plain = {"num_layers": config.num_layers, "num_kv_heads": config.num_kv_heads, "head_dim": config.head_dim}
    other = small_config(tie_embeddings=config.tie_embeddings, **plain)
    long = jnp.tile(tokens[:1], (1, 6))  # beyond every original length
    if jax.tree.structure(params) == jax.tree.structure(random_params(other)):
        assert np.abs(full_logits(config, params, long) - full_logits(other, params, long)).max() > 1e-3
    assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(init_params(config, jax.random.key(0))))


def value_and_gradient(config, params, rows, mesh=None):
    def objective(params):
        return loss(config, params, {"tokens": rows}, mesh=mesh)[0]

    return jax.jit(jax.value_and_grad(objective))(params)


@pytest.mark.parametrize("name", ["smollm_3", "olmo_3", "granite"])
def test_a_step_on_a_mesh_and_in_a_loop_equals_one_device_and_layer_by_layer(name, tokens):
    sizes = {"num_heads": 4, "num_kv_heads": 2, "remat": "full"}
    config, looped = switched(name, **sizes), switched(name, scan_layers=True, **sizes)
    params = random_params(config)
    rows = jnp.concatenate([tokens, tokens[::-1]])
    value, gradient = value_and_gradient(config, params, rows)
    mesh = make_mesh(MeshConfig(data=1, fsdp=4, tensor=2), jax.devices()[:8])
    placed = jax.device_put(params, param_shardings(mesh, params))
    sharded_value, sharded = value_and_gradient(looped, placed, rows, mesh)
    np.testing.assert_allclose(value, sharded_value, rtol=1e-6)
    for single, other in zip(jax.tree.leaves(gradient), jax.tree.leaves(sharded), strict=True):
        assert 0 < np.abs(single - other).max() + 1e-9 < 1e-4 * np.abs(single).max()


def test_adapters_beside_biases_and_norms_merge_into_the_same_model(tokens):
    config, lora = switched("granite", qk_norm="full", norm_order="both"), LoraConfig(rank=2)
    base = random_params(config)
    adapters = jax.tree.map(lambda leaf: leaf + 0.1, init_adapters(config, lora, jax.random.key(1)))
    beside = full_logits(config, with_adapters(base, adapters, lora), tokens)
    np.testing.assert_allclose(beside, full_logits(config, merged(base, adapters, lora), tokens), atol=1e-5)


@pytest.mark.parametrize(
    ("fields", "period"),
    [
        ({"num_layers": 36, "layers_without_rotary": tuple(range(3, 36, 4))}, 4),
        ({"num_layers": 26, "sliding_window": 8, "layers_without_window": (5, 11, 17, 23)}, 26),
        ({"num_layers": 8, "sliding_window": 8}, 1),
        ({"num_layers": 8, "layers_without_window": (1,)}, 1),  # no window to be without
    ],
    ids=str,
)
def test_the_loop_runs_over_as_few_layers_as_repeat(fields, period):
    assert small_config(**fields).layer_period == period


def test_dynamic_scaling_beyond_the_original_length_is_refused_where_texts_are_read_in_parts(tokens):
    config = switched("dynamic", rope_original_length=16, max_length=64)
    params = random_params(config)
    assert np.any(rotary_frequencies(config, 24) != rotary_frequencies(config, 16))
    for_inference(dataclasses.replace(config, max_length=16), params)
    for read in (lambda: for_inference(config, params), lambda: logits(config, params, tokens, positions_BxL=tokens)):
        with pytest.raises(InputError, match=r"lower max_length to it, or set model.rope_scaling='yarn'"):
            read()


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"head_dim": 7}, "head_dim=7"),
        ({"num_layers": 1.5}, "model.num_layers=1.5: must be a whole number"),
        ({"sliding_window": math.nan}, "model.sliding_window=nan: must be a whole number"),
        ({"partial_rotary_factor": 0.4}, "3.2 elements would turn"),
        ({"partial_rotary_factor": 1e308}, "inf elements would turn"),
        ({"rope_factor": 2.0}, "no effect with model.rope_scaling='none'"),
        ({"rope_scaling": "llama3", "rope_factor": 8.0}, "rope_original_length=None"),
        ({"rope_scaling": "linear", "rope_factor": 0.5}, "rope_factor=0.5: must be at least 1"),
        ({"rope_scaling": "su"}, "rope_scaling='su': must be one of"),
        ({"rope_scaling": "linear", "rope_attention_factor": 2.0}, "it is yarn's"),
        ({"layers_without_rotary": (2,)}, "there is no layer 2"),
        ({"window_rope_theta": 100.0}, "no layer has a window"),
        ({"logits_divisor": 0.0}, "logits_divisor=0.0: must be above 0"),
        ({"num_heads": 0, "num_kv_heads": None}, "num_heads=0: must be at least 1"),
        ({"hidden_size": 2, "num_heads": 4, "head_dim": None}, "hidden_size=2: must be a multiple of 2 * num_heads=8"),
    ],
    ids=str,
)
def test_switches_that_cannot_be_are_refused_with_the_reason(fields, message):
    with pytest.raises(InputError) as error:
        small_config(**fields)
    assert message in str(error.value)


def test_a_model_of_another_family_is_trained_on_from_its_folder_and_goes_out_as_it_came(tmp_path):
    """On a 4 x 2 mesh; the run's export has the same architecture, and every weight is another."""
    draw = random.Random(0)
    (tmp_path / "a.txt").write_text("\n".join(" ".join(f"a{draw.randrange(50)}" for _ in range(20)) for _ in range(80)))
    config = switched("gemma_3", vocab_size=512, num_kv_heads=2, attention_multiplier=24**-0.5)
    export_hugging_face(config, random_params(config), tmp_path / "theirs")
    component = Component(name="a", kind="real", corpus=CorpusConfig(source=str(tmp_path / "a.txt")), share=1.0)
    sizes = {"sequence_length": 16, "validation_share": 0.1, "processes": 1}
    train = TrainConfig(
        **{"steps": 2, "batch_size": 8, "log_every": 1, "eval_batches": 1, "checkpoint_every": 2, "tensorboard": False},
        **{"compilation_cache": None, "init_from": str(tmp_path / "theirs")},
    )
    run.run(
        run.Config(
            output_dir=str(tmp_path / "run"),
            mixture=MixtureConfig(name="made", components=(component,), **sizes),
            optimizer=OptimizerConfig(learning_rate=1e-2, schedule="constant"),
            model=dataclasses.replace(read_config(tmp_path / "theirs"), compute_dtype="float32"),
            mesh=MeshConfig(fsdp=4, tensor=2),
            train=train,
        )
    )
    convert(["export", str(tmp_path / "run"), str(tmp_path / "ours")])
    (before, theirs), (after, ours) = (import_hugging_face(tmp_path / name) for name in ("theirs", "ours"))
    assert before == after
    assert json.loads((tmp_path / "ours" / "config.json").read_text())["model_type"] == "gemma3_text"
    assert all(not np.array_equal(*pair) for pair in zip(*map(jax.tree.leaves, (theirs, ours)), strict=True))
