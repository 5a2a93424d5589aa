"""Gemini through google-genai, the successor of google-generativeai; asynchronous throughout."""

from typing import Any

from diversity_jax.core.errors import InputError
from diversity_jax.llm.providers.base import (
    Address,
    Answer,
    Transient,
    Usage,
    failure_of,
    key_from_environment,
    quieten,
    retry_after,
)
from diversity_jax.llm.providers.google_generativeai import KEY_VARIABLES, PUBLIC_URL, read_ending
from diversity_jax.llm.providers.google_schema import gemini_schema
from diversity_jax.llm.providers.http import client_for
from diversity_jax.llm.types import Request


class GoogleGenai:
    """One Gemini model. The key comes from GEMINI_API_KEY or GOOGLE_API_KEY; an address of one's own may need none."""

    def __init__(self, model: str, *, base_url: str | None):
        from google import genai
        from google.genai import errors, types

        # The library moved from httpx to its successor; both have the same exceptions.
        try:
            import httpx2 as http
        except ImportError:
            import httpx as http

        quieten("httpx", "httpx2", "httpcore", "google_genai")
        self._errors, self._types, self._http = errors, types, http
        judge = f"google-genai:{model}"
        key = key_from_environment(judge, KEY_VARIABLES, needed=base_url is None)
        self._address = Address(judge=judge, url=base_url or PUBLIC_URL, key_variables=KEY_VARIABLES, key=key)
        self._model = model
        self._usage = Usage(judge)
        try:
            options = types.HttpOptions(base_url=base_url, httpx_async_client=client_for(http, self._address.url))
            self._client = genai.Client(api_key=key, vertexai=False, http_options=options)
        except (http.InvalidURL, ValueError) as error:
            raise InputError(
                f"judge_base_url: {base_url!r} is no address ({error}); write one such as http://127.0.0.1:8000"
            ) from None

    async def ask(self, request: Request, deadline_seconds: float) -> Answer:
        """Makes one attempt; see `Provider.ask`."""
        http, url = self._http, self._address.url
        try:
            reply = await self._client.aio.models.generate_content(
                model=self._model, contents=request.user, config=self._config(request, deadline_seconds)
            )
        except self._errors.APIError as error:
            headers = getattr(error.response, "headers", None) or {}
            seconds = retry_after(headers) or _retry_delay(error.details)
            raise failure_of(self._address, int(error.code), str(error.message), retry_after_seconds=seconds) from None
        except (http.ConnectError, http.ConnectTimeout) as error:
            raise Transient("unreachable", f"{url}: {error}") from None
        except http.TimeoutException:
            raise Transient("timeout", f"no answer from {url} in time") from None
        except http.TransportError as error:
            raise Transient("dropped", f"{url}: {error}") from None
        except (ValueError, TypeError, self._errors.UnknownApiResponseError):
            raise Transient("garbled", f"{url} sent something that is no answer of Gemini") from None
        return self._read(reply, request)

    async def close(self) -> None:
        """Gives connections back."""
        await self._client.aio.aclose()

    def _config(self, request: Request, deadline_seconds: float) -> Any:
        config: dict[str, Any] = {"temperature": request.temperature, "max_output_tokens": request.max_output_tokens}
        if request.system:
            config["system_instruction"] = request.system
        if request.schema is not None:
            config |= {"response_mime_type": "application/json", "response_schema": gemini_schema(request.schema)}
        options = self._types.HttpOptions(timeout=round(deadline_seconds * 1000))
        return self._types.GenerateContentConfig(http_options=options, **config)

    def _read(self, reply: Any, request: Request) -> Answer:
        usage = reply.usage_metadata
        counted: tuple[int | None, int | None] = (None, None)
        if usage is not None and usage.prompt_token_count is not None:
            answered = (usage.candidates_token_count or 0) + (usage.thoughts_token_count or 0)
            counted = (usage.prompt_token_count, answered)
        candidate = reply.candidates[0] if reply.candidates else None
        parts = candidate.content.parts if candidate and candidate.content and candidate.content.parts else []
        text = "".join(part.text for part in parts if part.text and not part.thought)
        counts = self._usage.counts(request, text, *counted)
        blocked = reply.prompt_feedback.block_reason if reply.prompt_feedback else None
        reason = candidate.finish_reason if candidate else None
        return read_ending(text, blocked.name if blocked else None, reason.name if reason else None, counts, request)


def _retry_delay(details: Any) -> float | None:
    """Seconds of the `retryDelay` in an error's body, such as "43s"."""
    error = details.get("error", details) if isinstance(details, dict) else {}
    for detail in error.get("details", ()) if isinstance(error, dict) else ():
        delay = detail.get("retryDelay") if isinstance(detail, dict) else None
        if isinstance(delay, str) and delay.removesuffix("s").replace(".", "", 1).isdigit():
            return float(delay.removesuffix("s"))
    return None
