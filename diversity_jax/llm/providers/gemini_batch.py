"""Batches of Gemini through google-genai, with the requests inside the call."""

from collections.abc import Awaitable, Sequence
from typing import Any, TypeVar

from diversity_jax.core.errors import InputError
from diversity_jax.llm.providers.base import (
    Address,
    Answer,
    Rejected,
    Transient,
    Usage,
    failure_of,
    key_from_environment,
    quieten,
)
from diversity_jax.llm.providers.batch import BatchState
from diversity_jax.llm.providers.google_generativeai import KEY_VARIABLES, PUBLIC_URL, read_ending
from diversity_jax.llm.providers.google_schema import gemini_schema
from diversity_jax.llm.providers.http import client_for
from diversity_jax.llm.types import CallFailed, Request

_LISTED = 1000
_TIMEOUT_MILLISECONDS = 300_000  # a batch goes out and comes back in one piece
_T = TypeVar("_T")


class GeminiBatches:
    """Batches of one Gemini model. The key comes from GEMINI_API_KEY or GOOGLE_API_KEY."""

    def __init__(self, model: str, *, base_url: str | None):
        from google import genai
        from google.genai import errors, types

        try:
            import httpx2 as http
        except ImportError:
            import httpx as http

        quieten("httpx", "httpx2", "httpcore", "google_genai")
        self._errors, self._types = errors, types
        judge = f"gemini:{model}"
        key = key_from_environment(judge, KEY_VARIABLES, needed=base_url is None)
        self._address = Address(judge=judge, url=base_url or PUBLIC_URL, key_variables=KEY_VARIABLES, key=key)
        # A client of ours: left to itself the library takes aiohttp where that is installed, whose failures are others.
        options = types.HttpOptions(
            base_url=base_url, httpx_async_client=client_for(http, self._address.url), timeout=_TIMEOUT_MILLISECONDS
        )
        self._client = genai.Client(api_key=key, vertexai=False, http_options=options)
        self._model, self._usage = model, Usage(judge)

    async def submit(self, tag: str, requests: Sequence[tuple[str, Request]]) -> str:
        """Hands in the requests, with the tag as the batch's display name; each carries its id in its metadata."""
        types = self._types
        inlined = [
            types.InlinedRequest(
                contents=[types.Content(role="user", parts=[types.Part(text=request.user)])],
                metadata={"id": name},
                config=self._config(request),
            )
            for name, request in requests
        ]
        made = self._client.aio.batches.create(
            model=self._model, src=inlined, config=types.CreateBatchJobConfig(display_name=tag)
        )
        return (await self._asked(made)).name

    async def find(self, tag: str) -> str | None:
        """Looks through the latest thousand batches."""
        seen = 0
        pager = await self._asked(self._client.aio.batches.list(config={"page_size": 100}))
        async for job in pager:
            seen += 1
            if job.display_name == tag and job.state.name not in ("JOB_STATE_FAILED", "JOB_STATE_CANCELLED"):
                return job.name
            if seen >= _LISTED:
                return None
        return None

    async def poll(self, name: str) -> BatchState:
        """`EXPIRED` and `PARTIALLY_SUCCEEDED` count as done in part."""
        job = await self._asked(self._client.aio.batches.get(name=name))
        state = job.state.name if job.state else ""
        if state in ("JOB_STATE_SUCCEEDED", "JOB_STATE_PARTIALLY_SUCCEEDED", "JOB_STATE_EXPIRED"):
            return BatchState(state="done")
        if state in ("JOB_STATE_FAILED", "JOB_STATE_CANCELLED"):
            return BatchState(state="failed", detail=str(job.error.message if job.error else state))
        return BatchState(state="running", detail=state)

    async def collect(self, name: str) -> dict[str, Answer | CallFailed]:
        """Answers by the id in their metadata."""
        job = await self._asked(self._client.aio.batches.get(name=name))
        found: dict[str, Answer | CallFailed] = {}
        for one in (job.dest.inlined_responses if job.dest else None) or ():
            key = (one.metadata or {}).get("id")
            if key is None or one.response is None:
                continue
            try:
                found[key] = self._read(one.response)
            except CallFailed as failed:
                found[key] = failed
        return found

    async def close(self) -> None:
        """Gives connections back."""
        await self._client.aio.aclose()

    def _config(self, request: Request) -> Any:
        config: dict[str, Any] = {"temperature": request.temperature, "max_output_tokens": request.max_output_tokens}
        if request.system:
            config["system_instruction"] = request.system
        if request.schema is not None:
            config |= {"response_mime_type": "application/json", "response_schema": gemini_schema(request.schema)}
        return self._types.GenerateContentConfig(**config)

    def _read(self, reply: Any) -> Answer:
        usage = reply.usage_metadata
        prompt = (usage.prompt_token_count or 0) if usage else 0
        answered = (usage.candidates_token_count or 0) + (usage.thoughts_token_count or 0) if usage else 0
        candidate = reply.candidates[0] if reply.candidates else None
        parts = candidate.content.parts if candidate and candidate.content and candidate.content.parts else []
        text = "".join(part.text for part in parts if part.text and not part.thought)
        blocked = reply.prompt_feedback.block_reason if reply.prompt_feedback else None
        reason = candidate.finish_reason if candidate else None
        request = Request(stage="batch", system="", user="", schema=None)
        return read_ending(
            text, blocked.name if blocked else None, reason.name if reason else None, (prompt, answered), request
        )

    async def _asked(self, call: Awaitable[_T]) -> _T:
        try:
            return await call
        except self._errors.APIError as error:
            failure = failure_of(self._address, int(error.code), str(error.message))
            if isinstance(failure, Rejected):
                failure = InputError(
                    f"batch: {self._address.url} refuses it ({failure.detail}); correct the settings, or set "
                    "batch=False"
                )
            raise failure from None
        except (OSError, ValueError) as error:
            raise Transient("unreachable", f"{self._address.url}: {error}") from None
        except Exception as error:  # the library's transport errors share no parent with its own
            if type(error).__module__.startswith(("httpx", "httpcore")):
                raise Transient("unreachable", f"{self._address.url}: {type(error).__name__}") from None
            raise
