"""Serve a model by an OpenAI-compatible API on this machine: /v1/completions and /v1/chat/completions, both also
streamed, and /v1/models.

    python -m diversity_jax.serve --config configs/serve.py --config.model.checkpoint=runs/quickstart
    curl http://127.0.0.1:8000/v1/completions -H 'Content-Type: application/json' \\
        -d '{"model": "quickstart", "prompt": "The ", "max_tokens": 32}'

`--config.host=0.0.0.0` accepts other machines; `--config.api_key=VARIABLE` names the environment variable with the key
that clients must send. There is no TLS: use a proxy where others can read the traffic.
"""

from diversity_jax.core import cli
from diversity_jax.core.errors import InputError
from diversity_jax.evaluation.config import ServeConfig


def main(config: ServeConfig) -> None:
    """Serves until SIGINT or SIGTERM, then ends with status 0."""
    config.model.check_named()
    try:
        import aiohttp  # noqa: F401
        import llguidance  # noqa: F401
        import pydantic  # noqa: F401
    except ImportError as error:
        raise InputError(f"the server needs {error.name} ({error}); pip install 'diversity_jax[serve]'") from None
    from diversity_jax.serving.server import serve_model
    from diversity_jax.training.runtime import keep_programs

    keep_programs("user")
    serve_model(config)


if __name__ == "__main__":
    cli.run(main, ServeConfig, __doc__)
