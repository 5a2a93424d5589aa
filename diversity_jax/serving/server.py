"""An HTTP server in OpenAI's form over one model: one thread generates for all, an event loop talks to clients."""

import asyncio
from collections.abc import AsyncIterator
import json
import logging
import secrets
import threading
import time
from typing import Any

from aiohttp import web
from aiohttp.web_protocol import RequestPayloadError

from diversity_jax.core.errors import InputError
from diversity_jax.evaluation.generate import Generator, Request
from diversity_jax.evaluation.load_model import LanguageModel
from diversity_jax.serving.openai_api import Ask, Envelope, Refused, chunk_choice, read_ask, usage, whole_choice

log = logging.getLogger(__name__)
_FAILED = "the server failed while answering; its log says why"


class Worker:
    """The thread that runs the generator while there is anything to generate."""

    def __init__(self, generator: Generator):
        self.generator = generator
        self.failure: BaseException | None = None
        self._wake = threading.Event()
        self._closed = False
        self._requests: set[Request] = set()
        self._thread = threading.Thread(target=self._run, name="generator", daemon=True)

    def start(self) -> None:
        """Starts the thread."""
        self._thread.start()

    def submit(self, *arguments: Any) -> Request:
        """Puts a prompt in line and wakes the thread."""
        request = self.generator.submit(*arguments)
        self._wake.set()
        return request

    def _run(self) -> None:
        while not self._closed:
            try:
                if not self.generator.step():
                    self._wake.wait()
                    self._wake.clear()
            except Exception as error:
                log.exception("generation failed")
                self.failure = error
                self.generator.abandon()
                return

    def close(self) -> None:
        """Ends the thread after the step under way."""
        self._closed = True
        self._wake.set()
        self._thread.join(timeout=60)


class Service:
    """The handlers, and what they share.

    Args:
      name: what clients call the model.
      max_waiting: requests running or in line at most.
    """

    def __init__(self, model: LanguageModel, generator: Generator, name: str, *, max_waiting: int):
        self.model, self.name, self.worker = model, name, Worker(generator)
        self._max_waiting, self._created = max_waiting, int(time.time())

    def application(self, max_body_bytes: int) -> web.Application:
        """The routes."""
        application = web.Application(client_max_size=max_body_bytes, middlewares=[_errors])
        application.add_routes(
            [
                web.post("/v1/completions", self.completions),
                web.post("/v1/chat/completions", self.chat_completions),
                web.get("/v1/models", self.models),
                web.get("/v1/models/{name:.+}", self.one_model),
                web.get("/health", self.health),
            ]
        )
        return application

    async def health(self, _: web.Request) -> web.Response:
        """Whether answers can be expected, and how many are under way."""
        failed, load = self.worker.failure is not None, self.worker.generator.load
        return web.json_response({"status": "failed" if failed else "ok", "load": load}, status=503 if failed else 200)

    def _card(self) -> dict[str, Any]:
        return {
            "id": self.name,
            "object": "model",
            "created": self._created,
            "owned_by": "diversity_jax",
            "max_model_len": self.model.config.max_length,
        }

    async def models(self, _: web.Request) -> web.Response:
        """The one model."""
        return web.json_response({"object": "list", "data": [self._card()]})

    async def one_model(self, request: web.Request) -> web.Response:
        """The model by name."""
        if (asked := request.match_info["name"]) != self.name:
            raise Refused(
                404, f"the model {asked!r} does not exist; this server has {self.name!r}", code="model_not_found"
            )
        return web.json_response(self._card())

    async def completions(self, request: web.Request) -> web.StreamResponse:
        """Continues a text."""
        return await self._answer(request, chat=False)

    async def chat_completions(self, request: web.Request) -> web.StreamResponse:
        """Continues a conversation."""
        return await self._answer(request, chat=True)

    async def _answer(self, request: web.Request, *, chat: bool) -> web.StreamResponse:
        try:
            body = json.loads(await request.read())
            json.dumps(body, ensure_ascii=False).encode()
        except RequestPayloadError as error:
            raise Refused(400, f"the body cannot be read ({' '.join(str(error).split())})") from None
        except UnicodeEncodeError:
            raise Refused(400, "the body holds a lone surrogate (\\ud800 to \\udfff), which is no text") from None
        except (ValueError, RecursionError) as error:
            raise Refused(400, f"the body is not JSON ({error})") from None
        # Templates and tokenizers of long prompts take a while; other clients are served meanwhile.
        ask = await asyncio.to_thread(read_ask, body, self.model, self.name, chat=chat)
        envelope = Envelope(
            identity=f"{'chatcmpl' if chat else 'cmpl'}-{secrets.token_hex(12)}",
            created=int(time.time()),
            model=self.name,
            chat=chat,
        )
        running = _Running(self, ask)
        try:
            return await (self._stream(request, running, envelope) if ask.stream else self._whole(running, envelope))
        finally:
            running.cancel()  # a client that hung up cancels this handler

    async def _whole(self, running: "_Running", envelope: Envelope) -> web.Response:
        async for _ in running.changes():
            pass
        answers = [request.answer for request in running.requests]
        choices = [
            whole_choice(self.model.tokenizer, running.ask, index, answer) for index, answer in enumerate(answers)
        ]
        return web.json_response(envelope.wrap(choices, usage=usage(running.ask, answers)))

    async def _stream(self, request: web.Request, running: "_Running", envelope: Envelope) -> web.StreamResponse:
        response = web.StreamResponse(
            headers={"Content-Type": "text/event-stream; charset=utf-8", "Cache-Control": "no-cache"}
        )
        await response.prepare(request)
        ask, tokenizer = running.ask, self.model.tokenizer
        empty = {"usage": None} if ask.usage_in_stream else {}
        begun: set[int] = set()
        shown = [0] * len(running.requests)
        try:
            async for index, text, answer, logprobs in running.changes():
                reason = answer.finish_reason if answer else None
                if not text and not reason and index in begun:
                    continue
                new, shown[index] = logprobs[shown[index] :], len(logprobs)
                choice = chunk_choice(
                    tokenizer, ask, index, text, first=index not in begun, logprobs=new, reason=reason
                )
                begun.add(index)
                await _event(response, {**envelope.wrap([choice], chunk=True), **empty})
        except Refused as error:
            await _event(response, error.body())
        else:
            if ask.usage_in_stream:
                await _event(
                    response, envelope.wrap([], chunk=True, usage=usage(ask, [one.answer for one in running.requests]))
                )
            await response.write(b"data: [DONE]\n\n")
        await response.write_eof()
        return response


class _Running:
    """One client's answers under way."""

    def __init__(self, service: Service, ask: Ask):
        worker = service.worker
        if worker.failure is not None:
            raise Refused(503, _FAILED)
        total = len(ask.prompts) * len(ask.sampling)
        if worker.generator.load + total > service._max_waiting:
            raise Refused(
                429, f"{worker.generator.load:,} requests are waiting; try again in a while", code="rate_limit_exceeded"
            )
        self.ask, self._worker = ask, worker
        self._loop, self._changes = asyncio.get_running_loop(), asyncio.Queue()
        self.requests: list[Request] = []
        for prompt in ask.prompts:
            for sampling in ask.sampling:
                index = len(self.requests)
                self.requests.append(
                    worker.submit(prompt, sampling, lambda request, index=index: self._tell(index, request))
                )

    def _tell(self, index: int, request: Request) -> None:
        """Called by the generator's thread: what is new, copied while nobody writes to it."""
        answer = request.answer
        change = (index, request.stream.take(last=answer is not None), answer, tuple(request.logprobs), request.failed)
        try:
            self._loop.call_soon_threadsafe(self._changes.put_nowait, change)
        except RuntimeError:  # the event loop is gone: the server is shutting down
            request.cancelled = True

    async def changes(self) -> AsyncIterator[tuple[int, str, Any, tuple[Any, ...]]]:
        """(choice, new text, answer once it is finished, log-probabilities so far) until all choices are finished.

        Raises:
          Refused: generation failed.
        """
        left = len(self.requests)
        while left:
            index, text, answer, logprobs, failed = await self._changes.get()
            if failed:
                raise Refused(500, _FAILED)
            left -= answer is not None
            yield index, text, answer, logprobs

    def cancel(self) -> None:
        """Frees the slots of answers that nobody waits for."""
        for request in self.requests:
            request.cancelled = True


async def _event(response: web.StreamResponse, value: Any) -> None:
    await response.write(b"data: " + json.dumps(value, ensure_ascii=False).encode(errors="replace") + b"\n\n")


@web.middleware
async def _errors(request: web.Request, handler: Any) -> web.StreamResponse:
    """Every error as OpenAI's body."""
    try:
        return await handler(request)
    except Refused as refused:
        return web.json_response(refused.body(), status=refused.status)
    except InputError as error:
        return web.json_response(Refused(400, str(error)).body(), status=400)
    except web.HTTPRequestEntityTooLarge:
        return web.json_response(Refused(413, "the body is too large for this server").body(), status=413)
    except web.HTTPException as error:
        allowed = f"; allowed: {error.headers['Allow']}" if "Allow" in error.headers else ""
        said = {404: f"{request.path}: no such path", 405: f"{request.path}: not with {request.method}{allowed}"}
        body = Refused(error.status, said.get(error.status, error.reason)).body()
        return web.json_response(
            body, status=error.status, headers={"Allow": error.headers["Allow"]} if allowed else None
        )
    except ConnectionResetError:
        raise  # the client is gone, and so is whoever could read an answer
    except Exception:
        log.exception("a request failed")
        return web.json_response(Refused(500, _FAILED).body(), status=500)


async def serve(service: Service, *, host: str, port: int, max_body_bytes: int, ready: Any = None) -> None:
    """Serves until cancelled.

    Args:
      ready: called with the port once clients can connect.

    Raises:
      InputError: the address cannot be listened on.
    """
    runner = web.AppRunner(service.application(max_body_bytes), handler_cancellation=True, access_log=None)
    await runner.setup()
    site = web.TCPSite(runner, host, port)
    try:
        await site.start()
    except OSError as error:
        await runner.cleanup()
        raise InputError(
            f"{host}:{port}: cannot be listened on ({error.strerror or error}); choose another host or port"
        ) from None
    service.worker.start()
    try:
        if ready is not None:
            ready(site._server.sockets[0].getsockname()[1])
        await asyncio.Event().wait()
    finally:
        await runner.cleanup()
        service.worker.close()
