"""Gemini through google-generativeai, over REST, one thread a call: its REST transport has no asynchronous side.

The package has reached the end of its life and stays supported here; `google-genai` is its successor.
"""

import asyncio
from collections.abc import Callable, Sequence
import functools
import os
import queue
import threading
from types import ModuleType
from typing import Any
import urllib.parse
import warnings

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
)
from diversity_jax.llm.providers.google_schema import gemini_schema
from diversity_jax.llm.providers.http import goes_through_a_proxy
from diversity_jax.llm.types import Request, Schema

KEY_VARIABLES = ("GEMINI_API_KEY", "GOOGLE_API_KEY")
PUBLIC_URL = "https://generativelanguage.googleapis.com"
_PROMPTS_KEPT = 64


class Gemini:
    """One Gemini model. The key comes from GEMINI_API_KEY or GOOGLE_API_KEY; an address of one's own may need none."""

    def __init__(self, model: str, *, base_url: str | None, threads: int):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # it announces its successor at every import
            import google.generativeai as sdk
        from google.api_core import exceptions
        from google.protobuf.json_format import ParseError
        import requests

        quieten("urllib3", "google", "google.auth", "google.api_core")
        self._exceptions, self._parse_error, self._requests, self._sdk = exceptions, ParseError, requests, sdk
        judge = f"gemini:{model}"
        key = key_from_environment(judge, KEY_VARIABLES, needed=base_url is None)
        self._address = Address(judge=judge, url=base_url or PUBLIC_URL, key_variables=KEY_VARIABLES, key=key)
        self._model = model
        self._usage = Usage(judge)
        self._direct: DirectPost | None = None
        self._client = self._make_client(base_url, threads)
        self._prompted = functools.lru_cache(_PROMPTS_KEPT)(self._with_system)
        self._enforced = functools.lru_cache(_PROMPTS_KEPT)(self._as_the_library_has_it)
        self._threads = _Threads(threads)

    def _make_client(self, base_url: str | None, threads: int) -> Any:
        """A client of this object alone: `configure` is global, so the client is taken before anyone else
        configures.
        """
        from google.generativeai import client

        options = {"api_endpoint": base_url} if base_url else None
        self._sdk.configure(api_key=self._address.key, transport="rest", client_options=options)
        made = client.get_default_generative_client()
        session = made.transport._session
        if goes_through_a_proxy(self._address.url):
            # The session's own pool keeps ten connections and opens a new one for every call beyond.
            pool = self._requests.adapters.HTTPAdapter(pool_connections=4, pool_maxsize=threads)
            for scheme in ("http://", "https://"):
                session.mount(scheme, pool)
        else:
            self._direct = session.post = DirectPost(self._requests, session.credentials, threads)
        return made

    def _with_system(self, system: str) -> Any:
        model = self._sdk.GenerativeModel(self._model, system_instruction=system or None)
        model._client = self._client
        return model

    def _as_the_library_has_it(self, schema: Schema) -> Any:
        """A schema as the library's own object, into which it would turn it anew for every call."""
        from google.generativeai.types import generation_types

        return generation_types.to_generation_config_dict({"response_schema": gemini_schema(schema)})["response_schema"]

    async def ask(self, request: Request, deadline_seconds: float) -> Answer:
        """Makes one attempt; see `Provider.ask`."""
        # The library's time-out is one of silence, so a server that trickles could hold a call for ever.
        try:
            async with asyncio.timeout(deadline_seconds + 1):
                return await self._threads.run(lambda: self._ask(request, deadline_seconds))
        except TimeoutError:
            raise Transient("timeout", f"no answer from {self._address.url} in time") from None

    async def close(self) -> None:
        """Gives connections back."""
        self._threads.close()
        self._client.transport.close()
        if self._direct is not None:
            self._direct.close()

    def _ask(self, request: Request, deadline_seconds: float) -> Answer:
        config: dict[str, Any] = {"temperature": request.temperature, "max_output_tokens": request.max_output_tokens}
        if request.schema is not None:
            config |= {"response_mime_type": "application/json", "response_schema": self._enforced(request.schema)}
        reached, gone = self._requests.exceptions, self._address.url
        try:
            # Left to itself the library retries a 503 for long, even past the time-out.
            reply = self._prompted(request.system).generate_content(
                request.user, generation_config=config, request_options={"timeout": deadline_seconds, "retry": None}
            )
        except self._exceptions.GoogleAPICallError as error:
            raise self._refused(error) from None
        except reached.ConnectTimeout:
            raise Transient("unreachable", f"no connection to {gone} in time") from None
        except reached.Timeout:
            raise Transient("timeout", f"no answer from {gone} in time") from None
        except reached.ConnectionError as error:
            unreached = "NewConnectionError" in repr(error) or "NameResolutionError" in repr(error)
            raise Transient(
                "unreachable" if unreached else "dropped",
                f"{gone}: the connection was {'refused' if unreached else 'closed'}",
            ) from None
        except (ValueError, TypeError, self._parse_error, reached.RequestException):
            raise Transient("garbled", f"{gone} sent something that is no answer of Gemini") from None
        return self._read(reply, request)

    def _refused(self, error: Any) -> Exception:
        if error.code is None:
            return Rejected(400, f"400 {type(error).__name__}")
        seconds = retry_after(getattr(error.response, "headers", None) or {})
        for detail in error.details or ():
            if seconds is None and hasattr(detail, "retry_delay"):
                seconds = detail.retry_delay.seconds + detail.retry_delay.nanos / 1e9
        return failure_of(self._address, int(error.code), str(error.message), retry_after_seconds=seconds)

    def _read(self, reply: Any, request: Request) -> Answer:
        usage = reply.usage_metadata
        # The library knows no thinking tokens, but they are in the total and on the bill.
        completion = max(usage.total_token_count - usage.prompt_token_count, usage.candidates_token_count)
        counted = (usage.prompt_token_count, completion) if usage.total_token_count else (None, None)
        candidate = reply.candidates[0] if reply.candidates else None
        text = "".join(part.text for part in candidate.content.parts) if candidate else ""
        counts = self._usage.counts(request, text, *counted)
        blocked = reply.prompt_feedback.block_reason
        return read_ending(
            text, blocked.name if blocked else None, candidate and candidate.finish_reason.name, counts, request
        )


def read_ending(
    text: str, blocked: str | None, finish_reason: str | None, counts: tuple[int, int], request: Request
) -> Answer:
    """The answer, if the model ended it by itself.

    Raises:
      CallFailed: the prompt was blocked, or the answer is empty, cut or withheld.
    """
    if blocked:
        raise unusable("refused", f"the prompt was blocked ({blocked})", counts)
    if finish_reason is None:
        raise unusable("empty", "the answer has no candidates", counts)
    if finish_reason == "MAX_TOKENS":
        raise unusable(
            "truncated", f"the answer was cut at {request.max_output_tokens} tokens; raise max_output_tokens", counts
        )
    if finish_reason != "STOP":
        raise unusable("refused", f"the answer was withheld ({finish_reason})", counts)
    if not text.strip():
        raise unusable("empty", "the answer is empty", counts)
    return Answer(text=text, prompt_tokens=counts[0], completion_tokens=counts[1])


class DirectPost:
    """A session's `post` by urllib3 alone, on which `requests` stands: what that adds to each call (cookies, redirects,
    netrc, looking for proxies) takes more CPU than everything else.

    Args:
      credentials: of the session; they put the key in.
      threads: connections kept at most.
    """

    def __init__(self, requests: ModuleType, credentials: Any, threads: int):
        import urllib3

        trusted = os.environ.get("REQUESTS_CA_BUNDLE") or os.environ.get("CURL_CA_BUNDLE") or requests.certs.where()
        self._requests, self._urllib3, self._credentials = requests, urllib3, credentials
        self._pools = urllib3.PoolManager(num_pools=4, maxsize=threads, retries=False, ca_certs=trusted)

    def __call__(
        self, url: str, *, timeout: float, headers: dict[str, str], params: Sequence[tuple[str, Any]], data: str
    ) -> Any:
        """The response, as `requests.Session.post` returns it, or its exceptions."""
        errors, low = self._requests.exceptions, self._urllib3.exceptions
        self._credentials.apply(headers)
        whole = f"{url}?{urllib.parse.urlencode(params)}" if params else url
        try:
            got = self._pools.request(
                "POST", whole, body=data.encode(), headers=headers, timeout=timeout, redirect=False
            )
        except low.ConnectTimeoutError as error:  # a refused connection is one too
            raise (errors.ConnectionError if isinstance(error, low.NewConnectionError) else errors.ConnectTimeout)(
                error
            ) from None
        except low.ReadTimeoutError as error:
            raise errors.ReadTimeout(error) from None
        except (low.DecodeError, low.LocationValueError, low.LocationParseError) as error:
            raise errors.RequestException(error) from None
        except low.HTTPError as error:
            raise errors.ConnectionError(error) from None
        response = self._requests.Response()
        response.status_code, response.reason, response._content = got.status, got.reason, got.data
        response.headers.update(got.headers)
        response.request = self._requests.Request("POST", whole)  # the library's errors name it
        return response

    def close(self) -> None:
        """Closes the idle connections."""
        self._pools.clear()


class _Threads:
    """A pool of daemon threads: one that hangs in a dead connection does not keep the interpreter from ending."""

    def __init__(self, limit: int):
        self._limit = limit
        self._started = 0
        self._idle = 0
        self._work: queue.SimpleQueue = queue.SimpleQueue()

    async def run(self, call: Callable[[], Any]) -> Any:
        """Runs `call` in a thread."""
        loop = asyncio.get_running_loop()
        future = loop.create_future()
        if not self._idle and self._started < self._limit:
            self._started += 1
            threading.Thread(target=self._serve, name="gemini", daemon=True).start()
        else:
            self._idle -= 1
        self._work.put((call, loop, future))
        return await future

    def close(self) -> None:
        """Lets the threads end."""
        for _ in range(self._started):
            self._work.put(None)

    def _serve(self):
        while (job := self._work.get()) is not None:
            call, loop, future = job
            try:
                outcome = (call(), None)
            except BaseException as error:
                outcome = (None, error)
            if loop.is_closed():
                return
            loop.call_soon_threadsafe(self._deliver, future, *outcome)

    def _deliver(self, future: asyncio.Future, result: Any, error: BaseException | None):
        self._idle += 1
        if future.done():
            return
        if error is None:
            future.set_result(result)
        else:
            future.set_exception(error)
