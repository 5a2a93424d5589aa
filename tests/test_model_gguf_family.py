"""GGUF of Llama's successors: llama.cpp computes the same, files round-trip, and the rest is refused."""

import dataclasses

import jax
import numpy as np
import pytest

from diversity_jax.core.errors import InputError
from diversity_jax.model import logits
from diversity_jax.model.checkpoint_io.gguf import export_gguf, import_gguf
from diversity_jax.model.checkpoint_io.gguf_file import read_gguf
from diversity_jax.tokenizers.files import named_tokenizer
from tests.family_switches import SWITCHES
from tests.llama_cpp_server import serve_gguf
from tests.small_llama import random_params, small_config
from tests.test_model_gguf import compare_next_token

_LONG = {"rope_factor": 4.0, "rope_original_length": 32}
_HEADS = {"num_kv_heads": 2}
OWN = {
    "plain": {},
    "biases": {"qkv_bias": True, "output_bias": True, "mlp_bias": True, **_HEADS},
    "head_dim": {"head_dim": 16, **_HEADS},
    "untied": {"tie_embeddings": False, "rms_norm_eps": 1e-4},
    "llama_3_of_its_length": {"rope_scaling": "llama3", "rope_factor": 8.0, "rope_original_length": 8192},
    "qwen_2_plain": {"qkv_bias": True, **_HEADS},
    "qwen_2_yarn": {"qkv_bias": True, "rope_scaling": "yarn", **_LONG},
    "smollm_3_plain": {"layers_without_rotary": (3,), "num_layers": 5, **_HEADS},
    "olmo_2_untied": {"qk_norm": "full", "norm_order": "post", "tie_embeddings": False},
}
WRITTEN = OWN | {
    name: SWITCHES[name]
    for name in ("llama_3", "llama_3_turns", "linear", "yarn", "yarn_attention", "qwen_3", "olmo_2", "granite")
}
NOT_FUNCTION = ("num_kv_heads", "initializer_range", "compute_dtype", "scan_layers")


def exported(folder, fields):
    config = small_config(**({"vocab_size": 264, "max_length": 128, "intermediate_size": 64} | fields))
    params = jax.device_get(random_params(config, scale=0.3))
    return config, params, export_gguf(config, params, folder / "m.gguf", tokenizer=named_tokenizer("bytes"))


@pytest.mark.parametrize("name", WRITTEN)
def test_every_kind_comes_back_the_same(tmp_path, name):
    config, params, path = exported(tmp_path, WRITTEN[name])
    back, restored, _ = import_gguf(path)
    jax.tree.map(np.testing.assert_array_equal, params, restored)
    changed = {field for field, value in vars(config).items() if getattr(back, field) != value}
    assert changed <= {*NOT_FUNCTION}


@pytest.mark.parametrize("name", WRITTEN)
def test_llama_cpp_computes_the_same(tmp_path, name):
    pytest.importorskip("xllamacpp", reason="llama.cpp is not installed (extra llamacpp)")
    config, params, path = exported(tmp_path, WRITTEN[name])
    tokens_L = np.random.default_rng(0).integers(3, 259, 100).astype(np.int32)
    with jax.default_matmul_precision("highest"):
        ours = np.asarray(jax.nn.log_softmax(jax.jit(logits, static_argnums=0)(config, params, tokens_L[None])))[0]
    with serve_gguf(path, context_tokens=128, in_parallel=1) as address:
        lengths = (3, 5, 20, 33, 60, 99, 100)
        assert sum(compare_next_token(address, tokens_L[:length], ours[length - 1]) for length in lengths) > 10


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (SWITCHES["dynamic"], "rope_scaling='dynamic'"),
        (SWITCHES["smollm_3"], r"layers_without_rotary=\(1, 3\)"),
        (OWN["smollm_3_plain"] | {"mlp_bias": True}, "mlp_bias=True"),
        (SWITCHES["olmo_3"], "'olmo3' models"),
        (SWITCHES["phi_4"], "'phi3' models"),
        (SWITCHES["gemma"], "'gemma' models"),
        ({"qk_norm": "head", "qkv_bias": True, "output_bias": True}, "'qwen3' models with model.qkv_bias=True"),
        ({"qkv_bias": True, "head_dim": 12}, "'qwen2' models with model.head_dim=12"),
    ],
    ids=str,
)
def test_what_llama_cpp_would_compute_otherwise_is_refused(tmp_path, fields, message):
    with pytest.raises(InputError, match=message):
        exported(tmp_path, fields)
    assert not (tmp_path / "m.gguf").exists()


@pytest.mark.parametrize("key", ["attention.scale", "logit_scale"])
def test_a_granite_without_its_scales_is_refused(tmp_path, monkeypatch, key):
    """llama.cpp assumes another scale of attention than transformers, and none of the logits."""
    file = read_gguf(exported(tmp_path, SWITCHES["granite"])[2])
    entries = {name: value for name, value in file.entries.items() if name != f"granite.{key}"}
    changed = dataclasses.replace(file, entries=entries)
    monkeypatch.setattr("diversity_jax.model.checkpoint_io.gguf.read_gguf", lambda path: changed)
    with pytest.raises(InputError, match=f"has no granite.{key}; fetch"):
        import_gguf(file.path)


def test_a_window_limits_the_context_since_llama_cpp_looks_back_on_all(tmp_path):
    path = exported(tmp_path, {"sliding_window": 40})[2]
    assert import_gguf(path)[0].max_length == 40
