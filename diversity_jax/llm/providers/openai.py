"""Chat completions of OpenAI and compatible servers: vLLM, llama.cpp, Ollama, SGLang, ...

They go through aiohttp, because the `openai` package costs 0.75 s of CPU to import at the start of every run, and more
CPU a call than the rest of the engine.
"""

import json
import os
from typing import Any

from diversity_jax.llm.providers.answers import read_chat
from diversity_jax.llm.providers.base import http_session, transport_failure
from diversity_jax.llm.providers.endpoint import LIMITS, Endpoint
from diversity_jax.llm.providers.outcomes import Reply, parse_body
from diversity_jax.llm.types import Request

_encode = json.JSONEncoder(ensure_ascii=False).encode
# Read as the `openai` package does.
_ACCOUNT_HEADERS = {"openai-organization": "OPENAI_ORG_ID", "openai-project": "OPENAI_PROJECT_ID"}
# Fields of a model in a list of models that differ between models of one name, and not between starts of a server.
_IDENTITY = ("root", "parent", "max_model_len", "owned_by", "meta", "quantization", "digest")


def limits_of(endpoint: Endpoint, *, batch: bool = False) -> tuple[str, ...]:
    """Names of the token limit in the order in which they are tried: all of OpenAI's own models take the newer name,
    and the latest ones only that.
    """
    return LIMITS[::-1] if batch or endpoint.is_public else LIMITS


def chat_body(endpoint: Endpoint, request: Request, sent: frozenset[str]) -> dict[str, Any]:
    """The body of a chat completion with features of `Endpoint.features`."""
    system, user = endpoint.instructions(request, sent)
    body: dict[str, Any] = {"model": endpoint.model}
    body |= {name: request.max_output_tokens for name in LIMITS if name in sent}
    if "temperature" in sent:
        body["temperature"] = request.temperature
    if "json_schema" in sent:
        schema = {"name": request.stage, "strict": True, "schema": request.schema}
        body["response_format"] = {"type": "json_schema", "json_schema": schema}
    elif "json_object" in sent:
        body["response_format"] = {"type": "json_object"}
    messages = [{"role": "system", "content": system}] if "system" in sent else []
    return body | {"messages": [*messages, {"role": "user", "content": user}]} | endpoint.body


class OpenAIChat:
    """The `Provider` `openai`."""

    def __init__(self, endpoint: Endpoint, **_: Any):
        import aiohttp

        self._errors = (aiohttp.ClientError, OSError)
        self._endpoint = endpoint
        self._url = endpoint.address("chat/completions")
        account = {header: os.environ.get(variable) for header, variable in _ACCOUNT_HEADERS.items()}
        headers = {
            "accept": "application/json",
            "content-type": "application/json",
            "user-agent": "diversity_jax",
            **{header: value for header, value in account.items() if value},
            **endpoint.key_headers(),
        }
        self._session = http_session(self._url, headers=headers)

    async def ask(self, request: Request) -> Reply:
        """Makes one attempt; see `Provider.ask`."""
        endpoint = self._endpoint
        sent = endpoint.features(request, limits=limits_of(endpoint))
        body = _encode(chat_body(endpoint, request, sent)).encode(errors="replace")
        try:
            async with self._session.post(self._url, data=body, allow_redirects=False) as response:
                status, headers, content = response.status, response.headers, await response.read()
        except self._errors as error:
            raise transport_failure(error, endpoint.url) from None
        return endpoint.read(request, sent, status, headers, content, read_chat)

    async def identify(self) -> str:
        """From the list of models of a server other than OpenAI's; see `Provider.identify`."""
        if self._endpoint.is_public:
            return ""
        try:
            async with self._session.get(self._endpoint.address("models"), allow_redirects=False) as response:
                listed = parse_body(await response.read()) if response.status == 200 else None
        except self._errors:
            return ""
        models = listed.get("data") if isinstance(listed, dict) else None
        for model in models if isinstance(models, list) else ():
            if isinstance(model, dict) and model.get("id") == self._endpoint.model:
                known = {name: model[name] for name in _IDENTITY if model.get(name)}
                return json.dumps(known, sort_keys=True, separators=(",", ":")) if known else ""
        return ""

    async def close(self) -> None:
        await self._session.close()
