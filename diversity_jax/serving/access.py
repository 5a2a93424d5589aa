"""Access control of the server: checks of Host, Origin, key and content type, CORS headers, limits of request bodies.

A browser lets any web page send requests to this machine. The header `Origin` names the page, and `Host` the name under
which the server was reached, which the page's owner can resolve to 127.0.0.1 (DNS rebinding); so both are checked.
"""

import asyncio
from collections.abc import AsyncIterator
import contextlib
from dataclasses import dataclass
import hmac
import ipaddress
import re
import socket
from typing import Any

from aiohttp import hdrs, web
from aiohttp.web_protocol import RequestPayloadError


class RequestRefused(Exception):
    """A request that is answered with an error: HTTP status, message, the parameter at fault and OpenAI's `code`."""

    def __init__(self, status: int, message: str, *, param: str | None = None, code: str | None = None):
        super().__init__(message)
        self.status, self.message, self.param, self.code = status, message, param, code

    def body(self) -> dict[str, Any]:
        """The error in OpenAI's format."""
        kind = "server_error" if self.status >= 500 else "invalid_request_error"
        kind = "rate_limit_error" if self.status == 429 else kind
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}


def shown(value: Any, most: int = 80) -> str:
    """A client's value for a message: one line of limited length."""
    if isinstance(value, int) and abs(value) >= 10**most:  # Python refuses to print thousands of digits
        return f"an integer of {most} digits or more"
    text = repr(value)
    return text if len(text) <= most else f"{text[:most]}..."


LOOPBACK = ("127.0.0.1", "::1", "localhost")
_ALL_ADDRESSES = ("", "0.0.0.0", "::")
_HOST = re.compile(r"(\[[0-9a-f:.]+\]|[a-z0-9_.-]+)(:\d{1,5})?")
_HEADER_NAMES = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~, -]{1,2000}")
_OPEN_PATHS = ("/health",)  # need no key: they reveal nothing of the model, and supervisors ask for them


def is_address(host: str) -> bool:
    """Whether a host is an IP address, which needs no name resolution."""
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


@dataclass(frozen=True, kw_only=True)
class Access:
    """Checks the headers of requests.

    Attributes:
      hosts: names and addresses that `Host` may have.
      any_address: `Host` may be any IP address, since the server listens on all.
      origins: origins of pages that may send requests and read answers; `*`: all.
      key: required in `Authorization: Bearer`; None: no key is required.
    """

    hosts: frozenset[str]
    any_address: bool = False
    origins: tuple[str, ...] = ()
    key: bytes | None = None

    @classmethod
    def bound(cls, host: str, *, allowed: tuple[str, ...] = (), origins: tuple[str, ...] = (), key: str | None = None):
        """Access to a server that listens on `host`."""
        everywhere = host in _ALL_ADDRESSES
        local = [host]
        if everywhere:
            local = [*LOOPBACK, socket.gethostname(), socket.getfqdn()]
        elif host in LOOPBACK:
            local = [*LOOPBACK]
        names = frozenset(name.lower() for name in (*local, *allowed))
        return cls(hosts=names, any_address=everywhere, origins=origins, key=key.encode() if key else None)

    def check(self, request: web.Request) -> None:
        """Raises `RequestRefused` (401 or 403) for requests that are not allowed."""
        given = request.headers.getall(hdrs.HOST, [])
        match = _HOST.fullmatch(given[0].lower()) if len(given) == 1 else None
        host = match[1].strip("[]") if match else ""
        if not host or not (host in self.hosts or (self.any_address and is_address(host))):
            name = shown(given[0]) if given else "missing"
            raise RequestRefused(403, f"Host is {name}, which is not this server's; add it to allow_host to let it in")
        origin = request.headers.get(hdrs.ORIGIN)
        if (
            origin is not None
            and not self.allows(origin)
            and origin not in (f"http://{given[0]}", f"https://{given[0]}")
        ):
            raise RequestRefused(
                403, f"pages of {shown(origin)} may not ask; add the origin to allow_origin to let them"
            )
        if self.key is None or request.path in _OPEN_PATHS or is_preflight(request):
            return
        scheme, _, sent = request.headers.get(hdrs.AUTHORIZATION, "").partition(" ")
        right = hmac.compare_digest(sent.strip().encode(errors="surrogateescape"), self.key)
        if scheme.lower() != "bearer" or not right:
            message = "this server needs its key; send it as Authorization: Bearer KEY"
            raise RequestRefused(401, message, code="invalid_api_key")

    def allows(self, origin: str) -> bool:
        """Whether pages of an origin may read answers."""
        return "*" in self.origins or origin in self.origins

    async def add_headers(self, request: web.Request, response: web.StreamResponse) -> None:
        """Adds CORS headers, and replaces the `Server` header, which would name software and versions."""
        response.headers[hdrs.SERVER] = "diversity_jax"
        response.headers["X-Content-Type-Options"] = "nosniff"
        if self.origins:
            response.headers[hdrs.VARY] = "Origin"
        origin = request.headers.get(hdrs.ORIGIN)
        if origin is None or not self.allows(origin):
            return
        response.headers[hdrs.ACCESS_CONTROL_ALLOW_ORIGIN] = origin
        if is_preflight(request):
            wanted = request.headers.get(hdrs.ACCESS_CONTROL_REQUEST_HEADERS, "")
            wanted = wanted if _HEADER_NAMES.fullmatch(wanted) else "authorization, content-type"
            response.headers[hdrs.ACCESS_CONTROL_ALLOW_HEADERS] = wanted
            response.headers[hdrs.ACCESS_CONTROL_ALLOW_METHODS] = "GET, POST, OPTIONS"
            response.headers[hdrs.ACCESS_CONTROL_MAX_AGE] = "600"
            if request.headers.get("Access-Control-Request-Private-Network") == "true":
                response.headers["Access-Control-Allow-Private-Network"] = "true"


def is_preflight(request: web.Request) -> bool:
    """Whether this is a CORS preflight request."""
    return request.method == "OPTIONS" and hdrs.ACCESS_CONTROL_REQUEST_METHOD in request.headers


class BodyReader:
    """Reads JSON bodies of requests, with limits of size and time.

    Args:
      each_bytes: most bytes of a body.
      together_bytes: most bytes of all bodies that are being read or parsed.
      seconds: timeout of receiving a body.
    """

    def __init__(self, each_bytes: int, together_bytes: int, seconds: float):
        self._each, self._together, self._seconds = each_bytes, together_bytes, seconds
        self._held_bytes = 0

    @contextlib.asynccontextmanager
    async def read(self, request: web.Request) -> AsyncIterator[bytes]:
        """The body, which counts against `together_bytes` until the context ends.

        Raises:
          RequestRefused: not JSON by its headers (415), too long (413), too slow (408), too many at once (429), or
            incomplete (400).
        """
        _check_type(request)
        data = bytearray()
        try:
            async with asyncio.timeout(self._seconds):
                async for part in request.content.iter_any():
                    data += part
                    self._held_bytes += len(part)
                    if len(data) > self._each:
                        raise RequestRefused(
                            413, f"the body is too large for this server, which takes {self._each:,} bytes"
                        )
                    if self._held_bytes > self._together:
                        message = "too many requests are being sent at once; try again in a while"
                        raise RequestRefused(429, message, code="rate_limit_exceeded")
            yield bytes(data)
        except TimeoutError:
            raise RequestRefused(408, f"the body did not arrive within {self._seconds:g} seconds") from None
        except RequestPayloadError as error:
            raise RequestRefused(400, f"the body cannot be read ({' '.join(str(error).split())[:200]})") from None
        finally:
            self._held_bytes -= len(data)


def _check_type(request: web.Request) -> None:
    """Requires JSON: browsers let any page send forms and plain text without a preflight request."""
    given = request.headers.get(hdrs.CONTENT_TYPE, "")
    charset = (request.charset or "utf-8").lower().replace("_", "-")
    if request.content_type != "application/json" or not given or charset not in ("utf-8", "utf8", "us-ascii"):
        message = f"Content-Type is {shown(given) if given else 'missing'}; send application/json, in UTF-8"
        raise RequestRefused(415, message)
    if (encoding := request.headers.get(hdrs.CONTENT_ENCODING, "identity").lower()) != "identity":
        raise RequestRefused(415, f"Content-Encoding is {shown(encoding)}; send the body as it is")
