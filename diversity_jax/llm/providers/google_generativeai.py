"""Gemini through google-generativeai over REST, in a thread per call: its REST transport is synchronous.

The package has reached the end of its life and stays supported here; `google-genai` is its successor.
"""

import asyncio
import concurrent.futures
import functools
import threading
from typing import Any
import warnings

from diversity_jax.llm.providers.base import Endpoint, Rejected, Reply, Transient, quieten, retry_after
from diversity_jax.llm.providers.google_genai import decoding_of
from diversity_jax.llm.types import Request

_MODELS_CACHED = 64  # one per system instruction


class Gemini:
    """A `Provider`. The key comes from GEMINI_API_KEY or GOOGLE_API_KEY; an address of one's own may need none."""

    sends_schemas = True

    def __init__(self, endpoint: Endpoint, *, max_in_flight: int, deadline_seconds: float):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # it announces its successor at every import
            import google.generativeai as sdk
            from google.generativeai import client
        from google.api_core import exceptions
        from google.protobuf.json_format import ParseError
        import requests

        quieten("urllib3", "google", "google.auth", "google.api_core")
        self._exceptions, self._parse_error, self._requests, self._sdk = exceptions, ParseError, requests, sdk
        self._endpoint, self._deadline_seconds = endpoint, deadline_seconds
        # `configure` is global, so the client is taken before anyone else configures.
        options = {"api_endpoint": endpoint.base_url} if endpoint.base_url else None
        sdk.configure(api_key=endpoint.key, transport="rest", client_options=options)
        self._client = client.get_default_generative_client()
        session: Any = vars(self._client.transport)["_session"]
        # The session's own pool keeps ten connections and opens a new one for every call beyond.
        pool = requests.adapters.HTTPAdapter(pool_connections=4, pool_maxsize=max_in_flight)
        for scheme in ("http://", "https://"):
            session.mount(scheme, pool)
        self._model = functools.lru_cache(_MODELS_CACHED)(self._model_with)

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

    async def close(self) -> None:
        """Closes its connections."""
        self._client.transport.close()

    def _ask(self, request: Request) -> Reply:
        errors, url, config = self._requests.exceptions, self._endpoint.url, decoding_of(request)
        try:
            # Left to itself the library retries a 503, even past the timeout.
            reply = self._model(request.system).generate_content(
                request.user,
                generation_config=config,
                request_options={"timeout": self._deadline_seconds, "retry": None},
            )
        except self._exceptions.GoogleAPICallError as error:
            raise self._refused(error) from None
        except errors.ConnectTimeout:
            raise Transient("unreachable", f"no connection to {url} in time") from None
        except errors.Timeout:
            raise Transient("timeout", f"no answer from {url} in time") from None
        except errors.ConnectionError as error:
            if "NewConnectionError" in repr(error) or "NameResolutionError" in repr(error):
                raise Transient("unreachable", f"{url}: the connection was refused") from None
            raise Transient("dropped", f"{url}: the connection was closed") from None
        except (ValueError, TypeError, self._parse_error, errors.RequestException):
            raise self._endpoint.garbled() from None
        usage = reply.usage_metadata
        # The library knows no thinking tokens, but they are in the total and on the bill.
        completion_tokens = max(usage.total_token_count - usage.prompt_token_count, usage.candidates_token_count)
        candidate = reply.candidates[0] if reply.candidates else None
        blocked = reply.prompt_feedback.block_reason
        return self._endpoint.reply(
            request,
            "".join(part.text for part in candidate.content.parts) if candidate else "",
            candidate.finish_reason.name if candidate else None,
            usage.prompt_token_count if usage.total_token_count else None,
            completion_tokens,
            blocked=blocked.name if blocked else None,
        )

    def _refused(self, error: Any) -> Exception:
        if error.code is None:
            return Rejected(f"400 {type(error).__name__}")
        seconds = retry_after(getattr(error.response, "headers", None) or {})
        for detail in error.details or ():
            if seconds is None and hasattr(detail, "retry_delay"):
                seconds = detail.retry_delay.seconds + detail.retry_delay.nanos / 1e9
        return self._endpoint.failure(int(error.code), str(error.message), retry_after_seconds=seconds)
