"""What all providers share: where a model is reached, and what the end of an attempt means."""

from collections.abc import Mapping
import contextlib
from dataclasses import dataclass
import email.utils
import logging
import os
import re
import ssl
import time
from typing import Any, Protocol
import urllib.parse
import urllib.request

from diversity_jax.core.errors import InputError
from diversity_jax.llm.cost_forecast import estimate_tokens
from diversity_jax.llm.providers.registry import PROVIDERS, load, parse_model
from diversity_jax.llm.types import CallFailed, Request

_logger = logging.getLogger(__name__)
_KEY_LIKE = re.compile(r"(sk-|AIza|Bearer )[\w*.-]{6,}")
_SHOWN_CHARACTERS = 160
# Statuses below 500 after which another attempt may succeed: gateway time-outs and locks.
_TRANSIENT_STATUSES = (408, 409, 425)
_OUT_OF_CREDIT_CODES = ("insufficient_quota", "billing_hard_limit_reached")
# How servers say that the model stopped by itself, and that it was cut at the longest allowed answer.
_COMPLETE = ("stop", "eos_token", "stop_sequence", "end_turn", "STOP")
_CUT = ("length", "MAX_TOKENS")
# Servers close idle connections after about five seconds, and a request on a closed one counts as dropped.
_KEEP_ALIVE_SECONDS = 4.0
_CONNECT_SECONDS = 20.0


@dataclass(frozen=True, kw_only=True)
class Reply:
    """A whole answer of a server; tokens as the server counted them."""

    text: str
    prompt_tokens: int
    completion_tokens: int


class Transient(Exception):
    """An attempt failed in a way that another may not.

    Attributes:
      kind: `rate_limited`, `server`, `timeout`, `dropped`, `garbled`, `unreachable` (not even sent), or `adapted` (the
        provider has learnt what the server does not take and leaves it out from now on: ask again at once).
      retry_after_seconds: the pause that the server asks for, if it does.
      billed: whether the attempt may have been paid for; a server that dropped a connection may have answered.
    """

    def __init__(self, kind: str, detail: str, *, retry_after_seconds: float | None = None):
        super().__init__(f"{kind}: {detail}")
        self.kind = kind
        self.detail = detail
        self.retry_after_seconds = retry_after_seconds
        self.billed = kind in ("timeout", "dropped", "garbled")


class Rejected(Exception):
    """The server calls the request itself wrong (400 and its kin)."""

    def __init__(self, detail: str):
        super().__init__(detail)
        self.detail = detail


class Provider(Protocol):
    """A connection to one model."""

    @property
    def sends_schemas(self) -> bool:
        """Whether the server is sent the schema of a request, having refused none so far."""

    async def ask(self, request: Request) -> Reply:
        """Makes one attempt; the caller sets the deadline.

        Raises:
          Transient: another attempt may succeed.
          Rejected: the server finds the request wrong.
          CallFailed: the model ended without a usable answer.
          InputError: no call can succeed: a wrong key, an unknown model.
        """

    async def close(self) -> None:
        """Closes its connections."""


class Endpoint:
    """A model at an address, with the API key of the environment.

    Args:
      name: `provider:model`.
      base_url: address of a server of one's own, which may need no key; None for the provider's own.
      role: what the model is used as, such as `judge`; messages begin with it.

    Raises:
      InputError: a bad name or address, or no key though one is needed.
    """

    def __init__(self, name: str, base_url: str | None, role: str):
        provider, self.model = parse_model(name, role)
        self.info = info = PROVIDERS[provider]
        self.name, self.role, self.base_url = name, role, base_url
        if base_url is not None and not _is_address(base_url):
            raise self.bad_address()
        self._key_variables = " or ".join(info.key_variables)
        keys = {variable: os.environ.get(variable, "").strip() for variable in info.key_variables}
        variable, self.key = next(((variable, key) for variable, key in keys.items() if key), ("", "none"))
        if not variable and base_url is None:
            raise InputError(f"{role}: {name} needs an API key; set {self._key_variables} in the environment")
        if not (self.key.isascii() and self.key.isprintable()):
            raise InputError(f"{variable}: holds characters that no API key has; set it again")
        url = base_url or (info.url_variable and os.environ.get(info.url_variable)) or info.public_url
        if not _is_address(url):
            raise InputError(f"{info.url_variable}: {url!r} is no address; correct it or unset it")
        parts = urllib.parse.urlsplit(url)
        self.url = urllib.parse.urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2]))  # without a password
        self._estimates_announced = False

    def bad_address(self) -> InputError:
        """The error for a base URL that is none."""
        example = "http://127.0.0.1:8000/v1"
        return InputError(f"{self.role} base_url: {self.base_url!r} is no address; write one such as {example}")

    def failure(
        self, status: int, message: str, *, code: str | None = None, retry_after_seconds: float | None = None
    ) -> Exception:
        """What an HTTP status other than success means for the run."""
        # A server's message as one short line without the key or anything that looks like one.
        shown = message.replace(self.key, "***") if len(self.key) > 5 else message
        shown = " ".join(_KEY_LIKE.sub("***", shown).split())[:_SHOWN_CHARACTERS]
        server = f"{self.role}: {self.url}"
        if status in (401, 403) or (status == 400 and "api key not valid" in message.lower()):
            refusal = f"does not accept the API key for {self.name} ({status})"
            return InputError(f"{server} {refusal}; set {self._key_variables} to a valid one")
        if status == 404:
            return InputError(f"{server} knows no {self.name} (404: {shown}); correct the model's name or the base URL")
        if status == 402 or (status == 429 and code in _OUT_OF_CREDIT_CODES):
            return InputError(f"{server} says the account is out of credit ({shown}); add credit, then run again")
        if status == 429:
            return Transient("rate_limited", shown, retry_after_seconds=retry_after_seconds)
        if status >= 500 or status in _TRANSIENT_STATUSES:
            return Transient("server", f"{status} {shown}", retry_after_seconds=retry_after_seconds)
        return Rejected(f"{status} {shown}")

    def garbled(self) -> Transient:
        """The failure of an attempt whose answer cannot be read."""
        return Transient("garbled", f"{self.url} sent something that is no answer of a model")

    def reply(
        self,
        request: Request | None,
        text: str,
        reason: str | None,
        prompt_tokens: int | None,
        completion_tokens: int | None,
        *,
        blocked: str | None = None,
    ) -> Reply:
        """The reply, if the model ended it by itself.

        Args:
          request: from which missing token counts are estimated, which is logged once; None counts them as 0.
          text: the answer.
          reason: why the model stopped, in the server's word; None where there is no answer at all.
          prompt_tokens, completion_tokens: as the server counted them.
          blocked: why the prompt was blocked, if it was.

        Raises:
          CallFailed: it is missing, cut, refused or empty.
        """
        if prompt_tokens is None or completion_tokens is None:
            if request is None:
                prompt_tokens, completion_tokens = prompt_tokens or 0, completion_tokens or 0
            else:
                if not self._estimates_announced:
                    self._estimates_announced = True
                    _logger.warning("%s reports no token counts; they are estimated from the text", self.name)
                prompt_tokens = estimate_tokens(request.system) + estimate_tokens(request.user)
                completion_tokens = estimate_tokens(text)
        failure = None
        if blocked:
            failure = ("refused", f"the prompt was blocked ({blocked})")
        elif reason is None:
            failure = ("empty", "the server sent no answer")
        elif reason in _CUT:
            failure = ("truncated", f"the answer was cut at {completion_tokens} tokens; raise max_output_tokens")
        elif reason not in _COMPLETE:
            failure = ("refused", f"the model refused, or ended with {reason}")
        elif not text.strip():
            failure = ("empty", "the answer is empty")
        if failure:
            raise CallFailed(*failure, prompt_tokens=prompt_tokens, completion_tokens=completion_tokens)
        return Reply(text=text, prompt_tokens=prompt_tokens, completion_tokens=completion_tokens)


def open_provider(
    name: str, *, base_url: str | None, max_in_flight: int, deadline_seconds: float, role: str = "judge"
) -> Provider:
    """Opens the connection to `provider:model`; call it inside the event loop.

    Raises:
      InputError: unknown provider, bad address, missing SDK or API key.
    """
    settings = {"max_in_flight": max_in_flight, "deadline_seconds": deadline_seconds}
    return connect("client", Endpoint(name, base_url, role), **settings)


def connect(kind: str, endpoint: Endpoint, **settings: Any) -> Any:
    """Makes the class that `kind` of the provider's `ProviderInfo` names: `client` or `batches`.

    Raises:
      InputError: its package is missing.
    """
    try:
        return load(getattr(endpoint.info, kind))(endpoint, **settings)
    except ImportError as error:
        user = f"{endpoint.role}: {kind} of {endpoint.name}"
        raise InputError(f"{user} need a package that is missing here ({error}); install it") from None


def _is_address(url: str) -> bool:
    try:
        parts = urllib.parse.urlsplit(url)
        return parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port is None or parts.port > 0)
    except ValueError:
        return False


def http_session(url: str, **settings: Any) -> Any:
    """An aiohttp session for many requests at once to one address, through the proxy of the environment if it names
    one; `settings` are further ones of `aiohttp.ClientSession`.
    """
    import aiohttp

    parts, proxies = urllib.parse.urlsplit(url), urllib.request.getproxies()
    proxy = None if urllib.request.proxy_bypass(parts.hostname or "") else proxies.get(parts.scheme, proxies.get("all"))
    verified: ssl.SSLContext | bool = True
    if parts.scheme == "https" and not (os.environ.get("SSL_CERT_FILE") or os.environ.get("SSL_CERT_DIR")):
        import certifi  # as the SDKs do: not every machine has certificates of its own

        verified = ssl.create_default_context(cafile=certifi.where())
    return aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=_KEEP_ALIVE_SECONDS, ssl=verified),
        timeout=aiohttp.ClientTimeout(total=None, sock_connect=_CONNECT_SECONDS),
        cookie_jar=aiohttp.DummyCookieJar(),
        proxy=proxy,
        **settings,
    )


def transport_failure(error: Exception, url: str) -> Transient:
    """What an exception of aiohttp's means for the run."""
    import aiohttp

    unreached = (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError, aiohttp.ClientHttpProxyError)
    if isinstance(error, unreached):
        return Transient("unreachable", f"{url}: {error}")
    if isinstance(error, TimeoutError):
        return Transient("timeout", f"no answer from {url} in time")
    return Transient("dropped", f"{url}: {str(error) or 'the connection was closed'}")


def retry_after(headers: Mapping[str, str]) -> float | None:
    """Seconds of a `retry-after-ms` or `retry-after` header, which may also hold a date."""
    for name, scale in (("retry-after-ms", 1000.0), ("retry-after", 1.0)):
        value = headers.get(name, "")
        with contextlib.suppress(ValueError):
            return max(float(value) / scale, 0.0)
        with contextlib.suppress(ValueError):
            return max(email.utils.parsedate_to_datetime(value).timestamp() - time.time(), 0.0)
    return None


def quieten(*loggers: str) -> None:
    """Keeps HTTP libraries from logging every request with its URL at the level at which this project logs."""
    for name in loggers:
        if logging.getLogger(name).level == logging.NOTSET:
            logging.getLogger(name).setLevel(logging.WARNING)
