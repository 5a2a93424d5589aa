#!/usr/bin/env python3
"""Which rows each loader repeats or loses when a run stopped on 4 hosts is resumed on 2 or on 8.

    python scripts/benchmarks/peers_hosts.py ours                # in this repository's environment
    /PEERS/bin/python scripts/benchmarks/peers_hosts.py grain    # each peer in an environment that has it

1,536 rows, shuffled, 16 a step: 30 steps on 4 hosts, whose states are saved as each loader saves them, then the rest of
the pass on the other number of hosts. Prints a line of JSON for each: rows read twice, rows never read, or the loader's
error. A host is a process or what the loader takes for one (a rank, a shard index); for Levanter, whose loader gives
global batches, a device.
"""

import argparse
from collections.abc import Callable, Iterator
import copy
import importlib.metadata
import itertools
import json
import multiprocessing
import os
from pathlib import Path
import random
import sys
import tempfile
import types
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[2]
ROWS, BATCH, STEPS, FIRST = 1536, 16, 30, 4
SHARDS = 8  # files, where rows are dealt to hosts by file

Host = Callable[[int, int, list[Any] | None, int], tuple[list[int], Any]]
"""(host, hosts, states of the hosts before, steps) -> numbers of the rows that it read, and its state."""


def own(states: list[Any], host: int) -> Any:
    """The state that the host of this number saved."""
    if host >= len(states):
        raise ValueError(f"there is no state of host {host}")
    return states[host]


def _taken(batches: Iterator[Any], steps: int) -> list[int]:
    """Numbers of the rows of so many batches, or of those that there are."""
    return [int(row) for batch in itertools.islice(batches, steps) for row in np.asarray(batch).reshape(-1)]


def _resumed(batches: Any, states: list[Any] | None, host: int, steps: int) -> tuple[list[int], Any]:
    """Rows that a Grain iterator gives, beginning with its host's own state, and its state afterwards."""
    if states:
        batches.set_state(own(states, host))
    return _taken(batches, steps), batches.get_state()


def ours(folder: Path) -> Host:
    """The training loader of a mixture."""
    sys.path[:0] = [str(ROOT)]
    from fractions import Fraction

    from diversity_jax.mixtures.mixture import Mixture
    from tests.mixture_folders import build_mixture

    mixture = Mixture.load(build_mixture(folder, {"made": Fraction(1)}, sequence_length=16, documents=1200))
    loader = mixture.loader(batch_size=BATCH)
    numbers = {row.tobytes(): i for i, row in enumerate(loader.rows(np.arange(ROWS)).tokens)}
    assert len(numbers) == ROWS

    def host(host: int, hosts: int, states: list[Any] | None, steps: int) -> tuple[list[int], Any]:
        size, first = BATCH // hosts, states[0] if states else 0
        parts = [loader.batch(first + step, slice(host * size, (host + 1) * size)).tokens for step in range(steps)]
        return [numbers[row.tobytes()] for row in np.concatenate(parts)], first + steps

    return host


def grain(folder: Path) -> Host:
    """`MapDataset`, sliced by host as MaxText slices it, with each host's own state."""
    import grain

    def host(host: int, hosts: int, states: list[Any] | None, steps: int) -> tuple[list[int], Any]:
        data = grain.MapDataset.source(list(range(ROWS))).shuffle(seed=0)[host::hosts]
        return _resumed(iter(data.to_iter_dataset().batch(BATCH // hosts)), states, host, steps)

    return host


def grain_data_loader(folder: Path) -> Host:
    """`DataLoader` with an `IndexSampler`."""
    from grain import python

    def host(host: int, hosts: int, states: list[Any] | None, steps: int) -> tuple[list[int], Any]:
        part = python.ShardOptions(shard_index=host, shard_count=hosts, drop_remainder=True)
        sampler = python.IndexSampler(num_records=ROWS, shard_options=part, shuffle=True, seed=0, num_epochs=1)
        batch = python.Batch(BATCH // hosts)
        loader = python.DataLoader(data_source=range(ROWS), sampler=sampler, operations=[batch], worker_count=0)
        return _resumed(iter(loader), states, host, steps)

    return host


def grain_elastic(folder: Path) -> Host:
    """`ElasticIterator`: MaxText's `grain_use_elastic_iterator`, which excludes packing."""
    import grain

    def host(host: int, hosts: int, states: list[Any] | None, steps: int) -> tuple[list[int], Any]:
        data = grain.MapDataset.source(list(range(ROWS))).shuffle(seed=0)
        part = grain.sharding.ShardOptions(shard_index=host, shard_count=hosts)
        batches = grain.experimental.ElasticIterator(data, BATCH, part)
        if states:
            batches.set_state(states[0])
        return _taken(iter(batches), steps), batches.get_state()

    return host


def maxtext(folder: Path) -> Host:
    """MaxText's default: the states of a checkpoint, by its own function for restoring them."""
    from maxtext.common import grain_utility

    inner = grain(folder)
    (folder / "0" / "iter").mkdir(parents=True)

    def host(host: int, hosts: int, states: list[Any] | None, steps: int) -> tuple[list[int], Any]:
        for number, state in enumerate(states or []):
            (folder / "0" / "iter" / f"process_{number}-of-{len(states)}.json").write_text(json.dumps(state))
        if states:
            grain_utility.jax = types.SimpleNamespace(process_count=lambda: hosts, process_index=lambda: host)
            iterator = types.SimpleNamespace(local_iterator=None)
            grain_utility.for_restore(types.SimpleNamespace(directory=folder), 0, iterator, -1)
        return inner(host, hosts, states, steps)

    return host


def levanter(folder: Path) -> Host:
    """`DataLoader.iter_from_step` over a shuffled dataset, on so many devices; it needs no state but the step."""
    os.environ["XLA_FLAGS"] = f"--xla_force_host_platform_device_count={2 * FIRST}"
    import haliax
    import jax
    from levanter.data.dataset import ListAsyncDataset
    from levanter.data.loader import DataLoader

    data = ListAsyncDataset([np.int32(row) for row in range(ROWS)]).shuffle(jax.random.PRNGKey(0))

    def host(host: int, hosts: int, states: list[Any] | None, steps: int) -> tuple[list[int], Any]:
        if host:
            return [], None
        mesh = jax.sharding.Mesh(np.array(jax.devices()[:hosts]), ("data",))
        first = states[0] if states else 0
        with haliax.partitioning.set_mesh(mesh):
            loader = DataLoader(data, BATCH, mesh=mesh, axis_resources={"batch": "data"})
            batches = (getattr(batch, "array", batch) for batch in loader.iter_from_step(first))
            return _taken(batches, steps), first + steps

    return host


def datasets(folder: Path) -> Host:
    """`IterableDataset` of 8 shards, shuffled, `split_dataset_by_node`, each node's `state_dict`."""
    import datasets as hf
    from datasets.distributed import split_dataset_by_node

    def rows(shards):
        for shard in shards:
            for row in range(shard, ROWS, SHARDS):
                yield {"row": row}

    def host(host: int, hosts: int, states: list[Any] | None, steps: int) -> tuple[list[int], Any]:
        data = hf.IterableDataset.from_generator(rows, gen_kwargs={"shards": list(range(SHARDS))})
        part = split_dataset_by_node(data.shuffle(seed=0, buffer_size=64), host, hosts)
        if states:
            part.load_state_dict(own(states, host))
        seen = [example["row"] for example in itertools.islice(part, steps * BATCH // hosts)]
        return seen, part.state_dict()

    return host


def torchtitan(folder: Path) -> Host:
    """`ParallelAwareDataloader` over each rank's part of the rows; a checkpoint holds the states of all ranks."""
    from torch.utils.data import IterableDataset
    from torchtitan.components.dataloader import ParallelAwareDataloader

    class Part(IterableDataset):
        """Every n-th row, with its place as its state."""

        def __init__(self, host, hosts):
            self.rows, self.done = list(range(ROWS))[host::hosts], 0

        def __iter__(self):
            while self.done < len(self.rows):
                self.done += 1
                yield self.rows[self.done - 1]

        def state_dict(self):
            return {"done": self.done}

        def load_state_dict(self, state):
            self.done = state["done"]

    def host(host: int, hosts: int, states: list[Any] | None, steps: int) -> tuple[list[int], Any]:
        loader = ParallelAwareDataloader(Part(host, hosts), host, hosts, batch_size=BATCH // hosts)
        if states:
            loader.load_state_dict({name: value for state in states for name, value in state.items()})
        return _taken(iter(loader), steps), loader.state_dict()

    return host


def litdata(folder: Path) -> Host:
    """`StreamingDataLoader` over a shuffled `StreamingDataset`, whose state names the world."""
    import litdata as lit

    writer = lit.streaming.Cache(str(folder / "set"), chunk_size=ROWS // 32)
    for row in range(ROWS):
        writer[row] = row
    writer.done()
    writer.merge()

    def host(host: int, hosts: int, states: list[Any] | None, steps: int) -> tuple[list[int], Any]:
        os.environ |= {"WORLD_SIZE": str(hosts), "GLOBAL_RANK": str(host), "NNODES": str(hosts)}
        data = lit.StreamingDataset(str(folder / "set"), shuffle=True, seed=0, drop_last=True)
        loader = lit.StreamingDataLoader(data, batch_size=BATCH // hosts, num_workers=0)
        if states:
            loader.load_state_dict(states[0])
        batches = iter(loader)
        return _taken(batches, steps), loader.state_dict()

    return host


def streaming(folder: Path) -> Host:
    """mosaicml-streaming's `StreamingDataset`, each host a rank of this node, by its own elastic state."""
    import streaming as mds

    with mds.MDSWriter(out=str(folder / "set"), columns={"row": "int"}, size_limit=400) as writer:
        for row in range(ROWS):
            writer.write({"row": row})

    def work(queue, finished, port: int, host: int, hosts: int, states: list[Any] | None, steps: int) -> None:
        os.environ |= {"WORLD_SIZE": str(hosts), "RANK": str(host), "LOCAL_RANK": str(host)}
        os.environ |= {"LOCAL_WORLD_SIZE": str(hosts), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        local = str(folder / f"local{port}")
        data = mds.StreamingDataset(
            remote=str(folder / "set"), local=local, shuffle=True, batch_size=BATCH // hosts, num_canonical_nodes=FIRST
        )
        if states:
            data.load_state_dict(states[0])
        count = steps * BATCH // hosts
        rows = [sample["row"] for sample in itertools.islice(data, count)]
        queue.put((host, rows, data.state_dict(count * hosts, from_beginning=False)))
        finished.wait()  # a rank that ends early breaks the others' barriers

    started: dict[int, Any] = {}
    context = multiprocessing.get_context("fork")

    def host(host: int, hosts: int, states: list[Any] | None, steps: int) -> tuple[list[int], Any]:
        if host == 0:  # all hosts of a world at once
            queue, finished, port = context.Queue(), context.Barrier(hosts), random.randrange(20_000, 30_000)
            for number in range(hosts):
                context.Process(
                    target=work, args=(queue, finished, port, number, hosts, states, steps), daemon=True
                ).start()
            started.update({number: (rows, state) for number, rows, state in (queue.get() for _ in range(hosts))})
        return started[host]

    return host


PEERS: dict[str, tuple[Callable[[Path], Host], str]] = {
    "ours": (ours, "numpy"),
    "grain": (grain, "grain"),
    "grain_data_loader": (grain_data_loader, "grain"),
    "grain_elastic": (grain_elastic, "grain"),
    "maxtext": (maxtext, "maxtext"),
    "levanter": (levanter, "marin-levanter"),
    "datasets": (datasets, "datasets"),
    "torchtitan": (torchtitan, "torchtitan"),
    "litdata": (litdata, "litdata"),
    "streaming": (streaming, "mosaicml-streaming"),
}
"""What is measured, and the package whose version goes with it."""


def judge(host: Host, hosts: int) -> dict[str, Any]:
    """Rows read twice and rows never read when a run on `FIRST` hosts is resumed on another number."""
    before, states = list[int](), []
    for number in range(FIRST):
        rows, state = host(number, FIRST, None, STEPS)
        before, states = before + rows, [*states, state]
    assert len(before) == len(set(before)) == STEPS * BATCH, "the loader repeats rows without any stop"
    after, steps = list[int](), ROWS // BATCH - STEPS
    try:
        for number in range(hosts):
            after += host(number, hosts, copy.deepcopy(states), steps)[0]
    except Exception as error:
        return {"hosts": [FIRST, hosts], "refused": f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"}
    again = len(after) - len(set(after) - set(before))
    return {"hosts": [FIRST, hosts], "again": again, "never": ROWS - len(set(before) | set(after))}


def main() -> None:
    """Measures one loader."""
    flags = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    flags.add_argument("peer", choices=PEERS)
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    measured, package = PEERS[flags.parse_args().peer]
    with tempfile.TemporaryDirectory() as folder:
        host = measured(Path(folder))
        for hosts in (FIRST, FIRST // 2, 2 * FIRST):
            result = {"peer": measured.__name__, "version": importlib.metadata.version(package)}
            print(json.dumps(result | judge(host, hosts)), flush=True)


if __name__ == "__main__":
    main()
