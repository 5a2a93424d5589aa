"""Chat completions of OpenAI and of every server that speaks its protocol: vLLM, llama.cpp, Ollama, SGLang, ...

By aiohttp alone: the `openai` package costs 0.75 s of CPU to import at the start of every run, and more CPU a call than
the rest of the engine.
"""

from collections.abc import Callable, Mapping, Sequence
import json
import logging
import os
from typing import Any

from diversity_jax.llm.providers.base import (
    Endpoint,
    Rejected,
    Reply,
    Transient,
    checked_reply,
    http_session,
    retry_after,
    transport_failure,
)
from diversity_jax.llm.types import Request

_logger = logging.getLogger(__name__)
# As the `openai` package reads them.
_ACCOUNT_HEADERS = {"openai-organization": "OPENAI_ORG_ID", "openai-project": "OPENAI_PROJECT_ID"}
# How servers say that the model stopped by itself.
_COMPLETE = ("stop", "eos_token", "stop_sequence", "end_turn")
# Words in a refusal that name a field the server does not support.
_FIELD_WORDS = {
    "response_format": ("response_format", "json_schema", "guided", "grammar", "structured output"),
    "max_tokens": ("max_completion_tokens", "'max_tokens'"),
    "temperature": ("temperature",),
}
_REPLACEMENT = {
    "response_format": "the schema now stands in the prompt, and is checked here only",
    "max_tokens": "max_completion_tokens is sent instead",
    "temperature": "the model's own temperature is used",
}
_SHOWN_BYTES = 500  # of a refusal that is no JSON


def chat_body(model: str, request: Request, without: frozenset[str]) -> dict[str, Any]:
    """The body of a chat completion; `without` names fields of `_FIELD_WORDS` that the server does not support."""
    system, enforced = request.system, "response_format" not in without
    if request.schema is not None and not enforced:
        wish = "Answer with one JSON value and nothing around it. It must fit this JSON schema, named"
        system += f"\n\n{wish} {request.stage}:\n{json.dumps(request.schema)}"
    limit = "max_completion_tokens" if "max_tokens" in without else "max_tokens"
    body: dict[str, Any] = {"model": model, limit: request.max_output_tokens}
    if "temperature" not in without:
        body["temperature"] = request.temperature
    if request.schema is not None and enforced:
        schema = {"name": request.stage, "strict": True, "schema": request.schema}
        body["response_format"] = {"type": "json_schema", "json_schema": schema}
    body["messages"] = [{"role": "system", "content": system}, {"role": "user", "content": request.user}]
    return body


def read_completion(
    reply: Mapping[str, Any], token_counts: Callable[[str, int | None, int | None], tuple[int, int]]
) -> Reply:
    """The text of a chat completion; `token_counts` completes the counts that the server gives.

    Raises:
      CallFailed: the model did not end it by itself.
      KeyError, TypeError, AttributeError, IndexError: it is no chat completion.
    """
    choices, usage = reply["choices"], reply.get("usage") or {}
    choice = choices[0] if choices else {}
    message, reason = choice.get("message") or {}, choice.get("finish_reason")
    text = message.get("content") or ""
    refused = message.get("refusal") or reason not in _COMPLETE
    return checked_reply(
        text,
        token_counts(text, usage.get("prompt_tokens"), usage.get("completion_tokens")),
        missing=None if choices else "the answer has no choices",
        cut=reason == "length",
        refused=f"the model refused, or ended with {reason}" if refused else None,
    )


class OpenAIChat:
    """A `Provider`. The key comes from OPENAI_API_KEY; other addresses than OpenAI's may need none."""

    def __init__(self, endpoint: Endpoint, **_: Any):
        import aiohttp

        self._errors = (aiohttp.ClientError, OSError)
        self._endpoint = endpoint
        self._url = f"{endpoint.url.rstrip('/')}/chat/completions"
        headers = {
            "accept": "application/json",
            "authorization": f"Bearer {endpoint.key}",
            "content-type": "application/json",
            "user-agent": "diversity_jax",
        }
        account = {header: os.environ.get(variable) for header, variable in _ACCOUNT_HEADERS.items()}
        headers |= {header: value for header, value in account.items() if value}
        self._session = http_session(self._url, headers=headers)
        self._without: frozenset[str] = frozenset()

    async def ask(self, request: Request) -> Reply:
        """Makes one attempt; see `Provider.ask`."""
        without, endpoint = self._without, self._endpoint
        body = json.dumps(chat_body(endpoint.model, request, without), ensure_ascii=False).encode(errors="replace")
        try:
            async with self._session.post(self._url, data=body, allow_redirects=False) as response:
                status, headers, content = response.status, response.headers, await response.read()
        except self._errors as error:
            raise transport_failure(error, endpoint.url) from None
        if status != 200:
            sent = [name for name in _FIELD_WORDS if name not in without]
            if request.schema is None:
                sent = [name for name in sent if name != "response_format"]
            raise self._refused(status, headers, content, sent)
        try:
            return read_completion(
                json.loads(content), lambda text, *counts: endpoint.token_counts(request, text, *counts)
            )
        except (ValueError, KeyError, TypeError, AttributeError, IndexError):
            raise Transient("garbled", f"{endpoint.url} sent something that is no chat completion") from None

    async def close(self) -> None:
        """Closes its connections."""
        await self._session.close()

    def _refused(self, status: int, headers: Mapping[str, str], content: bytes, sent: Sequence[str]) -> Exception:
        """What a refusal means; `sent` are the fields of `_FIELD_WORDS` that the request had."""
        error = _error_object(content)
        message = str(error.get("message") or content[:_SHOWN_BYTES].decode(errors="replace"))
        code = str(error.get("code") or error.get("type") or "")
        failure = self._endpoint.failure(status, message, code=code, retry_after_seconds=retry_after(headers))
        # Some servers answer 500 or 501 to a format they do not implement, but only the naming of a field says so.
        if not (isinstance(failure, Rejected) or status == 501):
            return failure
        named = f"{error.get('param') or ''} {message}".lower()
        for name in sent:
            if any(word in named for word in _FIELD_WORDS[name]):
                if name not in self._without:
                    self._without |= {name}
                    detail = getattr(failure, "detail", "")
                    _logger.warning(
                        "%s does not take %s (%s); %s", self._endpoint.name, name, detail, _REPLACEMENT[name]
                    )
                return Transient("adapted", f"{name} is not supported")
        return failure


def _error_object(content: bytes) -> Mapping[str, Any]:
    """The error object of a refusal; empty where it has none."""
    try:
        value = json.loads(content)
    except ValueError:
        return {}
    error = value.get("error", value) if isinstance(value, dict) else {}
    return error if isinstance(error, dict) else {"message": str(error)}
