"""The thread that generates, and the choices of one request while they are generated."""

import asyncio
from collections.abc import AsyncIterator, Callable
import logging
import threading
from typing import Any, NamedTuple

from diversity_jax.core.errors import InputError
from diversity_jax.evaluation.generate import Generator
from diversity_jax.evaluation.generation_request import GeneratedText, GenerationRequest, TokenLogprob
from diversity_jax.serving.access import RequestRefused
from diversity_jax.serving.requests import ApiRequest

log = logging.getLogger(__name__)
FAILED = "the server failed while answering; its log says why"
_ARRIVAL_SECONDS, _ARRIVALS = 0.004, 16  # wait between requests that are collected into a batch, and most such waits
_RESTART_SECONDS = (0.5, 30.0)  # the first and the longest wait between two attempts


class Worker:
    """The thread that runs the generator while there are requests.

    An exception fails the running requests only: waiting ones are answered after the generator is restarted. Where that
    fails too, all requests are refused until a later attempt succeeds.
    """

    def __init__(self, generator: Generator):
        self.generator, self._problem = generator, ""
        self._closed, self._wake = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._run, name="generator", daemon=True)
        self.start = self._thread.start

    @property
    def problem(self) -> str | None:
        """Why the generator does not work at present; None: it works."""
        ended = self._thread.ident is not None and not self._thread.is_alive()
        return self._problem or ("the thread that generates has ended" if ended else None)

    def submit(self, *arguments: Any) -> GenerationRequest:
        """Queues a prompt and wakes the thread."""
        request = self.generator.submit(*arguments)
        self._wake.set()
        return request

    def _run(self) -> None:
        while not self._closed.is_set():
            try:
                if not self.generator.step():
                    self._wake.wait()
                    self._wake.clear()
                    self._gather()
            except BaseException as error:  # of any type, since the thread must not end silently
                self._recover(error)

    def _gather(self) -> None:
        """Waits while further requests arrive within milliseconds, since a batch of them takes far less time."""
        load = 0
        for _ in range(_ARRIVALS):
            before, load = load, self.generator.load
            if load == before or self._closed.wait(_ARRIVAL_SECONDS):
                return

    def _recover(self, error: BaseException) -> None:
        seconds, longest = _RESTART_SECONDS
        log.error(
            "generation failed; what was computed together is lost, and the generator is made anew", exc_info=error
        )
        self.generator.abandon(RuntimeError(FAILED))
        while not self._closed.is_set():
            try:
                self.generator.restart()
                self._problem = ""
                return
            except BaseException as again:
                self._problem = f"generation fails ({type(again).__name__}); it is tried again every {longest:.0f} s"
                log.error("the generator cannot be made anew; it is tried again in %.1f s", seconds, exc_info=again)
                self.generator.abandon(RuntimeError(FAILED), waiting=True)
            self._closed.wait(seconds)
            seconds = min(2 * seconds, longest)

    def close(self) -> None:
        """Ends the thread after the current step."""
        self._closed.set()
        self._wake.set()
        self._thread.join(timeout=60)


class ChoiceUpdate(NamedTuple):
    """New text and log-probabilities of one choice, and the answer once it is finished."""

    number: int
    text: str
    logprobs: tuple[TokenLogprob, ...]
    answer: GeneratedText | None


class RunningChoices:
    """The choices of one client's request while they are generated.

    Raises:
      RequestRefused: nothing can be generated at present (503), or too many requests wait (429).
    """

    def __init__(self, worker: Worker, request: ApiRequest, max_waiting: int):
        if problem := worker.problem:
            raise RequestRefused(503, problem)
        load = worker.generator.load
        pairs = [(prompt.ids, sampling) for prompt in request.prompts for sampling in request.sampling]
        if load + len(pairs) > max_waiting:
            message = f"{load:,} requests are waiting; try again in a while"
            raise RequestRefused(429, message, code="rate_limit_exceeded")
        self.request = request
        self._loop = asyncio.get_running_loop()
        self._updates: asyncio.Queue[ChoiceUpdate | Exception] = asyncio.Queue()
        constraints = [request.constraint and request.constraint.copy() for _ in pairs]
        self.generations: list[GenerationRequest] = []
        for index, (pair, constraint) in enumerate(zip(pairs, constraints, strict=True)):
            self.generations.append(worker.submit(*pair, self._reporter(index), constraint))

    def _reporter(self, index: int) -> Callable[[GenerationRequest], None]:
        """A callback for the generator's thread that queues an update, or the failure."""
        reported = 0

        def report(generation: GenerationRequest) -> None:
            nonlocal reported
            answer = generation.answer
            text = generation.stream.take(last=answer is not None)
            reported, new = len(generation.logprobs), tuple(generation.logprobs[reported:])
            update = generation.failure or ChoiceUpdate(index, text, new, answer)
            try:
                self._loop.call_soon_threadsafe(self._updates.put_nowait, update)
            except RuntimeError:  # the event loop is closed: the server is shutting down
                generation.cancelled = True

        return report

    async def updates(self) -> AsyncIterator[ChoiceUpdate]:
        """Updates until all choices are finished.

        Raises:
          RequestRefused: generation failed (500), or the constraint cannot be met (400).
        """
        unfinished = len(self.generations)
        while unfinished:
            update = await self._updates.get()
            if isinstance(update, InputError):
                raise RequestRefused(400, str(update))
            if isinstance(update, Exception):
                raise RequestRefused(500, str(update) if isinstance(update, ArithmeticError) else FAILED)
            unfinished -= update.answer is not None
            yield update

    def cancel(self) -> None:
        """Cancels all unfinished answers."""
        for generation in self.generations:
            generation.cancelled = True
