"""Serve a model in OpenAI's form: /v1/completions, /v1/chat/completions (both also as streams) and /v1/models, on this
machine only.

    python -m diversity_jax.serve --config configs/serve.py --config.model.checkpoint=runs/quickstart
    curl http://127.0.0.1:8000/v1/completions -H 'Content-Type: application/json' \\
        -d '{"model": "quickstart", "prompt": "The ", "max_tokens": 32}'

`--config.host=0.0.0.0` lets other machines in; there is no password, so put a proxy before it that asks for one.
"""

import asyncio
import dataclasses
import logging
import signal

from diversity_jax.core import cli
from diversity_jax.core.errors import InputError
from diversity_jax.evaluation.config import ServeConfig

log = logging.getLogger(__name__)
_LOOPBACK = ("127.0.0.1", "::1", "localhost")


def main(config: ServeConfig) -> None:
    """Serves until SIGINT or SIGTERM, then ends with status 0."""
    config.model.check_named()
    try:
        import aiohttp  # noqa: F401
    except ImportError as error:
        raise InputError(f"the server needs aiohttp ({error}); pip install 'diversity_jax[serve]'") from None
    from diversity_jax.evaluation.generate import Generator
    from diversity_jax.evaluation.load_model import open_model
    from diversity_jax.evaluation.sampling import Sampling
    from diversity_jax.serving.server import Service

    source = {field.name: getattr(config.model, field.name) for field in dataclasses.fields(config.model)}
    model = open_model(source.pop("checkpoint"), **source, name=config.name)
    generator = Generator(model, slots=config.slots, steps=config.steps)
    generator.generate(
        [[model.tokenizer.prefix_id] * 2], Sampling(max_tokens=1)
    )  # compiles before the first client waits for it
    if config.host not in _LOOPBACK:
        log.warning(
            "listening on %s: whoever can reach this machine can use the model; there is no password", config.host
        )
    asyncio.run(_serve(config, Service(model, generator, model.name, max_waiting=config.max_waiting)))


async def _serve(config: ServeConfig, service) -> None:
    from diversity_jax.serving.server import serve

    loop, task = asyncio.get_running_loop(), asyncio.current_task()
    for one in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(one, task.cancel)

    def ready(port: int) -> None:
        host = f"[{config.host}]" if ":" in config.host else config.host
        print(f"serving {service.name} on http://{host}:{port}/v1", flush=True)

    try:
        await serve(service, host=config.host, port=config.port, max_body_bytes=config.max_body_bytes, ready=ready)
    except asyncio.CancelledError:
        log.info("stopped")


if __name__ == "__main__":
    cli.run(main, ServeConfig, __doc__)
