"""Tokenizers: bytes, SentencePiece and Hugging Face, one interface, usable without TensorFlow and as
`seqio.Vocabulary`.
"""

from collections.abc import Mapping, Sequence
import itertools
import os
from pathlib import Path
import types
from typing import Any, Protocol

import numpy as np

from diversity_jax.core.errors import InputError
from diversity_jax.core.files import content_hash, file_hash, list_files, open_file
from diversity_jax.prepare.manifest import Manifest

_END_OF_TEXT_NAMES = ("<|endoftext|>", "<|end_of_text|>", "</s>", "<eos>", "<|eot|>", "[EOS]", "<|im_end|>", "[SEP]")


class Tokenizer(Protocol):
    """What preparation needs of a tokenizer.

    Attributes:
      kind: `bytes`, `sentencepiece` or `huggingface`.
      size: number of ids; a model's vocabulary must be at least as large.
      end_of_text_id: the id that is written after every document.
      hash: identifies the mapping from text to ids; prepared data of another hash is refused.
      files: the files that define it, to be kept beside prepared data; empty for bytes.
      special: names that chat templates use (`eos_token`, perhaps `bos_token`), and the texts that stand for them.
      marks: of these texts, those that `encode_batch` would spell out, and the ids that they stand for.
    """

    kind: str
    size: int
    end_of_text_id: int
    hash: str
    files: tuple[str, ...]
    special: Mapping[str, str]
    marks: Mapping[str, int]

    def encode_batch(self, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """Ids of all texts end to end, uint32 [total], and how many ids each text has, int64 [len(texts)]."""
        ...

    def decode(self, ids: Sequence[int]) -> str:
        """Text of ids; end-of-text ids are left out."""
        ...


def load_tokenizer(spec: str, *, end_of_text: str | int | None = None) -> Tokenizer:
    """Loads a tokenizer.

    Args:
      spec: `bytes`; a SentencePiece model (`.model`); a Hugging Face `tokenizer.json`; or a folder that holds one of
        `tokenizer.json`, `tokenizer.model`, or `vocab.json` with `merges.txt` (byte-level BPE).
      end_of_text: piece that ends a document, or its id, where the tokenizer has no usual one.

    Raises:
      InputError: unknown spec, unreadable file, or no end-of-text piece.
    """
    if spec == "bytes":
        return ByteTokenizer()
    files = _tokenizer_files(spec)
    if files[0].endswith(".model"):
        return SentencePieceTokenizer(files[0], end_of_text)
    return HuggingFaceTokenizer(files, end_of_text)


def prepared_tokenizer(manifest: Manifest) -> Tokenizer:
    """The tokenizer that a component was prepared with, from the files kept beside its rows.

    Raises:
      InputError: its files are missing, or are not those the component was prepared with.
    """
    info, files = manifest.vocabulary, [str(manifest.folder / file) for file in manifest.vocabulary.files]
    spec = os.path.dirname(files[0]) if len(files) > 1 else files[0] if files else info.kind
    tokenizer = load_tokenizer(spec, end_of_text=info.end_of_text_id)
    if tokenizer.hash != info.hash:
        raise InputError(
            f"{manifest.folder}: the tokenizer was changed after the component was prepared; prepare it again"
        )
    return tokenizer


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
        raise InputError(
            f"vocabulary {spec!r} is unknown; give 'bytes', a SentencePiece .model, a tokenizer.json, or a folder "
            "with one"
        )
    if not list_files(spec):
        raise InputError(f"vocabulary {spec}: no such file; check the path")
    return (spec,)


class ByteTokenizer:
    """UTF-8 bytes, with the ids of `seqio.ByteVocabulary`: 0 padding, 1 end of text, 2 unknown, byte b is b + 3."""

    kind, size, end_of_text_id, files = "bytes", 259, 1, ()
    hash = content_hash(["bytes", 259])
    special = types.MappingProxyType({"eos_token": "<|endoftext|>"})  # as the exported tokenizer.json calls it
    marks = types.MappingProxyType({"<|endoftext|>": 1})

    def encode_batch(self, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        encoded = [text.encode() for text in texts]
        lengths = np.array([len(data) for data in encoded], np.int64)
        return np.frombuffer(b"".join(encoded), np.uint8).astype(np.uint32) + 3, lengths

    def decode(self, ids: Sequence[int]) -> str:
        ids = np.asarray(ids)
        return (ids[ids >= 3] - 3).astype(np.uint8).tobytes().decode(errors="replace")


class SentencePieceTokenizer:
    """A SentencePiece model; documents end with its `</s>` unless another piece is named."""

    kind = "sentencepiece"

    def __init__(self, path: str, end_of_text: str | int | None = None):
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
        self.end_of_text_id = self._model.eos_id() if end_of_text is None else self._model.piece_to_id(end_of_text)
        if self.end_of_text_id < 0 or (end_of_text and self._model.id_to_piece(self.end_of_text_id) != end_of_text):
            raise InputError(
                f"vocabulary {path}: has no piece {end_of_text or '</s>'!r} to end a document with; name one as "
                "end_of_text"
            )
        ids = {"eos_token": self.end_of_text_id, "bos_token": self._model.bos_id()}
        self.special = {name: self._model.id_to_piece(one) for name, one in ids.items() if one >= 0}
        self.marks = {text: ids[name] for name, text in self.special.items()}
        self.files = (path,)
        self.hash = content_hash([self.kind, file_hash(path), self.end_of_text_id])

    def encode_batch(self, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        return _concatenate(self._model.encode(list(texts), num_threads=os.cpu_count()))

    def decode(self, ids: Sequence[int]) -> str:
        return self._model.decode([int(i) for i in ids if i != self.end_of_text_id])


class HuggingFaceTokenizer:
    """A tokenizer of the `tokenizers` library; nothing is added to a text but the end-of-text id."""

    kind = "huggingface"

    def __init__(self, files: tuple[str, ...], end_of_text: str | int | None = None):
        self._tokenizer = _read_tokenizer(files)
        self.size = max(self._tokenizer.get_vocab(with_added_tokens=True).values()) + 1
        if isinstance(end_of_text, int):
            end_of_text = self._tokenizer.id_to_token(end_of_text)
        names = (end_of_text,) if end_of_text else _END_OF_TEXT_NAMES
        ids = [i for i in map(self._tokenizer.token_to_id, names) if i is not None]
        if not ids:
            raise InputError(
                f"vocabulary {files[0]}: has none of {', '.join(names)} to end a document with; name a token as "
                "end_of_text"
            )
        self.end_of_text_id = ids[0]
        self.special, self.marks = {"eos_token": self._tokenizer.id_to_token(ids[0])}, {}
        self.files = files
        self.hash = content_hash([self.kind, *map(file_hash, files), self.end_of_text_id])

    def encode_batch(self, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        encodings = self._tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)
        return _concatenate([encoding.ids for encoding in encodings])

    def decode(self, ids: Sequence[int]) -> str:
        return self._tokenizer.decode([int(i) for i in ids if i != self.end_of_text_id], skip_special_tokens=False)


def _read_tokenizer(files: tuple[str, ...]) -> Any:
    import tokenizers

    try:
        if len(files) == 2:
            return _byte_level_bpe(*files)
        with open_file(files[0]) as file:
            tokenizer = tokenizers.Tokenizer.from_buffer(file.read())
    except InputError:
        raise
    except Exception as error:  # the library raises bare Exception for every fault of a file
        raise InputError(
            f"vocabulary {files[0]}: is not a Hugging Face tokenizer ({str(error).splitlines()[0]})"
        ) from None
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def _byte_level_bpe(vocabulary: str, merges: str) -> Any:
    """The tokenizer that GPT-2's pair of files means."""
    import tokenizers

    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE.from_file(vocabulary, merges))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    return tokenizer


def _concatenate(pieces: Sequence[Sequence[int]]) -> tuple[np.ndarray, np.ndarray]:
    lengths = np.fromiter(map(len, pieces), np.int64, len(pieces))
    return np.fromiter(itertools.chain.from_iterable(pieces), np.uint32, int(lengths.sum())), lengths


def seqio_vocabulary(tokenizer: Tokenizer) -> Any:
    """The same vocabulary as a `seqio.Vocabulary`; imports seqio and TensorFlow.

    Ids are the tokenizer's own: nothing is shifted or reserved, so that id 0 survives. SeqIO's converters weigh the
    loss by `targets > 0`; a codebase whose tokenizer uses id 0 for text has to weigh by position instead.
    """
    from diversity_jax.core.tensorflow import seqio

    if tokenizer.kind == "bytes":
        return seqio.ByteVocabulary()
    if tokenizer.kind == "sentencepiece" and tokenizer._model.eos_id() == tokenizer.end_of_text_id:
        return seqio.SentencePieceVocabulary(tokenizer.files[0])
    from diversity_jax.tokenizers.seqio import TokenizerVocabulary

    return TokenizerVocabulary(tokenizer)
