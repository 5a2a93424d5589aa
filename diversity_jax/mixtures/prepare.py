"""From documents to rows of tokens on disk: tokenise, join with end-of-text, cut, permute, write, once.

Memory: one batch of documents, one block of rows, and eight bytes a row for the permutation. Disk: twice the tokens
while it runs, since rows are permuted from a spool file that is removed at the end.
"""

from collections.abc import Callable, Iterable, Iterator
import contextlib
import dataclasses
from dataclasses import dataclass
import errno
import hashlib
import os
from pathlib import Path
import shutil
import tempfile
from typing import Any
import zlib

import numpy as np

from diversity_jax.corpus import Corpus, Document
from diversity_jax.errors import InputError
from diversity_jax.mixtures.manifest import Manifest, Split, VocabularyInfo
from diversity_jax.mixtures.rows import write_shard
from diversity_jax.mixtures.vocabulary import Tokenizer

_BATCH_DOCUMENTS = 1024
_BATCH_CHARACTERS = 1 << 21
_SHARD_BYTES = 1 << 30

Progress = Callable[[int, int], None]
"""Called with (documents, tokens) so far."""


@dataclass(frozen=True, kw_only=True)
class Preparation:
    """What is asked of a preparation besides text and tokenizer.

    Attributes:
      name: the component's name; kind: `real` or `synthetic`.
      sequence_length: tokens a row predicts; a row holds one more.
      seed: of the row permutation and of the choice of held-out documents.
      validation_share: share of documents held out, in [0, 1), chosen by a hash of their text: copies stay together.
    """

    name: str
    kind: str
    sequence_length: int
    seed: int = 0
    validation_share: float = 0.0

    def __post_init__(self):
        if self.sequence_length < 1:
            raise InputError(f"sequence_length {self.sequence_length}: give at least 1 token")
        if not 0 <= self.validation_share < 1:
            raise InputError(f"validation_share {self.validation_share}: give a share of at least 0 and below 1")


def prepare(
    corpus: Corpus, tokenizer: Tokenizer, folder: str | Path, settings: Preparation, *, progress: Progress | None = None
) -> Manifest:
    """Prepares a component in `folder`, or returns what stands there if it was prepared from the same things.

    Documents are tokenised and joined with an end-of-text token after each, cut into rows of `sequence_length + 1`
    tokens, and the rows are permuted with the seed. The last tokens, fewer than a row, are dropped and counted.

    Args:
      corpus: documents, with a fingerprint; what it rejected while reading goes into the manifest.
      folder: where `manifest.json`, the shards and the tokenizer's files go.

    Raises:
      InputError: too few tokens for one row, a full disk, or `folder` holds a component prepared otherwise.
    """
    folder = Path(folder)
    fingerprint = corpus.fingerprint()
    if (folder / "manifest.json").exists():
        return _standing(folder, settings, tokenizer, fingerprint)
    dtype = np.dtype("<u2" if tokenizer.size <= 1 << 16 else "<u4")
    folder.mkdir(parents=True, exist_ok=True)
    with _full_disk_as_input_error(folder), tempfile.TemporaryDirectory(dir=folder, prefix=".spool-") as spool:
        spools = _tokenise(corpus, tokenizer, Path(spool), dtype, settings, progress)
        if spools["train"].tokens <= settings.sequence_length:
            raise InputError(
                f"component {settings.name!r}: {spools['train'].tokens:,} tokens of training text do not fill one row of "
                f"{settings.sequence_length + 1:,}; give it more text or a smaller sequence_length"
            )
        splits = {split: _write_rows(folder, split, found, dtype, settings) for split, found in spools.items()}
        manifest = Manifest(
            **dataclasses.asdict(settings),
            dtype=f"uint{8 * dtype.itemsize}",
            vocabulary=_keep_tokenizer(tokenizer, folder),
            source={"corpus": corpus.name, "fingerprint": fingerprint},
            rejected=dict(getattr(corpus, "rejected", {})),
            splits={split: found for split, found in splits.items() if found.rows},
            folder=folder,
        )
        manifest.save()
    return manifest


def _standing(folder: Path, settings: Preparation, tokenizer: Tokenizer, fingerprint: str) -> Manifest:
    """The component that stands in `folder`, if it is the one asked for."""
    manifest = Manifest.load(folder / "manifest.json")
    asked = {**dataclasses.asdict(settings), "tokenizer": tokenizer.hash, "source": fingerprint}
    found = {**dataclasses.asdict(manifest), "tokenizer": manifest.vocabulary.hash, "source": manifest.source["fingerprint"]}
    for key, wanted in asked.items():
        if found[key] != wanted:
            raise InputError(
                f"{folder}: was prepared with another {key} ({_short(found[key])}, now {_short(wanted)}); "
                "prepare into another folder, or delete this one"
            )
    manifest.check_sizes()
    return manifest


def _short(value: Any) -> str:
    return value[:12] if isinstance(value, str) else str(value)


class _Spool:
    """Token ids of one split, end to end in a file, with totals."""

    def __init__(self, path: Path):
        self.path, self.file = path, open(path, "wb")  # noqa: SIM115, closed when tokenising ends
        self.documents = self.tokens = self.text_bytes = 0

    def add(self, ids: np.ndarray, documents: int, text_bytes: int) -> None:
        self.file.write(ids.data)
        self.documents += documents
        self.tokens += len(ids)
        self.text_bytes += text_bytes


def _tokenise(
    corpus: Corpus, tokenizer: Tokenizer, folder: Path, dtype: np.dtype, settings: Preparation, progress: Progress | None
) -> dict[str, _Spool]:
    spools = {"train": _Spool(folder / "train"), "validation": _Spool(folder / "validation")}
    try:
        for documents in _batches(corpus):
            held_out = [_is_held_out(document.text, settings) for document in documents]
            for split, wanted in (("train", False), ("validation", True)):
                texts = [document.text for document, held in zip(documents, held_out, strict=True) if held is wanted]
                if texts:
                    ids = _join(*tokenizer.encode_batch(texts), tokenizer.end_of_text_id, dtype)
                    spools[split].add(ids, len(texts), sum(map(_utf8_bytes, texts)))
            if progress:
                progress(sum(spool.documents for spool in spools.values()), sum(spool.tokens for spool in spools.values()))
    finally:
        for spool in spools.values():
            spool.file.close()
    return spools


def _batches(documents: Iterable[Document]) -> Iterator[list[Document]]:
    """Documents in batches large enough to tokenise well and small enough to hold."""
    batch, characters = [], 0
    for document in documents:
        batch.append(document)
        characters += len(document.text)
        if len(batch) == _BATCH_DOCUMENTS or characters >= _BATCH_CHARACTERS:
            yield batch
            batch, characters = [], 0
    if batch:
        yield batch


def _is_held_out(text: str, settings: Preparation) -> bool:
    if not settings.validation_share:
        return False
    digest = hashlib.blake2b(text.encode(), digest_size=8, key=settings.seed.to_bytes(8, "little", signed=True)).digest()
    return int.from_bytes(digest, "little") < settings.validation_share * 2**64


def _utf8_bytes(text: str) -> int:
    return len(text) if text.isascii() else len(text.encode())


def _join(ids: np.ndarray, lengths: np.ndarray, end_of_text_id: int, dtype: np.dtype) -> np.ndarray:
    """Ids of all documents with an end-of-text id after each."""
    joined = np.full(len(ids) + len(lengths), end_of_text_id, dtype)
    inside = np.ones(len(joined), bool)
    inside[np.cumsum(lengths + 1) - 1] = False
    joined[inside] = ids
    return joined


def _write_rows(folder: Path, split: str, spool: _Spool, dtype: np.dtype, settings: Preparation) -> Split:
    """Permutes the spooled rows into shards; rows are read at random, shards are written in order."""
    row_tokens = settings.sequence_length + 1
    rows = spool.tokens // row_tokens
    shards = []
    if rows:
        spooled = np.memmap(spool.path, dtype, "r", shape=(rows, row_tokens))
        order = np.random.default_rng([settings.seed & 0xFFFFFFFF, zlib.crc32(f"{settings.name}/{split}".encode())]).permutation(rows)
        shard_rows = max(1, _SHARD_BYTES // (row_tokens * dtype.itemsize))
        pieces = range(0, rows, shard_rows)
        for number, start in enumerate(pieces):
            file = f"{split}-{number:05d}-of-{len(pieces):05d}.bin"
            shards.append(write_shard(folder, file, spooled, order[start : start + shard_rows]))
    return Split(
        documents=spool.documents,
        tokens=rows * row_tokens,
        text_bytes=spool.text_bytes,
        dropped_tokens=spool.tokens - rows * row_tokens,
        rows=rows,
        shards=tuple(shards),
    )


def _keep_tokenizer(tokenizer: Tokenizer, folder: Path) -> VocabularyInfo:
    """Copies the tokenizer's files beside the rows, so that the folder is all another machine needs."""
    kept = []
    for path in tokenizer.files:
        (folder / "tokenizer").mkdir(exist_ok=True)
        kept.append(f"tokenizer/{os.path.basename(path)}")
        shutil.copyfile(path, folder / kept[-1])
    return VocabularyInfo(
        kind=tokenizer.kind,
        size=tokenizer.size,
        end_of_text_id=tokenizer.end_of_text_id,
        hash=tokenizer.hash,
        files=tuple(kept),
    )


@contextlib.contextmanager
def _full_disk_as_input_error(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise InputError(f"{folder}: the disk is full; preparation needs twice the tokens' size: free space, then run again") from error
