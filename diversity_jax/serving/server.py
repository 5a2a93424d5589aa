"""An HTTP server in OpenAI's protocol over one model: one thread generates, an event loop talks to clients."""

import asyncio
from collections.abc import AsyncIterator, Callable
import contextlib
import json
import logging
import signal
import threading
import time
from typing import Any, NamedTuple

from aiohttp import web
from aiohttp.web_protocol import RequestPayloadError

from diversity_jax.core.errors import InputError
from diversity_jax.evaluation.config import ServeConfig
from diversity_jax.evaluation.generate import GeneratedText, GenerationRequest, Generator, Sampling, TokenLogprob
from diversity_jax.evaluation.load_model import LanguageModel
from diversity_jax.evaluation.run import open_source
from diversity_jax.serving.openai_api import ApiRequest, RequestRefused, choice, read_request

log = logging.getLogger(__name__)
_LOOPBACK = ("127.0.0.1", "::1", "localhost")
_FAILED = "the server failed while answering; its log says why"


class Worker:
    """The thread that runs the generator while there is anything to generate."""

    def __init__(self, generator: Generator):
        self.generator = generator
        self.failed = self._closed = False
        self._wake = threading.Event()
        self._thread = threading.Thread(target=self._run, name="generator", daemon=True)
        self.start = self._thread.start

    def submit(self, *arguments: Any) -> GenerationRequest:
        """Queues a prompt and wakes the thread."""
        request = self.generator.submit(*arguments)
        self._wake.set()
        return request

    def _run(self) -> None:
        while not self._closed:
            try:
                if not self.generator.step():
                    self._wake.wait()
                    self._wake.clear()
            except Exception:
                log.exception("generation failed")
                self.failed = True
                self.generator.abandon()
                return

    def close(self) -> None:
        """Ends the thread after the current step."""
        self._closed = True
        self._wake.set()
        self._thread.join(timeout=60)


class Service:
    """The handlers, and what they share.

    Args:
      name: what clients call the model.
      max_waiting: requests running or queued at most.
    """

    def __init__(self, model: LanguageModel, generator: Generator, name: str, *, max_waiting: int):
        self.model, self.name, self.worker = model, name, Worker(generator)
        self._max_waiting = max_waiting
        self._model_object = {"id": name, "object": "model", "created": int(time.time()), "owned_by": "diversity_jax"}
        self._model_object["max_model_len"] = model.config.max_length

    def application(self, max_body_bytes: int) -> web.Application:
        """The routes."""
        application = web.Application(client_max_size=max_body_bytes, middlewares=[_errors])
        application.add_routes(
            [
                web.post("/v1/completions", self._answer),
                web.post("/v1/chat/completions", self._answer),
                web.get("/v1/models", self._models),
                web.get("/v1/models/{name:.+}", self._model),
                web.get("/health", self._health),
            ]
        )
        return application

    async def _health(self, _: web.Request) -> web.Response:
        """Whether answers can be expected, and how many requests are running or queued."""
        failed, load = self.worker.failed, self.worker.generator.load
        return web.json_response({"status": "failed" if failed else "ok", "load": load}, status=503 if failed else 200)

    async def _models(self, _: web.Request) -> web.Response:
        return web.json_response({"object": "list", "data": [self._model_object]})

    async def _model(self, request: web.Request) -> web.Response:
        if (name := request.match_info["name"]) != self.name:
            message = f"the model {name!r} does not exist; this server has {self.name!r}"
            raise RequestRefused(404, message, code="model_not_found")
        return web.json_response(self._model_object)

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        """Continues a text or a conversation."""
        chat = request.path.endswith("/chat/completions")
        body = await _read_json(request)
        # Templates and tokenizers of long prompts take a while; other clients are served meanwhile.
        api_request = await asyncio.to_thread(read_request, body, self.model, self.name, chat=chat)
        choices = _RunningChoices(self.worker, api_request, self._max_waiting)
        try:
            if api_request.body.stream:
                return await self._stream(request, choices)
            async for _ in choices.changes():
                pass
            answers = [generation.answer for generation in choices.generations if generation.answer is not None]
            finished = [
                choice(self.model.tokenizer, api_request, index, answer.text, answer.logprobs, answer)
                for index, answer in enumerate(answers)
            ]
            return web.json_response(api_request.answer(finished) | {"usage": api_request.usage(answers)})
        finally:
            choices.cancel()  # a client that hung up cancels this handler

    async def _stream(self, request: web.Request, choices: "_RunningChoices") -> web.StreamResponse:
        headers = {"Content-Type": "text/event-stream; charset=utf-8", "Cache-Control": "no-cache"}
        response = web.StreamResponse(headers=headers)
        await response.prepare(request)
        api_request, tokenizer = choices.request, self.model.tokenizer
        with_usage = bool(api_request.body.stream_options.get("include_usage"))  # tokens are counted in a last event
        no_usage = {"usage": None} if with_usage else {}
        sent_logprobs: dict[int, int] = {}  # by choice, once its first chunk is sent
        try:
            async for index, text, answer, logprobs in choices.changes():
                first = index not in sent_logprobs
                if text or answer or first:
                    new = logprobs[sent_logprobs.get(index, 0) :]
                    part = choice(tokenizer, api_request, index, text, new, answer, chunk=True, first=first)
                    sent_logprobs[index] = len(logprobs)
                    await _send_event(response, {**api_request.answer([part], chunk=True), **no_usage})
        except RequestRefused as error:
            await _send_event(response, error.body())
        else:
            if with_usage:
                usage = api_request.usage([generation.answer for generation in choices.generations])
                await _send_event(response, {**api_request.answer([], chunk=True), "usage": usage})
            await response.write(b"data: [DONE]\n\n")
        await response.write_eof()
        return response


class _Change(NamedTuple):
    """What is new of one choice: text, the answer once it is finished, and all log-probabilities so far."""

    number: int
    text: str
    answer: GeneratedText | None
    logprobs: tuple[TokenLogprob, ...]


class _RunningChoices:
    """The choices of one client's request while they are generated.

    Raises:
      RequestRefused: generation has failed before (503), or too many requests wait (429).
    """

    def __init__(self, worker: Worker, request: ApiRequest, max_waiting: int):
        if worker.failed:
            raise RequestRefused(503, _FAILED)
        load = worker.generator.load
        pairs = [(prompt.ids, sampling) for prompt in request.prompts for sampling in request.sampling]
        if load + len(pairs) > max_waiting:
            message = f"{load:,} requests are waiting; try again in a while"
            raise RequestRefused(429, message, code="rate_limit_exceeded")
        self.request = request
        self._loop = asyncio.get_running_loop()
        self._changes: asyncio.Queue[_Change | None] = asyncio.Queue()
        self.generations = [worker.submit(*pair, self._reporter(index)) for index, pair in enumerate(pairs)]

    def _reporter(self, index: int) -> Callable[[GenerationRequest], None]:
        """A callback for the generator's thread that queues what is new, or None where generation failed."""

        def report(generation: GenerationRequest) -> None:
            answer = generation.answer
            text = generation.stream.take(last=answer is not None)
            change = None if generation.failed else _Change(index, text, answer, tuple(generation.logprobs))
            try:
                self._loop.call_soon_threadsafe(self._changes.put_nowait, change)
            except RuntimeError:  # the event loop is closed: the server is shutting down
                generation.cancelled = True

        return report

    async def changes(self) -> AsyncIterator[_Change]:
        """Changes until all choices are finished.

        Raises:
          RequestRefused: generation failed.
        """
        unfinished = len(self.generations)
        while unfinished:
            change = await self._changes.get()
            if change is None:
                raise RequestRefused(500, _FAILED)
            unfinished -= change.answer is not None
            yield change

    def cancel(self) -> None:
        """Frees the slots of answers that nobody waits for."""
        for generation in self.generations:
            generation.cancelled = True


async def _read_json(request: web.Request) -> Any:
    try:
        body = json.loads(await request.read())
        json.dumps(body, ensure_ascii=False).encode()
    except RequestPayloadError as error:
        raise RequestRefused(400, f"the body cannot be read ({' '.join(str(error).split())})") from None
    except UnicodeEncodeError:
        raise RequestRefused(400, "the body holds a lone surrogate (\\ud800 to \\udfff), which is no text") from None
    except (ValueError, RecursionError) as error:
        raise RequestRefused(400, f"the body is not JSON ({error})") from None
    return body


async def _send_event(response: web.StreamResponse, value: Any) -> None:
    await response.write(b"data: " + json.dumps(value, ensure_ascii=False).encode(errors="replace") + b"\n\n")


@web.middleware
async def _errors(request: web.Request, handler: Any) -> web.StreamResponse:
    """Answers every error with OpenAI's body."""
    headers = None
    try:
        return await handler(request)
    except RequestRefused as error:
        refused = error
    except InputError as error:
        refused = RequestRefused(400, str(error))
    except web.HTTPRequestEntityTooLarge:
        refused = RequestRefused(413, "the body is too large for this server")
    except web.HTTPException as error:
        message = error.reason
        if error.status == 404:
            message = f"{request.path}: no such path"
        if "Allow" in error.headers:
            headers = {"Allow": error.headers["Allow"]}
            message = f"{request.path}: not with {request.method}; allowed: {headers['Allow']}"
        refused = RequestRefused(error.status, message)
    except ConnectionResetError:
        raise  # the client is gone
    except Exception:
        log.exception("a request failed")
        refused = RequestRefused(500, _FAILED)
    return web.json_response(refused.body(), status=refused.status, headers=headers)


async def serve(
    service: Service, *, host: str, port: int, max_body_bytes: int, ready: Callable[[int], None] = lambda port: None
) -> None:
    """Serves until cancelled.

    Args:
      ready: called with the port once clients can connect.

    Raises:
      InputError: the address cannot be listened on.
    """
    runner = web.AppRunner(service.application(max_body_bytes), handler_cancellation=True, access_log=None)
    await runner.setup()
    try:
        await web.TCPSite(runner, host, port).start()
    except OSError as error:
        await runner.cleanup()
        reason = error.strerror or error
        raise InputError(f"{host}:{port}: cannot be listened on ({reason}); choose another host or port") from None
    service.worker.start()
    try:
        ready(runner.addresses[0][1])
        await asyncio.Event().wait()
    finally:
        await runner.cleanup()
        service.worker.close()


def serve_model(config: ServeConfig) -> None:
    """Opens a model and serves it until SIGINT or SIGTERM."""
    model = open_source(config.model, config.name)
    generator = Generator(model, slots=config.slots, steps=config.steps)
    # Compiles before the first client waits for it.
    generator.generate([[model.tokenizer.prefix_id] * 2], Sampling(max_tokens=1))
    if config.host not in _LOOPBACK:
        log.warning("listening on %s without a password: whoever can reach it can use the model", config.host)
    service = Service(model, generator, model.name, max_waiting=config.max_waiting)
    host = f"[{config.host}]" if ":" in config.host else config.host

    def ready(port: int) -> None:
        print(f"serving {service.name} on http://{host}:{port}/v1", flush=True)

    async def until_signal() -> None:
        serving = asyncio.create_task(
            serve(service, host=config.host, port=config.port, max_body_bytes=config.max_body_bytes, ready=ready)
        )
        for number in (signal.SIGINT, signal.SIGTERM):
            asyncio.get_running_loop().add_signal_handler(number, serving.cancel)
        with contextlib.suppress(asyncio.CancelledError):
            await serving
        log.info("stopped")

    asyncio.run(until_signal())
