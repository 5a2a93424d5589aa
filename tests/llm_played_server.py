"""A language model server on loopback that behaves as a test specifies, and a run of the engine against it.

A `Behaviour` answers one request at a time; `play` asks it for `DOCUMENTS` documents and returns the outcomes, the
messages and what was billed.
"""

import asyncio
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
import json
import logging
import re
from typing import Any

from diversity_jax.core.errors import InputError
from diversity_jax.llm import BudgetConfig, CallFailed, EndpointConfig, Engine, EngineConfig, Request, read_json_answer

DOCUMENTS = 40
KEY = "sk-secret-0123456789abcdef"
SECRET = "header-secret-42"
ANSWER = {"subject": "physics"}
SCHEMA = {
    "type": "object",
    "properties": {"subject": {"type": "string"}},
    "required": ["subject"],
    "additionalProperties": False,
}
INPUT_PRICE, OUTPUT_PRICE = 10.0, 40.0  # dollars per million tokens
PROMPT_TOKENS, COMPLETION_TOKENS = 100, 20
_LATENCY_SECONDS = 0.02  # of answers; refusals come at once
Response = tuple[int, Any] | tuple[int, Any, Mapping[str, str]]


@dataclass
class Asked:
    """A request as it came; `number` counts requests from 1, `answered` the answers sent before it."""

    number: int
    answered: int
    document: int
    seen: int  # requests for the same document before
    path: str
    headers: Mapping[str, str]
    body: Mapping[str, Any]

    def has(self, *names: str) -> bool:
        """Whether the body has one of the fields."""
        return any(name in self.body for name in names)

    @property
    def roles(self) -> list[str]:
        return [message["role"] for message in self.body["messages"]]


@dataclass(frozen=True, kw_only=True)
class Behaviour:
    """A behaviour, and how a run against it has to end.

    Attributes:
      title: what the server does.
      respond: its response; JSON values are encoded, bytes are sent as they are.
      failed: failed calls by reason; all others are answered, unless the run ends.
      ends: pattern of the line with which the run ends; None where every call is tried.
      says: pattern of what is logged or stands in a failure; None asks for no word about it.
      attempts: most requests sent.
      dollars: what the server bills for a whole answer; None is the price of its usual tokens.
      listed: what the server's list of models says of the model; None where it has no list.
      budget, endpoint, config: of the engine.
    """

    title: str
    respond: Callable[[Asked], Response]
    failed: Mapping[str, int] = field(default_factory=dict)
    ends: str | None = None
    says: str | None = None
    attempts: int = DOCUMENTS
    dollars: float | None = None
    provider: str = "openai"
    base: str = "/v1"
    budget: Mapping[str, Any] = field(default_factory=dict)
    endpoint: EndpointConfig = field(default_factory=EndpointConfig)
    config: Mapping[str, Any] = field(default_factory=dict)
    listed: Mapping[str, Any] | None = None

    @property
    def bill(self) -> float:
        """Dollars for a whole answer."""
        usual = (PROMPT_TOKENS * INPUT_PRICE + COMPLETION_TOKENS * OUTPUT_PRICE) / 1e6
        return usual if self.dollars is None else self.dollars


@dataclass(kw_only=True)
class Played:
    """What came of a behaviour."""

    outcomes: list[Any]
    port: int
    attempts: int
    billed: float
    spent: float
    messages: list[str]

    @property
    def failed(self) -> Counter:
        return Counter(
            outcome.reason for outcome in self.outcomes if isinstance(outcome, CallFailed) and not outcome.ends_run
        )

    @property
    def answered(self) -> int:
        return sum(hasattr(outcome, "text") for outcome in self.outcomes)

    @property
    def end(self) -> str | None:
        """The line with which the run ended, if it did before every call was tried."""
        ends = (
            outcome
            for outcome in self.outcomes
            if isinstance(outcome, InputError) or getattr(outcome, "ends_run", False)
        )
        return next(map(str, ends), None)


def chat(content: Any = None, finish: Any = "stop", usage: Any = None, **changes: Any) -> dict[str, Any]:
    """A whole chat completion, with changes of its choice (`message_...`) or of itself."""
    tokens = {"prompt_tokens": PROMPT_TOKENS, "completion_tokens": COMPLETION_TOKENS}
    choice: dict[str, Any] = {"index": 0, "message": {"role": "assistant"}, "finish_reason": finish}
    choice["message"]["content"] = json.dumps(ANSWER) if content is None else content
    choice["message"] |= {name[8:]: value for name, value in changes.items() if name.startswith("message_")}
    if finish == "missing":
        del choice["finish_reason"]
    completion = {"choices": [choice], "usage": tokens if usage is None else usage, "model": "model"}
    return completion | {name: value for name, value in changes.items() if not name.startswith("message_")}


def gemini(parts: Any = None, finish: str = "STOP", usage: Any = None, **changes: Any) -> dict[str, Any]:
    """A whole response of `generateContent`."""
    tokens = {"promptTokenCount": PROMPT_TOKENS, "candidatesTokenCount": COMPLETION_TOKENS, "totalTokenCount": 120}
    content = {"role": "model", "parts": [{"text": json.dumps(ANSWER)}] if parts is None else parts}
    completion = {"candidates": [{"content": content, "finishReason": finish}], "usageMetadata": usage or tokens}
    return completion | changes


def refusal(status: int, message: str, code: Any = None, kind: str = "test", param: str | None = None) -> Response:
    """A refusal in OpenAI's form."""
    return status, {"error": {"message": message, "type": kind, "code": code, "param": param}}


def sometimes(wrong: Callable[[Asked], bool], bad: Response, good: Any = None) -> Callable[[Asked], Response]:
    """Answers with `bad` where `wrong` says so."""
    return lambda asked: bad if wrong(asked) else (200, chat() if good is None else good)


def first_time(*documents: int) -> Callable[[Asked], bool]:
    """Whether a document is asked for the first time; of all documents where none is named."""
    return lambda asked: not asked.seen and (not documents or asked.document in documents)


def always(*documents: int) -> Callable[[Asked], bool]:
    """Whether one of these documents is asked for."""
    return lambda asked: asked.document in documents


def unsupported(name: str, why: str) -> Callable[[Asked], Response]:
    """Refuses bodies with a field."""
    return sometimes(lambda asked: asked.has(name), refusal(400, why, "unsupported_parameter", param=name))


def play(behaviour: Behaviour, cache: str | None = None, documents: int = DOCUMENTS, port: int = 0) -> Played:
    """Runs the engine against a behaviour."""
    return asyncio.run(_play(behaviour, cache, documents, port))


class _Listener(logging.Handler):
    def __init__(self) -> None:
        super().__init__(logging.INFO)
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())


class _PlayedServer:
    """Speaks HTTP/1.1 for one behaviour."""

    def __init__(self, behaviour: Behaviour):
        self.behaviour = behaviour
        self.number = self.answered = self.billed = 0
        self.seen: Counter[int] = Counter()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while head := (await reader.readuntil(b"\r\n\r\n")).decode("latin-1"):
                lines = head.split("\r\n")
                headers = {
                    name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines[1:])
                }
                body = await reader.readexactly(int(headers.get("content-length", 0)))
                method, path, _ = lines[0].split(" ", 2)
                status, value, *more = self.respond(path, headers, body) if method == "POST" else self.models()
                if status == 200:
                    await asyncio.sleep(_LATENCY_SECONDS)
                content = value if isinstance(value, bytes) else json.dumps(value).encode()
                extra = {"content-type": "application/json", "content-length": str(len(content))} | dict(*more)
                fields = "".join(f"{name}: {text}\r\n" for name, text in extra.items())
                writer.write(f"HTTP/1.1 {status} X\r\n{fields}\r\n".encode() + content)
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        writer.close()

    def models(self) -> Response:
        listed = self.behaviour.listed
        return (404, {}) if listed is None else (200, {"object": "list", "data": [{"id": "model", **listed}]})

    def respond(self, path: str, headers: Mapping[str, str], body: bytes) -> Response:
        self.number += 1
        document = int(re.search(rb"document (\d+)", body).group(1))
        facts = {"number": self.number, "answered": self.answered, "document": document, "seen": self.seen[document]}
        self.seen[document] += 1
        response = self.behaviour.respond(Asked(**facts, path=path, headers=headers, body=json.loads(body)))
        value = response[1]
        is_completion = (
            response[0] == 200 and isinstance(value, dict) and bool(value.keys() & {"choices", "candidates"})
        )
        self.answered += is_completion
        self.billed += is_completion and bool(value.keys() & {"usage", "usageMetadata"})
        return response


async def _play(behaviour: Behaviour, cache: str | None, documents: int, port: int) -> Played:
    server = _PlayedServer(behaviour)
    listening = await asyncio.start_server(server.serve, "127.0.0.1", port)
    port = listening.sockets[0].getsockname()[1]
    url = f"http://127.0.0.1:{port}{behaviour.base}"
    settings = {"max_in_flight": 8, "backoff_seconds": 0.01, "progress": "off", "ledger": cache} | behaviour.config
    engine = Engine(
        f"{behaviour.provider}:model",
        base_url=url,
        endpoint=behaviour.endpoint,
        config=EngineConfig(**settings),
        budget=BudgetConfig(**{"input_price": INPUT_PRICE, "output_price": OUTPUT_PRICE} | behaviour.budget),
    )
    requests = [
        Request(stage="ask", system="Name the subject.", user=f"document {n}", schema=SCHEMA, max_output_tokens=200)
        for n in range(documents)
    ]
    listener, logger = _Listener(), logging.getLogger("diversity_jax.llm")
    level = logger.level
    logger.addHandler(listener)
    logger.setLevel(logging.INFO)
    try:
        async with listening, engine:
            outcomes = await asyncio.gather(*map(engine.complete, requests), return_exceptions=True)
    finally:
        logger.removeHandler(listener)
        logger.setLevel(level)
    return Played(
        outcomes=outcomes,
        port=port,
        attempts=server.number,
        billed=server.billed * behaviour.bill,
        spent=engine.stats.spent.dollars,
        messages=[*listener.lines, *(str(outcome) for outcome in outcomes if isinstance(outcome, Exception))],
    )


def right(text: str) -> bool:
    """Whether an answer is the one that the server meant."""
    value = read_json_answer(text, SCHEMA).value
    return value == ANSWER or "\u2028" in value["subject"]
