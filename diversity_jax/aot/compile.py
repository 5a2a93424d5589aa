"""Compiles a configuration's training step for absent chips, and estimates its memory and speed.

    python -m diversity_jax.training.compile --config configs/llama_1p4b.py --topology v5e:4x4
    python -m diversity_jax.training.compile --config configs/llama_7b.py --topology v5p:2x2x4 --search
    python -m diversity_jax.training.compile --config configs/llama_350m.py --topology h200:1 --config.model.remat=none

Topologies: v4, v5p:AxBxC; v5e, v6e:AxB; h100, h200:N; `*2` behind for two slices or nodes.
Needs `pip install diversity_jax[tpu]` or `[cuda]`, no TPU and no GPU. Options:
  --search        tries meshes, batches and remat policies, and ranks those that fit
  --limit N       most compilations of a search (default 12)
  --fast          lower compiler effort: half the time, memory may be a little higher
  --json FILE     also writes the figures
  --cache DIR     folder of cached reports (default ~/.cache/diversity_jax/compile); --cache= for none
  --no-suggestion suggests no smaller settings where the step does not fit
"""

import argparse
from collections.abc import Sequence
import contextlib
import dataclasses
import functools
import importlib.metadata
import json
import logging
import os
from pathlib import Path
import pickle
import subprocess
import sys
import time
from typing import TYPE_CHECKING, Any

from diversity_jax.aot import worker
from diversity_jax.aot.report import (
    Compiled,
    estimate,
    flags,
    gib,
    lines,
    milliseconds,
    ranking,
    search,
    setting,
    suggestion,
)
from diversity_jax.aot.worker import CompileRequest, Target, parse_target
from diversity_jax.core.errors import InputError
from diversity_jax.core.files import content_hash, read_json, user_cache, write_json

if TYPE_CHECKING:
    from diversity_jax.training.run import Config

log = logging.getLogger(__name__)

_COMPILERS = {"tpu": "libtpu", "cuda": "jax-cuda12-pjrt"}
_TIME_LIMIT_SECONDS = 3600


def default_folder() -> Path:
    """The default of `--cache`."""
    return user_cache("compile")


@functools.cache
def _source_hash() -> str:
    """Hash of all code that a compiled step depends on."""
    package = Path(__file__).resolve().parents[1]
    files = sorted([*package.glob("model/*.py"), *package.glob("aot/*.py")])
    files += [package / "core" / "chips.py", package / "training" / "step.py"]
    return content_hash({str(path.relative_to(package)): path.read_text() for path in files})


def key(request: CompileRequest) -> str:
    """Hash of a request, this code and the compilers' versions."""
    compiler = _COMPILERS[request.target.chip.platform]
    versions = {}
    for package in ("jax", "jaxlib", compiler):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[package] = importlib.metadata.version(package)
    return content_hash({"request": dataclasses.asdict(request), "versions": versions, "source": _source_hash()})


def compile_step(request: CompileRequest, *, folder: Path | None) -> dict[str, Any]:
    """The worker's report on a request, from the cache in `folder` if it is there; None: no cache.

    Raises:
      InputError: the step cannot be compiled: no compiler, no such slice or mesh, or the compiler failed.
    """
    path = folder / f"{key(request)}.json" if folder else None
    if path and path.exists():
        return read_json(path)
    report = _run_worker(request)
    if "input_error" in report:
        raise InputError(report["input_error"])
    if path:
        try:
            write_json(path, report)
        except InputError as error:
            log.warning("the report is not kept for the next time: %s", error)
    return report


def _run_worker(request: CompileRequest) -> dict[str, Any]:
    root = str(Path(__file__).resolve().parents[2])
    environment = worker.environment(request.target.chip.platform, os.environ)
    environment["PYTHONPATH"] = os.pathsep.join([root, *filter(None, [os.environ.get("PYTHONPATH")])])
    pipes: dict[str, Any] = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
    process = subprocess.Popen([sys.executable, "-m", worker.__name__], env=environment, **pipes)
    try:
        output, errors = _communicate(process, request)
    finally:
        process.kill()
        process.wait()
    report_lines = output.decode().splitlines()
    if process.returncode or not report_lines:
        messages = [line for line in errors.decode(errors="replace").splitlines() if line.strip()]
        ending = f"the compiler ended with status {process.returncode}: {(messages or ['no message'])[-1][:300]}"
        raise InputError(f"--topology {request.target.name}: {ending}")
    return json.loads(report_lines[-1])


def _communicate(process: subprocess.Popen[bytes], request: CompileRequest) -> tuple[bytes, bytes]:
    """Sends the request; returns standard output and standard error. On a terminal it shows the elapsed time."""
    started = time.monotonic()
    pending: bytes | None = pickle.dumps(request)
    while True:
        try:
            output = process.communicate(pending, timeout=1)
            break
        except subprocess.TimeoutExpired:
            pending, elapsed = None, time.monotonic() - started
            if elapsed > _TIME_LIMIT_SECONDS:
                late = f"not compiled within {_TIME_LIMIT_SECONDS} s"
                raise InputError(f"--topology {request.target.name}: {late}") from None
            if sys.stderr.isatty():
                print(f"\rcompiling for {request.target.name}: {elapsed:.0f} s", end="", file=sys.stderr)
    if sys.stderr.isatty():
        print("\r\033[K", end="", file=sys.stderr)
    return output


def make_request(config: "Config", target: Target, *, effort: str = "default") -> CompileRequest:
    """The step that `diversity_jax.train` would run with this configuration.

    Raises:
      InputError: the model is not described, the mesh does not fit the target, or rows exceed `model.max_length`.
    """
    if config.model is None:
        raise InputError("config.model is None: a compile for absent chips needs it described")
    config.model.check_described()
    if config.prepared is not None:
        from diversity_jax.mixtures.mixture import Mixture

        mixture = Mixture.load(config.prepared)
        length, components = mixture.sequence_length, len(mixture.taken)
        packed = any(part.prepared.chat for part in mixture.taken)
    else:
        assert config.mixture is not None  # the configuration has one or the other
        length, components = config.mixture.sequence_length, len(config.mixture.components)
        packed = any(part.corpus.conversations for part in config.mixture.components)
    if length > config.model.max_length:
        limit = config.model.max_length
        raise InputError(f"model.max_length={limit}: the mixture's rows predict {length} tokens; raise it")
    config.mesh.resolved(target.devices)
    return CompileRequest(
        model=config.model,
        optimizer=config.optimizer.for_run(config.train.steps),
        mesh=config.mesh,
        target=target,
        batch_size=config.train.batch_size,
        sequence_length=length,
        gradient_accumulation=config.train.gradient_accumulation,
        z_loss=config.train.z_loss,
        num_components=components,
        packed=packed or not config.train.attend_across_documents,
        lora=config.train.lora,
        effort=effort,
    )


def compiled(request: CompileRequest, folder: Path | None) -> Compiled:
    """Report and estimate of a request, as `compile_step`."""
    report = compile_step(request, folder=folder)
    return Compiled(request=request, report=report, estimate=estimate(request, report) if report["fits"] else None)


def main(options: argparse.Namespace, config: "Config") -> None:
    """Compiles, or searches, and prints the result."""
    request = make_request(config, options.target, effort="O1" if options.fast else "default")
    compile_logged = functools.partial(_compile_logged, folder=options.cache)
    if options.search:
        results = search(request, compile_logged, limit=options.limit, say=log.info)
        if not results:
            raise InputError(
                f"--topology {request.target.name}: nothing that was tried fits; take a larger slice or a smaller batch"
            )
        print("\n".join(ranking(results)))
        print(f"best: {flags(request, results[0].request) or 'the configuration as it is'}")
    else:
        results = [compiled(request, options.cache)]
        print("\n".join(lines(results[0])))
        if options.suggestion and not results[0].fits:
            smaller = suggestion(request, compile_logged)
            if smaller is None or smaller.estimate is None:
                print("suggestion       none of the smaller settings tried fits; take a larger slice, or try --search")
            else:
                memory = gib(smaller.estimate["memory_total_bytes"])
                print(f"suggestion       {flags(request, smaller.request)} fits: {memory} (compiled)")
    if options.json:
        write_json(options.json, [record(result) for result in results])


def _compile_logged(request: CompileRequest, folder: Path | None) -> Compiled:
    result = compiled(request, folder)
    outcome = "does not fit"
    if result.estimate is not None:
        slowest = milliseconds(result.estimate["step_seconds"][1])
        outcome = f"{gib(result.estimate['memory_total_bytes'])}, {slowest} ms at most"
    log.info("%s: %s", setting(request), outcome)
    return result


def record(result: Compiled) -> dict[str, Any]:
    """The result as `--json` writes it."""
    request = dataclasses.asdict(result.request)
    chip = request.pop("target")["chip"]
    described = {"topology": result.request.target.name, "chip": chip, "request": request}
    return {**described, "report": result.report, "estimate": result.estimate}


def arguments(argv: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
    """This command's own options, and the remaining arguments, which set configuration fields.

    Raises:
      InputError: an unknown topology.
    """
    parser = argparse.ArgumentParser(
        add_help=False, allow_abbrev=False, exit_on_error=False, prog="python -m diversity_jax.training.compile"
    )
    parser.add_argument("--topology")
    parser.add_argument("--search", action="store_true")
    parser.add_argument("--limit", type=int, default=12)
    parser.add_argument("--fast", action="store_true")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--cache", type=lambda text: Path(text) if text else None, default=default_folder())
    parser.add_argument("--no-suggestion", dest="suggestion", action="store_false")
    try:
        options, rest = parser.parse_known_args(argv)
    except argparse.ArgumentError as error:
        raise InputError(str(error)) from None
    if options.topology is None:
        raise InputError("--topology is missing; give one, such as --topology v5e:4x4")
    options.target = parse_target(options.topology)
    return options, rest


def command(usage: str) -> None:
    """The command line `python -m diversity_jax.training.compile`."""
    from diversity_jax.core import cli
    from diversity_jax.training.run import Config

    def split(argv: list[str]) -> tuple[list[str], argparse.Namespace]:
        own, remaining = arguments(argv)
        return remaining, own

    cli.run(main, Config, usage, split)
