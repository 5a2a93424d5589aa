"""Damages files of every format that users bring and reads them: each must be read, or refused in one line.

    python scripts/checks/fuzz_files.py [--inputs 1000] [--first 0] [--formats jsonl,gguf] [--processes 1]

Every format is fuzzed in a process of its own, since native libraries may crash it; then the last input is named. Exit
status 1 where an input ended in anything but one line or took over 5 s, memory grew beyond 2 GB, or a file was left
behind. Input n of a format is the same in every run.
"""

import argparse
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
import contextlib
import io
import json
import logging
import os
from pathlib import Path
import random
import resource
import signal
import subprocess
import sys
import tempfile
import time
import traceback
import warnings

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from diversity_jax.core.errors import InputError  # noqa: E402
from scripts.checks.fuzz_formats import FORMATS  # noqa: E402
from tests.changed_json import changed_at  # noqa: E402

SLOW_SECONDS = 5.0
HANGS_SECONDS = 60.0  # then the kernel ends the process
MOST_BYTES = 2 << 30
_PLACEHOLDER = "a value of another kind"
# Values that Python cannot write as JSON, or that are no valid JSON.
RAW_VALUES = (
    *(b"NaN", b"-Infinity", b"1e999", b"-0", b"9" * 5000, b'"\\ud800"', b'{"a": 1, "a": 2}', b"\xff", b"{", b"]"),
    *(b"[" * 200 + b"]" * 200, b"[" * 100_000, b'{"a":' * 2000 + b"1" + b"}" * 2000),
)


def damaged(original: bytes, value: object, generator: random.Random) -> bytes:
    """Changed bytes, or a wrong value in a field where the file is JSON, whose value is given."""
    if value is not None and generator.random() < 0.6:
        if generator.random() < 0.85:
            return json.dumps(changed_at(value, generator)).encode()
        changed = json.dumps(changed_at(value, generator, (_PLACEHOLDER,))).encode()
        return changed.replace(json.dumps(_PLACEHOLDER).encode(), generator.choice(RAW_VALUES))
    data = bytearray(original)
    for _ in range(generator.choice((1, 1, 2, 5))):
        at = generator.randrange(len(data) + 1)
        length = min(generator.choice((1, 1, 4, 8, 200)), len(data) - at)
        kind = generator.randrange(5)
        if kind == 0:
            del data[at : at + length]
        elif kind == 1:
            data[at : at + length] = generator.randbytes(length)
        elif kind == 2:
            data[at:at] = data[at : at + length] * generator.choice((1, 2, 50))
        elif kind == 3:
            data[at : at + length] = generator.choice((b"\xff", b"\0", b"\x7f", b"9")) * length
        elif data:
            data[at:] = b""
    return bytes(data)


def outcome(read: Callable[[], object]) -> tuple[str, str | None]:
    """How reading ended: `read` or `refused`; and what was wrong with it."""
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            read()
        return "read", None
    except InputError as error:
        text = str(error)
        is_line = "\n" not in text and len(text) < 1500 and text.isprintable()
        return "refused", None if is_line else f"a message of {len(text)} characters, or of several lines"
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        frames = traceback.extract_tb(error.__traceback__)
        own = [frame for frame in frames if "diversity_jax/" in frame.filename]
        where = f"{Path(own[-1].filename).name}:{own[-1].lineno}" if own else "?"
        return "failed", f"{type(error).__name__} at {where} ({str(error)[:80]!r})"


def fuzz(name: str, numbers: range, progress: Path) -> int:
    """Reads damaged files of one format; returns the number of different faults."""
    warnings.simplefilter("ignore")
    logging.disable()
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    with tempfile.TemporaryDirectory() as folder:
        path, read = FORMATS[name](Path(folder))
        original, outcomes, wrong, first = path.read_bytes(), Counter[str](), Counter[str](), dict[str, int]()
        value = None
        if original[:1] == b"{":
            with contextlib.suppress(ValueError):
                value = json.loads(original)
        read()
        before = sorted(Path(folder).rglob("*"))
        with open(progress, "wb", buffering=0) as state:
            for number in numbers:
                path.write_bytes(damaged(original, value, random.Random(f"{name}/{number}")))
                os.pwrite(state.fileno(), b"%12d" % number, 0)
                signal.setitimer(signal.ITIMER_PROF, HANGS_SECONDS)
                began = time.process_time()
                kind, fault = outcome(read)
                if time.process_time() - began > SLOW_SECONDS:
                    fault = f"over {SLOW_SECONDS} s"
                outcomes[kind] += 1
                if fault:
                    wrong[fault] += 1
                    first.setdefault(fault, number)
        signal.setitimer(signal.ITIMER_PROF, 0)
        path.write_bytes(original)
        if left := sorted(set(Path(folder).rglob("*")) - set(before)):
            wrong[f"left {left[0].name} behind"] = len(left)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    if peak > MOST_BYTES:
        wrong[f"{peak / 2**30:.1f} GB of memory"] += 1
    counts = f"{outcomes['refused']:,} refused in one line, {outcomes['read']:,} read"
    print(f"{name}: {len(numbers):,} inputs, {counts}, {peak >> 20:,} MiB, {time.process_time():,.0f} s")
    for what, count in wrong.most_common():
        print(f"  WRONG {count:,} times: {what}, first at input {first.get(what, '?')}")
    return len(wrong)


def _apart(name: str, numbers: range) -> bool:
    """Fuzzes a format in another process; returns whether there was a fault."""
    with tempfile.TemporaryDirectory() as folder:
        progress = Path(folder, "input")
        span = [f"--inputs={len(numbers)}", f"--first={numbers.start}", f"--progress={progress}"]
        command = [sys.executable, __file__, "--formats", name, *span]
        done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "JAX_PLATFORMS": "cpu"})
        at = progress.read_text().strip() if progress.exists() else "the start"
    ended = "" if done.returncode in (0, 1) and done.stdout else f"{name}: ENDED with {done.returncode} at input {at}\n"
    print(f"{done.stdout}{ended}{done.stderr[-2000:] if ended else ''}", end="", flush=True)
    return done.returncode != 0


def main() -> int:
    """Fuzzes the formats asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--inputs", type=int, default=1000)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--formats", default=",".join(FORMATS))
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--progress", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    numbers = range(options.first, options.first + options.inputs)
    if options.progress:
        return bool(fuzz(options.formats, numbers, options.progress))
    with ThreadPoolExecutor(options.processes) as threads:
        return any(list(threads.map(lambda name: _apart(name, numbers), options.formats.split(","))))


if __name__ == "__main__":
    sys.exit(main())
