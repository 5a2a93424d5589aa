"""HTTP/1.1 connections for hundreds of requests at once.

The SDKs bring a connection pool that looks through all its connections at every request and every answer: with 256 in
flight that cost 8 ms of CPU a call, ten times everything else. This one keeps free connections on a stack. It stands
alone, or plugs into an SDK's own `httpx` client, whose time-outs and exceptions it then raises.
"""

import asyncio
from collections import defaultdict
from collections.abc import Callable, Mapping
import ssl
import time
from types import ModuleType
from typing import Any
import urllib.parse
import urllib.request

from diversity_jax.llm.providers.base import Transient

# Servers close idle connections after about five seconds; a request on a closed one would count as dropped.
_IDLE_SECONDS = 4.0
# Apart from the time for an answer: hundreds of connections at once take a while to open, and say nothing about the
# server.
_CONNECT_SECONDS = 20.0
_LONGEST_ANSWER_BYTES = 64 << 20
_OF_A_PATH = "/%:@!$&'()*+,;=~"  # what stands in one as it is, beside letters, digits and -._


def client_for(http: ModuleType, base_url: str) -> Any:
    """An asynchronous client of `http` (httpx or its successor) for `base_url`: direct, or through the proxy of the
    environment.
    """
    if goes_through_a_proxy(base_url):
        return http.AsyncClient(
            limits=http.Limits(max_connections=1024, max_keepalive_connections=1024), follow_redirects=True
        )
    transport = DirectTransport(http)

    class DirectClient(http.AsyncClient):
        """Without redirects, cookies, netrc and hooks, which no call to a model has and every call would pay for."""

        def build_request(
            self, method: str, url: Any, *, content: Any = None, headers: Any = None, timeout: Any = None, **rest: Any
        ) -> Any:
            if any(rest.values()):
                return super().build_request(method, url, content=content, headers=headers, timeout=timeout, **rest)
            extensions = {"timeout": http.Timeout(timeout).as_dict()}
            return http.Request(method, url, headers=headers, content=content, extensions=extensions)

        async def send(self, request: Any, **_: Any) -> Any:
            response = await transport.handle_async_request(request)
            await response.aread()
            return response

    return DirectClient(transport=transport, trust_env=False)


def goes_through_a_proxy(base_url: str) -> bool:
    """Whether the environment names a proxy for an address."""
    proxies = urllib.request.getproxies()
    host = urllib.parse.urlsplit(base_url).hostname or ""
    return any(name in proxies for name in ("http", "https", "all")) and not urllib.request.proxy_bypass(host)


Origin = tuple[str, str, int]  # scheme, host, port


def _origin(scheme: str, host: str, port: int | None) -> Origin:
    return scheme, host, port or (443 if scheme == "https" else 80)


class UnreachedError(OSError):
    """There was no connection, so nothing was sent; `in_vain` where it was waited for as long as one waits."""

    def __init__(self, why: str, *, in_vain: bool):
        super().__init__(why)
        self.in_vain = in_vain


class JsonPost:
    """Posts JSON bodies to one address with unchanging headers: nothing but the body is made anew for a call. Directly,
    where it can do without `httpx` and the time that its import takes, or through the proxy of the environment.

    Args:
      url: where to.
      headers: what every request carries.

    Raises:
      ValueError: the address is none.
    """

    def __init__(self, url: str, headers: Mapping[str, str]):
        parts = urllib.parse.urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError("it does not begin with http:// or https:// and a host")
        host = parts.netloc.rpartition("@")[2]
        self._url = urllib.parse.urlunsplit(parts._replace(netloc=host))  # without a password
        self._origin = _origin(parts.scheme, parts.hostname, parts.port)
        self._headers = {"accept": "application/json", **headers, "content-type": "application/json"}
        path = urllib.parse.quote(parts.path or "/", safe=_OF_A_PATH) + f"?{parts.query}" * bool(parts.query)
        lines = [
            f"POST {path} HTTP/1.1",
            *(f"{name}: {value}" for name, value in {"host": host, **self._headers}.items()),
        ]
        self._head = "\r\n".join(lines).encode() + b"\r\ncontent-length: "
        self._connections = Connections(_trusted)
        self._client = _client_of_a_proxy(url)

    async def __call__(self, content: bytes, seconds: float) -> tuple[int, Mapping[str, str], bytes]:
        """Status, headers by their lower-case names, and body of the answer.

        Raises:
          Transient: no whole answer; its kind says why.
        """
        try:
            if self._client is not None:
                return await self._through_the_proxy(content, seconds)
            data = b"%b%d\r\n\r\n%b" % (self._head, len(content), content)
            status, raw, body = await self._connections.exchange(self._origin, data, "POST", seconds)
        except UnreachedError as error:
            raise Transient("unreachable", f"{self._url}: {error}") from None
        except TimeoutError:
            raise Transient("timeout", f"no answer from {self._url} in time") from None
        except (OSError, ValueError) as error:
            raise Transient("dropped", f"{self._url}: {str(error) or 'the connection was closed'}") from None
        headers = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in raw}
        return status, headers, self._unpacked(status, raw, body) if "content-encoding" in headers else body

    def _unpacked(self, status: int, headers: list[tuple[bytes, bytes]], body: bytes) -> bytes:
        import httpx

        try:
            return httpx.Response(status, headers=headers, content=body).content
        except httpx.DecodingError as error:
            raise Transient("dropped", f"{self._url}: {error}") from None

    async def _through_the_proxy(self, content: bytes, seconds: float) -> tuple[int, Mapping[str, str], bytes]:
        """As directly, with the errors of `Connections.exchange`."""
        import httpx

        try:
            reply = await self._client.post(self._url, content=content, headers=self._headers, timeout=seconds)
        except (httpx.ConnectError, httpx.ConnectTimeout, httpx.ProxyError) as error:
            raise UnreachedError(str(error), in_vain=False) from None
        except httpx.TimeoutException:
            raise TimeoutError from None
        except httpx.TransportError as error:
            raise ValueError(str(error)) from None
        return reply.status_code, reply.headers, reply.content

    async def aclose(self) -> None:
        """Closes the idle connections."""
        self._connections.close()
        if self._client is not None:
            await self._client.aclose()


def _trusted() -> ssl.SSLContext:
    import httpx

    return httpx.create_ssl_context()


def _client_of_a_proxy(url: str) -> Any:
    """An httpx client, where the environment names a proxy for this address."""
    if not goes_through_a_proxy(url):
        return None
    import httpx

    return client_for(httpx, url)


class DirectTransport:
    """An httpx transport over plain asyncio. `http` is the module whose requests, responses and exceptions it
    speaks.
    """

    def __init__(self, http: ModuleType):
        self._http = http
        self._connections = Connections(http.create_ssl_context)

    async def __aenter__(self) -> "DirectTransport":
        return self

    async def __aexit__(self, *_: Any) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Closes the idle connections."""
        self._connections.close()

    async def handle_async_request(self, request: Any) -> Any:
        """Sends a request of httpx and returns its whole answer."""
        http, url = self._http, request.url
        body = b"".join([part async for part in request.stream])
        lines = [b"%b %b HTTP/1.1" % (request.method.encode(), url.raw_path)]
        lines += [name + b": " + value for name, value in request.headers.raw]
        data = b"\r\n".join([*lines, b"", body])
        seconds = request.extensions.get("timeout", {}).get("read")
        try:
            origin = _origin(url.scheme, url.host, url.port)
            status, headers, content = await self._connections.exchange(origin, data, request.method, seconds)
        except UnreachedError as error:
            kind = http.ConnectTimeout if error.in_vain else http.ConnectError
            raise kind(str(error), request=request) from error
        except TimeoutError:
            raise http.ReadTimeout("no answer in time", request=request) from None
        except OSError as error:
            raise http.ReadError(str(error) or "the connection was closed", request=request) from error
        except ValueError as error:
            raise http.RemoteProtocolError(str(error), request=request) from error
        return http.Response(status, headers=headers, stream=http.ByteStream(content), request=request)


class Connections:
    """Connections to servers by their origin; free ones are used again, the last first. `trusted` says what servers are
    believed.
    """

    def __init__(self, trusted: Callable[[], ssl.SSLContext]):
        self._trusted = trusted
        self._idle: dict[Origin, list[_Connection]] = defaultdict(list)
        self._tls: ssl.SSLContext | None = None

    def close(self) -> None:
        """Closes those that are idle."""
        for connections in self._idle.values():
            for connection in connections:
                connection.abort()
        self._idle.clear()

    async def exchange(
        self, origin: Origin, data: bytes, method: str, seconds: float | None
    ) -> tuple[int, list[tuple[bytes, bytes]], bytes]:
        """Sends the bytes of a request; returns status, headers and body of its answer.

        Raises:
          UnreachedError: nothing was sent.
          TimeoutError, OSError, ValueError: no answer in time, the connection was closed, the answer is not HTTP.
        """
        connection = self._idle_connection(origin) or await self._connect(origin)
        try:
            async with asyncio.timeout(seconds):
                return await connection.exchange(data, method)
        finally:
            self._give_back(connection)

    def _idle_connection(self, origin: Origin) -> "_Connection | None":
        idle = self._idle[origin]
        while idle:
            connection = idle.pop()
            if connection.open and time.monotonic() - connection.idle_since < _IDLE_SECONDS:
                return connection
            connection.abort()
        return None

    async def _connect(self, origin: Origin) -> "_Connection":
        scheme, host, port = origin
        if scheme == "https" and self._tls is None:
            self._tls = self._trusted()
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(_CONNECT_SECONDS):
                tls = self._tls if scheme == "https" else None
                _, connection = await loop.create_connection(lambda: _Connection(loop, origin), host, port, ssl=tls)
        except TimeoutError:
            raise UnreachedError("no connection in time", in_vain=True) from None
        except OSError as error:
            raise UnreachedError(str(error), in_vain=False) from error
        return connection

    def _give_back(self, connection: "_Connection"):
        if connection.reusable:
            connection.idle_since = time.monotonic()
            self._idle[connection.origin].append(connection)
        else:
            connection.abort()


class _Connection(asyncio.Protocol):
    """One connection: one request at a time."""

    def __init__(self, loop: asyncio.AbstractEventLoop, origin: Origin):
        self.origin = origin
        self.open = True
        self.reusable = False
        self.idle_since = 0.0
        self._loop = loop
        self._buffer = bytearray()
        self._answer: asyncio.Future | None = None
        self._head: tuple[int, list[tuple[bytes, bytes]], int] | None = None  # status, headers, where the body starts
        self._bodiless = False

    async def exchange(self, data: bytes, method: str) -> tuple[int, list[tuple[bytes, bytes]], bytes]:
        """Sends a request; returns status, headers and body of the answer."""
        self.reusable = False
        self._bodiless = method == "HEAD"
        self._answer = self._loop.create_future()
        if not self.open:
            raise ConnectionResetError("the server closed the connection")
        self._transport.write(data)
        answer = await self._answer
        self.reusable = self.open and not self._buffer
        return answer

    def abort(self):
        """Ends the connection at once."""
        self.open = False
        self._transport.abort()

    def connection_made(self, transport: Any):
        self._transport = transport

    def connection_lost(self, error: Exception | None):
        self.open = False
        if self._answer is None or self._answer.done():
            return
        if error is None and self._head is not None and self._length() is None and not self._chunked():
            self._finish(bytes(self._buffer[self._head[2] :]), len(self._buffer))
        else:
            self._answer.set_exception(
                ConnectionResetError("the server closed the connection before its answer was whole")
            )

    def data_received(self, data: bytes):
        if self._answer is None or self._answer.done():
            self.abort()  # nobody asked
            return
        self._buffer += data
        try:
            if len(self._buffer) > _LONGEST_ANSWER_BYTES:
                raise ValueError("the answer is too long to be one")
            self._read()
        except ValueError as error:
            self._answer.set_exception(ValueError(f"not HTTP: {error}"))
            self.abort()

    def _read(self):
        while self._head is None:
            end = self._buffer.find(b"\r\n\r\n")
            if end < 0:
                return
            status_line, *lines = bytes(self._buffer[:end]).split(b"\r\n")
            if not status_line.startswith(b"HTTP/1."):
                raise ValueError("no status line")
            status = int(status_line.split(b" ", 2)[1])
            if status < 200:
                del self._buffer[: end + 4]
                continue
            headers = [(name.strip(), value.strip()) for name, _, value in (line.partition(b":") for line in lines)]
            self._head = (status, headers, end + 4)
        start = self._head[2]
        if self._bodiless or self._head[0] in (204, 304):
            self._finish(b"", start)
        elif self._chunked():
            if self._buffer.endswith(b"\r\n"):
                self._read_chunks(start)
        elif (length := self._length()) is not None and len(self._buffer) >= start + length:
            self._finish(bytes(self._buffer[start : start + length]), start + length)

    def _read_chunks(self, position: int):
        parts = []
        while (end := self._buffer.find(b"\r\n", position)) >= 0:
            size = int(bytes(self._buffer[position:end]).split(b";", 1)[0], 16)
            if size == 0:
                last = self._buffer.find(b"\r\n\r\n", end)  # trailers, if any, stand between
                if last >= 0:
                    self._finish(b"".join(parts), last + 4)
                return
            parts.append(bytes(self._buffer[end + 2 : end + 2 + size]))
            position = end + 4 + size

    def _finish(self, body: bytes, consumed: int):
        status, headers, _ = self._head
        del self._buffer[:consumed]
        self._head = None
        if self._header(headers, b"connection").lower() == b"close":
            self.open = False
        self._answer.set_result((status, headers, body))

    def _length(self) -> int | None:
        value = self._header(self._head[1], b"content-length")
        return int(value) if value else None

    def _chunked(self) -> bool:
        return b"chunked" in self._header(self._head[1], b"transfer-encoding").lower()

    @staticmethod
    def _header(headers: list[tuple[bytes, bytes]], wanted: bytes) -> bytes:
        return next((value for name, value in headers if name.lower() == wanted), b"")
