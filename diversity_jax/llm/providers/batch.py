"""Batch APIs: many requests handed in together, answered within a day at a lower price. What every one of them does."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from diversity_jax.core.errors import InputError
from diversity_jax.llm.providers import parse_model
from diversity_jax.llm.providers.base import Answer
from diversity_jax.llm.types import CallFailed, Request


@dataclass(frozen=True, kw_only=True)
class BatchState:
    """How a batch stands: `running`, `done` (also in part), or `failed` with the provider's reason."""

    state: str
    detail: str = ""


class BatchProvider(Protocol):
    """A way to one model's batches.

    Every method raises InputError where the provider refuses for good, and `Transient` where another attempt may
    succeed.
    """

    async def submit(self, tag: str, requests: Sequence[tuple[str, Request]]) -> str:
        """Hands in (id, request) pairs under a tag of one's own; the provider's name of the batch."""

    async def find(self, tag: str) -> str | None:
        """Name of the batch that was handed in under a tag, or None: so that a process killed before it wrote the name
        down pays once.
        """

    async def poll(self, name: str) -> BatchState:
        """How a batch stands."""

    async def collect(self, name: str) -> dict[str, Answer | CallFailed]:
        """Answers by id; what is missing was not answered, and not paid for."""

    async def close(self) -> None:
        """Gives connections back."""


def open_batches(name: str, *, base_url: str | None) -> BatchProvider:
    """Opens the way to the batches of `provider:model`; both Gemini providers go through google-genai.

    Raises:
      InputError: missing SDK or API key, or a bad name.
    """
    provider, model = parse_model(name)
    try:
        if provider == "openai":
            from diversity_jax.llm.providers.openai_batch import OpenAIBatches

            return OpenAIBatches(model, base_url=base_url)
        from diversity_jax.llm.providers.gemini_batch import GeminiBatches

        return GeminiBatches(model, base_url=base_url)
    except ImportError as error:
        raise InputError(
            f"{name}: batches need a package that is missing here ({error}); install it, or set batch=False"
        ) from None
