"""Published `config.json` files: the logits of transformers, bit-exact round trips, or a refusal."""

import dataclasses
import functools
import json
from pathlib import Path

import jax
import numpy as np
import pytest

from diversity_jax.core.errors import InputError
from diversity_jax.model.checkpoint_io import hugging_face
from diversity_jax.model.checkpoint_io.hugging_face import export_hugging_face, import_hugging_face
from diversity_jax.model.checkpoint_io.hugging_face_config import config_from_entries, config_to_hugging_face
from diversity_jax.model.checkpoint_io.tensor_files import Tensor, read_tensors
from diversity_jax.model.llama import logits
from tests.family_configs import CONFIGS, REFUSED, SHOWN, SHOWN_IDS, tensor_values, tokens
from tests.small_llama import small_config

GOLDEN = Path(__file__).parent / "golden" / "family_logits.json"
AS_TESTED = {"compute_dtype": "float32", "scan_layers": False, "attention": "reference"}


def published(name):
    """The small model of a configuration, with the weights that transformers' logits were computed from."""
    config = config_from_entries(Path("config.json"), CONFIGS[name], **AS_TESTED)
    tensors = hugging_face.hugging_face_tensors(config, {})
    if CONFIGS[name]["model_type"] == "phi3":
        tensors = hugging_face._fused(tensors)
    made = {
        description.name: Tensor(
            description.name,
            description.shape,
            functools.partial(tensor_values, description.name, description.shape, config.norm_offset),
        )
        for description in tensors
    }
    return config, hugging_face.params_from_tensors(Path(name), config, made)


@pytest.mark.parametrize("name", CONFIGS)
def test_logits_are_those_that_transformers_gave(name):
    """At up to four times the length that scaled positions were made for."""
    golden = json.loads(GOLDEN.read_text())
    config, params = published(name)
    with jax.default_matmul_precision("highest"):
        actual = np.asarray(logits(config, params, tokens()))
    expected = np.array(golden["logits"][name])
    difference = np.abs(actual[0][list(SHOWN), :SHOWN_IDS] - expected).max() / actual.std()
    assert difference < 1e-4, (
        f"logits differ from those of {golden['made_with']} by {difference:.1e} of their spread; renew the file with "
        "scripts/checks/verify_family.py --write if the configurations or weights were changed on purpose"
    )


@pytest.mark.parametrize("name", CONFIGS)
def test_exported_and_read_again_it_is_the_same_model(name, tmp_path):
    config, params = published(name)
    export_hugging_face(config, params, tmp_path, token_ids={"eos_token_id": 2})
    written = json.loads((tmp_path / "config.json").read_text())
    assert written["architectures"][0].lower().startswith(written["model_type"].replace("_", "").removesuffix("text"))
    again, restored = import_hugging_face(tmp_path, **AS_TESTED)
    assert dataclasses.replace(again, max_length=1, num_kv_heads=config.num_kv_heads) == dataclasses.replace(
        config, max_length=1
    )
    jax.tree.map(np.testing.assert_array_equal, params, restored)
    fused = any("qkv_proj" in tensor for tensor in read_tensors(tmp_path / "model.safetensors"))
    assert fused == (written["model_type"] == "phi3")


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_not_computed_is_refused_in_one_line(name):
    fields, message = REFUSED[name]
    with pytest.raises(InputError) as error:
        config_from_entries(Path("config.json"), fields)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["mistral_0_1", "ministral", "phi_3_mini", "gemma_3_1b", "olmo_3_7b"])
def test_a_switch_of_other_families_turns_no_window_off(name):
    """As in transformers, whose classes of these do not know it."""
    fields = CONFIGS[name]
    assert fields["sliding_window"] is not None
    read = functools.partial(config_from_entries, Path("config.json"))
    assert read({**fields, "use_sliding_window": False}) == read(fields)


def test_layers_with_a_window_have_their_class_s_own_base_where_the_file_names_none():
    fields = CONFIGS["olmo_3_new"] | {"rope_parameters": {"full_attention": {"rope_theta": 10000.0}}}
    parsed = config_from_entries(Path("config.json"), fields)
    assert (parsed.rope_theta, parsed.window_rope_theta) == (10000.0, 500000.0)


def test_a_model_that_no_architecture_has_is_not_exported(tmp_path):
    config = small_config(qk_norm="full", residual_multiplier=0.5)
    with pytest.raises(InputError, match=r"qk_norm='full', residual_multiplier=0.5"):
        export_hugging_face(config, {}, tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("fields", "kind"),
    [
        ({}, "llama"),
        ({"sliding_window": 8}, "mistral"),
        ({"sliding_window": 8, "layers_without_window": (0,)}, "ministral"),
        ({"qkv_bias": True, "sliding_window": 8}, "qwen2"),
        ({"qk_norm": "head", "head_dim": 16}, "qwen3"),
        ({"layers_without_rotary": (1,), "mlp_bias": True}, "smollm3"),
        ({"logits_divisor": 4.0}, "granite"),
        ({"qkv_bias": True, "mlp_bias": True}, "seed_oss"),
        ({"num_heads": 6, "num_kv_heads": 2, "head_dim": 8}, "mistral"),  # transformers 5 refuses it as llama
    ],
    ids=str,
)
def test_the_first_family_that_has_all_is_written(fields, kind):
    assert config_to_hugging_face(small_config(**fields), "float32", {})["model_type"] == kind
