"""Writes the tokenizer of a GGUF file as a folder that transformers and this library read."""

from collections.abc import Mapping, Sequence
import json
from pathlib import Path
from typing import Any

from diversity_jax.core.errors import InputError
from diversity_jax.core.files import writing
from diversity_jax.tokenizers.export import bytes_json, surrounding_template
from diversity_jax.tokenizers.gguf_entries import (
    CONTROL,
    NORMAL,
    PLAIN_TEMPLATE,
    SPACE,
    UNKNOWN,
    UNUSED,
    USER_DEFINED,
    Token,
    byte_tokens,
    llama_cpp_table,
    load_sentencepiece,
    sentencepiece_model,
)
from diversity_jax.tokenizers.sentence_piece import to_tokenizer_json

_ADDED = (CONTROL, USER_DEFINED, UNKNOWN)  # kinds of tokens that are found in a text before it is split into words
_ADD_BOS = ("llama-bpe", "tekken")  # families that begin texts with begin-of-text unless the file says otherwise

# Control tokens that llama.cpp takes for ends of an answer by their texts, also where the file does not name them.
_TURN_ENDS = ("<|eot_id|>", "<|im_end|>", "<|end|>", "<end_of_turn>", "<|eot|>")


def write_folder(entries: Mapping[str, Any], folder: Path, source: Path) -> None:
    """Writes the tokenizer of a GGUF file as a folder that transformers and `load_tokenizer` read.

    A byte-level BPE becomes a tokenizer.json, a SentencePiece one a tokenizer.model, both with their settings, the chat
    template and the ids that end an answer.

    Args:
      entries: the file's metadata.
      source: named in errors.

    Raises:
      InputError: the kind of tokenizer is not supported, or entries are damaged; nothing is written then.
    """
    tokens, kind = _tokens(entries, source), entries.get("tokenizer.ggml.model")
    ids = _ids(entries, source, len(tokens))
    template = entries.get("tokenizer.chat_template")
    if not isinstance(template, str | None):
        raise InputError(f"{source}: tokenizer.chat_template is no text; fetch the file again")
    if ends := ids.get("eos_token", []):
        texts = [text for text in _TURN_ENDS if text in (template or "")]
        ends += [i for i, (text, _, type_) in enumerate(tokens) if type_ == CONTROL and text in texts and i not in ends]
    files: dict[str, bytes] = {}
    if template is not None and template != PLAIN_TEMPLATE:
        files["chat_template.jinja"] = template.encode()
    special = {name: tokens[numbers[0]][0] for name, numbers in ids.items()}
    settings: dict[str, Any] = {**special, "clean_up_tokenization_spaces": False}
    if kind == "gpt2":
        family = _family(entries, source)
        around = _around(entries, ids, family["names"][0] in _ADD_BOS)
        content = _byte_level(entries, source, tokens, family, _post_processor(tokens, *around))
        files["tokenizer.json"] = json.dumps(content, ensure_ascii=False).encode()
        settings |= {"tokenizer_class": "PreTrainedTokenizerFast"}
    elif kind == "llama" and _are_byte_tokens(tokens):
        files["tokenizer.json"] = json.dumps(bytes_json()).encode()
        settings |= {"tokenizer_class": "PreTrainedTokenizerFast"}
    elif kind == "llama":
        around = _around(entries, ids, True)
        files["tokenizer.model"], converted = _sentencepiece(entries, source, tokens)
        if converted is not None:  # transformers 5 uses it; it reads a tokenizer.model alone in another way
            converted |= {"post_processor": _post_processor(tokens, *around)}
            files["tokenizer.json"] = json.dumps(converted, ensure_ascii=False).encode()
        settings |= {"tokenizer_class": "LlamaTokenizer" if converted is None else "PreTrainedTokenizerFast"}
        settings |= {"add_bos_token": around[0] is not None, "legacy": True}
        settings |= {"add_eos_token": True} if around[1] is not None else {}
    else:
        raise InputError(f"{source}: tokenizer.ggml.model is {kind!r}; only gpt2 (BPE) and llama can be read")
    named: dict[str, Any] = {
        f"{name}_id": numbers[0] for name, numbers in ids.items() if name in ("bos_token", "pad_token")
    }
    if ends:
        named["eos_token_id"] = ends if len(ends) > 1 else ends[0]
    for name, content in (("tokenizer_config.json", settings), ("generation_config.json", named)):
        files[name] = json.dumps(content, ensure_ascii=False, indent=1).encode()
    folder.mkdir(parents=True, exist_ok=True)
    for name, data in files.items():
        with writing(folder / name) as file:
            file.write(data)


def _family(entries: Mapping[str, Any], source: Path) -> Mapping[str, Any]:
    """How words are split, by the table."""
    pre = entries.get("tokenizer.ggml.pre")
    family = next((each for each in llama_cpp_table()["families"] if pre in each["names"]), None)
    if family is None:
        raise InputError(
            f"{source}: tokenizer.ggml.pre is {pre!r}; how that splits words is not known, so that the model would "
            "read other tokens than it was trained on; import its Hugging Face folder instead"
        )
    return family


def _around(entries: Mapping[str, Any], ids: Mapping[str, list[int]], begins: bool) -> tuple[int | None, int | None]:
    """The ids before and after every text; `begins`: the default for the first."""
    wanted = (("bos_token", "add_bos_token", begins), ("eos_token", "add_eos_token", False))
    before, after = (
        ids[name][0] if name in ids and entries.get(f"tokenizer.ggml.{key}", default) else None
        for name, key, default in wanted
    )
    return before, after


def _sentencepiece(
    entries: Mapping[str, Any], source: Path, tokens: Sequence[Token]
) -> tuple[bytes, dict[str, Any] | None]:
    """The content of a tokenizer.model, and of a tokenizer.json if one gives the same ids.

    Raises:
      InputError: the tokens make no model.
    """
    with_spaces = [(text.replace(" ", SPACE), score, kind) for text, score, kind in tokens]
    model = sentencepiece_model(with_spaces, bool(entries.get("tokenizer.ggml.add_space_prefix", True)))
    processor = load_sentencepiece(model)
    if processor is None or processor.get_piece_size() != len(tokens):
        raise InputError(f"{source}: its tokens make no SentencePiece model (one unknown token, none twice)")
    content = to_tokenizer_json(model)
    if content is not None and not _is_same(content, processor):
        content = None
    return model, content


def _is_same(content: Mapping[str, Any], processor: Any) -> bool:
    import tokenizers

    library = tokenizers.Tokenizer.from_str(json.dumps(content))
    texts = [llama_cpp_table()["check_text"], *llama_cpp_table()["check_text"].split("\n"), "  two  spaces "]
    return all(library.encode(text, add_special_tokens=False).ids == processor.encode(text) for text in texts)


def _added(token: Token) -> dict[str, Any]:
    text, _, kind = token
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    return {"content": text, **flags, "special": kind != USER_DEFINED}


def _tokens(entries: Mapping[str, Any], source: Path) -> list[Token]:
    texts = entries.get("tokenizer.ggml.tokens")
    if not isinstance(texts, list) or not texts:
        raise InputError(
            f"{source}: holds no tokenizer (tokenizer.ggml.tokens); import its Hugging Face folder instead"
        )
    columns: list[list[Any]] = []
    for key, default in (("tokenizer.ggml.scores", 0.0), ("tokenizer.ggml.token_type", NORMAL)):
        values = entries.get(key)
        column = [default] * len(texts) if values is None else list(values)
        if len(column) != len(texts):
            raise InputError(f"{source}: {key} has {len(column)} values for {len(texts)} tokens; fetch the file again")
        columns.append([type(default)(value) for value in column])
    return list(zip(texts, *columns, strict=True))


def _ids(entries: Mapping[str, Any], source: Path, count: int) -> dict[str, list[int]]:
    """Ids of the special tokens by transformers' names; of end-of-text, all that end an answer."""
    named = {"bos_token": ("bos",), "eos_token": ("eos", "eot", "eom")}
    named |= {"unk_token": ("unknown",), "pad_token": ("padding",)}
    ids: dict[str, list[int]] = {}
    for name, keys in named.items():
        for key in keys:
            number = entries.get(f"tokenizer.ggml.{key}_token_id")
            if number is None:
                continue
            if not isinstance(number, int) or not 0 <= number < count:
                raise InputError(f"{source}: tokenizer.ggml.{key}_token_id is {number!r}, but there are {count} tokens")
            ids.setdefault(name, [])
            ids[name] += [number] if number not in ids[name] else []
    return ids


def _are_byte_tokens(tokens: Sequence[Token]) -> bool:
    """Whether these are the tokens of `byte_tokens`, and perhaps unused ones."""
    if len(tokens) < 259:
        return False
    expected = list(byte_tokens(dict(enumerate(tokens[:3])))[0].values())
    return expected[3:] == list(tokens[3:259]) and all(kind == UNUSED for _, _, kind in tokens[259:])


def _byte_level(
    entries: Mapping[str, Any],
    source: Path,
    tokens: Sequence[Token],
    family: Mapping[str, Any],
    template: dict[str, Any] | None,
) -> dict[str, Any]:
    """The content of a tokenizer.json; `template`: the post-processor that puts tokens around every text.

    Raises:
      InputError: the tokens and merges make no tokenizer.
    """
    import tokenizers

    merges = entries.get("tokenizer.ggml.merges")
    if not isinstance(merges, list) or not all(" " in merge[1:] for merge in merges):
        raise InputError(f"{source}: tokenizer.ggml.merges is missing or no list of pairs; fetch the file again")
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    steps: list[dict[str, Any]] = []
    for split in family["splits"]:
        if split == "digits":
            steps.append({"type": "Digits", "individual_digits": True})
        elif split != "gpt2":
            steps.append({"type": "Split", "pattern": {"Regex": split}, "behavior": "Isolated", "invert": False})
    steps.append(byte_level | {"use_regex": "gpt2" in family["splits"]})
    content = {
        **{"version": "1.0", "truncation": None, "padding": None, "normalizer": None},
        "added_tokens": [{"id": i, **_added(token)} for i, token in enumerate(tokens) if token[2] in _ADDED],
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": steps},
        "post_processor": template or byte_level,
        "decoder": byte_level,
        "model": {
            **{"type": "BPE", "fuse_unk": False, "byte_fallback": False, "ignore_merges": family["ignore_merges"]},
            **dict.fromkeys(("dropout", "unk_token", "continuing_subword_prefix", "end_of_word_suffix")),
            "vocab": {text: i for i, (text, _, kind) in enumerate(tokens) if kind != UNUSED},
            "merges": [merge.split(" ", 1) for merge in merges],
        },
    }
    try:
        made = tokenizers.Tokenizer.from_str(json.dumps(content))
    except Exception as error:  # the library raises bare Exception for every fault
        reason = str(error).splitlines()[0]
        raise InputError(f"{source}: its tokens and merges make no tokenizer ({reason}); fetch it again") from None
    twice = next(
        (text for i, (text, _, kind) in enumerate(tokens) if kind != UNUSED and made.token_to_id(text) != i), None
    )
    if twice is not None:
        raise InputError(f"{source}: has the token {twice!r} twice; its tokenizer cannot be rebuilt")
    return content


def _post_processor(tokens: Sequence[Token], before: int | None, after: int | None) -> dict[str, Any] | None:
    """The post-processor that puts these ids around every text; None: there are none."""
    if before is None and after is None:
        return None
    ids_before, ids_after = ([] if number is None else [number] for number in (before, after))
    return surrounding_template(ids_before, ids_after, lambda number: tokens[number][0])
