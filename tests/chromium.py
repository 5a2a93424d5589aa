"""A headless Chromium for tests of pages, driven over its DevTools protocol; nothing of it reaches the network."""

import base64
from collections.abc import Iterator
import contextlib
from dataclasses import dataclass, field
import itertools
import json
from pathlib import Path
import shutil
import subprocess
import tempfile
import time
from typing import Any

import pytest

_FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--hide-scrollbars",
    "--remote-debugging-port=0",
)
_COMPLAINTS = ("Runtime.exceptionThrown", "Log.entryAdded", "Runtime.consoleAPICalled")


def executable() -> str:
    """The browser's path; skips the test, with the command that installs it, where there is none."""
    path = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if path is None:
        pytest.skip("no Chromium on this machine; on Debian: apt-get install chromium")
    return path


@dataclass
class Browser:
    """One tab. `complaints` holds every console message, log entry and exception, `requests` every URL asked for since
    `open`.
    """

    socket: Any
    session: str = ""
    complaints: list[str] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)
    _ids: Iterator[int] = field(default_factory=lambda: itertools.count(1))
    _loaded: bool = False

    def ask(self, method: str, **params: Any) -> dict:
        """Sends one protocol command and waits for its answer, noting events on the way."""
        number = next(self._ids)
        message = {"id": number, "method": method, "params": params} | (
            {"sessionId": self.session} if self.session else {}
        )
        self.socket.send(json.dumps(message))
        while True:
            answer = self._receive(30)
            if answer.get("id") == number:
                if "error" in answer:
                    raise RuntimeError(f"{method}: {answer['error']}")
                return answer["result"]

    def _receive(self, timeout: float) -> dict:
        message = json.loads(self.socket.recv(timeout=timeout))
        method, params = message.get("method"), message.get("params", {})
        if method in _COMPLAINTS:
            self.complaints.append(json.dumps(params)[:2000])
        elif method == "Network.requestWillBeSent":
            self.requests.append(params["request"]["url"])
        elif method == "Page.loadEventFired":
            self._loaded = True
        return message

    def open(
        self,
        path: Path,
        *,
        width: int = 1280,
        height: int = 900,
        dark: bool = False,
        media: str = "screen",
        scale: float = 1,
    ) -> None:
        """Shows a local file at a width in CSS pixels, in light or dark, on screen or as printed, and waits until it
        has settled.
        """
        self.complaints.clear()
        self.requests.clear()
        self._loaded = False
        self.ask(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=scale,
            mobile=width < 600,
        )
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.ask("Emulation.setEmulatedMedia", media=media, features=[scheme])
        self.ask("Page.navigate", url=path.resolve().as_uri())
        until = time.monotonic() + 30
        while not self._loaded and time.monotonic() < until:
            self._receive(30)
        self.evaluate("new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))")
        with contextlib.suppress(TimeoutError):
            while True:
                self._receive(0.2)

    def evaluate(self, script: str) -> Any:
        """The value of a script, or of the promise it makes."""
        answer = self.ask("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        if "exceptionDetails" in answer:
            raise RuntimeError(str(answer["exceptionDetails"]))
        return answer["result"].get("value")

    def screenshot(self, path: Path, *, full_page: bool = True) -> None:
        """Writes a PNG of the whole page, or of its first screen."""
        image = self.ask("Page.captureScreenshot", format="png", captureBeyondViewport=full_page)
        Path(path).write_bytes(base64.b64decode(image["data"]))

    def pdf(self) -> bytes:
        """The page as it prints."""
        return base64.b64decode(self.ask("Page.printToPDF", printBackground=True, preferCSSPageSize=True)["data"])


@contextlib.contextmanager
def browser() -> Iterator[Browser]:
    """Starts a browser with a fresh profile and ends it with its profile."""
    path = executable()
    connect = pytest.importorskip(
        "websockets.sync.client", reason="the DevTools protocol needs pip install websockets"
    ).connect
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        process = subprocess.Popen(
            [path, *_FLAGS, f"--user-data-dir={profile}", "about:blank"],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        try:
            port, address = _port(Path(profile) / "DevToolsActivePort", process)
            with connect(f"ws://127.0.0.1:{port}{address}", max_size=None) as socket:
                tab = Browser(socket)
                target = tab.ask("Target.createTarget", url="about:blank")["targetId"]
                tab.session = tab.ask("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
                for domain in ("Page", "Runtime", "Log", "Network"):
                    tab.ask(f"{domain}.enable")
                yield tab
        finally:
            process.terminate()
            process.wait(timeout=20)


def _port(file: Path, process: subprocess.Popen) -> tuple[str, str]:
    """Port and path of the DevTools endpoint, from the file that the browser writes."""
    until = time.monotonic() + 30
    while time.monotonic() < until:
        if process.poll() is not None:
            pytest.skip(f"Chromium ends at once here, with status {process.returncode}")
        lines = file.read_text().split("\n") if file.exists() else []
        if len(lines) >= 2:
            return lines[0], lines[1]
        time.sleep(0.05)
    raise TimeoutError("Chromium did not open its DevTools port within 30 seconds")
