"""What all providers share: the protocol, how one is opened, and connections."""

import logging
import os
import ssl
from typing import Any, Protocol
import urllib.parse
import urllib.request

from diversity_jax.core.errors import InputError
from diversity_jax.llm.providers.endpoint import Endpoint
from diversity_jax.llm.providers.outcomes import Reply, Transient
from diversity_jax.llm.providers.outcomes import retry_after as retry_after
from diversity_jax.llm.providers.registry import load
from diversity_jax.llm.types import Request

# Servers close idle connections after about five seconds, and a request on a closed one counts as dropped.
_KEEP_ALIVE_SECONDS = 4.0
_CONNECT_SECONDS = 20.0


class Provider(Protocol):
    """A connection to one model."""

    async def ask(self, request: Request) -> Reply:
        """Makes one attempt; the caller sets the deadline.

        Raises:
          Transient: another attempt may succeed.
          Refused: the server refuses the request.
        """

    async def identify(self) -> str:
        """What the server says it serves under the model's name, or empty where it does not say; asks for nothing that
        is paid.
        """

    async def close(self) -> None:
        """Closes its connections."""


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


def quieten(*loggers: str) -> None:
    """Keeps HTTP libraries from logging every request with its URL at the level at which this project logs."""
    for name in loggers:
        if logging.getLogger(name).level == logging.NOTSET:
            logging.getLogger(name).setLevel(logging.WARNING)
