"""The arrays of rows that a training step takes: tokens, what the loss counts, segments and positions."""

import numpy as np

from diversity_jax.mixtures.mixture import Batch
from diversity_jax.tokenizers.document_start import Boundaries


def segments(starts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Segment ids from 1 and positions from 0, both int32 [B, L + 1]; segments begin where `starts` is set."""
    column = np.arange(starts.shape[1], dtype=np.int32)
    first = np.maximum.accumulate(np.where(starts, column, 0), axis=1)
    return starts.cumsum(axis=1, dtype=np.int32), (column - first).astype(np.int32)


def as_arrays(batch: Batch, boundaries: Boundaries) -> dict[str, np.ndarray]:
    """The arrays of a batch that a step takes.

    Args:
      boundaries: of documents in rows of text. Packed examples are always apart, and bring their own targets.
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
