"""Text to ids and back: bytes, SentencePiece and Hugging Face tokenizers behind one interface, without TensorFlow."""

import abc
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
import itertools
import os
from pathlib import Path
import re
import types
from typing import Any

import numpy as np

from diversity_jax.core.errors import InputError
from diversity_jax.core.files import content_hash, file_hash, list_files, open_file, read_json
from diversity_jax.tokenizers.chat_template import answer_parts
from diversity_jax.tokenizers.files import BeginOfText, begin_of_text, folder_template, special_tokens

_BEGIN_OF_TEXT_NAMES = ("<|begin_of_text|>", "<s>", "<bos>", "<|startoftext|>", "[BOS]")
_END_OF_TEXT_NAMES = ("<|endoftext|>", "<|end_of_text|>", "</s>", "<eos>", "<|eot|>", "[EOS]", "<|im_end|>", "[SEP]")


class Tokenizer(abc.ABC):
    """A mapping between text and ids.

    Attributes:
      kind: `bytes`, `sentencepiece` or `huggingface`.
      size: number of ids; a model's vocabulary must be at least as large.
      hash: identifies the mapping from text to ids; prepared data of another hash is refused.
      files: that define it, to be kept beside prepared data; empty for bytes.
      special: text of each special token by the name chat templates use: `eos_token`, perhaps `bos_token`.
      special_ids: special tokens' texts that `encode_batch` would spell out, and the ids they stand for.
      bos_id: its maker's begin-of-text id; None where there is none.
      adds_bos: whether its maker puts `bos_id` before every text: its own post-processor, or the folder's settings.
    """

    kind: str
    size: int
    end_of_text_id: int
    bos_id: int | None
    adds_bos: bool
    hash: str
    files: tuple[str, ...]
    special: Mapping[str, str]
    special_ids: Mapping[str, int]

    @abc.abstractmethod
    def encode_batch(self, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """Ids of all texts end to end, uint32 [total], and how many ids each text has, int64 [len(texts)]."""

    @abc.abstractmethod
    def decode(self, ids: Sequence[int]) -> str:
        """Text of ids; end-of-text ids are left out."""


def load_tokenizer(spec: str, *, end_of_text: str | int | None = None) -> Tokenizer:
    """Loads a tokenizer.

    Args:
      spec: `bytes`; a SentencePiece model (`.model`); a Hugging Face `tokenizer.json`; or a folder that holds one of
        `tokenizer.json`, `tokenizer.model`, or `vocab.json` with `merges.txt` (byte-level BPE).
      end_of_text: token that ends a document, or its id, where the tokenizer has no usual one.

    Raises:
      InputError: unknown spec, unreadable file, or no end-of-text token.
    """
    if spec == "bytes":
        return ByteTokenizer()
    files = _tokenizer_files(spec)
    begin = begin_of_text(Path(spec)) if Path(spec).is_dir() else BeginOfText()
    if files[0].endswith(".model"):
        return SentencePieceTokenizer(files[0], end_of_text, begin)
    return HuggingFaceTokenizer(files, end_of_text, begin)


def _tokenizer_files(spec: str) -> tuple[str, ...]:
    path = Path(spec)
    if path.is_dir():
        for names in (("tokenizer.json",), ("tokenizer.model",), ("vocab.json", "merges.txt")):
            if all((path / name).exists() for name in names):
                return tuple(str(path / name) for name in names)
        raise InputError(
            f"vocabulary {spec}: the folder holds no tokenizer.json, tokenizer.model, or vocab.json with merges.txt"
        )
    if not spec.endswith((".model", ".json")):
        raise InputError(f"vocabulary {spec!r} is unknown; give 'bytes', a .model, a tokenizer.json, or their folder")
    if not list_files(spec):
        raise InputError(f"vocabulary {spec}: no such file; check the path")
    return (spec,)


class ByteTokenizer(Tokenizer):
    """UTF-8 bytes, with the ids of `seqio.ByteVocabulary`: 0 padding, 1 end of text, 2 unknown, byte b is b + 3."""

    kind, size, end_of_text_id = "bytes", 259, 1
    bos_id, adds_bos = None, False
    files = ()
    hash = content_hash(["bytes", 259])
    special = types.MappingProxyType({"eos_token": "<|endoftext|>"})  # as the exported tokenizer.json calls it
    special_ids = types.MappingProxyType({"<|endoftext|>": 1})

    def encode_batch(self, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        encoded = [text.encode() for text in texts]
        lengths = np.array([len(data) for data in encoded], np.int64)
        return np.frombuffer(b"".join(encoded), np.uint8).astype(np.uint32) + 3, lengths

    def decode(self, ids: Sequence[int]) -> str:
        array = np.asarray(ids)
        return (array[array >= 3] - 3).astype(np.uint8).tobytes().decode(errors="replace")

    def token_bytes(self) -> list[bytes | None]:
        """What each id adds to a text; None for ids that stand for no text."""
        return [None] * 3 + [bytes([byte]) for byte in range(256)]


class SentencePieceTokenizer(Tokenizer):
    """A SentencePiece model; documents end with its `</s>` unless another piece is named."""

    kind = "sentencepiece"

    def __init__(self, path: str, end_of_text: str | int | None = None, begin: BeginOfText = BeginOfText()):
        import sentencepiece

        with open_file(path) as file:
            model = file.read()
        try:
            self._model = sentencepiece.SentencePieceProcessor(model_proto=model)
            self.size = self._model.get_piece_size()
        except RuntimeError:
            raise InputError(f"vocabulary {path}: is not a SentencePiece model") from None
        if isinstance(end_of_text, int) and 0 <= end_of_text < self.size:
            end_of_text = self._model.id_to_piece(end_of_text)
        eos_id = self._model.eos_id()
        self.end_of_text_id = eos_id if end_of_text is None else self._model.piece_to_id(end_of_text)
        if self.end_of_text_id < 0 or (end_of_text and self._model.id_to_piece(self.end_of_text_id) != end_of_text):
            raise InputError(f"vocabulary {path}: has no piece {end_of_text or '</s>'!r}; name one as end_of_text")
        self.ends_with_eos = self.end_of_text_id == eos_id
        own = self._model.bos_id() if self._model.bos_id() >= 0 else None
        self.bos_id = own if begin.text is None else self._piece_id(begin.text)
        self.adds_bos = bool(begin.is_added) and self.bos_id is not None
        ids = {"eos_token": self.end_of_text_id, "bos_token": self._model.bos_id()}
        self.special = {name: self._model.id_to_piece(i) for name, i in ids.items() if i >= 0}
        self.special_ids = {text: ids[name] for name, text in self.special.items()}
        self.files = (path,)
        self.hash = content_hash([self.kind, file_hash(path), self.end_of_text_id])

    def encode_batch(self, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        return _concatenate(self._model.encode(list(texts), num_threads=os.cpu_count()))

    def decode(self, ids: Sequence[int]) -> str:
        return self._model.decode([int(i) for i in ids if i != self.end_of_text_id])

    def _piece_id(self, text: str) -> int | None:
        number = self._model.piece_to_id(text)
        return number if self._model.id_to_piece(number) == text else None

    def token_id(self, token: str) -> int | None:
        """The id of a piece; the unknown piece's for one that is not in the model."""
        return self._model.piece_to_id(token)

    def token_bytes(self) -> list[bytes | None]:
        """What each piece adds to a text; None for pieces that stand for no text."""
        model = self._model

        def spelt(i: int) -> bytes | None:
            if model.is_control(i) or model.is_unknown(i) or model.is_unused(i):
                return None
            piece = model.id_to_piece(i)
            return bytes([int(piece[1:-1], 16)]) if model.is_byte(i) else piece.replace("\u2581", " ").encode()

        return [spelt(i) for i in range(self.size)]


class HuggingFaceTokenizer(Tokenizer):
    """A tokenizer of the `tokenizers` library; nothing is added to a text but the end-of-text id."""

    kind = "huggingface"
    special_ids = types.MappingProxyType({})  # the library recognises special tokens in a text

    def __init__(
        self, files: tuple[str, ...], end_of_text: str | int | None = None, begin: BeginOfText = BeginOfText()
    ):
        self._tokenizer = _read_tokenizer(files)
        self.size = max(self._tokenizer.get_vocab(with_added_tokens=True).values()) + 1
        if isinstance(end_of_text, int):
            end_of_text = str(self._tokenizer.id_to_token(end_of_text) or "")
        names = [end_of_text] if end_of_text else _END_OF_TEXT_NAMES
        ids = [i for i in map(self._tokenizer.token_to_id, names) if i is not None]
        if not ids:
            raise InputError(f"vocabulary {files[0]}: has none of {', '.join(names)}; name a token as end_of_text")
        self.end_of_text_id = ids[0]
        self.special = {"eos_token": self._tokenizer.id_to_token(ids[0])}
        before = self.surrounding_ids()[0]
        names = _BEGIN_OF_TEXT_NAMES if begin.text is None else (begin.text,)
        ids = [*before[:1], *(i for i in map(self._tokenizer.token_to_id, names) if i is not None)]
        self.bos_id = ids[0] if ids else None
        self.adds_bos = self.bos_id is not None and (bool(before) if begin.is_added is None else begin.is_added)
        self.files = files
        self.hash = content_hash([self.kind, *map(file_hash, files), self.end_of_text_id])

    def encode_batch(self, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        encodings = self._tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)
        return _concatenate([encoding.ids for encoding in encodings])

    def decode(self, ids: Sequence[int]) -> str:
        return self._tokenizer.decode([int(i) for i in ids if i != self.end_of_text_id], skip_special_tokens=False)

    def token_id(self, token: str) -> int | None:
        """The id of a token; None for one that is not in the vocabulary."""
        return self._tokenizer.token_to_id(token)

    def to_json(self) -> str:
        """The tokenizer as a `tokenizer.json`."""
        return self._tokenizer.to_str()

    def surrounding_ids(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """The ids that the file's own post-processor puts before and after every text."""
        plain, extended = (self._tokenizer.encode("a", add_special_tokens=added).ids for added in (False, True))
        start = next((i for i in range(len(extended)) if extended[i : i + len(plain)] == plain), 0)
        return tuple(extended[:start]), tuple(extended[start + len(plain) :])


def _read_tokenizer(files: tuple[str, ...]) -> Any:
    import tokenizers

    try:
        if len(files) == 2:  # GPT-2's vocab.json and merges.txt
            tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE.from_file(*files))
            tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
            tokenizer.decoder = tokenizers.decoders.ByteLevel()
        else:
            with open_file(files[0]) as file:
                tokenizer = tokenizers.Tokenizer.from_buffer(file.read())
    except InputError:
        raise
    except Exception as error:  # the library raises bare Exception for every fault of a file
        reason = str(error).splitlines()[0]
        raise InputError(f"vocabulary {files[0]}: is not a Hugging Face tokenizer ({reason})") from None
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def _concatenate(encoded: Sequence[Sequence[int]]) -> tuple[np.ndarray, np.ndarray]:
    lengths = np.fromiter(map(len, encoded), np.int64, len(encoded))
    return np.fromiter(itertools.chain.from_iterable(encoded), np.uint32, int(lengths.sum())), lengths


def encode_with_special(tokenizer: Tokenizer, texts: Sequence[str], special_ids: Mapping[str, int]) -> list[list[int]]:
    """Ids of each text, in which the texts of `special_ids` become their ids and what lies between is encoded apart."""
    if not special_ids:
        return _encoded(tokenizer, texts)
    split = re.compile("(" + "|".join(map(re.escape, sorted(special_ids, key=len, reverse=True))) + ")")
    parts = [[part for part in split.split(text) if part] for text in texts]
    ids = iter(_encoded(tokenizer, [part for text_parts in parts for part in text_parts if part not in special_ids]))
    return [
        [i for part in text_parts for i in ([special_ids[part]] if part in special_ids else next(ids))]
        for text_parts in parts
    ]


def _encoded(tokenizer: Tokenizer, texts: Sequence[str]) -> list[list[int]]:
    if not len(texts):
        return []
    ids, lengths = tokenizer.encode_batch(texts)
    return [part.tolist() for part in np.split(ids, np.cumsum(lengths)[:-1])]


@dataclass(frozen=True, kw_only=True)
class ModelTokenizer:
    """A tokenizer and how one model uses it.

    Attributes:
      prefix_id: what an empty context is replaced by: begin-of-text where the folder names one, else end-of-text.
      stop_ids: ids that end an answer.
      before, after: ids that the tokenizer's own template puts around every text.
      special: names such as `bos_token` and their text, for chat templates.
      chat_template: Jinja source; None: the project's own.
      special_ids: texts that stand for ids although the vocabulary would spell them out, as chat templates write them.
    """

    vocabulary: Tokenizer
    prefix_id: int
    stop_ids: frozenset[int]
    before: tuple[int, ...] = ()
    after: tuple[int, ...] = ()
    special: Mapping[str, str] = field(default_factory=dict)
    chat_template: str | None = None
    special_ids: Mapping[str, int] = field(default_factory=dict)

    @property
    def end_of_text_id(self) -> int:
        """The vocabulary's."""
        return self.vocabulary.end_of_text_id

    def encode_batch(self, texts: Sequence[str], *, special: bool = True) -> list[list[int]]:
        """Ids of each text; with `special`, `before` and `after` are added unless the text begins with `bos_token`."""
        encoded = encode_with_special(self.vocabulary, texts, self.special_ids)
        if not special or not (self.before or self.after):
            return encoded
        begin = self.special.get("bos_token")
        return [
            ids if begin and text.startswith(begin) else [*self.before, *ids, *self.after]
            for text, ids in zip(texts, encoded, strict=True)
        ]

    def encode(self, text: str, *, special: bool = True) -> list[int]:
        """Ids of one text."""
        return self.encode_batch([text], special=special)[0]

    def decode(self, ids: Sequence[int]) -> str:
        """Text of ids; end-of-text ids are left out."""
        return self.vocabulary.decode(ids)


def for_run(vocabulary: Tokenizer, chat: Mapping[str, Any] | None = None) -> ModelTokenizer:
    """The tokenizer of a model trained here: in training, only end-of-text tokens stood between documents.

    Args:
      chat: of a fine-tuned model, what it was tuned with: the `template` and the `special` texts it names.
    """
    end = vocabulary.end_of_text_id
    if not chat:
        return ModelTokenizer(vocabulary=vocabulary, prefix_id=end, stop_ids=frozenset([end]))
    template, special = chat["template"], chat["special"]
    known = vocabulary.special_ids
    begin = encode_with_special(vocabulary, [special["bos_token"]], known)[0] if special.get("bos_token") else []
    return ModelTokenizer(
        vocabulary=vocabulary,
        prefix_id=begin[0] if len(begin) == 1 and "bos_token" in template else end,  # what its texts began with
        stop_ids=frozenset([end, *turn_ends(vocabulary, template, special)]),
        special=special,
        chat_template=template,
        special_ids=known,
    )


def turn_ends(tokenizer: Tokenizer, template: str, special: Mapping[str, str]) -> list[int]:
    """The id with which a template ends an answer; empty where it writes no single token there."""
    word = "Answer"
    turns = [{"role": "user", "content": "Question"}, {"role": "assistant", "content": word}]
    answer, _ = answer_parts(turns, template=template, special=special)[-1]
    after = answer.rpartition(word)[2].strip()
    ids = encode_with_special(tokenizer, [after], tokenizer.special_ids)[0] if after else []
    return ids if len(ids) == 1 and len(after) > 1 else []  # a single character would be ordinary text


def for_folder(vocabulary: Tokenizer, folder: Path) -> ModelTokenizer:
    """The tokenizer of a Hugging Face folder, used as transformers 5 uses it: `tokenizer.json`'s own post-processor,
    special tokens from `tokenizer_config.json`, end-of-text ids of `config.json` beside the tokenizer's.

    Args:
      vocabulary: loaded from this folder.

    Raises:
      InputError: one of the files is damaged, or the chat template is not text.
    """
    special, begin = special_tokens(folder), None
    around: tuple[tuple[int, ...], tuple[int, ...]] = (), ()
    if isinstance(vocabulary, HuggingFaceTokenizer) and (folder / "tokenizer.json").exists():
        around = vocabulary.surrounding_ids()
        begin = vocabulary.token_id(special.get("bos_token", ""))
    elif isinstance(vocabulary, SentencePieceTokenizer):
        special = {**vocabulary.special, **special}
        begin = vocabulary.token_id(special["bos_token"]) if "bos_token" in special else None
    ends = {vocabulary.end_of_text_id}
    for name in ("config.json", "generation_config.json"):
        if (folder / name).exists():
            eos = read_json(folder / name).get("eos_token_id")
            ends |= set(eos if isinstance(eos, list) else [] if eos is None else [eos])
    return ModelTokenizer(
        vocabulary=vocabulary,
        prefix_id=vocabulary.end_of_text_id if begin is None else begin,
        stop_ids=frozenset(ends),
        before=around[0],
        after=around[1],
        special=special,
        chat_template=folder_template(folder),
    )
