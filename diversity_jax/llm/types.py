"""What goes to a language model and what comes back: the types that pass between this room and those that ask."""

from collections.abc import Mapping
from dataclasses import dataclass
import functools
import hashlib
from typing import Any

from diversity_jax.core.errors import InputError
from diversity_jax.core.files import canonical_json

# After these a run cannot go on: every later call would fail for the same reason.
RUN_ENDING_REASONS = ("budget", "stalled")


class Schema(dict):
    """A JSON schema that nobody changes, so that what is made of it is made once for all the calls that carry it."""

    @functools.cached_property
    def canonical(self) -> str:
        """As it enters a key."""
        return canonical_json(self)

    @functools.cached_property
    def most_bytes(self) -> int:
        """Upper bound of its length as servers write it down for a model."""
        return len(str(self).encode(errors="replace"))

    def __hash__(self) -> int:
        return hash(self.canonical)


@dataclass(frozen=True, kw_only=True)
class Request:
    """One question to a model.

    Attributes:
      stage: what is asked, as letters, digits and underscores; also the name under which a server sees the schema.
      system: the instructions; kept apart from `user` because servers cache equal beginnings.
      user: the material, usually with samples, one JSON object a line.
      schema: JSON schema of the answer, or None for free text. Servers that enforce schemas want closed objects
        (`additionalProperties: false`, every property required). A `Schema` is written out once for all requests that
          carry it.
      replicate: which of several equal questions this is. Two requests that differ only here are two calls; without
        it, asking the same thing ten times would be answered ten times from the ledger's first answer.
      max_output_tokens: longest answer, in tokens; a longer one fails as `truncated`.
      temperature: sampling temperature, 0 or more.
      urgent: whether it goes before others that wait, because it ends what was begun; no part of what is asked.
    """

    stage: str
    system: str
    user: str
    schema: Mapping[str, Any] | None
    replicate: int = 0
    max_output_tokens: int = 4096
    temperature: float = 0.0
    urgent: bool = False

    def __post_init__(self):
        if not self.stage.replace("_", "a").isalnum() or not self.stage.isascii():
            raise InputError(f"Request.stage: {self.stage!r} is not a name; use letters, digits and underscores")
        if self.max_output_tokens < 1:
            raise InputError(
                f"Request.max_output_tokens: {self.max_output_tokens} leaves no room for an answer; give at least 1"
            )
        if not 0 <= self.temperature <= 2:
            raise InputError(f"Request.temperature: {self.temperature} is outside 0 to 2; 0 repeats itself most")
        if self.replicate < 0:
            raise InputError(f"Request.replicate: {self.replicate} is negative; count from 0")
        if self.schema is not None and not isinstance(self.schema, Schema):
            object.__setattr__(self, "schema", Schema(self.schema))

    def key(self, provider: str, model: str) -> str:
        """SHA-256 under which the answer is kept: equal exactly when the same model is asked the same thing."""
        decoding = {"temperature": float(self.temperature), "max_output_tokens": self.max_output_tokens}
        schema = "null" if self.schema is None else f'{{"name":"{self.stage}","schema":{self.schema.canonical}}}'
        # `content_hash` of these fields, with what calls have in common written out once.
        fields = (
            f'"decoding":{canonical_json(decoding)}',
            f'"messages":[{{"content":{canonical_json(self.user)},"role":"user"}}]',
            f'"model":{canonical_json(model)}',
            f'"provider":{canonical_json(provider)}',
            f'"replicate":{self.replicate}',
            f'"schema":{schema}',
            f'"system":{_quoted(self.system)}',
        )
        return hashlib.sha256(f"{{{','.join(fields)}}}".encode()).hexdigest()


@functools.lru_cache(maxsize=64)
def _quoted(text: str) -> str:
    return canonical_json(text)


@dataclass(frozen=True, kw_only=True)
class Completion:
    """A whole answer: the model stopped by itself, and the answer is on disk.

    Attributes:
      text: the answer; JSON in the request's schema where the server enforces it, so check it all the same.
      finish_reason: always `stop`; other endings are a `CallFailed`.
      prompt_tokens, completion_tokens: as the server counted them (thinking tokens count as completion).
      cost_usd: dollars paid for it when it was asked, also where it now comes from the ledger.
      cached: whether it came from the ledger.
      model: the model's name without its provider.
    """

    text: str
    finish_reason: str
    prompt_tokens: int
    completion_tokens: int
    cost_usd: float
    cached: bool
    model: str


class CallFailed(Exception):
    """A call without a usable answer. The run goes on without it, unless `ends_run`.

    Attributes:
      reason: `refused` (by the model or a content filter), `truncated` (cut at `max_output_tokens`), `empty` (no text),
        `rejected` (the server calls this request malformed or too long), `gave_up` (every attempt failed),
        `budget` (it could have passed the cap), `stalled` (nothing has been answered for long).
      detail: one line more, without prompt, key or header.
      prompt_tokens, completion_tokens, cost_usd: what the failed answer used up, as far as the server said.
    """

    def __init__(
        self, reason: str, detail: str, *, prompt_tokens: int = 0, completion_tokens: int = 0, cost_usd: float = 0.0
    ):
        super().__init__(f"{reason}: {detail}")
        self.reason = reason
        self.detail = detail
        self.prompt_tokens = prompt_tokens
        self.completion_tokens = completion_tokens
        self.cost_usd = cost_usd

    @property
    def ends_run(self) -> bool:
        """Whether every later call of this run would fail for the same reason."""
        return self.reason in RUN_ENDING_REASONS
