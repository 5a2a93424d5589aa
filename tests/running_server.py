"""Runs our server in a thread of the test, and sends requests to it."""

import asyncio
import contextlib
import http.client
import json
import threading

from diversity_jax.evaluation.config import ServeConfig
from diversity_jax.evaluation.generate import Generator
from diversity_jax.serving.server import Service, serve


@contextlib.contextmanager
def running(model, *, key=None, slots=8, steps=4, **fields):
    """(port, service) while it serves; `fields` are of `ServeConfig`."""
    config = ServeConfig(**({"port": 0, "max_waiting": 300} | fields))
    service = Service(model, Generator(model, slots=slots, steps=steps), config, key=key)
    ready, loop, started = threading.Event(), asyncio.new_event_loop(), {}

    def tell(port):
        started["port"] = port
        ready.set()

    async def run():
        started["task"] = asyncio.current_task()
        with contextlib.suppress(asyncio.CancelledError):
            await serve(service, config, ready=tell)

    thread = threading.Thread(target=loop.run_until_complete, args=(run(),), daemon=True)
    thread.start()
    assert ready.wait(60)
    yield started["port"], service
    loop.call_soon_threadsafe(started["task"].cancel)
    thread.join(60)
    assert not thread.is_alive()


def post(port, path, body, *, headers=None, method="POST"):
    """(status, error or body) of a raw request; a header whose value is None is not sent."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    data = body if isinstance(body, bytes | None) else json.dumps(body).encode()
    given = {"Host": f"127.0.0.1:{port}", "Content-Type": "application/json", **(headers or {})}
    connection.putrequest(method, path, skip_host=True, skip_accept_encoding=True)
    for name, value in (given | {"Content-Length": str(len(data or b""))}).items():
        if value is not None:
            connection.putheader(name, value)
    connection.endheaders(data)
    answer = connection.getresponse()
    answer_json = json.loads(answer.read() or b"{}")
    connection.close()
    return answer.status, answer_json.get("error", answer_json)
