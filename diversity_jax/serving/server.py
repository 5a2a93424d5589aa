"""An OpenAI-compatible HTTP server of one model: one thread generates, an event loop serves clients."""

import asyncio
from collections.abc import Callable, Mapping
import contextlib
import gc
import json
import logging
import os
import signal
import time
from typing import Any

from aiohttp import hdrs, web

from diversity_jax.core.errors import InputError
from diversity_jax.core.process import return_free_memory
from diversity_jax.evaluation.config import ServeConfig
from diversity_jax.evaluation.generate import Generator
from diversity_jax.evaluation.load_model import LanguageModel
from diversity_jax.evaluation.run import open_source
from diversity_jax.serving import description
from diversity_jax.serving.access import LOOPBACK, Access, BodyReader, RequestRefused, is_preflight, shown
from diversity_jax.serving.constraints import Grammars
from diversity_jax.serving.description import ChoiceWriter, envelope, usage
from diversity_jax.serving.requests import chat_prompt, decode, parse_json, read_body, read_request
from diversity_jax.serving.worker import FAILED, ChoiceUpdate, RunningChoices, Worker

log = logging.getLogger(__name__)


class Service:
    """The request handlers and their shared state.

    Args:
      config: limits and access; its `model` is not used.
      key: required of clients; None: no key.
    """

    def __init__(self, model: LanguageModel, generator: Generator, config: ServeConfig, *, key: str | None = None):
        self.model, self.worker, self._config = model, Worker(generator), config
        self._grammars = Grammars(model.tokenizer)
        origins = config.allow_origin
        self._access = Access.bound(config.host, allowed=config.allow_host, origins=origins, key=key)
        self._bodies = BodyReader(config.max_body_bytes, config.max_bodies_bytes, config.read_seconds)
        self._model_object = {"id": model.name, "object": "model", "created": int(time.time())}
        self._model_object |= {"owned_by": "diversity_jax", "max_model_len": model.config.max_length}
        self._description = description.describe(model, needs_key=key is not None)

    def application(self) -> web.Application:
        application = web.Application(client_max_size=self._config.max_body_bytes, middlewares=[self._guard])
        application.on_response_prepare.append(self._access.add_headers)
        application.add_routes(
            [
                web.post("/v1/completions", self._answer),
                web.post("/v1/chat/completions", self._answer),
                web.get("/v1/models", self._models),
                web.get("/v1/models/{name:.+}", self._models),
                web.post("/tokenize", self._tokenize),
                web.post("/detokenize", self._detokenize),
                web.get("/tokenizer_info", self._tokenizer_info),
                web.get("/openapi.json", self._describe),
                web.get("/health", self._health),
            ]
        )
        return application

    @web.middleware
    async def _guard(self, request: web.Request, handler: Any) -> web.StreamResponse:
        """Checks access, and answers every error in OpenAI's format."""
        headers: dict[str, str] = {}
        try:
            self._access.check(request)
            return web.Response(status=204) if is_preflight(request) else await handler(request)
        except RequestRefused as error:
            refused = error
        except InputError as error:
            refused = RequestRefused(400, str(error))
        except web.HTTPException as error:
            message = f"{shown(request.path)}: no such path" if error.status == 404 else error.reason
            if hdrs.ALLOW in error.headers:
                headers = {hdrs.ALLOW: error.headers[hdrs.ALLOW]}
                message = f"{request.path}: not with {request.method}; allowed: {headers[hdrs.ALLOW]}"
            refused = RequestRefused(error.status, message)
        except ConnectionResetError:
            raise  # the client is gone
        except Exception:
            log.exception("a request failed")
            refused = RequestRefused(500, FAILED)
        if refused.status == 401:
            headers[hdrs.WWW_AUTHENTICATE] = "Bearer"
        response = web.json_response(refused.body(), status=refused.status, headers=headers)
        if refused.status in (408, 413):  # the rest of the body is not read
            response.force_close()
        return response

    async def _health(self, _: web.Request) -> web.Response:
        """Whether the generator works, and the number of running and queued requests."""
        problem = self.worker.problem
        state = {"status": "failed", "reason": problem} if problem else {"status": "ok"}
        return web.json_response({**state, "load": self.worker.generator.load}, status=503 if problem else 200)

    async def _describe(self, _: web.Request) -> web.Response:
        return web.json_response(self._description)

    async def _models(self, request: web.Request) -> web.Response:
        name = request.match_info.get("name")
        if name is None:
            return web.json_response({"object": "list", "data": [self._model_object]})
        if name != self.model.name:
            message = f"the model {shown(name)} does not exist; this server has {self.model.name!r}"
            raise RequestRefused(404, message, code="model_not_found")
        return web.json_response(self._model_object)

    async def _tokenize(self, request: web.Request) -> web.Response:
        """Ids of a text or a conversation, compatible with vLLM."""

        def read(data: bytes) -> list[int]:
            body = read_body(parse_json(data), description.TokenizeBody)
            if (body.prompt is None) == (body.messages is None):
                raise RequestRefused(400, "give either prompt or messages", param="prompt")
            if body.prompt is None:
                return list(chat_prompt(body.messages or [], self.model).ids)
            return self.model.tokenizer.encode(body.prompt, special=body.add_special_tokens)

        async with self._bodies.read(request) as data:
            ids = await asyncio.to_thread(read, data)
        return web.json_response({"count": len(ids), "max_model_len": self.model.config.max_length, "tokens": ids})

    async def _detokenize(self, request: web.Request) -> web.Response:
        """The text of ids."""

        def read(data: bytes) -> str:
            return decode(read_body(parse_json(data), description.DetokenizeBody).tokens, self.model, "tokens")

        async with self._bodies.read(request) as data:
            return web.json_response({"prompt": await asyncio.to_thread(read, data)})

    async def _tokenizer_info(self, _: web.Request) -> web.Response:
        """Special tokens by the names of chat templates, and the template."""
        tokenizer = self.model.tokenizer
        return web.json_response(
            {**tokenizer.vocabulary.special, **tokenizer.special, "chat_template": tokenizer.chat_template}
        )

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        """Continues a text or a conversation."""
        chat = request.path.endswith("/chat/completions")
        async with self._bodies.read(request) as data:
            # In a thread, since templates, tokenizers and grammars would block other clients.
            api_request = await asyncio.to_thread(
                lambda: read_request(parse_json(data), self.model, self._grammars, chat=chat)
            )
        choices = RunningChoices(self.worker, api_request, self._config.max_waiting)
        tokenizer = self.model.tokenizer
        read_bytes = self._grammars.token_bytes
        writers = [ChoiceWriter(tokenizer, api_request, index, read_bytes) for index in range(len(choices.generations))]
        try:
            if api_request.body.stream:
                return await self._stream(request, choices, writers)
            async for _ in choices.updates():
                pass
            answers = [generation.answer for generation in choices.generations if generation.answer is not None]

            def write() -> dict[str, Any]:  # in a thread, since decoding many log-probabilities' tokens takes long
                pairs = zip(writers, answers, strict=True)
                written = [writer.write(answer.text, answer.logprobs, answer) for writer, answer in pairs]
                return envelope(api_request, written)

            written = await asyncio.to_thread(write)
            return web.json_response(written | {"usage": usage(api_request, answers)})
        finally:
            choices.cancel()  # aiohttp cancels this handler when the client disconnects

    async def _stream(
        self, request: web.Request, choices: RunningChoices, writers: list[ChoiceWriter]
    ) -> web.StreamResponse:
        headers = {"Content-Type": "text/event-stream; charset=utf-8", "Cache-Control": "no-cache"}
        response = web.StreamResponse(headers=headers)
        await response.prepare(request)
        api_request = choices.request
        with_usage = api_request.body.stream_options.include_usage  # tokens are counted in a last event
        no_usage = {"usage": None} if with_usage else {}

        def write(update: ChoiceUpdate) -> dict[str, Any]:
            part = writers[update.number].write(update.text, update.logprobs, update.answer, chunk=True)
            return {**envelope(api_request, [part], chunk=True), **no_usage}

        try:
            async for update in choices.updates():
                if update.logprobs:  # whose tokens take long to decode
                    await self._send_event(response, await asyncio.to_thread(write, update))
                elif update.text or update.answer or not writers[update.number].begun:
                    await self._send_event(response, write(update))
        except RequestRefused as error:
            await self._send_event(response, error.body())
        else:
            if with_usage:
                counted = usage(api_request, [generation.answer for generation in choices.generations])
                await self._send_event(response, {**envelope(api_request, [], chunk=True), "usage": counted})
            await self._send_event(response, None)
        await response.write_eof()
        return response

    async def _send_event(self, response: web.StreamResponse, value: Mapping[str, Any] | None) -> None:
        """Sends one event, or the end for None; disconnects a client that reads nothing for `read_seconds`."""
        data = "[DONE]" if value is None else json.dumps(value, ensure_ascii=False)
        try:
            async with asyncio.timeout(self._config.read_seconds):
                await response.write(b"data: " + data.encode(errors="replace") + b"\n\n")
        except TimeoutError:
            raise ConnectionResetError("the client reads nothing") from None


async def serve(service: Service, config: ServeConfig, *, ready: Callable[[int], None] = lambda port: None) -> None:
    """Serves until cancelled.

    Args:
      ready: called with the port once clients can connect.

    Raises:
      InputError: the server cannot listen on the address.
    """
    runner = web.AppRunner(
        service.application(),
        handler_cancellation=True,
        access_log=None,
        auto_decompress=False,
        keepalive_timeout=config.read_seconds,  # also the timeout of receiving a request's headers
        lingering_time=1.0,
    )
    # Handlers log their own errors; aiohttp logs every connection that does not speak HTTP, such as port scanners'.
    logging.getLogger("aiohttp.server").setLevel(logging.CRITICAL)
    await runner.setup()
    host, port = config.host, config.port
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


def _key(config: ServeConfig) -> str | None:
    """The key that clients must send. Messages never quote `api_key`, which may be the key itself by mistake."""
    if not config.api_key:
        return None
    key = os.environ.get(config.api_key, "").strip()
    if not key or not key.isascii():
        raise InputError(
            "api_key: is no environment variable that holds a key in ASCII; name the variable, not the key"
        )
    return key


def serve_model(config: ServeConfig) -> None:
    """Opens a model and serves it until SIGINT or SIGTERM."""
    key = _key(config)
    model = open_source(config.model, config.name)
    generator = Generator(model, slots=config.slots, steps=config.steps, memory_gb=config.memory_gb)
    generator.reserve(model.config.max_length)
    generator.compile()  # before any client waits for it
    gc.collect()
    return_free_memory()  # of loading and compiling
    if config.host not in LOOPBACK and key is None:
        log.warning("listening on %s without api_key: whoever can reach it can use the model", config.host)
    service = Service(model, generator, config, key=key)
    host = f"[{config.host}]" if ":" in config.host else config.host

    def ready(port: int) -> None:
        print(f"serving {model.name} on http://{host}:{port}/v1", flush=True)

    async def until_signal() -> None:
        serving = asyncio.create_task(serve(service, config, ready=ready))
        for number in (signal.SIGINT, signal.SIGTERM):
            asyncio.get_running_loop().add_signal_handler(number, serving.cancel)
        with contextlib.suppress(asyncio.CancelledError):
            await serving
        log.info("stopped")

    asyncio.run(until_signal())
