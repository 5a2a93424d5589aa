"""Tokenizers as GGUF describes them, so that llama.cpp cuts text into the ids that a model was trained on.

What llama.cpp would cut differently (normalisation, unigram models, other ways to split words) is refused, since a
model that reads other tokens than it learnt answers nonsense without an error.

Weights and tokenizer in one file as llama.cpp, Ollama and LM Studio read it: GGUF, version 3, all little-endian.

A header of typed keys, the tensors' names, shapes and places, then their bytes, each at a multiple of 32. llama.cpp
turns neighbouring numbers of a head where we turn halves, so the rows of query and key are dealt out anew.
"""

from collections.abc import Iterable, Mapping
import os
from pathlib import Path
import struct
from typing import Any

import numpy as np

from diversity_jax.core.errors import InputError
from diversity_jax.core.files import open_file, read_json, writing
from diversity_jax.model.checkpoint_io.hugging_face import hugging_face_tensors
from diversity_jax.model.checkpoint_io.safetensors import Tensor, dtype_named
from diversity_jax.model.config import LlamaConfig

# Kinds of a token, by the numbers that SentencePiece gives them and llama.cpp took over.
_NORMAL, _UNKNOWN, _CONTROL, _USER_DEFINED, _UNUSED, _BYTE = range(1, 7)
# These models have learnt text, not conversations: the turns stand one below the other.
_CHAT_TEMPLATE = "{% for message in messages %}{{ message['content'] }}\n\n{% endfor %}"

_Token = tuple[str, float, int]  # text, score, kind


def tokenizer_entries(
    tokenizer: str | os.PathLike, *, vocab_size: int, end_of_text_id: int | None = None
) -> list[tuple[str, Any]]:
    """The keys of a GGUF file that describe a tokenizer.

    Args:
      tokenizer: `bytes` (byte b is id b + 3), a SentencePiece `.model` of type BPE, or a `tokenizer.json` with
        byte-level BPE.
      vocab_size: Of the model; ids above the tokenizer's are filled with unused tokens.
      end_of_text_id: Ends a document; None: the tokenizer's own, which a `tokenizer.json` does not name.

    Raises:
      InputError: another kind of tokenizer, more tokens than the model has, or no such id.
    """
    name = os.fspath(tokenizer)
    if name == "bytes":
        tokens, entries, own_end = *_bytes(), 1
    elif name.endswith(".model"):
        tokens, entries, own_end = _sentencepiece(name)
    elif name.endswith(".json"):
        tokens, entries, own_end = *_byte_level(name, read_json(name)), None
    else:
        raise InputError(f"tokenizer {name!r} is unknown; give bytes, a SentencePiece .model or a tokenizer.json")
    end = own_end if end_of_text_id is None else end_of_text_id
    if end is None or not 0 <= end < len(tokens):
        raise InputError(
            f"tokenizer {name}: has no end of text {'' if end is None else f'at id {end}'}; give --end-of-text-id"
        )
    if len(tokens) > vocab_size:
        raise InputError(
            f"tokenizer {name}: has {len(tokens)} tokens, more than the model's {vocab_size}; give the one it was "
            "trained with"
        )
    text, _, kind = tokens[end]
    # As a control token it stops generation and is never printed.
    tokens[end] = (text, 0.0, _CONTROL if kind != _BYTE else kind)
    tokens += [(f"<unused{i}>", 0.0, _UNUSED) for i in range(len(tokens), vocab_size)]
    return [
        *entries,
        ("tokenizer.ggml.tokens", [text for text, _, _ in tokens]),
        ("tokenizer.ggml.scores", [score for _, score, _ in tokens]),
        ("tokenizer.ggml.token_type", [kind for _, _, kind in tokens]),
        ("tokenizer.ggml.bos_token_id", end),
        ("tokenizer.ggml.eos_token_id", end),
        ("tokenizer.ggml.add_bos_token", False),
        ("tokenizer.ggml.add_eos_token", False),
        ("tokenizer.chat_template", _CHAT_TEMPLATE),
    ]


def _bytes() -> tuple[list[_Token], list[tuple[str, Any]]]:
    """UTF-8 bytes; the space stands there as the mark that llama.cpp puts in its place before it looks for pieces."""
    special = [("<pad>", 0.0, _CONTROL), ("</s>", 0.0, _CONTROL), ("<unk>", 0.0, _UNKNOWN)]
    tokens = special + [(f"<0x{byte:02X}>", 0.0, _BYTE) for byte in range(256)]
    tokens[3 + ord(" ")] = ("\u2581", 0.0, _NORMAL)
    return tokens, [
        ("tokenizer.ggml.model", "llama"),
        ("tokenizer.ggml.unknown_token_id", 2),
        ("tokenizer.ggml.add_space_prefix", False),
    ]


def _sentencepiece(path: str) -> tuple[list[_Token], list[tuple[str, Any]], int | None]:
    from google.protobuf.message import DecodeError
    from sentencepiece import sentencepiece_model_pb2

    model = sentencepiece_model_pb2.ModelProto()
    try:
        with open_file(path) as file:
            model.ParseFromString(file.read())
    except DecodeError:
        raise InputError(f"tokenizer {path}: is not a SentencePiece model") from None
    trained, normal = model.trainer_spec, model.normalizer_spec
    if trained.model_type != trained.BPE:
        raise InputError(
            f"tokenizer {path}: is of another type than BPE, and llama.cpp would cut words otherwise; train one as bpe"
        )
    if normal.precompiled_charsmap or normal.remove_extra_whitespaces:
        raise InputError(
            f"tokenizer {path}: normalises text, which llama.cpp does not; train one without (rule identity, white "
            "space kept)"
        )
    end = trained.eos_id if 0 <= trained.eos_id < len(model.pieces) else None
    entries = [
        ("tokenizer.ggml.model", "llama"),
        ("tokenizer.ggml.unknown_token_id", max(trained.unk_id, 0)),
        ("tokenizer.ggml.add_space_prefix", normal.add_dummy_prefix),
    ]
    return [(piece.piece, piece.score, piece.type) for piece in model.pieces], entries, end


def _byte_level(path: str, content: Any) -> tuple[list[_Token], list[tuple[str, Any]]]:
    """Byte-level BPE that splits words as GPT-2 did; NFC, which most text is in already, is the one normalisation let
    pass.
    """
    content = content if isinstance(content, Mapping) else {}
    model, splitter, normal = (content.get(part) or {} for part in ("model", "pre_tokenizer", "normalizer"))
    as_gpt2 = (
        splitter.get("type") == "ByteLevel" and splitter.get("use_regex", True) and not splitter.get("add_prefix_space")
    )
    if (
        model.get("type", "BPE") != "BPE"
        or not model.get("merges")
        or not as_gpt2
        or normal.get("type", "NFC") != "NFC"
    ):
        raise InputError(
            f"tokenizer {path}: is no byte-level BPE that splits words as GPT-2's; llama.cpp would cut text otherwise"
        )
    if model.get("byte_fallback") or model.get("ignore_merges"):
        raise InputError(
            f"tokenizer {path}: uses byte_fallback or ignore_merges, which GPT-2's way of merging does not have"
        )
    found: dict[int, _Token] = {number: (text, 0.0, _NORMAL) for text, number in model["vocab"].items()}
    for token in content.get("added_tokens") or ():
        found[token["id"]] = (token["content"], 0.0, _CONTROL if token.get("special") else _USER_DEFINED)
    tokens = [found.get(number, (f"<unused{number}>", 0.0, _UNUSED)) for number in range(max(found) + 1)]
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in model["merges"]]
    entries = [("tokenizer.ggml.model", "gpt2"), ("tokenizer.ggml.pre", "gpt-2"), ("tokenizer.ggml.merges", merges)]
    return tokens, entries


_ALIGNMENT = 32
_UINT32, _INT32, _FLOAT32, _BOOL, _STRING, _ARRAY = 4, 5, 6, 7, 8, 9
_PACKED = {_UINT32: "<I", _INT32: "<i", _FLOAT32: "<f", _BOOL: "<?"}
# How llama.cpp numbers types: of one tensor, and of a file by the type of most of its tensors.
_TENSOR_TYPE = {"float32": 0, "float16": 1, "bfloat16": 30}
_FILE_TYPE = {"float32": 0, "float16": 1, "bfloat16": 32}
_NAMES = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


def export_gguf(
    config: LlamaConfig,
    params: Mapping[str, Any],
    path: str | os.PathLike,
    *,
    tokenizer: str | os.PathLike,
    dtype: str = "float32",
    end_of_text_id: int | None = None,
) -> Path:
    """Writes a model so that llama.cpp gives the same logits for the same text.

    Args:
      config: The model.
      params: Its parameters, on any mesh or on the host; fetched one layer's array at a time.
      path: Ends in `.gguf`; must not exist.
      tokenizer: What the model was trained with: `bytes`, a SentencePiece `.model` (BPE) or a byte-level
        `tokenizer.json`.
      dtype: Of the matrices: "float32", "bfloat16" or "float16". Norms stay float32, as llama.cpp wants them.
      end_of_text_id: The token at which generation ends; None: the tokenizer's own.

    Returns:
      The path. The file appears whole or not at all.

    Raises:
      InputError: the path is taken, the disk is full, or llama.cpp could not cut text into tokens as the tokenizer
        does.
    """
    path = Path(path)
    if path.suffix != ".gguf" or path.exists():
        raise InputError(
            f"{path}: {'exists already' if path.exists() else 'does not end in .gguf'}; choose another name"
        )
    dtype_named(dtype)
    entries = _model_entries(config, path.stem, dtype)
    entries += tokenizer_entries(tokenizer, vocab_size=config.vocab_size, end_of_text_id=end_of_text_id)
    _write(path, entries, [_to_llama_cpp(config, tensor) for tensor in hugging_face_tensors(config, params)], dtype)
    return path


def _model_entries(config: LlamaConfig, name: str, dtype: str) -> list[tuple[str, Any]]:
    return [
        ("general.architecture", "llama"),
        ("general.name", name),
        ("general.alignment", _ALIGNMENT),
        ("general.file_type", _FILE_TYPE[dtype]),
        ("llama.vocab_size", config.vocab_size),
        ("llama.context_length", config.max_length),
        ("llama.embedding_length", config.hidden_size),
        ("llama.block_count", config.num_layers),
        ("llama.feed_forward_length", config.intermediate_size),
        ("llama.attention.head_count", config.num_heads),
        ("llama.attention.head_count_kv", config.kv_heads),
        ("llama.attention.layer_norm_rms_epsilon", config.rms_norm_eps),
        ("llama.rope.dimension_count", config.head_size),
        ("llama.rope.freq_base", config.rope_theta),
    ]


def _to_llama_cpp(config: LlamaConfig, tensor: Tensor) -> Tensor:
    """A tensor of Hugging Face's form under llama.cpp's name, with its rows in the order of neighbouring pairs where
    rotary turns them.
    """
    stem, layer = tensor.name.removesuffix(".weight"), ""
    if stem.startswith("model.layers."):
        number, _, stem = stem.removeprefix("model.layers.").partition(".")
        layer = f"blk.{number}."
    values = tensor.values
    if heads := {"self_attn.q_proj": config.num_heads, "self_attn.k_proj": config.kv_heads}.get(stem):
        inputs = config.hidden_size

        def values() -> np.ndarray:
            halves = tensor.values().reshape(heads, 2, config.head_size // 2, inputs)
            return halves.swapaxes(1, 2).reshape(tensor.shape)

    return Tensor(name=f"{layer}{_NAMES[stem]}.weight", shape=tensor.shape, values=values)


def _write(path: Path, entries: Iterable[tuple[str, Any]], tensors: list[Tensor], dtype: str) -> None:
    entries = list(entries)
    header = [b"GGUF", struct.pack("<IQQ", 3, len(tensors), len(entries))]
    for key, value in entries:
        kind, packed = _value(value)
        header += [_text(key), struct.pack("<I", kind), packed]
    offset = 0
    for tensor in tensors:
        kind = _dtype_of(tensor, dtype)
        # Sizes are told fastest axis first.
        header += [
            _text(tensor.name),
            struct.pack(f"<I{len(tensor.shape)}Q", len(tensor.shape), *reversed(tensor.shape)),
        ]
        header.append(struct.pack("<IQ", _TENSOR_TYPE[kind], offset))
        offset += _aligned(tensor.size_bytes(dtype_named(kind)))
    head = b"".join(header)
    with writing(path) as file:
        file.write(head.ljust(_aligned(len(head)), b"\0"))
        for tensor in tensors:
            values = np.asarray(tensor.values(), dtype=dtype_named(_dtype_of(tensor, dtype)), order="C")
            if values.shape != tensor.shape:
                raise ValueError(f"{tensor.name}: announced as {tensor.shape}, made as {values.shape}")
            file.write(values.reshape(-1).view(np.uint8).data)
            file.write(bytes(_aligned(values.nbytes) - values.nbytes))


def _dtype_of(tensor: Tensor, dtype: str) -> str:
    return dtype if len(tensor.shape) > 1 else "float32"


def _aligned(size_bytes: int) -> int:
    return -(-size_bytes // _ALIGNMENT) * _ALIGNMENT


def _text(text: str) -> bytes:
    data = text.encode()
    return struct.pack("<Q", len(data)) + data


def _value(value: Any) -> tuple[int, bytes]:
    """GGUF's number of a value's type, and its bytes; Python's own types, and lists of one of them, say which."""
    if isinstance(value, bool):
        return _BOOL, struct.pack(_PACKED[_BOOL], value)
    if isinstance(value, str):
        return _STRING, _text(value)
    if isinstance(value, float):
        return _FLOAT32, struct.pack(_PACKED[_FLOAT32], value)
    if isinstance(value, int):
        return _UINT32, struct.pack(_PACKED[_UINT32], value)
    # In lists integers are signed: so llama.cpp wants the tokens' types.
    kind = _STRING if isinstance(value[0], str) else _FLOAT32 if isinstance(value[0], float) else _INT32
    packed = [_text(one) if kind == _STRING else struct.pack(_PACKED[kind], one) for one in value]
    return _ARRAY, struct.pack("<IQ", kind, len(value)) + b"".join(packed)
