"""Export and import of models as Hugging Face folders: `config.json` and safetensors files.

Rotary positions are half-split in both layouts, so no rows are permuted; Hugging Face's linear layers are transposed.
"""

from collections.abc import Callable, Iterator, Mapping
import functools
import math
import os
from pathlib import Path
import re
import types
from typing import Any, cast

import jax
import numpy as np

from diversity_jax.core.errors import InputError
from diversity_jax.core.files import path_inside, read_json, write_json
from diversity_jax.model.checkpoint_io.hugging_face_config import config_from_hugging_face, config_to_hugging_face
from diversity_jax.model.checkpoint_io.tensor_files import Tensor, dtype_named, read_tensors, read_torch, write_tensors
from diversity_jax.model.config import LlamaConfig
from diversity_jax.model.llama import param_shapes
from diversity_jax.model.sharding import VECTORS, path_name

_INDEX = "model.safetensors.index.json"
_SINGLE = "model.safetensors"
_TORCH, _TORCH_INDEX = "pytorch_model.bin", "pytorch_model.bin.index.json"

# Our parameter -> Hugging Face's name.
_TOP = {"embed": "model.embed_tokens.weight", "norm": "model.norm.weight", "head": "lm_head.weight"}
_IGNORED = "rotary_emb.inv_freq"  # a table in older files, which follows from the config
# Norms of a layer by `norm_order`: before and after attention, before and after the feed-forward part.
_NORMS = {
    "pre": ("input_layernorm", None, "post_attention_layernorm", None),
    "post": (None, "post_attention_layernorm", None, "post_feedforward_layernorm"),
    "both": (
        *("input_layernorm", "post_attention_layernorm", "pre_feedforward_layernorm", "post_feedforward_layernorm"),
    ),
}


def _layer_names(config: LlamaConfig) -> dict[str, str]:
    """Our parameter of a layer -> Hugging Face's name within a layer, in the order of the computation."""
    before, after, before_mlp, after_mlp = _NORMS[config.norm_order]
    matrices = {"query": "q_proj", "key": "k_proj", "value": "v_proj", "output": "o_proj"}
    names = {"blocks/attention_norm": before}
    for ours, theirs in matrices.items():
        names[f"blocks/attention/{ours}"] = f"self_attn.{theirs}"
        if config.output_bias if ours == "output" else config.qkv_bias:
            names[f"blocks/attention/{ours}_bias"] = f"self_attn.{theirs}.bias"
    if config.qk_norm != "none":
        start = "full_" if config.qk_norm == "full" else ""
        names |= {f"blocks/attention/{start}{ours}_norm": f"self_attn.{ours[0]}_norm" for ours in ("query", "key")}
    names |= {"blocks/attention_post_norm": after, "blocks/mlp_norm": before_mlp}
    for part in ("gate", "up", "down"):
        names[f"blocks/mlp/{part}"] = f"mlp.{part}_proj"
        if config.mlp_bias:
            names[f"blocks/mlp/{part}_bias"] = f"mlp.{part}_proj.bias"
    names["blocks/mlp_post_norm"] = after_mlp
    return {ours: name if name.endswith("bias") else f"{name}.weight" for ours, name in names.items() if name}


@functools.lru_cache(maxsize=16)
def _shapes(config: LlamaConfig) -> dict[str, tuple[int, ...]]:
    """Our shape of every parameter by its path, without the axis of layers."""
    leaves = jax.tree_util.tree_leaves_with_path(param_shapes(config))
    shapes = {path_name(path): leaf.shape for path, leaf in leaves}
    return {name: shape[1:] if name.startswith("blocks/") else shape for name, shape in shapes.items()}


def _their_shape(name: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    """Hugging Face's shape: matrices [outputs, inputs], norms and biases flat, embeddings as ours."""
    if name == "embed":
        return shape
    if name.endswith(VECTORS):
        return (math.prod(shape),)
    inputs = shape[0] * shape[1] if name == "blocks/attention/output" else shape[0]
    return math.prod(shape) // inputs, inputs


def _to_ours(name: str, values: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    return values.reshape(shape) if name == "embed" or name.endswith(VECTORS) else values.T.reshape(shape)


def _names(config: LlamaConfig) -> Iterator[tuple[str, int | None, str]]:
    """Every tensor as (our parameter, layer, their name), in the order of the computation."""
    yield "embed", None, _TOP["embed"]
    names = _layer_names(config)
    for layer in range(config.num_layers):
        for name, theirs in names.items():
            yield name, layer, f"model.layers.{layer}.{theirs}"
    yield "norm", None, _TOP["norm"]
    if not config.tie_embeddings:
        yield "head", None, _TOP["head"]


def hugging_face_tensors(config: LlamaConfig, params: Mapping[str, Any]) -> list[Tensor]:
    """All tensors with Hugging Face's names and shapes, fetched when their values are asked for."""
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

    `config.json` is written last: an export without it is incomplete.

    Args:
      params: On any mesh or on the host; fetched one layer's array at a time.
      folder: Made if missing; must hold no model yet.
      dtype: Of the file: "float32", "bfloat16" or "float16".
      max_shard_bytes: Largest size of a file; a larger model is written as several files with an index.
      token_ids: Further entries of `config.json`, such as `bos_token_id` and `eos_token_id`.

    Raises:
      InputError: the folder holds a model, the disk is full, the dtype is unknown, or no architecture of transformers
        represents the model.
    """
    folder, numpy_dtype = Path(folder), dtype_named(dtype)
    refuse_model_folder(folder)
    entries = config_to_hugging_face(config, dtype, token_ids)
    tensors = hugging_face_tensors(config, params)
    if entries["model_type"] == "phi3":
        tensors = _fused(tensors)
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
    write_json(folder / "config.json", entries)
    return folder


def refuse_model_folder(folder: Path) -> None:
    """Raises `InputError` where a folder holds a model, or a part of one."""
    if (folder / "config.json").exists() or list(folder.glob("*.safetensors*")):
        raise InputError(f"{folder}: holds a model already; choose another folder or remove it")


def _fetch(params: Mapping[str, Any], name: str, layer: int | None) -> np.ndarray:
    array = functools.reduce(lambda tree, part: tree[part], name.split("/"), cast(Any, params))
    values = np.asarray(array if layer is None else array[layer])
    theirs = _their_shape(name, values.shape)
    return values.reshape(theirs) if len(theirs) == 1 or name == "embed" else values.reshape(theirs[::-1]).T


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
    """Reads a folder that `export_hugging_face`, or `save_pretrained` of a model of the `FAMILIES`, wrote.

    Args:
      **overrides: Fields of `LlamaConfig` that the folder does not hold, such as `scan_layers` or `compute_dtype`.

    Returns:
      The config, and float32 numpy parameters in our layout.

    Raises:
      InputError: a file or tensor is missing, damaged, of another shape or not part of this model.
    """
    folder = Path(folder)
    config = config_from_hugging_face(folder, **overrides)
    return config, params_from_tensors(folder, config, _read_folder(folder))


def params_from_tensors(folder: Path, config: LlamaConfig, tensors: dict[str, Tensor]) -> dict[str, Any]:
    """Float32 numpy parameters in our layout from tensors with Hugging Face's names; errors name `folder`.

    Raises:
      InputError: a tensor is missing, of another shape or not part of this model.
    """
    if config.tie_embeddings and (head := tensors.pop(_TOP["head"], None)) is not None:
        embed = tensors.setdefault(_TOP["embed"], head)  # a file may hold the matrix under either name
        if not np.array_equal(head.values(), embed.values()):
            raise InputError(f"{folder}: lm_head.weight differs from the embedding, which config.json says it is")
    shapes = _shapes(config)
    expected = {theirs: _their_shape(name, shapes[name]) for name, _, theirs in _names(config)}
    tensors = _split(folder, config, tensors)
    _check_names_and_shapes(folder, tensors, expected)
    params: dict[str, Any] = {}
    names = _layer_names(config)
    for name, shape in shapes.items():
        *parents, leaf = name.split("/")
        tree = params
        for parent in parents:
            tree = tree.setdefault(parent, {})
        if name in names:
            tree[leaf] = np.empty((config.num_layers, *shape), np.float32)
            for layer in range(config.num_layers):
                tree[leaf][layer] = _to_ours(
                    name, _finite(folder, tensors[f"model.layers.{layer}.{names[name]}"]), shape
                )
        else:
            tree[leaf] = np.ascontiguousarray(_to_ours(name, _finite(folder, tensors[_TOP[name]]), shape), np.float32)
    return params


def _finite(folder: Path, tensor: Tensor) -> np.ndarray:
    values = tensor.values()
    if not np.isfinite(values).all():
        raise InputError(f"{folder}: {tensor.name} holds NaN or infinity; fetch it again, or export an earlier step")
    return values


_FUSED = {
    "self_attn.qkv_proj": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "mlp.gate_up_proj": ("mlp.gate_proj", "mlp.up_proj"),
}
"""Phi-3's fused matrix -> the matrices whose rows it concatenates."""
_LAYER_WEIGHT = re.compile(r"(.*\.layers\.[^.]*\.)(.+)\.weight")


def _fused(tensors: list[Tensor]) -> list[Tensor]:
    """Phi-3's tensors: the matrices of `_FUSED` are concatenated, at the position of the first."""
    by_name = {tensor.name: tensor for tensor in tensors}
    result = []
    for tensor in tensors:
        match = _LAYER_WEIGHT.fullmatch(tensor.name)
        start, part = match.groups() if match else ("", "")
        fused = next((name for name, parts in _FUSED.items() if part in parts), None)
        if fused is None:
            result.append(tensor)
        elif part == _FUSED[fused][0]:
            parts = [by_name[f"{start}{name}.weight"] for name in _FUSED[fused]]
            shape = (sum(matrix.shape[0] for matrix in parts), parts[0].shape[1])
            result.append(Tensor(f"{start}{fused}.weight", shape, functools.partial(_stack, parts)))
    return result


def _stack(parts: list[Tensor]) -> np.ndarray:
    return np.concatenate([part.values() for part in parts])


def _split(folder: Path, config: LlamaConfig, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors with Phi-3's fused matrices split."""
    queries, keys, F = config.num_heads * config.head_size, config.kv_heads * config.head_size, config.intermediate_size
    rows = {"self_attn.qkv_proj": (queries, keys, keys), "mlp.gate_up_proj": (F, F)}
    result = {}
    for name, tensor in tensors.items():
        match = _LAYER_WEIGHT.fullmatch(name)
        start, fused = match.groups() if match else ("", "")
        if fused not in _FUSED:
            result[name] = tensor
            continue
        if len(tensor.shape) != 2 or tensor.shape[0] != sum(rows[fused]):
            expected = f"{sum(rows[fused])} rows"
            raise InputError(f"{folder}: {name} is {list(tensor.shape)}; expected {expected} by config.json")
        first = 0
        for part, count in zip(_FUSED[fused], rows[fused], strict=True):
            own = f"{start}{part}.weight"
            result[own] = Tensor(own, (count, tensor.shape[1]), functools.partial(_rows, tensor, first, first + count))
            first += count
    return result


def _rows(tensor: Tensor, first: int, stop: int) -> np.ndarray:
    return tensor.values()[first:stop]


def _read_folder(folder: Path) -> dict[str, Tensor]:
    for single, index, read in ((_SINGLE, _INDEX, read_tensors), (_TORCH, _TORCH_INDEX, read_torch)):
        if (folder / single).exists():  # takes precedence over an index, as in transformers
            tensors = read(folder / single)
        elif (folder / index).exists():
            tensors = _read_shards(folder, index, read)
        else:
            continue
        return {name: tensor for name, tensor in tensors.items() if not name.endswith(_IGNORED)}
    raise InputError(f"{folder}: holds none of {_SINGLE}, {_INDEX}, {_TORCH} and {_TORCH_INDEX}; give a whole model")


def _read_shards(folder: Path, index: str, read: Callable[[Path], dict[str, Tensor]]) -> dict[str, Tensor]:
    content = read_json(folder / index)
    weight_map: Any = content.get("weight_map") if isinstance(content, dict) else None
    names = list(weight_map.values()) if isinstance(weight_map, dict) else [None]
    if not all(isinstance(file, str) and Path(file).name == file for file in names):
        raise InputError(f"{folder / index}: has no weight_map of tensors to files beside it; fetch it again")
    where = f"{folder / index}: weight_map"
    files = {file: read(Path(path_inside(folder, file, where))) for file in sorted(set(weight_map.values()))}
    if missing := sorted(name for name, file in weight_map.items() if name not in files[file]):
        file = weight_map[missing[0]]
        raise InputError(f"{folder / file}: has no tensor {missing[0]}, which {index} places there")
    for file, tensors in files.items():  # transformers would load what the index does not place in a file
        others = (name for name in tensors if weight_map.get(name) != file and not name.endswith(_IGNORED))
        if (extra := next(others, None)) is not None:
            raise InputError(f"{folder / file}: holds {extra}, which {index} does not place there; fetch both again")
    return {name: files[file][name] for name, file in weight_map.items()}


def _check_names_and_shapes(folder, tensors, expected):
    def listed(names: list[str]) -> str:
        return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")

    if missing := [name for name in expected if name not in tensors]:
        raise InputError(f"{folder}: lacks {listed(missing)}; expected {len(expected)} tensors by its config.json")
    if unknown := [name for name in tensors if name not in expected]:
        raise InputError(f"{folder}: holds {listed(unknown)}, which a model by its config.json does not have")
    for name, shape in expected.items():
        if tensors[name].shape != shape:
            raise InputError(f"{folder}: {name} is {list(tensors[name].shape)}; expected {list(shape)} by config.json")
