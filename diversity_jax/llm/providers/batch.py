"""Batch APIs: many requests handed in together, answered within a day at a lower price."""

from collections.abc import AsyncIterable, AsyncIterator, Callable, Iterator, Sequence
import contextlib
from dataclasses import dataclass
import json
from typing import Any, Protocol

from diversity_jax.core.errors import InputError
from diversity_jax.llm.providers.base import (
    Endpoint,
    Rejected,
    Reply,
    Transient,
    connect,
    quieten,
    retry_after,
    transport_failure,
)
from diversity_jax.llm.providers.google_genai import generation_config, open_client, read_response
from diversity_jax.llm.providers.openai import chat_body, read_completion
from diversity_jax.llm.types import CallFailed, Request

_BATCHES_PER_PAGE, _MOST_BATCHES = 100, 1000  # looked through for a tag
_SHOWN_CHARACTERS = 160
_TIMEOUT_SECONDS = 300.0  # a batch of Gemini goes out and comes back in one piece
_STATES = {
    **dict.fromkeys(("completed", "expired"), "done"),
    **dict.fromkeys(("failed", "cancelled", "cancelling"), "failed"),
    **dict.fromkeys(("JOB_STATE_SUCCEEDED", "JOB_STATE_PARTIALLY_SUCCEEDED", "JOB_STATE_EXPIRED"), "done"),
    **dict.fromkeys(("JOB_STATE_FAILED", "JOB_STATE_CANCELLED"), "failed"),
}  # all other states are of a running batch
Outcomes = dict[str, Reply | CallFailed]


@dataclass(frozen=True, kw_only=True)
class BatchState:
    """The state of a batch: `running`, `done` (also in part), or `failed` with the provider's reason."""

    state: str
    detail: str = ""


class BatchProvider(Protocol):
    """The batches of one model.

    Every method raises InputError where the provider refuses for good, and `Transient` where another attempt may
    succeed.
    """

    async def submit(self, tag: str, requests: Sequence[tuple[str, Request]]) -> str:
        """Hands in (id, request) pairs under a tag; returns the provider's name of the batch."""

    async def find(self, tag: str) -> str | None:
        """Name of the batch that was handed in under a tag, or None: so that a process killed before it wrote the name
        down pays once.
        """

    async def poll(self, name: str) -> BatchState:
        """The state of a batch."""

    async def collect(self, name: str) -> Outcomes:
        """Outcomes by id; what is missing was not answered, and not paid for."""

    async def close(self) -> None:
        """Closes its connections."""


def open_batches(name: str, *, base_url: str | None) -> BatchProvider:
    """Opens the batches of `provider:model`; both Gemini providers go through google-genai.

    Raises:
      InputError: missing SDK or API key, or a bad name.
    """
    return connect("batches", Endpoint(name, base_url, "generator"))


def _refused(endpoint: Endpoint, status: int, message: str, retry_after_seconds: float | None = None) -> Exception:
    failure = endpoint.failure(status, message, retry_after_seconds=retry_after_seconds)
    if not isinstance(failure, Rejected):
        return failure
    return InputError(f"batch: {endpoint.url} refuses it ({failure.detail}); correct the settings, or set batch=False")


async def _latest(batches: AsyncIterable[Any]) -> AsyncIterator[Any]:
    """The latest thousand batches."""
    seen = 0
    async for batch in batches:
        yield batch
        seen += 1
        if seen >= _MOST_BATCHES:
            return


def _state(status: str, reason: str | None) -> BatchState:
    state = _STATES.get(status, "running")
    return BatchState(state=state, detail=f"{status}: {reason or 'no reason given'}" if state == "failed" else status)


def _outcome(read: Callable[[Endpoint, None, Any], Reply], endpoint: Endpoint, response: Any) -> Reply | CallFailed:
    try:
        return read(endpoint, None, response)
    except CallFailed as failed:
        return failed


class OpenAIBatches:
    """Batches of OpenAI: a file of requests is uploaded, and one of answers comes back."""

    def __init__(self, endpoint: Endpoint):
        import openai

        quieten("httpx", "httpcore", "openai")
        self._openai, self._endpoint = openai, endpoint
        self._client: Any = openai.AsyncOpenAI(api_key=endpoint.key, base_url=endpoint.base_url, max_retries=2)

    async def submit(self, tag: str, requests: Sequence[tuple[str, Request]]) -> str:
        """Uploads the requests and starts the batch, with the tag in its metadata."""
        model, url, without = self._endpoint.model, "/v1/chat/completions", frozenset({"max_tokens"})
        lines = (
            {"custom_id": name, "method": "POST", "url": url, "body": chat_body(model, request, without)}
            for name, request in requests
        )
        content = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines).encode()
        with self._explained_errors():
            file = await self._client.files.create(file=(f"{tag}.jsonl", content), purpose="batch")
            batch = await self._client.batches.create(
                input_file_id=file.id, endpoint=url, completion_window="24h", metadata={"tag": tag}
            )
        return batch.id

    async def find(self, tag: str) -> str | None:
        """Looks through the latest thousand batches of the account."""
        with self._explained_errors():
            async for batch in _latest(self._client.batches.list(limit=_BATCHES_PER_PAGE)):
                if (batch.metadata or {}).get("tag") == tag and _STATES.get(batch.status) != "failed":
                    return batch.id
        return None

    async def poll(self, name: str) -> BatchState:
        """`expired` counts as done in part."""
        with self._explained_errors():
            batch = await self._client.batches.retrieve(name)
        errors = batch.errors.data if batch.errors and batch.errors.data else []
        return _state(batch.status, errors[0].message if errors else None)

    async def collect(self, name: str) -> Outcomes:
        """Reads the answer file and the error file."""
        outcomes: Outcomes = {}
        with self._explained_errors():
            batch = await self._client.batches.retrieve(name)
            files = [name for name in (batch.output_file_id, batch.error_file_id) if name]
            texts = [(await self._client.files.content(name)).text for name in files]
        for line in filter(str.strip, "\n".join(texts).splitlines()):
            row = json.loads(line)
            response = row.get("response") or {}
            status, body = response.get("status_code") or 0, response.get("body") or {}
            if status == 200:
                outcomes[row["custom_id"]] = _outcome(read_completion, self._endpoint, body)
            elif 400 <= status < 500 and status != 429:
                detail = str((body.get("error") or {}).get("message", "no reason given"))
                outcomes[row["custom_id"]] = CallFailed("rejected", detail[:_SHOWN_CHARACTERS])
        return outcomes

    async def close(self) -> None:
        """Closes its connections."""
        await self._client.close()

    @contextlib.contextmanager
    def _explained_errors(self) -> Iterator[None]:
        try:
            yield
        except self._openai.APIStatusError as error:
            seconds = retry_after(error.response.headers)
            raise _refused(self._endpoint, error.status_code, str(error.message), seconds) from None
        except self._openai.APIConnectionError as error:
            raise Transient("unreachable", f"{self._endpoint.url}: {error.__cause__ or error}") from None


class GeminiBatches:
    """Batches of Gemini through google-genai, with the requests inside the call."""

    def __init__(self, endpoint: Endpoint):
        import aiohttp
        from google.genai import errors, types

        self._errors, self._types, self._transport_errors = errors, types, (aiohttp.ClientError, OSError, ValueError)
        self._endpoint = endpoint
        self._client, self._session = open_client(endpoint, _TIMEOUT_SECONDS)

    async def submit(self, tag: str, requests: Sequence[tuple[str, Request]]) -> str:
        """Hands in the requests, with the tag as the batch's display name; each carries its id in its metadata."""
        types = self._types
        inlined = [
            types.InlinedRequest(
                contents=[types.Content(role="user", parts=[types.Part(text=request.user)])],
                metadata={"id": name},
                config=generation_config(request),
            )
            for name, request in requests
        ]
        with self._explained_errors():
            job = await self._client.aio.batches.create(
                model=self._endpoint.model, src=inlined, config=types.CreateBatchJobConfig(display_name=tag)
            )
        return job.name

    async def find(self, tag: str) -> str | None:
        """Looks through the latest thousand batches."""
        with self._explained_errors():
            pager = await self._client.aio.batches.list(config={"page_size": _BATCHES_PER_PAGE})
            async for job in _latest(pager):
                if job.display_name == tag and _STATES.get(job.state.name) != "failed":
                    return job.name
        return None

    async def poll(self, name: str) -> BatchState:
        """`EXPIRED` and `PARTIALLY_SUCCEEDED` count as done in part."""
        with self._explained_errors():
            job = await self._client.aio.batches.get(name=name)
        return _state(job.state.name if job.state else "", str(job.error.message) if job.error else None)

    async def collect(self, name: str) -> Outcomes:
        """Outcomes by the id in their metadata."""
        with self._explained_errors():
            job = await self._client.aio.batches.get(name=name)
        return {
            inlined.metadata["id"]: _outcome(read_response, self._endpoint, inlined.response)
            for inlined in (job.dest.inlined_responses if job.dest else None) or ()
            if "id" in (inlined.metadata or {}) and inlined.response is not None
        }

    async def close(self) -> None:
        """Closes its connections."""
        await self._client.aio.aclose()
        await self._session.close()

    @contextlib.contextmanager
    def _explained_errors(self) -> Iterator[None]:
        try:
            yield
        except self._errors.APIError as error:
            raise _refused(self._endpoint, int(error.code), str(error.message)) from None
        except self._transport_errors as error:
            raise transport_failure(error, self._endpoint.url) from None
