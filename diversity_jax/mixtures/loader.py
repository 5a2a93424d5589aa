"""Batches of a mixture by memory map: row n of step s is a pure function of the mixture, on any host, without state."""

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

import numpy as np

from diversity_jax.core.errors import InputError
from diversity_jax.mixtures.schedule import Schedule
from diversity_jax.prepare.manifest import Manifest
from diversity_jax.prepare.rows import RowReader, Rows


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
    """

    def __init__(
        self,
        manifests: Sequence[Manifest],
        shares: Sequence[float | Fraction],
        *,
        batch_size: int,
        split: str = "train",
    ):
        lengths = {manifest.sequence_length for manifest in manifests}
        if len(lengths) != 1:
            raise InputError(
                f"components were prepared with different sequence lengths {sorted(lengths)}; prepare them with one"
            )
        if len({manifest.vocabulary.hash for manifest in manifests}) != 1:
            named = ", ".join(f"{manifest.name} {manifest.vocabulary.hash[:8]}" for manifest in manifests)
            raise InputError(f"components were prepared with different tokenizers ({named}); prepare them with one")
        self.schedule, self.batch_size = Schedule(shares), batch_size
        self.sequence_length = lengths.pop()
        pairs = list(zip(manifests, self.schedule.shares, strict=True))
        self._has_token_flags = any(manifest.chat for manifest, share in pairs if share)
        self._readers = [RowReader(manifest, split) if share else None for manifest, share in pairs]

    def batch(self, step: int, part: slice = slice(None)) -> Batch:
        """Batch of a step, or the part of it that `part` selects (this host's rows)."""
        return self.rows(np.arange(step * self.batch_size, (step + 1) * self.batch_size)[part])

    def rows(self, numbers: np.ndarray) -> Batch:
        """Mixture rows by number."""
        component, rank = self.schedule.component(numbers), self.schedule.rank(numbers)
        shape = (len(numbers), self.sequence_length + 1)
        tokens = np.empty(shape, np.int32)
        targets = np.ones(shape, bool) if self._has_token_flags else None
        starts = np.zeros(shape, bool) if self._has_token_flags else None
        for i, reader in enumerate(self._readers):
            own = component == i
            if reader is None or not own.any():
                continue
            rows = reader.read(rank[own])
            tokens[own] = rows.tokens
            if targets is not None and starts is not None and rows.targets is not None and rows.starts is not None:
                targets[own], starts[own] = rows.targets, rows.starts
        return Batch(tokens=tokens, component=component, targets=targets, starts=starts)

    def epochs(self, steps: int) -> list[float]:
        """How often each component's rows are seen in `steps` steps; 0 for one that is never read."""
        counts = self.schedule.counts(steps * self.batch_size)
        return [
            float(count / reader.rows) if reader else 0.0 for count, reader in zip(counts, self._readers, strict=True)
        ]
