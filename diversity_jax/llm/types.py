"""The types that pass between callers and the engine: settings, requests, completions, failures."""

from collections.abc import Mapping
from dataclasses import dataclass, field
import functools
import hashlib
import json
import os
import re
from typing import Any

from diversity_jax.core import progress
from diversity_jax.core.config import ADDED
from diversity_jax.core.errors import InputError
from diversity_jax.core.files import canonical_json

# After these a run cannot go on: every later call would fail for the same reason.
RUN_ENDING_REASONS = ("budget", "stalled")
_FALLBACKS = ("wait", "live", "stop")
# What every request sets itself, and what would change the form of its answer.
_OWN_FIELDS = {
    *("model", "messages", "contents", "stream", "n", "max_tokens", "max_completion_tokens", "max_output_tokens"),
    *("response_format", "generationConfig"),
}


@dataclass(frozen=True, kw_only=True)
class EndpointConfig:
    """How a model's address is talked to, beyond what its provider does anyway; see docs/providers.md for examples.

    Attributes:
      headers: `Name: value` each, sent with every request. `${VARIABLE}` stands for a variable of the environment, so
        that no secret need stand in a configuration.
      query: `name=value` joined by `&`, sent with every request behind what the base URL has.
      body: a JSON object whose fields are sent with every request, such as `{"reasoning_effort": "low"}`. They change
        what is answered, and so what counts as the same question.
      key_variable: variable of the environment that holds the API key; None is the provider's.
      key_header: header that carries it: `authorization` (as `Bearer KEY`) or another, such as `api-key`; None is
        `api-key` for Azure's addresses and `authorization` for all others.
    """

    headers: tuple[str, ...] = field(default=(), repr=False)
    query: str = field(default="", repr=False)
    body: str = ""
    key_variable: str | None = None
    key_header: str | None = None

    def __post_init__(self) -> None:
        for number, header in enumerate(self.headers):
            name, colon, value = header.partition(":")
            if not (colon and name.strip().isascii() and value.strip()) or "\n" in header:
                raise InputError(f"endpoint.headers: item {number} is no header; write `Name: value`")
        self.body_fields()

    def header_items(self) -> dict[str, str]:
        """Headers by name, with the variables of the environment in their values.

        Raises:
          InputError: a variable is not set.
        """

        def value_of(match: re.Match[str]) -> str:
            if not (value := os.environ.get(match.group(1), "").strip()):
                raise InputError(f"endpoint.headers: {match.group(1)} is not set; set it in the environment")
            return value

        split = (header.partition(":") for header in self.headers)
        return {name.strip().lower(): re.sub(r"\$\{(\w+)\}", value_of, value.strip()) for name, _, value in split}

    def body_fields(self) -> dict[str, Any]:
        try:
            fields = json.loads(self.body or "{}")
        except ValueError as error:
            raise InputError(f"endpoint.body: is not JSON ({error}); write an object of fields") from None
        if not isinstance(fields, dict):
            raise InputError('endpoint.body: is no JSON object; write one such as {"reasoning_effort": "low"}')
        if own := sorted(_OWN_FIELDS & set(fields)):
            raise InputError(f"endpoint.body: {', '.join(own)} is set by the request itself; leave it out")
        return fields


@dataclass(frozen=True, kw_only=True)
class BatchConfig:
    """Batch interfaces of providers: requests are handed in together, answered within a day, and cost about half.

    Attributes:
      poll_seconds: between two looks at a batch.
      wait_seconds: after which the command ends, to be run again later; None waits without end.
      price_share: of the ordinary price that a batch costs.
      fallback: what becomes of requests that a batch leaves unanswered: `wait` hands them in again, `live` asks them at
        once at the full price, `stop` ends the run.
      gather_seconds: without a new request, after which those that wait are handed in.
    """

    poll_seconds: float = 60.0
    wait_seconds: float | None = None
    price_share: float = 0.5
    fallback: str = field(default="wait", metadata=ADDED)
    gather_seconds: float = field(default=2.0, metadata=ADDED)

    def __post_init__(self) -> None:
        if not self.poll_seconds > 0 or not self.gather_seconds > 0 or not 0 <= self.price_share <= 1:
            values = f"poll_seconds {self.poll_seconds}, gather_seconds {self.gather_seconds}"
            shares = f"price_share {self.price_share}"
            raise InputError(f"batch: {values}, {shares}; give seconds above 0 and a share")
        if self.fallback not in _FALLBACKS:
            raise InputError(f"batch.fallback: {self.fallback!r} is unknown; choose {', '.join(_FALLBACKS)}")


@dataclass(frozen=True, kw_only=True)
class EngineConfig:
    """How calls are made and kept.

    Attributes:
      max_in_flight: requests at once, at most; the server's 429s may lower it.
      deadline_seconds: after so long without an answer an attempt is given up.
      max_attempts: attempts a call, over failures of the server or the network.
      backoff_seconds: the first pause between attempts is at most this, every next one at most twice the one before.
      stall_seconds: a run whose calls have failed for so long without one answer is stopped.
      ledger: path of the file that keeps paid answers; None keeps them in memory only, so that a second run pays again.
      run: under which name spending is added up in the ledger; runs that share a ledger but not a cap need names of
        their own.
      offline_replay: answer from the ledger alone; a missing answer is an error.
      progress: `panel`, `lines`, `off`, or `auto` (a panel on a terminal, else a line now and then).
      batch: send all calls through the provider's batch interface: about half the price, and up to a day for each step
        of the run. It may be stopped and run again at any time.
      batches: how.
    """

    max_in_flight: int = 256
    deadline_seconds: float = 120.0
    max_attempts: int = 6
    backoff_seconds: float = 0.5
    stall_seconds: float = 300.0
    ledger: str | None = None
    run: str = "default"
    offline_replay: bool = False
    progress: str = "auto"
    batch: bool = field(default=False, metadata=ADDED)
    batches: BatchConfig = field(default_factory=BatchConfig, metadata=ADDED)

    def __post_init__(self) -> None:
        if not 1 <= self.max_in_flight <= 1024:
            raise InputError(f"engine.max_in_flight: {self.max_in_flight} is outside 1 to 1024; 256 suits most servers")
        if self.max_attempts < 1:
            raise InputError(f"engine.max_attempts: {self.max_attempts} makes no call; give at least 1")
        for name in ("deadline_seconds", "stall_seconds", "backoff_seconds"):
            if not getattr(self, name) > 0:
                raise InputError(f"engine.{name}: {getattr(self, name)} is no number of seconds above 0")
        if self.progress not in progress.MODES:
            modes = ", ".join(progress.MODES)
            raise InputError(f"engine.progress: {self.progress!r} is unknown; choose one of {modes}")

    @property
    def price_share(self) -> float:
        """The share of the ordinary price that calls cost."""
        return self.batches.price_share if self.batch else 1.0


class Schema(dict):
    """A JSON schema that is never changed, so that what is derived from it is computed once for all its requests."""

    @functools.cached_property
    def canonical(self) -> str:
        """Canonical JSON, as it enters a key."""
        return canonical_json(self)

    @functools.cached_property
    def most_bytes(self) -> int:
        """Upper bound of its length as servers write it down for a model."""
        return len(str(self).encode(errors="replace"))


@dataclass(frozen=True, kw_only=True)
class Request:
    """One question to a model.

    Attributes:
      stage: what is asked, as letters, digits and underscores; also the name under which a server sees the schema.
      system: the instructions; kept apart from `user` because servers cache equal beginnings.
      user: the material, usually with samples, one JSON object a line.
      schema: JSON schema of the answer, or None for free text. Servers that enforce schemas want closed objects
        (`additionalProperties: false`, every property required).
      replicate: which of several equal questions this is. Two requests that differ only here are two calls; otherwise
        ten equal requests would all get the first one's answer.
      max_output_tokens: longest answer, in tokens; a longer one fails as `truncated`.
      temperature: sampling temperature, 0 to 2.
      urgent: whether it goes before other waiting calls, because it completes begun work; no part of its key.
    """

    stage: str
    system: str
    user: str
    schema: Mapping[str, Any] | None
    replicate: int = 0
    max_output_tokens: int = 4096
    temperature: float = 0.0
    urgent: bool = False

    def __post_init__(self) -> None:
        if not self.stage.replace("_", "a").isalnum() or not self.stage.isascii():
            raise InputError(f"Request.stage: {self.stage!r} is not a name; use letters, digits and underscores")
        if self.max_output_tokens < 1:
            raise InputError(f"Request.max_output_tokens: {self.max_output_tokens} is too few; give at least 1")
        if not 0 <= self.temperature <= 2:
            raise InputError(f"Request.temperature: {self.temperature} is outside 0 to 2; 0 repeats itself most")
        if self.replicate < 0:
            raise InputError(f"Request.replicate: {self.replicate} is negative; count from 0")
        if self.schema is not None and not isinstance(self.schema, Schema):
            object.__setattr__(self, "schema", Schema(self.schema))

    def key(self, provider: str, model: str) -> str:
        """SHA-256 under which the answer is kept: equal exactly when the same model is asked the same thing."""
        decoding = f'{{"max_output_tokens":{self.max_output_tokens},"temperature":{float(self.temperature)!r}}}'
        schema = "null"
        if isinstance(self.schema, Schema):
            schema = f'{{"name":"{self.stage}","schema":{self.schema.canonical}}}'
        # `content_hash` of these fields, with what calls have in common written out once.
        fields = (
            f'"decoding":{decoding}',
            f'"messages":[{{"content":{canonical_json(self.user)},"role":"user"}}]',
            f'"model":{_quoted(model)}',
            f'"provider":{_quoted(provider)}',
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
      prompt_tokens, completion_tokens: as the server counted them (thinking tokens count as completion).
      cost_usd: dollars paid for it when it was asked, also where it now comes from the ledger.
      cached: whether it came from the ledger.
      model: the model's name without its provider.
    """

    text: str
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


@dataclass(frozen=True, kw_only=True)
class _Outcome:
    """How a call ended, and what it used up."""

    stage: str
    prompt_tokens: int
    completion_tokens: int
    dollars: float


@dataclass(frozen=True, kw_only=True)
class CachedResponse(_Outcome):
    """A finished call."""

    model: str
    text: str


@dataclass(frozen=True, kw_only=True)
class CachedFailure(_Outcome):
    """A failed call."""

    reason: str
    detail: str


Outcome = CachedResponse | CachedFailure
