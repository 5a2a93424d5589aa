"""Loss on held-out rows, component by component."""

from collections.abc import Callable

import jax
from jax.sharding import Mesh
import numpy as np

from diversity_jax.mixtures.loader import Batch
from diversity_jax.mixtures.mixture import Mixture
from diversity_jax.model import LlamaConfig, batch_sharding
from diversity_jax.prepare.rows import RowReader
from diversity_jax.training.data import as_arrays, put
from diversity_jax.training.step import make_eval_step


class HeldOut:
    """The first held-out rows of every component that has any; the same rows at every evaluation.

    Args:
      batches: of each component, at most.
    """

    def __init__(
        self, mixture: Mixture, model: LlamaConfig, mesh: Mesh, batch_size: int, batches: int, separate_at: int | None
    ):
        self._step = make_eval_step(model, mesh, num_components=1)
        self._sharding, self._batch_size, self._separate_at = batch_sharding(mesh), batch_size, separate_at
        self._readers = {
            part.name: RowReader(part.manifest, "validation")
            for part in mixture.taken
            if "validation" in part.manifest.splits
        }
        self._rows = {name: min(reader.rows, batches * batch_size) for name, reader in self._readers.items()}

    def losses(self, params, *, stop: Callable[[], bool] = lambda: False) -> dict[str, float]:
        """Nats per token by component, and `all`: their mean weighted by held-out tokens; empty where nothing is held
        out.

        Args:
          params: the model's.
          stop: asked before every batch; once it is true, what was found so far is dropped and nothing is returned.
        """
        sums = {name: self._sum(params, name, stop) for name, rows in self._rows.items() if rows}
        if stop():
            return {}
        losses = {name: loss / tokens for name, (loss, tokens) in sums.items()}
        if sums:
            losses["all"] = sum(loss for loss, _ in sums.values()) / sum(tokens for _, tokens in sums.values())
        return losses

    def _sum(self, params, name: str, stop: Callable[[], bool]) -> tuple[float, float]:
        totals = []
        for start in range(0, self._rows[name], self._batch_size):
            if stop():
                break
            batch = put(self._batch_size, self._sharding, lambda rows, start=start: self._read(name, start, rows))
            totals.append(self._step(params, batch))
        totals = jax.device_get(totals)
        return float(sum(t["component_loss_sum"][0] for t in totals)), float(
            sum(t["component_tokens"][0] for t in totals)
        )

    def _read(self, name: str, start: int, rows: slice) -> dict[str, np.ndarray]:
        """Rows of a batch; those past the last held-out row are read again but masked out of the loss."""
        numbers = np.arange(start, start + self._batch_size)[rows]
        found = self._readers[name].read_with_flags(numbers)
        batch = Batch(
            tokens=found.tokens, component=np.zeros(len(numbers), np.int32), targets=found.targets, starts=found.starts
        )
        arrays = as_arrays(batch, separate_at=self._separate_at)
        is_mine = np.broadcast_to(numbers[:, None] < self._rows[name], found.tokens.shape)
        arrays["loss_mask"] = (arrays.get("loss_mask", 1) * is_mine).astype(np.int32)
        return arrays
