"""Learning-rate schedules, weight decay masks, FLOPs and MFU."""

from hypothesis import given, settings
from hypothesis import strategies as st
import jax
import numpy as np
import pytest

from diversity_jax.core.chips import peak_flops
from diversity_jax.core.errors import InputError
from diversity_jax.model import LLAMA
from diversity_jax.model.config import LoraConfig
from diversity_jax.model.llama import init_adapters, param_shapes
from diversity_jax.training import throughput
from diversity_jax.training.config import SCHEDULES, OptimizerConfig
from diversity_jax.training.step import decayed, learning_rate
from diversity_jax.training.throughput import flops_per_token
from tests.small_llama import small_config


def rates(**fields):
    config = OptimizerConfig(**({"learning_rate": 1.0, "warmup_steps": 10, "total_steps": 100} | fields))
    return np.asarray(jax.vmap(lambda step: learning_rate(config, step))(np.arange(101)))


def test_linear_warms_up_and_falls_to_zero():
    values = rates()
    np.testing.assert_allclose(values[:10], np.arange(1, 11) / 10, rtol=1e-6)
    np.testing.assert_allclose(values[10:], np.linspace(1, 0, 91), atol=1e-6)


def test_cosine_is_half_way_down_in_the_middle():
    values = rates(schedule="cosine", final_ratio=0.1)
    assert values[55] == pytest.approx(0.55)
    assert values[100] == pytest.approx(0.1)


def test_warmup_stable_decay_is_flat_until_its_last_part():
    values = rates(schedule="warmup_stable_decay", decay_share=0.3)
    assert np.all(values[9:71] == 1)
    np.testing.assert_allclose(values[70:], np.linspace(1, 0, 31), atol=1e-6)


@settings(deadline=None)
@given(
    schedule=st.sampled_from(SCHEDULES),
    warmup=st.integers(0, 50),
    total=st.integers(50, 200),
    final=st.floats(0, 1),
    share=st.floats(0, 1),
)
def test_every_schedule_stays_between_zero_and_its_peak_and_never_rises_after_warmup(
    schedule, warmup, total, final, share
):
    config = OptimizerConfig(
        learning_rate=2.0,
        schedule=schedule,
        warmup_steps=warmup,
        total_steps=total,
        final_ratio=final,
        decay_share=share,
    )
    values = np.asarray(learning_rate(config, np.arange(total + 20)))
    assert values.min() >= 0
    assert values.max() <= 2.0 + 1e-6
    assert np.all(np.diff(values[warmup:]) <= 1e-6)


def test_norms_and_biases_are_not_decayed():
    def undecayed(config):
        is_decayed = jax.tree_util.tree_leaves_with_path(decayed(param_shapes(config)))
        return {jax.tree_util.keystr(path) for path, value in is_decayed if not value}

    assert undecayed(small_config(tie_embeddings=False)) == {
        *("['norm']", "['blocks']['attention_norm']", "['blocks']['mlp_norm']"),
    }
    everything = {"qkv_bias": True, "output_bias": True, "mlp_bias": True, "norm_order": "both", "qk_norm": "full"}
    assert len(undecayed(small_config(**everything))) == 1 + 4 + 2 + 4 + 3


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"learning_rate": 0.0}, "learning_rate=0.0"),
        ({"learning_rate": float("nan")}, "learning_rate=nan"),
        ({"schedule": "step"}, "schedule='step': must be one of linear"),
        ({"warmup_steps": 11, "total_steps": 10}, "warmup_steps=11: must not be above total_steps=10"),
        ({"beta2": 1.0}, "beta2=1.0"),
        ({"clip_norm": -1.0}, "clip_norm=-1.0"),
        ({"final_ratio": 1.5}, "final_ratio=1.5"),
    ],
    ids=str,
)
def test_impossible_optimizers_are_refused(fields, message):
    with pytest.raises(InputError) as error:
        OptimizerConfig(**fields)
    assert message in str(error.value)


def test_flops_of_the_350m_model_are_those_of_its_formula():
    config = LLAMA["llama_350m"]()
    matrices = 28 * (4 * 960 * 960 + 3 * 960 * 2560) + 960 * 50304
    assert flops_per_token(config, 2048, causal=False) == 6 * matrices + 12 * 28 * 960 * 2048
    assert flops_per_token(config, 2048, causal=True) == 6 * matrices + 6 * 28 * 960 * 2048


def test_flops_do_not_depend_on_tying_but_on_grouping():
    base = LLAMA["llama_350m"]()
    assert flops_per_token(base, 64, causal=True) == flops_per_token(
        LLAMA["llama_350m"](tie_embeddings=False), 64, causal=True
    )
    assert flops_per_token(base, 64, causal=True) > flops_per_token(
        LLAMA["llama_350m"](num_kv_heads=5), 64, causal=True
    )


def test_flops_count_heads_wider_than_the_model_and_only_what_windows_see():
    base = LLAMA["llama_350m"]()
    wide = LLAMA["llama_350m"](head_dim=128)
    more = 6 * 28 * 4 * 960 * 15 * 64  # the four matrices of attention
    assert flops_per_token(wide, 64, causal=False) == flops_per_token(base, 64, causal=False) + more + 12 * 28 * 61440
    seen = [
        flops_per_token(LLAMA["llama_350m"](sliding_window=16, layers_without_window=full), 64, causal=True)
        for full in ((), tuple(range(14)), tuple(range(28)))
    ]
    assert seen[1] == (seen[0] + seen[2]) / 2
    assert seen[2] == flops_per_token(base, 64, causal=True)
    assert seen[2] - seen[0] == 6 * 28 * 960 * (64 - 16 * (2 - 16 / 64))


def test_frozen_matrices_need_no_gradient_and_adapters_are_counted():
    config, lora = LLAMA["llama_350m"](num_kv_heads=5), LoraConfig(rank=3, matrices=("value", "down"))
    shapes = jax.eval_shape(lambda key: init_adapters(config, lora, key), jax.random.key(0))
    adapters = sum(leaf.size for leaf in jax.tree.leaves(shapes))
    assert lora.parameter_count(config) == adapters
    matrices = 28 * config.layer_matrix_parameters + 960 * 50304
    all_trained, tuned = (flops_per_token(config, 64, causal=True, lora=used) for used in (LoraConfig(), lora))
    assert all_trained - tuned == 2 * matrices - 6 * adapters > 0


def test_mfu_is_the_share_of_the_peak(monkeypatch):
    config, peak = small_config(), flops_per_token(small_config(), 16, causal=True) * 4000
    monkeypatch.setattr(throughput, "peak_flops", lambda kind: peak / jax.device_count())
    assert throughput.utilisation(config, LoraConfig(), 16, 1000.0)["mfu_causal"] == pytest.approx(0.25)
    lora = LoraConfig(rank=1)
    tuned = flops_per_token(config, 16, causal=True, lora=lora) * 1000 / peak
    assert throughput.utilisation(config, lora, 16, 1000.0)["mfu_causal"] == pytest.approx(tuned)


@pytest.mark.parametrize(
    ("kind", "tera"),
    [
        ("TPU v4", 275),
        ("TPU v5 lite", 197),
        ("TPU v5p", 459),
        ("TPU v5", 459),
        ("TPU v6 lite", 918),
        ("NVIDIA H100 80GB HBM3", 989),
    ]
    + [
        ("NVIDIA H100 PCIe", 756),
        ("NVIDIA H200", 989),
        ("NVIDIA A100-SXM4-80GB", 312),
        ("NVIDIA L40S", 362),
        ("NVIDIA L4", 121),
    ],
)
def test_known_devices_have_their_peak(kind, tera):
    assert peak_flops(kind) == tera * 1e12


def test_an_unknown_device_has_no_peak():
    assert peak_flops("cpu") is None
