"""Export to Hugging Face and import again, with the logits of transformers."""

from fractions import Fraction
import json

import jax
import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy

from diversity_jax.core.errors import InputError
from diversity_jax.model.checkpoint_io.hugging_face import (
    Tensor,
    config_to_hugging_face,
    export_hugging_face,
    import_hugging_face,
    read_tensors,
    write_tensors,
)
from diversity_jax.model.convert import compare_logits, compare_with_transformers, main, read_model, write_imported
from diversity_jax.model.llama import logits
from diversity_jax.tokenizers.tokenizer import load_tokenizer
from tests import golden_logits
from tests.mixture_folders import build_mixture
from tests.small_llama import random_params, small_config


def model(**fields):
    config = small_config(rope_theta=5000.0, **fields)
    return config, random_params(config, scale=0.3)


def assert_same(left, right):
    jax.tree.map(np.testing.assert_array_equal, left, right)


VARIANTS = [
    {},
    {"tie_embeddings": False},
    {"num_kv_heads": 2},
    {"num_kv_heads": 1, "tie_embeddings": False, "rms_norm_eps": 1e-4},
]


@pytest.mark.parametrize("fields", VARIANTS, ids=str)
def test_transformers_gives_the_same_logits(tmp_path, fields):
    pytest.importorskip("transformers")
    config, params = model(**fields)
    export_hugging_face(config, params, tmp_path / "out")
    assert compare_with_transformers(tmp_path / "out").relative < 1e-4


@pytest.mark.parametrize("name", golden_logits.VARIANTS)
def test_logits_are_those_that_transformers_gave(name):
    """Parity where transformers is not installed: against numbers it computed from the same seeded weights."""
    config, params = golden_logits.golden_model(name)
    golden = json.loads(golden_logits.PATH.read_text())
    with jax.default_matmul_precision("highest"):
        ours = np.asarray(jax.jit(logits, static_argnums=0)(config, params, golden_logits.golden_tokens()))[0]
    np.testing.assert_allclose(
        ours[list(golden_logits.SHOWN)],
        np.array(golden["logits"][name], np.float32),
        atol=1e-4,
        err_msg=f"logits differ from those of {golden['made_with']}; if the seeded weights were changed on purpose, "
        "renew the numbers "
        "with: python -m tests.golden_logits",
    )


@pytest.mark.parametrize("fields", VARIANTS, ids=str)
def test_there_and_back_is_bit_exact(tmp_path, fields):
    config, params = model(**fields)
    export_hugging_face(config, params, tmp_path, max_shard_bytes=30_000)
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 1
    back, restored = import_hugging_face(tmp_path, compute_dtype="float32")
    assert (back.parameter_count, back.rope_theta, back.rms_norm_eps) == (
        config.parameter_count,
        config.rope_theta,
        config.rms_norm_eps,
    )
    assert_same(params, restored)


def test_a_model_that_transformers_saved_is_read(tmp_path):
    transformers = pytest.importorskip("transformers")
    config = model(num_kv_heads=2, tie_embeddings=False)[0]
    settings = config_to_hugging_face(config, "float32", {})
    theirs = transformers.LlamaConfig(**{k: v for k, v in settings.items() if k not in ("dtype", "torch_dtype")})
    transformers.LlamaForCausalLM(theirs).save_pretrained(tmp_path, max_shard_size="20KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    assert compare_with_transformers(tmp_path).relative < 1e-4


def test_safetensors_own_library_agrees(tmp_path):
    safetensors = pytest.importorskip("safetensors.numpy")
    rng = np.random.default_rng(0)
    arrays = {
        "a": rng.normal(size=(3, 5)).astype(np.float32).T,
        "b": rng.normal(size=(0, 4)).astype(np.float32),
        "c": np.float32(2.5),
    }
    ours, theirs = tmp_path / "ours.safetensors", tmp_path / "theirs.safetensors"
    write_tensors(
        ours, [Tensor(name=k, shape=np.shape(v), values=lambda v=v: v) for k, v in arrays.items()], np.dtype(np.float32)
    )
    safetensors.save_file({name: np.ascontiguousarray(values) for name, values in arrays.items()}, theirs)
    assert_same(safetensors.load_file(ours), {name: np.asarray(values) for name, values in arrays.items()})
    read = [{name: tensor.values() for name, tensor in read_tensors(path).items()} for path in (ours, theirs)]
    assert_same(*read)


def test_bfloat16_files_hold_the_rounded_values(tmp_path):
    config, params = model()
    export_hugging_face(config, params, tmp_path, dtype="bfloat16")
    assert json.loads((tmp_path / "config.json").read_text())["dtype"] == "bfloat16"
    assert_same(
        jax.tree.map(lambda x: x.astype(ml_dtypes.bfloat16).astype(np.float32), params),
        import_hugging_face(tmp_path)[1],
    )


def edit_config(folder, **fields):
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"num_hidden_layers": 3}, "model.layers.2.input_layernorm.weight"),
        ({"num_hidden_layers": 1}, "holds model.layers.1.input_layernorm.weight"),
        ({"intermediate_size": 84}, "mlp.gate_proj.weight is [48, 32]; expected [84, 32]"),
        ({"tie_word_embeddings": False}, "lacks lm_head.weight"),
        ({"attention_bias": True}, "lacks model.layers.0.self_attn.q_proj.bias"),
        ({"model_type": "mixtral"}, "model_type is 'mixtral'; can be read: llama, mistral"),
        ({"architectures": ["MistralForCausalLM"]}, "architectures is ['MistralForCausalLM']; only LlamaForCausalLM"),
        ({"quantization_config": {"bits": 4}}, "the weights are quantised"),
        ({"mlp_bias": True}, "lacks model.layers.0.mlp.gate_proj.bias"),
        ({"hidden_size": "32"}, "hidden_size is '32'; expected a whole number"),
        ({"num_attention_heads": 0}, "num_attention_heads is 0"),
        ({"num_hidden_layers": 1_000_000_000}, "num_hidden_layers is 1000000000"),
        ({"num_hidden_layers": 10_000}, "lacks model.layers.2.input_layernorm.weight"),
        ({"vocab_size": 1 << 50}, "model.embed_tokens.weight is [64, 32]; expected [1125899906842624, 32]"),
        ({"head_dim": 16}, "q_proj.weight is [32, 32]; expected [64, 32]"),
        ({"hidden_act": "gelu"}, "hidden_act is 'gelu'"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_what_does_not_fit_is_named(tmp_path, fields, message):
    export_hugging_face(*model(), tmp_path)
    edit_config(tmp_path, **fields)
    with pytest.raises(InputError) as error:
        import_hugging_face(tmp_path)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_a_tied_matrix_is_read_under_either_name(tmp_path):
    config, params = model(tie_embeddings=True)
    path = export_hugging_face(config, params, tmp_path) / "model.safetensors"
    tensors = safetensors.numpy.load_file(path)
    tensors["lm_head.weight"] = tensors.pop("model.embed_tokens.weight")
    safetensors.numpy.save_file(tensors, path)
    edit_config(tmp_path, is_causal=True)
    assert_same(import_hugging_face(tmp_path)[1], params)


def test_a_tied_model_whose_head_differs_is_refused(tmp_path):
    config, params = model(tie_embeddings=False)
    export_hugging_face(config, params, tmp_path)
    edit_config(tmp_path, tie_word_embeddings=True)
    with pytest.raises(InputError, match="differs from the embedding"):
        import_hugging_face(tmp_path)


@pytest.mark.parametrize(
    "index", [{}, [], {"weight_map": {"norm": "../other.safetensors"}}, {"weight_map": 3}], ids=str
)
def test_a_broken_index_is_named(tmp_path, index):
    export_hugging_face(*model(), tmp_path, max_shard_bytes=30_000)
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(InputError, match="has no weight_map"):
        import_hugging_face(tmp_path)


@pytest.mark.parametrize("name", ["model.layers.1.self_attn.q_proj.bias", "model.layers.0.input_layernorm.weight"])
def test_a_tensor_that_the_index_does_not_place_in_a_file_is_named(tmp_path, name):
    export_hugging_face(*model(), tmp_path, max_shard_bytes=20_000)
    path = sorted(tmp_path.glob("model-*.safetensors"))[-1]
    other = {name: np.ones(32, np.float32)}  # the second stands in another file too
    safetensors.numpy.save_file(safetensors.numpy.load_file(path) | other, path)
    with pytest.raises(InputError, match=rf"holds {name}, which model.* does not place there"):
        import_hugging_face(tmp_path)


def test_a_whole_file_counts_before_an_index_as_in_transformers(tmp_path):
    config, params = model()
    export_hugging_face(config, params, tmp_path)
    export_hugging_face(config, jax.tree.map(np.zeros_like, params), tmp_path / "parts", max_shard_bytes=30_000)
    for path in (tmp_path / "parts").glob("*.safetensors*"):
        path.rename(tmp_path / path.name)
    jax.tree.map(np.testing.assert_array_equal, import_hugging_face(tmp_path)[1], jax.device_get(params))


@pytest.mark.parametrize("beside", [True, False])
def test_adapters_alone_or_beside_a_model_are_refused(tmp_path, beside):
    if beside:
        export_hugging_face(*model(), tmp_path)
    (tmp_path / "adapter_config.json").write_text('{"peft_type": "LORA"}')
    with pytest.raises(InputError, match="holds adapters; merge them"):
        read_model(tmp_path)
    with pytest.raises(InputError, match="holds adapters; merge them"):
        import_hugging_face(tmp_path)


@pytest.mark.parametrize("damage", ["cut", "header", "empty", "gone", "integers"])
def test_damaged_files_are_named(tmp_path, damage):
    export_hugging_face(*model(), tmp_path)
    path = tmp_path / "model.safetensors"
    data = path.read_bytes()
    if damage == "gone":
        path.unlink()
    else:
        wrong = {
            "cut": data[:-100],
            "header": data[:8] + b"x" + data[9:],
            "empty": b"",
            "integers": data.replace(b'"F32"', b'"I32"', 1),
        }
        path.write_bytes(wrong[damage])
    with pytest.raises(InputError, match=r"safetensors"):
        import_hugging_face(tmp_path)


@pytest.mark.parametrize("value", [np.nan, -np.inf])
def test_weights_that_are_not_finite_are_named(tmp_path, value):
    config, params = small_config(), jax.tree.map(np.array, random_params(small_config()))
    params["blocks"]["mlp"]["up"][1, 0, 0] = 1e6
    with pytest.raises(
        InputError, match=r"layers.1.mlp.up_proj.weight: .* not finite as float16; write it as bfloat16"
    ):
        export_hugging_face(config, params, tmp_path / "half", dtype="float16")
    export_hugging_face(config, params, tmp_path / "model")
    tensors = safetensors.numpy.load_file(tmp_path / "model" / "model.safetensors")
    tensors["model.layers.1.mlp.up_proj.weight"][0, 0] = value
    safetensors.numpy.save_file(tensors, tmp_path / "model" / "model.safetensors")
    with pytest.raises(InputError, match=r"model: model.layers.1.mlp.up_proj.weight holds NaN or infinity"):
        import_hugging_face(tmp_path / "model")


def test_logits_are_compared_by_their_spread_and_by_what_they_predict():
    theirs = np.random.default_rng(0).normal(size=(50, 100)) * 12
    rounded = compare_logits(theirs + 4e-4, theirs)  # more than 1e-4, and right
    assert rounded.is_same
    assert "same likeliest token at 100.00% of 50 positions" in str(rounded)
    assert not compare_logits(theirs * 1.01, theirs).is_same
    assert not compare_logits(np.roll(theirs, 1, axis=0), theirs).is_same
    assert not compare_logits(np.full_like(theirs, np.nan), theirs).is_same
    assert 0 < compare_logits(theirs * 1.01, theirs).kl_nats < 0.1


def test_an_export_does_not_overwrite_a_model(tmp_path):
    export_hugging_face(*model(), tmp_path)
    with pytest.raises(InputError, match="holds a model already"):
        export_hugging_face(*model(), tmp_path)


def test_an_interrupted_export_has_no_config(tmp_path):
    config, params = model()
    del params["norm"]
    with pytest.raises(KeyError):
        export_hugging_face(config, params, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_imported_weights_are_read_and_exported_again(tmp_path, capsys):
    config, params = model(num_kv_heads=2)
    export_hugging_face(config, params, tmp_path / "first")
    main(["import", str(tmp_path / "first"), str(tmp_path / "ours")])
    main(["export", str(tmp_path / "ours"), str(tmp_path / "second"), "--end-of-text-id", "0"])
    assert f"{config.parameter_count:,} parameters" in capsys.readouterr().out
    assert_same(params, import_hugging_face(tmp_path / "second")[1])


def test_a_runs_checkpoint_is_exported(tmp_path, capsys):
    config, params = model()
    from orbax.checkpoint import v1 as ocp

    for step, scale in ((3, 1.0), (12, 2.0)):
        ocp.save_checkpointables(
            tmp_path / "run/checkpoints" / str(step), {"params": jax.tree.map(lambda x, s=scale: s * x, params)}
        )
    fields = {name: getattr(config, name) for name in config.__dataclass_fields__}
    (tmp_path / "run/run.json").write_text(json.dumps({"settings": {"model": fields}}))
    assert_same(read_model(tmp_path / "run", step=3)[1], params)
    assert_same(read_model(tmp_path / "run")[1], jax.tree.map(lambda x: 2 * x, params))
    with pytest.raises(SystemExit):
        main(["export", str(tmp_path / "run"), str(tmp_path / "out"), "--step", "4"])
    assert "no checkpoint of step 4; there: 3, 12" in capsys.readouterr().err


def test_a_folder_without_a_model_is_one_line(tmp_path, capsys):
    with pytest.raises(SystemExit) as error:
        main(["export", str(tmp_path), str(tmp_path / "out")])
    assert error.value.code == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_a_step_of_what_is_no_run_is_refused(tmp_path):
    export_hugging_face(*model(), tmp_path)
    with pytest.raises(InputError, match="is no run's output, so it has no checkpoint of step 3"):
        read_model(tmp_path, step=3)


def test_imported_weights_are_not_overwritten(tmp_path):
    config, params = model()
    write_imported(config, params, tmp_path)
    with pytest.raises(InputError, match="holds a model already"):
        write_imported(config, params, tmp_path)


def run_folder(folder, config, params, mixture=None):
    """A training run's folder as far as an export reads it."""
    from orbax.checkpoint import v1 as ocp

    ocp.save_checkpointables(folder / "checkpoints" / "3", {"params": params})
    fields = {name: getattr(config, name) for name in config.__dataclass_fields__}
    prepared = str(mixture) if mixture else None
    (folder / "run.json").write_text(json.dumps({"settings": {"model": fields, "prepared": prepared}}))
    return folder


def test_a_run_takes_its_tokenizer_along(tmp_path, capsys):
    tokenizers = pytest.importorskip("tokenizers")
    config = small_config(vocab_size=384)
    built = build_mixture(tmp_path / "mixture", {"a": Fraction(1)}, documents=60)
    run = run_folder(tmp_path / "run", config, random_params(config), built)
    main(["export", str(run), str(tmp_path / "out")])
    assert "with its tokenizer" in capsys.readouterr().out
    written = json.loads((tmp_path / "out" / "config.json").read_text())
    assert (written["eos_token_id"], written["bos_token_id"]) == (1, 1)
    theirs = tokenizers.Tokenizer.from_file(str(tmp_path / "out" / "tokenizer.json"))
    text = "caf\u00e9 \u4f60\u597d\n\t 1  2 \U0001f600"
    ours = load_tokenizer("bytes").encode_batch([text])[0].tolist()
    assert theirs.encode(text, add_special_tokens=False).ids == ours
    assert theirs.decode(ours) == text
    assert json.loads((tmp_path / "out" / "tokenizer_config.json").read_text())["eos_token"] == theirs.id_to_token(1)


def test_an_imported_models_tokenizer_comes_along_and_leaves_again(tmp_path):
    config, params = model()
    export_hugging_face(config, params, tmp_path / "theirs")
    content = json.dumps({"model": {"type": "BPE", "vocab": {"a": 0, "b": 1}, "merges": []}, "added_tokens": []})
    (tmp_path / "theirs" / "tokenizer.json").write_text(content)
    (tmp_path / "theirs" / "tokenizer_config.json").write_text('{"tokenizer_class": "LlamaTokenizerFast"}')
    main(["import", str(tmp_path / "theirs"), str(tmp_path / "ours")])
    main(["export", str(tmp_path / "ours"), str(tmp_path / "again"), "--dtype", "bfloat16"])
    for name in ("tokenizer.json", "tokenizer_config.json"):
        assert (tmp_path / "again" / name).read_bytes() == (tmp_path / "theirs" / name).read_bytes()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--tokenizer", "nowhere.json"], "tokenizer nowhere.json: give bytes"),
        (["--tokenizer", "bytes"], "the tokenizer has 259 ids, more than the model's 64"),
        (["--max-shard-gigabytes", "0"], "--max-shard-gigabytes 0: must be above 0"),
        (["--dtype", "int8"], "dtype='int8'"),
    ],
    ids=lambda value: value[1] if isinstance(value, list) else "",
)
def test_what_an_export_cannot_do_is_one_line(tmp_path, capsys, arguments, message):
    run = run_folder(tmp_path / "run", *model())
    with pytest.raises(SystemExit):
        main(["export", str(run), str(tmp_path / "out"), *arguments])
    shown = capsys.readouterr().err
    assert message in shown
    assert shown.count("\n") == 1
    assert not (tmp_path / "out" / "config.json").exists()
