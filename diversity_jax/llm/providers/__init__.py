"""Ways to reach a model: one module a provider, each importing its SDK only when it is opened."""

import urllib.parse

from diversity_jax.core.errors import InputError
from diversity_jax.llm.providers.base import Provider

PROVIDERS = ("openai", "gemini", "google-genai")


def parse_model(name: str) -> tuple[str, str]:
    """Splits `provider:model`.

    Raises:
      InputError: the provider is unknown or the model is missing.
    """
    provider, _, model = name.partition(":")
    if provider not in PROVIDERS or not model:
        raise InputError(f"judge: {name!r} names no model; write {', '.join(f'{known}:MODEL' for known in PROVIDERS)}")
    return provider, model


def open_provider(name: str, *, base_url: str | None, threads: int) -> Provider:
    """Opens the way to `provider:model`, at `base_url` where it is given; `threads` bounds providers that need a thread
    a call.

    Raises:
      InputError: unknown provider, bad address, missing SDK or API key.
    """
    provider, model = parse_model(name)
    parts = urllib.parse.urlsplit(base_url or "http://default")
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise InputError(f"judge_base_url: {base_url!r} is no address; write one such as http://127.0.0.1:8000/v1")
    try:
        if provider == "openai":
            from diversity_jax.llm.providers.openai import OpenAIChat

            return OpenAIChat(model, base_url=base_url)
        if provider == "gemini":
            from diversity_jax.llm.providers.google_generativeai import Gemini

            return Gemini(model, base_url=base_url, threads=threads)
        from diversity_jax.llm.providers.google_genai import GoogleGenai

        return GoogleGenai(model, base_url=base_url)
    except ImportError as error:
        raise InputError(
            f"judge: {name} needs a package that is missing here ({error}); install it, or choose another judge"
        ) from None
