"""Places batches of a mixture's rows on the mesh, prefetched by a thread so that steps do not wait for the disk."""

from collections.abc import Callable, Iterator, Mapping
import queue
import threading
import time

import jax
from jax import Array
from jax.sharding import NamedSharding
import numpy as np

from diversity_jax.mixtures.loader import Loader, as_arrays
from diversity_jax.tokenizers.document_start import Boundaries

Arrays = Mapping[str, np.ndarray]


def put(batch_size: int, sharding: NamedSharding, read: Callable[[slice], Arrays]) -> dict[str, Array]:
    """A global batch on the mesh; each process reads only the rows that its devices hold, each once.

    Args:
      batch_size: rows of the global batch.
      sharding: over the first axis.
      read: returns the arrays of a slice of rows.
    """
    indices = sharding.addressable_devices_indices_map((batch_size,)).values()
    slices = {(index[0].start, index[0].stop): index[0] for index in indices if index}
    parts = {key: read(rows) for key, rows in slices.items()}

    def put_array(name, sample):
        def own_rows(index):
            return parts[index[0].start, index[0].stop][name]

        return jax.make_array_from_callback((batch_size, *sample.shape[1:]), sharding, own_rows)

    return {name: put_array(name, sample) for name, sample in next(iter(parts.values())).items()}


def prepare(loader: Loader, sharding: NamedSharding, boundaries: Boundaries, step: int) -> dict[str, Array]:
    """The batch of a step on the mesh."""
    return put(loader.batch_size, sharding, lambda rows: as_arrays(loader.batch(step, rows), boundaries))


class ReadAhead:
    """Batches of the steps from `start` to `stop` - 1, prepared by a thread up to `depth` steps ahead.

    Iterating yields (step, batch, seconds waited), and raises exceptions of the thread.
    """

    def __init__(self, prepare: Callable[[int], dict[str, Array]], start: int, stop: int, *, depth: int = 2):
        self._prepare, self._start, self._stop = prepare, start, stop
        self._ready: queue.Queue = queue.Queue(maxsize=depth)
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._fill, name="read-ahead", daemon=True)
        self._thread.start()

    def _fill(self) -> None:
        for step in range(self._start, self._stop):
            item: dict[str, Array] | Exception
            try:
                item = self._prepare(step)
            except Exception as error:  # raised by the consumer
                item = error
            while not self._closed.is_set():
                try:
                    self._ready.put(item, timeout=0.1)
                    break
                except queue.Full:
                    continue
            if self._closed.is_set() or isinstance(item, Exception):
                return

    def __iter__(self) -> Iterator[tuple[int, dict[str, Array], float]]:
        for step in range(self._start, self._stop):
            began = time.perf_counter()
            item = self._ready.get()
            if isinstance(item, Exception):
                raise item
            yield step, item, time.perf_counter() - began

    def close(self) -> None:
        """Stops the thread."""
        self._closed.set()
        self._thread.join()
