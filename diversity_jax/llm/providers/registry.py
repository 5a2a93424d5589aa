"""The providers of language models by name; an entry of `PROVIDERS` adds one."""

from collections.abc import Mapping
from dataclasses import dataclass
import importlib
from typing import Any

from diversity_jax.core.errors import InputError


@dataclass(frozen=True, kw_only=True)
class ProviderInfo:
    """A provider, without its SDK being imported.

    Attributes:
      client, batches: `module:class` in this package of its `Provider` and of its `BatchProvider`.
      key_variables: environment variables that may hold its API key; the first one that is set counts; empty where it
        needs none.
      public_url: the default address.
      url_variable: environment variable that replaces `public_url`, or None.
      price_family: key of its models in the price table.
    """

    client: str
    batches: str
    key_variables: tuple[str, ...]
    public_url: str
    url_variable: str | None = None
    price_family: str


_GOOGLE: dict[str, Any] = {
    "batches": "batch:GeminiBatches",
    "key_variables": ("GEMINI_API_KEY", "GOOGLE_API_KEY"),
    "public_url": "https://generativelanguage.googleapis.com",
    "price_family": "gemini",
}
PROVIDERS: Mapping[str, ProviderInfo] = {
    "openai": ProviderInfo(
        client="openai:OpenAIChat",
        batches="batch:OpenAIBatches",
        key_variables=("OPENAI_API_KEY",),
        public_url="https://api.openai.com/v1",
        url_variable="OPENAI_BASE_URL",
        price_family="openai",
    ),
    "gemini": ProviderInfo(client="google_genai:Gemini", **_GOOGLE),
    "google-genai": ProviderInfo(client="google_genai:GoogleGenai", **_GOOGLE),
}


def parse_model(name: str, role: str = "judge") -> tuple[str, str]:
    """Splits `provider:model`; `role` is what the model is used as, for the error message.

    Raises:
      InputError: the provider is unknown or the model is missing.
    """
    provider, _, model = name.partition(":")
    if provider not in PROVIDERS or not model:
        known = ", ".join(f"{known}:MODEL" for known in PROVIDERS)
        raise InputError(f"{role}: {name!r} names no model; write {known}")
    return provider, model


def load(path: str) -> Any:
    """The class that `ProviderInfo.client` or `batches` names; its module is imported now."""
    module, _, name = path.partition(":")
    return getattr(importlib.import_module(f"diversity_jax.llm.providers.{module}"), name)
