"""Runs llama.cpp's server with a GGUF file, in a process of its own on loopback, inside a `with` block."""

from collections.abc import Iterator
import contextlib
import json
from pathlib import Path
import subprocess
import sys
import urllib.request

_PROGRAM = Path(__file__).resolve().parents[1] / "scripts" / "serve_gguf.py"


@contextlib.contextmanager
def serve_gguf(
    path: Path, *, context_tokens: int = 8192, in_parallel: int = 2, log: Path | None = None
) -> Iterator[str]:
    """Yields the server's address, such as http://127.0.0.1:40123; each of `in_parallel` requests has
    `context_tokens`.
    """
    sizes = ["--context-tokens", str(context_tokens), "--in-parallel", str(in_parallel)]
    command = [sys.executable, str(_PROGRAM), str(path), *sizes, "--exact", "--until-input-ends"]
    with contextlib.ExitStack() as stack:
        errors = stack.enter_context(open(log or path.with_suffix(".log"), "w"))
        server = stack.enter_context(
            subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, text=True)
        )
        try:
            address = server.stdout.readline().strip()
            if not address.startswith("http://"):
                raise RuntimeError(f"the server did not start; see {errors.name}")
            yield address
        finally:
            server.stdin.close()
            try:
                server.wait(20)
            except subprocess.TimeoutExpired:
                server.kill()


def post(address: str, path: str, body: dict, *, seconds: float = 60) -> dict:
    """A JSON answer to a JSON request."""
    request = urllib.request.Request(
        f"{address}{path}", json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=seconds) as reply:
        return json.load(reply)
