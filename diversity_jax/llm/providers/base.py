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
        self.key_variables = " or ".join(info.key_variables)
        self.key = self._key(info.key_variables)
        self.url = base_url or (info.url_variable and os.environ.get(info.url_variable)) or info.public_url
        if not _is_address(self.url):
            raise InputError(f"{info.url_variable}: {self.url!r} is no address; correct it or unset it")
        parts = urllib.parse.urlsplit(self.url)
        self.url = urllib.parse.urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2]))  # without a password
        self._estimates_announced = False

    def _key(self, variables: tuple[str, ...]) -> str:
        for variable in variables:
            key = os.environ.get(variable, "").strip()
            if key and not (key.isascii() and key.isprintable()):
                raise InputError(f"{variable}: holds characters that no API key has; set it again")
            if key:
                return key
        if self.base_url is None:
            raise InputError(f"{self.role}: {self.name} needs an API key; set {self.key_variables} in the environment")
        return "none"

    def bad_address(self) -> InputError:
        """The error for a base URL that is none."""
        return InputError(
            f"{self.role} base_url: {self.base_url!r} is no address; write one such as http://127.0.0.1:8000/v1"
        )

    def failure(
        self, status: int, message: str, *, code: str | None = None, retry_after_seconds: float | None = None
    ) -> Exception:
        """What an HTTP status other than success means for the run."""
        shown = self._redacted(message)
        if status in (401, 403) or (status == 400 and "api key not valid" in message.lower()):
            return InputError(
                f"{self.role}: {self.url} does not accept the API key for {self.name} ({status}); set "
                f"{self.key_variables} to a valid one"
            )
        if status == 404:
            return InputError(
                f"{self.role}: {self.url} knows no {self.name} (404: {shown}); correct the model's name or the base URL"
            )
        if status == 402 or (status == 429 and code in _OUT_OF_CREDIT_CODES):
            return InputError(
                f"{self.role}: {self.url} says the account is out of credit ({shown}); add credit, then run again to "
                "go on from the answers kept so far"
            )
        if status == 429:
            return Transient("rate_limited", shown, retry_after_seconds=retry_after_seconds)
        if status >= 500 or status in _TRANSIENT_STATUSES:
            return Transient("server", f"{status} {shown}", retry_after_seconds=retry_after_seconds)
        return Rejected(f"{status} {shown}")

    def _redacted(self, message: str) -> str:
        """A server's message as one short line without the key or anything that looks like one."""
        if len(self.key) > 5:
            message = message.replace(self.key, "***")
        return " ".join(_KEY_LIKE.sub("***", message).split())[:_SHOWN_CHARACTERS]

    def token_counts(
        self, request: Request, text: str, prompt_tokens: int | None, completion_tokens: int | None
    ) -> tuple[int, int]:
        """Prompt and completion tokens as the server gave them; missing ones are estimated, which is logged once."""
        if prompt_tokens is not None and completion_tokens is not None:
            return prompt_tokens, completion_tokens
        if not self._estimates_announced:
            self._estimates_announced = True
            _logger.warning("%s reports no token counts; they are estimated from the text", self.name)
        return estimate_tokens(request.system) + estimate_tokens(request.user), estimate_tokens(text)


def open_provider(
    name: str, *, base_url: str | None, max_in_flight: int, deadline_seconds: float, role: str = "judge"
) -> Provider:
    """Opens the connection to `provider:model`; call it inside the event loop.

    Raises:
      InputError: unknown provider, bad address, missing SDK or API key.
    """
    endpoint = Endpoint(name, base_url, role)
    try:
        return load(endpoint.info.client)(endpoint, max_in_flight=max_in_flight, deadline_seconds=deadline_seconds)
    except ImportError as error:
        raise InputError(
            f"{role}: {name} needs a package that is missing here ({error}); install it, or choose another {role}"
        ) from None


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
        value = headers.get(name)
        if value is None:
            continue
        try:
            return max(float(value) / scale, 0.0)
        except ValueError:
            with contextlib.suppress(ValueError):
                return max(email.utils.parsedate_to_datetime(value).timestamp() - time.time(), 0.0)
    return None


def checked_reply(
    text: str, counts: tuple[int, int], *, missing: str | None = None, cut: bool = False, refused: str | None = None
) -> Reply:
    """The reply, if the model ended it by itself.

    Args:
      text: its text.
      counts: prompt and completion tokens.
      missing: what the answer lacks, if it has no text at all.
      cut: whether it was cut at `max_output_tokens`.
      refused: how the answer was refused or withheld, if it was.

    Raises:
      CallFailed: it is missing, cut, refused or empty.
    """
    failure = None
    if missing:
        failure = ("empty", missing)
    elif cut:
        failure = ("truncated", f"the answer was cut at {counts[1]} tokens; raise max_output_tokens")
    elif refused:
        failure = ("refused", refused)
    elif not text.strip():
        failure = ("empty", "the answer is empty")
    if failure:
        raise CallFailed(*failure, prompt_tokens=counts[0], completion_tokens=counts[1])
    return Reply(text=text, prompt_tokens=counts[0], completion_tokens=counts[1])


def quieten(*loggers: str) -> None:
    """Keeps HTTP libraries from logging every request with its URL at the level at which this project logs."""
    for name in loggers:
        if logging.getLogger(name).level == logging.NOTSET:
            logging.getLogger(name).setLevel(logging.WARNING)
