"""The base class of tokenizers, and the byte tokenizer."""

import abc
from collections.abc import Iterable, Mapping, Sequence
import functools
import itertools
import re
import types
from typing import Any

import numpy as np

from diversity_jax.core.errors import InputError
from diversity_jax.core.files import content_hash
from diversity_jax.tokenizers.encoders import CheckedEncoder, Encoded

SPECIAL_TEXT = ("plain", "special", "refuse")
"""How a special token's text in a document is read: as letters, as the token, or not at all: it is an error."""
_BREAK = "\ufdd0"  # a Unicode noncharacter, which does not occur in text


def check_special_text(value: str | None) -> None:
    """Raises InputError if a setting is not one of `SPECIAL_TEXT`, nor None."""
    if value not in (None, *SPECIAL_TEXT):
        raise InputError(f"special_text {value!r} is unknown; choose one of {', '.join(SPECIAL_TEXT)}")


class Tokenizer(abc.ABC):
    """A mapping between text and ids.

    Attributes:
      kind: `bytes`, `sentencepiece` or `huggingface`.
      size: number of ids; a model's vocabulary must be at least as large.
      hash: identifies the mapping from text to ids; prepared data of another hash is refused.
      files: that define it, which are copied with prepared data; empty for bytes.
      special: text of each special token by the name chat templates use: `eos_token`, perhaps `bos_token`.
      special_ids: the ids of all special tokens by their texts.
      bos_id: its begin-of-text id; None: it has none.
      adds_bos: whether its own post-processor, or its folder's settings, put `bos_id` before every text.
      adds_eos: whether they put end-of-text after every text.
      reference_library: that defines its ids; `bytes` for none.
    """

    kind: str
    size: int
    end_of_text_id: int
    bos_id: int | None
    adds_bos: bool
    adds_eos: bool = False
    hash: str
    files: tuple[str, ...]
    special: Mapping[str, str]
    special_ids: Mapping[str, int]
    reference_library: str

    def encode_batch(self, texts: Sequence[str], *, special: bool = False, encoder: str = "auto") -> Encoded:
        """Ids of all texts end to end, uint32 [total], and how many ids each text has, int64 [len(texts)].

        Args:
          special: special tokens' texts are read as these tokens; else as letters.
          encoder: one of `encoders.ENCODERS`; the ids are the same.

        Raises:
          EncodersDiffer: unless `encoder` is `auto` or `reference`.
        """
        if special and any(map(has_breaks, texts)):
            return self.encode_reference(texts, special=True)
        return self.encoders.encode(texts, special=special, encoder=encoder)

    def encode_each(self, texts: Sequence[str], *, special: bool = False, encoder: str = "auto") -> list[list[int]]:
        """Ids of each text, as `encode_batch` gives them end to end."""
        ids, lengths = self.encode_batch(texts, special=special, encoder=encoder)
        return [part.tolist() for part in np.split(ids, np.cumsum(lengths)[:-1])] if len(texts) else []

    @functools.cached_property
    def encoders(self) -> CheckedEncoder:
        """Chooses between the library that defines the ids and a faster one with the same ids."""
        return CheckedEncoder(self)

    def encode_reference(self, texts: Sequence[str], *, special: bool) -> Encoded:
        """As `encode_batch`, by the library that defines the ids."""
        return concatenate(self._encode_special(texts) if special else self._encode_plain(texts))

    def fast_content(self) -> str | None:
        """A `tokenizer.json` for the fast encoder, whose ids are then compared; None: there is none."""
        return None

    def without_ids_from(self, count: int) -> "Tokenizer":
        """This tokenizer for a model of `count` ids: without the special tokens at and above it, whose texts are then
        letters. Itself where there are none, or where other tokens, or the ids around a text, are above it too."""
        return self

    def surrounding_ids(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """The ids that it puts before and after every text in transformers."""
        begin = (self.bos_id,) if self.adds_bos and self.bos_id is not None else ()
        return begin, (self.end_of_text_id,) if self.adds_eos else ()

    def zero_in_rows(self) -> str | None:
        """The text of id 0 if rows contain it, as text or as the end or beginning of a document; None if it is padding
        or another special token. SeqIO takes id 0 for padding."""
        text = self.token_text(0)
        in_rows = text not in self.special_ids or 0 in (self.end_of_text_id, self.bos_id if self.adds_bos else None)
        return text if in_rows else None

    @abc.abstractmethod
    def decode(self, ids: Sequence[int]) -> str:
        """Text of ids; end-of-text ids are left out."""

    @abc.abstractmethod
    def token_id(self, token: str) -> int | None:
        """The id of a token by its text; None if it is not in the vocabulary."""

    @abc.abstractmethod
    def token_text(self, number: int) -> str:
        """A token's text in the vocabulary."""

    @abc.abstractmethod
    def _encode_plain(self, texts: Sequence[str]) -> Sequence[Sequence[int]]:
        """Ids of each text."""

    def _encode_inner(self, texts: Sequence[str]) -> Sequence[Sequence[int]]:
        """Ids of texts that follow a special token."""
        return self._encode_plain(texts)

    def _encode_special(self, texts: Sequence[str]) -> Sequence[Sequence[int]]:
        """Ids of each text: special tokens' texts become their ids, the text between is encoded separately."""
        split, known = self._special_pattern, self.special_ids
        parts = [[part for part in split.split(text) if part] if split else [text] for text in texts]
        between = [(i > 0, without_breaks(part)) for row in parts for i, part in enumerate(row) if part not in known]
        first, inner = ([part for is_inner, part in between if is_inner == wanted] for wanted in (False, True))
        ids = {
            False: iter(self._encode_plain(first) if first else ()),
            True: iter(self._encode_inner(inner) if inner else ()),
        }
        return [
            [token for i, part in enumerate(row) for token in ([known[part]] if part in known else next(ids[i > 0]))]
            for row in parts
        ]

    @functools.cached_property
    def _special_pattern(self) -> re.Pattern[str] | None:
        texts = sorted(self.special_ids, key=len, reverse=True)
        return re.compile("(" + "|".join(map(re.escape, texts)) + ")") if texts else None

    def special_in(self, texts: Iterable[str]) -> list[str | None]:
        """The first special token's text in each text; None where there is none."""
        split = self._special_pattern
        starts = {text[:2] for text in self.special_ids}  # a fast test, which excludes most texts

        def first(text: str) -> str | None:
            match = split.search(text) if split and any(start in text for start in starts) else None
            return match.group() if match else None

        return [first(text) for text in texts]

    def with_plain_content(self, messages: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        """Messages for a chat template, with noncharacters put into special tokens' texts in all but their roles.

        Of the rendered text, `encode_batch(special=True)` reads the special tokens that the template writes as tokens,
        and these texts as letters; `without_breaks` removes the noncharacters.

        Raises:
          InputError: a message contains such a text and the noncharacter U+FDD0.
        """
        results = []
        for message in messages:
            plain = {key: _with_breaks(value, self._special_pattern) for key, value in message.items() if key != "role"}
            results.append({**message, **plain})
        return results


def _with_breaks(value: Any, special: re.Pattern[str] | None) -> Any:
    """A value with noncharacters in the texts, at any depth, that `special` finds."""
    if isinstance(value, dict):
        return {_with_breaks(key, special): _with_breaks(inner, special) for key, inner in value.items()}
    if isinstance(value, list):
        return [_with_breaks(inner, special) for inner in value]
    if not special or not isinstance(value, str) or not special.search(value):
        return value
    if _BREAK in value:
        raise InputError("messages: one holds the noncharacter U+FDD0, which no text may; take it out")
    return special.sub(lambda match: _BREAK.join(match.group()), value)


def without_breaks(text: str) -> str:
    """A text without the noncharacters that `Tokenizer.with_plain_content` puts in."""
    return text.replace(_BREAK, "")


def has_breaks(text: str) -> bool:
    """Whether the text contains a special token's text that must be read as letters."""
    return _BREAK in text


def concatenate(encoded: Sequence[Sequence[int]]) -> tuple[np.ndarray, np.ndarray]:
    """All ids end to end, uint32, and the number of ids of each text, int64."""
    lengths = np.fromiter(map(len, encoded), np.int64, len(encoded))
    return np.fromiter(itertools.chain.from_iterable(encoded), np.uint32, int(lengths.sum())), lengths


class ByteTokenizer(Tokenizer):
    """UTF-8 bytes, with the ids of `seqio.ByteVocabulary`: 0 padding, 1 end of text, 2 unknown, byte b is b + 3."""

    kind = reference_library = "bytes"
    size, end_of_text_id = 259, 1
    bos_id, adds_bos = None, False
    files = ()
    hash = content_hash(["bytes", 259])
    special = types.MappingProxyType({"eos_token": "<|endoftext|>"})  # as the exported tokenizer.json calls it
    special_ids = types.MappingProxyType({"<|pad|>": 0, "<|endoftext|>": 1, "<|unk|>": 2})

    def encode_reference(self, texts: Sequence[str], *, special: bool) -> Encoded:
        if special:
            return super().encode_reference(texts, special=True)
        encoded = [text.encode() for text in texts]
        lengths = np.array([len(data) for data in encoded], np.int64)
        return np.frombuffer(b"".join(encoded), np.uint8).astype(np.uint32) + 3, lengths

    def _encode_plain(self, texts: Sequence[str]) -> Sequence[Sequence[int]]:
        return [[byte + 3 for byte in text.encode()] for text in texts]

    def decode(self, ids: Sequence[int]) -> str:
        array = np.asarray(ids)
        return (array[array >= 3] - 3).astype(np.uint8).tobytes().decode(errors="replace")

    def token_id(self, token: str) -> int | None:
        return self.special_ids.get(token)

    def token_text(self, number: int) -> str:
        return next((text for text, i in self.special_ids.items() if i == number), f"<0x{number - 3:02X}>")

    def token_bytes(self) -> list[bytes | None]:
        """The bytes that each id adds to a text; None for special ids."""
        return [None] * 3 + [bytes([byte]) for byte in range(256)]
