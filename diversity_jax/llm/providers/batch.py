"""Batch APIs of OpenAI and Gemini: many requests submitted together, answered within a day at a lower price."""

from collections.abc import AsyncIterable, AsyncIterator, Callable, Iterator, Mapping
import contextlib
from dataclasses import dataclass
import json
from typing import Any, Protocol

from diversity_jax.core.errors import InputError
from diversity_jax.llm.providers.answers import ModelAnswer, as_mapping, read_chat, read_gemini
from diversity_jax.llm.providers.base import connect, quieten, transport_failure
from diversity_jax.llm.providers.endpoint import FEATURES, Endpoint
from diversity_jax.llm.providers.google_genai import generation_config, open_client
from diversity_jax.llm.providers.openai import chat_body, limits_of
from diversity_jax.llm.providers.outcomes import Refused, Reply, Transient, parse_body, read_error
from diversity_jax.llm.types import Request

_BATCHES_PER_PAGE, _MOST_BATCHES = 100, 1000  # looked through for a tag
_TIMEOUT_SECONDS = 300.0  # a batch of Gemini is one request and one response
_STATES = {
    # Also of a cancelled batch the answers that it has by then are there, and billed.
    **dict.fromkeys(("completed", "expired", "cancelled"), "done"),
    **dict.fromkeys(("SUCCEEDED", "PARTIALLY_SUCCEEDED", "EXPIRED", "CANCELLED"), "done"),
    **dict.fromkeys(("failed", "FAILED"), "failed"),
}  # all other states, such as `cancelling`, are of a running batch
Result = Reply | Refused | Transient  # of one request in a batch
# Features that a batch of another process is taken to have been sent with.
_SENT_UNKNOWN = frozenset(FEATURES) - {"max_tokens"}


@dataclass(frozen=True, kw_only=True)
class BatchState:
    """State of a batch: `running`, `done` (also in part), or `failed` with the provider's reason."""

    state: str
    detail: str = ""


class BatchProvider(Protocol):
    """The batches of one model.

    Every method raises InputError where the provider refuses it, and `Transient` where another attempt may succeed.

    Attributes:
      most_requests, most_bytes: of one batch.
    """

    most_requests: int
    most_bytes: int

    async def submit(self, tag: str, requests: Mapping[str, Request]) -> str:
        """Submits requests by id under a tag; returns the provider's name of the batch."""

    async def find(self, tag: str) -> str | None:
        """Name of the batch that was submitted under a tag, or None: for a process that was killed before the name was
        stored.
        """

    async def poll(self, name: str) -> BatchState:
        """State of a batch."""

    async def collect(self, name: str, requests: Mapping[str, Request]) -> dict[str, Result]:
        """Results by id; missing ones were not answered, and not paid for. `requests` serve to estimate missing token
        counts, as far as they are known.
        """

    async def close(self) -> None:
        """Closes the connections."""


def open_batches(endpoint: Endpoint) -> BatchProvider:
    """The batches of a model; those of both Gemini providers go through google-genai.

    Raises:
      InputError: missing SDK or API key, or a bad name.
    """
    return connect("batches", endpoint)


def _refused(endpoint: Endpoint, status: int, headers: Mapping[str, str], content: Any) -> Exception:
    failure = endpoint.failure(read_error(status, headers, content))
    if isinstance(failure, Refused):
        if failure.scope in ("account", "key", "model"):
            return endpoint.explain(failure, 1)
        why = f"{endpoint.role}: {endpoint.url} refuses the batch ({failure.detail})"
        return InputError(f"{why}; correct the settings, or set batch=False")
    return failure


async def _latest(batches: AsyncIterable[Any]) -> AsyncIterator[Any]:
    seen = 0
    async for batch in batches:
        yield batch
        seen += 1
        if seen >= _MOST_BATCHES:
            return


def _state(status: str, reason: str | None) -> BatchState:
    state = _STATES.get(status, "running")
    return BatchState(state=state, detail=f"{status}: {reason or 'no reason given'}" if state == "failed" else status)


class _Lines:
    """Reads the answers of batches, as `Endpoint.read` reads live ones."""

    def __init__(self, endpoint: Endpoint, reader: Callable[[Any], ModelAnswer]):
        self._endpoint, self._reader = endpoint, reader
        self.sent: dict[str, frozenset[str]] = {}  # features, by name of the batch

    def read(self, name: str, request: Request | None, status: int, body: Any) -> Result:
        """The result in a line; features that it refuses are left out from now on."""
        try:
            sent = self.sent.get(name, _SENT_UNKNOWN)
            return self._endpoint.read(request, sent, status, {}, body, self._reader)
        except (Refused, Transient) as failure:
            return failure


class OpenAIBatches:
    """Batches of OpenAI: a file of requests is uploaded, and one of answers comes back."""

    most_requests, most_bytes = 50_000, 150_000_000

    def __init__(self, endpoint: Endpoint):
        import openai

        quieten("httpx", "httpx2", "httpcore", "httpcore2", "openai")
        self._openai, self._endpoint = openai, endpoint
        self._lines = _Lines(endpoint, read_chat)
        query = dict(part.partition("=")[::2] for part in endpoint.query.split("&") if part)
        self._client: Any = openai.AsyncOpenAI(
            api_key=endpoint.key,
            base_url=endpoint.url,
            max_retries=2,
            default_headers=endpoint.key_headers(),
            default_query=query or None,
        )

    async def submit(self, tag: str, requests: Mapping[str, Request]) -> str:
        """Uploads the requests and starts the batch, with the tag in its metadata."""
        endpoint, url, sent = self._endpoint, "/v1/chat/completions", frozenset[str]()
        lines = []
        for name, request in requests.items():
            features = endpoint.features(request, limits=limits_of(endpoint, batch=True))
            sent |= features
            line = {"custom_id": name, "method": "POST", "url": url, "body": chat_body(endpoint, request, features)}
            lines.append(json.dumps(line, ensure_ascii=False) + "\n")
        content = "".join(lines).encode(errors="replace")
        with self._explained_errors():
            file = await self._client.files.create(file=(f"{tag}.jsonl", content), purpose="batch")
            batch = await self._client.batches.create(
                input_file_id=file.id, endpoint=url, completion_window="24h", metadata={"tag": tag}
            )
        self._lines.sent[batch.id] = sent
        return batch.id

    async def find(self, tag: str) -> str | None:
        """Searches the latest thousand batches of the account."""
        with self._explained_errors():
            async for batch in _latest(self._client.batches.list(limit=_BATCHES_PER_PAGE)):
                if (batch.metadata or {}).get("tag") == tag and _STATES.get(batch.status) != "failed":
                    return batch.id
        return None

    async def poll(self, name: str) -> BatchState:
        """`expired` and `cancelled` count as done in part."""
        with self._explained_errors():
            batch = await self._client.batches.retrieve(name)
        errors = batch.errors.data if batch.errors and batch.errors.data else []
        return _state(batch.status, errors[0].message if errors else None)

    async def collect(self, name: str, requests: Mapping[str, Request]) -> dict[str, Result]:
        """Reads the answer file and the error file."""
        outcomes: dict[str, Result] = {}
        with self._explained_errors():
            batch = await self._client.batches.retrieve(name)
            files = [file for file in (batch.output_file_id, batch.error_file_id) if file]
            contents = [(await self._client.files.content(file)).content for file in files]
        # Answers may hold other characters at which Python splits lines.
        for line in b"\n".join(contents).split(b"\n"):
            row = parse_body(line)
            if not isinstance(row, dict) or not isinstance(response := row.get("response"), dict):
                continue  # not answered: expired, or cut off by the provider
            key, status = str(row.get("custom_id")), response.get("status_code")
            if isinstance(status, int):
                outcomes[key] = self._lines.read(name, requests.get(key), status, response.get("body") or {})
        return outcomes

    async def close(self) -> None:
        await self._client.close()

    @contextlib.contextmanager
    def _explained_errors(self) -> Iterator[None]:
        try:
            yield
        except self._openai.APIStatusError as error:
            response = error.response
            raise _refused(self._endpoint, error.status_code, response.headers, response.content) from None
        except self._openai.APIConnectionError as error:
            raise Transient("unreachable", f"{self._endpoint.url}: {error.__cause__ or error}") from None
        except self._openai.OpenAIError as error:
            raise Transient("garbled", f"{self._endpoint.url}: {self._endpoint.shown(str(error))}") from None


class GeminiBatches:
    """Batches of Gemini through google-genai, with the requests inside the call."""

    most_requests, most_bytes = 50_000, 15_000_000

    def __init__(self, endpoint: Endpoint):
        import aiohttp
        from google.genai import errors, types

        endpoint.refuse("body")  # the SDK would put it into the batch, not into its requests
        self._errors, self._types, self._transport_errors = errors, types, (aiohttp.ClientError, OSError, ValueError)
        self._endpoint = endpoint
        self._lines = _Lines(endpoint, read_gemini)
        self._client, self._session = open_client(endpoint, _TIMEOUT_SECONDS)

    async def submit(self, tag: str, requests: Mapping[str, Request]) -> str:
        """Submits the requests, with the tag as the batch's display name and each id in its request's metadata."""
        types, sent, inlined = self._types, frozenset[str](), []
        for name, request in requests.items():
            features = self._endpoint.features(request)
            sent |= features
            user, config = generation_config(self._endpoint, request, features)
            contents = [types.Content(role="user", parts=[types.Part(text=user)])]
            inlined.append(types.InlinedRequest(contents=contents, metadata={"id": name}, config=config))
        with self._explained_errors():
            job = await self._client.aio.batches.create(
                model=self._endpoint.model, src=inlined, config=types.CreateBatchJobConfig(display_name=tag)
            )
        self._lines.sent[job.name] = sent
        return job.name

    async def find(self, tag: str) -> str | None:
        """Searches the latest thousand batches."""
        with self._explained_errors():
            pager = await self._client.aio.batches.list(config={"page_size": _BATCHES_PER_PAGE})
            async for job in _latest(pager):
                state = str(job.state.name).removeprefix("JOB_STATE_") if job.state else ""
                if job.display_name == tag and _STATES.get(state) != "failed":
                    return job.name
        return None

    async def poll(self, name: str) -> BatchState:
        """`EXPIRED`, `CANCELLED` and `PARTIALLY_SUCCEEDED` count as done in part."""
        batch = await self._get(name)
        state = str(as_mapping(batch.get("metadata")).get("state") or batch.get("state") or "")
        error = as_mapping(batch.get("error")).get("message")
        return _state(state.removeprefix("BATCH_STATE_").removeprefix("JOB_STATE_"), error)

    async def collect(self, name: str, requests: Mapping[str, Request]) -> dict[str, Result]:
        """Results by the id in their metadata."""
        batch = await self._get(name)
        output = as_mapping(batch.get("response")) or as_mapping(as_mapping(batch.get("metadata")).get("output"))
        rows = output.get("inlinedResponses")
        rows = rows.get("inlinedResponses") if isinstance(rows, dict) else rows
        outcomes: dict[str, Result] = {}
        for row in map(as_mapping, rows if isinstance(rows, list) else ()):
            key = str(as_mapping(row.get("metadata")).get("id"))
            if row.get("response") or row.get("error"):
                outcomes[key] = self._lines.read(name, requests.get(key), 200, row.get("response") or row)
        return outcomes

    async def close(self) -> None:
        await self._client.aio.aclose()
        await self._session.close()

    async def _get(self, name: str) -> Mapping[str, Any]:
        """A batch as JSON: the SDK's types refuse all of its answers for one unknown field of one of them."""
        url = f"{self._endpoint.url}/v1beta/{name}"
        headers = {"x-goog-api-key": self._endpoint.key} | self._endpoint.headers
        with self._explained_errors():
            async with self._session.get(url, headers=headers) as response:
                content = await response.read()
        if response.status != 200:
            raise _refused(self._endpoint, response.status, response.headers, content)
        batch = parse_body(content)
        if not isinstance(batch, dict):
            raise self._endpoint.garbled()
        return batch

    @contextlib.contextmanager
    def _explained_errors(self) -> Iterator[None]:
        try:
            yield
        except self._errors.APIError as error:
            headers = getattr(error.response, "headers", None) or {}
            raise _refused(self._endpoint, int(error.code), headers, error.details) from None
        except self._transport_errors as error:
            raise transport_failure(error, self._endpoint.url) from None
