"""Runs the compiler in a process of its own and remembers its answers on disk, by everything they depend on."""

import contextlib
import dataclasses
import functools
import importlib.metadata
import json
import os
from pathlib import Path
import pickle
import subprocess
import sys
import time
from typing import Any

from diversity_jax.errors import InputError
from diversity_jax.storage import content_hash, read_json, write_json
from diversity_jax.training import compile_worker
from diversity_jax.training.compile_worker import CompileRequest

_COMPILERS = {"tpu": "libtpu", "cuda": "jax-cuda12-pjrt"}
_TIME_LIMIT_SECONDS = 3600


def default_folder() -> Path:
    """Where answers are kept unless told otherwise."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "diversity_jax" / "compile"


@functools.cache
def _source_hash() -> str:
    """Of all code a compiled step is made of."""
    package = Path(__file__).resolve().parents[1]
    files = sorted([*package.glob("model/*.py"), *(package / "training").glob("compile_*.py")])
    files += [package / "training" / "step.py", package / "training" / "optimizer.py"]
    return content_hash({str(path.relative_to(package)): path.read_text() for path in files})


def key(request: CompileRequest) -> str:
    """Of a request under this code and these compilers."""
    compiler = _COMPILERS[request.target.chip.platform]
    versions = {}
    for package in ("jax", "jaxlib", compiler):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[package] = importlib.metadata.version(package)
    return content_hash({"request": dataclasses.asdict(request), "versions": versions, "source": _source_hash()})


def compile_step(request: CompileRequest, *, folder: Path | None) -> dict[str, Any]:
    """The worker's report on a request, from `folder` if it was compiled before (None: always anew).

    Raises:
      InputError: the step cannot be compiled: no compiler, no such slice or mesh, or the compiler failed.
    """
    path = folder / f"{key(request)}.json" if folder else None
    if path and path.exists():
        return read_json(path)
    answer = _ask(request)
    if "input_error" in answer:
        raise InputError(answer["input_error"])
    if path:
        write_json(path, answer)
    return answer


def _ask(request: CompileRequest) -> dict[str, Any]:
    command = [sys.executable, "-m", compile_worker.__name__]
    root = str(Path(__file__).resolve().parents[2])
    changed = compile_worker.environment(request.target.chip.platform, os.environ)
    changed["PYTHONPATH"] = os.pathsep.join([root, *filter(None, [os.environ.get("PYTHONPATH")])])
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=changed)
    try:
        answer, log = _wait(process, pickle.dumps(request), request)
    finally:
        process.kill()
        process.wait()
    lines = answer.decode().splitlines()
    if process.returncode or not lines:
        said = [line for line in log.decode(errors="replace").splitlines() if line.strip()]
        raise InputError(
            f"--topology {request.target.name}: the compiler ended with status {process.returncode}: {(said or ['no message'])[-1][:300]}"
        )
    return json.loads(lines[-1])


def _wait(process: subprocess.Popen, request_bytes: bytes, request: CompileRequest) -> tuple[bytes, bytes]:
    """Output and log; says every so often, on a terminal, that the compiler is still at work."""
    started, pending = time.monotonic(), request_bytes
    while True:
        try:
            answer = process.communicate(pending, timeout=1)
            break
        except subprocess.TimeoutExpired:
            pending = None
            if time.monotonic() - started > _TIME_LIMIT_SECONDS:
                raise InputError(f"--topology {request.target.name}: not compiled within {_TIME_LIMIT_SECONDS} s") from None
            if sys.stderr.isatty():
                print(f"\rcompiling for {request.target.name}: {time.monotonic() - started:.0f} s", end="", file=sys.stderr)
    if sys.stderr.isatty():
        print("\r\033[K", end="", file=sys.stderr)
    return answer
