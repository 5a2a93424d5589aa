"""Hugging Face's form of a model: a folder with `config.json` and safetensors files, as `LlamaForCausalLM` has it.

Rotary positions are half-split on both sides, so no rows are permuted; linear layers' weights are transposed there.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
import functools
import json
import math
import os
from pathlib import Path
import types
from typing import Any, cast

import jax
import ml_dtypes
import numpy as np

from diversity_jax.core.errors import InputError
from diversity_jax.core.files import read_json, write_json, writing
from diversity_jax.model.config import LlamaConfig
from diversity_jax.model.llama import param_shapes
from diversity_jax.model.sharding import path_name

_TYPES = {"F32": np.float32, "F16": np.float16, "BF16": ml_dtypes.bfloat16, "F64": np.float64}
_DTYPES = {code: np.dtype(kind) for code, kind in _TYPES.items()}
_INDEX = "model.safetensors.index.json"
_SINGLE = "model.safetensors"

# Our parameter -> name there. Layers' names carry their number.
_TOP = {"embed": "model.embed_tokens.weight", "norm": "model.norm.weight", "head": "lm_head.weight"}
_LAYER = {
    "blocks/attention_norm": "input_layernorm.weight",
    "blocks/attention/query": "self_attn.q_proj.weight",
    "blocks/attention/key": "self_attn.k_proj.weight",
    "blocks/attention/value": "self_attn.v_proj.weight",
    "blocks/attention/output": "self_attn.o_proj.weight",
    "blocks/mlp_norm": "post_attention_layernorm.weight",
    "blocks/mlp/gate": "mlp.gate_proj.weight",
    "blocks/mlp/up": "mlp.up_proj.weight",
    "blocks/mlp/down": "mlp.down_proj.weight",
}
_IGNORED = "rotary_emb.inv_freq"  # older files hold this table, which follows from the config


@dataclass(frozen=True)
class Tensor:
    """An array whose shape is known before its values are made or read."""

    name: str
    shape: tuple[int, ...]
    values: Callable[[], np.ndarray]

    def size_bytes(self, dtype: np.dtype) -> int:
        """Bytes it takes in a file."""
        return math.prod(self.shape) * dtype.itemsize

    def file_bytes(self, dtype: np.dtype) -> memoryview:
        """Its values, row-major."""
        values = np.asarray(self.values(), dtype=dtype, order="C")
        if values.shape != self.shape:
            raise ValueError(f"{self.name}: announced as {self.shape}, made as {values.shape}")
        return values.reshape(-1).view(np.uint8).data


def dtype_named(name: str) -> np.dtype:
    """`float32`, `bfloat16` or `float16` as numpy's type.

    Raises:
      InputError: any other name.
    """
    choices = {dtype.name: dtype for dtype in _DTYPES.values() if dtype != np.float64}
    if name not in choices:
        raise InputError(f"dtype={name!r}: must be one of {', '.join(choices)}")
    return choices[name]


def write_tensors(path: str | os.PathLike, tensors: Iterable[Tensor], dtype: np.dtype) -> None:
    """Writes one file atomically; values are made, converted and written one tensor at a time.

    safetensors' own writer takes all arrays at once, and writes what lies in memory for transposed ones.

    Raises:
      InputError: the disk is full.
    """
    tensors = list(tensors)
    code = next(code for code, known in _DTYPES.items() if known == dtype)
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for tensor in tensors:
        end = offset + tensor.size_bytes(dtype)
        header[tensor.name] = {"dtype": code, "shape": list(tensor.shape), "data_offsets": [offset, end]}
        offset = end
    encoded = json.dumps(header, separators=(",", ":")).encode()
    encoded += b" " * (-len(encoded) % 8)
    with writing(path) as file:
        file.write(len(encoded).to_bytes(8, "little") + encoded)
        for tensor in tensors:
            file.write(tensor.file_bytes(dtype))


def read_tensors(path: str | os.PathLike) -> dict[str, Tensor]:
    """A file's tensors by name; values are read when they are asked for.

    Raises:
      InputError: the file is missing or damaged, or holds a tensor of a type that weights do not have.
    """
    from safetensors import SafetensorError, safe_open

    path = Path(path)
    try:
        file = safe_open(path, framework="np")
    except FileNotFoundError:
        raise InputError(f"{path}: no such file; the model's folder is incomplete") from None
    except SafetensorError as error:
        raise InputError(f"{path}: is no safetensors file, or a damaged one ({error}); fetch it again") from None
    tensors = {}
    for name in file.keys():  # noqa: SIM118 the file is no mapping
        header = file.get_slice(name)
        if (dtype := header.get_dtype()) not in _DTYPES:
            raise InputError(f"{path}: {name} is of type {dtype}; weights in {', '.join(_DTYPES)} can be read")
        tensors[name] = Tensor(name, tuple(header.get_shape()), functools.partial(file.get_tensor, name))
    return tensors


def _shapes(config: LlamaConfig) -> dict[str, tuple[int, ...]]:
    """Our shape of every parameter by its path; of one layer, where stacked."""
    leaves = jax.tree_util.tree_leaves_with_path(param_shapes(config))
    shapes = {path_name(path): leaf.shape for path, leaf in leaves}
    return {name: shape[1:] if name in _LAYER else shape for name, shape in shapes.items()}


def _their_shape(name: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    """Matrices are [outputs, inputs] there; embeddings and norms are as ours."""
    if len(shape) == 1 or name == "embed":
        return shape
    inputs = shape[0] * shape[1] if name == "blocks/attention/output" else shape[0]
    return math.prod(shape) // inputs, inputs


def _to_ours(name: str, values: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    return values if len(shape) == 1 or name == "embed" else values.T.reshape(shape)


def _names(config: LlamaConfig) -> Iterator[tuple[str, int | None, str]]:
    """Every tensor as (our parameter, layer, their name), in the order of the computation."""
    yield "embed", None, _TOP["embed"]
    for layer in range(config.num_layers):
        for name, theirs in _LAYER.items():
            yield name, layer, f"model.layers.{layer}.{theirs}"
    yield "norm", None, _TOP["norm"]
    if not config.tie_embeddings:
        yield "head", None, _TOP["head"]


_REQUIRED = {
    "vocab_size": "vocab_size",
    "hidden_size": "hidden_size",
    "intermediate_size": "intermediate_size",
    "num_layers": "num_hidden_layers",
    "num_heads": "num_attention_heads",
}
"""Field of `LlamaConfig` -> entry of `config.json`."""


def config_to_hugging_face(config: LlamaConfig, dtype: str, token_ids: Mapping[str, Any]) -> dict[str, Any]:
    """The content of `config.json` for transformers 4 and 5, with ids such as `eos_token_id`."""
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        **{theirs: getattr(config, ours) for ours, theirs in _REQUIRED.items()},
        "num_key_value_heads": config.kv_heads,
        "head_dim": config.head_size,
        "hidden_act": "silu",
        "max_position_embeddings": config.max_length,
        "initializer_range": config.initializer_range,
        "rms_norm_eps": config.rms_norm_eps,
        "rope_theta": config.rope_theta,
        "rope_parameters": {"rope_type": "default", "rope_theta": config.rope_theta},
        "attention_bias": False,
        "attention_dropout": config.dropout,
        "mlp_bias": False,
        "tie_word_embeddings": config.tie_embeddings,
        **({"bos_token_id": None, "eos_token_id": None} | dict(token_ids)),
        "dtype": dtype,
        "torch_dtype": dtype,
    }


def config_from_hugging_face(folder: str | os.PathLike, **overrides: Any) -> LlamaConfig:
    """The model that a folder's `config.json` describes; keyword arguments replace fields of `LlamaConfig`.

    Raises:
      InputError: it is no Llama, or one with a part that this model does not have; the message names the entry.
    """
    path = Path(folder) / "config.json"
    return config_from_entries(path, read_json(path), **overrides)


def config_from_entries(path: Path, theirs: Any, **overrides: Any) -> LlamaConfig:
    """As `config_from_hugging_face`, from the content of a `config.json`; `path` is what errors name.

    Raises:
      InputError: as there.
    """
    if not isinstance(theirs, dict):
        raise InputError(f"{path}: is not an object; expected the configuration of a LlamaForCausalLM")
    theirs = {"max_position_embeddings": 2048} | theirs
    rope = _refuse_other_models(path, theirs)
    if missing := [name for name in _REQUIRED.values() if name not in theirs]:
        raise InputError(f"{path}: has no {missing[0]}; expected the configuration of a LlamaForCausalLM")
    counts = _REQUIRED | {"max_length": "max_position_embeddings", "num_kv_heads": "num_key_value_heads"}
    fields: dict[str, Any] = {ours: theirs.get(name) for ours, name in counts.items()}
    for ours, value in fields.items():
        is_count = isinstance(value, int) and not isinstance(value, bool) and value > 0
        if not is_count and (ours, value) != ("num_kv_heads", None):
            raise InputError(f"{path}: {counts[ours]} is {value!r}; expected a whole number above 0")
    size = fields["hidden_size"] // fields["num_heads"]
    if theirs.get("head_dim") not in (None, size):
        raise InputError(
            f"{path}: head_dim is {theirs['head_dim']}; only hidden_size / num_attention_heads = {size} can be read"
        )
    fields |= {
        "rope_theta": float(rope.get("rope_theta") or theirs.get("rope_theta") or 10000.0),
        "rms_norm_eps": theirs.get("rms_norm_eps", 1e-6),
        "tie_embeddings": bool(theirs.get("tie_word_embeddings", False)),
        "initializer_range": theirs.get("initializer_range", 0.02),
    }
    return LlamaConfig(**(fields | overrides))


def _refuse_other_models(path: Path, theirs: Mapping[str, Any]) -> Mapping[str, Any]:
    """Refuses what this Llama does not have, with the reason; returns the rotary settings."""
    architectures = theirs.get("architectures") or ["LlamaForCausalLM"]
    if "LlamaForCausalLM" not in architectures:
        raise InputError(f"{path}: architectures is {architectures!r}; only LlamaForCausalLM can be read")
    for name, value, why in (
        ("model_type", "llama", ""),
        ("hidden_act", "silu", ": the gate is SwiGLU"),
        ("attention_bias", False, ": this model has no biases"),
        ("mlp_bias", False, ": this model has no biases"),
    ):
        theirs_value = theirs.get(name, None if name == "model_type" else value)
        if (bool(theirs_value) if value is False else theirs_value) != value:
            raise InputError(f"{path}: {name} is {theirs_value!r}; only {value!r} can be read{why}")
    if theirs.get("quantization_config"):
        raise InputError(f"{path}: the weights are quantised (quantization_config); dequantise them with transformers")
    rope = theirs.get("rope_parameters") or theirs.get("rope_scaling") or {}
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind != "default":
        raise InputError(
            f"{path}: rope_type is {kind!r}; only 'default' can be read: scaled rotary positions are not computed"
        )
    if (share := rope.get("partial_rotary_factor", theirs.get("partial_rotary_factor", 1.0))) != 1.0:
        raise InputError(f"{path}: partial_rotary_factor is {share}; only 1.0 can be read: here the whole head turns")
    return rope


def hugging_face_tensors(config: LlamaConfig, params: Mapping[str, Any]) -> list[Tensor]:
    """Every tensor under its name there and in its form there, fetched when its values are asked for."""
    shapes = _shapes(config)
    return [
        Tensor(theirs, _their_shape(name, shapes[name]), functools.partial(_fetch, params, name, layer))
        for name, layer, theirs in _names(config)
    ]


def export_hugging_face(
    config: LlamaConfig,
    params: Mapping[str, Any],
    folder: str | os.PathLike,
    *,
    dtype: str = "float32",
    max_shard_bytes: int = 5_000_000_000,
    token_ids: Mapping[str, Any] = types.MappingProxyType({}),
) -> Path:
    """Writes a model so that `AutoModelForCausalLM.from_pretrained(folder)` gives the same logits.

    `config.json` is written last: without it, an export did not finish.

    Args:
      params: On any mesh or on the host; fetched one layer's array at a time.
      folder: Made if missing; must hold no model yet.
      dtype: Of the file: "float32", "bfloat16" or "float16".
      max_shard_bytes: A larger model is cut into several files with an index.
      token_ids: Written to `config.json` as they are, such as `bos_token_id` and `eos_token_id`.

    Raises:
      InputError: the folder holds a model, the disk is full, or the dtype is unknown.
    """
    folder, numpy_dtype = Path(folder), dtype_named(dtype)
    refuse_model_folder(folder)
    tensors = hugging_face_tensors(config, params)
    shards = _into_files(tensors, max_shard_bytes, numpy_dtype)
    if len(shards) == 1:
        write_tensors(folder / _SINGLE, shards[0], numpy_dtype)
    else:
        files = [f"model-{number:05d}-of-{len(shards):05d}.safetensors" for number in range(1, len(shards) + 1)]
        for file, shard in zip(files, shards, strict=True):
            write_tensors(folder / file, shard, numpy_dtype)
        total = sum(tensor.size_bytes(numpy_dtype) for tensor in tensors)
        weight_map = {tensor.name: file for file, shard in zip(files, shards, strict=True) for tensor in shard}
        write_json(folder / _INDEX, {"metadata": {"total_size": total}, "weight_map": weight_map})
    write_json(folder / "config.json", config_to_hugging_face(config, dtype, token_ids))
    return folder


def refuse_model_folder(folder: Path) -> None:
    """Raises `InputError` where a folder holds a model, or part of one."""
    if (folder / "config.json").exists() or list(folder.glob("*.safetensors*")):
        raise InputError(f"{folder}: holds a model already; choose another folder or remove it")


def _fetch(params: Mapping[str, Any], name: str, layer: int | None) -> np.ndarray:
    array = functools.reduce(lambda tree, part: tree[part], name.split("/"), cast(Any, params))
    values = np.asarray(array if layer is None else array[layer])
    is_same = values.ndim == 1 or name == "embed"
    return values if is_same else values.reshape(_their_shape(name, values.shape)[::-1]).T


def _into_files(tensors: list[Tensor], max_bytes: int, dtype: np.dtype) -> list[list[Tensor]]:
    files: list[list[Tensor]] = []
    free_bytes = 0
    for tensor in tensors:
        size = tensor.size_bytes(dtype)
        if not files or size > free_bytes:
            files.append([])
            free_bytes = max_bytes
        files[-1].append(tensor)
        free_bytes -= size
    return files


def import_hugging_face(folder: str | os.PathLike, **overrides: Any) -> tuple[LlamaConfig, dict[str, Any]]:
    """Reads a folder that `save_pretrained` of a `LlamaForCausalLM`, or `export_hugging_face`, wrote.

    Args:
      **overrides: Fields of `LlamaConfig` that the folder does not decide, such as `scan_layers` or `compute_dtype`.

    Returns:
      The config, and float32 numpy parameters in our layout.

    Raises:
      InputError: something is missing, of another shape, damaged or not part of this model; the message names it.
    """
    folder = Path(folder)
    config = config_from_hugging_face(folder, **overrides)
    return config, params_from_tensors(folder, config, _read_folder(folder))


def params_from_tensors(folder: Path, config: LlamaConfig, tensors: dict[str, Tensor]) -> dict[str, Any]:
    """Float32 numpy parameters in our layout from tensors under Hugging Face's names; `folder` is what errors name.

    Raises:
      InputError: one is missing, of another shape or not part of this model.
    """
    if config.tie_embeddings and (head := tensors.pop(_TOP["head"], None)) is not None:
        embed = tensors.get(_TOP["embed"])
        if embed is None or not np.array_equal(head.values(), embed.values()):
            raise InputError(f"{folder}: lm_head.weight differs from the embedding, which config.json says it is")
    shapes = _shapes(config)
    expected = {theirs: _their_shape(name, shapes[name]) for name, _, theirs in _names(config)}
    _check_names_and_shapes(folder, tensors, expected)
    params: dict[str, Any] = {}
    for name, shape in shapes.items():
        *parents, leaf = name.split("/")
        tree = params
        for parent in parents:
            tree = tree.setdefault(parent, {})
        if name in _LAYER:
            tree[leaf] = np.empty((config.num_layers, *shape), np.float32)
            for layer in range(config.num_layers):
                tree[leaf][layer] = _to_ours(name, tensors[f"model.layers.{layer}.{_LAYER[name]}"].values(), shape)
        else:
            tree[leaf] = np.ascontiguousarray(_to_ours(name, tensors[_TOP[name]].values(), shape), np.float32)
    return params


def _read_folder(folder: Path) -> dict[str, Tensor]:
    if (folder / _INDEX).exists():
        index = read_json(folder / _INDEX)
        weight_map: Any = index.get("weight_map") if isinstance(index, dict) else None
        names = list(weight_map.values()) if isinstance(weight_map, dict) else [None]
        if not all(isinstance(file, str) and Path(file).name == file for file in names):
            raise InputError(f"{folder / _INDEX}: has no weight_map of tensors to files beside it; fetch it again")
        files = {file: read_tensors(folder / file) for file in sorted(set(weight_map.values()))}
        if missing := sorted(name for name, file in weight_map.items() if name not in files[file]):
            file = weight_map[missing[0]]
            raise InputError(f"{folder / file}: has no tensor {missing[0]}, which {_INDEX} places there")
        tensors = {name: files[file][name] for name, file in weight_map.items()}
    elif (folder / _SINGLE).exists():
        tensors = read_tensors(folder / _SINGLE)
    else:
        is_pickled = any(folder.glob("pytorch_model*"))
        pickled = " (pytorch_model.bin is not read: save the model again with transformers)" if is_pickled else ""
        raise InputError(f"{folder}: holds neither {_SINGLE} nor {_INDEX}; give a model in safetensors form{pickled}")
    return {name: tensor for name, tensor in tensors.items() if not name.endswith(_IGNORED)}


def _check_names_and_shapes(folder, tensors, expected):
    def listed(names: list[str]) -> str:
        return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")

    if missing := [name for name in expected if name not in tensors]:
        raise InputError(f"{folder}: lacks {listed(missing)}; expected {len(expected)} tensors by its config.json")
    if unknown := [name for name in tensors if name not in expected]:
        raise InputError(f"{folder}: holds {listed(unknown)}, which a Llama by its config.json does not have")
    for name, shape in expected.items():
        if tensors[name].shape != shape:
            raise InputError(f"{folder}: {name} is {list(tensors[name].shape)}; expected {list(shape)} by config.json")
