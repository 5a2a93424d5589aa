"""Export and import of models as GGUF files, the format of llama.cpp, Ollama and LM Studio.

Both directions go through Hugging Face's form of the model: its configuration, tensor names and tensor layouts.
"""

from collections.abc import Iterator, Mapping, Sequence
import dataclasses
import functools
import math
import os
from pathlib import Path
import tempfile
from typing import Any

import numpy as np

from diversity_jax.core.errors import InputError
from diversity_jax.model.checkpoint_io.families import FAMILIES
from diversity_jax.model.checkpoint_io.gguf_file import DTYPES, GgufFile, read_gguf, write_gguf
from diversity_jax.model.checkpoint_io.hugging_face import hugging_face_tensors, params_from_tensors
from diversity_jax.model.checkpoint_io.hugging_face_config import config_from_entries, config_to_hugging_face
from diversity_jax.model.checkpoint_io.tensor_files import Tensor
from diversity_jax.model.config import LlamaConfig, yarn_attention_factor
from diversity_jax.tokenizers.files import TokenizerFiles, write_tokenizer
from diversity_jax.tokenizers.gguf_entries import tokenizer_entries

# `general.file_type`: llama.cpp's number for the type of most tensors.
_FILE_TYPE = {"float32": 0, "float16": 1, "q8_0": 7, "bfloat16": 32}
# llama.cpp's name of a family, which is also transformers' model_type -> fields of LlamaConfig that transformers
# supports in it and llama.cpp does not.
_LACKS: dict[str, tuple[str, ...]] = {
    "llama": (),
    "qwen2": ("head_dim",),
    "qwen3": ("qkv_bias", "output_bias"),
    "smollm3": ("qkv_bias", "output_bias", "mlp_bias"),
    "olmo2": ("head_dim", "qkv_bias", "output_bias"),
    "granite": (),
}
# Families in which llama.cpp rotates neighbouring elements of a head and transformers halves: rows are permuted.
_PERMUTED = ("llama", "smollm3", "granite")
_SMOLLM3_STEP = 4  # in llama.cpp every fourth layer of a SmolLM3 has no rotary positions
_AS_LLAMA = ("mistral",)  # model types that llama.cpp calls llama
# Entry of config.json -> key of the GGUF file, without the family's name before it.
_SIZES = {
    "max_position_embeddings": "context_length",
    "hidden_size": "embedding_length",
    "num_hidden_layers": "block_count",
    "intermediate_size": "feed_forward_length",
    "num_attention_heads": "attention.head_count",
    "num_key_value_heads": "attention.head_count_kv",
}
_NUMBERS = {
    "rms_norm_eps": "attention.layer_norm_rms_epsilon",
    "rope_theta": "rope.freq_base",
    "embedding_multiplier": "embedding_scale",
    "residual_multiplier": "residual_scale",
    "attention_multiplier": "attention.scale",
    "logits_scaling": "logit_scale",
}
# Required by llama.cpp; a config.json may lack them, since the classes of transformers have defaults.
_WITHOUT_DEFAULT = (_SIZES["max_position_embeddings"], _NUMBERS["rms_norm_eps"])
_GRANITE = (_NUMBERS["attention_multiplier"], _NUMBERS["logits_scaling"])
_HEAD_KEYS = ("attention.key_length", "attention.value_length", "rope.dimension_count")
_YARN = {"beta_fast": "yarn_beta_fast", "beta_slow": "yarn_beta_slow"}
_SCALING = ("factor", "original_context_length", "attn_factor", "yarn_attn_factor", *_YARN.values())
# Llama 3's rotary scaling, written for our own import; llama.cpp reads the tensor computed from it.
_LLAMA3 = ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings")
_HARMLESS = ("vocab_size", "rope.scaling.finetuned", "tensor_data_layout", "attention.causal", *_HEAD_KEYS)
_NAMES = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
# OLMo 2 normalises the outputs of attention and feed-forward.
_POST_NAMES = {"post_attention_layernorm": "post_attention_norm", "post_feedforward_layernorm": "post_ffw_norm"}
_ROPE_FREQS = "rope_freqs.weight"


def export_gguf(
    config: LlamaConfig,
    params: Mapping[str, Any],
    path: str | os.PathLike,
    *,
    tokenizer: TokenizerFiles,
    dtype: str = "float32",
) -> Path:
    """Writes a model so that llama.cpp gives the same logits for the same text.

    Args:
      params: On any mesh or on the host; fetched one layer's array at a time.
      path: Ends in `.gguf`; must not exist; written atomically.
      tokenizer: Of the model's training.
      dtype: Of the matrices, one of `DTYPES`.

    Raises:
      InputError: the path exists, the disk is full, or llama.cpp does not support the model or tokenizer.
    """
    path = Path(path)
    refuse_gguf(path, dtype)
    theirs = config_to_hugging_face(config, "float32", {})
    family = _family(config, theirs)
    tokens = _tokenizer_entries(tokenizer, config.vocab_size)
    entries = [
        ("general.name", path.stem),
        ("general.file_type", _FILE_TYPE[dtype]),
        *((f"{family}.{key}", value) for key, value in _model_entries(config, theirs)),
        *tokens,
    ]
    tensors = [_to_llama_cpp(theirs, family, tensor) for tensor in hugging_face_tensors(config, params)]
    if (factors := _llama3_factors(theirs, config.head_size)) is not None:
        tensors.insert(0, Tensor(_ROPE_FREQS, factors.shape, lambda: factors))
    if family == "olmo2" and config.tie_embeddings:
        tensors.append(dataclasses.replace(tensors[0], name="output.weight"))
    write_gguf(path, family, entries, tensors, dtype)
    return path


def _family(config: LlamaConfig, theirs: Mapping[str, Any]) -> str:
    """llama.cpp's name of the model's family.

    Raises:
      InputError: llama.cpp does not support the model.
    """
    kind = theirs["model_type"]
    family = "llama" if kind in _AS_LLAMA else kind
    lacking = [name for name in _LACKS.get(family, ()) if getattr(config, name)]
    if (
        family == "smollm3"
        and config.layers_without_rotary != tuple(range(config.num_layers))[_SMOLLM3_STEP - 1 :: _SMOLLM3_STEP]
    ):
        lacking.append("layers_without_rotary")
    if family not in _LACKS or lacking:
        switches = f" with model.{lacking[0]}={getattr(config, lacking[0])!r}" if lacking else ""
        raise InputError(f"{kind!r} models{switches} are not written as GGUF; export to Hugging Face's form")
    return family


def _tokenizer_entries(tokenizer: TokenizerFiles, vocab_size: int) -> list[tuple[str, Any]]:
    """The tokenizer's metadata, read from the folder that an export to Hugging Face's form would hold."""
    with tempfile.TemporaryDirectory() as folder:
        try:
            write_tokenizer(tokenizer, Path(folder), vocab_size=vocab_size)
            return tokenizer_entries(Path(folder), vocab_size)
        except InputError as error:
            name = str(tokenizer.files[0]) if tokenizer.files else "bytes"
            message = str(error).replace(f"{folder}/{Path(name).name}", name).replace(folder, name)
            raise InputError(message) from None


def refuse_gguf(path: Path, dtype: str) -> None:
    """Raises `InputError` where no file of this name or no tensors of this type can be written."""
    if path.suffix != ".gguf" or path.exists():
        why = "exists already" if path.exists() else "does not end in .gguf"
        raise InputError(f"{path}: {why}; choose another name")
    if dtype not in DTYPES:
        raise InputError(f"dtype={dtype!r}: must be one of {', '.join(DTYPES)}")


def _model_entries(config: LlamaConfig, theirs: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    yield "vocab_size", config.vocab_size
    context = theirs["max_position_embeddings"]
    if config.sliding_window is not None:
        context = min(context, config.sliding_window)  # llama.cpp attends to all tokens: equal up to the window's size
    for name, key in _SIZES.items():
        yield key, context if name == "max_position_embeddings" else theirs[name]
    for name, key in _NUMBERS.items():
        if name in theirs:
            yield key, float(theirs[name])
    for key in _HEAD_KEYS:
        yield key, config.head_size
    rope = theirs["rope_parameters"]
    kind = rope["rope_type"]
    if kind not in ("default", "llama3", "linear", "yarn"):
        raise InputError(f"model.rope_scaling={kind!r}: llama.cpp has no such positions; export to Hugging Face's form")
    if kind in ("linear", "yarn"):
        yield "rope.scaling.type", kind
        yield "rope.scaling.factor", float(rope["factor"])
    if kind == "yarn":
        yield "rope.scaling.original_context_length", rope["original_max_position_embeddings"]
        for name, key in _YARN.items():
            yield f"rope.scaling.{key}", float(rope[name])
        if "attention_factor" in rope:
            # llama.cpp multiplies by yarn's default factor in any case, and overwrites yarn_attn_factor, which its own
            # converter writes.
            yield "rope.scaling.attn_factor", float(rope["attention_factor"]) / yarn_attention_factor(rope["factor"])
    if kind == "llama3":
        for key in _LLAMA3:
            yield f"rope.llama3.{key}", float(rope[key])


def _llama3_factors(theirs: Mapping[str, Any], head_size: int) -> np.ndarray | None:
    """Divisors of the rotary frequencies of Llama 3's scaling, which llama.cpp reads from a tensor; else None."""
    rope = theirs["rope_parameters"]
    if rope["rope_type"] != "llama3":
        return None
    return _factors(theirs["rope_theta"], head_size, *(rope[name] for name in _LLAMA3))


def _factors(theta: float, head_size: int, factor: float, low: float, high: float, original: float) -> np.ndarray:
    """Divisors of the frequencies in Llama 3's scaling, float32 [head_size / 2]: 1 for pairs that make more than `high`
    turns within `original` tokens, `factor` below `low` turns; in between 1 / divisor is linear in the turns."""
    frequencies = 1.0 / theta ** (np.arange(0, head_size, 2, dtype=np.float64) / head_size)
    turns = original * frequencies / (2 * math.pi)
    smooth = np.clip((turns - low) / (high - low), 0.0, 1.0)
    return (1.0 / ((1.0 - smooth) / factor + smooth)).astype(np.float32)


def _tensor_name(theirs: Mapping[str, Any], name: str) -> str:
    stem, _, kind = name.rpartition(".")
    layer = ""
    if stem.startswith("model.layers."):
        number, _, stem = stem.removeprefix("model.layers.").partition(".")
        layer = f"blk.{number}."
    names = _NAMES | (_POST_NAMES if theirs["model_type"] == "olmo2" else {})
    return f"{layer}{names[stem]}.{kind}"


def _to_llama_cpp(theirs: Mapping[str, Any], family: str, tensor: Tensor) -> Tensor:
    """A tensor in llama.cpp's form from Hugging Face's."""
    heads = _permuted_heads(theirs, family, tensor.name)

    def values() -> np.ndarray:
        if heads is None:
            return tensor.values()
        halves = tensor.values().reshape(heads, 2, -1, *tensor.shape[1:])
        return halves.swapaxes(1, 2).reshape(tensor.shape)

    return Tensor(_tensor_name(theirs, tensor.name), tensor.shape, values)


def _permuted_heads(theirs: Mapping[str, Any], family: str, name: str) -> int | None:
    """Number of heads whose rows llama.cpp has in another order; None for other tensors."""
    if family not in _PERMUTED:
        return None
    counts = {"q_proj": "num_attention_heads", "k_proj": "num_key_value_heads"}
    return next((theirs[count] for part, count in counts.items() if f"self_attn.{part}." in name), None)


def import_gguf(path: Path, **overrides: Any) -> tuple[LlamaConfig, dict[str, Any], GgufFile]:
    """Reads a model; quantised weights are dequantised.

    Args:
      path: A file, or the first of its parts.
      **overrides: Fields of `LlamaConfig` that the file does not hold, such as `compute_dtype`.

    Returns:
      The config, float32 numpy parameters in our layout, and the file, whose metadata describe the tokenizer.

    Raises:
      InputError: the file is damaged, or its model has a part that is not supported; the message names it.
    """
    file = read_gguf(path)
    theirs = _config_entries(file)
    family = theirs["model_type"]
    config = config_from_entries(path, theirs, **overrides)
    names = [tensor.name for tensor in hugging_face_tensors(config, {})]
    tensors = {}
    for name in names:
        key = _tensor_name(theirs, name)
        if key not in file.tensors:
            raise InputError(f"{path}: lacks {key}; expected {len(names)} tensors by its metadata")
        values = functools.partial(_from_llama_cpp, file.tensors[key], _permuted_heads(theirs, family, name))
        tensors[name] = Tensor(name, file.tensors[key].shape, values)
    known = {_tensor_name(theirs, name) for name in names} | {_ROPE_FREQS, "output.weight"}  # may repeat token_embd
    if unknown := [name for name in file.tensors if name not in known]:
        raise InputError(f"{path}: holds {unknown[0]}, which a {family} model by its metadata does not have")
    return config, params_from_tensors(path, config, tensors), file


def _from_llama_cpp(tensor: Tensor, heads: int | None) -> np.ndarray:
    values = tensor.values()
    if heads is None:
        return values
    return values.reshape(heads, -1, 2, *tensor.shape[1:]).swapaxes(1, 2).reshape(tensor.shape)


def _config_entries(file: GgufFile) -> dict[str, Any]:
    """The model's configuration as entries of a `config.json`.

    Raises:
      InputError: the family or a part of the model is not supported; the message names the key.
    """
    path, family = file.path, file.entries.get("general.architecture")
    if not isinstance(family, str) or family not in _LACKS:
        raise InputError(f"{path}: general.architecture is {family!r}; can be read: {', '.join(_LACKS)}")
    entries = {
        key.removeprefix(f"{family}."): value for key, value in file.entries.items() if key.startswith(f"{family}.")
    }
    scaling = {f"rope.scaling.{name}" for name in ("type", *_SCALING)} | {f"rope.llama3.{name}" for name in _LLAMA3}
    known = {*_SIZES.values(), *_NUMBERS.values(), *_HARMLESS, *scaling}
    for key, value in entries.items():
        if key not in known and not (isinstance(value, int | float) and not value):
            raise InputError(f"{path}: {family}.{key} is {_shown(value)}; a part that this model does not have")
        if not isinstance(value, str if key == "rope.scaling.type" else int | float):
            raise InputError(f"{path}: {family}.{key} is {_shown(value)}; only one number for all layers can be read")
    if not entries.get("attention.causal", True):
        raise InputError(f"{path}: {family}.attention.causal is False; only true can be read")
    embedding = file.tensors.get("token_embd.weight")
    if embedding is None or len(embedding.shape) != 2:
        raise InputError(f"{path}: holds no token_embd.weight matrix; is it a vocabulary or an adapter alone?")
    theirs: dict[str, Any] = {
        "model_type": family,
        "vocab_size": embedding.shape[0],
        "tie_word_embeddings": _is_tied(file.tensors),
    }
    required = _WITHOUT_DEFAULT + (_GRANITE if family == "granite" else ())
    if missing := [key for key in required if key not in entries]:
        raise InputError(f"{path}: has no {family}.{missing[0]}; fetch or convert the model again")
    theirs |= {name: entries[key] for name, key in _SIZES.items() if key in entries}
    theirs |= {name: _decimal(entries[key]) for name, key in _NUMBERS.items() if key in entries}
    theirs.setdefault("num_key_value_heads", theirs.get("num_attention_heads"))
    sizes = {entries[key] for key in _HEAD_KEYS if key in entries}
    if len(sizes) > 1:
        raise InputError(f"{path}: key, value and rotary sizes of a head differ ({sizes}); only equal ones can be read")
    if sizes:
        theirs["head_dim"] = sizes.pop()
    biases = {"attention_bias": "blk.0.attn_q.bias", "mlp_bias": "blk.0.ffn_gate.bias"}
    own = FAMILIES[family].entries
    theirs |= {name: tensor in file.tensors for name, tensor in biases.items() if name in own}
    theirs["rope_parameters"] = _rope(file, entries, theirs)
    return theirs


def _shown(value: Any) -> str:
    return repr(value) if isinstance(value, int | float | str) else f"a list of {len(value)}"


def _decimal(value: float) -> float:
    """The shortest decimal of a float32, which is the number that was written as float32."""
    return float(str(np.float32(value)))


def _is_tied(tensors: Mapping[str, Tensor]) -> bool:
    """Whether output projection and embedding are equal; an OLMo 2 file holds both in any case."""
    output, embedding = tensors.get("output.weight"), tensors["token_embd.weight"]
    if output is None:
        return True
    return output.shape == embedding.shape and np.array_equal(output.values(), embedding.values())


def _rope(file: GgufFile, entries: Mapping[str, Any], theirs: Mapping[str, Any]) -> dict[str, Any]:
    rope: dict[str, Any] = {"rope_type": "default", "rope_theta": theirs.get("rope_theta", 10000.0)}
    keys = {name: f"rope.scaling.{name}" for name in _SCALING}
    numbers = {name: _decimal(entries[key]) for name, key in keys.items() if key in entries}
    kind = entries.get("rope.scaling.type", "linear")
    if kind != "yarn" and numbers.get("attn_factor", 1.0) != 1.0:  # llama.cpp applies it to any kind
        raise InputError(f"{file.path}: rope.scaling.attn_factor is {numbers['attn_factor']}; only yarn's can be read")
    if _ROPE_FREQS in file.tensors:
        keys = {name: f"rope.llama3.{name}" for name in _LLAMA3}
        own = [_decimal(entries[key]) for key in keys.values() if key in entries]
        return rope | _llama3(file, rope["rope_theta"], own)
    if kind == "none" or (kind == "linear" and numbers.get("factor", 1.0) == 1.0):
        return rope
    if kind not in ("linear", "yarn"):
        raise InputError(f"{file.path}: rope.scaling.type is {kind!r}; none, linear, yarn and Llama 3's can be read")
    rope |= {"rope_type": kind, "factor": numbers.get("factor", 1.0)}
    if kind == "linear":
        return rope
    original = numbers.get("original_context_length", theirs.get("max_position_embeddings", 0))
    rope["original_max_position_embeddings"] = int(original)
    rope |= {name: numbers[key] for name, key in _YARN.items() if key in numbers}
    if "yarn_attn_factor" in numbers:  # as llama.cpp's converter writes it
        rope["attention_factor"] = numbers["yarn_attn_factor"]
    elif "attn_factor" in numbers:
        rope["attention_factor"] = _decimal(numbers["attn_factor"] * yarn_attention_factor(rope["factor"]))
    return rope


def _llama3(file: GgufFile, theta: float, own: Sequence[float]) -> dict[str, Any]:
    """Llama 3's rotary settings: from our own entries, or found by trial from the divisors of the frequencies.

    Raises:
      InputError: no settings of Llama 3's models give these divisors.
    """
    factors = file.tensors[_ROPE_FREQS].values()
    usual = [(float(factors.max()), 1.0, 4.0, original) for original in (8192, *(2**power for power in range(8, 18)))]
    for settings in [own, *usual] if len(own) == len(_LLAMA3) else usual:
        if np.allclose(_factors(theta, 2 * factors.size, *settings), factors, rtol=1e-6):
            entries = dict(zip(_LLAMA3, settings, strict=True))
            return {"rope_type": "llama3", **entries, "original_max_position_embeddings": int(settings[-1])}
    raise InputError(f"{file.path}: {_ROPE_FREQS} are not Llama 3's wavelengths, the only ones that can be read")
