"""Exports a tokenizer as a `tokenizer.json` that gives its ids in transformers, tested on sample texts."""

from collections.abc import Callable, Mapping, Sequence
import json
import logging
import os
from pathlib import Path
from typing import Any

from diversity_jax.core.errors import InputError
from diversity_jax.core.files import read_json, write_json
from diversity_jax.core.json_fields import read_fields
from diversity_jax.tokenizers.base import ByteTokenizer, Tokenizer
from diversity_jax.tokenizers.encoders import differing_texts, sample_texts
from diversity_jax.tokenizers.hugging_face import HuggingFaceTokenizer
from diversity_jax.tokenizers.sentence_piece import SentencePieceTokenizer, to_tokenizer_json
from diversity_jax.tokenizers.settings import SETTINGS_FILES, read_settings
from diversity_jax.tokenizers.tokenizer import load_tokenizer

log = logging.getLogger(__name__)

_CLASS = "PreTrainedTokenizerFast"
"""The class of transformers that uses a `tokenizer.json` unchanged; others build their own from it (transformers 5)."""
_OF_OTHER_CLASSES = (
    "legacy",
    "add_prefix_space",
    "sp_model_kwargs",
    "use_fast",
    "auto_map",
    "errors",
    "spaces_between",
)
_REPLACED = ("vocab.json", "merges.txt", *SETTINGS_FILES[1:])
"""Files that a `tokenizer.json` and `tokenizer_config.json` replace."""


def write_exact(
    folder: Path,
    files: Sequence[Path],
    end_of_text_id: int | None,
    *,
    source: Path | None,
    is_chat: bool,
    vocab_size: int,
) -> None:
    """Makes the copied tokenizer files in an export give the tokenizer's ids in transformers, by a `tokenizer.json`.

    If there can be none, the copied files stay; if some ids differ, a warning says for how many sample texts.

    Args:
      files: that define the tokenizer; none for bytes.
      source: their folder, whose settings apply; None: the files were named without their folder.
      is_chat: there is a template, which writes special tokens into texts.
      vocab_size: of the model; special tokens beyond it are left out.
    """
    spec = "bytes" if not files else str(source or (files[0] if len(files) == 1 else files[0].parent))
    try:
        vocabulary = load_tokenizer(spec, end_of_text=end_of_text_id).without_ids_from(vocab_size)
    except InputError as error:
        log.warning("%s: the tokenizer's files are copied as they are and not tried (%s)", folder, error)
        return
    content = exact_json(vocabulary, is_chat=is_chat)
    if content is None:
        log.warning("%s: its tokenizer has no tokenizer.json; transformers may read its files differently", folder)
        return
    differing = differing_texts(content, vocabulary)
    if not getattr(vocabulary, "legacy", True):
        differing = _beyond_legacy(folder, vocabulary, differing, is_chat=is_chat)
    if differing:
        message = "%s: transformers gives other ids than the model was trained on to %d of %d sample texts, such as %r"
        log.warning(message, folder, len(differing), len(sample_texts(vocabulary)), differing[0][:60])
    special: Mapping[str, str] = {}
    if source:
        is_model = isinstance(vocabulary, SentencePieceTokenizer)  # which names its special tokens itself
        special = vocabulary.special if is_model else read_settings(os.path.dirname(vocabulary.files[0])).special
    own = read_json(vocabulary.files[0]) if files and files[0].name == "tokenizer.json" else None
    if own is None or _differs(own, content):
        write_json(folder / "tokenizer.json", content)
        _write_config(folder / "tokenizer_config.json", content, special)
        for name in _REPLACED:
            (folder / name).unlink(missing_ok=True)
    else:
        _write_config(folder / "tokenizer_config.json", content, {})


def _beyond_legacy(folder: Path, vocabulary: Tokenizer, texts: Sequence[str], *, is_chat: bool) -> list[str]:
    """Texts that differ for another reason than the known one of `legacy: false`, of which it warns.

    The library cannot put a space before every text, also one that begins with a space, but none after special tokens.
    """
    reads = "one space fewer in a text that begins with one" if is_chat else "a space more after each special token"
    log.warning("%s: where its tokenizer has legacy: false, transformers reads %s", folder, reads)
    if is_chat:
        return [text for text in texts if not text.startswith((" ", "\u2581"))]
    return [text for text in texts if not any(special in text for special in vocabulary.special_ids)]


def exact_json(vocabulary: Tokenizer, *, is_chat: bool = False) -> dict[str, Any] | None:
    """The content of a `tokenizer.json` for a tokenizer; None: there is none. The caller must check its ids."""
    if isinstance(vocabulary, ByteTokenizer):
        return bytes_json()
    if isinstance(vocabulary, SentencePieceTokenizer):
        legacy = vocabulary.legacy or not is_chat  # exact for any text without special tokens
        content = to_tokenizer_json(vocabulary.model_proto, legacy=legacy)
        return content and with_surroundings(content, *vocabulary.surrounding_ids(), vocabulary)
    assert isinstance(vocabulary, HuggingFaceTokenizer)
    content = json.loads(vocabulary.to_json())
    if vocabulary.surrounding_ids() == vocabulary.own_surrounding_ids():
        return content
    return with_surroundings(content, *vocabulary.surrounding_ids(), vocabulary)


def with_surroundings(
    content: Mapping[str, Any], before: Sequence[int], after: Sequence[int], vocabulary: Tokenizer
) -> dict[str, Any]:
    """A `tokenizer.json` that puts these ids, and no others, around every text."""
    old = content.get("post_processor") or {}
    parts = old.get("processors", [old] if old else [])
    processors = [part for part in parts if part["type"] == "ByteLevel"]  # all others put tokens around a text
    if before or after:
        processors.append(surrounding_template(before, after, vocabulary.token_text))
    sequence = {"type": "Sequence", "processors": processors} if processors else None
    return {**content, "post_processor": processors[0] if len(processors) == 1 else sequence}


def surrounding_template(
    before: Sequence[int], after: Sequence[int], token_text: Callable[[int], str]
) -> dict[str, Any]:
    """The post-processor of a `tokenizer.json` that puts these ids around every text."""
    names = {number: token_text(number) for number in (*before, *after)}

    def around(sequence: str, type_id: int) -> list[dict[str, Any]]:
        specials = [[{"SpecialToken": {"id": names[i], "type_id": type_id}} for i in ids] for ids in (before, after)]
        return [*specials[0], {"Sequence": {"id": sequence, "type_id": type_id}}, *specials[1]]

    special = {text: {"id": text, "ids": [number], "tokens": [text]} for number, text in names.items()}
    pair = [*around("A", 0), *around("B", 1)]
    return {"type": "TemplateProcessing", "single": around("A", 0), "pair": pair, "special_tokens": special}


def _differs(own: Any, content: Mapping[str, Any]) -> bool:
    """Whether a file's content differs, in the library's own form."""
    from tokenizers import Tokenizer as Library

    read = json.loads(Library.from_str(json.dumps(own)).to_str())
    return {**read, "truncation": None, "padding": None} != {**content, "truncation": None, "padding": None}


def _write_config(path: Path, content: Mapping[str, Any], special: Mapping[str, str]) -> None:
    """Writes the settings with which transformers uses the `tokenizer.json` unchanged: class and added tokens."""
    settings = read_fields(path) if path.exists() else {}
    if not settings and not special:
        return
    others = {name: value for name, value in settings.items() if name not in _OF_OTHER_CLASSES}
    written = {**special, **others, "tokenizer_class": _CLASS}
    if "added_tokens_decoder" in written:
        written["added_tokens_decoder"] = {
            str(token["id"]): {name: value for name, value in token.items() if name != "id"}
            for token in content["added_tokens"]
        }
    if written != settings:
        write_json(path, written)


def bytes_json() -> dict[str, Any]:
    """The content of a `tokenizer.json` for `bytes`: byte-level BPE without merges after SeqIO's three reserved ids."""
    import tokenizers

    special = list(ByteTokenizer.special_ids)
    # The character by which byte-level BPE represents each byte: its own if that is printable, else one from 256 on.
    own, others = {*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAD), *range(0xAE, 0x100)}, iter(range(256, 512))
    characters = [chr(byte if byte in own else next(others)) for byte in range(256)]
    vocabulary = {text: i for i, text in enumerate([*special, *characters])}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE(vocabulary, []))
    tokenizer.add_special_tokens(special)
    # Written into the content, since the library's class of decoder takes no settings.
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": False}
    return json.loads(tokenizer.to_str()) | {"pre_tokenizer": byte_level, "decoder": byte_level}
