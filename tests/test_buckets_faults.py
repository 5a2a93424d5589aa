"""Faults of an object store, injected by a proxy: each is one line, and nothing is lost."""

import numpy as np
import pytest

from diversity_jax.core.buckets import local_copy, published, remote_tree
from diversity_jax.core.errors import InputError
from diversity_jax.core.files import create_file, exists, file_hash, list_files, open_file, read_json, write_json
from diversity_jax.core.stores import DiskFull, StoreError, remote
from diversity_jax.model.checkpoint_io import shards
from tests import gcs_server
from tests.faulty_proxy import Fault, proxying
from tests.gcs_server import BUCKET, free_port

ROOT = f"gs://{BUCKET}"


@pytest.fixture(scope="module")
def proxy(tmp_path_factory):
    pytest.importorskip("gcsfs", reason="needs gcsfs: pip install 'diversity_jax[gcs]'")
    import gcsfs.retry

    port, server_port = free_port(), free_port()
    with (
        proxying(port, server_port) as proxy,
        gcs_server.serving(external_port=port, port=server_port) as environment,
        gcs_server.client(environment),
        pytest.MonkeyPatch.context() as patch,
    ):
        patch.setenv("DIVERSITY_JAX_CACHE", str(tmp_path_factory.mktemp("cache")))
        patch.setattr(gcsfs.retry, "min", lambda *seconds: 0.01, raising=False)  # between the client's retries
        write_json(f"{ROOT}/a/value.json", {"text": "x" * 5000})
        yield proxy


def read_whole(url: str) -> bytes:
    with open_file(url) as file:
        return file.read()


READS = {
    "open": lambda: read_whole(f"{ROOT}/a/value.json"),
    "json": lambda: read_json(f"{ROOT}/a/value.json"),
    "hash": lambda: file_hash(f"{ROOT}/a/value.json"),
    "exists": lambda: exists(f"{ROOT}/a/value.json"),
    "list": lambda: list_files(f"{ROOT}/a/*.json"),
    "tree": lambda: remote_tree(f"{ROOT}/a"),
    "copy": lambda: local_copy(f"{ROOT}/a"),
}
WRITES = {
    "json": lambda: write_json(f"{ROOT}/new/value.json", 1),
    "create": lambda: create_file(f"{ROOT}/new/lock", b"x"),
    "shards": lambda: shards.write(
        f"{ROOT}/new/8", "x", [shards.ArrayShard(name="p", start=(0,), values=np.arange(10, dtype=np.float32))]
    ),
}
STATUSES = (403, 429, 500, 503, 507)


@pytest.mark.parametrize("status", STATUSES)
@pytest.mark.parametrize("read", READS)
def test_a_store_that_refuses_to_be_read_is_one_line(proxy, read, status):
    with proxy.failing(Fault("GET", status)), pytest.raises(InputError) as error:
        READS[read]()
    assert "\n" not in str(error.value)
    assert str(error.value).startswith(ROOT)
    assert isinstance(error.value, StoreError) == (status != 403)
    READS[read]()  # nothing is broken once the store is back


@pytest.mark.parametrize("status", STATUSES)
@pytest.mark.parametrize("write", WRITES)
def test_a_store_that_refuses_to_be_written_is_one_line_and_holds_nothing(proxy, write, status):
    with proxy.failing(Fault("POST|PUT", status)), pytest.raises(InputError) as error:
        WRITES[write]()
    assert "\n" not in str(error.value)
    assert isinstance(error.value, StoreError) == (status != 403)
    assert isinstance(error.value, DiskFull) == (status == 507)
    assert not remote_tree(f"{ROOT}/new")


@pytest.mark.parametrize("status", [429, 503])
def test_a_store_that_fails_twice_is_asked_again(proxy, status):
    with proxy.failing(Fault("POST|PUT", status, times=2), Fault("GET", status, times=2)):
        write_json(f"{ROOT}/again/value.json", [1])
        assert read_json(f"{ROOT}/again/value.json") == [1]


def test_what_is_not_there_is_told_by_its_url(proxy):
    with pytest.raises(InputError, match=f"^{ROOT}/nothing.json: no such file; check the path$"):
        read_json(f"{ROOT}/nothing.json")
    with pytest.raises(InputError, match=r"cannot be written .*; check that the bucket is there"):
        write_json("gs://nowhere/value.json", 1)


@pytest.mark.parametrize("read", ["open", "json", "hash"])
def test_a_body_that_is_cut_short_is_no_whole_file(proxy, read):
    with proxy.failing(Fault("GET .*alt=media|GET /download", 0)), pytest.raises(InputError) as error:
        READS[read]()
    assert "\n" not in str(error.value)
    assert "of 5," in str(error.value) or "could not be read" in str(error.value)


def test_a_folder_that_cannot_be_uploaded_stays_on_this_machine(proxy):
    url, folders = f"{ROOT}/stays", []

    def write():
        with published(url, "output_dir") as folder:
            (folder / "log.jsonl").write_text("line\n")
            folders.append(folder)
            proxy.faults = [Fault("(POST|PUT) .*log", 507)]

    with pytest.raises(StoreError, match=r"the store is full .*; what is not there yet is in .*/published/"):
        write()
    proxy.faults = []
    assert (folders[0] / "log.jsonl").read_text() == "line\n"
    with published(url, "output_dir") as folder:
        assert (folder / "log.jsonl").read_text() == "line\n"
    assert "log.jsonl" in remote_tree(url)


def test_only_own_ranges_reach_the_server(proxy):
    filesystem, inside = remote(f"{ROOT}/a/value.json")
    proxy.requests.clear()
    assert len(filesystem.cat_file(inside, start=100, end=200)) == 100
    assert [asked for _, path, asked in proxy.requests if asked] == ["bytes=100-199"]
