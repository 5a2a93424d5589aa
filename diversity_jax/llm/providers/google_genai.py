"""Gemini through google-genai, and what its batches and google-generativeai share with it: schemas and clients.

Responses are read from their JSON and not from the SDK's types, which refuse a whole answer, or a whole batch, for one
field that they do not know.
"""

from collections.abc import Mapping
from typing import Any

from diversity_jax.core.errors import InputError
from diversity_jax.llm.providers.answers import read_gemini
from diversity_jax.llm.providers.base import http_session, quieten, transport_failure
from diversity_jax.llm.providers.endpoint import Endpoint
from diversity_jax.llm.providers.outcomes import Reply, read_error
from diversity_jax.llm.types import Request

_KEYWORDS = ("description", "format", "minItems", "maxItems", "required", "propertyOrdering")


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
        endpoint, sent = self._endpoint, self._endpoint.features(request)
        user, config = generation_config(endpoint, request, sent)
        try:
            response = await self._client.aio.models.generate_content(
                model=endpoint.model, contents=user, config=config
            )
        except self._errors.APIError as error:
            headers = getattr(error.response, "headers", None) or {}
            raise endpoint.failure(read_error(int(error.code), headers, error.details), sent) from None
        except self._transport_errors as error:
            raise transport_failure(error, endpoint.url) from None
        except (ValueError, TypeError, AttributeError, self._errors.UnknownApiResponseError):
            raise endpoint.garbled() from None
        return endpoint.read(request, sent, 200, {}, response.sdk_http_response.body, read_gemini)

    async def identify(self) -> str:
        """Nothing: answers say which version gave them; see `Provider.identify`."""
        return ""

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

    endpoint.refuse("query", "key_header")
    quieten("httpx", "httpx2", "httpcore", "google_genai")
    session = http_session(endpoint.url, read_bufsize=4 << 20)  # batches come back in one piece
    # Without `retry_options` the library sends a request whose connection was dropped again, uncounted and after up to
    # ten seconds.
    options = types.HttpOptions(
        base_url=endpoint.base_url and endpoint.url,
        headers=endpoint.headers,
        extra_body=endpoint.body or None,
        aiohttp_client=session,
        retry_options=types.HttpRetryOptions(attempts=1),
        timeout=round(1000 * deadline_seconds),
    )
    try:
        return genai.Client(api_key=endpoint.key, vertexai=False, http_options=options), session
    except ValueError:
        raise endpoint.bad_address() from None


def generation_config(endpoint: Endpoint, request: Request, sent: frozenset[str]) -> tuple[str, Any]:
    """The user's text and the SDK's configuration of a request with features of `Endpoint.features`."""
    from google.genai import types

    system, user = endpoint.instructions(request, sent)
    decoding = decoding_of(request, sent)
    return user, types.GenerateContentConfig(
        system_instruction=system or None, should_return_http_response=True, **decoding
    )


def decoding_of(request: Request, sent: frozenset[str]) -> dict[str, Any]:
    """The settings of a request by the names of both SDKs."""
    config: dict[str, Any] = {"max_output_tokens": request.max_output_tokens}
    if "temperature" in sent:
        config["temperature"] = request.temperature
    if {"json_schema", "json_object"} & sent:
        config["response_mime_type"] = "application/json"
    if "json_schema" in sent and request.schema is not None:
        config["response_schema"] = gemini_schema(request.schema)
    return config


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
