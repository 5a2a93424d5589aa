"""Batches of OpenAI: a file of requests is uploaded, and one of answers comes back."""

from collections.abc import Awaitable, Sequence
import json
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
    retry_after,
    unusable,
)
from diversity_jax.llm.providers.batch import BatchState
from diversity_jax.llm.types import CallFailed, Request

_PAGES = 10
_T = TypeVar("_T")


class OpenAIBatches:
    """Batches of one model. The key comes from OPENAI_API_KEY; other addresses than OpenAI's may need none."""

    def __init__(self, model: str, *, base_url: str | None):
        import openai

        quieten("httpx", "httpcore", "openai")
        self._openai = openai
        judge = f"openai:{model}"
        key = key_from_environment(judge, ("OPENAI_API_KEY",), needed=base_url is None)
        self._client = openai.AsyncOpenAI(api_key=key, base_url=base_url, max_retries=2)
        self._address = Address(
            judge=judge, url=base_url or "https://api.openai.com/v1", key_variables=("OPENAI_API_KEY",), key=key
        )
        self._model, self._usage = model, Usage(judge)

    async def submit(self, tag: str, requests: Sequence[tuple[str, Request]]) -> str:
        """Uploads the requests and starts the batch, with the tag in its metadata."""
        lines = (
            {"custom_id": name, "method": "POST", "url": "/v1/chat/completions", "body": self._body(request)}
            for name, request in requests
        )
        content = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines).encode()
        file = await self._asked(self._client.files.create(file=(f"{tag}.jsonl", content), purpose="batch"))
        made = self._client.batches.create(
            input_file_id=file.id, endpoint="/v1/chat/completions", completion_window="24h", metadata={"tag": tag}
        )
        return (await self._asked(made)).id

    async def find(self, tag: str) -> str | None:
        """Looks through the latest thousand batches of the account."""
        page = await self._asked(self._client.batches.list(limit=100))
        for _ in range(_PAGES):
            for batch in page.data:
                if (batch.metadata or {}).get("tag") == tag and batch.status not in ("failed", "cancelled"):
                    return batch.id
            if not page.has_next_page():
                return None
            page = await self._asked(page.get_next_page())
        return None

    async def poll(self, name: str) -> BatchState:
        """`expired` counts as done in part."""
        batch = await self._asked(self._client.batches.retrieve(name))
        if batch.status in ("completed", "expired"):
            return BatchState(state="done")
        if batch.status in ("failed", "cancelled", "cancelling"):
            errors = batch.errors.data if batch.errors and batch.errors.data else []
            return BatchState(
                state="failed", detail=f"{batch.status}: {errors[0].message if errors else 'no reason given'}"
            )
        return BatchState(state="running", detail=batch.status)

    async def collect(self, name: str) -> dict[str, Answer | CallFailed]:
        """Reads the answer file and the error file."""
        batch = await self._asked(self._client.batches.retrieve(name))
        found: dict[str, Answer | CallFailed] = {}
        for file_id in filter(None, (batch.output_file_id, batch.error_file_id)):
            content = await self._asked(self._client.files.content(file_id))
            for line in content.text.splitlines():
                if line.strip():
                    self._enter(json.loads(line), found)
        return found

    async def close(self) -> None:
        """Gives connections back."""
        await self._client.close()

    def _enter(self, line: dict[str, Any], found: dict[str, Answer | CallFailed]) -> None:
        reply = line.get("response") or {}
        if reply.get("status_code") == 200:
            try:
                found[line["custom_id"]] = self._read(reply["body"])
            except CallFailed as failed:
                found[line["custom_id"]] = failed
        elif 400 <= (reply.get("status_code") or 0) < 500 and reply["status_code"] != 429:
            detail = str(((reply.get("body") or {}).get("error") or {}).get("message", "no reason given"))[:160]
            found[line["custom_id"]] = CallFailed("rejected", detail)

    def _body(self, request: Request) -> dict[str, Any]:
        body: dict[str, Any] = {
            "model": self._model,
            "messages": [{"role": "system", "content": request.system}, {"role": "user", "content": request.user}],
            "max_completion_tokens": request.max_output_tokens,
            "temperature": request.temperature,
        }
        if request.schema is not None:
            wanted = {"name": request.stage, "strict": True, "schema": request.schema}
            body["response_format"] = {"type": "json_schema", "json_schema": wanted}
        return body

    def _read(self, reply: dict[str, Any]) -> Answer:
        choice = (reply.get("choices") or [{}])[0]
        message, usage = choice.get("message") or {}, reply.get("usage") or {}
        text, reason = message.get("content") or "", choice.get("finish_reason")
        counts = (int(usage.get("prompt_tokens") or 0), int(usage.get("completion_tokens") or 0))
        if reason == "length":
            raise unusable("truncated", "the answer was cut at its longest; raise max_output_tokens", counts)
        if message.get("refusal") or reason != "stop":
            raise unusable("refused", f"the model refused, or ended with {reason}", counts)
        if not text.strip():
            raise unusable("empty", "the answer is empty", counts)
        return Answer(text=text, prompt_tokens=counts[0], completion_tokens=counts[1])

    async def _asked(self, call: Awaitable[_T]) -> _T:
        openai = self._openai
        try:
            return await call
        except openai.APIStatusError as error:
            failure = failure_of(
                self._address,
                error.status_code,
                str(error.message),
                retry_after_seconds=retry_after(error.response.headers),
            )
            if isinstance(failure, Rejected):
                failure = InputError(
                    f"batch: {self._address.url} refuses it ({failure.detail}); correct the settings, or set "
                    "batch=False"
                )
            raise failure from None
        except openai.APIConnectionError as error:
            raise Transient("unreachable", f"{self._address.url}: {error.__cause__ or error}") from None
