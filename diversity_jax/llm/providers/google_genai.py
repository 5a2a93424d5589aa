"""Gemini through `google-genai`, and through its predecessor `google-generativeai`.

Responses are read from their JSON, since the SDK's types refuse a response, or a batch of them, for one unknown field.

google-generativeai uses REST in a thread per call, since its REST transport is synchronous. The package is no longer
developed and stays supported here.
"""

import asyncio
from collections.abc import Mapping
import concurrent.futures
import functools
import threading
from typing import Any
import warnings

from diversity_jax.core.errors import InputError
from diversity_jax.llm.providers.answers import read_gemini
from diversity_jax.llm.providers.base import http_session, quieten, transport_failure, untrusted
from diversity_jax.llm.providers.endpoint import Endpoint
from diversity_jax.llm.providers.outcomes import Refused, Reply, Transient
from diversity_jax.llm.types import Request

_KEYWORDS = ("description", "format", "minItems", "maxItems", "required", "propertyOrdering")


class GoogleGenai:
    """The `Provider` `google-genai`."""

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
            # The SDK raises every status but 200; another 2xx is an answer like it.
            return endpoint.read(request, sent, int(error.code), headers, error.details, read_gemini)
        except self._transport_errors as error:
            raise transport_failure(error, endpoint.url) from None
        except (ValueError, TypeError, AttributeError, self._errors.UnknownApiResponseError):
            raise endpoint.garbled() from None
        return endpoint.read(request, sent, 200, {}, response.sdk_http_response.body, read_gemini)

    async def identify(self) -> str:
        """Empty, since answers name their version; see `Provider.identify`."""
        return ""

    async def close(self) -> None:
        await self._client.aio.aclose()
        await self._session.close()


def open_client(endpoint: Endpoint, deadline_seconds: float) -> tuple[Any, Any]:
    """The SDK's client, with the deadline as its time-out, and the aiohttp session under it.

    Raises:
      InputError: the SDK cannot use the address.
    """
    from google import genai
    from google.genai import types

    endpoint.refuse("query", "key_header")
    quieten("httpx", "httpx2", "httpcore", "google_genai")
    session = http_session(endpoint.url, read_bufsize=4 << 20)  # batches come back in one piece
    # Without `retry_options` the library repeats a request whose connection was dropped, uncounted, after up to 10 s.
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
    """Converts a JSON schema to the part of OpenAPI 3.0 that Gemini supports: upper-case type names, `nullable` for a
    null among the types, references written out. Other keywords (`additionalProperties`, `minimum`, `pattern`, `title`,
    ...) are left out, so check answers against the full schema.

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
    if values is not None and kind == "string":  # Gemini supports enumerations of strings only
        converted |= {"enum": list(values), "format": "enum"}
    if kind == "object":
        properties = schema.get("properties", {})
        converted["properties"] = {name: _convert(part, root, open_references) for name, part in properties.items()}
    if kind == "array":
        converted["items"] = _convert(schema.get("items", {"type": "string"}), root, open_references)
    return converted


def _single_kind(schema: Mapping[str, Any]) -> tuple[str, bool, Mapping[str, Any]]:
    """A schema's type, whether null is allowed too, and the alternative that describes it."""
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


_MODELS_CACHED = 64  # one per system instruction


class Gemini:
    """The `Provider` `gemini`, through google-generativeai."""

    def __init__(self, endpoint: Endpoint, *, max_in_flight: int, deadline_seconds: float):
        endpoint.refuse("query", "body", "key_header")
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", FutureWarning)  # printed at every import, of its successor
                import google.generativeai as sdk
                from google.generativeai import client
        except ImportError as error:  # not in requirements.newest.lock, since it needs protobuf below 6
            raise InputError(
                f"gemini:{endpoint.model}: google-generativeai cannot be imported ({error}); pip install "
                f"'google-generativeai>=0.8.6' 'protobuf<6', or name the model google-genai:{endpoint.model}"
            ) from None
        import requests

        quieten("urllib3", "google", "google.auth", "google.api_core")
        self._requests, self._sdk = requests, sdk
        self._endpoint, self._deadline_seconds = endpoint, deadline_seconds
        # `configure` is global, so the client is taken at once, before another call of it.
        options = {"api_endpoint": endpoint.url} if endpoint.base_url else None
        sdk.configure(api_key=endpoint.key, transport="rest", client_options=options)
        self._client = client.get_default_generative_client()
        session: Any = vars(self._client.transport)["_session"]
        session.headers.update(endpoint.headers)
        self._received = threading.local()  # the response of the call of this thread
        session.hooks["response"].append(self._store_response)
        # The default pool holds ten connections and opens a new one for every further call.
        pool = requests.adapters.HTTPAdapter(pool_connections=4, pool_maxsize=max_in_flight)
        for scheme in ("http://", "https://"):
            session.mount(scheme, pool)
        self._model = functools.lru_cache(_MODELS_CACHED)(self._model_with)

    def _store_response(self, response: Any, **_: Any) -> None:
        self._received.response = response

    def _model_with(self, system: str) -> Any:
        model = self._sdk.GenerativeModel(self._endpoint.model, system_instruction=system or None)
        vars(model)["_client"] = self._client
        return model

    async def ask(self, request: Request) -> Reply:
        """Makes one attempt; see `Provider.ask`."""
        outcome: concurrent.futures.Future[Reply] = concurrent.futures.Future()
        outcome.set_running_or_notify_cancel()

        def work() -> None:
            try:
                outcome.set_result(self._ask(request))
            except BaseException as error:
                outcome.set_exception(error)

        # A daemon thread, so that a call that hangs does not keep the interpreter from exiting.
        threading.Thread(target=work, name="gemini", daemon=True).start()
        return await asyncio.wrap_future(outcome)

    async def identify(self) -> str:
        """Empty, since answers name their version; see `Provider.identify`."""
        return ""

    async def close(self) -> None:
        self._client.transport.close()

    def _ask(self, request: Request) -> Reply:
        errors, url, endpoint = self._requests.exceptions, self._endpoint.url, self._endpoint
        sent = endpoint.features(request)
        system, user = endpoint.instructions(request, sent)
        decoding, received = decoding_of(request, sent), self._received
        received.response = None
        try:
            # By default the library retries a 503, even beyond the time-out.
            self._model(system).generate_content(
                user,
                generation_config=decoding,
                request_options={"timeout": self._deadline_seconds, "retry": None},
            )
        except errors.ConnectTimeout:
            raise Transient("unreachable", f"no connection to {url} in time") from None
        except errors.Timeout:
            raise Transient("timeout", f"no answer from {url} in time") from None
        except errors.SSLError as error:
            raise untrusted(url, error, "REQUESTS_CA_BUNDLE") from None
        except errors.ConnectionError as error:
            if "NewConnectionError" in repr(error) or "NameResolutionError" in repr(error):
                raise Transient("unreachable", f"{url}: the connection was refused") from None
            raise Transient("dropped", f"{url}: the connection was closed") from None
        except errors.RequestException:
            raise endpoint.garbled() from None
        except Exception as error:
            if received.response is None:  # the library itself does not take the request
                raise Refused("request", f"{type(error).__name__}: {endpoint.shown(str(error))}") from None
        response = received.response
        return endpoint.read(request, sent, response.status_code, response.headers, response.content, read_gemini)
