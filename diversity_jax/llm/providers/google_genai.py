"""Gemini through google-genai, and what its batches and google-generativeai share with it: schemas and clients."""

from collections.abc import Mapping
from typing import Any

from diversity_jax.core.errors import InputError
from diversity_jax.llm.providers.base import Endpoint, Reply, http_session, quieten, retry_after, transport_failure
from diversity_jax.llm.types import Request

_KEYWORDS = ("description", "format", "minItems", "maxItems", "required", "propertyOrdering")


class GoogleGenai:
    """A `Provider`. The key comes from GEMINI_API_KEY or GOOGLE_API_KEY; an address of one's own may need none."""

    sends_schemas = True

    def __init__(self, endpoint: Endpoint, *, deadline_seconds: float, **_: Any):
        import aiohttp
        from google.genai import errors

        self._errors, self._transport_errors = errors, (aiohttp.ClientError, OSError)
        self._endpoint = endpoint
        self._client, self._session = open_client(endpoint, deadline_seconds)

    async def ask(self, request: Request) -> Reply:
        """Makes one attempt; see `Provider.ask`."""
        endpoint, config = self._endpoint, generation_config(request)
        try:
            response = await self._client.aio.models.generate_content(
                model=endpoint.model, contents=request.user, config=config
            )
        except self._errors.APIError as error:
            headers = getattr(error.response, "headers", None) or {}
            seconds = retry_after(headers) or _retry_delay(error.details)
            raise endpoint.failure(int(error.code), str(error.message), retry_after_seconds=seconds) from None
        except self._transport_errors as error:
            raise transport_failure(error, endpoint.url) from None
        except (ValueError, TypeError, self._errors.UnknownApiResponseError):
            raise endpoint.garbled() from None
        return read_response(endpoint, request, response)

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

    return types.GenerateContentConfig(system_instruction=request.system or None, **decoding_of(request))


def decoding_of(request: Request) -> dict[str, Any]:
    """The settings of a request by the names of both SDKs."""
    config: dict[str, Any] = {"temperature": request.temperature, "max_output_tokens": request.max_output_tokens}
    if request.schema is not None:
        config |= {"response_mime_type": "application/json", "response_schema": gemini_schema(request.schema)}
    return config


def read_response(endpoint: Endpoint, request: Request | None, response: Any) -> Reply:
    """The reply in the SDK's response; see `Endpoint.reply`.

    Raises:
      CallFailed: the model did not end it by itself.
    """
    usage, feedback = response.usage_metadata, response.prompt_feedback
    prompt_tokens = usage.prompt_token_count if usage else None
    # Thinking tokens are on the bill too.
    completion_tokens = (usage.candidates_token_count or 0) + (usage.thoughts_token_count or 0) if usage else None
    candidate = response.candidates[0] if response.candidates else None
    parts = candidate.content.parts if candidate and candidate.content and candidate.content.parts else []
    return endpoint.reply(
        request,
        "".join(part.text for part in parts if part.text and not part.thought),
        candidate.finish_reason.name if candidate and candidate.finish_reason else None,
        prompt_tokens,
        completion_tokens,
        blocked=feedback.block_reason.name if feedback and feedback.block_reason else None,
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
            raise InputError(f"Request.schema: {reference} refers to itself; Gemini takes no recursion")
        target: Any = root
        for part in reference.removeprefix("#/").split("/"):
            try:
                target = target[part]
            except (KeyError, TypeError):
                raise InputError(f"Request.schema: {reference} points at nothing; define it under $defs") from None
        return _convert(target, root, (*open_references, reference))
    kind, nullable, schema = _single_kind(schema)
    converted: dict[str, Any] = {"type": kind.upper()}
    if nullable:
        converted["nullable"] = True
    converted |= {name: schema[name] for name in _KEYWORDS if name in schema}
    values = [schema["const"]] if "const" in schema else schema.get("enum")
    if values is not None and kind == "string":  # Gemini has enumerations of strings only
        converted |= {"enum": list(values), "format": "enum"}
    if kind == "object":
        properties = schema.get("properties", {})
        converted["properties"] = {name: _convert(part, root, open_references) for name, part in properties.items()}
    if kind == "array":
        converted["items"] = _convert(schema.get("items", {"type": "string"}), root, open_references)
    return converted


def _single_kind(schema: Mapping[str, Any]) -> tuple[str, bool, Mapping[str, Any]]:
    """A schema's type, whether null is allowed too, and the part that describes it."""
    alternatives = schema.get("anyOf", schema.get("oneOf", schema.get("type", "object")))
    alternatives = [alternatives] if isinstance(alternatives, str) else alternatives
    kinds = [part if isinstance(part, str) else part.get("type", "object") for part in alternatives]
    described = [part for part, kind in zip(alternatives, kinds, strict=True) if kind != "null"]
    if len(described) != 1:
        raise InputError(f"Request.schema: {kinds} is not one kind of value, which Gemini cannot enforce; choose one")
    nullable, [part] = len(described) < len(kinds), described
    if isinstance(part, str):
        return part, nullable, schema
    kind, _, inner = _single_kind(part)
    return kind, nullable, inner
