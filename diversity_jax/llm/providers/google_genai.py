"""Gemini through google-genai, and what all three Gemini clients share: schemas, responses, endings."""

from collections.abc import Callable, Mapping
from typing import Any

from diversity_jax.core.errors import InputError
from diversity_jax.llm.providers.base import (
    Endpoint,
    Reply,
    Transient,
    checked_reply,
    http_session,
    quieten,
    retry_after,
    transport_failure,
)
from diversity_jax.llm.types import Request

_KEPT = ("description", "format", "minItems", "maxItems", "required", "propertyOrdering")


class GoogleGenai:
    """A `Provider`. The key comes from GEMINI_API_KEY or GOOGLE_API_KEY; an address of one's own may need none."""

    def __init__(self, endpoint: Endpoint, *, deadline_seconds: float, **_: Any):
        import aiohttp
        from google.genai import errors

        self._errors, self._transport_errors = errors, (aiohttp.ClientError, OSError)
        self._endpoint = endpoint
        self._client, self._session = open_client(endpoint, deadline_seconds)

    async def ask(self, request: Request) -> Reply:
        """Makes one attempt; see `Provider.ask`."""
        endpoint = self._endpoint
        try:
            reply = await self._client.aio.models.generate_content(
                model=endpoint.model, contents=request.user, config=generation_config(request)
            )
        except self._errors.APIError as error:
            headers = getattr(error.response, "headers", None) or {}
            seconds = retry_after(headers) or _retry_delay(error.details)
            raise endpoint.failure(int(error.code), str(error.message), retry_after_seconds=seconds) from None
        except self._transport_errors as error:
            raise transport_failure(error, endpoint.url) from None
        except (ValueError, TypeError, self._errors.UnknownApiResponseError):
            raise Transient("garbled", f"{endpoint.url} sent something that is no answer of Gemini") from None
        return read_response(reply, lambda text, *counts: endpoint.token_counts(request, text, *counts))

    async def close(self) -> None:
        """Closes its connections."""
        await self._client.aio.aclose()
        await self._session.close()


def open_client(endpoint: Endpoint, deadline_seconds: float) -> tuple[Any, Any]:
    """The SDK's client, which waits for an answer up to the deadline, and the aiohttp session under it.

    Raises:
      InputError: the SDK cannot use the address.
    """
    from google import genai
    from google.genai import types

    quieten("httpx", "httpx2", "httpcore", "google_genai")
    session = http_session(endpoint.url, read_bufsize=4 << 20)  # batches come back in one piece
    # Without `retry_options` the library sends a request whose connection was dropped again, uncounted and after up to
    # ten seconds.
    options = types.HttpOptions(
        base_url=endpoint.base_url,
        aiohttp_client=session,
        retry_options=types.HttpRetryOptions(attempts=1),
        timeout=round(1000 * deadline_seconds),
    )
    try:
        return genai.Client(api_key=endpoint.key, vertexai=False, http_options=options), session
    except ValueError:
        raise endpoint.bad_address() from None


def generation_config(request: Request) -> Any:
    """The SDK's configuration of a request."""
    from google.genai import types

    config: dict[str, Any] = {"temperature": request.temperature, "max_output_tokens": request.max_output_tokens}
    if request.system:
        config["system_instruction"] = request.system
    if request.schema is not None:
        config |= {"response_mime_type": "application/json", "response_schema": gemini_schema(request.schema)}
    return types.GenerateContentConfig(**config)


def read_response(reply: Any, token_counts: Callable[[str, int | None, int | None], tuple[int, int]]) -> Reply:
    """The text of the SDK's response; `token_counts` completes the counts that the server gives.

    Raises:
      CallFailed: the model did not end it by itself.
    """
    usage = reply.usage_metadata
    counted: tuple[int | None, int | None] = (None, None)
    if usage is not None and usage.prompt_token_count is not None:
        # Thinking tokens are on the bill too.
        counted = usage.prompt_token_count, (usage.candidates_token_count or 0) + (usage.thoughts_token_count or 0)
    candidate = reply.candidates[0] if reply.candidates else None
    parts = candidate.content.parts if candidate and candidate.content and candidate.content.parts else []
    text = "".join(part.text for part in parts if part.text and not part.thought)
    blocked = reply.prompt_feedback.block_reason if reply.prompt_feedback else None
    reason = candidate.finish_reason if candidate else None
    return gemini_reply(text, token_counts(text, *counted), blocked and blocked.name, reason.name if reason else None)


def gemini_reply(text: str, counts: tuple[int, int], blocked: str | None, finish_reason: str | None) -> Reply:
    """The reply, if the model ended it by itself; `blocked` is why the prompt was.

    Raises:
      CallFailed: the prompt was blocked, or the answer is empty, cut or withheld.
    """
    if blocked:
        return checked_reply(text, counts, refused=f"the prompt was blocked ({blocked})")
    return checked_reply(
        text,
        counts,
        missing=None if finish_reason else "the answer has no candidates",
        cut=finish_reason == "MAX_TOKENS",
        refused=None if finish_reason == "STOP" else f"the answer was withheld ({finish_reason})",
    )


def _retry_delay(details: Any) -> float | None:
    """Seconds of the `retryDelay` in an error's body, such as "43s"."""
    error = details.get("error", details) if isinstance(details, dict) else {}
    for detail in error.get("details", ()) if isinstance(error, dict) else ():
        delay = detail.get("retryDelay") if isinstance(detail, dict) else None
        if isinstance(delay, str) and delay.removesuffix("s").replace(".", "", 1).isdigit():
            return float(delay.removesuffix("s"))
    return None


def gemini_schema(schema: Mapping[str, Any]) -> dict[str, Any]:
    """Converts a JSON schema to the part of OpenAPI 3.0 that Gemini takes: upper-case type names, `nullable` for a null
    among the types, references written out. What Gemini does not know (`additionalProperties`, `minimum`, `pattern`,
    `title`, ...) is left out, so check answers against the full schema.

    Raises:
      InputError: the schema refers to itself or has alternatives, which Gemini cannot express.
    """
    return _convert(schema, schema, ())


def _convert(schema: Mapping[str, Any], root: Mapping[str, Any], open_references: tuple[str, ...]) -> dict[str, Any]:
    reference = schema.get("$ref")
    if reference is not None:
        if reference in open_references:
            raise InputError(
                f"Request.schema: {reference} refers to itself, which Gemini cannot enforce; write the schema without "
                "recursion"
            )
        return _convert(_resolve(reference, root), root, (*open_references, reference))
    kind, nullable, schema = _kind(schema)
    converted: dict[str, Any] = {"type": kind.upper()}
    if nullable:
        converted["nullable"] = True
    converted |= {name: schema[name] for name in _KEPT if name in schema}
    values = [schema["const"]] if "const" in schema else schema.get("enum")
    if values is not None and kind == "string":  # Gemini has enumerations of strings only
        converted |= {"enum": list(values), "format": "enum"}
    if kind == "object":
        properties = schema.get("properties", {})
        converted["properties"] = {name: _convert(part, root, open_references) for name, part in properties.items()}
    if kind == "array":
        converted["items"] = _convert(schema.get("items", {"type": "string"}), root, open_references)
    return converted


def _resolve(reference: str, root: Mapping[str, Any]) -> Mapping[str, Any]:
    target: Any = root
    for part in reference.removeprefix("#/").split("/"):
        try:
            target = target[part]
        except (KeyError, TypeError):
            raise InputError(f"Request.schema: {reference} points at nothing; define it under $defs") from None
    return target


def _kind(schema: Mapping[str, Any]) -> tuple[str, bool, Mapping[str, Any]]:
    """A schema's single type, whether null is allowed too, and the part that describes it."""
    for word in ("anyOf", "oneOf"):
        if word in schema:
            others = [part for part in schema[word] if part.get("type") != "null"]
            if len(others) != 1:
                raise InputError(
                    f"Request.schema: {word} has {len(others)} kinds of value, which Gemini cannot enforce; choose one"
                )
            kind, _, inner = _kind(others[0])
            return kind, len(others) < len(schema[word]), inner
    kinds = schema.get("type", "object")
    kinds = [kinds] if isinstance(kinds, str) else list(kinds)
    named = [kind for kind in kinds if kind != "null"]
    if len(named) != 1:
        raise InputError(
            f"Request.schema: type {kinds} is not one kind of value, which Gemini cannot enforce; choose one"
        )
    return named[0], len(named) < len(kinds), schema
