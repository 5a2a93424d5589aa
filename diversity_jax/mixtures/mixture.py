"""A built mixture: `mixture.json`, with its prepared components, the shares granted and the decisions behind them; and
its batches by memory map: row n of step s is a pure function of the mixture, on any host, without state.
"""

from collections.abc import Iterator, Mapping, Sequence
import dataclasses
from dataclasses import dataclass, field
from fractions import Fraction
import os
from pathlib import Path
import re
from typing import Any, Self

import numpy as np

from diversity_jax.core.config import from_json
from diversity_jax.core.errors import InputError
from diversity_jax.core.files import (
    content_hash,
    join_path,
    parent_folder,
    read_json,
    relative_path,
    resolve_path,
    write_json,
)
from diversity_jax.core.stores import is_remote
from diversity_jax.mixtures.schedule import EpochShuffle, Schedule, read_share
from diversity_jax.prepare.manifest import Manifest, VocabularyInfo
from diversity_jax.prepare.rows import CACHE_GB, RowReader, Rows
from diversity_jax.tokenizers.document_start import DOCUMENT_STARTS, Boundaries

FORMAT_VERSION = 1
_AHEAD_BYTES, _AHEAD_STEPS = 64 << 20, 256  # how far rows in a bucket are fetched ahead, the lesser of both


@dataclass(frozen=True, kw_only=True)
class Batch(Rows):
    """Rows for one step; the first L tokens of a row are inputs, the last L targets.

    Attributes:
      component: int32 [B], the index of the component each row belongs to.
    """

    component: np.ndarray


class Loader:
    """Batches of a mixture.

    Global batch s holds mixture rows s * batch_size to (s + 1) * batch_size - 1; a host reads the part that is its own.
    Hence resuming at step s needs no state but s, and the data does not depend on how many hosts read it. Needs NumPy
    alone: no TensorFlow on the training machine.

    Args:
      manifests: prepared components, in the order of `shares`.
      shares: token shares; a component of share zero is never read.
      batch_size: rows of the global batch.
      split: `train`, or `validation` to draw from held-out rows.
      repeat_seed: of the order of rows in every pass after the first; None: all passes have the first one's.
    """

    def __init__(
        self,
        manifests: Sequence[Manifest],
        shares: Sequence[float | Fraction],
        *,
        batch_size: int,
        split: str = "train",
        repeat_seed: int | None = None,
        cache_gb: float = CACHE_GB,
    ):
        lengths = {manifest.sequence_length for manifest in manifests}
        hashes = {manifest.vocabulary.hash for manifest in manifests}
        for what, values in (("sequence lengths", lengths), ("tokenizers", hashes)):
            if len(values) > 1:
                raise InputError(f"components were prepared with different {what} {values}; prepare them with one")
        self.schedule, self.batch_size = Schedule(shares), batch_size
        self.sequence_length = manifests[0].sequence_length
        pairs = list(zip(manifests, self.schedule.shares, strict=True))
        self._has_token_flags = any(manifest.chat for manifest, share in pairs if share)
        self._readers = [RowReader(manifest, split, cache_gb=cache_gb) if share else None for manifest, share in pairs]
        self._asked_until: dict[tuple[int | None, int | None], int] = {}  # by part of the batch: a step
        self._orders = [epoch_shuffle(manifest, split, repeat_seed) if share else None for manifest, share in pairs]

    def batch(self, step: int, part: slice = slice(None)) -> Batch:
        """Batch of a step, or the part of it that `part` selects (this host's rows).

        Where rows lie in a bucket, those of the same part of the steps to come are fetched meanwhile.
        """
        if any(reader and reader.is_remote for reader in self._readers):
            self._look_ahead(step, part)
        return self.rows(np.arange(step * self.batch_size, (step + 1) * self.batch_size)[part])

    def _look_ahead(self, step: int, part: slice) -> None:
        """Asks for rows of the steps to come in large pieces: as soon as half of those asked for are used."""
        key = (part.start, part.stop)
        wanted = np.arange(self.batch_size)[part]
        row_bytes = max(reader.manifest.row_bytes for reader in self._readers if reader)
        steps = int(np.clip(_AHEAD_BYTES // max(1, len(wanted) * row_bytes), 2, _AHEAD_STEPS))
        asked = self._asked_until.get(key, step)
        if not step <= asked <= step + steps:  # another step than the next is read
            asked = step
        if asked - step > steps // 2:
            return
        self._asked_until[key] = step + steps
        numbers = (np.arange(asked, step + steps)[:, None] * self.batch_size + wanted).reshape(-1)
        for reader, rows in self._rows_of(numbers):
            reader.prefetch(rows)

    def _rows_of(self, numbers: np.ndarray) -> Iterator[tuple[RowReader, np.ndarray]]:
        """Each component's reader with the rows of its own that mixture rows are."""
        component, rank = self.schedule.component(numbers), self.schedule.rank(numbers)
        for i, (reader, order) in enumerate(zip(self._readers, self._orders, strict=True)):
            own = rank[component == i]
            if reader is not None and len(own):
                yield reader, order.rows_at(own) if order else own

    def shards_of(self, steps: int, part: slice = slice(None)) -> dict[str, set[str]]:
        """Files that hold the rows of a part of the first `steps` batches, by name of the component."""
        wanted, files = np.arange(self.batch_size)[part], dict[str, set[str]]()
        for first in range(0, steps, _AHEAD_STEPS):
            batches = np.arange(first, min(steps, first + _AHEAD_STEPS))
            for reader, rows in self._rows_of((batches[:, None] * self.batch_size + wanted).reshape(-1)):
                files.setdefault(reader.manifest.name, set()).update(reader.shards_of(rows))
        return files

    def rows(self, numbers: np.ndarray) -> Batch:
        """Mixture rows by number."""
        component, rank = self.schedule.component(numbers), self.schedule.rank(numbers)
        shape = (len(numbers), self.sequence_length + 1)
        tokens = np.empty(shape, np.int32)
        targets = np.ones(shape, bool) if self._has_token_flags else None
        starts = np.zeros(shape, bool) if self._has_token_flags else None
        for i, (reader, order) in enumerate(zip(self._readers, self._orders, strict=True)):
            own = component == i
            if reader is None or not own.any():
                continue
            rows = reader.read(order.rows_at(rank[own]) if order else rank[own])
            tokens[own] = rows.tokens
            if targets is not None and starts is not None and rows.targets is not None and rows.starts is not None:
                targets[own], starts[own] = rows.targets, rows.starts
        return Batch(tokens=tokens, component=component, targets=targets, starts=starts)

    def release(self) -> None:
        """Gives back the memory of rows that were read; they can be read again."""
        for reader in filter(None, self._readers):
            reader.release()

    def epochs(self, steps: int) -> list[float]:
        """How often each component's rows are seen in `steps` steps; 0 for one that is never read."""
        counts = self.schedule.counts(steps * self.batch_size)
        return [
            float(count / reader.rows) if reader else 0.0 for count, reader in zip(counts, self._readers, strict=True)
        ]


def epoch_shuffle(manifest: Manifest, split: str, seed: int | None) -> EpochShuffle | None:
    """The order of a component's rows in each pass; None where every pass has that on disk."""
    if seed is None:
        return None
    return EpochShuffle(f"{seed}/{manifest.name}/{split}/repeat", manifest.splits[split].rows)


def mixture_file(path: str | os.PathLike) -> Path | str:
    """The `mixture.json` at a path or URL that names it, or the folder that holds it."""
    is_file = os.fspath(path).endswith(".json") if is_remote(path) else not os.path.isdir(path)
    return (os.fspath(path) if is_remote(path) else Path(path)) if is_file else join_path(path, "mixture.json")


@dataclass(frozen=True, kw_only=True)
class MixtureComponent:
    """One component of a built mixture.

    Attributes:
      share_asked, share_granted: exact token shares before and after the gate.
      decision: the gate's decision as JSON: action, reason, policy, figures, scorecard and its hash.
      manifest: the prepared rows; None for a component that was rejected.
      part_of: the requested component that this is a part of, where that is a mixture itself.
    """

    name: str
    kind: str
    share_asked: Fraction
    share_granted: Fraction
    decision: Mapping[str, Any]
    manifest: Manifest | None
    part_of: str | None = None

    @property
    def prepared(self) -> Manifest:
        """The manifest of a component that was taken."""
        if self.manifest is None:
            raise ValueError(f"component {self.name!r} was rejected, so none of its rows were prepared")
        return self.manifest


@dataclass(frozen=True, kw_only=True)
class Mixture:
    """What training and SeqIO codebases read.

    Attributes:
      name: of the SeqIO mixture.
      components: all that were asked for, rejected ones too.
      folder: where `mixture.json` lies.
      asked: the mixture's configuration as JSON; gate: what each requested component's share rests on, in order. From
        these two alone `replay` repeats every decision.
      nested: built mixtures that are components of this one: name, folder and content hash of each.
      code: version of this project and hash of its source.
      repeat_shuffle: every pass over a component's rows after the first has an order of its own.
      document_start: which token begins a document, one of `DOCUMENT_STARTS`, and document_start_id: its id; None: of
        before it was recorded (see `tokenizers.document_start`).
    """

    name: str
    components: tuple[MixtureComponent, ...]
    sequence_length: int
    seed: int
    vocabulary: VocabularyInfo
    folder: Path | str
    asked: Mapping[str, Any] = field(default_factory=dict)
    gate: Sequence[Mapping[str, Any]] = ()
    nested: Sequence[Mapping[str, str]] = ()
    code: Mapping[str, str] = field(default_factory=dict)
    repeat_shuffle: bool = False
    document_start: str | None = None
    document_start_id: int | None = None

    def boundaries(self, *, attend_across_documents: bool) -> Boundaries:
        """Where documents begin in rows of text, for attention, loss and evaluation."""
        start, end = (self.document_start, self.document_start_id), self.vocabulary.end_of_text_id
        return Boundaries.of(*start, end, attend_across_documents=attend_across_documents)

    @property
    def repeat_seed(self) -> int | None:
        """Seed of the orders of later passes; None where all passes have the first one's."""
        return self.seed if self.repeat_shuffle else None

    @property
    def taken(self) -> tuple[MixtureComponent, ...]:
        """Components with a share, in order: the ones a loader's `component` index counts."""
        return tuple(component for component in self.components if component.share_granted)

    @property
    def train_rows(self) -> int:
        """Rows of all components with a share, each once."""
        return sum(part.prepared.splits["train"].rows for part in self.taken)

    @property
    def content_hash(self) -> str:
        """SHA-256 of what training depends on: shares granted, every component's manifest, the order of passes, and
        which token begins a document.
        """
        parts = [[part.name, str(part.share_granted), part.prepared.content_hash] for part in self.taken]
        later: dict[str, Any] = {"repeat_seed": self.repeat_seed} if self.repeat_shuffle else {}
        if self.document_start is not None:
            later["document_start"] = [self.document_start, self.document_start_id]
        return content_hash([parts, later] if later else parts)

    def loader(self, *, batch_size: int, split: str = "train", cache_gb: float = CACHE_GB) -> Loader:
        """Batches of this mixture; `cache_gb` of disk may be used for rows that lie in a bucket."""
        shares = [component.share_granted for component in self.taken]
        manifests = [component.prepared for component in self.taken]
        return Loader(
            manifests, shares, batch_size=batch_size, split=split, repeat_seed=self.repeat_seed, cache_gb=cache_gb
        )

    def only(self, component: MixtureComponent) -> Self:
        """This mixture with the rows of one component alone."""
        return dataclasses.replace(self, components=(dataclasses.replace(component, share_granted=Fraction(1)),))

    def save(self) -> Path | str:
        """Writes `mixture.json` into `folder`."""
        path = join_path(self.folder, "mixture.json")
        write_json(
            path,
            {
                "version": FORMAT_VERSION,
                "name": self.name,
                "sequence_length": self.sequence_length,
                "seed": self.seed,
                "repeat_shuffle": self.repeat_shuffle,
                "document_start": self.document_start,
                "document_start_id": self.document_start_id,
                "vocabulary": {**vars(self.vocabulary), "files": list(self.vocabulary.files)},
                "content_hash": self.content_hash,
                "asked": dict(self.asked),
                "gate": list(self.gate),
                "ingredients": list(self.nested),
                "code": dict(self.code),
                "components": [self._component_json(component) for component in self.components],
            },
        )
        return path

    def _component_json(self, component: MixtureComponent) -> dict[str, Any]:
        manifest = component.manifest
        return {
            "name": component.name,
            "kind": component.kind,
            "share_asked": float(component.share_asked),
            "share_granted": float(component.share_granted),
            "share_asked_exact": str(component.share_asked),
            "share_granted_exact": str(component.share_granted),
            "decision": dict(component.decision),
            "part_of": component.part_of,
            "manifest": relative_path(join_path(manifest.folder, "manifest.json"), self.folder) if manifest else None,
            "manifest_hash": manifest.content_hash if manifest else None,
            "train_rows": manifest.splits["train"].rows if manifest else 0,
        }

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Reads `mixture.json` (or the folder that holds it) and the manifests it names.

        Raises:
          InputError: no such file, not a mixture, its shares or a manifest changed since it was built, or its
            components were prepared with different tokenizers or sequence lengths.
        """
        path = mixture_file(path)
        value = read_json(path)
        try:
            if value["version"] != FORMAT_VERSION:
                raise InputError(f"{path}: format {value['version']} is not {FORMAT_VERSION}; build the mixture again")
            if type(value["sequence_length"]) is not int or type(value["seed"]) is not int:
                raise ValueError("sequence_length or seed is no whole number")
            if value.get("document_start") not in (None, *DOCUMENT_STARTS):
                raise ValueError(f"document_start {value['document_start']!r}")
            mixture = cls(
                components=tuple(_component(parent_folder(path), part) for part in value["components"]),
                vocabulary=from_json(VocabularyInfo, value["vocabulary"], f"{path}: vocabulary"),
                folder=parent_folder(path),
                nested=value["ingredients"],
                # Of later versions than the first.
                repeat_shuffle=value.get("repeat_shuffle", False),
                document_start=value.get("document_start"),
                document_start_id=value.get("document_start_id"),
                **{name: value[name] for name in ("name", "sequence_length", "seed", "asked", "gate", "code")},
            )
            recorded = value["content_hash"]
        except InputError:
            raise
        except (KeyError, TypeError, ValueError, AttributeError, ZeroDivisionError) as error:
            raise InputError(f"{path}: is not a built mixture ({error!r}); build it again") from None
        for component in mixture.taken:
            about, manifest = f"mixture {mixture.name!r}: component {component.name!r}", component.prepared
            if manifest.vocabulary.hash != mixture.vocabulary.hash:
                infos = (manifest.vocabulary, mixture.vocabulary)
                theirs, ours = (f"({info.kind}, {info.size:,} ids, {info.hash[:8]})" for info in infos)
                raise InputError(f"{about} was prepared with another tokenizer {theirs} than the mixture's {ours}")
            if manifest.sequence_length != mixture.sequence_length:
                lengths = f"{manifest.sequence_length:,} tokens, the mixture's {mixture.sequence_length:,}"
                raise InputError(f"{about} has rows that predict {lengths}; prepare all with one sequence_length")
            check_document_start(about, manifest, mixture.document_start, mixture.document_start_id)
        if mixture.content_hash != recorded:
            raise InputError(f"{path}: its shares or manifests were changed after it was built; build it again")
        return mixture


def check_document_start(about: str, manifest: Manifest, document_start: str | None, start_id: int | None) -> None:
    """Refuses rows of text that were prepared with another begin-of-text token than a mixture has, or without it.

    Raises:
      InputError: `about` begins its message.
    """
    wanted, prepared_with = start_id if document_start == "bos" else None, manifest.begin_of_text_id
    if not manifest.chat and wanted != prepared_with:
        rows, setting = (
            ("without a begin-of-text token" if each is None else f"with begin-of-text id {each}")
            for each in (prepared_with, wanted)
        )
        raise InputError(
            f"{about} was prepared {rows}, the mixture's document_start={document_start!r} is {setting}; "
            "prepare all with one document_start"
        )


def _component(folder: Path | str, value: Mapping[str, Any]) -> MixtureComponent:
    if not re.fullmatch(r"\w[\w.]*", value["name"], re.ASCII):
        raise ValueError(f"component name {value['name']!r}")
    # It may lie outside the mixture's folder, where the component was prepared or is part of another mixture.
    path = resolve_path(folder, value["manifest"]) if value["manifest"] else None
    if path and os.path.basename(path) != "manifest.json":
        raise ValueError(f"manifest {value['manifest']!r}")
    share = read_share(value["share_granted_exact"])
    if not 0 <= share <= 1 or (share and path is None):
        raise ValueError(f"component {value['name']}: share {share} of {path}")
    manifest = Manifest.load(path) if path else None
    if manifest and manifest.content_hash != value["manifest_hash"]:
        raise InputError(f"{path}: was changed after the mixture was built; restore it, or build the mixture again")
    return MixtureComponent(
        share_asked=read_share(value["share_asked_exact"]),
        share_granted=share,
        manifest=manifest,
        **{name: value[name] for name in ("name", "kind", "decision", "part_of")},
    )
