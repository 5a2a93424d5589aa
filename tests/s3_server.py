"""A local S3 server for tests: moto's, which keeps objects in memory."""

from collections.abc import Iterator, Mapping
import contextlib
import importlib.util
import os
from pathlib import Path
import subprocess
import sys
import time

import httpx
import pytest

from tests.gcs_server import BUCKET, free_port

_SIGNED = "AWS4-HMAC-SHA256 Credential=a/20260101/us-east-1/s3/aws4_request"  # the server checks no signature


@contextlib.contextmanager
def serving() -> Iterator[dict[str, str]]:
    """Runs the server with an empty bucket; the environment in which s3:// means it. Skips without s3fs and moto."""
    if importlib.util.find_spec("moto") is None or importlib.util.find_spec("s3fs") is None:
        pytest.skip("needs s3fs and moto: pip install 'diversity_jax[s3]' 'moto[server]'")
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    server = subprocess.Popen(
        [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)],
        env={**os.environ, "PYTHONPATH": str(Path(importlib.util.find_spec("moto").origin).parents[1])},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        deadline = time.monotonic() + 60
        while True:
            try:
                httpx.put(
                    f"{url}/{BUCKET}",
                    headers={"Authorization": _SIGNED},
                ).raise_for_status()
                break
            except httpx.TransportError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.1)
        keys = {"AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "b", "AWS_DEFAULT_REGION": "us-east-1"}
        yield {"AWS_ENDPOINT_URL": url, **keys}
    finally:
        server.kill()
        server.wait()


@contextlib.contextmanager
def client(environment: Mapping[str, str]) -> Iterator[None]:
    """Sets a server's environment in this process too."""
    from s3fs import S3FileSystem

    with pytest.MonkeyPatch.context() as patch:
        for name, value in environment.items():
            patch.setenv(name, value)
        S3FileSystem.clear_instance_cache()
        yield
        S3FileSystem.clear_instance_cache()
