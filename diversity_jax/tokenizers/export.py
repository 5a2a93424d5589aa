"""A tokenizer as the `tokenizer.json` that gives its ids in transformers, tried on sample text before it is written."""

from collections.abc import Mapping, Sequence
import json
import logging
import os
from pathlib import Path
from typing import Any

from diversity_jax.core.config import read_fields
from diversity_jax.core.errors import InputError
from diversity_jax.core.files import read_json, write_json
from diversity_jax.tokenizers.base import ByteTokenizer, Tokenizer
from diversity_jax.tokenizers.encoders import differing_texts, sample_texts
from diversity_jax.tokenizers.hugging_face import HuggingFaceTokenizer
from diversity_jax.tokenizers.sentence_piece import SentencePieceTokenizer, to_tokenizer_json
from diversity_jax.tokenizers.settings import SETTINGS_FILES, read_settings
from diversity_jax.tokenizers.tokenizer import load_tokenizer

log = logging.getLogger(__name__)

_CLASS = "PreTrainedTokenizerFast"
"""The class of transformers that takes a `tokenizer.json` as it is; others build their own anew (transformers 5)."""
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
"""Files whose content a `tokenizer.json` and `tokenizer_config.json` have."""


def write_exact(
    folder: Path, files: Sequence[Path], end_of_text_id: int | None, *, source: Path | None, is_chat: bool
) -> None:
    """Makes `tokenizer.json` in an export, where its files have been copied, give the tokenizer's ids in transformers.

    Where there is no such form, what was copied stays; where some ids are others, a line says how many.

    Args:
      files: that define the tokenizer; none for bytes.
      source: the folder they were found in, whose settings count; None: files that were named by themselves.
      is_chat: there is a template, which writes special tokens into texts.
    """
    spec = "bytes" if not files else str(source or (files[0] if len(files) == 1 else files[0].parent))
    try:
        vocabulary = load_tokenizer(spec, end_of_text=end_of_text_id)
    except InputError as error:
        log.warning("%s: the tokenizer's files are copied as they are and not tried (%s)", folder, error)
        return
    content = exact_json(vocabulary, is_chat=is_chat)
    if content is None:
        log.warning("%s: its tokenizer has no tokenizer.json; transformers may read its files otherwise", folder)
        return
    differing = differing_texts(content, vocabulary)
    if not getattr(vocabulary, "legacy", True):
        differing = _beyond_legacy(folder, vocabulary, differing, is_chat=is_chat)
    if differing:
        message = "%s: transformers gives other ids than the model was trained on to %d of %d sample texts, such as %r"
        log.warning(message, folder, len(differing), len(sample_texts(vocabulary)), differing[0][:60])
    special: Mapping[str, str] = {}
    if source:
        is_piece = isinstance(vocabulary, SentencePieceTokenizer)  # whose own file names its tokens
        special = vocabulary.special if is_piece else read_settings(os.path.dirname(vocabulary.files[0])).special
    own = read_json(vocabulary.files[0]) if files and files[0].name == "tokenizer.json" else None
    if own is None or _differs(own, content):
        write_json(folder / "tokenizer.json", content)
        _write_config(folder / "tokenizer_config.json", content, special)
        for name in _REPLACED:
            (folder / name).unlink(missing_ok=True)
    else:
        _write_config(folder / "tokenizer_config.json", content, {})


def _beyond_legacy(folder: Path, vocabulary: Tokenizer, texts: Sequence[str], *, is_chat: bool) -> list[str]:
    """Texts that differ for another reason than the one that is known of `legacy: false`, of which a line tells.

    The library cannot put a space before what begins a text, also where that begins with a space, and none after
    special tokens.
    """
    reads = "one space fewer in a text that begins with one" if is_chat else "a space more after each special token"
    log.warning("%s: where its tokenizer has legacy: false, transformers reads %s", folder, reads)

    if is_chat:
        return [text for text in texts if not text.startswith((" ", "\u2581"))]
    return [text for text in texts if not any(special in text for special in vocabulary.special_ids)]


def exact_json(vocabulary: Tokenizer, *, is_chat: bool = False) -> dict[str, Any] | None:
    """The content of a `tokenizer.json` for a tokenizer; None where there is no such form.

    Whether it gives the same ids is for the caller to try.
    """
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
    byte_level = [part for part in parts if part["type"] == "ByteLevel"]  # of offsets; others put tokens around a text
    names = {number: vocabulary.token_text(number) for number in (*before, *after)}

    def around(sequence: str, type_id: int) -> list[dict[str, Any]]:
        specials = [[{"SpecialToken": {"id": names[i], "type_id": type_id}} for i in ids] for ids in (before, after)]
        return [*specials[0], {"Sequence": {"id": sequence, "type_id": type_id}}, *specials[1]]

    if names:
        special = {text: {"id": text, "ids": [number], "tokens": [text]} for number, text in names.items()}
        template = {"type": "TemplateProcessing", "single": around("A", 0), "pair": around("A", 0) + around("B", 1)}
        byte_level.append({**template, "special_tokens": special})
    sequence = {"type": "Sequence", "processors": byte_level} if byte_level else None
    processor = byte_level[0] if len(byte_level) == 1 else sequence
    return {**content, "post_processor": processor}


def _differs(own: Any, content: Mapping[str, Any]) -> bool:
    """Whether a file says anything else than the content, in the library's own form."""
    from tokenizers import Tokenizer as Library

    read = json.loads(Library.from_str(json.dumps(own)).to_str())
    return {**read, "truncation": None, "padding": None} != {**content, "truncation": None, "padding": None}


def _write_config(path: Path, content: Mapping[str, Any], special: Mapping[str, str]) -> None:
    """Settings under which transformers takes the `tokenizer.json` as it is: its own class, the file's added tokens."""
    settings = read_fields(path) if path.exists() else {}
    if not settings and not special:
        return
    settings_kept = {name: value for name, value in settings.items() if name not in _OF_OTHER_CLASSES}
    written = {**special, **settings_kept, "tokenizer_class": _CLASS}
    if "added_tokens_decoder" in written:
        written["added_tokens_decoder"] = {
            str(token["id"]): {name: value for name, value in token.items() if name != "id"}
            for token in content["added_tokens"]
        }
    if written != settings:
        write_json(path, written)


def bytes_json() -> dict[str, Any]:
    """`bytes` as a tokenizer.json's content: byte-level BPE without merges after the three ids that SeqIO reserves."""
    import tokenizers

    special = list(ByteTokenizer.special_ids)
    # The printable character that byte-level BPE writes for each byte: its own where it has one, else one from 256 on.
    own, others = {*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAD), *range(0xAE, 0x100)}, iter(range(256, 512))
    characters = [chr(byte if byte in own else next(others)) for byte in range(256)]
    vocabulary = {text: i for i, text in enumerate([*special, *characters])}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE(vocabulary, []))
    tokenizer.add_special_tokens(special)
    # Written into the file, since the library's decoder of this kind takes no settings.
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": False}
    return json.loads(tokenizer.to_str()) | {"pre_tokenizer": byte_level, "decoder": byte_level}
