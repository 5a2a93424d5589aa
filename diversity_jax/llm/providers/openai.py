"""Chat completions of OpenAI and of every server that speaks its protocol: vLLM, llama.cpp, Ollama, SGLang, ...

Without the `openai` package: what it adds to one POST costs a second of imports at the start of every run, and more CPU
  for its copies
and checks of body, headers and answer than all the rest of a call.
"""

from collections.abc import Mapping, Sequence
import functools
import json
import logging
import os
from typing import Any

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
    with_schema_in_prompt,
)
from diversity_jax.llm.providers.http import JsonPost
from diversity_jax.llm.types import Request, Schema

_logger = logging.getLogger(__name__)
# As the `openai` package reads them.
_ACCOUNT_HEADERS = {"openai-organization": "OPENAI_ORG_ID", "openai-project": "OPENAI_PROJECT_ID"}
# How servers say that the model stopped by itself.
_WHOLE = ("stop", "eos_token", "stop_sequence", "end_turn")
# Words of a refusal that name what the server cannot take; the first that matches is done without from then on.
_CANNOT = {
    "response_format": ("response_format", "json_schema", "guided", "grammar", "structured output"),
    "max_tokens": ("max_completion_tokens", "'max_tokens'"),
    "temperature": ("temperature",),
}
_DONE_WITHOUT = {
    "response_format": "the schema now stands in the prompt, and is checked here only",
    "max_tokens": "max_completion_tokens is sent instead",
    "temperature": "the model's own temperature is used",
}

_SHOWN_BYTES = 500  # of a refusal that is no JSON
_encode = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode
_AFTER_USER = "}]}"


@functools.lru_cache(maxsize=64)
def _before_user(
    model: str,
    without: frozenset[str],
    system: str,
    schema: Schema | None,
    stage: str,
    temperature: float,
    max_output_tokens: int,
) -> str:
    """A body as far as the user's message, in which alone the calls of a stage differ."""
    if "response_format" in without:
        system = with_schema_in_prompt(Request(stage=stage, system=system, user="", schema=schema)).system
    body: dict[str, Any] = {
        "model": model,
        "max_completion_tokens" if "max_tokens" in without else "max_tokens": max_output_tokens,
    }
    if "temperature" not in without:
        body["temperature"] = temperature
    if schema is not None and "response_format" not in without:
        body["response_format"] = {
            "type": "json_schema",
            "json_schema": {"name": stage, "strict": True, "schema": schema},
        }
    body["messages"] = [{"role": "system", "content": system}, {"role": "user", "content": ""}]
    return _encode(body).removesuffix(f'""{_AFTER_USER}')


def _error_of(content: bytes) -> Mapping[str, Any]:
    """The error object of a refusal; empty where it has none."""
    try:
        value = json.loads(content)
    except ValueError:
        return {}
    error = value.get("error", value) if isinstance(value, dict) else {}
    return error if isinstance(error, dict) else {"message": str(error)}


class OpenAIChat:
    """One model behind a chat completions address. The key comes from OPENAI_API_KEY; other addresses than OpenAI's may
    need none.
    """

    def __init__(self, model: str, *, base_url: str | None):
        quieten("httpx", "httpcore")
        judge = f"openai:{model}"
        key = key_from_environment(judge, ("OPENAI_API_KEY",), needed=base_url is None)
        url = base_url or os.environ.get("OPENAI_BASE_URL") or "https://api.openai.com/v1"
        headers = {"authorization": f"Bearer {key}", "user-agent": "diversity_jax"}
        headers |= {
            header: os.environ[variable] for header, variable in _ACCOUNT_HEADERS.items() if os.environ.get(variable)
        }
        try:
            self._post = JsonPost(f"{url.rstrip('/')}/chat/completions", headers)
        except ValueError as error:
            raise InputError(
                f"judge_base_url: {url!r} is no address ({error}); write one such as http://127.0.0.1:8000/v1"
            ) from None
        self._address = Address(judge=judge, url=url, key_variables=("OPENAI_API_KEY",), key=key)
        self._model = model
        self._usage = Usage(judge)
        self._without: frozenset[str] = frozenset()

    async def ask(self, request: Request, deadline_seconds: float) -> Answer:
        """Makes one attempt; see `Provider.ask`."""
        without = self._without
        before = _before_user(
            self._model,
            without,
            request.system,
            request.schema,
            request.stage,
            request.temperature,
            request.max_output_tokens,
        )
        body = f"{before}{_encode(request.user)}{_AFTER_USER}".encode(errors="replace")
        status, headers, content = await self._post(body, deadline_seconds)
        if status != 200:
            sent = [
                name
                for name in _CANNOT
                if name not in without and not (name == "response_format" and request.schema is None)
            ]
            raise self._refused(status, headers, content, sent)
        return self._read(content, request)

    async def close(self) -> None:
        """Gives connections back."""
        await self._post.aclose()

    def _refused(self, status: int, headers: Mapping[str, str], content: bytes, sent: Sequence[str]) -> Exception:
        """What a refusal means; `sent` are the fields of `_CANNOT` that the request had."""
        error = _error_of(content)
        message = str(error.get("message") or content[:_SHOWN_BYTES].decode(errors="replace"))
        code = str(error.get("code") or error.get("type") or "")
        failure = failure_of(self._address, status, message, code=code, retry_after_seconds=retry_after(headers))
        # Some servers answer 500 or 501 to a format they do not implement, but only the naming of a field says so.
        if not (isinstance(failure, Rejected) or status == 501):
            return failure
        named = f"{error.get('param') or ''} {message}".lower()
        for name in sent:
            if any(word in named for word in _CANNOT[name]):
                self._do_without(name, failure.detail)
                return Transient("adapted", f"{name} is not supported")
        return failure

    def _do_without(self, name: str, detail: str):
        if name not in self._without:
            self._without |= {name}
            _logger.warning("%s does not take %s (%s); %s", self._address.judge, name, detail, _DONE_WITHOUT[name])

    def _read(self, content: bytes, request: Request) -> Answer:
        try:
            reply = json.loads(content)
            choices = reply["choices"]
            usage = reply.get("usage") or {}
            choice = choices[0] if choices else {}
            message = choice.get("message") or {}
            reason, text = choice.get("finish_reason"), message.get("content") or ""
            counts = self._usage.counts(request, text, usage.get("prompt_tokens"), usage.get("completion_tokens"))
        except (ValueError, KeyError, TypeError, AttributeError, IndexError):
            raise Transient("garbled", f"{self._address.url} sent something that is no chat completion") from None
        if not choices:
            raise unusable("empty", "the answer has no choices", counts)
        if reason == "length":
            raise unusable(
                "truncated",
                f"the answer was cut at {request.max_output_tokens} tokens; raise max_output_tokens",
                counts,
            )
        if message.get("refusal") or reason not in _WHOLE:
            raise unusable("refused", f"the model refused, or ended with {reason}", counts)
        if not text.strip():
            raise unusable("empty", "the answer is empty", counts)
        return Answer(text=text, prompt_tokens=counts[0], completion_tokens=counts[1])
