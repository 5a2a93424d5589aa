"""Runs coroutines from synchronous code, also where an event loop is running already, as in a notebook."""

import asyncio
from collections.abc import Coroutine
from concurrent.futures import Future, ThreadPoolExecutor
import contextvars
from typing import Any, TypeVar

T = TypeVar("T")


def run_to_end(work: Coroutine[Any, Any, T]) -> T:
    """Runs a coroutine and returns its result.

    Where this thread runs an event loop, the coroutine runs in another thread and this one waits; an interrupt cancels
    the coroutine and waits until it has cleaned up.
    """
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return asyncio.run(work)
    begun: Future[tuple[asyncio.AbstractEventLoop, asyncio.Task[T]]] = Future()

    def run() -> T:
        with asyncio.Runner() as runner:
            loop = runner.get_loop()
            task = loop.create_task(work)
            begun.set_result((loop, task))
            return loop.run_until_complete(task)

    with ThreadPoolExecutor(1, "event-loop") as thread:
        result = thread.submit(contextvars.copy_context().run, run)
        try:
            return result.result()
        except KeyboardInterrupt:
            loop, task = begun.result()
            loop.call_soon_threadsafe(task.cancel)
            raise
