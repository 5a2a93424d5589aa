"""Servers that the steps of a study ask: started where nobody answers at their address, and ended after the step."""

from collections.abc import Iterable, Iterator
import contextlib
import dataclasses
from dataclasses import dataclass
import logging
import subprocess
import tempfile
import time
from typing import IO, Any
import urllib.error
import urllib.request

from diversity_jax.core.errors import InputError

log = logging.getLogger(__name__)
_POLL_SECONDS = 0.5
_END_SECONDS = 20.0  # from SIGTERM to SIGKILL
_SHOWN_CHARACTERS = 400  # of what a server wrote before it ended


@dataclass(frozen=True, kw_only=True)
class Server:
    """A model's server that speaks OpenAI's protocol, for the steps that name its address.

    Attributes:
      base_url: as the steps' configurations name it, such as http://127.0.0.1:8080/v1.
      command: program and arguments that serve there until they are told to end.
      start_seconds: until `base_url` has to answer.
    """

    base_url: str
    command: tuple[str, ...]
    start_seconds: float = 300.0

    def __post_init__(self) -> None:
        if not self.base_url.startswith(("http://", "https://")):
            raise InputError(f"servers: base_url={self.base_url!r}; give an address such as http://127.0.0.1:8080/v1")
        if not self.command or isinstance(self.command, str):
            raise InputError(f"servers: command={self.command!r} of {self.base_url}; give a tuple of words")


def named_in(config: Any, servers: Iterable[Server]) -> list[Server]:
    """The servers whose addresses stand in texts of a configuration."""
    texts = set(_texts(config))
    return [server for server in servers if server.base_url in texts]


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        yield from _texts([getattr(value, field.name) for field in dataclasses.fields(value)])
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _texts(item)


@contextlib.contextmanager
def answering(server: Server) -> Iterator[None]:
    """While the block runs, somebody answers at the server's address: who does already, or else a process of ours.

    Raises:
      InputError: the program is not there, ends by itself, or does not answer in time.
    """
    if _answers(server.base_url):
        yield
        return
    with tempfile.TemporaryFile("w+", errors="replace") as output:
        try:
            process = subprocess.Popen(
                server.command, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT
            )
        except OSError as error:
            raise InputError(f"servers: {server.command[0]}: {error.strerror}; install it or correct command") from None
        try:
            _wait(server, process, output)
            log.info("%s answers at %s", server.command[0], server.base_url)
            yield
        finally:
            process.terminate()
            try:
                process.wait(_END_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _wait(server: Server, process: subprocess.Popen, output: IO[str]) -> None:
    deadline = time.monotonic() + server.start_seconds
    while not _answers(server.base_url):
        ended = process.poll()
        if ended is None and time.monotonic() < deadline:
            time.sleep(_POLL_SECONDS)
            continue
        output.seek(0)
        last = " ".join(output.read()[-_SHOWN_CHARACTERS:].split())
        what = f"does not answer after {server.start_seconds:g} s" if ended is None else f"ended with status {ended}"
        raise InputError(f"servers: the server for {server.base_url} {what}; it wrote last: {last or 'nothing'}")


def _answers(base_url: str) -> bool:
    """Whether a server is there and has loaded its model: llama.cpp answers 503 until it has."""
    try:
        with urllib.request.urlopen(f"{base_url.rstrip('/')}/models", timeout=10):
            return True
    except urllib.error.HTTPError as error:
        return error.code in (401, 403)  # it is there, and wants the key that requests will bring
    except (OSError, ValueError):
        return False
