#!/usr/bin/env python3
"""Token ratios that each loader realises for 4:1, where documents of one component are ten times as long.

    python scripts/benchmarks/peers_mixing.py ours                # in this repository's environment
    /PEERS/bin/python scripts/benchmarks/peers_mixing.py seqio    # each peer in an environment that has it

Prints a line of JSON for each way to configure it: 4:1 as a user writes it (`asked`), and, for loaders that draw
documents, weights divided by the mean length of a component's documents (`corrected`), which has to be known.
"""

import argparse
import asyncio
from collections.abc import Callable, Iterator
import importlib.metadata
import json
import os
from pathlib import Path
import sys
import tempfile

import numpy as np

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "scripts" / "benchmarks" / "peers")]
import mixing  # noqa: E402

_WAYS = {"asked": mixing.SHARES, "corrected": mixing.DOCUMENT_SHARES}


def ours() -> Iterator[tuple[str, np.ndarray, bool]]:
    """Our schedule over rows cut before."""
    from diversity_jax.mixtures.schedule import Schedule

    schedule, numbers = Schedule(mixing.SHARES), np.arange(mixing.ROWS)
    yield "asked", _assembled(schedule.component(numbers), schedule.rank(numbers)), True


def _assembled(component: np.ndarray, index: np.ndarray) -> np.ndarray:
    """Rows by component and number in it, which wraps around."""
    parts = [mixing.component_rows(number) for number in (0, 1)]
    return np.stack([parts[c][i % len(parts[c])] for c, i in zip(component, index, strict=True)])


def levanter() -> Iterator[tuple[str, np.ndarray, bool]]:
    """Levanter's MixtureDataset, with the block of its training configuration, over rows cut before."""
    from levanter.data.dataset import ListAsyncDataset
    from levanter.data.mixture import MixtureDataset
    from levanter.data.text.datasets import LmDataConfig

    parts = {str(number): ListAsyncDataset(list(mixing.component_rows(number))) for number in (0, 1)}
    shares = {"0": mixing.SHARES[0], "1": mixing.SHARES[1]}
    mixture = MixtureDataset(parts, shares, LmDataConfig.mixture_block_size, key=0)
    yield "asked", np.stack(asyncio.run(mixture.get_batch(list(range(mixing.ROWS))))), True


def torchtitan() -> Iterator[tuple[str, np.ndarray, bool]]:
    """torchtitan's InterleavedDataset over its text datasets, which yield rows packed of one source."""
    from torch.utils.data import IterableDataset
    from torchtitan.hf_datasets.interleaved import InterleavedDataset

    class RepeatedRows(IterableDataset):
        """Rows of one component, repeated without end."""

        def __init__(self, component):
            self.rows = mixing.component_rows(component)

        def __iter__(self):
            while True:
                yield from self.rows

        def state_dict(self):
            return {}

        def load_state_dict(self, state):
            pass

    mixed = iter(InterleavedDataset([RepeatedRows(0), RepeatedRows(1)], list(mixing.SHARES), seed=0))
    yield "asked", np.stack([next(mixed) for _ in range(mixing.ROWS)]), True


def megatron() -> Iterator[tuple[str, np.ndarray, bool]]:
    """Megatron's blending of samples, by the C++ that its BlendedDataset calls, over rows cut before."""
    from megatron.core.datasets import helpers_cpp

    component, index = np.zeros(mixing.ROWS, np.int16), np.zeros(mixing.ROWS, np.int64)
    helpers_cpp.build_blending_indices(component, index, np.array(mixing.SHARES), 2, mixing.ROWS, False)
    yield "asked", _assembled(component, index), True


def maxtext() -> Iterator[tuple[str, np.ndarray, bool]]:
    """MaxText's weighted ArrayRecord files: documents are mixed by Grain and packed afterwards."""
    from array_record.python import array_record_module
    from maxtext.input_pipeline import grain_data_processing

    with tempfile.TemporaryDirectory() as folder:
        for component in (0, 1):
            writer = array_record_module.ArrayRecordWriter(f"{folder}/{component}.arrayrecord", "group_size:1")
            for number in range(mixing.DOCUMENTS[component]):
                writer.write(mixing.document(component, number).tobytes())
            writer.close()
        for way, shares in _WAYS.items():
            pattern = ";".join(f"{folder}/{number}.arrayrecord,{share}" for number, share in enumerate(shares))
            data = grain_data_processing.get_datasets(pattern, "arrayrecord", True, 0, 100, None, 0, 1, 0, 1, 1, 1)
            yield way, mixing.packed(np.frombuffer(record, np.int32) for record in data), False


def seqio() -> Iterator[tuple[str, np.ndarray, bool]]:
    """A SeqIO mixture with rates: examples are drawn, and packed by the feature converter afterwards."""
    import seqio
    import tensorflow as tf

    vocabulary = seqio.PassThroughVocabulary(size=1 << 20)
    features = {"targets": seqio.Feature(vocabulary, add_eos=False)}
    for component in (0, 1):

        def read(split, shuffle_files, seed=None, component=component):
            numbers = tf.data.Dataset.range(mixing.DOCUMENTS[component])
            length = mixing.LENGTHS[component]
            return numbers.map(lambda n: {"targets": tf.fill([length], tf.cast(2 * (n + 1) + component, tf.int32))})

        seqio.TaskRegistry.add(
            f"part{component}",
            source=seqio.FunctionDataSource(read, splits=["train"]),
            preprocessors=[],
            output_features=features,
        )
    for way, shares in _WAYS.items():
        seqio.MixtureRegistry.add(way, [(f"part{number}", share) for number, share in enumerate(shares)])
        data = seqio.get_mixture_or_task(way).get_dataset(
            {"targets": 10_000}, split="train", shuffle=True, seed=0, num_epochs=None
        )
        yield way, mixing.packed(example["targets"] for example in data.as_numpy_iterator()), False


def datasets() -> Iterator[tuple[str, np.ndarray, bool]]:
    """Hugging Face `interleave_datasets` with probabilities, then joined and cut as usual."""
    import datasets as hf

    parts = []
    for component in (0, 1):

        def texts(component=component):
            for number in np.random.default_rng(component).permutation(mixing.DOCUMENTS[component]):
                yield {"ids": mixing.document(component, number)}

        parts.append(hf.IterableDataset.from_generator(texts))
    for way, shares in _WAYS.items():
        mixed = hf.interleave_datasets(parts, probabilities=list(shares), seed=0, stopping_strategy="all_exhausted")
        yield way, mixing.packed(example["ids"] for example in mixed), False


def streaming() -> Iterator[tuple[str, np.ndarray, bool]]:
    """mosaicml-streaming with proportions, over rows cut before; `stratified`: its batching method of that name."""
    import streaming as mds

    with tempfile.TemporaryDirectory() as folder:
        for component in (0, 1):
            columns = {"tokens": f"ndarray:int32:{mixing.ROW_TOKENS}"}
            with mds.MDSWriter(out=f"{folder}/{component}", columns=columns) as writer:
                for row in mixing.component_rows(component):
                    writer.write({"tokens": row})
        for way, method in (("asked", "random"), ("stratified", "stratified")):
            streams = [mds.Stream(local=f"{folder}/{n}", proportion=share) for n, share in enumerate(mixing.SHARES)]
            data = mds.StreamingDataset(streams=streams, shuffle=True, batch_size=10, batching_method=method)
            rows: list[np.ndarray] = []
            while len(rows) < mixing.ROWS:
                rows += [sample["tokens"] for sample in data]
            yield way, np.stack(rows[: mixing.ROWS]), True


def litdata() -> Iterator[tuple[str, np.ndarray, bool]]:
    """litdata's CombinedStreamingDataset with weights, over rows cut before."""
    import litdata as lit

    with tempfile.TemporaryDirectory() as folder:
        parts = []
        for component in (0, 1):
            rows = mixing.component_rows(component)
            writer = lit.streaming.Cache(f"{folder}/{component}", chunk_bytes="16MB")
            for number, row in enumerate(rows):
                writer[number] = row
            writer.done()
            writer.merge()
            parts.append(lit.StreamingDataset(f"{folder}/{component}", shuffle=True, seed=0))
        mixed = lit.CombinedStreamingDataset(parts, weights=list(mixing.SHARES), iterate_over_all=False, seed=0)
        taken: list[np.ndarray] = []
        while len(taken) < mixing.ROWS:
            taken += list(mixed)
        yield "asked", np.stack([np.asarray(row) for row in taken[: mixing.ROWS]]), True


PEERS: dict[str, tuple[Callable[[], Iterator[tuple[str, np.ndarray, bool]]], str]] = {
    "ours": (ours, "numpy"),
    "levanter": (levanter, "marin-levanter"),
    "torchtitan": (torchtitan, "torchtitan"),
    "megatron": (megatron, "megatron-core"),
    "maxtext": (maxtext, "maxtext"),
    "seqio": (seqio, "seqio"),
    "datasets": (datasets, "datasets"),
    "streaming": (streaming, "mosaicml-streaming"),
    "litdata": (litdata, "litdata"),
}
"""What is measured, and the package whose version goes with it."""


def main() -> None:
    """Measures one loader."""
    flags = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    flags.add_argument("peer", choices=PEERS)
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    measured, package = PEERS[flags.parse_args().peer]
    for way, rows, by_rows in measured():
        result = {"peer": measured.__name__, "version": importlib.metadata.version(package), "way": way}
        print(json.dumps(result | mixing.judge(rows, by_rows=by_rows)), flush=True)


if __name__ == "__main__":
    main()
