"""Runs coroutines from synchronous code, also where an event loop is running already, as in a notebook."""

import asyncio
from collections.abc import Coroutine
from concurrent.futures import Future, ThreadPoolExecutor
import contextvars
import logging
import signal
import threading
from typing import Any, TypeVar

from diversity_jax.core.process import TERMINATED

_logger = logging.getLogger(__name__)
T = TypeVar("T")


def run_to_end(work: Coroutine[Any, Any, T]) -> T:
    """Runs a coroutine and returns its result; SIGTERM cancels it as an interrupt does, and then raises SystemExit.

    Where this thread runs an event loop, the coroutine runs in another thread and this one waits; an interrupt cancels
    the coroutine and waits until it has cleaned up.
    """
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return asyncio.run(_until_terminated(work))
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


async def _until_terminated(work: Coroutine[Any, Any, T]) -> T:
    """Awaits `work`; where nothing else handles SIGTERM, it cancels `work`, so that what it has reserved is freed."""
    if threading.current_thread() is not threading.main_thread() or signal.getsignal(signal.SIGTERM) != signal.SIG_DFL:
        return await work
    loop, task, terminated = asyncio.get_running_loop(), asyncio.ensure_future(work), asyncio.Event()

    def stop(*_: Any) -> None:
        terminated.set()
        loop.call_soon_threadsafe(task.cancel)

    signal.signal(signal.SIGTERM, stop)
    try:
        return await task
    except asyncio.CancelledError:
        if not terminated.is_set():
            raise
        _logger.warning("SIGTERM: stopped; run the same command again to go on")
        raise SystemExit(TERMINATED) from None
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
