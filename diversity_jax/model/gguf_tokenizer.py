"""Tokenizers as GGUF describes them, so that llama.cpp cuts text into the ids that a model was trained on.

What llama.cpp would cut differently (normalisation, unigram models, other ways to split words) is refused, since a model that reads
other tokens than it learnt answers nonsense without an error.
"""

from collections.abc import Mapping
import os
from typing import Any

from diversity_jax.errors import InputError
from diversity_jax.storage import open_file, read_json

# Kinds of a token, by the numbers that SentencePiece gives them and llama.cpp took over.
_NORMAL, _UNKNOWN, _CONTROL, _USER_DEFINED, _UNUSED, _BYTE = range(1, 7)
# These models have learnt text, not conversations: the turns stand one below the other.
_CHAT_TEMPLATE = "{% for message in messages %}{{ message['content'] }}\n\n{% endfor %}"

_Token = tuple[str, float, int]  # text, score, kind


def tokenizer_entries(tokenizer: str | os.PathLike, *, vocab_size: int, end_of_text_id: int | None = None) -> list[tuple[str, Any]]:
    """The keys of a GGUF file that describe a tokenizer.

    Args:
      tokenizer: `bytes` (byte b is id b + 3), a SentencePiece `.model` of type BPE, or a `tokenizer.json` with byte-level BPE.
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
        raise InputError(f"tokenizer {name}: has no end of text {'' if end is None else f'at id {end}'}; give --end-of-text-id")
    if len(tokens) > vocab_size:
        raise InputError(
            f"tokenizer {name}: has {len(tokens)} tokens, more than the model's {vocab_size}; give the one it was trained with"
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
    return tokens, [("tokenizer.ggml.model", "llama"), ("tokenizer.ggml.unknown_token_id", 2), ("tokenizer.ggml.add_space_prefix", False)]


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
        raise InputError(f"tokenizer {path}: is of another type than BPE, and llama.cpp would cut words otherwise; train one as bpe")
    if normal.precompiled_charsmap or normal.remove_extra_whitespaces:
        raise InputError(
            f"tokenizer {path}: normalises text, which llama.cpp does not; train one without (rule identity, white space kept)"
        )
    end = trained.eos_id if 0 <= trained.eos_id < len(model.pieces) else None
    entries = [
        ("tokenizer.ggml.model", "llama"),
        ("tokenizer.ggml.unknown_token_id", max(trained.unk_id, 0)),
        ("tokenizer.ggml.add_space_prefix", normal.add_dummy_prefix),
    ]
    return [(piece.piece, piece.score, piece.type) for piece in model.pieces], entries, end


def _byte_level(path: str, content: Any) -> tuple[list[_Token], list[tuple[str, Any]]]:
    """Byte-level BPE that splits words as GPT-2 did; NFC, which most text is in already, is the one normalisation let pass."""
    content = content if isinstance(content, Mapping) else {}
    model, splitter, normal = (content.get(part) or {} for part in ("model", "pre_tokenizer", "normalizer"))
    as_gpt2 = splitter.get("type") == "ByteLevel" and splitter.get("use_regex", True) and not splitter.get("add_prefix_space")
    if model.get("type", "BPE") != "BPE" or not model.get("merges") or not as_gpt2 or normal.get("type", "NFC") != "NFC":
        raise InputError(f"tokenizer {path}: is no byte-level BPE that splits words as GPT-2's; llama.cpp would cut text otherwise")
    if model.get("byte_fallback") or model.get("ignore_merges"):
        raise InputError(f"tokenizer {path}: uses byte_fallback or ignore_merges, which GPT-2's way of merging does not have")
    found: dict[int, _Token] = {number: (text, 0.0, _NORMAL) for text, number in model["vocab"].items()}
    for token in content.get("added_tokens") or ():
        found[token["id"]] = (token["content"], 0.0, _CONTROL if token.get("special") else _USER_DEFINED)
    tokens = [found.get(number, (f"<unused{number}>", 0.0, _UNUSED)) for number in range(max(found) + 1)]
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in model["merges"]]
    entries = [("tokenizer.ggml.model", "gpt2"), ("tokenizer.ggml.pre", "gpt-2"), ("tokenizer.ggml.merges", merges)]
    return tokens, entries
