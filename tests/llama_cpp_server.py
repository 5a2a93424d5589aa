"""llama.cpp's own server, in a process of its own: serves a GGUF file on loopback while the block runs.

Run as a program it prints the address, and ends when its standard input does, so that it never outlives the test.
"""

from collections.abc import Iterator
import contextlib
import json
from pathlib import Path
import subprocess
import sys
import urllib.request


@contextlib.contextmanager
def serve_gguf(
    path: Path, *, context_tokens: int = 8192, in_parallel: int = 2, log: Path | None = None
) -> Iterator[str]:
    """Yields the server's address, such as http://127.0.0.1:40123; each of `in_parallel` requests has
    `context_tokens`.
    """
    command = [sys.executable, __file__, str(path), str(context_tokens * in_parallel), str(in_parallel)]
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


def post(address: str, path: str, body: dict) -> dict:
    """A JSON answer to a JSON request."""
    request = urllib.request.Request(
        f"{address}{path}", json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=60) as reply:
        return json.load(reply)


def main(path: str, context_tokens: str, in_parallel: str) -> None:
    """Serves until standard input ends."""
    import os

    address_file = os.dup(1)
    os.dup2(2, 1)  # llama.cpp logs to standard output too, where the address is to stand alone
    import xllamacpp

    params = xllamacpp.CommonParams()
    params.model.path = path
    params.n_ctx, params.n_parallel = int(context_tokens), int(in_parallel)
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = 1
    params.port, params.fit_params, params.ui = 0, False, False
    # Its usual attention rounds to float16 in two places; without, it agrees with ours to 1e-5.
    params.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
    params.cache_type_k = params.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
    params.sampling.seed = 7
    server = xllamacpp.Server(params)
    os.write(address_file, f"{server.listening_address}\n".encode())
    sys.stdin.read()


if __name__ == "__main__":
    main(*sys.argv[1:])
