"""Batches on the mesh, read ahead, with separated documents."""

import threading
import time

import jax
import numpy as np
import pytest

from diversity_jax.mixtures.loader import segments
from diversity_jax.model import MeshConfig, batch_sharding, make_mesh
from diversity_jax.training.data import ReadAhead, put


def test_segments_and_positions_start_again_where_told():
    segment_ids, positions = segments(np.array([[1, 0, 0, 1, 0, 1, 1, 0]], bool))
    assert segment_ids.tolist() == [[1, 1, 1, 2, 2, 3, 4, 4]]
    assert positions.tolist() == [[0, 1, 2, 0, 1, 0, 0, 1]]


def test_every_row_is_read_once_and_lands_in_its_place():
    mesh = make_mesh(MeshConfig(data=2, fsdp=-1, tensor=2))
    read, rows = [], np.arange(16 * 3).reshape(16, 3)

    def part(index):
        read.append((index.start, index.stop))
        return {"tokens": rows[index], "component": rows[index, 0]}

    batch = put(16, batch_sharding(mesh), part)
    np.testing.assert_array_equal(batch["tokens"], rows)
    np.testing.assert_array_equal(batch["component"], rows[:, 0])
    assert len(read) == len(set(read)) == mesh.shape["data"] * mesh.shape["fsdp"]


def test_batches_come_in_order_and_a_failure_reaches_the_consumer():
    def prepare(step):
        if step == 5:
            raise ValueError("row 7 is damaged")
        return {"step": step}

    reader = ReadAhead(prepare, 2, 9)
    batches = iter(reader)
    seen = [next(batches) for _ in range(3)]
    with pytest.raises(ValueError, match="row 7 is damaged"):
        next(batches)
    reader.close()
    assert [(number, batch["step"]) for number, batch, _ in seen] == [(2, 2), (3, 3), (4, 4)]
    assert all(waited >= 0 for *_, waited in seen)


def test_it_reads_ahead_but_not_without_bound_and_stops_when_closed():
    prepared = []
    reader = ReadAhead(lambda step: prepared.append(step) or step, 0, 1000, depth=2)
    time.sleep(0.3)
    assert 2 <= len(prepared) <= 4
    reader.close()
    assert not any(thread.name == "read-ahead" and thread.is_alive() for thread in threading.enumerate())
    assert jax.device_count() >= 1
