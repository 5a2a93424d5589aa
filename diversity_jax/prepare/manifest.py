"""The manifest of a prepared component: its shards of rows, and the text, tokenizer and settings they were made of."""

from collections.abc import Mapping, Sequence
import dataclasses
from dataclasses import dataclass, field
import functools
import os
from pathlib import Path
from typing import Any, Self

import numpy as np

from diversity_jax.core.buckets import remote_tree
from diversity_jax.core.errors import InputError
from diversity_jax.core.files import (
    content_hash,
    exists,
    file_bytes,
    is_remote,
    join_path,
    path_inside,
    read_json,
    write_json,
)
from diversity_jax.core.formats import counted
from diversity_jax.core.json_fields import from_json, read_fields
from diversity_jax.tokenizers.tokenizer import Tokenizer, load_tokenizer

FORMAT_VERSION = 2
FETCHED = "fetched.json"
"""File that `mixtures.fetch` writes beside a manifest: where it was fetched from, and which shards were not fetched."""
SPLITS = ("train", "validation")
LINKED_DTYPES = {"uint16": ("uint16",), "uint32": ("uint32", "int32")}
"""Types that a linked file's numbers may have, by the type of the rows."""
LEFT_OUT = ("exact_duplicates", "near_duplicates", "contaminated")
"""Reasons for which documents are left out, as `statistics` counts them."""


@dataclass(frozen=True, kw_only=True)
class Shard:
    """One file of rows, named relative to the manifest's folder; a file with `.crc32` added has a checksum a row."""

    file: str
    rows: int
    sha256: str


@dataclass(frozen=True, kw_only=True)
class Split:
    """Rows for training, or rows held out.

    Attributes:
      documents: that were tokenised.
      tokens: in rows, with end-of-text and begin-of-text tokens; of conversations, without padding.
      text_bytes: UTF-8 bytes of the documents' text; of conversations, of their answers.
      dropped_tokens: the last tokens, fewer than one row; none of conversations.
      rows: number of rows; shards: where they are, in order.
    """

    documents: int
    tokens: int
    text_bytes: int
    dropped_tokens: int
    rows: int
    shards: tuple[Shard, ...]


@dataclass(frozen=True, kw_only=True)
class VocabularyInfo:
    """The tokenizer's identity: `kind`, number of ids, end-of-text id, hash, and its files relative to the manifest."""

    kind: str
    size: int
    end_of_text_id: int
    hash: str
    files: tuple[str, ...]

    def paths(self, folder: str | os.PathLike) -> list[Path | str]:
        """Paths or URLs of the files.

        Args:
          folder: the manifest's.

        Raises:
          InputError: one is outside the folder.
        """
        return [path_inside(folder, file, f"{folder}: vocabulary.files") for file in self.files]


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """A prepared component.

    Attributes:
      name, kind, sequence_length, seed, validation_share, piece_characters, shard_bytes: as in `config.Preparation`.
      dtype: `uint16` or `uint32`, little-endian.
      source: where the text came from; `source["fingerprint"]` identifies its content, `source["left_out"]` counts what
        a SeqIO task's examples hold besides their text, by kind.
      rejected: records that are no documents, by reason.
      hygiene: the filtering settings, hashes of benchmark files, and names of reports in the manifest's folder.
      statistics: of documents and tokens: `documents` of the corpus and `kept`, those left out by reason, their
        lengths, `documents_across_rows` (in more than one row), `truncated_documents` (that lost tokens to the last,
        unfilled row), `special_text_documents` (that contain a special token's text), if there are any.
      splits: `train` and, if documents are held out, `validation`.
      chat: how conversations were written, `template` and `special`; empty for text. Rows of conversations are packed
        as in `packing`, with the token flags of `rows`.
      special_text: as in `config.Preparation`; None: what rows were before that setting existed, see
        `special_text_read`.
      linked: if rows were not copied, the `file` that holds all of them, its `dtype`, `bytes` and `sha256`; shards then
        hold where each row begins in it, in tokens, int64.
      begin_of_text_id: the token written before every document; None: nothing, as for all conversations, which begin
        with what their template writes.
      encoders: which library encoded which chunks, see `chunks.encoder_runs`; not part of the content hash, since the
        ids are the same.
      folder: of the manifest, a path or URL; not part of the content hash.
    """

    name: str
    kind: str
    sequence_length: int
    dtype: str
    seed: int
    validation_share: float
    vocabulary: VocabularyInfo
    source: Mapping[str, Any]
    rejected: Mapping[str, int]
    splits: Mapping[str, Split]
    hygiene: Mapping[str, Any] = field(default_factory=dict)
    statistics: Mapping[str, Any] = field(default_factory=dict)
    piece_characters: int = 0
    shard_bytes: int = 0
    chat: Mapping[str, Any] = field(default_factory=dict)
    special_text: str | None = None
    begin_of_text_id: int | None = None
    encoders: Sequence[Mapping[str, Any]] = ()
    linked: Mapping[str, Any] = field(default_factory=dict)
    version: int = FORMAT_VERSION
    folder: Path | str = Path()

    @property
    def row_tokens(self) -> int:
        """Tokens in a row: `sequence_length + 1`."""
        return self.sequence_length + 1

    @property
    def row_bytes(self) -> int:
        """Bytes in a row."""
        return self.row_tokens * np.dtype(self.dtype).itemsize

    @property
    def special_text_read(self) -> str:
        """How special tokens' texts in documents were read: `plain`, `special` or `refuse`."""
        return self.special_text or special_text_before(self.vocabulary.kind, is_chat=bool(self.chat))

    @property
    def content_hash(self) -> str:
        """SHA-256 of the manifest, which includes the shards' checksums, without its folder and encoders."""
        return content_hash({name: value for name, value in self._as_json().items() if name != "encoders"})

    def _as_json(self) -> dict[str, Any]:
        value = dataclasses.asdict(self)
        del value["folder"]
        # So that manifests older than these fields have the same hash.
        for name in ("chat", "special_text", "begin_of_text_id", "encoders", "linked"):
            if not value[name] and value[name] != 0:
                del value[name]
        return value

    def save(self) -> Path | str:
        """Writes `manifest.json` into `folder`; called last: a folder with a manifest is complete."""
        path = join_path(self.folder, "manifest.json")
        write_json(path, self._as_json())
        return path

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Reads a manifest.

        Raises:
          InputError: no such file, a field is missing or unknown, or another format version.
        """
        value = read_json(path)
        if not isinstance(value, dict) or "version" not in value:
            raise InputError(f"{path}: is not a component manifest; prepare the component again")
        if value["version"] != FORMAT_VERSION:
            version = str(value["version"])[:40]
            raise InputError(f"{path}: format version {version} is not {FORMAT_VERSION}; prepare it again")
        folder = str(path).rpartition("/")[0] if is_remote(path) else Path(path).parent
        manifest = from_json(cls, value, str(path), folder=folder)
        if problem := manifest._problem():
            raise InputError(f"{path}: {problem}; prepare the component again")
        manifest.vocabulary.paths(folder)
        for split in manifest.splits.values():
            for shard in split.shards:
                path_inside(folder, shard.file, f"{path}: shard")
        return manifest

    def _problem(self) -> str | None:
        """What contradicts itself; None: nothing."""
        if self.sequence_length < 1 or self.dtype not in ("uint16", "uint32"):
            return f"rows of {self.sequence_length} tokens of {self.dtype[:40]} are not possible"
        for name, split in self.splits.items():
            counts = (split.documents, split.tokens, split.text_bytes, split.dropped_tokens, split.rows)
            if min(counts) < 0 or any(shard.rows < 0 for shard in split.shards):
                return f"split {name[:40]!r} has a count below 0"
            if sum(shard.rows for shard in split.shards) != split.rows:
                return f"the shards of split {name[:40]!r} do not have its {split.rows:,} rows"
        if self.linked:
            wanted = {"file": str, "dtype": str, "bytes": int, "sha256": str}
            kinds = {name: type(value) for name, value in self.linked.items()}
            if kinds != wanted or self.linked["dtype"] not in LINKED_DTYPES[self.dtype] or self.linked["bytes"] < 0:
                return f"the file that its rows are linked to is not described ({str(dict(self.linked))[:80]})"
        ids = self.vocabulary.size
        if not 0 <= self.vocabulary.end_of_text_id < ids:
            return f"its end-of-text id {self.vocabulary.end_of_text_id} is none of its {ids:,} ids"
        return None

    @functools.cached_property
    def left_out_shards(self) -> frozenset[str]:
        """Shards that `mixtures.fetch` did not fetch, since the steps it was called for need none of their rows."""
        path = None if is_remote(self.folder) else Path(self.folder, FETCHED)
        return frozenset(read_fields(path, left_out=list[str])["left_out"]) if path and path.exists() else frozenset()

    def check_sizes(self) -> None:
        """Compares the sizes of shard files with the manifest; reads no rows, and lists a bucket once.

        Raises:
          InputError: a shard is missing or has another size.
        """
        tree = remote_tree(str(self.folder)) if is_remote(self.folder) else None
        if self.linked:
            path, wanted = self.linked["file"], self.linked["bytes"]
            if tree is not None or not os.path.isfile(path) or os.path.getsize(path) != wanted:
                problem = f"was linked to {path} of {wanted:,} bytes, which is not there any more"
                raise InputError(f"{self.folder}: {problem}; put it back, or prepare component {self.name!r} again")
        for shard in [shard for split in self.splits.values() for shard in split.shards]:
            if shard.file in self.left_out_shards:
                continue
            path, expected = join_path(self.folder, shard.file), shard.rows * (8 if self.linked else self.row_bytes)
            if not exists(path) if tree is None else shard.file not in tree:
                raise InputError(f"{path}: the shard is missing; prepare the component {self.name!r} again")
            size = file_bytes(path) if tree is None else tree[shard.file].bytes
            if size != expected:
                held = f"holds {size:,} bytes, {expected:,} expected"
                raise InputError(f"{path}: {held}; the shard is damaged: prepare component {self.name!r} again")


def special_text_before(kind: str, *, is_chat: bool) -> str:
    """How special tokens' texts were read before `special_text` existed: as tokens in conversations and by Hugging
    Face's library, else as letters."""
    return "special" if kind == "huggingface" or is_chat else "plain"


def prepared_tokenizer(manifest: Manifest) -> Tokenizer:
    """The tokenizer that a component was prepared with, from the files in its folder.

    Raises:
      InputError: its files are missing, or are not those the component was prepared with.
    """
    info, files = manifest.vocabulary, [str(path) for path in manifest.vocabulary.paths(manifest.folder)]
    spec = os.path.dirname(files[0]) if len(files) > 1 else files[0] if files else info.kind
    tokenizer = load_tokenizer(spec, end_of_text=info.end_of_text_id)
    if tokenizer.hash != info.hash:
        raise InputError(f"{manifest.folder}: the tokenizer was changed after preparation; prepare the component again")
    return tokenizer


def describe(manifest: Manifest) -> str:
    """The statistics as a few lines of text.

    Raises:
      InputError: the manifest has none, or some that are no numbers.
    """
    try:
        return _described(manifest)
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(f"{manifest.folder}: the statistics are damaged ({error!r}); prepare it again") from None


def _described(manifest: Manifest) -> str:
    statistics, lengths = manifest.statistics, manifest.statistics["length_tokens"]
    counts = {reason.replace("_", " "): statistics[reason] for reason in LEFT_OUT}
    left_out = "".join(f", {count:,} {reason}" for reason, count in counts.items() if count)
    lines = [
        f"{manifest.name}: {statistics['kept']:,} of {counted(statistics['documents'], 'document')} kept{left_out}",
        f"  lengths in tokens: shortest {lengths['shortest']:,}, mean {lengths['mean']:,.1f}, longest "
        f"{lengths['longest']:,}; {counted(statistics['documents_across_rows'], 'document')} in more than one row, "
        f"{statistics['truncated_documents']:,} lost tokens",
    ]
    for name, split in manifest.splits.items():
        lines.append(
            f"  {name}: {counted(split.documents, 'document')}, {counted(split.tokens, 'token')} in "
            f"{counted(split.rows, 'row')} of {manifest.row_tokens:,}, {counted(len(split.shards), 'shard')}; "
            f"{counted(split.dropped_tokens, 'token')} dropped at the end"
        )
    if special := statistics.get("special_text_documents"):
        read = {"plain": "as letters", "special": "as that token"}[manifest.special_text_read]
        held = counted(special, "document holds", "documents hold")
        lines.append(f"  {held} the text of a special token, read {read} (special_text)")
    if manifest.rejected:
        reasons = [f"{count:,} {reason}" for reason, count in sorted(manifest.rejected.items())]
        lines.append("  rejected records: " + ", ".join(reasons))
    if unread := manifest.source.get("left_out"):
        lines.append("  left out of the source: " + ", ".join(f"{count:,} {kind}" for kind, count in unread.items()))
    return "\n".join(lines)
