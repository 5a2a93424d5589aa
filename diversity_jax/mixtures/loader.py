"""Batches of a mixture, read by memory map, and the arrays of them that a training step takes.

Row n of step s is a pure function of the mixture: the same on any host, without saved state.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction

import numpy as np

from diversity_jax.core.errors import InputError
from diversity_jax.mixtures.schedule import EpochShuffle, Schedule
from diversity_jax.prepare.manifest import Manifest
from diversity_jax.prepare.rows import CACHE_GB, RowReader, Rows
from diversity_jax.tokenizers.document_start import Boundaries

_PREFETCH_BYTES, _PREFETCH_STEPS = 64 << 20, 256  # how far ahead rows in a bucket are fetched: the lesser of both


@dataclass(frozen=True, kw_only=True)
class Batch(Rows):
    """Rows for one step; the first L tokens of a row are inputs, the last L targets.

    Attributes:
      component: int32 [B], the index of the component each row belongs to.
    """

    component: np.ndarray


class Loader:
    """Batches of a mixture.

    Global batch s holds mixture rows s * batch_size to (s + 1) * batch_size - 1; a host reads its own part of it.
    Hence resuming at step s needs no state but s, and the data does not depend on the number of hosts. Needs NumPy
    alone: no TensorFlow on the training machine.

    Args:
      manifests: prepared components, in the order of `shares`.
      shares: token shares; a component of share zero is never read.
      batch_size: rows of the global batch.
      split: `train`, or `validation` for held-out rows.
      repeat_seed: of the order of rows in every epoch after the first; None: all epochs have that of the first.
      cache_gb: disk for rows that are in a bucket.
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
        self._prefetched_until: dict[tuple[int | None, int | None], int] = {}  # a step, by part of the batch
        self._orders = [epoch_shuffle(manifest, split, repeat_seed) if share else None for manifest, share in pairs]

    def batch(self, step: int, part: slice = slice(None)) -> Batch:
        """Batch of a step, or the part of it that `part` selects (this host's rows).

        Where rows are in a bucket, this begins to fetch those of the same part of later steps.
        """
        if any(reader and reader.is_remote for reader in self._readers):
            self._prefetch(step, part)
        return self.rows(np.arange(step * self.batch_size, (step + 1) * self.batch_size)[part])

    def _prefetch(self, step: int, part: slice) -> None:
        """Requests rows of later steps, many at once: when half of those requested before are used."""
        key = (part.start, part.stop)
        wanted = np.arange(self.batch_size)[part]
        row_bytes = max(reader.manifest.row_bytes for reader in self._readers if reader)
        steps = int(np.clip(_PREFETCH_BYTES // max(1, len(wanted) * row_bytes), 2, _PREFETCH_STEPS))
        until = self._prefetched_until.get(key, step)
        if not step <= until <= step + steps:  # another step than the next is read
            until = step
        if until - step > steps // 2:
            return
        self._prefetched_until[key] = step + steps
        numbers = (np.arange(until, step + steps)[:, None] * self.batch_size + wanted).reshape(-1)
        for reader, _, rows in self._by_component(numbers):
            reader.prefetch(rows)

    def _by_component(self, numbers: np.ndarray) -> Iterator[tuple[RowReader, np.ndarray, np.ndarray]]:
        """For each component among mixture rows: its reader, which of `numbers` are its (bool), and its row numbers."""
        component, rank = self.schedule.component(numbers), self.schedule.rank(numbers)
        for i, (reader, order) in enumerate(zip(self._readers, self._orders, strict=True)):
            own = component == i
            if reader is not None and own.any():
                yield reader, own, order.rows_at(rank[own]) if order else rank[own]

    def shards_of(self, steps: int, part: slice = slice(None)) -> dict[str, set[str]]:
        """Files that hold the rows of a part of the first `steps` batches, by name of the component."""
        wanted, files = np.arange(self.batch_size)[part], dict[str, set[str]]()
        for first in range(0, steps, _PREFETCH_STEPS):
            batches = np.arange(first, min(steps, first + _PREFETCH_STEPS))
            for reader, _, rows in self._by_component((batches[:, None] * self.batch_size + wanted).reshape(-1)):
                files.setdefault(reader.manifest.name, set()).update(reader.shards_of(rows))
        return files

    def rows(self, numbers: np.ndarray) -> Batch:
        """Mixture rows by number."""
        component, shape = self.schedule.component(numbers), (len(numbers), self.sequence_length + 1)
        tokens = np.empty(shape, np.int32)
        targets = np.ones(shape, bool) if self._has_token_flags else None
        starts = np.zeros(shape, bool) if self._has_token_flags else None
        for reader, own, row_numbers in self._by_component(numbers):
            rows = reader.read(row_numbers)
            tokens[own] = rows.tokens
            if targets is not None and starts is not None and rows.targets is not None and rows.starts is not None:
                targets[own], starts[own] = rows.targets, rows.starts
        return Batch(tokens=tokens, component=component, targets=targets, starts=starts)

    def release(self) -> None:
        """Gives back the memory of rows that were read; they can be read again."""
        for reader in filter(None, self._readers):
            reader.release()

    def epochs(self, steps: int) -> list[float]:
        """How often each component's rows are read in `steps` steps; 0 for one that is never read."""
        counts = self.schedule.counts(steps * self.batch_size)
        return [
            float(count / reader.rows) if reader else 0.0 for count, reader in zip(counts, self._readers, strict=True)
        ]


def epoch_shuffle(manifest: Manifest, split: str, seed: int | None) -> EpochShuffle | None:
    """The order of a component's rows in each epoch; None where every epoch has the order on disk."""
    if seed is None:
        return None
    return EpochShuffle(f"{seed}/{manifest.name}/{split}/repeat", manifest.splits[split].rows)


def segments(starts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Segment ids from 1 and positions from 0, both int32 [B, L + 1]; segments begin where `starts` is True."""
    column = np.arange(starts.shape[1], dtype=np.int32)
    first = np.maximum.accumulate(np.where(starts, column, 0), axis=1)
    return starts.cumsum(axis=1, dtype=np.int32), (column - first).astype(np.int32)


def as_arrays(batch: Batch, boundaries: Boundaries) -> dict[str, np.ndarray]:
    """The arrays of a batch that a step takes.

    Args:
      boundaries: of documents in rows of text; packed examples have their own segments and targets.
    """
    arrays, tokens = {"tokens": batch.tokens, "component": batch.component}, batch.tokens
    starts = boundaries.starts(tokens) if boundaries.separate else None
    targets = boundaries.targets(tokens) if boundaries.masks_targets else batch.targets
    if batch.starts is not None and batch.targets is not None:
        is_packed = batch.starts[:, :1]
        is_first_column = np.arange(tokens.shape[1])[None] == 0
        starts = np.where(is_packed, batch.starts, is_first_column if starts is None else starts)
        targets = np.where(is_packed, batch.targets, batch.targets if targets is None else targets)
    if targets is not None:
        arrays["loss_mask"] = targets.astype(np.int32)
    if starts is not None:
        arrays["segment_ids"], arrays["positions"] = segments(starts)
    return arrays
