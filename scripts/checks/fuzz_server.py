"""Sends a server of a tiny model thousands of requests that nobody should send, and says what became of it.

    python scripts/checks/fuzz_server.py --requests 10000 --schemathesis /path/to/schemathesis

They are made by hypothesis field by field, with garbage between, and, where its command is given, a part of them by
schemathesis from the server's own description (it needs an environment of its own:
`python -m venv V; V/bin/pip install schemathesis`). Ends with 1 where a request got a 500, an answer named a file or a
stack, a plain request between them was lost or answered otherwise, or the server's memory grew by more than
`--growth-mib` after the first tenth, in which programs are compiled.
"""

import argparse
from collections import Counter
from collections.abc import Iterator
import contextlib
import http.client
import json
import os
from pathlib import Path
import re
import socket
import subprocess
import sys
import tempfile

from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st
import jax
import psutil

from diversity_jax.model import LlamaConfig, init_params
from diversity_jax.model.convert import write_imported
from diversity_jax.serving.constraints import FIELDS
from diversity_jax.serving.requests import NO_EFFECT, REFUSED, ChatBody, CompletionBody

ROOT = Path(__file__).resolve().parents[2]
SIZES = {"vocab_size": 260, "hidden_size": 32, "intermediate_size": 48, "num_layers": 2, "num_heads": 4}
PLAIN = {"model": "model", "prompt": "ab", "max_tokens": 3, "temperature": 0, "ignore_eos": True}
CHAT = {"model": "model", "messages": [{"role": "user", "content": "x"}], "max_tokens": 3}
PATHS = ("/v1/completions", "/v1/chat/completions", "/tokenize", "/detokenize")
LEAKS = re.compile(r"Traceback|\.py\b|site-packages|File \"|/tmp/|/root|/home|" + re.escape(str(ROOT)))
NAMES = sorted({*CompletionBody.model_fields, *ChatBody.model_fields, *REFUSED, *NO_EFFECT, *FIELDS, "tokens"})
INTEGERS = st.integers(-(10**400), 10**400) | st.sampled_from([2**31 - 1, 2**31, 2**63, 2**64, -1, 0])
SCALARS = st.none() | st.booleans() | INTEGERS | st.floats() | st.text(max_size=20)
KEYS = st.text(max_size=8) | st.sampled_from(
    ["type", "json_schema", "schema", "json", "$ref", "pattern", "role", "content"]
)
VALUES = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=5) | st.dictionaries(KEYS, inner, max_size=4), max_leaves=12
)
BODIES = st.dictionaries(st.sampled_from(NAMES) | st.text(max_size=8), VALUES, max_size=4)


@contextlib.contextmanager
def served(folder: Path) -> Iterator[tuple[int, psutil.Process]]:
    """Port and process of `python -m diversity_jax.serve`."""
    config = LlamaConfig(**SIZES, max_length=256)
    write_imported(config, jax.device_get(init_params(config, jax.random.key(0))), folder / "model")
    arguments = {"model.checkpoint": folder / "model", "model.tokenizer": "bytes", "port": 0, "slots": 8}
    command = [sys.executable, "-m", "diversity_jax.serve", "--config", "configs/serve.py"]
    command += [f"--config.{name}={value}" for name, value in arguments.items()]
    environment = {**os.environ, "JAX_PLATFORMS": "cpu"}
    with open(folder / "server.log", "w") as log:
        process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=log, text=True)
    try:
        assert process.stdout is not None
        yield int(process.stdout.readline().rsplit(":", 1)[1].partition("/")[0]), psutil.Process(process.pid)
    finally:
        process.terminate()
        process.wait(60)


def ask(port: int, path: str, data: bytes, headers: dict[str, str] | None = None) -> tuple[int, str]:
    """Status and text of an answer."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=120)
    try:
        connection.request("POST", path, data, {"Content-Type": "application/json", **(headers or {})})
        answer = connection.getresponse()
        return answer.status, answer.read().decode(errors="replace")
    finally:
        connection.close()


class Watch:
    """What is checked of every answer."""

    def __init__(self, port: int, process: psutil.Process, every: int):
        self.port, self.process, self.every = port, process, every
        self.statuses, self.faults, self.sent, self.first_bytes = Counter[int](), [], 0, 0
        self.hung_up = 0
        self.expected = self._plain()

    def _plain(self) -> str:
        status, text = ask(self.port, PATHS[0], json.dumps(PLAIN).encode())
        return json.loads(text)["choices"][0]["text"] if status == 200 else f"status {status}: {text[:200]}"

    def see(self, status: int, text: str, request: object) -> None:
        """Counts an answer, and between them asks plainly."""
        self.statuses[status] += 1
        self.sent += 1
        if status >= 500 or (status != 200 and LEAKS.search(text)):
            self.faults.append(f"{status} {text[:200]!r} for {str(request)[:300]}")
        if self.sent % 100 == 0 and (answer := self._plain()) != self.expected:
            self.faults.append(f"a plain request after {self.sent}: {answer!r}, not {self.expected!r}")
        if self.sent == self.every // 10:
            self.first_bytes = self.process.memory_info().rss


def by_hypothesis(watch: Watch, requests: int) -> None:
    """Fields of every kind, and bytes that are no request at all."""

    @seed(0)
    @settings(
        max_examples=requests,
        deadline=None,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(st.sampled_from(PATHS), BODIES, st.binary(max_size=60), st.integers(0, 20))
    def send(path: str, fields: dict[str, object], garbage: bytes, kind: int) -> None:
        plain = {PATHS[0]: PLAIN, PATHS[1]: CHAT, PATHS[2]: {"prompt": "ab"}, PATHS[3]: {"tokens": [100]}}[path]
        data = garbage if kind == 0 else json.dumps({**plain, **fields}).encode()
        if kind == 1:  # a client that hangs up in the middle
            with socket.create_connection(("127.0.0.1", watch.port)) as connection:
                connection.sendall(
                    f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: 99\r\n\r\n".encode() + garbage
                )
            watch.hung_up += 1
            return
        headers = {"Host": garbage.hex()} if kind == 2 else {"Content-Type": garbage.hex()} if kind == 3 else {}
        watch.see(*ask(watch.port, path, data, headers), (path, data))

    send()


def by_schemathesis(watch: Watch, command: str, examples: int) -> int:
    """From the server's own description; returns how many requests were made."""
    checks = "not_a_server_error,status_code_conformance,content_type_conformance,response_schema_conformance"
    address = f"http://127.0.0.1:{watch.port}/openapi.json"
    arguments = [
        command,
        "run",
        address,
        "--checks",
        checks,
        "--max-examples",
        str(examples),
        "--generation-database",
        "none",
    ]
    arguments += [
        "--phases",
        "examples,coverage,fuzzing",
        "--request-timeout",
        "300",
        "--continue-on-failure",
        "--no-color",
        "--seed",
        "0",
    ]
    done = subprocess.run(arguments, capture_output=True, text=True, cwd=tempfile.gettempdir(), check=False)
    cases = re.search(r"([\d,]+) (?:test cases )?generated", done.stdout)
    if done.returncode:
        watch.faults.append(f"schemathesis: {done.stdout[-6000:]}{done.stderr[-500:]}")
    if (answer := watch._plain()) != watch.expected:
        watch.faults.append(f"a plain request after schemathesis: {answer!r}, not {watch.expected!r}")
    return int(cases[1].replace(",", "")) if cases else 0


def main() -> int:
    """1 where something went wrong."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=10_000)
    parser.add_argument("--schemathesis", help="its command; without it, all requests are hypothesis's")
    parser.add_argument("--growth-mib", type=float, default=300)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, served(Path(folder)) as (port, process):
        watch = Watch(port, process, options.requests)
        described = 0
        if options.schemathesis:
            described = by_schemathesis(watch, options.schemathesis, options.requests // 20)
        by_hypothesis(watch, max(options.requests - described, 100))
        growth = (process.memory_info().rss - watch.first_bytes) / 2**20
        log = Path(folder, "server.log").read_text()
    sent = f"{watch.sent + watch.hung_up:,} requests by hypothesis, {watch.hung_up:,} of them cut in the middle"
    print(f"{sent}: {dict(sorted(watch.statuses.items()))}; {described:,} by schemathesis")
    print(f"memory after the first tenth: {watch.first_bytes / 2**20:.0f} MiB, and {growth:+.0f} MiB at the end")
    if growth > options.growth_mib or "Traceback" in log:
        watch.faults.append(f"the server grew by {growth:.0f} MiB, or logged: {log[-1500:]}")
    for fault in watch.faults[:20]:
        print("FAULT", fault)
    return 1 if watch.faults else 0


if __name__ == "__main__":
    sys.exit(main())
