"""Chat completions of OpenAI and of every server that speaks its protocol: vLLM, llama.cpp, Ollama, SGLang, ...

By aiohttp alone: the `openai` package costs 0.75 s of CPU to import at the start of every run, and more CPU a call than
the rest of the engine.
"""

from collections.abc import Mapping, Sequence
import json
import logging
import os
from typing import Any

from diversity_jax.llm.providers.base import (
    Endpoint,
    Rejected,
    Reply,
    Transient,
    http_session,
    retry_after,
    transport_failure,
)
from diversity_jax.llm.types import Request

_logger = logging.getLogger(__name__)
_encode = json.JSONEncoder(ensure_ascii=False).encode
# As the `openai` package reads them.
_ACCOUNT_HEADERS = {"openai-organization": "OPENAI_ORG_ID", "openai-project": "OPENAI_PROJECT_ID"}
# Fields that some servers do not support: words by which a refusal names them, and what is done instead.
_OPTIONAL_FIELDS = {
    "response_format": (
        ("response_format", "json_schema", "guided", "grammar", "structured output"),
        "the schema now stands in the prompt, and is checked here only",
    ),
    "max_tokens": (("max_completion_tokens", "'max_tokens'"), "max_completion_tokens is sent instead"),
    "temperature": (("temperature",), "the model's own temperature is used"),
}
_SHOWN_BYTES = 500  # of a refusal that is no JSON


def chat_body(model: str, request: Request, without: frozenset[str]) -> dict[str, Any]:
    """The body of a chat completion; `without` names fields of `_OPTIONAL_FIELDS` that the server does not support."""
    system = request.system
    limit = "max_completion_tokens" if "max_tokens" in without else "max_tokens"
    body: dict[str, Any] = {"model": model, limit: request.max_output_tokens}
    if "temperature" not in without:
        body["temperature"] = request.temperature
    if request.schema is not None and "response_format" not in without:
        schema = {"name": request.stage, "strict": True, "schema": request.schema}
        body["response_format"] = {"type": "json_schema", "json_schema": schema}
    elif request.schema is not None:
        wish = "Answer with one JSON value and nothing around it. It must fit this JSON schema, named"
        system += f"\n\n{wish} {request.stage}:\n{json.dumps(request.schema)}"
    body["messages"] = [{"role": "system", "content": system}, {"role": "user", "content": request.user}]
    return body


def read_completion(endpoint: Endpoint, request: Request | None, completion: Mapping[str, Any]) -> Reply:
    """The reply in a chat completion; see `Endpoint.reply`.

    Raises:
      CallFailed: the model did not end it by itself.
      KeyError, TypeError, AttributeError, IndexError: it is no chat completion.
    """
    choices, usage = completion["choices"], completion.get("usage") or {}
    choice = choices[0] if choices else {}
    message, reason = choice.get("message") or {}, str(choice.get("finish_reason"))
    if message.get("refusal") and reason != "length":
        reason = "refusal"
    return endpoint.reply(
        request,
        message.get("content") or "",
        reason if choices else None,
        usage.get("prompt_tokens"),
        usage.get("completion_tokens"),
    )


class OpenAIChat:
    """A `Provider`. The key comes from OPENAI_API_KEY; other addresses than OpenAI's may need none."""

    def __init__(self, endpoint: Endpoint, **_: Any):
        import aiohttp

        self._errors = (aiohttp.ClientError, OSError)
        self._endpoint = endpoint
        self._url = f"{endpoint.url.rstrip('/')}/chat/completions"
        account = {header: os.environ.get(variable) for header, variable in _ACCOUNT_HEADERS.items()}
        headers = {
            "accept": "application/json",
            "authorization": f"Bearer {endpoint.key}",
            "content-type": "application/json",
            "user-agent": "diversity_jax",
            **{header: value for header, value in account.items() if value},
        }
        self._session = http_session(self._url, headers=headers)
        self._without: frozenset[str] = frozenset()

    @property
    def sends_schemas(self) -> bool:
        """See `Provider.sends_schemas`."""
        return "response_format" not in self._without

    async def ask(self, request: Request) -> Reply:
        """Makes one attempt; see `Provider.ask`."""
        without, endpoint = self._without, self._endpoint
        body = _encode(chat_body(endpoint.model, request, without)).encode(errors="replace")
        try:
            async with self._session.post(self._url, data=body, allow_redirects=False) as response:
                status, headers, content = response.status, response.headers, await response.read()
        except self._errors as error:
            raise transport_failure(error, endpoint.url) from None
        if status != 200:
            no_schema = {"response_format"} if request.schema is None else frozenset()
            raise self._refused(
                status, headers, content, [name for name in _OPTIONAL_FIELDS if name not in without | no_schema]
            )
        try:
            return read_completion(endpoint, request, json.loads(content))
        except (ValueError, KeyError, TypeError, AttributeError, IndexError):
            raise endpoint.garbled() from None

    async def close(self) -> None:
        """Closes its connections."""
        await self._session.close()

    def _refused(self, status: int, headers: Mapping[str, str], content: bytes, sent: Sequence[str]) -> Exception:
        """What a refusal means; `sent` are the fields of `_OPTIONAL_FIELDS` that the request had."""
        try:
            value = json.loads(content)
        except ValueError:
            value = None
        error = value.get("error", value) if isinstance(value, dict) else {}
        error = error if isinstance(error, dict) else {"message": str(error)}
        message = str(error.get("message") or content[:_SHOWN_BYTES].decode(errors="replace"))
        code = str(error.get("code") or error.get("type") or "")
        failure = self._endpoint.failure(status, message, code=code, retry_after_seconds=retry_after(headers))
        # Some servers answer 500 or 501 to a format they do not implement, but only the naming of a field says so.
        if not (isinstance(failure, Rejected) or status == 501):
            return failure
        named = f"{error.get('param') or ''} {message}".lower()
        for name in sent:
            words, instead = _OPTIONAL_FIELDS[name]
            if any(word in named for word in words):
                if name not in self._without:
                    self._without |= {name}
                    detail = getattr(failure, "detail", "")
                    _logger.warning("%s does not take %s (%s); %s", self._endpoint.name, name, detail, instead)
                return Transient("adapted", f"{name} is not supported")
        return failure
