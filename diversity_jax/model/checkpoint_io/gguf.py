"""One GGUF file with weights and tokenizer, as llama.cpp, Ollama and LM Studio read it.

Tokenizers that llama.cpp would apply differently (normalisation, unigram models, other ways to split words) are
refused: a model that reads other tokens than it was trained on gives nonsense without an error.
"""

from collections.abc import Callable, Iterable, Mapping
import os
from pathlib import Path
from typing import Any

import numpy as np

from diversity_jax.core.errors import InputError
from diversity_jax.core.files import open_file, read_json, writing
from diversity_jax.model.checkpoint_io.hugging_face import Tensor, dtype_named, hugging_face_tensors
from diversity_jax.model.config import LlamaConfig

# Kinds of a token, by SentencePiece's numbers, which llama.cpp has too.
_NORMAL, _UNKNOWN, _CONTROL, _USER_DEFINED, _UNUSED, _BYTE = range(1, 7)
# These models are trained on text, not conversations: turns are put one below the other.
_CHAT_TEMPLATE = "{% for message in messages %}{{ message['content'] }}\n\n{% endfor %}"

_Token = tuple[str, float, int]  # text, score, kind
_Entries = list[tuple[str, Any]]


def tokenizer_entries(tokenizer: str | os.PathLike, vocab_size: int, end_of_text_id: int | None) -> _Entries:
    """Keys and values of a GGUF file that describe a tokenizer.

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
        tokens, entries, own_end = _bytes()
    elif name.endswith(".model"):
        tokens, entries, own_end = _sentencepiece(name)
    elif name.endswith(".json"):
        tokens, entries, own_end = _byte_level(name, read_json(name))
    else:
        raise InputError(f"tokenizer {name!r} is unknown; give bytes, a SentencePiece .model or a tokenizer.json")
    end = own_end if end_of_text_id is None else end_of_text_id
    if end is None or not 0 <= end < len(tokens):
        at = "" if end is None else f" at id {end}"
        raise InputError(f"tokenizer {name}: has no end of text{at}; give --end-of-text-id")
    if len(tokens) > vocab_size:
        raise InputError(
            f"tokenizer {name}: has {len(tokens)} tokens, more than the model's {vocab_size}; give the model's own"
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


def _llama_entries(unknown_id: int, add_space: bool) -> _Entries:
    return [
        ("tokenizer.ggml.model", "llama"),
        ("tokenizer.ggml.unknown_token_id", unknown_id),
        ("tokenizer.ggml.add_space_prefix", add_space),
    ]


def _bytes() -> tuple[list[_Token], _Entries, int | None]:
    """UTF-8 bytes; the space's token is U+2581, which llama.cpp substitutes for it before it tokenises."""
    special = [("<pad>", 0.0, _CONTROL), ("</s>", 0.0, _CONTROL), ("<unk>", 0.0, _UNKNOWN)]
    tokens = special + [(f"<0x{byte:02X}>", 0.0, _BYTE) for byte in range(256)]
    tokens[3 + ord(" ")] = ("\u2581", 0.0, _NORMAL)
    return tokens, _llama_entries(2, False), 1


def _sentencepiece(path: str) -> tuple[list[_Token], _Entries, int | None]:
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
        raise InputError(f"tokenizer {path}: is not BPE, and llama.cpp would cut words otherwise; train one as bpe")
    if normal.precompiled_charsmap or normal.remove_extra_whitespaces:
        raise InputError(
            f"tokenizer {path}: normalises text, which llama.cpp does not; train one with rule identity, spaces kept"
        )
    end = trained.eos_id if 0 <= trained.eos_id < len(model.pieces) else None
    tokens = [(piece.piece, piece.score, piece.type) for piece in model.pieces]
    return tokens, _llama_entries(max(trained.unk_id, 0), normal.add_dummy_prefix), end


def _byte_level(path: str, content: Any) -> tuple[list[_Token], _Entries, int | None]:
    """Byte-level BPE that splits words as GPT-2 did; of normalisations only NFC is allowed: most text is in it."""
    content = content if isinstance(content, Mapping) else {}
    model, splitter, normal = (content.get(part) or {} for part in ("model", "pre_tokenizer", "normalizer"))
    as_gpt2 = splitter.get("type") == "ByteLevel" and splitter.get("use_regex", True)
    is_bpe = model.get("type", "BPE") == "BPE" and model.get("merges") and normal.get("type", "NFC") == "NFC"
    if not is_bpe or not as_gpt2 or splitter.get("add_prefix_space"):
        raise InputError(
            f"tokenizer {path}: is no byte-level BPE that splits words as GPT-2's; llama.cpp would cut text otherwise"
        )
    if model.get("byte_fallback") or model.get("ignore_merges"):
        raise InputError(f"tokenizer {path}: uses byte_fallback or ignore_merges, which llama.cpp's GPT-2 has not")
    by_id: dict[int, _Token] = {number: (text, 0.0, _NORMAL) for text, number in model["vocab"].items()}
    for token in content.get("added_tokens") or ():
        by_id[token["id"]] = (token["content"], 0.0, _CONTROL if token.get("special") else _USER_DEFINED)
    tokens = [by_id.get(number, (f"<unused{number}>", 0.0, _UNUSED)) for number in range(max(by_id) + 1)]
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in model["merges"]]
    entries = [("tokenizer.ggml.model", "gpt2"), ("tokenizer.ggml.pre", "gpt-2"), ("tokenizer.ggml.merges", merges)]
    return tokens, entries, None


# llama.cpp's numbers of types: of a tensor, and of a file by the type of most of its tensors.
_TENSOR_TYPE, _FILE_TYPE = {"float32": 0, "float16": 1, "bfloat16": 30}, {"float32": 0, "float16": 1, "bfloat16": 32}
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
      params: On any mesh or on the host; fetched one layer's array at a time.
      path: Ends in `.gguf`; must not exist; written atomically.
      tokenizer: What the model was trained with, and `end_of_text_id`: as for `tokenizer_entries`.
      dtype: Of the matrices: "float32", "bfloat16" or "float16". Norms stay float32, as llama.cpp wants them.

    Raises:
      InputError: the path is taken, the disk is full, or the tokenizer cannot be written.
    """
    path = Path(path)
    if path.suffix != ".gguf" or path.exists():
        why = "exists already" if path.exists() else "does not end in .gguf"
        raise InputError(f"{path}: {why}; choose another name")
    dtype_named(dtype)
    entries = [
        ("general.name", path.stem),
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
        *tokenizer_entries(tokenizer, config.vocab_size, end_of_text_id),
    ]
    _write(path, entries, [_to_llama_cpp(config, tensor) for tensor in hugging_face_tensors(config, params)], dtype)
    return path


def _to_llama_cpp(config: LlamaConfig, tensor: Tensor) -> Tensor:
    """A tensor of Hugging Face's form in llama.cpp's.

    llama.cpp rotates neighbouring numbers of a head where we rotate halves, so rows of query and key are permuted.
    """
    stem, layer = tensor.name.removesuffix(".weight"), ""
    if stem.startswith("model.layers."):
        number, _, stem = stem.removeprefix("model.layers.").partition(".")
        layer = f"blk.{number}."
    heads = {"self_attn.q_proj": config.num_heads, "self_attn.k_proj": config.kv_heads}.get(stem)

    def values() -> np.ndarray:
        if heads is None:
            return tensor.values()
        halves = tensor.values().reshape(heads, 2, config.head_size // 2, config.hidden_size)
        return halves.swapaxes(1, 2).reshape(tensor.shape)

    return Tensor(f"{layer}{_NAMES[stem]}.weight", tensor.shape, values)


def _write(path: Path, entries: Iterable[tuple[str, Any]], tensors: list[Tensor], dtype: str) -> None:
    import gguf

    writer = gguf.GGUFWriter(None, "llama")
    writer.add_custom_alignment(gguf.GGUF_DEFAULT_ALIGNMENT)
    # By the type of a value. In lists integers are signed: so llama.cpp expects the tokens' types.
    add: dict[type, Callable[[str, Any], None]] = {
        bool: writer.add_bool,
        str: writer.add_string,
        float: writer.add_float32,
        int: writer.add_uint32,
        list: writer.add_array,
    }
    for key, value in entries:
        add[type(value)](key, value)
    dtypes = [dtype if len(tensor.shape) > 1 else "float32" for tensor in tensors]
    for tensor, name in zip(tensors, dtypes, strict=True):
        numpy_dtype, kind = dtype_named(name), gguf.GGMLQuantizationType(_TENSOR_TYPE[name])
        writer.add_tensor_info(tensor.name, tensor.shape, numpy_dtype, tensor.size_bytes(numpy_dtype), kind)
    with writing(path) as file:
        writer.write_header_to_file(Path(file.name))
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        assert writer.fout is not None
        out = writer.fout[0]
        writer.write_padding(out, out.tell())
        for tensor, name in zip(tensors, dtypes, strict=True):
            # Not by `write_tensor_data`, whose errors do not say that the disk is full.
            writer.write_padding(out, out.write(tensor.file_bytes(dtype_named(name))))
        writer.close()
