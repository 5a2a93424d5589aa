"""The provider protocol, how a provider is opened, and HTTP sessions."""

import logging
import os
import ssl
from typing import Any, Protocol
import urllib.parse
import urllib.request

from diversity_jax.core.errors import InputError
from diversity_jax.llm.providers.endpoint import Endpoint
from diversity_jax.llm.providers.outcomes import Reply, Transient
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
        """The server's description of the model behind its name, or empty; from a request that costs nothing."""

    async def close(self) -> None:
        """Closes the connections."""


def connect(kind: str, endpoint: Endpoint, **settings: Any) -> Any:
    """An instance of the class that `kind` (`client` or `batches`) of the `ProviderInfo` names; make a client inside
    the event loop.

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

    Raises:
      InputError: the environment names a proxy that is none of HTTP, or certificates that are not there.
    """
    import aiohttp

    parts = urllib.parse.urlsplit(url)
    verified = _trusted() if parts.scheme == "https" else True
    return aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=_KEEP_ALIVE_SECONDS, ssl=verified),
        timeout=aiohttp.ClientTimeout(total=None, sock_connect=_CONNECT_SECONDS),
        cookie_jar=aiohttp.DummyCookieJar(),
        proxy=_proxy(parts.scheme, parts.hostname or ""),
        **settings,
    )


def _proxy(scheme: str, host: str) -> str | None:
    """The address of the environment's proxy; like curl, one without a scheme is of HTTP."""
    proxies = urllib.request.getproxies()
    proxy = None if urllib.request.proxy_bypass(host) else proxies.get(scheme, proxies.get("all"))
    if not proxy or "://" not in proxy:
        return proxy and f"http://{proxy}"
    if not proxy.lower().startswith(("http://", "https://")):
        kind = proxy.partition("://")[0]
        raise InputError(
            f"{scheme}_proxy or all_proxy: {kind} is no proxy of HTTP; name one, or put {host} in no_proxy"
        )
    return proxy


def _trusted() -> ssl.SSLContext:
    """TLS with the CA certificates of the environment, or those of certifi, since not every machine has any."""
    given = {name: path for name in ("SSL_CERT_FILE", "SSL_CERT_DIR") if (path := os.environ.get(name))}
    for name, path in given.items():
        if not os.path.exists(path):
            raise InputError(f"{name}: {path}: no such file or folder; correct it or unset it")
    if given:
        return ssl.create_default_context()
    import certifi

    return ssl.create_default_context(cafile=certifi.where())


def untrusted(url: str, error: Exception, variable: str = "SSL_CERT_FILE") -> Transient:
    """The failure of an attempt at a server whose certificate is not trusted; `variable` names those that are."""
    return Transient("unreachable", f"{url}: {error}; name the certificate of its CA in {variable}")


def transport_failure(error: Exception, url: str) -> Transient:
    """The failure of an attempt that an exception of aiohttp stands for."""
    import aiohttp

    if isinstance(error, aiohttp.ClientConnectorCertificateError):
        return untrusted(url, error.certificate_error)
    unreached = (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError, aiohttp.ClientHttpProxyError)
    if isinstance(error, unreached):
        return Transient("unreachable", f"{url}: {error}")
    if isinstance(error, TimeoutError):
        return Transient("timeout", f"no answer from {url} in time")
    return Transient("dropped", f"{url}: {str(error) or 'the connection was closed'}")


def quieten(*loggers: str) -> None:
    """Raises loggers of HTTP libraries to WARNING, since at INFO they log the URL of every request."""
    for name in loggers:
        if logging.getLogger(name).level == logging.NOTSET:
            logging.getLogger(name).setLevel(logging.WARNING)
