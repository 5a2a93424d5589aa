"""Gemini through google-generativeai over REST, in a thread per call: its REST transport is synchronous.

The package has reached the end of its life and stays supported here; `google-genai` is its successor. Its types refuse
what they do not know, so the response is read from the JSON that came.
"""

import asyncio
import concurrent.futures
import functools
import threading
from typing import Any
import warnings

from diversity_jax.core.errors import InputError
from diversity_jax.llm.providers.answers import read_gemini
from diversity_jax.llm.providers.base import quieten
from diversity_jax.llm.providers.endpoint import Endpoint
from diversity_jax.llm.providers.google_genai import decoding_of
from diversity_jax.llm.providers.outcomes import Refused, Reply, Transient
from diversity_jax.llm.types import Request

_MODELS_CACHED = 64  # one per system instruction


class Gemini:
    """A `Provider`. The key comes from GEMINI_API_KEY or GOOGLE_API_KEY; an address of one's own may need none."""

    def __init__(self, endpoint: Endpoint, *, max_in_flight: int, deadline_seconds: float):
        endpoint.refuse("query", "body", "key_header")
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", FutureWarning)  # it announces its successor at every import
                import google.generativeai as sdk
                from google.generativeai import client
        except ImportError as error:  # requirements.newest.lock is without it, since it holds protobuf below 6
            raise InputError(
                f"gemini:{endpoint.model}: google-generativeai cannot be imported ({error}); pip install "
                f"'google-generativeai>=0.8.6' 'protobuf<6', or name the model google-genai:{endpoint.model}"
            ) from None
        import requests

        quieten("urllib3", "google", "google.auth", "google.api_core")
        self._requests, self._sdk = requests, sdk
        self._endpoint, self._deadline_seconds = endpoint, deadline_seconds
        # `configure` is global, so the client is taken before anyone else configures.
        options = {"api_endpoint": endpoint.url} if endpoint.base_url else None
        sdk.configure(api_key=endpoint.key, transport="rest", client_options=options)
        self._client = client.get_default_generative_client()
        session: Any = vars(self._client.transport)["_session"]
        session.headers.update(endpoint.headers)
        self._received = threading.local()  # the response of the call of this thread
        session.hooks["response"].append(self._keep)
        # The session's own pool keeps ten connections and opens a new one for every call beyond.
        pool = requests.adapters.HTTPAdapter(pool_connections=4, pool_maxsize=max_in_flight)
        for scheme in ("http://", "https://"):
            session.mount(scheme, pool)
        self._model = functools.lru_cache(_MODELS_CACHED)(self._model_with)

    def _keep(self, response: Any, **_: Any) -> None:
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

        # A daemon thread of its own, so that a call that hangs does not keep the interpreter from ending.
        threading.Thread(target=work, name="gemini", daemon=True).start()
        return await asyncio.wrap_future(outcome)

    async def identify(self) -> str:
        """Nothing: answers say which version gave them; see `Provider.identify`."""
        return ""

    async def close(self) -> None:
        """Closes its connections."""
        self._client.transport.close()

    def _ask(self, request: Request) -> Reply:
        errors, url, endpoint = self._requests.exceptions, self._endpoint.url, self._endpoint
        sent = endpoint.features(request)
        system, user = endpoint.instructions(request, sent)
        decoding, received = decoding_of(request, sent), self._received
        received.response = None
        try:
            # Left to itself the library retries a 503, even past the timeout.
            self._model(system).generate_content(
                user,
                generation_config=decoding,
                request_options={"timeout": self._deadline_seconds, "retry": None},
            )
        except errors.ConnectTimeout:
            raise Transient("unreachable", f"no connection to {url} in time") from None
        except errors.Timeout:
            raise Transient("timeout", f"no answer from {url} in time") from None
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
