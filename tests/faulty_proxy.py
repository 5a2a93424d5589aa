"""An HTTP proxy in front of a local object store that counts requests and answers some of them with faults."""

from collections.abc import Iterator
import contextlib
from dataclasses import dataclass, field
import http.client
import http.server
import re
import threading
import urllib.parse


@dataclass
class Fault:
    """An answer instead of the server's own.

    Attributes:
      pattern: of `METHOD PATH`, searched for.
      status: of the answer; 0: the server's own, cut after half of its bytes.
      times: how often; None: always.
    """

    pattern: str
    status: int
    times: int | None = None


@dataclass
class Proxy:
    """The proxy's state, to be changed and read by tests.

    Attributes:
      url: where it listens.
      requests: (method, path with its query unquoted, value of the Range header or "") in the order they came.
    """

    url: str
    faults: list[Fault] = field(default_factory=list)
    requests: list[tuple[str, str, str]] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def fault(self, line: str) -> Fault | None:
        """The fault that a request gets."""
        with self.lock:
            for fault in self.faults:
                if re.search(fault.pattern, line) and fault.times != 0:
                    fault.times = fault.times and fault.times - 1
                    return fault
        return None

    @contextlib.contextmanager
    def failing(self, *faults: Fault) -> Iterator[None]:
        """Answers with faults while the block runs."""
        self.faults = list(faults)
        try:
            yield
        finally:
            self.faults = []


def _read_chunked(request: http.server.BaseHTTPRequestHandler) -> bytes:
    """The body of a request in chunks; empty where it has none."""
    data = b""
    if "chunked" in request.headers.get("Transfer-Encoding", ""):
        while size := int(request.rfile.readline(), 16):
            data += request.rfile.read(size)
            request.rfile.readline()
        request.rfile.readline()
    return data


@contextlib.contextmanager
def proxying(port: int, server_port: int) -> Iterator[Proxy]:
    """Listens at `port` for a server of this machine at `server_port`."""
    proxy = Proxy(url=f"http://127.0.0.1:{port}")

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *args):
            pass

        def answer(self):
            length = int(self.headers.get("Content-Length") or 0)
            body = self.rfile.read(length) if length else _read_chunked(self)
            path = urllib.parse.unquote(self.path)
            with proxy.lock:
                proxy.requests.append((self.command, path, self.headers.get("Range") or ""))
            fault = proxy.fault(f"{self.command} {path}")
            if fault is not None and fault.status:
                self._send(fault.status, [("Content-Type", "text/plain")], b"told to fail")
                return
            upstream = http.client.HTTPConnection("127.0.0.1", server_port, timeout=60)
            headers = {name: value for name, value in self.headers.items() if name.lower() != "transfer-encoding"}
            upstream.request(self.command, self.path, body, headers)
            response = upstream.getresponse()
            data = response.read()
            if fault is not None:
                data = data[: len(data) // 2]
            passed_on = [pair for pair in response.getheaders() if pair[0].lower() not in _REPLACED]
            self._send(response.status, passed_on, data, length=response.getheader("Content-Length"))
            upstream.close()

        def _send(self, status, headers, data, length=None):
            self.send_response(status)
            for name, value in headers:
                self.send_header(name, value)
            is_head = self.command == "HEAD"
            self.send_header("Content-Length", length if is_head and length else str(len(data)))
            self.end_headers()
            if not is_head:
                self.wfile.write(data)

        do_GET = do_POST = do_PUT = do_DELETE = do_HEAD = do_PATCH = answer

    class Server(http.server.ThreadingHTTPServer):
        daemon_threads, request_queue_size = True, 64

        def handle_error(self, request, client_address):
            """Ignores clients that disconnect."""

    server = Server(("127.0.0.1", port), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield proxy
    finally:
        server.shutdown()
        server.server_close()


_REPLACED = {"content-length", "transfer-encoding", "connection", "x-goog-hash"}
