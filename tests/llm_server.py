"""An HTTP server on loopback that simulates a language model: OpenAI chat completions and Gemini generateContent.

What it answers is computed by a function; how it misbehaves is a set of rates. In a test:

    from tests.llm_server import Faults, label_oracle, serve

    with serve(label_oracle({"some text": "its label"}), faults=Faults(too_many=0.1), latency_seconds=0.05) as server:
        ...  # server.openai_url, server.gemini_url, server.attempts, server.answered, server.peak_in_flight

`serve` runs it in a thread. `serve_process` runs it in a process of its own, so that a measured client has a core to
itself and can be killed without it; `python -m tests.llm_server` does the same by hand and prints the address.
"""

import argparse
import asyncio
from collections import Counter
from collections.abc import Callable, Iterator
import contextlib
from dataclasses import asdict, dataclass, field
import hashlib
import importlib
import json
from pathlib import Path
import random
import subprocess
import sys
import threading
import time
import traceback
from typing import Any
import urllib.request

from tests.llm_answers import Answer, by_schema, json_schema, label_oracle, samples_in, stage_of, tokens_of

__all__ = ["Answer", "Faults", "LlmServer", "RemoteServer", "by_schema", "label_oracle", "serve", "serve_process"]


@dataclass(frozen=True, kw_only=True)
class Faults:
    """How often an attempt goes wrong: shares of 0 to 1 that add up to at most 1, drawn with `seed` for every
    attempt.
    """

    too_many: float = 0.0  # 429, with `retry_after_seconds` in its header
    error_500: float = 0.0
    error_503: float = 0.0
    dropped: float = 0.0  # the connection is closed before an answer
    hanging: float = 0.0  # no answer ever
    garbled_http: float = 0.0  # status 200 and a body that is not JSON
    garbled: float = 0.0  # a whole HTTP answer whose text is not JSON
    truncated: float = 0.0  # finish reason: cut at the longest allowed answer
    refused: float = 0.0  # finish reason: content filter / blocked prompt
    empty: float = 0.0  # no choices / no candidates
    retry_after_seconds: float | None = None
    max_concurrent: int | None = None  # 429 for every request above this many at once
    seed: int = 0

    def draw(self, generator: random.Random) -> str | None:
        """Name of the fault of this attempt, or None."""
        point = generator.random()
        for name in (
            "too_many",
            "error_500",
            "error_503",
            "dropped",
            "hanging",
            "garbled_http",
            "garbled",
            "truncated",
            "refused",
            "empty",
        ):
            point -= getattr(self, name)
            if point < 0:
                return name
        return None


@dataclass(kw_only=True)
class LlmServer:
    """What runs and what it has seen. Times are seconds since the epoch; digests are of the request's body."""

    answer: Answer
    faults: Faults = Faults()
    latency_seconds: float = 0.0
    required_key: str | None = None  # 401 for any other
    model: str | None = None  # 404 for any other
    reject_parameters: tuple[str, ...] = ()  # 400 that names the parameter when a body has it
    port: int = 0
    attempts: int = 0
    in_flight: int = 0
    peak_in_flight: int = 0
    answered: Counter = field(default_factory=Counter)  # body digest: whole answers sent
    received: list = field(default_factory=list)  # body digests in order of arrival
    statuses: Counter = field(default_factory=Counter)  # outcome of attempts by name
    bodies: list = field(default_factory=list)  # the last hundred bodies, with headers
    prompt_tokens: int = 0  # as reported in usage
    completion_tokens: int = 0

    def __post_init__(self):
        self.generator = random.Random(self.faults.seed)

    @property
    def openai_url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1"

    @property
    def gemini_url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def stats(self) -> dict[str, Any]:
        """Counters as plain JSON; also at GET /stats."""
        names = ("attempts", "in_flight", "peak_in_flight", "prompt_tokens", "completion_tokens")
        return {name: getattr(self, name) for name in names} | {
            "statuses": dict(self.statuses),
            "answered": dict(self.answered),
            "received": self.received,
        }


class _Connection(asyncio.Protocol):
    """One HTTP/1.1 connection: requests one after the other, kept alive."""

    def __init__(self, server: LlmServer):
        self.server = server
        self.buffer = bytearray()

    def connection_made(self, transport):
        self.transport = transport

    def data_received(self, data: bytes):
        self.buffer += data
        end = self.buffer.find(b"\r\n\r\n")
        if end < 0:
            return
        head = bytes(self.buffer[:end]).decode("latin-1").split("\r\n")
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in head[1:])}
        length = int(headers.get("content-length", 0))
        if len(self.buffer) < end + 4 + length:
            return
        body = bytes(self.buffer[end + 4 : end + 4 + length])
        del self.buffer[: end + 4 + length]
        method, path, _ = head[0].split(" ", 2)
        if method == "GET":
            self.reply(200, self.server.stats())
        else:
            self.asked(path, headers, body)

    def asked(self, path: str, headers: dict[str, str], body: bytes):
        server = self.server
        server.attempts += 1
        server.in_flight += 1
        server.peak_in_flight = max(server.peak_in_flight, server.in_flight)
        digest = hashlib.sha256(body).hexdigest()[:16]
        server.received.append(digest)
        server.bodies.append((headers, body))
        del server.bodies[:-100]
        crowded = server.faults.max_concurrent is not None and server.in_flight > server.faults.max_concurrent
        fault = "too_many" if crowded else server.faults.draw(server.generator)
        if fault == "hanging":
            server.in_flight -= 1
            server.statuses["hanging"] += 1
            return
        # A full server says so at once; everything else takes the time of a model.
        delay = 0.0 if fault == "too_many" else server.latency_seconds
        asyncio.get_running_loop().call_later(delay, self.finish, path, headers, body, digest, fault)

    def finish(self, path: str, headers: dict[str, str], body: bytes, digest: str, fault: str | None):
        server = self.server
        server.in_flight -= 1
        if fault == "dropped":
            server.statuses["dropped"] += 1
            self.transport.abort()
            return
        if self.transport.is_closing():
            server.statuses["client_gone"] += 1
            return
        dialect = _gemini if ":generateContent" in path else _openai
        try:
            status, value = dialect(server, path, headers, json.loads(body), fault)
        except Exception as error:  # a defect of the test; a client must not wait for it
            traceback.print_exc()
            fault, status, value = "crashed", 500, {"error": {"message": f"the test server crashed: {error!r}"}}
        server.statuses[fault or str(status)] += 1
        if status == 200 and fault is None:
            server.answered[digest] += 1
        self.reply(status, value if fault != "garbled_http" else None)

    def reply(self, status: int, value: Any):
        body = json.dumps(value).encode() if value is not None else b'{"choices": [{"mess'
        retry = self.server.faults.retry_after_seconds if status == 429 else None
        extra = "" if retry is None else f"retry-after: {retry}\r\n"
        head = f"HTTP/1.1 {status} X\r\ncontent-type: application/json\r\n{extra}content-length: {len(body)}\r\n\r\n"
        self.transport.write(head.encode() + body)


def _status_of(fault: str | None) -> int:
    return {"too_many": 429, "error_500": 500, "error_503": 503}.get(fault or "", 200)


def _text(server: LlmServer, fault: str | None, stage: str, payload: dict[str, Any]) -> str:
    answer = server.answer(stage, samples_in(payload["user"]), payload)
    text = answer if isinstance(answer, str) else json.dumps(answer)
    if fault == "garbled":
        text = "Sure! Here you are: {" + text[: len(text) // 2]
    if fault == "truncated":
        text = text[: len(text) // 2]
    return "" if fault in ("refused", "empty") else text


def _count(server: LlmServer, prompt: str, text: str) -> tuple[int, int]:
    counts = tokens_of(prompt), tokens_of(text)
    server.prompt_tokens += counts[0]
    server.completion_tokens += counts[1]
    return counts


def _openai(
    server: LlmServer, path: str, headers: dict[str, str], body: dict[str, Any], fault: str | None
) -> tuple[int, dict]:
    def error(status: int, message: str, code: str | None = None, param: str | None = None):
        return status, {"error": {"message": message, "type": "test", "code": code, "param": param}}

    if server.required_key and headers.get("authorization") != f"Bearer {server.required_key}":
        return error(401, f"Incorrect API key provided: {headers.get('authorization', '')[7:]}", "invalid_api_key")
    if server.model and body["model"] != server.model:
        return error(404, f"The model `{body['model']}` does not exist", "model_not_found")
    for name in server.reject_parameters:
        if name in body:
            return error(
                400, f"Unsupported parameter: '{name}' is not supported with this model.", "unsupported_parameter", name
            )
    if (status := _status_of(fault)) != 200:
        return error(status, f"made to fail: {fault}")
    system = "\n".join(m["content"] for m in body["messages"] if m["role"] == "system")
    user = "\n".join(m["content"] for m in body["messages"] if m["role"] == "user")
    wanted = body.get("response_format", {}).get("json_schema", {})
    schema = wanted.get("schema")
    payload = {"system": system, "user": user, "schema": schema, "body": body, "model": body["model"]}
    text = _text(server, fault, stage_of(system, user, schema, wanted.get("name")), payload)
    prompt, completion = _count(server, system + user, text)
    reason = {"truncated": "length", "refused": "content_filter"}.get(fault or "", "stop")
    choice = {"index": 0, "finish_reason": reason, "message": {"role": "assistant", "content": text}}
    return 200, {
        "id": f"chatcmpl-{server.attempts}",
        "object": "chat.completion",
        "created": int(time.time()),
        "model": body["model"],
        "choices": [] if fault == "empty" else [choice],
        "usage": {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion},
    }


def _gemini(
    server: LlmServer, path: str, headers: dict[str, str], body: dict[str, Any], fault: str | None
) -> tuple[int, dict]:
    def error(status: int, message: str, name: str):
        return status, {"error": {"code": status, "message": message, "status": name}}

    key = headers.get("x-goog-api-key", "")
    model = path.split("/models/")[1].split(":")[0]
    if server.required_key and key != server.required_key:
        return error(400, "API key not valid. Please pass a valid API key.", "INVALID_ARGUMENT")
    if server.model and model != server.model:
        return error(404, f"models/{model} is not found for API version v1beta", "NOT_FOUND")
    if (status := _status_of(fault)) != 200:
        return error(
            status, f"made to fail: {fault}", {429: "RESOURCE_EXHAUSTED", 503: "UNAVAILABLE"}.get(status, "INTERNAL")
        )
    system = "".join(part["text"] for part in body.get("systemInstruction", {}).get("parts", []))
    user = "".join(part["text"] for content in body["contents"] for part in content["parts"])
    schema = json_schema(body.get("generationConfig", {}).get("responseSchema"))
    payload = {"system": system, "user": user, "schema": schema, "body": body, "model": model}
    text = _text(server, fault, stage_of(system, user, schema, None), payload)
    prompt, completion = _count(server, system + user, text)
    usage = {"promptTokenCount": prompt, "candidatesTokenCount": completion, "totalTokenCount": prompt + completion}
    if fault == "refused":
        return 200, {"promptFeedback": {"blockReason": "SAFETY"}, "usageMetadata": usage, "modelVersion": model}
    reason = "MAX_TOKENS" if fault == "truncated" else "STOP"
    candidate = {"content": {"role": "model", "parts": [{"text": text}]}, "finishReason": reason, "index": 0}
    return 200, {"candidates": [] if fault == "empty" else [candidate], "usageMetadata": usage, "modelVersion": model}


async def _run(server: LlmServer, ready: Callable[[], None], stop: asyncio.Event):
    loop = asyncio.get_running_loop()
    listener = await loop.create_server(lambda: _Connection(server), "127.0.0.1", server.port, backlog=1024)
    server.port = listener.sockets[0].getsockname()[1]
    ready()
    await stop.wait()
    listener.close()


@contextlib.contextmanager
def serve(answer: Answer = by_schema, **settings: Any) -> Iterator[LlmServer]:
    """Runs a server in a thread of this process; settings are `LlmServer`'s (faults, latency_seconds, required_key,
    ...).
    """
    server = LlmServer(answer=answer, **settings)
    loop, ready, stop = asyncio.new_event_loop(), threading.Event(), asyncio.Event()
    thread = threading.Thread(target=loop.run_until_complete, args=(_run(server, ready.set, stop),), daemon=True)
    thread.start()
    if not ready.wait(10):
        raise RuntimeError("the test server did not start")
    try:
        yield server
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join(10)


@dataclass(frozen=True, kw_only=True)
class RemoteServer:
    """A server in another process."""

    port: int
    process: subprocess.Popen

    @property
    def openai_url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1"

    @property
    def gemini_url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def stats(self) -> dict[str, Any]:
        """The server's counters now."""
        with urllib.request.urlopen(f"{self.gemini_url}/stats", timeout=30) as response:
            return json.load(response)


@contextlib.contextmanager
def serve_process(
    answer: str = "tests.llm_server:by_schema", *, faults: Faults = Faults(), latency_seconds: float = 0.0
) -> Iterator[RemoteServer]:
    """Runs a server in a process of its own; `answer` is `module:function` of an `Answer`."""
    settings = ["--answer", answer, "--faults", json.dumps(asdict(faults)), "--latency_seconds", str(latency_seconds)]
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.llm_server", *settings],
        stdout=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).resolve().parents[1],
    )
    try:
        yield RemoteServer(port=int(process.stdout.readline().rsplit(":", 1)[1]), process=process)
    finally:
        process.kill()
        process.wait()


def main():
    """Serves until killed; prints the address as one line."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--answer", default="tests.llm_server:by_schema", help="module:function")
    parser.add_argument("--faults", default="{}", help="JSON of Faults")
    parser.add_argument("--latency_seconds", type=float, default=0.0)
    parser.add_argument("--port", type=int, default=0)
    flags = parser.parse_args()
    module, function = flags.answer.split(":")
    answer = getattr(importlib.import_module(module), function)
    server = LlmServer(
        answer=answer, faults=Faults(**json.loads(flags.faults)), latency_seconds=flags.latency_seconds, port=flags.port
    )
    asyncio.run(_run(server, lambda: print(f"serving at http://127.0.0.1:{server.port}", flush=True), asyncio.Event()))


if __name__ == "__main__":
    main()
