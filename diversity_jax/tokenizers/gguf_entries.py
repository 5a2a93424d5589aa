"""Writes a tokenizer's folder as entries of a GGUF file, for llama.cpp.

llama.cpp identifies how a byte-level BPE splits words by a name, `tokenizer.ggml.pre`. Its own converter finds the name
by a hash of the ids of a check text; this module does the same, with the same table (`llama_cpp.json`), and for other
tokenizers compares the splitting rules of their file. Tokenizers that llama.cpp would apply differently are refused: a
model that reads other tokens than it was trained on gives nonsense without an error.
"""

from collections.abc import Mapping, Sequence
import functools
import hashlib
import json
from pathlib import Path
from typing import Any

from diversity_jax.core.errors import InputError
from diversity_jax.core.files import read_json
from diversity_jax.tokenizers.files import token_ids
from diversity_jax.tokenizers.sentence_piece import read_model
from diversity_jax.tokenizers.settings import folder_template
from diversity_jax.tokenizers.tokenizer import HuggingFaceTokenizer, Tokenizer, load_tokenizer

# Kinds of a token, by SentencePiece's numbers, which llama.cpp has too.
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)
# For models without a template: trained on text, not conversations, so turns are only separated by empty lines.
PLAIN_TEMPLATE = "{% for message in messages %}{{ message['content'] }}\n\n{% endfor %}"
SPACE = "\u2581"

Token = tuple[str, float, int]  # text, score, kind
Entries = list[tuple[str, Any]]


@functools.cache
def llama_cpp_table() -> dict[str, Any]:
    """The data file: fingerprints, and families of names that split words in the same way."""
    return read_json(Path(__file__).with_name("llama_cpp.json"))


def tokenizer_entries(folder: Path, vocab_size: int) -> Entries:
    """Keys and values of a GGUF file that describe the tokenizer in a folder that `write_tokenizer` wrote.

    Args:
      vocab_size: of the model; ids that the tokenizer does not have get unused tokens.

    Raises:
      InputError: a tokenizer that llama.cpp does not know or would apply differently, more tokens than the model has,
        or no end of text.
    """
    vocabulary = load_tokenizer(str(folder)).without_ids_from(vocab_size)
    model = folder / "tokenizer.model"
    if model.exists() and len(read_model(str(model)).pieces) == vocabulary.size:
        tokens, entries = _from_sentencepiece(model)  # closer to llama.cpp than a tokenizer.json of the same ids
    else:
        assert isinstance(vocabulary, HuggingFaceTokenizer)  # others have no more ids than their model
        tokens, entries = _from_json(folder, vocabulary)
    for text, number in vocabulary.special_ids.items():
        tokens.setdefault(number, (text, 0.0, CONTROL))
    if max(tokens) >= vocab_size:
        raise InputError(
            f"tokenizer {folder}: has {max(tokens) + 1} ids, more than the model's {vocab_size}; give the model's own"
        )
    ids, ends = _named_ids(folder, vocabulary, tokens)
    template = folder_template(folder)
    for number in {*ids.values(), *ends}:
        text, _, kind = tokens[number]
        # As a control token it ends generation, or is not printed.
        tokens[number] = (text, 0.0, CONTROL if kind in (NORMAL, USER_DEFINED) else kind)
    listed = [tokens.get(number, (f"[PAD{number}]", 0.0, UNUSED)) for number in range(vocab_size)]
    scores = [("tokenizer.ggml.scores", [score for _, score, _ in listed])]
    return [
        *entries,
        ("tokenizer.ggml.tokens", [text for text, _, _ in listed]),
        *(scores if entries[0][1] == "llama" else ()),
        ("tokenizer.ggml.token_type", [kind for _, _, kind in listed]),
        *((f"tokenizer.ggml.{name}_token_id", number) for name, number in ids.items()),
        # llama.cpp stops at three tokens that have a name of their own: end of text, of turn, of message.
        *((f"tokenizer.ggml.{name}_token_id", number) for name, number in zip(("eot", "eom"), ends, strict=False)),
        ("tokenizer.ggml.add_bos_token", vocabulary.adds_bos and not _begins_texts_alone(ids, template)),
        ("tokenizer.ggml.add_eos_token", vocabulary.adds_eos),
        ("tokenizer.chat_template", template or PLAIN_TEMPLATE),
    ]


def _begins_texts_alone(ids: Mapping[str, int], template: str | None) -> bool:
    """Whether end-of-text begins texts but not conversations, as in a chat model that was then trained on plain text.

    transformers puts the token before texts alone, llama.cpp also before conversations. So it is left out for
    llama.cpp: a text without it is closer to training than a conversation with it.
    """
    return template is not None and "bos_token" not in template and ids["bos"] == ids["eos"]


def _named_ids(folder: Path, vocabulary: Tokenizer, tokens: Mapping[int, Token]) -> tuple[dict[str, int], list[int]]:
    """Ids of the special tokens among `tokens` by llama.cpp's names, and further ids that end an answer."""
    listed = {name: [number for number in ids if number in tokens] for name, ids in token_ids(folder).items()}
    named = {name: ids for name, ids in listed.items() if ids}
    ends = named.get("eos_token_id") or [vocabulary.end_of_text_id]
    bos = named.get("bos_token_id", [vocabulary.bos_id])[0]
    ids = {"bos": ends[0] if bos is None else bos, "eos": ends[0]}
    for name, key in (("unknown", "unk_token_id"), ("padding", "pad_token_id")):
        if key in named:
            ids[name] = named[key][0]
    return ids, ends[1:]


def _from_json(folder: Path, vocabulary: HuggingFaceTokenizer) -> tuple[dict[int, Token], Entries]:
    content = json.loads(vocabulary.to_json())
    model, added = content["model"], content.get("added_tokens") or []
    if model["type"] != "BPE":
        raise InputError(f"tokenizer {folder}: is {model['type']}; llama.cpp reads only BPE with the same ids")
    tokens = {number: (text, 0.0, NORMAL) for text, number in model["vocab"].items()}
    for token in added:
        tokens[token["id"]] = (token["content"], 0.0, CONTROL if token["special"] else USER_DEFINED)
    if _is_bytes(content):
        return byte_tokens(tokens)
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in model["merges"]]
    if model.get("byte_fallback") and (folder / "tokenizer.model").exists():
        own, entries = _from_sentencepiece(folder / "tokenizer.model")
        more = {token["id"]: tokens[token["id"]] for token in added if token["id"] not in own}
        return own | more, entries
    if model.get("byte_fallback"):
        return _from_merges(folder, vocabulary, content, tokens)
    pre = _pre_tokenizer(content)
    if pre is None:
        raise InputError(
            f"tokenizer {folder}: llama.cpp ({llama_cpp_table()['version']}) has no name for how it splits words; "
            "export to a Hugging Face folder instead"
        )
    return tokens, [
        ("tokenizer.ggml.model", "gpt2"),
        ("tokenizer.ggml.pre", pre),
        ("tokenizer.ggml.merges", merges),
    ]


def _pre_tokenizer(content: Mapping[str, Any]) -> str | None:
    """llama.cpp's name for how words are split; None: it has none."""
    import tokenizers

    library = tokenizers.Tokenizer.from_str(json.dumps(content))
    for with_special in (True, False):
        ids = library.encode(llama_cpp_table()["check_text"], add_special_tokens=with_special).ids
        if name := llama_cpp_table()["fingerprints"].get(hashlib.sha256(str(ids).encode()).hexdigest()):
            return name
    ignore_merges, splits = bool(content["model"].get("ignore_merges")), _splits(content)
    if any(step["type"] != "NFC" for step in _steps(content, "normalizer")):  # most text is in this form already
        return None
    families = (each for each in llama_cpp_table()["families"] if each["ignore_merges"] == ignore_merges)
    return next((family["names"][0] for family in families if family["splits"] == splits), None)


def _steps(content: Mapping[str, Any], part: str) -> list[Mapping[str, Any]]:
    """The steps of a tokenizer.json's normalizer or pre_tokenizer."""
    steps = content.get(part) or {"type": "Sequence"}
    inside = steps.get("normalizers", steps.get("pretokenizers", []))
    return inside if steps["type"] == "Sequence" else [steps]


def _splits(content: Mapping[str, Any]) -> list[str] | None:
    """How a tokenizer.json splits words, in the form of the table; None: the table has no such rules."""
    patterns = []
    for step in _steps(content, "pre_tokenizer"):
        kind, pattern = step.get("type"), step.get("pattern")
        if kind == "Digits" and step.get("individual_digits"):
            patterns.append("digits")
        elif kind == "Split" and (step.get("behavior"), step.get("invert", False)) == ("Isolated", False):
            patterns.append(str((pattern or {}).get("Regex")))
        elif kind == "ByteLevel" and not step.get("add_prefix_space"):
            patterns += ["gpt2"] if step.get("use_regex", True) else []
        else:
            return None
    return patterns


def _is_bytes(content: Mapping[str, Any]) -> bool:
    splitter = content.get("pre_tokenizer") or {}
    return (
        splitter.get("type") == "ByteLevel" and not content["model"]["merges"] and not splitter.get("use_regex", True)
    )


def byte_tokens(special: Mapping[int, Token]) -> tuple[dict[int, Token], Entries]:
    """Tokens and entries of the byte tokenizer; the space is U+2581, by which llama.cpp replaces it in texts.

    Args:
      special: the first three tokens.
    """
    tokens = {i: (special[i][0], 0.0, UNKNOWN if i == 2 else CONTROL) for i in range(3)}
    tokens |= {3 + byte: (f"<0x{byte:02X}>", 0.0, BYTE) for byte in range(256)}
    tokens[3 + ord(" ")] = (SPACE, 0.0, NORMAL)
    return tokens, _llama_entries(2, False)


def _llama_entries(unknown_id: int, add_space: bool) -> Entries:
    return [
        ("tokenizer.ggml.model", "llama"),
        ("tokenizer.ggml.pre", "default"),
        ("tokenizer.ggml.unknown_token_id", unknown_id),
        ("tokenizer.ggml.add_space_prefix", add_space),
    ]


def _from_merges(
    folder: Path, vocabulary: HuggingFaceTokenizer, content: Mapping[str, Any], tokens: dict[int, Token]
) -> tuple[dict[int, Token], Entries]:
    """Tokens of a SentencePiece BPE that was converted to a tokenizer.json: the rank of a merge is a token's score."""
    model = content["model"]
    ranks: dict[str, int] = {}
    for rank, merge in enumerate(model["merges"]):
        ranks.setdefault("".join(merge.split(" ", 1) if isinstance(merge, str) else merge), rank)
    added = {token["id"] for token in content["added_tokens"]}
    for number, (text, _, kind) in tokens.items():
        is_byte = len(text) == 6 and text.startswith("<0x") and text.endswith(">")
        kind = kind if number in added else BYTE if is_byte else NORMAL
        tokens[number] = (text, -float(ranks.get(text, len(ranks))), kind)
    unknown = model["vocab"].get(model.get("unk_token"), 0)
    tokens[unknown] = (tokens[unknown][0], 0.0, UNKNOWN)
    steps = [*_steps(content, "normalizer"), *_steps(content, "pre_tokenizer")]
    schemes = [step.get("prepend_scheme", "always") for step in steps if step["type"] == "Metaspace"]
    add_space = any(step["type"] == "Prepend" for step in steps) or any(scheme != "never" for scheme in schemes)
    text, rebuilt = llama_cpp_table()["check_text"], None
    if set(tokens) == set(range(len(tokens))):
        rebuilt = load_sentencepiece(sentencepiece_model([tokens[i] for i in range(len(tokens))], add_space))
    if rebuilt is None or rebuilt.encode(text) != vocabulary.encode_batch([text])[0].tolist():
        raise InputError(
            f"tokenizer {folder}: llama.cpp would split text differently than its tokenizer.json; give the "
            "SentencePiece .model that it was made from"
        )
    return tokens, _llama_entries(unknown, add_space)


def _from_sentencepiece(path: Path) -> tuple[dict[int, Token], Entries]:
    model = read_model(str(path))
    trained, normal = model.trainer_spec, model.normalizer_spec
    if trained.model_type != trained.BPE:
        raise InputError(f"tokenizer {path}: is not BPE, and llama.cpp would split words differently; train one as bpe")
    if normal.precompiled_charsmap or normal.remove_extra_whitespaces:
        raise InputError(
            f"tokenizer {path}: normalises text, which llama.cpp does not; train one with rule identity, spaces kept"
        )
    tokens = {i: (piece.piece, piece.score, piece.type) for i, piece in enumerate(model.pieces)}
    return tokens, _llama_entries(max(trained.unk_id, 0), normal.add_dummy_prefix)


def sentencepiece_model(tokens: Sequence[Token], add_space: bool) -> bytes:
    """The bytes of a SentencePiece model of these tokens."""
    from sentencepiece import sentencepiece_model_pb2

    model = sentencepiece_model_pb2.ModelProto()
    for text, score, kind in tokens:
        model.pieces.add(piece=text, score=score, type=kind)
    spec = model.trainer_spec
    spec.model_type, spec.vocab_size = spec.BPE, len(tokens)
    spec.byte_fallback = any(kind == BYTE for _, _, kind in tokens)
    spec.unk_id = next((i for i, (_, _, kind) in enumerate(tokens) if kind == UNKNOWN), -1)
    spec.unk_piece = tokens[spec.unk_id][0] if spec.unk_id >= 0 else spec.unk_piece
    model.normalizer_spec.name = "identity"
    model.normalizer_spec.add_dummy_prefix, model.normalizer_spec.remove_extra_whitespaces = add_space, False
    return model.SerializeToString()


def load_sentencepiece(model: bytes) -> Any:
    """The library's processor; None: it refuses the model."""
    import sentencepiece

    try:
        return sentencepiece.SentencePieceProcessor(model_proto=model)
    except RuntimeError:
        return None
