"""Batch APIs: many requests handed in together, answered within a day at a lower price."""

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass
import json
from typing import Any, Protocol, TypeVar

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
_ENDPOINT = "/v1/chat/completions"
_T = TypeVar("_T")
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


async def _first(batches: AsyncIterator[Any], matches: Callable[[Any], bool]) -> Any:
    """The first of the latest thousand batches that matches, or None."""
    looked_at = 0
    async for batch in batches:
        if matches(batch):
            return batch
        looked_at += 1
        if looked_at >= _MOST_BATCHES:
            break
    return None


class OpenAIBatches:
    """Batches of OpenAI: a file of requests is uploaded, and one of answers comes back."""

    def __init__(self, endpoint: Endpoint):
        import openai

        quieten("httpx", "httpcore", "openai")
        self._openai, self._endpoint = openai, endpoint
        self._client = openai.AsyncOpenAI(api_key=endpoint.key, base_url=endpoint.base_url, max_retries=2)

    async def submit(self, tag: str, requests: Sequence[tuple[str, Request]]) -> str:
        """Uploads the requests and starts the batch, with the tag in its metadata."""
        model, without = self._endpoint.model, frozenset({"max_tokens"})
        lines = (
            {"custom_id": name, "method": "POST", "url": _ENDPOINT, "body": chat_body(model, request, without)}
            for name, request in requests
        )
        content = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines).encode()
        file = await self._answer(self._client.files.create(file=(f"{tag}.jsonl", content), purpose="batch"))
        started = self._client.batches.create(
            input_file_id=file.id, endpoint=_ENDPOINT, completion_window="24h", metadata={"tag": tag}
        )
        return (await self._answer(started)).id

    async def find(self, tag: str) -> str | None:
        """Looks through the latest thousand batches of the account."""

        def matches(batch: Any) -> bool:
            return (batch.metadata or {}).get("tag") == tag and batch.status not in ("failed", "cancelled")

        batch = await self._answer(_first(self._client.batches.list(limit=_BATCHES_PER_PAGE), matches))
        return batch and batch.id

    async def poll(self, name: str) -> BatchState:
        """`expired` counts as done in part."""
        batch = await self._answer(self._client.batches.retrieve(name))
        if batch.status in ("completed", "expired"):
            return BatchState(state="done")
        if batch.status in ("failed", "cancelled", "cancelling"):
            errors = batch.errors.data if batch.errors and batch.errors.data else []
            reason = errors[0].message if errors else "no reason given"
            return BatchState(state="failed", detail=f"{batch.status}: {reason}")
        return BatchState(state="running", detail=batch.status)

    async def collect(self, name: str) -> Outcomes:
        """Reads the answer file and the error file."""
        batch = await self._answer(self._client.batches.retrieve(name))
        outcomes: Outcomes = {}
        for file_id in filter(None, (batch.output_file_id, batch.error_file_id)):
            content = await self._answer(self._client.files.content(file_id))
            for line in filter(str.strip, content.text.splitlines()):
                row = json.loads(line)
                outcome = self._outcome(row.get("response") or {})
                if outcome is not None:
                    outcomes[row["custom_id"]] = outcome
        return outcomes

    def _outcome(self, response: dict[str, Any]) -> Reply | CallFailed | None:
        status = response.get("status_code") or 0
        if status == 200:
            try:
                return read_completion(self._endpoint, None, response["body"])
            except CallFailed as failed:
                return failed
        if 400 <= status < 500 and status != 429:
            detail = str(((response.get("body") or {}).get("error") or {}).get("message", "no reason given"))
            return CallFailed("rejected", detail[:_SHOWN_CHARACTERS])
        return None

    async def close(self) -> None:
        """Closes its connections."""
        await self._client.close()

    async def _answer(self, call: Awaitable[_T]) -> _T:
        try:
            return await call
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
        started = self._client.aio.batches.create(
            model=self._endpoint.model, src=inlined, config=types.CreateBatchJobConfig(display_name=tag)
        )
        return (await self._answer(started)).name

    async def find(self, tag: str) -> str | None:
        """Looks through the latest thousand batches."""

        def matches(job: Any) -> bool:
            return job.display_name == tag and job.state.name not in ("JOB_STATE_FAILED", "JOB_STATE_CANCELLED")

        async def search() -> Any:
            return await _first(await self._client.aio.batches.list(config={"page_size": _BATCHES_PER_PAGE}), matches)

        job = await self._answer(search())
        return job and job.name

    async def poll(self, name: str) -> BatchState:
        """`EXPIRED` and `PARTIALLY_SUCCEEDED` count as done in part."""
        job = await self._answer(self._client.aio.batches.get(name=name))
        state = job.state.name if job.state else ""
        if state in ("JOB_STATE_SUCCEEDED", "JOB_STATE_PARTIALLY_SUCCEEDED", "JOB_STATE_EXPIRED"):
            return BatchState(state="done")
        if state in ("JOB_STATE_FAILED", "JOB_STATE_CANCELLED"):
            return BatchState(state="failed", detail=str(job.error.message if job.error else state))
        return BatchState(state="running", detail=state)

    async def collect(self, name: str) -> Outcomes:
        """Outcomes by the id in their metadata."""
        job = await self._answer(self._client.aio.batches.get(name=name))
        outcomes: Outcomes = {}
        for inlined in (job.dest.inlined_responses if job.dest else None) or ():
            key = (inlined.metadata or {}).get("id")
            if key is None or inlined.response is None:
                continue
            try:
                outcomes[key] = read_response(self._endpoint, None, inlined.response)
            except CallFailed as failed:
                outcomes[key] = failed
        return outcomes

    async def close(self) -> None:
        """Closes its connections."""
        await self._client.aio.aclose()
        await self._session.close()

    async def _answer(self, call: Awaitable[_T]) -> _T:
        try:
            return await call
        except self._errors.APIError as error:
            raise _refused(self._endpoint, int(error.code), str(error.message)) from None
        except self._transport_errors as error:
            raise transport_failure(error, self._endpoint.url) from None
